"""The tomograms of a prediction, checked before anything heavy starts."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from etsam.errors import ConfigError, InputError
from etsam.prediction.batch import Missing
from etsam.prediction.finding import gather
from etsam.prediction.kinds import kind_by_name, no_tomogram
from etsam.volume import Location, Volume, locate, read_volume, strip_suffix
from etsam.volume.location import absolute, exists, is_zarr

log = logging.getLogger(__name__)


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
