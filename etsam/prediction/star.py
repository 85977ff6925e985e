"""RELION's list of tomograms, `tomograms.star`, read without RELION's own tools.

A package for all of the format (starfile) brings pandas; of it only one table of this list is needed here.
"""

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from etsam.errors import InputError
from etsam.volume import Location, locate

_COLUMNS = ("_rlnTomoReconstructedTomogramDenoised", "_rlnTomoReconstructedTomogram")
"""Columns in which RELION 5 names the file of a tomogram, the better one first."""


@dataclass(frozen=True)
class StarTomogram:
    """A tomogram of a star file.

    Attributes
    ----------
    path
        The file.
    name
        By which RELION knows it (rlnTomoName); None: the star file does not say.
    pixel_angstrom
        Of its tilt series, unbinned (rlnTomoTiltSeriesPixelSize); None: the star file does not say.
    """

    path: Location
    name: str | None
    pixel_angstrom: float | None


def tomograms_of_star(file: Path) -> list[StarTomogram]:
    """Tomograms that a star file of RELION 5 names, denoised ones where there are.

    Paths in it are relative to the project, which is the nearest folder above the file from which they are valid.

    Raises
    ------
    InputError
        If the file cannot be read, has no column of tomograms, or names one that is not there.
    """
    rows = _rows(text_lines(file))
    column = next((name for name in _COLUMNS if any(row.get(name, "None") != "None" for row in rows)), None)
    if column is None:
        raise InputError(
            f"{file}: no column {_COLUMNS[-1]}; give the tomograms.star of a job that has reconstructed (or denoised) "
            "tomograms, or a folder of them."
        )
    found: list[StarTomogram] = []
    for row in rows:
        path = Path(row[column])
        places = [folder / path for folder in file.absolute().parents]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise InputError(f"{file} names {path}, which is in no folder above it; is the project complete?")
        found.append(StarTomogram(place, row.get("_rlnTomoName"), _pixel_of(row)))
    return found


def _pixel_of(row: Mapping[str, str]) -> float | None:
    try:
        size = float(row["_rlnTomoTiltSeriesPixelSize"])
    except (KeyError, ValueError):
        return None
    return size if 0 < size < float("inf") else None


def star_tomograms(given: Iterable[str | os.PathLike[str]]) -> dict[Location, StarTomogram]:
    """Tomograms of those names that are star files, by their files; errors as of `tomograms_of_star`."""
    files = [path for item in given if isinstance(path := locate(item), Path) and is_star(path)]
    return {tomogram.path: tomogram for file in files for tomogram in tomograms_of_star(file)}


def is_star(path: Path) -> bool:
    """True for a star file."""
    return path.suffix.lower() == ".star" and path.is_file()


def text_lines(file: Path) -> list[str]:
    """Lines of a text file in UTF-8, without spaces around them.

    Raises
    ------
    InputError
        If it is no text, or cannot be read.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no list of tomograms: not text (UTF-8); write one path a line.") from error
    except OSError as error:
        raise InputError(f"the list {file} cannot be read: {error.strerror}.") from error


def _rows(lines: list[str]) -> list[dict[str, str]]:
    """Rows of all `loop_` tables, by column."""
    columns: list[str] = []
    rows: list[dict[str, str]] = []
    in_loop = False
    for line in lines:
        if line.startswith("data_"):
            in_loop, columns = False, []
        elif line == "loop_":
            in_loop, columns = True, []
        elif in_loop and line.startswith("_"):
            columns.append(line.split()[0])
        elif in_loop and line and not line.startswith("#"):
            rows.append(dict(zip(columns, shlex.split(line), strict=False)))
    return [row for row in rows if any(name in row for name in _COLUMNS)]
