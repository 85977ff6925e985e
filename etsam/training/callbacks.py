"""Pictures of validation slices with truth and prediction, for whichever logger there is."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from etsam.data.datamodule import ValidationItem
from etsam.pictures import compared, stretched
from etsam.training.module import StageTraining
from etsam.training.validation import ValidationResult

log = logging.getLogger(__name__)


def comparison_picture(result: ValidationResult, threshold: float) -> np.ndarray:
    """Grey slice beside the same in the colours of `etsam.pictures.compared`; (Y, 2 X, 3) uint8."""
    grey, mask, truth = stretched(result.grey), result.logits > threshold, result.truth == 1
    coloured = compared(grey, mask & truth, mask & (result.truth == 0), ~mask & truth)
    return np.concatenate([np.repeat(grey[..., None], 3, axis=2), coloured], axis=1)


class SliceLogger(Callback):
    """Logs a picture of each of the first validation tomograms after every validation.

    Parameters
    ----------
    tomograms
        Number of tomograms shown.
    folder
        Where PNG files go for loggers that take no pictures (CSV); None: nowhere.
    """

    def __init__(self, tomograms: int = 2, folder: str | Path | None = None) -> None:
        self.tomograms = tomograms
        self.folder = None if folder is None else Path(folder)
        self._pictures: dict[str, np.ndarray] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect anew."""
        self._pictures = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ValidationItem,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the slice with the most membrane of the first tomograms."""
        if outputs and len(self._pictures) < self.tomograms:
            assert isinstance(pl_module, StageTraining)
            result: ValidationResult = outputs["result"]
            name = f"{batch.dataset_id}_{batch.run_id}_z{result.z}"
            self._pictures[name] = comparison_picture(result, pl_module.validator.threshold)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send the pictures away."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        for logger in trainer.loggers:
            for name, picture in self._pictures.items():
                _log_picture(logger, name, picture, trainer.global_step)
        if self.folder is not None:
            self._save(trainer.global_step)

    def _save(self, step: int) -> None:
        from skimage.io import imsave

        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, picture in self._pictures.items():
            imsave(self.folder / f"{name}_step{step:07d}.png", picture, check_contrast=False)


def _log_picture(logger: Logger, name: str, picture: np.ndarray, step: int) -> None:
    log_image: Any = getattr(logger, "log_image", None)  # Weights & Biases
    if log_image is not None:
        log_image(key=f"val/{name}", images=[picture], step=step)
        return
    add_image: Any = getattr(getattr(logger, "experiment", None), "add_image", None)  # TensorBoard
    if add_image is not None:
        add_image(f"val/{name}", picture, step, dataformats="HWC")
