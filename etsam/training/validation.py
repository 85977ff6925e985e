"""Validation of a stage: the streaming inference that prediction uses, on whole tomograms or a stated part of them."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from etsam.data.measured import labels, mask_summary
from etsam.errors import ConfigError
from etsam.inference.prompts import Prompt
from etsam.inference.propagate import PropagationSettings
from etsam.inference.tiles import Overlapping, Tiling
from etsam.inference.two_stage import DEFAULT_THRESHOLD, Stage, Stage2Inputs, run_stage
from etsam.labels import overlap_scores, stat_counts
from etsam.network.tracker import SliceTracker
from etsam.volume import Location, Slices, read_volume
from etsam.volume.location import locate
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


@dataclass(frozen=True)
class ValidationResult:
    """Scores of one tomogram, and the slice with the most membrane to look at.

    Attributes
    ----------
    dice, iou, precision, recall
        Over all annotated voxels; 1 where truth and prediction are both empty, 0 where only one of them is.
    empty
        True if no annotated voxel is membrane.
    false_fraction
        Of the annotated voxels that are no membrane, the fraction that is taken for it.
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
    empty: bool
    false_fraction: float
    z: int
    grey: np.ndarray
    logits: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Validator:
    """Segments a validation tomogram with the network as it is, by the code of prediction, and compares.

    Attributes
    ----------
    prompt
        That of this stage's inference.
    threshold
        Of this stage: logits strictly above are membrane.
    tiling
        How slices are cut.
    max_slices
        So many slices, see `part`; None: all.
    resegment_conditioning
        As in inference.
    stage1_logits
        For stage 2: (tomogram, its normalised slices) -> input of stage 2 (`Stage1Logits`).
    """

    prompt: Prompt
    threshold: float = DEFAULT_THRESHOLD
    tiling: Tiling = field(default_factory=Overlapping)
    max_slices: int | None = None
    resegment_conditioning: bool = True
    stage1_logits: Stage2Inputs | None = None

    def __post_init__(self) -> None:
        if self.max_slices is not None and self.max_slices < 2:
            raise ConfigError(f"validation.max_slices={self.max_slices} has to be at least 2, or null for all slices.")

    def __call__(self, tracker: SliceTracker, sample: Annotated, normalized: Slices) -> ValidationResult:
        """Scores of `tracker` on one tomogram.

        Parameters
        ----------
        tracker
            The network of this stage.
        sample
            The tomogram, for its mask and its stage-1 logits.
        normalized
            Its slices, normalised, (Z, Y, X) float32.

        Raises
        ------
        InputError
            If the mask cannot be read.
        """
        first, last = self.part(sample, normalized.shape[0])
        truth = LazySlices.of(read_volume(sample.target_mask, warn=False)).window(first, last)
        seen, logits = self.segment(tracker, sample, normalized)
        return self._compare(logits, truth, seen)

    def segment(self, tracker: SliceTracker, sample: Annotated, normalized: Slices) -> tuple[Slices, Slices]:
        """Network input and logits of the slices that are validated, (Z, Y, X) float32; arguments as above."""
        depth, height, width = normalized.shape
        first, last = self.part(sample, depth)
        seen, stage1_mask = normalized, None
        if self.stage1_logits is not None:
            fused = self.stage1_logits(sample, normalized)
            seen, stage1_mask = fused.slices, LazySlices.of(fused.stage1_mask).window(first, last)
        seen = LazySlices.of(seen).window(first, last)
        logits = run_stage(
            Stage(tracker, self.prompt, self.threshold),
            seen,
            self.tiling.plan(height, width, tracker.tile_voxels, tracker.tile_step),
            stage1_mask=stage1_mask,
            settings=PropagationSettings(self.resegment_conditioning),
        )
        return seen, logits

    def part(self, sample: Annotated, depth: int) -> tuple[int, int]:
        """First slice that is validated, and the one after the last, of a tomogram of `depth` slices.

        `max_slices` in the middle, as long as they hold half of the membrane that as many slices hold elsewhere; else
        those with most membrane. Where only other slices are annotated, those in the middle would score 0 for ever.
        """
        if self.max_slices is None or self.max_slices >= depth:
            return 0, depth
        membrane = mask_summary(locate(sample.target_mask)).membrane
        held = np.convolve(membrane, np.ones(self.max_slices, dtype=membrane.dtype), "valid")  # by the first slice
        middle = (depth - self.max_slices) // 2
        first = middle if 2 * held[middle] >= held.max() else int(held.argmax())
        return first, first + self.max_slices

    def _compare(self, logits: Slices, truth: Slices, grey: Slices) -> ValidationResult:
        counts, max_membrane, best_z = np.zeros(4), -1, 0
        for z in range(truth.shape[0]):
            target, _ = labels(truth[z])
            counts += stat_counts(logits[z] > self.threshold, target)
            membrane = int(np.count_nonzero(target == 1))
            if membrane > max_membrane:
                max_membrane, best_z = membrane, z
        return ValidationResult(
            **overlap_scores(counts)._asdict(),
            empty=counts[0] + counts[2] == 0,
            false_fraction=float(counts[1] / max(1.0, counts[1] + counts[3])),
            z=best_z,
            grey=np.asarray(grey[best_z], dtype=np.float32),
            logits=logits[best_z],
            truth=labels(truth[best_z])[0],
        )
