"""Tables on standard output."""

from collections.abc import Iterable, Sequence

_FILE_COLUMNS = 400  # characters a line where the output goes to a file or another program, so that nothing is folded


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text under headings; long cells are folded to a terminal's width, in files they stay whole."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console()
    Console(width=None if console.is_terminal else _FILE_COLUMNS).print(table)
