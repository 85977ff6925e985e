"""The two stages as one LightningModule: `predict_step` and `test_step` take a tomogram's path and give its logits."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from lightning import LightningModule, Trainer

from etsam.errors import InputError
from etsam.inference.two_stage import TwoStage, membrane_mask
from etsam.normalize import Normalization, normalize
from etsam.volume import Location, Slices, Volume, locate, read_volume

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, slices done, slices in all)."""


class NamesTomogram(Protocol):
    """What `test_step` takes."""

    @property
    def tomogram(self) -> str:
        """File."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What the two stages say of one tomogram; nothing of the size of the volume is held.

    Attributes
    ----------
    volume
        The tomogram.
    stage1_logits, logits
        (Z, Y, X) float32 of stage 1 and stage 2, computed slice by slice from the networks' low-resolution logits.
    mask
        (Z, Y, X) uint8: logits strictly above the threshold.
    threshold
        That of stage 2.
    tiles
        Number of tiles a slice was cut into.
    seconds
        By part: normalise (one pass over the file), stage 1, stage 2.
    """

    volume: Volume
    stage1_logits: Slices
    logits: Slices
    mask: Slices
    threshold: float
    tiles: int
    seconds: dict[str, float]


class Segmenter(LightningModule):
    """Runs the two stages on tomograms.

    Parameters
    ----------
    two_stage
        The networks and how they are used.
    normalization
        Grey values -> network input.
    nonfinite
        `error`, or `mean` to replace NaN and infinite voxels by the mean of the others.
    scratch_folder
        Where low-resolution logits wait between the stages; None: in memory.
    """

    def __init__(
        self,
        two_stage: TwoStage,
        normalization: Normalization,
        nonfinite: Literal["error", "mean"] = "error",
        scratch_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.two_stage = two_stage
        self.normalization = normalization
        self.nonfinite = nonfinite
        self.scratch_folder = None if scratch_folder is None else Path(scratch_folder)
        self.progress: Progress | None = None
        self.skip: Callable[[Location], bool] = lambda path: False
        self.failures: list[str] = []

    def predict_step(self, batch: str, batch_idx: int = 0) -> Prediction | None:
        """Segment one tomogram.

        A tomogram that cannot be used does not stop the others: it is logged, kept in `failures`, and gives None.
        """
        path = locate(batch)
        if self.skip(path):
            log.info("%s: complete, skipped", path.name)
            return None
        try:
            return self.segment(read_volume(path))
        except InputError as error:
            self.fail(str(error), self.trainer)
            return None

    def fail(self, why: str, trainer: Trainer) -> None:
        """Keep why there is no result for a tomogram; the others go on."""
        if sum(trainer.num_predict_batches) > 1:  # of a single one it is said at the end, once
            log.warning("not segmented: %s", why)
        self.failures.append(why)

    def test_step(self, batch: NamesTomogram, batch_idx: int = 0) -> dict[str, Any]:
        """Segment one tomogram, to be scored.

        Returns
        -------
        dict
            `prediction`: a `Prediction`; or, so that one tomogram does not stop the others, `error`: an `InputError`.
        """
        try:
            return {"prediction": self.segment(read_volume(batch.tomogram))}
        except InputError as error:
            return {"error": error}
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            return {"error": InputError(f"{batch.tomogram}: {' '.join(str(error).split())[:200]}")}

    def on_predict_end(self) -> None:
        """Tell every process what failed in the others."""
        if self.trainer.world_size > 1:
            gathered: list[list[str]] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self.failures)
            self.failures = [failure for failures in gathered for failure in failures]

    def segment(self, volume: Volume) -> Prediction:
        """Segment a volume.

        Raises
        ------
        InputError
            If its grey values make no sense for the normalisation.
        """
        started = time.perf_counter()
        report = self.progress
        try:
            normalized = normalize(
                volume,
                self.normalization,
                nonfinite=self.nonfinite,
                progress=None if report is None else lambda done, total: report("reading", done, total),
            )
        except InputError as error:
            raise InputError(f"{volume.path or 'array'}: {error}") from error
        seconds = {"normalize": time.perf_counter() - started}
        out = self.two_stage(normalized, scratch_folder=self.scratch_folder, progress=report)
        threshold = self.two_stage.stages[1].threshold
        return Prediction(
            volume=volume,
            stage1_logits=out.stage1_logits,
            logits=out.logits,
            mask=membrane_mask(out.logits, threshold),
            threshold=threshold,
            tiles=len(out.tiles),
            seconds=seconds | out.seconds,
        )

    def raise_failures(self) -> None:
        """To be called after a prediction; one process speaks for all.

        Raises
        ------
        InputError
            If a tomogram failed, naming each and why.
        """
        if not self.failures or not self.trainer.is_global_zero:
            return
        if len(self.failures) == 1:
            raise InputError(self.failures[0])
        raise InputError(f"{len(self.failures)} tomograms were not segmented: {' | '.join(self.failures)}")
