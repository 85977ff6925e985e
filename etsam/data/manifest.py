"""Manifests: CSV files that list tomograms with their masks and splits. What can be wrong with them: `check`."""

import csv
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from etsam.errors import InputError
from etsam.volume import Location, atomic_path, locate

REQUIRED_COLUMNS = ("dataset_id", "run_id", "split", "tomogram", "target_mask")
_OPTIONAL_COLUMNS = ("voxel_size", "shape")
SPLITS = ("train", "val", "test")
"""Splits that training, validation and evaluation use."""
_SPLIT_WORDS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


@dataclass(frozen=True)
class Sample:
    """One tomogram with its mask: one row of a manifest.

    Attributes
    ----------
    dataset_id, run_id
        Names; together they say which tomogram this is.
    split
        `train`, `val`, `test` (also `Train`, `validation`, `valid`, ...), or any other word that no part of the program
        uses.
    tomogram, target_mask
        Files, Zarr folders or URLs, of equal shape. In the mask 1 is membrane, 0 is not, 255 (in int8 files -1) was
        not annotated.
    voxel_size_angstrom
        As the manifest says; None if it does not.
    shape
        (Z, Y, X) as the manifest says; None if it does not.
    written_split
        The word in the manifest.
    extra
        Further columns as (name, text) pairs, in the manifest's order.
    """

    dataset_id: str
    run_id: str
    split: str
    tomogram: Location
    target_mask: Location
    voxel_size_angstrom: float | None = None
    shape: tuple[int, int, int] | None = None
    extra: tuple[tuple[str, str], ...] = ()
    written_split: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """`dataset_id/run_id`, as messages call it."""
        return f"{self.dataset_id}/{self.run_id}"

    @property
    def without_membrane(self) -> bool:
        """True if the column `without_membrane` says yes: the mask is empty because there is nothing to mark."""
        return dict(self.extra).get("without_membrane", "").strip().lower() in ("yes", "true", "1")


def read_manifest(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> list[Sample]:
    """Read a manifest; the files it names are not looked at.

    Parameters
    ----------
    path
        CSV (separated by commas, semicolons or tabs) with a header line and at least the columns `dataset_id, run_id,
        split, tomogram, target_mask`; optional are `voxel_size` (Å) and `shape` (`"(Z, Y, X)"`). Further columns are
        kept, rows without any value left out.
    root
        Folder that relative file names start from; default: the manifest's.

    Raises
    ------
    InputError
        If it cannot be read, lacks columns, has no row, or a row has an empty or malformed value; all are named.
    """
    manifest = Path(path).expanduser()
    folder = manifest.parent if root is None else Path(root).expanduser()
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a byte order mark first
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, restkey=None, restval="", delimiter=column_separator(header))
            columns = [column.strip() for column in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{manifest}: is no manifest: not CSV text in UTF-8 ({error})") from error
    except OSError as error:
        raise InputError(f"{manifest}: the manifest cannot be read: {error.strerror or error}") from error
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if missing:
        raise InputError(
            f"{manifest}: the manifest lacks the columns {', '.join(missing)}; it has {', '.join(columns) or 'none'}; "
            f"needed are {', '.join(REQUIRED_COLUMNS)}"
        )
    if not rows:
        raise InputError(f"{manifest}: the manifest lists no tomogram; write one row a tomogram")
    samples, faults = [], []
    for line, row in rows:
        if not any((text or "").strip() for key, text in row.items() if key):  # spreadsheets leave them behind
            continue
        try:
            samples.append(_sample({key: (text or "").strip() for key, text in row.items() if key}, folder))
        except ValueError as error:
            faults.append(f"line {line}: {error}")
    if faults:
        raise InputError.of(str(manifest), faults)
    if not samples:
        raise InputError(f"{manifest}: the manifest lists no tomogram; write one row a tomogram")
    return samples


def column_separator(header: str) -> str:
    """Separator of the columns: a comma, or what spreadsheets of other languages write instead."""
    return max(",;\t", key=header.count)


def _sample(row: dict[str, str], folder: Path) -> Sample:
    empty = [column for column in REQUIRED_COLUMNS if not row[column]]
    if empty:
        raise ValueError(f"no value for {', '.join(empty)}")
    return Sample(
        dataset_id=row["dataset_id"],
        run_id=row["run_id"],
        split=_split(row["split"]),
        written_split=row["split"],
        tomogram=locate(row["tomogram"], folder),  # absolute ones stay as they are
        target_mask=locate(row["target_mask"], folder),
        voxel_size_angstrom=parse_voxel_size(row.get("voxel_size", "")),
        shape=parse_shape(row.get("shape", "")),
        extra=tuple(item for item in row.items() if item[0] not in (*REQUIRED_COLUMNS, *_OPTIONAL_COLUMNS)),
    )


def _split(word: str) -> str:
    """Split that a word means, in whatever case; other words stay as they are."""
    lower = word.lower()
    return _SPLIT_WORDS.get(lower, lower if lower in SPLITS else word)


def parse_voxel_size(text: str) -> float | None:
    """Read a voxel size in Å; None if the text is empty. Raises ValueError if it is no positive number."""
    if not text:
        return None
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise ValueError(f"voxel_size {text!r} is no positive number (Å)")
    return size


def parse_shape(text: str) -> tuple[int, int, int] | None:
    """Read a shape such as `(100, 200, 200)`, Z first; None if the text is empty. Raises ValueError if it is none."""
    if not text:
        return None
    match = re.fullmatch(r"\(?\s*(\d+)\s*[,x ]\s*(\d+)\s*[,x ]\s*(\d+)\s*\)?", text)
    if match is None:
        raise ValueError(f"shape {text!r} is not three numbers like (100, 200, 200) in the order Z, Y, X")
    z, y, x = (int(side) for side in match.groups())
    return z, y, x


def write_manifest(path: str | os.PathLike[str], samples: Iterable[Sample], overwrite: bool = False) -> None:
    """Write samples as CSV that `read_manifest` reads; files below the manifest's folder are named relative to it.

    Raises
    ------
    OutputError
        If `path` exists and `overwrite` is not set, or cannot be written.
    """
    manifest = Path(path).expanduser()
    samples = list(samples)
    extra = list(dict.fromkeys(name for sample in samples for name, _ in sample.extra))
    with atomic_path(manifest, overwrite) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*REQUIRED_COLUMNS, *_OPTIONAL_COLUMNS, *extra], lineterminator="\n")
        writer.writeheader()
        for sample in samples:
            size = sample.voxel_size_angstrom
            writer.writerow(
                {
                    "dataset_id": sample.dataset_id,
                    "run_id": sample.run_id,
                    "split": sample.split,
                    "tomogram": _relative(sample.tomogram, manifest.parent),
                    "target_mask": _relative(sample.target_mask, manifest.parent),
                    "voxel_size": "" if size is None else repr(size),
                    "shape": "" if sample.shape is None else str(sample.shape),
                    **dict(sample.extra),
                }
            )


def _relative(file: Location, folder: Path) -> str:
    if not isinstance(file, Path):
        return str(file)
    absolute, base = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)
