"""Progress of a prediction or evaluation: tomograms, and slices of the one at work, each with the time left."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_LOG_INTERVAL_SECONDS = 30.0  # where there is no terminal, as in a cluster's log file


class SliceProgress(ProgressBar):
    """Two bars in a terminal; in a log file, a line every 30 s."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._enabled, self._opened = True, False
        self._bars: Progress | None = None
        self._tomograms: TaskID | None = None
        self._slices: TaskID | None = None
        self._name = ""
        self._part, self._part_started, self._last_line = "", 0.0, 0.0

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
        self._name, self._part = str(batch).replace("\\", "/").rsplit("/", 1)[-1], ""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Name the tomogram at work."""
        self._name, self._part = batch.name, ""

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One tomogram more."""
        self._advance()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One tomogram more."""
        self._advance()

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
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("time left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._tomograms = self._bars.add_task("tomograms", total=sum(int(number) for number in batches))
            self._slices = self._bars.add_task("slices", total=None)
            self._bars.start()

    def _advance(self) -> None:
        if self._bars is not None and self._tomograms is not None:
            self._bars.advance(self._tomograms)

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
            self._part, self._part_started, self._last_line = part, now, now
            if self._bars is not None and self._slices is not None:
                self._bars.reset(self._slices, total=total, description=f"{self._name}: {part}")
        if self._bars is not None and self._slices is not None:
            self._bars.update(self._slices, completed=done)
        elif not self._console.is_terminal and now - self._last_line >= _LOG_INTERVAL_SECONDS:
            left = (now - self._part_started) / max(done, 1) * (total - done)
            log.info("%s: %s %d of %d slices, %.0f s left", self._name, part, done, total, left)
            self._last_line = now
