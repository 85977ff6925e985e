"""Progress of downloads: bars in a terminal, a line every 30 s in a log file."""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from etsam.io.download import Download

T = TypeVar("T")

log = logging.getLogger("etsam.download")

_LOG_INTERVAL_SECONDS = 30.0
_MOST_BARS = 6  # files shown at the same time


class DownloadBars:
    """Shows what `etsam.io.download` tells; use `progress` as its callback.

    Parameters
    ----------
    total_bytes
        Of all files, where it is known beforehand.
    """

    def __init__(self, total_bytes: int | None = None) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._total = total_bytes
        self._lock = threading.Lock()
        self._done: dict[str, tuple[int, int | None]] = {}
        self._bars: Any = None
        self._all: Any = None
        self._tasks: dict[str, Any] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> "DownloadBars":
        if self._console.is_terminal:
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as SpeedColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), SpeedColumn())
            self._bars = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._all = self._bars.add_task("all files", total=self._total)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def progress(self, item: "Download", done: int, total: int | None) -> None:
        """Take note of (download, bytes that are there, bytes in all)."""
        with self._lock:
            name = str(item.target)
            self._done[name] = (done, total)
            sum_done = sum(bytes_done for bytes_done, _ in self._done.values())
            if self._bars is None:
                self._log(sum_done)
                return
            self._bars.update(self._all, completed=sum_done)
            if name not in self._tasks and done != total and len(self._tasks) < _MOST_BARS:
                self._tasks[name] = self._bars.add_task(f"{item.target.parent.name}/{item.target.name}"[-50:])
            if name in self._tasks:
                self._bars.update(self._tasks[name], completed=done, total=total)
                if done == total:
                    self._bars.remove_task(self._tasks.pop(name))

    def _log(self, sum_done: int) -> None:
        now = time.monotonic()
        if now - self._last_line >= _LOG_INTERVAL_SECONDS:
            self._last_line = now
            of_all = "" if self._total is None else f" of {readable_bytes(self._total)}"
            log.info("%s%s there", readable_bytes(sum_done), of_all)


def with_bars(work: Callable[[DownloadBars], T], total_bytes: int | None = None) -> T:
    """Do work that downloads, showing its progress; Ctrl-C ends the program with a line about what is kept."""
    from etsam.app import leave

    with DownloadBars(total_bytes) as bars:
        try:
            return work(bars)
        except KeyboardInterrupt:
            pass  # not from inside: the guard of commands would speak a second time
    leave("interrupted; what came is kept in .part files, and the same command goes on from there.", status=130)


def readable_bytes(size: int | None) -> str:
    """Write a number of bytes for people, `?` for None."""
    from rich.filesize import decimal

    return "?" if size is None else decimal(size)
