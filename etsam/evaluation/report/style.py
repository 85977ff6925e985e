"""How the page of a report looks on a screen, on a phone and on paper, and how its tables sort."""

CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #555; --paper: #fff; --line: #c8c8c8; --band: #f3f5f7;
  --accent: #005a8c; --bad: #a33c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --soft: #b5b5b5; --paper: #16181b; --line: #44484d;
  --band: #212429; --accent: #7cc4f0; --bad: #ff9d66; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p, ul { max-width: 46rem; }
li { margin: .25rem 0; }
a { color: var(--accent); }
.soft { color: var(--soft); font-size: .9rem; }
.bad { color: var(--bad); font-weight: 600; }
nav ul { padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; max-width: none; }
.scroll { overflow-x: auto; max-width: 100%; margin: .6rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 100%; }
caption { text-align: left; padding: .5rem .7rem; color: var(--soft); }
caption span { position: sticky; left: .7rem; display: inline-block; max-width: min(44rem, calc(100vw - 4rem)); }
th, td { padding: .35rem .7rem; text-align: left; border-top: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
th { background: var(--band); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.name { min-width: 14rem; max-width: 26rem; overflow-wrap: anywhere; }
td.short { min-width: 0; max-width: none; white-space: nowrap; }
th [role=button] { cursor: pointer; }
th [role=button]:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th [role=button]::after { content: " \\2195"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
figcaption { font-size: .85rem; color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem;
  margin: .6rem 0; }
.plots img { display: block; width: 100%; max-width: 32rem; background: #fff; padding: .3rem; border-radius: 6px; }
.tall img { max-width: 40rem; }
.slices { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 9.5rem), 1fr)); gap: .6rem;
  margin: .4rem 0 1rem; }
.slices img { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; font-size: .9rem;
  max-width: none; }
.legend svg { width: .95em; height: .95em; vertical-align: -.1em; margin-right: .4em; }
footer { margin-top: 2.5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
@media (max-width: 40rem) { th, td { padding: .3rem .5rem; } td.name { min-width: 8.5rem; } td.short { min-width: 0; } }
@media (min-width: 60rem) { .slices { grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); } }
@page { size: A4; margin: 14mm; }
@media print {
  :root { --ink: #000; --soft: #333; --paper: #fff; --line: #aaa; --band: #eee; --accent: #000; --bad: #7a2c00; }
  body { max-width: none; padding: 0; font-size: 10pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav, th [role=button]::after { display: none; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 8pt; }
  .dense table { font-size: 6.6pt; }
  .dense th { white-space: normal; }
  caption span { max-width: none; }
  th, td { padding: 1mm 1.4mm; }
  td.name { min-width: 36mm; }
  td.short { min-width: 0; }
  thead { display: table-header-group; }
  tr, li { break-inside: avoid; }
  h2, h3, h3 + p, caption { break-after: avoid; }
  .plots { grid-template-columns: 1fr 1fr; }
  .many { grid-template-columns: 1fr 1fr 1fr; gap: 3mm; }
  .plots img { max-height: 225mm; object-fit: contain; object-position: left top; }
  .slices { grid-template-columns: repeat(var(--columns), 1fr); gap: 2mm; }
  .whole { break-inside: avoid; }
  .slice { break-inside: avoid; }
}
"""

# Without it the tables are as they are; with it their heads become buttons.
JAVASCRIPT = """
document.querySelectorAll('table.sortable').forEach(function (table) {
  var heads = table.tHead.rows[0].cells, body = table.tBodies[0];
  var compare = new Intl.Collator(undefined, {numeric: true}).compare;
  var value = function (row, i) { return row.cells[i] ? row.cells[i].textContent.trim() : ''; };
  Array.prototype.forEach.call(heads, function (head, i) {
    var button = document.createElement('span');  // a real button is not printed in heads repeated on the next page
    button.setAttribute('role', 'button');
    button.tabIndex = 0;
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener('keydown', function (event) {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); button.click(); }
    });
    button.addEventListener('click', function () {
      var sign = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
      Array.prototype.forEach.call(heads, function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', sign > 0 ? 'ascending' : 'descending');
      Array.prototype.slice.call(body.rows).sort(function (a, b) {
        var x = value(a, i), y = value(b, i), p = parseFloat(x), q = parseFloat(y);
        if (head.classList.contains('number')) {  // what has no number stays below
          return isNaN(p) ? (isNaN(q) ? 0 : 1) : isNaN(q) ? -1 : sign * (p - q);
        }
        return sign * compare(x, y);
      }).forEach(function (row) { body.appendChild(row); });
    });
  });
});
"""
