"""Names that a user gives -> the files that they stand for."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from etsam.errors import InputError
from etsam.prediction.kinds import OUTPUT, kind_by_name
from etsam.prediction.star import is_star, text_lines, tomograms_of_star
from etsam.volume import TOMOGRAM_SUFFIXES, Location, Url, locate
from etsam.volume.location import exists, is_zarr

_LIST_SUFFIXES = (".txt", ".lst", ".list")
_WARP_FOLDER = "reconstruction"  # of a Warp processing folder: where the tomograms of its tilt series lie


@dataclass
class Gathered:
    """Files that the names which a user gave stand for.

    Attributes
    ----------
    tomograms
        In order.
    passed_over
        Files of folders and patterns that are something else by their names -> kind, see `kind_by_name`.
    single
        True if it is one file that was named as such.
    """

    tomograms: list[Location]
    passed_over: dict[Location, str]
    single: bool


def find_tomograms(given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Location]:
    """Tomograms as of `gather`, also what looks like something else."""
    return gather(given, force=True).tomograms


def gather(given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], force: bool = False) -> Gathered:
    """Tomograms that a file, OME-Zarr, folder, pattern, list, or several of these name.

    A list is a text file with a path or URL a line (relative to it; empty lines and lines that start with # are
    skipped), or RELION's `tomograms.star`. A folder of Warp stands for its folder `reconstruction`. In folders and
    patterns outputs of this program are left out, and so are tilt series, stacks of images and half maps unless
    `force` is set.

    Raises
    ------
    InputError
        If something is missing or holds no tomogram.
    """
    items = [given] if isinstance(given, str | os.PathLike) else list(given)
    if not items:
        raise InputError("no tomogram is named; give a file, a folder, a pattern like 'data/*.mrc' or a text list.")
    out = Gathered([], {}, single=False)
    for item in items:
        out.single = _expand(os.fspath(item), force, out)
    out.single = out.single and len(items) == 1
    out.tomograms = list(dict.fromkeys(out.tomograms))
    return out


def _expand(item: str, force: bool, out: Gathered) -> bool:
    """Add what one name stands for; True if that is one file."""
    if not item.strip():  # as a path it would be the current folder
        raise InputError(
            "a tomogram's name is empty (a variable of your shell or script that is not set?); give a file or folder."
        )
    path = locate(item)
    if isinstance(path, Url) or is_zarr(path):
        out.tomograms.append(path)
        return True
    if path.is_dir():
        _sort_out(_in_folder(path), force, f"the folder {path}", out)
    elif path.suffix.lower() in _LIST_SUFFIXES and path.is_file():
        out.tomograms += _in_list(path)
    elif is_star(path):
        out.tomograms += [tomogram.path for tomogram in tomograms_of_star(path)]
    elif not path.exists() and glob.has_magic(item):
        matches = [Path(match) for match in sorted(glob.glob(os.path.expanduser(item), recursive=True))]
        found = [match for match in matches if _is_tomogram(match)]
        if not found:
            raise InputError(f"no file matches the pattern {item}; check the folder and the pattern.")
        _sort_out(found, force, f"the pattern {item}", out)
    else:
        out.tomograms.append(path)
        return True
    return False


def _sort_out(files: Sequence[Path], force: bool, where: str, out: Gathered) -> None:
    """Part tomograms from other files by their names."""
    kinds: dict[Location, str | None] = {file: kind_by_name(file) for file in files}
    ours = [file for file, kind in kinds.items() if kind == OUTPUT]
    other = {} if force else {file: kind for file, kind in kinds.items() if kind is not None and kind != OUTPUT}
    tomograms = [file for file in files if file not in other and file not in ours]
    if not tomograms:
        counts = Counter(kind for kind in kinds.values() if kind is not None)
        what = ", ".join(f"{count} x {kind}" for kind, count in counts.items()) or "none of them a volume"
        hint = "; set force=true to segment them all the same" if other else ""
        raise InputError(f"{where} holds no tomogram ({len(files)} other files: {what}){hint}.")
    out.tomograms += tomograms
    out.passed_over |= other


def _is_tomogram(path: Path) -> bool:
    """True for a file, or a Zarr folder that is not a part of another one."""
    return path.is_file() or (is_zarr(path) and not is_zarr(path.parent))


def _in_folder(folder: Path) -> list[Path]:
    try:
        files = sorted(entry for entry in folder.iterdir() if _is_tomogram(entry))
    except PermissionError as error:
        raise InputError(f"the folder {folder} cannot be read: permission denied.") from error
    volumes = [file for file in files if file.is_dir() or file.name.lower().endswith(TOMOGRAM_SUFFIXES)]
    if not volumes and (folder / _WARP_FOLDER).is_dir():
        return _in_folder(folder / _WARP_FOLDER)
    if not volumes:
        raise InputError(
            f"the folder {folder} holds no tomogram ({len(files)} other files); expected names ending in "
            f"{' '.join(TOMOGRAM_SUFFIXES[:3])} .zarr and the like."
        )
    return volumes


def _in_list(file: Path) -> list[Location]:
    lines = text_lines(file)
    named = {number: line for number, line in enumerate(lines, 1) if line and not line.startswith("#")}
    if not named:
        raise InputError(f"the list {file} names no tomogram; write one path a line.")
    paths = {number: locate(line, file.parent) for number, line in named.items()}  # absolute ones stay
    missing = [f"line {number}: {path}" for number, path in paths.items() if not exists(path) and not is_zarr(path)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"the list {file} names files that are not there ({', '.join(missing[:3])}{more}); correct the list. Paths "
            "in it are relative to its own folder."
        )
    return list(paths.values())
