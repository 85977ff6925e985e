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
