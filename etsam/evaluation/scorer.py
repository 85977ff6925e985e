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
from etsam.evaluation.metrics.results import SlicePicture, TomogramResult
from etsam.evaluation.metrics.scores import Metrics, PackedMask, Scored, Scores
from etsam.evaluation.result_store import ResultStore
from etsam.inference.two_stage import membrane_mask
from etsam.labels import IGNORE, Overlap
from etsam.postprocess.steps import Step, apply_steps
from etsam.prediction.segmenter import Prediction, Progress
from etsam.prediction.writer import PredictionWriter
from etsam.volume import Volume, read_volume

log = logging.getLogger(__name__)

_CLIP_PERCENT = (1.0, 99.0)  # of grey values, as in previews
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
            log.warning("%s: not scored: %s", batch.name, error)
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
        log.info("%s: Dice %.4f", job.name, scores.metrics["dice"])
        return TomogramResult(
            method=job.method,
            tomogram=job.name,
            metrics=scores.metrics,
            thresholds=scores.thresholds,
            counts=scores.counts,
            threshold=math.nan if scored.logits is None else scored.threshold,
            planes=scores.planes,
            theta=scores.theta,
            pictures=() if tomogram is None else pictures(tomogram, scores),
            seconds=scored.seconds,
        )

    def _post_processed(self, scored: Scored) -> Scored:
        if not self.steps:
            return scored
        mask = scored.mask
        if mask is None:
            assert scored.logits is not None
            mask = membrane_mask(scored.logits, scored.threshold)
        # steps read it several times; it is computed, or read from a file, once
        packed = PackedMask.of(mask)
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
        if not np.allclose(size, differs, rtol=_SAME_SIZE):
            log.warning("%s: voxel size %s Å (%s), not %s (%s)", job.name, _text(size), source, _text(differs), other)
    return size


def _text(size: tuple[float, float, float]) -> str:
    return " x ".join(f"{one:g}" for one in size)


def _tomogram(job: Job) -> Volume | None:
    """The tomogram, for pictures; stored predictions can be scored without."""
    try:
        return read_volume(job.tomogram, warn=False)
    except InputError as error:
        log.warning("%s: no pictures: %s", job.name, error)
        return None


def pictures(tomogram: Volume, scores: Scores) -> tuple[SlicePicture, ...]:
    """The XY, XZ and YZ slice with the most membrane in the truth; the tomogram is read once.

    Parameters
    ----------
    tomogram
        (Z, Y, X), of the shape that was scored.
    scores
        Its scores.
    """
    at, masks = scores.shown, scores.masks
    taken: dict[str, list[list[np.ndarray]]] = {"z": [], "y": [], "x": []}
    for z in range(tomogram.shape[0]):
        planes = [tomogram[z], *(np.ones(tomogram.shape[1:], bool) if mask is None else mask[z] for mask in masks)]
        if z == at["z"]:
            taken["z"] = [planes]
        taken["y"].append([plane[at["y"]].copy() for plane in planes])  # a view would keep the plane in memory
        taken["x"].append([plane[:, at["x"]].copy() for plane in planes])
    out = []
    for axis, rows in taken.items():
        grey, truth, prediction, known = (
            rows[0][i] if axis == "z" else np.stack([row[i] for row in rows]) for i in range(4)
        )
        shown = truth.astype(np.uint8)
        shown[~known] = IGNORE
        out.append(SlicePicture(axis, at[axis], _scaled(grey), shown, prediction.astype(bool)))
    return tuple(out)


def _scaled(grey: np.ndarray) -> np.ndarray:
    """Grey values between their 1st and 99th percentile as 0..1, float32; NaN and infinity are 0."""
    grey = grey.astype(np.float32)
    finite = grey[np.isfinite(grey)]
    low, high = np.percentile(finite, _CLIP_PERCENT) if finite.size else (0.0, 1.0)
    scaled = (np.nan_to_num(grey, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
    return np.clip(scaled, 0, 1).astype(np.float32)
