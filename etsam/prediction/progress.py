"""Progress of a prediction or evaluation: one bar a tomogram over all its parts, and the time to the end of the job."""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import TaskID, TextColumn
from rich.table import Column

from etsam.pictures import short_left
from etsam.prediction.forecast import Forecast
from etsam.screen import Bars, bar_column, console, is_terminal, readable_seconds

log = logging.getLogger(__name__)

# where there is no terminal, as in a cluster's log file; less for programs that show the progress themselves
_LOG_INTERVAL_SECONDS = float(os.environ.get("ETSAM_LOG_SECONDS") or 30)
_DOING_COLUMNS, _LEFT_COLUMNS, _SMALLEST_BAR = 30, 16, 10  # characters; `59 min 59 s left` has 16
_MOST_NAME_COLUMNS = 48


class SliceProgress(ProgressBar):
    """In a terminal a bar for the tomogram at work, for a list one more for all; in a log file, a line every 30 s."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled, self._opened = True, False
        self._bars: Bars | None = None
        self._all: TaskID | None = None
        self._at_work: TaskID | None = None
        self._forecast = Forecast(0)
        self._name, self._part, self._share_shown = "", "", 0.0
        self._last_line = 0.0

    def disable(self) -> None:
        """Lightning calls this on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Opposite of `disable`."""
        self._enabled = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bars."""
        self._open(trainer.num_predict_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bars."""
        self._open(trainer.num_test_batches)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Name the tomogram at work."""
        self._begin(str(batch).replace("\\", "/").rsplit("/", 1)[-1])

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Name the tomogram at work."""
        self._begin(batch.name)

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One tomogram more."""
        self._end()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One tomogram more."""
        self._end()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bars away."""
        self._close()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bars away."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave a clean terminal for the message."""
        self._close()

    def _open(self, batches: Sequence[int | float]) -> None:
        if not self._enabled:
            return
        self._opened = True
        self._forecast = Forecast(sum(int(number) for number in batches))
        if not is_terminal():
            return
        self._bars = Bars(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, width=_name_columns())),
            bar_column(None),
            TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[doing]}", markup=False, table_column=Column(no_wrap=True, width=_DOING_COLUMNS)),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True, width=_LEFT_COLUMNS, justify="right")),
            expand=True,
        )
        if self._forecast.tomograms > 1:
            self._all = self._bars.add_task("all tomograms", total=self._forecast.tomograms, doing="", left="")
        self._at_work = self._bars.add_task("", total=1.0, doing="loading the networks", left="")
        self._bars.start()

    def _begin(self, name: str) -> None:
        self._name, self._part, self._share_shown = name, "", 0.0
        self._forecast.begin(time.monotonic())

    def _end(self) -> None:
        self._forecast.end()
        self._show("", time.monotonic())

    def _close(self) -> None:
        self._opened = False
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def update(self, part: str, done: int, total: int) -> None:
        """Show how far the tomogram at work is; given to what works. Nothing happens in processes without bars.

        Parameters
        ----------
        part
            Such as `stage 1`.
        done, total
            Slices.
        """
        if not self._opened:
            return
        now = time.monotonic()
        if part != self._part:
            self._part, self._last_line = part, now
        self._forecast.update(part, done, total, now)
        if self._bars is not None:
            self._show(f"{f'{part} of 2' if part.startswith('stage ') else part}, slice {done} of {total}", now)
        elif not is_terminal() and now - self._last_line >= _LOG_INTERVAL_SECONDS:
            log.info("%s: %s %d of %d slices%s", self._name, part, done, total, self._left(now, ", "))
            self._last_line = now

    def _left(self, now: float, before: str = "") -> str:
        """Time that all tomograms will take from now on, after what stands before it; empty while it is not known."""
        left = self._forecast.job_seconds_left(now)
        return "" if left is None else f"{before}{readable_seconds(left)} left"

    def _show(self, doing: str, now: float) -> None:
        if self._bars is None or self._at_work is None:
            return
        forecast = self._forecast
        over = forecast.finished >= forecast.tomograms
        told = "" if over else self._left(now)
        self._share_shown = max(self._share_shown, forecast.share_done(now))  # a bar that goes back is not believed
        if self._all is not None:
            done = min(forecast.finished + self._share_shown * bool(doing), forecast.tomograms)
            count = f"{min(forecast.finished + 1, forecast.tomograms)} of {forecast.tomograms}"
            self._bars.update(self._all, completed=done, doing=count, left=told)
            told = ""
        name = short_left(self._name, _name_columns())
        self._bars.update(self._at_work, completed=self._share_shown, description=name, doing=doing, left=told)


def _name_columns() -> int:
    """Room for a name: what a line of the terminal has left beside the other columns and a bar."""
    others = _SMALLEST_BAR + len("100 %") + _DOING_COLUMNS + _LEFT_COLUMNS + 4  # 4 gaps
    return max(8, min(console().width - others, _MOST_NAME_COLUMNS))
