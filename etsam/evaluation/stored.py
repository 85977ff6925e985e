"""Predictions that any tool left in a folder: which file belongs to which tomogram, and what its values mean."""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import LightningModule

from etsam.data.manifest import Sample
from etsam.errors import ConfigError, InputError, OutputError
from etsam.evaluation.metrics.scores import Scored
from etsam.inference.two_stage import DEFAULT_THRESHOLD
from etsam.prediction.record import OutputNames, read_record
from etsam.volume import TOMOGRAM_SUFFIXES, Slices, Volume, read_volume, strip_suffix
from etsam.volume.location import ZARR_SUFFIXES

log = logging.getLogger(__name__)

Kind = Literal["mask", "logits", "probabilities"]

_PROBABILITY_LIMIT = 1e-9  # logits of 0 and 1 become +-20.7, just beyond the thresholds that are counted


def find_predictions(folder: str | os.PathLike[str], samples: Sequence[Sample]) -> dict[str, Path | str]:
    """Prediction file of each tomogram.

    A file belongs to a tomogram if its name without suffix is the tomogram's file name without suffix, its `run_id` or
    `dataset_id_run_id`, alone or followed by `_`, `-` or `.` and anything; to the longest such name, so that `TS_1_b`
    is not taken for `TS_1`. It lies in the folder or in its subfolder `dataset_id`. Of several, the one that is called
    exactly so is taken, else the logits that this program writes, else its mask. Tomograms and masks of the truth that
    lie there, too, are no predictions.

    Parameters
    ----------
    folder
        Where predictions lie.
    samples
        Tomograms.

    Returns
    -------
    dict
        `dataset_id/run_id` -> file, or one line that says why there is none.

    Raises
    ------
    InputError
        If the folder cannot be read.
    """
    root = Path(folder).expanduser()
    names = _names(samples)
    inputs = {os.path.realpath(file) for sample in samples for file in (sample.tomogram, sample.target_mask)}
    return {sample.name: _find(root, sample, names, inputs) for sample in samples}


