"""Lightning callback that scores each prediction as soon as it is there, and keeps the result on disk."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from etsam.errors import InputError
from etsam.evaluation.data import Job
from etsam.evaluation.metrics.planes import Shown
from etsam.evaluation.metrics.results import SlicePicture, TomogramResult
from etsam.evaluation.metrics.scores import Metrics, PackedMask, Scored, Scores
from etsam.evaluation.result_store import ResultStore
from etsam.labels import IGNORE, Overlap
from etsam.pictures import averaged_slices, stretched
from etsam.postprocess.steps import Step, apply_steps
from etsam.prediction.result import Prediction
from etsam.prediction.writer import PredictionWriter
from etsam.volume import Volume, read_volume
from etsam.volume.slices import Progress

log = logging.getLogger(__name__)

_SAME_SIZE = 0.01  # relative: headers round


class Scorer(Callback):
    """Scores what a `test_step` gives.

    Parameters
    ----------
    metrics
        What is computed.
    postprocess
        Steps applied to masks before they are scored; logits, and so the curve, stay as they are.
    store
        Where results go.
    writer
        Of predictions that are made in this run; what it has written is scored. None: they are not kept.
    progress
        Called slice by slice; None: nobody asks.
    """

    def __init__(
        self,
        metrics: Metrics,
        store: ResultStore,
        postprocess: Mapping[str, Step] | None = None,
        writer: Callable[[Job], PredictionWriter] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.metrics, self.store = metrics, store
        self.steps: Sequence[Step] = list((postprocess or {}).values())
        self.writer, self.progress = writer, progress

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Job,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score a prediction; one that cannot be scored makes a result with an error, and does not stop the others."""
        try:
            result = self._result(outputs, batch)
        except InputError as error:
            log.warning("%s, %s: not scored: %s", batch.method, batch.name, error)
            result = TomogramResult(
                method=batch.method,
                tomogram=batch.name,
                error=" ".join(str(error).split()),
                metrics=dict.fromkeys(Overlap._fields, math.nan),  # columns of the table, even if all fail
            )
        self.store.save(result, batch.inputs)

    def _result(self, outputs: Any, job: Job) -> TomogramResult:
        if "error" in outputs:
            raise outputs["error"]
        prediction = outputs["prediction"]
        own = isinstance(prediction, Prediction)
        written = self._written(prediction, job) if own and self.writer is not None else None
        with ExitStack() as files:
            truth = files.enter_context(read_volume(job.target_mask, warn=False))
            tomogram = prediction.volume if own else _tomogram(job)
            size = _voxel_size(job, tomogram, truth)

            def score(scored: Scored) -> TomogramResult:
                if written is None:
                    scored = self._post_processed(scored)
                return self._score(job, truth, scored, size, tomogram)

            if not own:
                return prediction.score(score)
            mask = logits = None
            if written is not None:
                mask, logits = (
                    None if path is None else files.enter_context(read_volume(path, warn=False)) for path in written
                )
            seconds = math.fsum(prediction.seconds.values())
            return score(Scored(prediction.logits if logits is None else logits, prediction.threshold, mask, seconds))

    def _written(self, prediction: Prediction, job: Job) -> tuple[Path, Path | None]:
        """Write a prediction: files of the mask that is scored, and of its logits (None: they are not kept)."""
        assert self.writer is not None
        writer = self.writer(job)
        names = writer.write(prediction)
        return names.post_processed_mask if self.steps else names.mask, names.logits if writer.write_logits else None

    def _score(
        self,
        job: Job,
        truth: Volume,
        scored: Scored,
        size: tuple[float, float, float] | None,
        tomogram: Volume | None,
    ) -> TomogramResult:
        scores = self.metrics(truth, scored, size, self.progress, job.without_membrane)
        if tomogram is not None and tuple(tomogram.shape) != tuple(truth.shape):
            raise InputError(f"the tomogram has shape {tomogram.shape}, the mask of the truth {truth.shape}.")
        if scored.file is not None:
            _tell_other_place(job, scored.file, size, (tomogram, truth))
        if scores.doubt:
            log.warning("%s, %s: %s", job.method, job.name, scores.doubt)
        log.info("%s: Dice %.4f%s", job.name, scores.metrics["dice"], f" ({job.prediction})" if job.prediction else "")
        return TomogramResult(
            method=job.method,
            tomogram=job.name,
            metrics=scores.metrics,
            thresholds=scores.thresholds,
            counts=scores.counts,
            threshold=math.nan if scored.logits is None else scored.threshold,
            planes=scores.planes,
            inclination=scores.inclination,
            pictures=() if tomogram is None else pictures(tomogram, scores, size),
            seconds=scored.seconds,
            voxels=int(np.prod(truth.shape)),
        )

    def _post_processed(self, scored: Scored) -> Scored:
        if not self.steps:
            return scored
        # steps read it several times; it is computed, or read from a file, once
        packed = PackedMask.of(scored.as_mask())
        return replace(scored, mask=apply_steps(packed, self.steps, workers=self.metrics.workers))


