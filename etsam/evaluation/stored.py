"""Predictions that any tool left in a folder: which file belongs to which tomogram, and what its values mean."""

import fnmatch
import glob
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from lightning import LightningModule

from etsam.data.manifest import Sample
from etsam.data.measured import fingerprint
from etsam.errors import ConfigError, InputError, OutputError
from etsam.evaluation.metrics.scores import Scored
from etsam.inference.two_stage import DEFAULT_THRESHOLD
from etsam.labels import odd_value_advice
from etsam.prediction.record import OutputNames, read_record, threshold_of
from etsam.volume import TOMOGRAM_SUFFIXES, Slices, read_volume, strip_suffix
from etsam.volume.location import ZARR_SUFFIXES

log = logging.getLogger(__name__)

Kind = Literal["mask", "probabilities", "logits"]
_KINDS: tuple[Kind, ...] = ("mask", "probabilities", "logits")  # each may turn out to be one further on
T = TypeVar("T")
_SUFFIXES = (*TOMOGRAM_SUFFIXES, *ZARR_SUFFIXES)
_GRADIENT = 0.2  # of neighbours that differ: voxels of instances and classes are mostly beside their like
_LEAST_GREY = 50  # the largest of percents or bytes; classes are fewer

_PROBABILITY_LIMIT = 1e-9  # logits of 0 and 1 become +-20.7, just beyond the thresholds that are counted


def find_predictions(folder: str | os.PathLike[str], samples: Sequence[Sample]) -> dict[str, Path | str]:
    """Prediction file of each tomogram.

    A file belongs to a tomogram if its name without suffix is the tomogram's file name without suffix, its `run_id` or
    `dataset_id_run_id`, alone or followed by `_`, `-` or `.` and anything; to the longest such name, so that `TS_1_b`
    is not taken for `TS_1`. It lies in the folder or in its subfolder `dataset_id`. Of several, the one that is called
    exactly so is taken, else the logits that this program writes, else its mask. Tomograms and masks of the truth that
    lie there, too, are no predictions, nor is a copy of the tomogram.

    Parameters
    ----------
    folder
        Where predictions lie; or a pattern of files there (`DIR/*_semantic.mrc`), and no others count.
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
    root, pattern = folder_and_pattern(folder)
    names = _names(samples)
    inputs = {os.path.realpath(file) for sample in samples for file in (sample.tomogram, sample.target_mask)}
    return {sample.name: _find(root, pattern, sample, names, inputs) for sample in samples}


def folder_and_pattern(predictions: str | os.PathLike[str]) -> tuple[Path, str]:
    """Folder of predictions, and the pattern of file names there that count: `*` unless the last part is one."""
    path = Path(predictions).expanduser()
    return (path.parent, path.name) if glob.has_magic(path.name) and not path.is_dir() else (path, "*")


def _names(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Name in files -> the samples that it can mean."""
    out: dict[str, list[Sample]] = {}
    for sample in samples:
        for name in {strip_suffix(sample.tomogram), sample.run_id, f"{sample.dataset_id}_{sample.run_id}"}:
            out.setdefault(name, []).append(sample)
    return out


def _find(root: Path, pattern: str, sample: Sample, names: dict[str, list[Sample]], inputs: set[str]) -> Path | str:
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
            if not (file.name.lower().endswith(_SUFFIXES) and fnmatch.fnmatchcase(file.name, pattern)):
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
    copies = [file for _, file in found if _is_copy(file, sample)]
    found = [(name, file) for name, file in found if file not in copies]
    if copies and not found:
        return f"no prediction in {root}; {copies[0].name} is a copy of the tomogram"
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
        listed = ", ".join(file.name for _, file in found[:4])
        end = found[0][1].name.removeprefix(found[0][0])
        return (
            f"{len(found)} files in {root} can be the prediction: {listed}; name those that are by a pattern, such as "
            f"'{root}/*{end}'"
        )
    wanted = " or ".join(dict.fromkeys(f"{name}.mrc" for name in (strip_suffix(sample.tomogram), sample.run_id)))
    missing = f"no prediction in {root}" + ("" if pattern == "*" else f" that fits {pattern}")
    return f"{missing}; expected a file called {wanted}, or so with more after _ - or ."


