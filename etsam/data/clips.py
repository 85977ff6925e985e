"""Training clips: T neighbouring slices cut straight from the volume files, normalised as in prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from etsam.app import quiet
from etsam.data.batch import Clip
from etsam.data.manifest import Sample
from etsam.data.measured import IGNORE, labels, mask_summary, statistics
from etsam.errors import ConfigError, InputError
from etsam.inference.two_stage import Stage2Inputs
from etsam.normalize import Fitted, Normalization, fit_to
from etsam.volume import Slices, read_volume
from etsam.volume.slices import LazySlices

_TRANSPOSE = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}  # slices first, the other two in their order


def _cut(slices: Slices, box: Sequence[slice]) -> LazySlices:
    """A box of a volume, cut before anything else is computed."""
    return LazySlices.of(slices).window(box[0].start, box[0].stop).crop(box[1], box[2])


def _stack(slices: Slices) -> np.ndarray:
    return np.stack([slices[z] for z in range(slices.shape[0])])


class ClipDataset(Dataset[Clip]):
    """Clips of the tomograms of one source; nothing of the size of a volume is ever held.

    Clip `index` shows sample `index % len(samples)`; where it is cut is drawn from a generator seeded by (seed, epoch,
    index). So workers, processes and resumed runs give the same clips without further seeding.

    Along z a clip costs reading its T slices; along y and x it costs reading the slices of its whole extent in z.

    Parameters
    ----------
    samples
        Checked ones (`check_samples`), of one split.
    normalization
        The method of prediction, fitted to each whole tomogram.
    num_slices
        T.
    context_slices
        Slices at either end of a clip that a network sees beside others and that are not trained. They may lie beyond
        the tomogram, whose first and last slice are repeated as in prediction: every slice is trained in its turn.
    crop
        (Y, X) or one number for both, in voxels; None: whole slices. Where a tomogram is smaller, the image is
        continued by reflection and the labels there are 255.
    clips_per_tomogram
        Clips of each tomogram in an epoch (published as `multiplier`).
    axes
        Axes that slices may follow each other along, drawn with equal probability.
    reverse_probability
        Of clips that run backwards.
    foreground_probability
        Of clips that are cut so that they hold a membrane voxel, drawn from all of the tomogram's, in the middle half
        of the crop (nearer to its edge only where the tomogram ends); the others lie anywhere.
    invert_probability
        Of clips whose tomogram has the other contrast, 1 - grey value; what stage 1 says of it stays. For methods of
        normalisation that give 0..1.
    stage1_logits
        For stage 2: gives its input, the tomogram fused with the logits of stage 1 as in prediction.
    nonfinite
        What to do about NaN and infinite voxels: `error`, or `mean`, as in prediction.
    cache_folder
        Where statistics of tomograms and masks are kept for other processes and runs; None: in this process only.
    seed
        Of all random choices.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    InputError
        If a file cannot be opened, or a clip is longer than a tomogram.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        normalization: Normalization,
        *,
        num_slices: int,
        context_slices: int = 0,
        crop: int | Sequence[int] | None = None,
        clips_per_tomogram: int = 1,
        axes: Sequence[str] = ("z",),
        reverse_probability: float = 0.0,
        foreground_probability: float = 0.0,
        invert_probability: float = 0.0,
        stage1_logits: Stage2Inputs | None = None,
        nonfinite: Literal["error", "mean"] = "error",
        cache_folder: Path | None = None,
        seed: int = 0,
    ) -> None:
        self.samples, self.normalization, self.seed, self.epoch = list(samples), normalization, seed, 0
        self.num_slices, self.clips_per_tomogram, self.axes = num_slices, clips_per_tomogram, tuple(axes)
        self.context_slices = context_slices
        self.crop = None if crop is None else (crop, crop) if isinstance(crop, int) else (int(crop[0]), int(crop[1]))
        self.reverse_probability, self.foreground_probability = reverse_probability, foreground_probability
        self.invert_probability = invert_probability
        self.stage1_logits, self.nonfinite, self.cache_folder = stage1_logits, nonfinite, cache_folder
        self._check_settings()
        self._tomograms = [read_volume(sample.tomogram, warn=False) for sample in self.samples]
        self._masks = [read_volume(sample.target_mask, warn=False) for sample in self.samples]
        self._forget()
        for sample, volume in zip(self.samples, self._tomograms, strict=True):
            side, axis = min((volume.shape["zyx".index(axis)], axis) for axis in self.axes)
            if side < num_slices - 2 * context_slices:
                raise InputError(f"{sample.name}: a clip of {num_slices} slices is longer than {side} along {axis}")

    def _check_settings(self) -> None:
        if self.num_slices < 1 or self.clips_per_tomogram < 1 or (self.crop is not None and min(self.crop) < 1):
            raise ConfigError(
                f"data.num_slices={self.num_slices}, data.clips_per_tomogram={self.clips_per_tomogram} and "
                f"data.crop={self.crop} have to be at least 1."
            )
        if not self.axes or not set(self.axes) <= set("zyx"):
            raise ConfigError(f"data.axes={list(self.axes)} is not one or more of z, y, x.")
        for name in ("reverse_probability", "foreground_probability", "invert_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"data.{name}={getattr(self, name)} is no probability between 0 and 1.")
        if self.nonfinite not in ("error", "mean"):
            raise ConfigError(f"nonfinite={self.nonfinite} is unknown; allowed: error, mean.")

    def _forget(self) -> None:
        self._fits: dict[int, Fitted] = {}
        self._fused: dict[int, Slices] = {}

    def __getstate__(self) -> dict[str, Any]:
        # fitted transforms are functions that cannot be pickled; a worker that was not forked makes them again
        return {**self.__dict__, "_fits": {}, "_fused": {}}

    def __len__(self) -> int:
        return len(self.samples) * self.clips_per_tomogram

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch's clips `dataset[index]` gives."""
        self.epoch = epoch

    def measure(self) -> None:
        """Read every file once now, so that workers started later share what was found and do not wait."""
        for number, sample in enumerate(self.samples):
            self._fit(number)
            if self.foreground_probability:
                mask_summary(sample.target_mask, self.cache_folder)

    def fuse(self) -> None:
        """Find the extremes of all stage-1 logits now, for stage 2, as `measure` does for grey values."""
        if self.stage1_logits is not None:
            for number in range(len(self.samples)):
                self._stage2_input(number)

    def normalized(self, number: int) -> Slices:
        """Slices of a whole tomogram, normalised as in prediction, (Z, Y, X) float32; it is measured only once."""
        return self._fit(number).whole(self._tomograms[number])

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return self.clip(index, self.epoch)

    def clip(self, index: int, epoch: int) -> Clip:
        """Cut clip `index` of `epoch`; unlike `dataset[index]` without a limit on how many an epoch may have."""
        rng = np.random.default_rng([self.seed, epoch, index])
        number = index % len(self.samples)
        axis = self.axes[rng.integers(len(self.axes))]
        box, repeated = self._box(number, axis, rng)
        images = _stack(self._network_input(number, box))
        if self.invert_probability and rng.random() < self.invert_probability:
            # what stage 1 says was added to the grey values, and stays
            grey = _stack(self._fit(number).whole(_cut(self._tomograms[number], box)))
            images = images + 1 - 2 * grey
        images = images.transpose(_TRANSPOSE[axis])
        values = _stack(_cut(self._masks[number], box))
        masks, odd = labels(values)
        if odd.any():
            raise InputError(f"{self.samples[number].target_mask}: mask not binary: it has {values[odd][0]:g}")
        masks = masks.transpose(_TRANSPOSE[axis])
        if any(repeated):
            images, masks = (np.pad(one, (repeated, (0, 0), (0, 0)), mode="edge") for one in (images, masks))
        images, masks = self._pad(images, masks)
        backwards = bool(rng.random() < self.reverse_probability)
        if backwards:  # copied: of one slice NumPy calls this view contiguous, and torch refuses its stride
            images, masks = images[::-1].copy(), masks[::-1].copy()
        return Clip(
            images=torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)),
            masks=torch.from_numpy(np.ascontiguousarray(masks)),
            name=self.samples[number].name,
            axis=axis,
            start=(box[0].start, box[1].start, box[2].start),
            reversed=backwards,
            key=(self.seed, epoch, index),
        )

    def _box(self, number: int, axis: str, rng: np.random.Generator) -> tuple[list[slice], tuple[int, int]]:
        """Draw the part of the tomogram to cut: slices of z, y and x, and how often its first and last are repeated."""
        shape = self._tomograms[number].shape
        slice_axis, *plane_axes = _TRANSPOSE[axis]
        sizes = list(shape)
        sizes[slice_axis] = self.num_slices
        if self.crop is not None:
            for plane_axis, side in zip(plane_axes, self.crop, strict=True):
                sizes[plane_axis] = min(side, shape[plane_axis])
        around = rng.random() < self.foreground_probability and not self.samples[number].without_membrane
        voxel = self._membrane_voxel(number, rng) if around else None
        box, repeated = [], (0, 0)
        for i, (size, side) in enumerate(zip(sizes, shape, strict=True)):
            beyond = self.context_slices if i == slice_axis else 0
            if voxel is None:
                start = int(rng.integers(-beyond, side - size + beyond + 1))
            else:
                margin = beyond if i == slice_axis else size // 4  # a membrane that is trained, and not only seen
                start = int(np.clip(voxel[i] - rng.integers(margin, size - margin), -beyond, side - size + beyond))
            stop = start + size
            if i == slice_axis:
                repeated = max(0, -start), max(0, stop - side)
            box.append(slice(max(0, start), min(side, stop)))
        return box, repeated

    def _membrane_voxel(self, number: int, rng: np.random.Generator) -> tuple[int, int, int]:
        """Draw one of all membrane voxels, each as likely as another, by reading a single slice of the mask."""
        per_slice = mask_summary(self.samples[number].target_mask, self.cache_folder).membrane
        count = int(per_slice.sum())
        if count == 0:
            raise InputError(f"{self.samples[number].target_mask}: mask empty: no voxel is 1")
        ends = np.cumsum(per_slice)
        chosen = int(rng.integers(count))
        z = int(np.searchsorted(ends, chosen, side="right"))
        rows, columns = np.nonzero(self._masks[number][z] == 1)
        within = chosen - int(ends[z] - per_slice[z])
        return z, int(rows[within]), int(columns[within])

    def _pad(self, images: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.crop is None:
            return images, masks
        missing = [max(0, side - have) for side, have in zip(self.crop, images.shape[1:], strict=True)]
        if not any(missing):
            return images, masks
        pad = [(0, 0)] + [(count // 2, count - count // 2) for count in missing]
        return np.pad(images, pad, mode="reflect"), np.pad(masks, pad, constant_values=IGNORE)

    def _network_input(self, number: int, box: list[slice]) -> Slices:
        if self.stage1_logits is not None:
            return _cut(self._stage2_input(number), box)
        # cut first, normalise then: methods of normalisation treat every voxel alike
        return self._fit(number).whole(_cut(self._tomograms[number], box))

    def _stage2_input(self, number: int) -> Slices:
        if number not in self._fused:
            assert self.stage1_logits is not None
            sample = self.samples[number]
            try:
                self._fused[number] = self.stage1_logits(sample, self.normalized(number)).slices
            except ConfigError as error:  # of another shape
                raise InputError(f"{sample.name}: {error}") from error
        return self._fused[number]

    def _fit(self, number: int) -> Fitted:
        """Fit the normalisation to a whole tomogram."""
        if number not in self._fits:
            path = self.samples[number].tomogram
            try:
                found = statistics(path, self._tomograms[number], self.cache_folder)
                with quiet("etsam.normalize"):
                    self._fits[number] = fit_to(found, self.normalization, self.nonfinite)
            except InputError as error:
                message = str(error)
                raise InputError(message if str(path) in message else f"{path}: {message}") from error
        return self._fits[number]