def _voxel_size(job: Job, tomogram: Volume | None, truth: Volume) -> tuple[float, float, float] | None:
    """(z, y, x) in Å: as the manifest says, else the tomogram, else the truth, whose headers are often made up."""
    said = {
        "manifest": (job.voxel_size_angstrom,) * 3 if job.voxel_size_angstrom else None,
        "tomogram": None if tomogram is None else tomogram.voxel_size_angstrom,
        "truth": truth.voxel_size_angstrom,
    }
    known = {source: size for source, size in said.items() if size is not None}
    if not known:
        log.warning("%s: voxel size unknown: no distances in Å", job.name)
        return None
    source, size = next(iter(known.items()))
    for other, differs in known.items():
        _tell_other_size(job, f"{_text(size)} Å ({source})", size, other, differs)
    return size


def _tell_other_size(
    job: Job,
    taken: str,
    size: tuple[float, float, float],
    other: str,
    differs: tuple[float, float, float],
) -> None:
    if not np.allclose(size, differs, rtol=_SAME_SIZE):
        log.warning("%s: voxel size %s, not %s (%s)", job.name, taken, _text(differs), other)


def _tell_other_place(
    job: Job, stored: Volume, size: tuple[float, float, float] | None, others: Sequence[Volume | None]
) -> None:
    """Say where a stored prediction has another voxel size, or begins elsewhere than tomogram and truth."""
    if size is not None and stored.voxel_size_angstrom is not None:
        _tell_other_size(job, f"{_text(size)} Å", size, "prediction", stored.voxel_size_angstrom)
    if any(stored.start) and all(stored.start != volume.start for volume in others if volume is not None):
        log.warning("%s: the prediction begins at voxel %s, tomogram and truth do not", job.name, stored.start)


def _text(size: tuple[float, float, float]) -> str:
    return " x ".join(f"{one:g}" for one in size)


def _tomogram(job: Job) -> Volume | None:
    """The tomogram, for pictures; stored predictions can be scored without."""
    try:
        return read_volume(job.tomogram, warn=False)
    except InputError as error:
        log.warning("%s: no pictures: %s", job.name, error)
        return None


def pictures(
    tomogram: Volume, scores: Scores, voxel_size_angstrom: tuple[float, float, float] | None = None
) -> tuple[SlicePicture, ...]:
    """The slices that `scores.shown` names, the tomogram as a mean of about 10 nm; it is read once.

    Parameters
    ----------
    tomogram
        (Z, Y, X), of the shape that was scored.
    scores
        Its scores.
    voxel_size_angstrom
        (z, y, x); None if unknown.
    """
    shape = dict(zip("zyx", tomogram.shape, strict=True))
    sizes = dict(zip("zyx", voxel_size_angstrom or (None,) * 3, strict=True))
    averaged = {axis: averaged_slices(sizes[axis], side) for axis, side in shape.items()}
    made = [_Making(shown, averaged[shown.axis], shape) for shown in scores.shown]
    for z in range(shape["z"]):
        plane = np.asarray(tomogram[z], np.float32)
        finite = np.isfinite(plane)
        if not finite.all():
            plane = np.where(finite, plane, plane[finite].mean() if finite.any() else 0)
        masks = [np.ones(plane.shape, bool) if mask is None else mask[z] for mask in scores.masks]
        for one in made:
            one.add(z, plane, masks)
    return tuple(one.picture(sizes) for one in made)


class _Making:
    """One picture, made while slices pass by."""

    def __init__(self, shown: Shown, averaged: int, shape: Mapping[str, int]) -> None:
        self.shown, self.averaged = shown, averaged
        half, self.axes = averaged // 2, [axis for axis in "zyx" if axis != shown.axis]
        self.band = range(max(0, shown.number - half), min(shape[shown.axis], shown.number + half + 1))
        size = tuple(shape[axis] for axis in self.axes)
        self.grey, self.masks = np.zeros(size, np.float32), np.zeros((3, *size), bool)

    def add(self, z: int, plane: np.ndarray, masks: Sequence[np.ndarray]) -> None:
        """Take what is needed of slice `z`; `masks` are truth, prediction, and what is annotated."""
        index, band = self.shown.number, slice(self.band.start, self.band.stop)
        if self.shown.axis == "z":
            if z in self.band:
                self.grey += plane / len(self.band)
            if z == index:
                self.masks[:] = masks
        elif self.shown.axis == "y":
            self.grey[z] = plane[band].mean(axis=0)
            self.masks[:, z] = [mask[index] for mask in masks]
        else:
            self.grey[z] = plane[:, band].mean(axis=1)
            self.masks[:, z] = [mask[:, index] for mask in masks]

    def picture(self, sizes: Mapping[str, float | None]) -> SlicePicture:
        """Picture of the slice that was collected; `sizes` are those of a voxel by axis, Å."""
        truth, prediction, known = self.masks
        shown = truth.astype(np.uint8)
        shown[~known] = IGNORE
        down, across = (sizes[axis] for axis in self.axes)
        size = None if down is None or across is None else (down, across)
        grey = stretched(self.grey).astype(np.float32) / 255
        return SlicePicture(
            self.shown.axis, self.shown.number, grey, shown, prediction, size, len(self.band), self.shown.why
        )