def _is_copy(file: Path, sample: Sample) -> bool:
    """True if a file holds the tomogram itself: its slice in the middle, then others, are the same."""
    try:
        with read_volume(file, warn=False) as volume, read_volume(sample.tomogram, warn=False) as tomogram:
            middle = volume.shape[0] // 2
            return (
                tuple(volume.shape) == tuple(tomogram.shape)
                and np.array_equal(volume[middle], tomogram[middle])
                and fingerprint(volume) == fingerprint(tomogram)
                and len(np.unique(tomogram[middle])) > 2  # else a mask is given for a tomogram
            )
    except InputError:
        return False  # told when it is scored


class KindChanged(Exception):  # noqa: N818 - no fault: what was read so far meant something else
    """Values turned out to be of another kind than they were taken for."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind)
        self.kind = kind


class StoredValues:
    """Slices of a prediction, converted as they are read by what its values mean: a mask, logits, or their probability.

    The meaning follows from the range of all values, and is checked while they are read, so that nothing is read twice:

    - whole numbers from 0 up (0/1, 0/255, labels of instances), and 0/-1 of int8 files: a mask, membrane is not 0;
      refused if they change from voxel to voxel, as probabilities in 8 bits do;
    - whole numbers or fractions that go below 0: logits;
    - fractions within 0..1: probabilities.

    Parameters
    ----------
    volume
        (Z, Y, X).
    name
        For messages.
    kind
        What they are taken for; None: what the slice in the middle looks like.
    """

    def __init__(self, volume: Slices, name: str, kind: Kind | None = None) -> None:
        self.shape = tuple(volume.shape)
        self._volume, self._name = volume, name
        self._low, self._high, self._whole, self._integer = np.inf, -np.inf, True, True
        self._seen: set[int] = set()
        self._steps = np.zeros(2, np.int64)  # neighbours along X that are both marked, and how many of them differ
        self.kind: Kind = kind or self._kind_with(self.shape[0] // 2, volume[self.shape[0] // 2])

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Slice `z`: (Y, X) bool of a mask, float32 logits else.

        Raises
        ------
        KindChanged
            If the values are of another kind.
        InputError
            If they are not finite; with the last slice, if they are of no kind: fractions never below 0 but above 1.
        """
        plane = self._volume[z]
        if z not in self._seen:
            kind = max(self.kind, self._kind_with(z, plane), key=_KINDS.index)
            self._seen.add(z)
            if kind == "mask":
                self._refuse_grey(plane)
            if len(self._seen) == self.shape[0] and not self._whole and self._low >= 0 and self._high > 1:
                raise InputError(
                    f"{self._name}: the prediction is neither a mask (whole numbers), nor logits (some below 0), nor "
                    f"probabilities (0 to 1): its values go from {self._low:g} to {self._high:g}."
                )
            if len(self._seen) == self.shape[0] and self._integer and (self._low, self._high) == (-128, -127):
                raise InputError(f"{self._name}: its values are -128 and -127{odd_value_advice(self._low)}.")
            if kind != self.kind:
                raise KindChanged(kind)
        if self.kind == "mask":
            return plane != 0
        if self.kind == "logits":
            return plane.astype(np.float32)
        return logits_of(plane)

    def _refuse_grey(self, plane: np.ndarray) -> None:
        """Add a slice of what looks like a mask; with the last one, refuse what are grey values."""
        left, right = plane[:, :-1], plane[:, 1:]
        pairs = (left != 0) & (right != 0)
        self._steps += np.count_nonzero(pairs), np.count_nonzero(pairs & (left != right))
        marked, differ = self._steps
        if len(self._seen) == self.shape[0] and self._high >= _LEAST_GREY and differ > _GRADIENT * marked:
            raise InputError(
                f"{self._name}: whole numbers from 0 to {self._high:g} that change from voxel to voxel: neither a mask "
                "nor labels. Probabilities in 8 bits are to be divided by 255, and written as float32."
            )

    def _kind_with(self, z: int, plane: np.ndarray) -> Kind:
        """Kind of the values so far and of this slice together."""
        if plane.dtype == np.float16:
            plane = plane.astype(np.float32)  # the same values, compared ten times as fast
        self._integer = plane.dtype.kind in "biu"
        least, greatest = float(plane.min()), float(plane.max())
        if not (np.isfinite(least) and np.isfinite(greatest)):
            raise InputError(f"{self._name}: the prediction holds values that are not finite (slice {z}).")
        self._low, self._high = min(self._low, least), max(self._high, greatest)
        self._whole = self._whole and (self._integer or bool((plane == np.rint(plane)).all()))
        if self._whole and (self._low >= 0 or (self._integer and self._low == -1 and self._high <= 0)):
            return "mask"
        return "logits" if self._low < 0 or self._high > 1 else "probabilities"


