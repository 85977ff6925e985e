"""Names that a user gives -> the list of tomograms, checked before anything heavy starts."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from etsam.errors import ConfigError, InputError
from etsam.prediction.batch import Missing
from etsam.prediction.kinds import OUTPUT, kind_by_name, no_tomogram
from etsam.prediction.star import text_lines, tomograms_of_star
from etsam.volume import TOMOGRAM_SUFFIXES, Location, Url, Volume, locate, read_volume, strip_suffix
from etsam.volume.location import absolute, exists, is_zarr

log = logging.getLogger(__name__)

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


def find_tomograms(
    given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], force: bool = True
) -> list[Location]:
    """Tomograms as of `gather`; with `force` also what looks like something else."""
    return gather(given, force).tomograms


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
    elif path.suffix.lower() == ".star" and path.is_file():
        out.tomograms += tomograms_of_star(path)
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


def _subfolders(paths: Sequence[Location]) -> dict[Location, Path]:
    """Folder of each file, relative to the one that holds them all."""
    files = [path for path in paths if isinstance(path, Path)]
    if not files:
        return {}
    common = os.path.commonpath([path.absolute().parent for path in files])
    return {path: path.absolute().parent.relative_to(common) for path in files}


def read_also(path: Location, first: Location, shape: Sequence[int] | None) -> Volume:
    """Another reconstruction of a tomogram.

    Parameters
    ----------
    path
        File.
    first
        The tomogram, for the error.
    shape
        Its (Z, Y, X); None if it is not known yet.

    Raises
    ------
    InputError
        If it cannot be read, is the tomogram itself, or has another shape.
    """
    if isinstance(path, Path) and isinstance(first, Path) and path.resolve() == first.resolve():
        raise InputError(f"also={path} is the tomogram itself; name another reconstruction of it, or leave it out.")
    volume = read_volume(path, warn=False)
    if shape is not None:
        refuse_other_shape(volume.shape, str(path), tuple(shape), str(first))
    return volume


def refuse_other_shape(shape: tuple[int, ...], name: str, first_shape: tuple[int, ...], first: str) -> None:
    """Raise InputError unless a reconstruction has the (Z, Y, X) of the first one of its tomogram."""
    if shape != first_shape:
        sides = [" x ".join(map(str, one)) for one in (shape, first_shape)]
        raise InputError(
            f"{name} has {sides[0]} voxels (Z x Y x X) and {first} has {sides[1]}; reconstructions of one tomogram "
            "have the same."
        )


class Tomograms(LightningDataModule):
    """The tomograms of a prediction; Lightning shares them out over devices and machines.

    Parameters
    ----------
    input
        As for `gather`.
    output_dir
        Where outputs go; two tomograms of the same name would collide there.
    force
        Take files that look like something else, too.
    strict
        All or nothing: raise an error if any file cannot be used.
    output_subfolders
        Put outputs into sub-folders that are called after those of the tomograms, which then may share names.
    also
        Other reconstructions or half maps of the one tomogram that `input` names.

    Attributes
    ----------
    paths
        Tomograms.
    passed_over
        Files that are none -> what they are.
    may_pass_over
        True unless a single file was named: then one that turns out to be a mask is no error.
    missing
        What `check` found not usable, and what is passed over.
    voxel_sizes
        Tomogram that `check` has opened -> (z, y, x) in Å, None if its header does not say.
    faults
        Why what `check` found not usable is so.
    subfolders
        Tomogram -> where its outputs go within the output folder; empty without `output_subfolders`.

    Raises
    ------
    InputError
        As `gather`.
    """

    def __init__(
        self,
        input: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        output_dir: str | os.PathLike[str],
        force: bool = False,
        strict: bool = False,
        output_subfolders: bool = False,
        also: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer tomograms than processes
        self.also = [locate(path) for path in also]
        found = gather(input, force or bool(also))  # a half map is welcome where the other one comes along
        self.paths, self.passed_over, self.may_pass_over = found.tomograms, found.passed_over, not found.single
        self.force, self.strict = force or bool(also), strict
        self.missing = [Missing.of(path, "passed over", no_tomogram(kind)) for path, kind in self.passed_over.items()]
        self.faults: list[str] = []
        self.voxel_sizes: dict[Location, tuple[float, float, float] | None] = {}
        self._todo = self.paths
        self.subfolders = _subfolders(self.paths) if output_subfolders else {}
        self._refuse_collisions(Path(output_dir))

    def _refuse_collisions(self, output_dir: Path) -> None:
        by_name: dict[Path, Location] = {}
        for path in self.paths:
            name = output_dir / self.subfolders.get(path, Path()) / strip_suffix(path)
            other = by_name.setdefault(name, path)
            if other != path:
                raise InputError(
                    f"{other} and {path} would both write {name}_etsam_*; set output_subfolders=true if they lie in "
                    "different folders, or run them into different output folders."
                )

    def check(self) -> dict[Location, tuple[int, int, int] | None]:
        """Open each header; compressed files are looked at when their turn comes.

        Returns
        -------
        dict
            Tomogram that can be used -> (Z, Y, X), None where it is not known yet. The others are in `missing`.

        Raises
        ------
        InputError
            Naming every file that cannot be used, if it is not there, or none can be used, or `strict` is set; or those
            of `also` that are not of the shape of the tomogram.
        ConfigError
            If there is `also` for several tomograms.
        """
        if len({absolute(path) for path in self.also}) < len(self.also):
            raise ConfigError(f"also={self.also[0]} is named twice; name each reconstruction once.")
        if self.also and len(self.paths) > 1:
            raise ConfigError(
                f"also={self.also[0]} is of one tomogram, and input names {len(self.paths)}; run them one by one."
            )
        faults, gone = self.faults, False
        shapes: dict[Location, tuple[int, int, int] | None] = {}
        for path in self.paths:
            shapes[path] = None
            kind = None if self.force else kind_by_name(path)
            packed = isinstance(path, Path) and path.name.lower().endswith((".gz", ".bz2")) and path.is_file()
            if kind is None and packed and os.access(path, os.R_OK):
                continue
            try:
                if kind is not None and not self.may_pass_over:
                    raise InputError(f"{path}: {no_tomogram(kind)}")
                if kind is not None:
                    del shapes[path]
                    self.missing.append(Missing.of(path, "passed over", no_tomogram(kind)))
                    continue
                volume = read_volume(path, warn=False)
                shapes[path], self.voxel_sizes[path] = volume.shape, volume.voxel_size_angstrom
            except InputError as error:
                faults.append(str(error))
                self.missing.append(Missing.of(path, "not usable", error))
                gone = gone or not (exists(path) or is_zarr(path) or os.path.islink(path))
                del shapes[path]
        if faults and (gone or self.strict or not shapes):  # a name that is wrong is corrected before anything else
            if len(faults) == 1:
                raise InputError(faults[0])
            raise InputError.of(f"{len(faults)} of {len(self.paths)} tomograms cannot be used", faults)
        for entry in self.missing:
            (log.info if entry.kind == "passed over" else log.warning)("%s %s: %s", entry.kind, entry.name, entry.why)
        for path, shape in shapes.items():
            for other in self.also:
                read_also(other, path, shape)
        if not shapes:
            raise InputError.of("there is nothing to segment", [f"{one.name} {one.why}" for one in self.missing])
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
