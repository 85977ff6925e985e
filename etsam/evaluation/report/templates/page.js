// Without it the tables are as they are; with it their heads become buttons that sort.
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const compare = new Intl.Collator(undefined, {numeric: true}).compare;
  const text = (row, column) => row.cells[column]?.textContent.trim() ?? '';

  function sort(head, column) {
    const sign = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
    for (const other of heads) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', sign > 0 ? 'ascending' : 'descending');
    const rows = [...body.rows].sort((a, b) => {
      const x = text(a, column);
      const y = text(b, column);
      if (!head.classList.contains('number')) return sign * compare(x, y);
      const [p, q] = [parseFloat(x), parseFloat(y)];
      return isNaN(p) || isNaN(q) ? isNaN(p) - isNaN(q) : sign * (p - q);  // what has no number stays below
    });
    body.append(...rows);
  }

  heads.forEach((head, column) => {
    const button = document.createElement('span');  // a real button is not printed in heads repeated on the next page
    button.setAttribute('role', 'button');
    button.tabIndex = 0;
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => sort(head, column));
    button.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' || event.key === ' ') {
        event.preventDefault();
        button.click();
      }
    });
  });
}

// A slice that is pressed is shown large; pressed again, or with the arrow keys, it changes to the next picture of the
// same slice at the same place, so that the eye sees what differs.
const dialog = document.createElement('dialog');
document.body.append(dialog);
let group = [];
let shown = 0;

function enlarge(number) {
  shown = (number + group.length) % group.length;
  const figure = group[shown].cloneNode(true);
  const image = figure.querySelector('img');
  const original = group[shown].querySelector('img');
  const ratio = original.naturalWidth / original.naturalHeight;
  image.style.width = `min(calc(100vw - 3rem), calc((100vh - 9rem) * ${ratio}))`;
  const hint = document.createElement('p');
  hint.className = 'soft';
  hint.textContent = group.length > 1
    ? `${shown + 1} of ${group.length}: press the picture, or an arrow key, for the next of the same place`
    : '';
  const close = document.createElement('button');
  close.textContent = 'close';
  close.addEventListener('click', () => dialog.close());
  dialog.replaceChildren(close, figure, hint);
  figure.querySelector('.zoom').addEventListener('click', () => enlarge(shown + 1));
  if (!dialog.open) dialog.showModal();
}

dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener('keydown', (event) => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (step) enlarge(shown + step);
});
for (const zoom of document.querySelectorAll('.slices .zoom')) {
  const open = () => {
    group = [...zoom.closest('.slices').querySelectorAll('figure')];
    enlarge(group.indexOf(zoom.closest('figure')));
  };
  zoom.addEventListener('click', open);
  zoom.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      open();
    }
  });
}

// A table that is wider than the screen says so.
for (const region of document.querySelectorAll('.scroll')) {
  const hint = document.createElement('p');
  hint.className = 'more';
  hint.textContent = 'more columns: scroll sideways \u2192';
  hint.hidden = true;
  region.before(hint);
  const update = () => { hint.hidden = region.scrollWidth <= region.clientWidth + 1; };
  new ResizeObserver(update).observe(region);
}
