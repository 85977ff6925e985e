"""The two stages as one LightningModule: `predict_step` and `test_step` take a tomogram's path and give its logits.

Lightning is what devices, precision and the sharing of a list over processes come from, with the settings `trainer.*`
that people type, and the way to stop on Ctrl-C. Fabric offers the first three in a plain loop, but not those settings;
and an evaluation predicts through the same Segmenter, progress bars and configs.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning import LightningModule

from etsam.errors import ConfigError, EtsamError, InputError
from etsam.inference.directions import passes
from etsam.inference.ensemble import Averaged, spread_of
from etsam.inference.false_marks import FALSE_RATE, ThresholdChoice, phase_shuffled, richest_window
from etsam.inference.rescale import interpolation_shift, rescaled, rescaled_shape, scale_advice
from etsam.inference.two_stage import TwoStage, TwoStageOutput
from etsam.inference.uncertainty import Calibration, uncertainty
from etsam.network.fast.heap import retain_freed_memory
from etsam.normalize import Fitted, Normalization, fit_to, survey, without_padding
from etsam.postprocess.coarse import Coarse
from etsam.postprocess.regions import RegionSettings
from etsam.prediction.doubts import Noted
from etsam.prediction.inputs import read_also
from etsam.prediction.kinds import NoTomogramError, orientation_remark, refuse_other_kinds
from etsam.prediction.preview import Sections
from etsam.prediction.result import Prediction
from etsam.prediction.samples import Samples
from etsam.volume import Location, Slices, Volume, locate, read_volume
from etsam.volume.content import NO_MEMBRANE
from etsam.volume.location import display_name, fingerprint_of
from etsam.volume.mrc_header import VOXEL_SIZES_ANGSTROM
from etsam.volume.slices import LazySlices, Progress, refuse_single_slice

log = logging.getLogger(__name__)

_CUBIC = 1.05  # longest by shortest side of a voxel up to which nobody sees it stretched; our choice


class NamesTomogram(Protocol):
    """Batch of `test_step`."""

    @property
    def tomogram(self) -> str:
        """File."""
        ...


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
    target_voxel_size
        Side in Å of the voxels that the networks see; logits come back at those of the tomogram. None: its own.
    voxel_sizes
        Smallest and largest side in Å that the weights were trained on; others are warned of. None: unknown.
    finer_shift
        Added to logits of voxels that were interpolated to half and to a quarter of their side
        (`etsam.inference.rescale.interpolation_shift`); None: nothing.
    scratch_folder
        Where low-resolution logits wait between the stages; None: in memory.
    progress
        Called slice by slice; None: nobody asks.
    samples
        Keep planes of each tomogram for a page, or for the grey levels of a script (`Prediction.samples`).
    voxel_size
        Å, for files whose header says something wrong or nothing; outputs get it, too. None: as the header says.
    force
        Segment files that look like masks or labels, too.
    calibration
        Offset, slope and softening of `etsam.inference.uncertainty` for the weights, used if `two_stage` gives the
        spread; None: the logits as they are, of which one line warns.
    also
        Files of other reconstructions or half maps of the one tomogram that is segmented; each is normalised by its own
        grey values, and logits are averaged.
    threshold
        `auto`: chosen for each tomogram by what is marked in a copy with shuffled phases
        (`etsam.inference.false_marks`). None: that of stage 2.
    false_rate
        With `auto`: share of what is marked that may be false, 0 to 1; None: `FALSE_RATE`.
    regions
        Where nothing is to be marked; None: nowhere.
    claim
        Called with each tomogram of a prediction before it is read; an error that it raises is that tomogram's.
    """

    def __init__(
        self,
        two_stage: TwoStage,
        normalization: Normalization,
        nonfinite: Literal["error", "mean"] = "error",
        target_voxel_size: float | None = None,
        voxel_sizes: Sequence[float] | None = None,
        finer_shift: Sequence[float] | None = None,
        scratch_folder: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
        samples: bool = False,
        voxel_size: float | None = None,
        force: bool = False,
        calibration: Sequence[float] | None = None,
        also: Sequence[str] = (),
        threshold: Literal["auto"] | None = None,
        false_rate: float | None = None,
        regions: RegionSettings | None = None,
        claim: Callable[[Location], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.two_stage = two_stage
        self.normalization = normalization
        self.nonfinite = nonfinite
        if target_voxel_size is not None and not 0 < target_voxel_size < math.inf:
            raise ConfigError(f"target_voxel_size={target_voxel_size} is no side of a voxel in Å, such as 10.")
        self.target_voxel_size, self.voxel_sizes, self.finer_shift = target_voxel_size, voxel_sizes, finer_shift
        interpolation_shift(1.0, finer_shift)  # refuses what is none, before anything is segmented
        self.scratch_folder = None if scratch_folder is None else Path(scratch_folder)
        self.progress, self.force, self.samples, self.voxel_size = progress, force, samples, voxel_size
        self.also, self.claim = tuple(also), claim
        self.calibration = Calibration.of(calibration)
        self._calibrated = None if calibration is None else tuple(map(float, calibration))
        if two_stage.spread and calibration is None:
            log.warning("these weights have no calibration (weights.calibration), so that uncertainty is a rough guide")
        if false_rate is not None and not 0 < false_rate < 1:
            raise ConfigError(f"false_rate={false_rate} is no share between 0 and 1, such as 0.2.")
        if false_rate is not None and threshold is None:
            raise ConfigError(f"false_rate={false_rate} is what threshold=auto goes by; add that, or leave it out.")
        self.threshold, self.regions = threshold, regions or RegionSettings()
        self.false_rate = FALSE_RATE if false_rate is None else false_rate
        smallest, largest = VOXEL_SIZES_ANGSTROM
        if voxel_size is not None and not smallest <= voxel_size <= largest:
            raise ConfigError(f"voxel_size={voxel_size} is no voxel size in Å; allowed: {smallest:g} to {largest:g}.")

    def predict_step(self, batch: str, batch_idx: int = 0) -> Prediction | EtsamError:
        """Segment one tomogram, to be written, unless it cannot be claimed; see `attempt`."""
        try:
            self.claim(locate(batch))
        except EtsamError as error:
            return error
        return self.attempt(batch)

    def test_step(self, batch: NamesTomogram, batch_idx: int = 0) -> dict[str, Any]:
        """Segment one tomogram, to be scored.

        Returns
        -------
        dict
            `prediction`: a `Prediction`; or `error`: an `InputError`; see `attempt`.
        """
        found = self.attempt(batch.tomogram)
        return {"error" if isinstance(found, InputError) else "prediction": found}

    def attempt(self, path: str) -> Prediction | InputError:
        """Prediction of one tomogram, or why there is none, so that one tomogram does not stop the others.

        That is an input that cannot be used, an error of reading it at any slice, or too little memory for it.
        """
        fast = self.device.type == "cpu" and all(tracker.kernels == "fast" for tracker in self.two_stage.trackers)
        try:
            with retain_freed_memory() if fast else nullcontext():
                volume = self.as_told(read_volume(path))
                return self.segment(volume, [read_also(locate(one), locate(path), volume.shape) for one in self.also])
        except InputError as error:
            return error
        except ConfigError as error:  # a setting that does not fit this tomogram
            return InputError(f"{path}: {error}")
        except OSError as error:  # of a disk or network, in mid-volume; what is written raises OutputError
            return InputError(f"{path}: cannot be read: {error.strerror or error}.")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            why = f"{path}: out of memory: {' '.join(str(error).split())[:200]}"
        torch.cuda.empty_cache()  # not before the error, which holds tensors, is gone
        return InputError(f"{why} - use tile_batch_size=1, a smaller net, or tiles=auto tiles.size_voxels=N.")

    def as_told(self, volume: Volume) -> Volume:
        """The volume with the voxel size that was set, if one was."""
        return volume if self.voxel_size is None else volume.at_voxel_size(self.voxel_size)

    def segment(
        self,
        volume: Volume,
        also: Sequence[Volume] = (),
        *,
        scratch_folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Prediction:
        """Segment a volume.

        Parameters
        ----------
        volume
            The tomogram.
        also
            Other reconstructions of it, of the same shape; the preview, the padding and the voxel size are the first's.
        scratch_folder, progress
            For this volume, instead of those that the Segmenter was made with.

        Raises
        ------
        InputError
            If its grey values make no sense for the normalisation.
        """
        started = time.perf_counter()
        refuse_single_slice(volume.shape, str(volume.path or "array"))
        remark = orientation_remark(volume)
        if remark is not None:
            log.warning("%s: %s", volume.path or "array", remark)
        report, grey = (
            _of_parts(progress or self.progress, 1 + len(also), volume.shape[0]),
            Sections(volume.shape, volume.voxel_size_angstrom),
        )
        normalization = Noted(self.normalization)
        samples = Samples(volume.shape) if self.samples else None
        coarse = Coarse(volume.shape, volume.voxel_size_angstrom) if self.regions.wanted else None
        fingerprint = {} if volume.path is None else fingerprint_of(volume.path)

        def seen(z: int, plane: np.ndarray) -> None:
            grey.add(z, plane)
            if samples is not None:
                samples.add(z, plane)
            if coarse is not None:
                coarse.add(z, plane)

        try:
            reading = None if report is None else lambda done, total: report("reading", done, total)
            raw, search = survey(volume, reading, seen)
            if not self.force:
                refuse_other_kinds(volume, raw)
            fitted = fit_to(without_padding(volume, raw, search, reading), normalization, self.nonfinite)
            regions = None if coarse is None else self.regions.find(coarse)
        except NoTomogramError:
            raise
        except InputError as error:
            raise InputError(f"{volume.path or 'array'}: {error}") from error
        _tell_padding(fitted, volume)
        inner = fitted.inner(volume)
        scaled = self._as_seen(volume, inner)
        prints = {str(one.path): fingerprint_of(one.path) for one in also if one.path is not None}
        others = [self._other(one, fitted, normalization.contrast, reading) for one in also]
        others = [one if scaled is inner else rescaled(one, tuple(scaled.shape)) for one in others]
        seconds = {"normalize": time.perf_counter() - started}
        out = self.two_stage(
            scaled,
            *others,
            scratch_folder=scratch_folder or self.scratch_folder,
            progress=report,
            start_slice=self._start_as_seen(fitted, volume.shape[0], scaled.shape[0]),
        )
        shift = self._shift(volume)
        out = _raised(out, shift)
        choice = self._choice(scaled, out, report, shift) if self.threshold == "auto" else None
        threshold = self.two_stage.stages[1].threshold if choice is None else choice.threshold
        shape = tuple(inner.shape)
        stage1_logits, logits = (
            logits if scaled is inner else _rescaled(logits, shape) for logits in (out.stage1_logits, out.logits)
        )
        unsure, spread = None, spread_of(logits)
        if self.two_stage.spread:
            logits = Averaged(LazySlices.of(logits).keep_last(), spread)  # for both files
            unsure = fitted.put_back(uncertainty(logits, threshold, self.calibration), volume, 0.0)
        stage1_logits, logits = (fitted.put_back(found, volume, NO_MEMBRANE) for found in (stage1_logits, logits))
        spread = None if spread is None else fitted.put_back(spread, volume, 0.0)
        if regions is not None:
            stage1_logits, logits = (regions.fill(found, NO_MEMBRANE) for found in (stage1_logits, logits))
            spread, unsure = (None if found is None else regions.fill(found, 0.0) for found in (spread, unsure))
        if spread is not None and self.two_stage.spread:
            logits = Averaged(logits, spread)
        return Prediction(
            volume=volume,
            stage1_logits=stage1_logits,
            logits=logits,
            threshold=threshold,
            tiles=len(out.tiles),
            seconds=seconds | out.seconds,
            grey=grey,
            fingerprint=fingerprint,
            contrast=normalization.contrast,
            contrast_is_guessed=normalization.contrast_is_guessed,
            samples=samples,
            uncertainty=unsure,
            calibration=self._calibrated,
            also=prints,
            choice=choice,
            regions=regions,
        )

    def _other(
        self,
        volume: Volume,
        first: Fitted,
        contrast: str | None,
        reading: Callable[[int, int], None] | None,
    ) -> Slices:
        """Another reconstruction, normalised by itself, cut as the first one is."""
        name = display_name(volume.path) if volume.path else "array"
        normalization = Noted(self.normalization)
        try:
            raw, search = survey(volume, reading)
            if not self.force:
                refuse_other_kinds(volume, raw)
            fitted = fit_to(without_padding(volume, raw, search, reading), normalization, self.nonfinite)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        if normalization.contrast != contrast:
            log.warning(
                "%s: membranes are taken as %s, in the first reconstruction as %s; if that is wrong, say "
                "normalize.membranes=dark or bright",
                name,
                normalization.contrast,
                contrast,
            )
        return replace(fitted, content=first.content).inner(volume)

    def _start_as_seen(self, fitted: Fitted, depth: int, depth_seen: int) -> int | None:
        """The start slice, which is one of the tomogram, as one of those that the networks see."""
        start = self.two_stage.settings.start_slice
        if start is None:
            return None
        passes(depth, start_slice=start)  # refuses it by the number that was typed
        kept = range(depth) if fitted.content is None else fitted.content.kept
        place = min(range(len(kept)), key=lambda number: abs(kept[number] - start))
        return place * depth_seen // len(kept)

    def _choice(self, scaled: Slices, out: TwoStageOutput, report: Progress | None, shift: float) -> ThresholdChoice:
        """Threshold for a tomogram from its logits and those of a part of it with shuffled phases."""
        z, y, x = richest_window(scaled)
        part = LazySlices.of(scaled).window(z.start, z.stop).crop(y, x)
        shuffled = phase_shuffled(np.stack([part[at] for at in range(part.shape[0])]))
        progress = None if report is None else lambda _, done, total: report("threshold", done, total)
        asked = self.two_stage.settings.start_slice
        start = None if asked is None else min(asked, part.shape[0] - 1)
        found = _raised(self.two_stage(shuffled, progress=progress, start_slice=start), shift)
        marked = LazySlices.of(out.logits).window(z.start, z.stop).crop(y, x)
        return ThresholdChoice.of(marked, found.logits, self.two_stage.stages[1].threshold, self.false_rate)

    def _as_seen(self, volume: Volume, normalized: Slices) -> Slices:
        """Slices at the voxel size that the networks are to see."""
        size = volume.voxel_size_angstrom
        advice = scale_advice(size, self.voxel_sizes, self.target_voxel_size)
        if advice:
            log.warning("%s: %s", display_name(volume.path) if volume.path else "array", advice)
        if self.target_voxel_size is None:
            self._tell_stretched(volume)
            return normalized
        if size is None:
            raise InputError(
                f"{volume.path or 'array'}: the voxel size is unknown, so target_voxel_size={self.target_voxel_size:g} "
                "cannot be reached; say what it is with voxel_size=NUMBER."
            )
        shape = rescaled_shape(normalized.shape, size, self.target_voxel_size)
        log.info("seen at %g Å: %d x %d x %d voxels", self.target_voxel_size, *shape)
        return rescaled(normalized, shape)

    def _shift(self, volume: Volume) -> float:
        """Number to add to logits of a tomogram that the networks saw at finer voxels than its own."""
        if self.target_voxel_size is None or volume.voxel_size_angstrom is None:
            return 0.0
        side = math.prod(volume.voxel_size_angstrom) ** (1 / 3)
        return interpolation_shift(side / self.target_voxel_size, self.finer_shift)

    def _tell_stretched(self, volume: Volume) -> None:
        size = volume.voxel_size_angstrom
        if size is None or self.two_stage.axes == ("z",) or max(size) <= _CUBIC * min(size):
            return
        log.warning(
            "%s: voxels of %s Å (z, y, x) are not cubic, so that slices across y and x look stretched; "
            "target_voxel_size=%g makes them cubic",
            volume.path or "array",
            " x ".join(f"{side:.3g}" for side in size),
            max(size),
        )


def _of_parts(progress: Progress | None, inputs: int, depth: int) -> Progress | None:
    """Progress in which the reading of several inputs is one part."""
    if progress is None or inputs == 1:
        return progress
    read, told = 0, progress

    def tell(part: str, done: int, total: int) -> None:
        nonlocal read
        if part != "reading":
            return told(part, done, total)
        read = min(read + 1, inputs * depth)  # a second pass for padding is not counted
        return told(part, read, inputs * depth)

    return tell


def _raised(out: TwoStageOutput, shift: float) -> TwoStageOutput:
    """Output whose logits have a number added; stage 1 stays as it is."""
    if not shift:
        return out
    raised = LazySlices.of(out.logits).map(lambda plane: plane + np.float32(shift))
    return replace(out, logits=Averaged(raised, spread_of(out.logits)))


def _rescaled(logits: Slices, shape: tuple[int, ...]) -> Slices:
    spread = spread_of(logits)
    return Averaged(rescaled(logits, shape), None if spread is None else rescaled(spread, shape))


def _tell_padding(fitted: Fitted, volume: Volume) -> None:
    if fitted.content is not None:
        inner, whole = (" x ".join(map(str, shape)) for shape in (fitted.content.inner_shape, volume.shape))
        log.info("the image fills %s of %s voxels (Z x Y x X); the constant rest is left out", inner, whole)
    if fitted.padding is not None:
        log.info("areas of the value %g hold no image and are left out", fitted.padding)


def is_out_of_memory(error: BaseException) -> bool:
    """True for a GPU's and for Python's own error, and for what torch raises on a CPU, which has no class."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