def _names(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Name in files -> the samples that it can mean."""
    out: dict[str, list[Sample]] = {}
    for sample in samples:
        for name in {strip_suffix(sample.tomogram), sample.run_id, f"{sample.dataset_id}_{sample.run_id}"}:
            out.setdefault(name, []).append(sample)
    return out


def _find(root: Path, sample: Sample, names: dict[str, list[Sample]], inputs: set[str]) -> Path | str:
    own_folder = root / sample.dataset_id
    found: list[tuple[str, Path]] = []
    for folder in (own_folder, root):
        if folder is own_folder and not folder.is_dir():
            continue
        try:
            files = sorted(folder.iterdir())
        except OSError as error:
            raise InputError(f"the folder of predictions {folder} cannot be read: {error.strerror}.") from error
        for file in files:
            if not file.name.lower().endswith((*TOMOGRAM_SUFFIXES, *ZARR_SUFFIXES)):
                continue
            if os.path.realpath(file) in inputs:
                continue
            stem = strip_suffix(file)
            fitting = [name for name in names if stem == name or stem.startswith((f"{name}_", f"{name}-", f"{name}."))]
            if not fitting:
                continue
            name = max(fitting, key=len)
            # in the subfolder of its data set a name is clear even if another data set has the same
            meant = [one for one in names[name] if folder is root or one.dataset_id == sample.dataset_id]
            if meant == [sample]:
                found.append((name, file))
        if found:
            break
    if len(found) == 1:
        return found[0][1]
    for chosen in (
        [file for name, file in found if strip_suffix(file) == name],
        [file for name, file in found if strip_suffix(file) == strip_suffix(OutputNames(root, name).logits)],
        [file for name, file in found if strip_suffix(file) == strip_suffix(OutputNames(root, name).mask)],
    ):
        if len(chosen) == 1:
            return chosen[0]
    if found:
        return f"{len(found)} files in {root} can be the prediction: {', '.join(file.name for _, file in found[:4])}"
    wanted = f"{strip_suffix(sample.tomogram)}.mrc or {sample.run_id}.mrc"
    return f"no prediction in {root}; expected a file called {wanted}, or so with more after _ - or ."


def kind_of_values(volume: Slices, name: str) -> Kind:
    """What the values of a prediction mean, by their range; reads the volume once.

    - whole numbers from 0 up (0/1, 0/255, labels of instances), and 0/-1 of int8 files: a mask, membrane is not 0;
    - whole numbers or fractions that go below 0: logits;
    - fractions within 0..1: probabilities.

    Raises
    ------
    InputError
        For anything else: fractions that are never negative but exceed 1, and values that are not finite.
    """
    low, high, whole, integer = np.inf, -np.inf, True, True
    for z in range(volume.shape[0]):
        plane = volume[z]
        if plane.dtype == np.float16:
            plane = plane.astype(np.float32)  # the same values, compared ten times as fast
        integer = plane.dtype.kind in "biu"
        least, greatest = float(plane.min()), float(plane.max())
        low, high = min(low, least), max(high, greatest)
        if not (np.isfinite(least) and np.isfinite(greatest)):
            raise InputError(f"{name}: the prediction holds values that are not finite (slice {z}).")
        whole = whole and (integer or bool((plane == np.rint(plane)).all()))
    if whole and (low >= 0 or (integer and low == -1 and high <= 0)):
        return "mask"
    if low < 0:
        return "logits"
    if high <= 1:
        return "probabilities"
    raise InputError(
        f"{name}: the prediction is neither a mask (whole numbers), nor logits (some below 0), nor probabilities (0 to "
        f"1): its values go from {low:g} to {high:g}."
    )


class _Converted:
    """Slices of a volume, changed as they are read."""

    def __init__(self, volume: Volume, kind: Kind) -> None:
        self._volume, self._kind = volume, kind
        self.shape = volume.shape

    def __getitem__(self, z: int, /) -> np.ndarray:
        plane = self._volume[z]
        if self._kind == "mask":
            return plane != 0
        if self._kind == "logits":
            return plane.astype(np.float32)
        probability = np.clip(plane.astype(np.float64), _PROBABILITY_LIMIT, 1 - _PROBABILITY_LIMIT)
        return np.log(probability / (1 - probability)).astype(np.float32)


def threshold_beside(path: str | os.PathLike[str]) -> float | None:
    """Threshold that logits of this program were cut at, from the record beside them; None if there is no record.

    Raises
    ------
    InputError
        If the record is damaged.
    """
    stem = strip_suffix(path).removesuffix("_logits")
    record = Path(path).parent / f"{stem}_record.json"
    try:
        found = read_record(record)
        return None if found is None else float(found["settings"]["stage2"]["threshold"])
    except (OutputError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{record}, beside the logits, does not say at which threshold they were cut; set prediction_threshold."
        ) from error


def open_prediction(path: str | os.PathLike[str], threshold: float | None = None) -> Scored:
    """Open the prediction of any tool.

    Parameters
    ----------
    path
        A volume (Z, Y, X); see `kind_of_values`.
    threshold
        Logits strictly above are membrane; None: the one they were cut at (`threshold_beside`), else -0.25.
        Probabilities strictly above 0.5 are, that is logits above 0.

    Raises
    ------
    InputError
        If it cannot be read or its values make no sense.
    """
    volume = read_volume(path, warn=False)
    kind = kind_of_values(volume, str(path))
    slices = _Converted(volume, kind)
    if kind == "mask":
        return Scored(mask=slices)
    if kind == "probabilities":
        return Scored(logits=slices, threshold=0.0)
    source = "as prediction_threshold says"
    if threshold is None:
        threshold, source = threshold_beside(path), "as their record says"
    if threshold is None:
        threshold, source = DEFAULT_THRESHOLD, "the default; prediction_threshold sets another"
    log.info("%s: logits above %g are membrane (%s)", path, threshold, source)
    return Scored(logits=slices, threshold=threshold)


class StoredPredictions(LightningModule):
    """Stands in the Segmenter's place where predictions are there already: `test_step` opens one.

    Parameters
    ----------
    threshold
        As of `open_prediction`.

    Raises
    ------
    ConfigError
        If that is no number.
    """

    def __init__(self, threshold: float | None) -> None:
        super().__init__()
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool) and math.isfinite(threshold)
        if threshold is not None and not number:
            raise ConfigError(f"prediction_threshold={threshold} does not fit; allowed: numbers.")
        self.threshold = threshold
        self.progress: Any = None

    def test_step(self, batch: Any, batch_idx: int = 0) -> dict[str, Any]:
        """Open the prediction that `batch.prediction` names.

        Returns
        -------
        dict
            `prediction`: a `Scored`; or `error`: an `InputError`, also if `batch.fault` says why there is none.
        """
        try:
            if batch.fault:
                raise InputError(batch.fault)
            return {"prediction": open_prediction(batch.prediction, self.threshold)}
        except InputError as error:
            return {"error": error}
