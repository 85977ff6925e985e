"""Reports of a run while it runs: plain lines where there is no terminal, one CSV file, one curve of W&B."""

import csv
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from etsam.app import is_first_process
from etsam.screen import readable_seconds

log = logging.getLogger(__name__)


class ProgressLines(Callback):
    """A line after each validation and every few minutes, for jobs whose output goes to a file.

    Parameters
    ----------
    every_seconds
        Between two lines.
    """

    def __init__(self, every_seconds: float = 120) -> None:
        self.every_seconds = every_seconds
        self._began = self._said = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = self._said = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say where the run is if it is time to."""
        if time.monotonic() - self._said >= self.every_seconds:
            self._say(trainer, pl_module, validated=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was scored."""
        if not trainer.sanity_checking:
            self._say(trainer, pl_module, validated=True)

    def _say(self, trainer: Trainer, pl_module: LightningModule, *, validated: bool) -> None:
        self._said = time.monotonic()
        if trainer.is_global_zero:
            log.info("%s", ", ".join(self._parts(trainer, pl_module, validated)))

    def _parts(self, trainer: Trainer, pl_module: Any, validated: bool) -> list[str]:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.state.fn == "validate":
            return ["before training", *dice_parts(metrics)]
        total, step = pl_module.total_steps(), trainer.global_step
        epochs = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        parts = [f"epoch {trainer.current_epoch + 1}{epochs}", f"step {step}/{total}"]
        for name, words in (("train/loss", "loss"), ("lr", "lr"), ("train/grad_norm", "gradient norm")):
            if name in metrics:
                parts.append(f"{words} {metrics[name]:.3g}")
        if validated:
            parts += dice_parts(metrics)
            best = best_checkpoint(trainer)
            if best is not None and best.monitor in metrics:
                before = [] if best.best_model_score is None else [float(best.best_model_score)]
                parts.append(f"best {best.monitor} {max([*before, metrics[best.monitor]]):.4f}")
        seconds, done = time.monotonic() - self._began, step - self._first_step
        parts.append(readable_seconds(seconds))
        if done and step < total:
            parts.append(f"{readable_seconds(seconds / done * (total - step))} left")
        return parts


def dice_parts(metrics: dict[str, float]) -> list[str]:
    """`val/dice 0.146 (own 0.140, old 0.150)`, if it was validated."""
    if "val/dice" not in metrics:
        return []
    by_source = {name.removeprefix("val/dice_"): value for name, value in metrics.items() if "val/dice_" in name}
    each = ", ".join(f"{name} {value:.4f}" for name, value in by_source.items())
    return [f"val/dice {metrics['val/dice']:.4f}" + (f" ({each})" if len(by_source) > 1 else "")]


def best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """Callback that keeps the best state."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((one for one in callbacks if isinstance(one, ModelCheckpoint) and one.monitor), None)


class RunLog(CSVLogger):
    """`metrics.csv` in the run folder, one for the whole run.

    Where a run goes on, the rows from its next step on, which were written before it was killed, are replaced.

    Parameters
    ----------
    save_dir
        The run folder.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=1)

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return self.save_dir

    @property
    def experiment(self) -> Any:
        """Writer of the file."""
        if not is_first_process():
            return super().experiment
        if self._experiment is None:
            self._experiment = _Rows(self.save_dir)
        return self._experiment


class _Rows(ExperimentWriter):
    """Appends to the rows that are there, after those of later steps are taken out."""

    def __init__(self, folder: str) -> None:
        self._trimmed = False
        super().__init__(folder)

    def _check_log_dir_exists(self) -> None:
        """Leave what is there: it is of this run."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        if not self._trimmed:
            self._trim(0 if step is None else step)
            self._trimmed = True
        super().log_metrics(metrics_dict, step)

    def _trim(self, step: int) -> None:
        file = Path(self.metrics_file_path)
        if not file.exists():
            return
        with file.open(newline="") as rows:
            reader = csv.DictReader(rows)
            self.metrics_keys = list(reader.fieldnames or [])
            kept = [row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < step]
        part = file.with_name(f".{file.name}.part")
        with part.open("w", newline="") as rows:
            writer = csv.DictWriter(rows, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(kept)
        part.replace(file)


def suggested_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Rate where the loss falls fastest, of a range test; None if it never falls or there are fewer than 20 steps.

    Parameters
    ----------
    rates, losses
        Of each step, rates rising.
    """
    if len(losses) < 20:
        return None
    smooth, value = [], losses[0]
    for loss in losses:  # over about ten steps
        value = 0.9 * value + 0.1 * loss
        smooth.append(value)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    falls = [(smooth[i - 5] - smooth[i], rates[i]) for i in range(5, lowest + 1)]
    return max(falls)[1] if falls and max(falls)[0] > 0 else None


def rates_and_losses(metrics: Path) -> tuple[list[float], list[float]]:
    """Rate and loss of each step of `metrics.csv` that has both."""
    with metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("lr") and row.get("train/loss")]
    return [float(row["lr"]) for row in rows], [float(row["train/loss"]) for row in rows]
