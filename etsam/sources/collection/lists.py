"""Lists of the published data set: which tomograms there are, before any of them is downloaded."""

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path

from etsam.data.manifest import parse_shape, parse_voxel_size
from etsam.errors import InputError
from etsam.paths import resource_path, resource_paths

SHIPPED_LISTS = ("dataset", "testset", "robustness")
"""Lists that come with the program, `data/NAME.csv`."""

_COLUMNS = ("dataset_id", "run_id", "split")
_NO_GROUND_TRUTH = "robustness"  # the split of published tomograms for which no mask exists


@dataclass(frozen=True)
class PublishedRow:
    """One tomogram of the list.

    Attributes
    ----------
    dataset_id, run_id
        Numbers on the CryoET Data Portal, or the folder in Dataverse.
    split
        `train`, `test` or `robustness`.
    voxel_size_angstrom, shape
        (Z, Y, X); None if the list does not say.
    tomogram_id
        Number of the tomogram on the portal; None: chosen by voxel size and shape.
    """

    dataset_id: str
    run_id: str
    split: str
    voxel_size_angstrom: float | None = None
    shape: tuple[int, int, int] | None = None
    tomogram_id: int | None = None

    @property
    def name(self) -> str:
        """`dataset_id/run_id`, as messages and folders call it."""
        return f"{self.dataset_id}/{self.run_id}"

    @property
    def on_portal(self) -> bool:
        """True if the tomogram is on the CryoET Data Portal, whose ids are numbers."""
        return self.dataset_id.isdigit()

    @property
    def has_mask(self) -> bool:
        """True if a mask was published."""
        return self.split != _NO_GROUND_TRUTH


def find_list(text: str) -> Path:
    """File of a list: a path, or the name of one that comes with the program.

    Raises
    ------
    InputError
        If there is neither.
    """
    given = Path(text).expanduser()
    if given.is_file():
        return given
    name = text.removeprefix("data/").removesuffix(".csv")
    if name in SHIPPED_LISTS and (shipped := resource_paths("data", f"{name}.csv")):
        return shipped[0]
    raise InputError(f"{text}: no such list; give a CSV file or one of {', '.join(SHIPPED_LISTS)}")


def read_list(path: Path) -> list[PublishedRow]:
    """Read a list; voxel size and shape that it does not say are taken from the shipped `dataset.csv`.

    Parameters
    ----------
    path
        CSV with the columns `dataset_id, run_id, split`; optional are `voxel_size` (Å), `shape` (`"(Z, Y, X)"`) and
        `tomogram_id` (on the portal). Further columns are not looked at.

    Raises
    ------
    InputError
        If it cannot be read, lacks columns, or rows are malformed or double; all are named.
    """
    rows = _read(path)
    known = {row.name: row for row in _read(resource_path("data", "dataset.csv"))}
    completed = []
    for row in rows:
        other = known.get(row.name)
        if other is not None and row.voxel_size_angstrom is None and row.shape is None:
            row = replace(row, voxel_size_angstrom=other.voxel_size_angstrom, shape=other.shape)
        completed.append(row)
    return completed


def _read(path: Path) -> list[PublishedRow]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            columns = reader.fieldnames = [column.strip() for column in reader.fieldnames or []]
            lines = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no list: not CSV text in UTF-8 ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: the list cannot be read: {error.strerror or error}") from error
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        raise InputError(f"{path}: the list lacks the columns {', '.join(missing)}; needed are {', '.join(_COLUMNS)}")
    if not lines:
        raise InputError(f"{path}: the list names no tomogram; write one row a tomogram")
    rows: dict[str, PublishedRow] = {}
    faults = []
    for line, texts in lines:
        try:
            row = _row({key: (text or "").strip() for key, text in texts.items() if key})
            if row.name in rows:
                raise ValueError(f"{row.name} is listed twice")
            rows[row.name] = row
        except ValueError as error:
            faults.append(f"line {line}: {error}")
    if faults:
        raise InputError.of(str(path), faults)
    return list(rows.values())


def _row(texts: dict[str, str]) -> PublishedRow:
    for column in _COLUMNS:
        if not re.fullmatch(r"[\w-][\w .-]*", texts[column]):  # they become folders
            raise ValueError(f"{column} {texts[column]!r} is no name of letters, digits, dots, dashes and underscores")
    number = texts.get("tomogram_id", "")
    if number and not number.isdigit():
        raise ValueError(f"tomogram_id {number!r} is no number")
    row = PublishedRow(
        texts["dataset_id"],
        texts["run_id"],
        texts["split"],
        parse_voxel_size(texts.get("voxel_size", "")),
        parse_shape(texts.get("shape", "")),
        int(number) if number else None,
    )
    if row.on_portal and not row.run_id.isdigit():
        raise ValueError(f"run_id {row.run_id!r} of the portal's dataset {row.dataset_id} is no number")
    return row
