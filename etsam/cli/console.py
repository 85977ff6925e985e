"""Progress bars, tables and lines of the commands: the one place that decides how they look, by rich."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console


class Progress(Protocol):
    """Called with what is done, of how much (None: unknown), and the name of what is at work."""

    def __call__(self, done: int, total: int | None, name: str = "", /) -> None: ...


_FILE_COLUMNS = 400  # characters a line where the output goes to a file or another program, so that nothing is folded


def stdout_console() -> "Console":
    """Console on standard output: lines stay whole, and nothing in them is taken for markup or coloured."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, markup=False)


def print_line(text: str) -> None:
    """Print one line on standard output as it is."""
    stdout_console().print(text)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None, *, whole_names: bool = False
) -> None:
    """Print rows of text under headings; long cells are folded to a terminal's width, in files they stay whole.

    With `whole_names` the first column stays whole in any case.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(Text(column), overflow="fold", no_wrap=number == 0 and whole_names)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: no name is taken for markup
    Console(width=table_columns()).print(table)


def progress_bars(*, in_bytes: bool = False) -> "rich.progress.Progress":
    """Bars on standard error with the time left, not started yet; none where standard error is no terminal.

    Parameters
    ----------
    in_bytes
        Count bytes, and show how fast they come.
    """
    from rich import progress

    from etsam.screen import Bars, bar_column

    counts: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(),)
    if in_bytes:
        counts = (progress.DownloadColumn(), progress.TransferSpeedColumn())
    return Bars(
        progress.TextColumn("{task.description}", markup=False),
        bar_column(),
        *counts,
        progress.TimeRemainingColumn(),
    )


@contextmanager
def progress_bar(description: str, total: int | None = None) -> Iterator[Progress]:
    """One bar while the block runs; it goes as soon as all is done, so that what follows may draw its own."""
    with progress_bars() as bars:
        task = bars.add_task(description, total=total)

        def update(done: int, of: int | None, name: str = "") -> None:
            bars.update(task, completed=done, total=of, description=name or None)
            if of is not None and done >= of:
                bars.stop()

        yield update


def table_columns() -> int:
    """Characters that a line of a table may have."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal else _FILE_COLUMNS


def readable_bytes(size: int | None) -> str:
    """Bytes for people, in powers of 1000; `?` for None."""
    from rich.filesize import decimal

    return "?" if size is None else decimal(size)
