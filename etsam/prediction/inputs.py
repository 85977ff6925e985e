"""Names that a user gives -> the list of tomograms, checked before anything heavy starts."""

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from etsam.errors import InputError
from etsam.volume import TOMOGRAM_SUFFIXES, Location, Url, locate, read_volume, strip_suffix
from etsam.volume.location import exists, is_zarr

log = logging.getLogger(__name__)

_LIST_SUFFIXES = (".txt", ".lst", ".list")
_OUTPUT_MARK = "_etsam_predicted"  # our own outputs are never taken for inputs of a folder


def find_tomograms(given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Location]:
    """Tomograms that a file, OME-Zarr, folder, pattern, text file with a path or URL a line, or several of these name.

    Paths in a text file are relative to it; empty lines and lines that start with # are skipped. In folders and
    patterns, outputs of this program are left out.

    Raises
    ------
    InputError
        If something is missing or holds no tomogram, or a name occurs twice.
    """
    items = [given] if isinstance(given, str | os.PathLike) else list(given)
    if not items:
        raise InputError("no tomogram is named; give a file, a folder, a pattern like 'data/*.mrc' or a text list.")
    found = [path for item in items for path in _expand(os.fspath(item))]
    return list(dict.fromkeys(found))


def _expand(item: str) -> list[Location]:
    if not item.strip():  # as a path it would be the current folder
        raise InputError(
            "a tomogram's name is empty (a variable of your shell or script that is not set?); give a file or folder."
        )
    path = locate(item)
    if isinstance(path, Url) or is_zarr(path):
        return [path]
    if path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() in _LIST_SUFFIXES and path.is_file():
        return _in_list(path)
    if not path.exists() and glob.has_magic(item):
        matches = [Path(match) for match in sorted(glob.glob(os.path.expanduser(item), recursive=True))]
        tomograms = [match for match in matches if _is_tomogram(match) and _OUTPUT_MARK not in match.name]
        if not tomograms:
            raise InputError(f"no file matches the pattern {item}; check the folder and the pattern.")
        return list(tomograms)
    return [path]


def _is_tomogram(path: Path) -> bool:
    """True for a file, or a Zarr folder that is not a part of another one."""
    return path.is_file() or (is_zarr(path) and not is_zarr(path.parent))


def _in_folder(folder: Path) -> list[Location]:
    try:
        files = sorted(entry for entry in folder.iterdir() if _is_tomogram(entry))
    except PermissionError as error:
        raise InputError(f"the folder {folder} cannot be read: permission denied.") from error
    tomograms: list[Location] = [
        file
        for file in files
        if (file.is_dir() or file.name.lower().endswith(TOMOGRAM_SUFFIXES)) and _OUTPUT_MARK not in file.name
    ]
    if not tomograms:
        raise InputError(
            f"the folder {folder} holds no tomogram ({len(files)} other files); expected names ending in "
            f"{' '.join(TOMOGRAM_SUFFIXES[:3])} .zarr and the like."
        )
    return tomograms


def _in_list(file: Path) -> list[Location]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no list of tomograms: not text (UTF-8); write one path a line.") from error
    except OSError as error:
        raise InputError(f"the list {file} cannot be read: {error.strerror}.") from error
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


def _some(faults: Sequence[str], shown: int = 5) -> str:
    return " | ".join(faults[:shown]) + (f" | and {len(faults) - shown} more" if len(faults) > shown else "")


class Tomograms(LightningDataModule):
    """The tomograms of a prediction; Lightning shares them out over devices and machines.

    Parameters
    ----------
    input
        As for `find_tomograms`.
    output_dir
        Where outputs go; two tomograms of the same name would collide there.

    Raises
    ------
    InputError
        As `find_tomograms`.
    """

    def __init__(
        self, input: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], output_dir: str | os.PathLike[str]
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer tomograms than processes
        self.paths = find_tomograms(input)
        self._todo = self.paths
        self._refuse_collisions(Path(output_dir))

    def _refuse_collisions(self, output_dir: Path) -> None:
        by_name: dict[str, Location] = {}
        for path in self.paths:
            other = by_name.setdefault(strip_suffix(path), path)
            if other != path:
                raise InputError(
                    f"{other} and {path} would both write {output_dir / strip_suffix(path)}_etsam_*; run them into "
                    "different output folders."
                )

    def check(self) -> dict[Location, tuple[int, int, int] | None]:
        """Open each header; compressed files are looked at when their turn comes.

        Returns
        -------
        dict
            Tomogram -> (Z, Y, X), None where it is not known yet.

        Raises
        ------
        InputError
            Naming every file that cannot be used.
        """
        faults: list[str] = []
        shapes: dict[Location, tuple[int, int, int] | None] = {}
        for path in self.paths:
            shapes[path] = None
            packed = isinstance(path, Path) and path.name.lower().endswith((".gz", ".bz2")) and path.is_file()
            if packed and os.access(path, os.R_OK):
                continue
            try:
                shapes[path] = read_volume(path, warn=False).shape
            except InputError as error:
                faults.append(str(error))
        if len(faults) == 1:
            raise InputError(faults[0])
        if faults:
            raise InputError(f"{len(faults)} of {len(self.paths)} tomograms cannot be used: {_some(faults)}")
        return shapes

    def only(self, todo: Sequence[Location]) -> None:
        """Leave out all other tomograms; what the first process says here counts for all."""
        self._todo = list(todo)

    def setup(self, stage: str) -> None:
        """Take the list of the first process, before any output of this run could have changed it."""
        assert self.trainer is not None
        self._todo = self.trainer.strategy.broadcast(self._todo)

    def predict_dataloader(self) -> DataLoader:
        """A path a batch, to each process its share; reading is part of the prediction, slice by slice."""
        assert self.trainer is not None
        mine = self._todo[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader([str(path) for path in mine], batch_size=None)  # type: ignore[arg-type]
