"""Validation of a stage: the streaming inference that prediction uses, on whole tomograms or a stated part of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from etsam.errors import ConfigError
from etsam.inference.fusion import fuse
from etsam.inference.prompts import Prompt
from etsam.inference.propagate import PropagationSettings
from etsam.inference.tiles import Overlapping, Tiling
from etsam.inference.two_stage import DEFAULT_THRESHOLD, Stage, membrane_mask, run_stage
from etsam.labels import overlap_scores, stat_counts
from etsam.network.tracker import SliceTracker
from etsam.normalize import Normalization, normalize
from etsam.volume import Location, Slices, read_volume
from etsam.volume.slices import LazySlices


class Annotated(Protocol):
    """A tomogram with its mask: a `Sample` of a manifest, or a `ValidationItem`."""

    @property
    def tomogram(self) -> str | Location:
        """File, Zarr folder or URL."""
        ...

    @property
    def target_mask(self) -> str | Location:
        """File, Zarr folder or URL."""
        ...


SampleLogits = Callable[[Any], Slices]
"""Annotated tomogram -> its stage-1 logits (Z, Y, X)."""


@dataclass(frozen=True)
class ValidationResult:
    """Scores of one tomogram, and the slice with the most membrane to look at.

    Attributes
    ----------
    dice, iou, precision, recall
        Over all annotated voxels; 1 where truth and prediction are both empty, 0 where only one of them is.
    z
        The slice shown.
    grey, logits
        (Y, X) float32.
    truth
        (Y, X) uint8: 0, 1, 255 = not annotated.
    """

    dice: float
    iou: float
    precision: float
    recall: float
    z: int
    grey: np.ndarray
    logits: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Validator:
    """Segments a validation tomogram with the network as it is, and compares.

    Attributes
    ----------
    prompt
        That of this stage's inference.
    normalization
        That of inference.
    threshold
        Logits strictly above are membrane.
    tiling
        How slices are cut.
    max_slices
        Take so many slices from the middle; None: all.
    resegment_prompted
        As in inference.
    stage1_logits
        For stage 2: logits of stage 1 that are fused with the tomogram.
    nonfinite
        `error`, or `mean` to replace NaN and infinite voxels by the mean of the others, as in training.
    """

    prompt: Prompt
    normalization: Normalization
    threshold: float = DEFAULT_THRESHOLD
    tiling: Tiling = field(default_factory=Overlapping)
    max_slices: int | None = None
    resegment_prompted: bool = True
    stage1_logits: SampleLogits | None = None
    nonfinite: Literal["error", "mean"] = "error"

    def __post_init__(self) -> None:
        if self.max_slices is not None and self.max_slices < 2:
            raise ConfigError(f"validation max_slices={self.max_slices} has to be at least 2, or null for all slices.")

    def __call__(self, tracker: SliceTracker, sample: Annotated) -> ValidationResult:
        """Scores of `tracker` on one tomogram.

        Raises
        ------
        InputError
            If the tomogram or its mask cannot be used.
        """
        tomogram, target = read_volume(sample.tomogram, warn=False), read_volume(sample.target_mask, warn=False)
        network_input: Slices = normalize(tomogram, self.normalization, nonfinite=self.nonfinite)
        stage1_mask: Slices | None = None
        if self.stage1_logits is not None:
            logits1 = self.stage1_logits(sample)
            network_input, stage1_mask = fuse(network_input, logits1), membrane_mask(logits1, self.threshold)
        first, last = self._range(tomogram.shape[0])
        network_input, truth = (LazySlices.of(one).window(first, last) for one in (network_input, target))
        if stage1_mask is not None:
            stage1_mask = LazySlices.of(stage1_mask).window(first, last)
        tiles = self.tiling.plan(*tomogram.shape[1:], tracker.tile_voxels, tracker.tile_step)
        logits = run_stage(
            Stage(tracker, self.prompt, self.threshold),
            network_input,
            tiles,
            stage1_mask=stage1_mask,
            settings=PropagationSettings(self.resegment_prompted),
        )
        return self._compare(logits, truth, network_input)

    def _range(self, depth: int) -> tuple[int, int]:
        if self.max_slices is None or self.max_slices >= depth:
            return 0, depth
        first = (depth - self.max_slices) // 2
        return first, first + self.max_slices

    def _compare(self, logits: Slices, truth: Slices, grey: Slices) -> ValidationResult:
        counts, most, shown = np.zeros(4), -1, 0
        for z in range(truth.shape[0]):
            target = truth[z].astype(np.uint8)
            counts += stat_counts(logits[z] > self.threshold, target)
            membrane = int(np.count_nonzero(target == 1))
            if membrane > most:
                most, shown = membrane, z
        return ValidationResult(
            **overlap_scores(counts)._asdict(),
            z=shown,
            grey=np.asarray(grey[shown], dtype=np.float32),
            logits=logits[shown],
            truth=truth[shown].astype(np.uint8),
        )