def logits_of(probabilities: np.ndarray) -> np.ndarray:
    """Logits (float32) of probabilities of any shape, within +-20.7."""
    inside = np.clip(probabilities.astype(np.float64), _PROBABILITY_LIMIT, 1 - _PROBABILITY_LIMIT)
    found: np.ndarray = np.log(inside / (1 - inside)).astype(np.float32)
    return found


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
        return None if found is None else threshold_of(found)
    except (OutputError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{record}, beside the logits, does not say at which threshold they were cut; set prediction_threshold."
        ) from error


@dataclass(frozen=True)
class StoredPrediction:
    """Prediction of any tool in a file.

    Attributes
    ----------
    path
        A volume (Z, Y, X); see `StoredValues`.
    threshold
        Values strictly above are membrane. None: of logits the one they were cut at (`threshold_beside`), else -0.25;
        of probabilities 0.5. A mask has none.
    """

    path: str | os.PathLike[str]
    threshold: float | None = None

    def score(self, score: Callable[[Scored], T]) -> T:
        """Call `score` with the prediction, which it reads; again, if that shows that its values are of another kind.

        Raises
        ------
        InputError
            If it cannot be read or its values make no sense, or if the threshold is none of probabilities.
        """
        with read_volume(self.path, warn=False) as volume:
            kind: Kind | None = None
            while True:  # at most three times: a mask may turn out to be probabilities, both to be logits
                values = StoredValues(volume, str(self.path), kind)
                try:
                    return score(replace(self._scored(values), file=volume))
                except KindChanged as changed:
                    kind = changed.kind

    def _scored(self, values: StoredValues) -> Scored:
        if values.kind == "mask":
            if self.threshold is not None:
                log.warning("%s is a mask: prediction_threshold=%g changes nothing", self.path, self.threshold)
            return Scored(mask=values)
        if values.kind == "probabilities":
            limit = 0.5 if self.threshold is None else self.threshold
            if not 0 <= limit < 1:
                raise InputError(
                    f"{self.path}: the prediction holds probabilities, and prediction_threshold={limit:g} is none; set "
                    "one from 0 to below 1, or none for 0.5."
                )
            return Scored(logits=values, threshold=float(logits_of(np.array([limit], np.float32))[0]))
        threshold, source = self.threshold, "as prediction_threshold says"
        if threshold is None:
            threshold, source = threshold_beside(self.path), "as their record says"
        if threshold is None:
            threshold, source = DEFAULT_THRESHOLD, "the default; prediction_threshold sets another"
        log.info("%s: logits above %g are membrane (%s)", self.path, threshold, source)
        return Scored(logits=values, threshold=threshold)


class StoredPredictions(LightningModule):
    """Stands in the Segmenter's place where predictions are there already: `test_step` opens one.

    Parameters
    ----------
    threshold
        As of `StoredPrediction`.

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

    def test_step(self, batch: Any, batch_idx: int = 0) -> dict[str, Any]:
        """Prediction that `batch.prediction` names.

        Returns
        -------
        dict
            `prediction`: a `StoredPrediction`; or `error`: an `InputError` that says why there is none.
        """
        if batch.fault:
            return {"error": InputError(batch.fault)}
        return {"prediction": StoredPrediction(batch.prediction, self.threshold)}
