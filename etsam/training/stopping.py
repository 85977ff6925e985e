"""The state that a run goes on from, and how a run stops where it can go on.

Where a state is saved decides whether the run that goes on from it is the run that never stopped: after a whole step of
the optimizer, or after an epoch with its validation. Between the last step of an epoch and the end of its validation
nothing is saved, since Lightning would leave that validation out; nor in the middle of a step that failed.
"""

import logging
import re
import signal
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException

from etsam.errors import ConfigError

log = logging.getLogger(__name__)

# of a queue (Slurm's --signal=SIGUSR1@120 comes before the time is up) and of a person (Ctrl-C)
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class LastCheckpoint(Checkpoint):
    """Saves the state of a run, and stops the run when it is told to or its time is up.

    Every process may be told; they stop together, after the same step. What else ends a run, such as an error, leaves
    the state that was saved before.

    Parameters
    ----------
    path
        Of the checkpoint, which is replaced each time.
    every_n_train_steps
        Steps of the optimizer between two states; another is saved at the end of each epoch.
    max_time
        Of this process, days:hours:minutes:seconds; None: no limit.

    Attributes
    ----------
    stopped_by
        The signal that stopped the run (SIGTERM if its time was up); None if none did.

    Raises
    ------
    ConfigError
        If a setting makes no sense.
    """

    def __init__(self, path: str | Path, every_n_train_steps: int = 100, max_time: str | None = None) -> None:
        if every_n_train_steps < 1:
            raise ConfigError(f"every_n_train_steps={every_n_train_steps} has to be at least 1.")
        self.path, self.every_n_train_steps = Path(path), every_n_train_steps
        self.stopped_by: signal.Signals | None = None
        self._max_time = None if max_time is None else _duration(max_time)
        self._told: signal.Signals | None = None
        self._stopping = False
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handlers, in which processes that are told one after another wait for ever."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._tell) for number in _SIGNALS}

    def _tell(self, number: int, frame: FrameType | None) -> None:
        if self._told is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._told = signal.Signals(number)
        again = "; again stops at once" if number == signal.SIGINT else ""
        log.warning("%s: stops after this step, or after the validation at work%s", self._told.name, again)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the state if it is time to; stop if told to."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        batches = batch_idx + 1
        since = batches if trainer.check_val_every_n_epoch is not None else trainer.fit_loop.total_batch_idx + 1
        if trainer.is_last_batch or (trainer.val_check_batch and since % trainer.val_check_batch == 0):
            return  # validation follows
        if batches % trainer.accumulate_grad_batches:  # gradients are no part of the state
            return
        stop = self._shall_stop(trainer)
        if stop or trainer.global_step % self.every_n_train_steps == 0:
            trainer.save_checkpoint(self.path, weights_only=False)
        self._stopping = stop  # the step is written down before the next one begins

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state; stop if told to and another epoch begins."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self._stopping = self._shall_stop(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the last epoch has ended."""
        self._stop()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop before this step."""
        self._stop()

    def _shall_stop(self, trainer: Trainer) -> bool:
        """True if any process was told to, or has run out of time."""
        if self._told is None and self._max_time is not None:
            started = psutil.Process().create_time()
            if time.time() - started > self._max_time.total_seconds():
                log.warning("the run stops, because max_time is over")
                self._told = signal.SIGTERM
        return trainer.strategy.reduce_boolean_decision(self._told is not None, all=False)

    def _stop(self) -> None:
        if self._stopping:
            self.stopped_by = self._told or signal.SIGTERM
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give signals back."""
        self._restore()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class Lengthened(Callback):
    """A run that had ended goes on: early stopping waits anew, and the mark that the run has ended goes.

    Parameters
    ----------
    mark
        The file. It goes when all processes have seen it.
    """

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the next part of the run."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for one in callbacks:
            if isinstance(one, EarlyStopping):
                one.wait_count = one.stopped_epoch = 0
        if trainer.is_global_zero:
            self.mark.unlink(missing_ok=True)


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", str(text))
    if found is None:
        raise ConfigError(f"max_time={text} does not fit; allowed: days:hours:minutes:seconds, such as 00:11:30:00.")
    days, hours, minutes, seconds = map(int, found.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def stopped_by(callbacks: Iterable[Any]) -> int:
    """Number of the signal that stopped a run; SIGTERM if its time was up."""
    told = (one.stopped_by for one in callbacks if isinstance(one, LastCheckpoint) and one.stopped_by is not None)
    return int(signal.SIGINT if next(told, None) is signal.SIGINT else signal.SIGTERM)
