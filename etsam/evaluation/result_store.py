"""Results on disk, one tomogram at a time, so that an evaluation that was stopped goes on where it was."""

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from etsam.errors import InputError, OutputError
from etsam.evaluation.metrics.results import InclinationRow, SlicePicture, TomogramResult
from etsam.paths import make_folder
from etsam.prediction.record import read_record, write_record
from etsam.volume import atomic_path
from etsam.volume.location import locate, state_of


def _state(path: str) -> list[int]:
    """Time of change and size of a file, by which `resume` knows it again; empty if it cannot be read."""
    try:
        return list(state_of(locate(path))[1:])  # whatever its folder is called
    except InputError:
        return []


def _plain(name: str) -> str:
    """A name as part of a file's: without slash, and so that `__` between two of them is the only one there."""
    quoted = quote(name, safe=" ")
    return quoted.replace("_", "%5F") if "__" in quoted or quoted.strip("_") != quoted else quoted


@dataclass(frozen=True)
class ResultStore:
    """Results of an evaluation below `folder`, each a JSON file of scores and an NPZ file of arrays.

    The JSON file is written last: its presence says that the result is complete.

    Attributes
    ----------
    folder
        Made if need be.
    settings
        What decides the scores, plain values.
    overwrite, resume
        As for the whole evaluation.
    """

    folder: Path
    settings: dict[str, Any]
    overwrite: bool = False
    resume: bool = False

    def path(self, method: str, tomogram: str) -> Path:
        """JSON file of a result."""
        return self.folder / quote(method, safe=" ") / f"{'__'.join(map(_plain, tomogram.split('/', 1)))}.json"

    def complete(self, method: str, tomogram: str, inputs: Sequence[str]) -> bool:
        """True if a result is there, without error, made with the same settings from the same files.

        Parameters
        ----------
        method, tomogram
            Which result.
        inputs
            Files that it depends on.

        Raises
        ------
        OutputError
            If it is there and may be neither replaced nor kept.
        """
        file = self.path(method, tomogram)
        if self.overwrite or not file.exists():
            return False
        if not self.resume:
            raise OutputError(
                f"{file} exists already; set overwrite=true to replace it, resume=true to keep what is complete, or "
                "choose another output_dir."
            )
        record = self._record(method, tomogram)
        if record is None or record.get("error"):
            return False
        # by way of JSON, which knows no tuples
        ours, theirs = json.loads(json.dumps(self.settings)), record["settings"]
        different = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
        if different:
            raise OutputError(
                f"{file} was made with other settings ({', '.join(different)}); choose another output_dir, or set "
                "overwrite=true to make it anew."
            )
        if record.get("inputs") != [_state(path) for path in inputs]:
            raise OutputError(
                f"the files of {tomogram} have changed since {file} was made; choose another output_dir, or set "
                "overwrite=true to make it anew."
            )
        rows = record.get("inclination")
        whole = "voxels" in record and rows is not None and all(len(row) == len(InclinationRow._fields) for row in rows)
        # what is not whole is of an earlier version
        return whole and file.with_suffix(".npz").exists()

    def _record(self, method: str, tomogram: str) -> dict[str, Any] | None:
        """Record of a result; None if there is none. Raises `OutputError` if it is that of another tomogram."""
        file = self.path(method, tomogram)
        record = read_record(file)
        if record is not None and (record.get("method"), record.get("tomogram")) != (method, tomogram):
            raise OutputError(
                f"{file} holds the result of {record.get('tomogram')} ({record.get('method')}), not of {tomogram}; on "
                "this disk their names are the same. Rename one, or choose another output_dir."
            )
        return record

    def save(self, result: TomogramResult, inputs: Sequence[str]) -> None:
        """Write a result, whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        file = self.path(result.method, result.tomogram)
        make_folder(file.parent)
        file.unlink(missing_ok=True)  # allowed: `complete` was asked before
        arrays: dict[str, np.ndarray] = {"thresholds": result.thresholds, "counts": result.counts}
        for number, picture in enumerate(result.pictures):
            arrays[f"grey{number}"] = np.rint(picture.grey * 255).astype(np.uint8)  # for looking at
            arrays[f"truth{number}"], arrays[f"prediction{number}"] = picture.truth, picture.prediction
        with atomic_path(file.with_suffix(".npz"), overwrite=True) as part, part.open("wb") as new:
            np.savez_compressed(new, **arrays)  # type: ignore[arg-type]
        record = {
            "method": result.method,
            "tomogram": result.tomogram,
            "error": result.error,
            "metrics": without_nan(result.metrics),
            "planes": without_nan(result.planes),
            "inclination": without_nan(result.inclination),
            "threshold": without_nan(result.threshold),
            "seconds": without_nan(result.seconds),
            "voxels": result.voxels,
            "pictures": [
                [picture.axis, picture.index, picture.voxel_size_angstrom, picture.averaged, picture.shows]
                for picture in result.pictures
            ],
            "inputs": [_state(path) for path in inputs],
            "settings": self.settings,
        }
        write_record(file, record)

    def load(self, method: str, tomogram: str) -> TomogramResult:
        """Read a result.

        Raises
        ------
        InputError
            If it is not there or damaged.
        OutputError
            If what is there is the result of another tomogram.
        """
        file = self.path(method, tomogram)
        record = self._record(method, tomogram)
        if record is None:
            raise InputError(f"{file} is missing; go on with resume=true.")
        try:
            with file.with_suffix(".npz").open("rb") as stored, np.load(stored, allow_pickle=False) as arrays:
                found = dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{file.with_suffix('.npz')} is damaged or missing; remove {file}, then resume."
            ) from error
        pictures = tuple(
            SlicePicture(
                axis=axis,
                index=index,
                grey=found[f"grey{number}"].astype(np.float32) / 255,
                truth=found[f"truth{number}"],
                prediction=found[f"prediction{number}"],
                voxel_size_angstrom=tuple(size) if size else None,
                averaged=averaged,
                shows=shows,
            )
            for number, (axis, index, size, averaged, shows) in enumerate(record["pictures"])
        )
        return replace(
            TomogramResult(method=method, tomogram=tomogram, error=record["error"]),
            metrics=with_nan(record["metrics"]),
            planes=with_nan(record["planes"]),
            inclination=tuple(InclinationRow(*row) for row in with_nan(record["inclination"])),
            seconds=with_nan(record["seconds"]),
            voxels=record["voxels"],
            threshold=with_nan(record.get("threshold")),
            thresholds=found["thresholds"],
            counts=found["counts"],
            pictures=pictures,
        )


def without_nan(value: Any) -> Any:
    """Nested values as JSON has them: None for what is not finite, the text of what it does not know."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [without_nan(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return without_nan(value.tolist())
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def with_nan(value: Any) -> Any:
    """Undo `without_nan`: None becomes NaN."""
    if isinstance(value, dict):
        return {key: with_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value
