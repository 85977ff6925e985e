"""The screen of a person at work: one console on standard error, shared by log lines, bars and closing blocks.

Whoever writes past a bar overwrites it, and is erased with it; so everything that reaches a terminal while a command
runs goes through `console()`. Where standard error is no terminal (a cluster's log file), lines are plain.
"""

import atexit
import logging
import sys
import textwrap
from collections.abc import Callable
from functools import cache

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn
from rich.spinner import Spinner
from rich.text import Text

BLUE = "blue"  # red, rich's choice, means failure to most people

_LEVEL_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}

Wording = Callable[[str], str]
"""A message as the program has it -> in the words that the person typed (`etsam.cli.wording`)."""

_wording: Wording = str
_sign_of_life: Live | None = None


@cache
def console() -> Console:
    """The one console on standard error, wherever that leads at the moment."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def is_terminal() -> bool:
    """True if a person may be looking: standard error is a terminal."""
    return console().is_terminal


def speak(wording: Wording) -> None:
    """Let every later message of this process be put into these words."""
    global _wording
    _wording = wording


def in_their_words(message: str) -> str:
    """Put a message into the words that the person typed."""
    return _wording(message)


class ScreenHandler(logging.Handler):
    """One line per event, above the bars of a terminal.

    A record's attribute `screen` (a renderable of rich) is what a terminal shows in place of the line:
    `log.info("plain line", extra={"screen": block})`.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        try:
            message = in_their_words(record.getMessage())
            if record.exc_info:
                message += "\n" + logging.Formatter().formatException(record.exc_info)
            if not is_terminal():
                sys.stderr.write(f"{record.levelname}: {message}\n")
                sys.stderr.flush()
                return
            show(getattr(record, "screen", None) or _line(record.levelname, message))
        except Exception:  # as every handler of the standard library: logging never ends a program
            self.handleError(record)


def show(what: RenderableType) -> None:
    """Print on the console; the terminal folds long lines itself, so that a path can be copied whole."""
    console().print(what, soft_wrap=True)


def _line(level: str, message: str) -> Text:
    text = Text(folded(message if level == "INFO" else f"{level}: {message}"))
    text.stylize(_LEVEL_STYLES.get(level, ""), 0, len(level) + 1)
    return text


def folded(text: str) -> str:
    """Text in lines of the terminal's width, between words; a path that is longer stays whole. In files as it is."""
    if not is_terminal():
        return text
    words = textwrap.TextWrapper(console().width, break_long_words=False, break_on_hyphens=False)
    lines: list[str] = []
    for line in text.split("\n"):
        words.subsequent_indent = " " * (len(line) - len(line.lstrip()))
        lines += words.wrap(line) or [line]
    return "\n".join(lines)


def _standard_output_is_seen() -> bool:
    # then what others print belongs above the bars; where it is a file or pipe it belongs there
    return sys.stdout.isatty()


def working(what: str) -> None:
    """Show that the program is at work, until the first bar, error or end; nothing where nobody looks."""
    global _sign_of_life
    if not is_terminal():
        return
    if _sign_of_life is None:
        _sign_of_life = Live(
            console=console(), transient=True, refresh_per_second=8, redirect_stdout=_standard_output_is_seen()
        )
        _sign_of_life.start()
        atexit.register(idle)
    _sign_of_life.update(Spinner("dots", Text(what), style=BLUE), refresh=True)


def idle() -> None:
    """Take the sign of life away."""
    global _sign_of_life
    if _sign_of_life is not None:
        live, _sign_of_life = _sign_of_life, None
        atexit.unregister(idle)
        live.stop()


class Bars(Progress):
    """Bars in the house's colours on the one console; none where standard error is no terminal.

    Parameters
    ----------
    columns
        What stands in a line.
    expand
        Take the whole width of the terminal.
    """

    def __init__(self, *columns: ProgressColumn | str, expand: bool = False) -> None:
        super().__init__(
            *columns,
            console=console(),
            transient=True,
            disable=not is_terminal(),
            redirect_stdout=_standard_output_is_seen(),
            expand=expand,
        )

    def start(self) -> None:
        """Show them, in place of the sign of life."""
        idle()
        super().start()


def bar_column(width: int | None = 40) -> BarColumn:
    """Bar in the house's colour; `width` None takes what a line has left."""
    return BarColumn(width, complete_style=BLUE, finished_style=BLUE, pulse_style=BLUE)


def readable_seconds(seconds: float) -> str:
    """Time for people.

    Examples
    --------
    >>> readable_seconds(25.2), readable_seconds(200), readable_seconds(7300)
    ('25 s', '3 min 20 s', '2 h 02 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
