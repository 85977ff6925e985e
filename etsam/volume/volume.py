"""A tomogram that stays on disk: slices along Z on request, with voxel size and origin."""

import difflib
import logging
import operator
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from etsam.errors import InputError
from etsam.volume.location import PLAIN_SUFFIXES, Location, Url, is_zarr, locate
from etsam.volume.mrc_header import MrcHeader
from etsam.volume.mrc_reader import MrcSource, open_mrc

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Source of the voxels of a volume; one class a format. Pickled with its volume."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    voxel_size_angstrom: tuple[float, float, float] | None
    origin_angstrom: tuple[float, float, float]
    start: tuple[int, int, int]
    remarks: tuple[str, ...]
    """Remarks on what is odd about the file, for the log."""

    def plane(self, z: int) -> np.ndarray:
        """Slice `z`, 0 <= z < Z, (Y, X): a new array of `dtype`, in the machine's byte order."""
        ...

    def read(self) -> np.ndarray:
        """Everything, (Z, Y, X), a new array."""
        ...

    def close(self) -> None:
        """Give back what is held beside the file."""
        ...


class _Array:
    """A source in memory."""

    def __init__(self, array: np.ndarray, voxel_size_angstrom: tuple[float, float, float] | None) -> None:
        self._array = array
        self.shape = (array.shape[0], array.shape[1], array.shape[2])
        self.dtype = array.dtype.newbyteorder("=")
        self.voxel_size_angstrom = voxel_size_angstrom
        self.origin_angstrom, self.start = (0.0, 0.0, 0.0), (0, 0, 0)
        self.remarks: tuple[str, ...] = ()

    def plane(self, z: int) -> np.ndarray:
        return np.array(self._array[z], dtype=self.dtype)

    def read(self) -> np.ndarray:
        return np.array(self._array, dtype=self.dtype)

    def close(self) -> None:
        pass


class Volume:
    """A volume (Z, Y, X) that gives out one Z slice at a time; made by `read_volume` or `Volume.from_array`.

    `volume[z]` is a new array (Y, X) in the file's dtype and the machine's byte order; `len(volume)` is Z; iterating
    goes slice by slice. Volumes can be pickled; a copy of a compressed one lives only as long as the original, which
    owns the unpacked file.

    Attributes
    ----------
    path
        The file, Zarr folder or URL as it was given; None for an array in memory.
    shape
        (Z, Y, X).
    dtype
        Of the slices, in the machine's byte order.
    voxel_size_angstrom
        (z, y, x) in Å; None if unknown.
    origin_angstrom
        (z, y, x) in Å.
    start
        (z, y, x) in voxels: where this volume begins in a larger one. OME-Zarr has no such thing: (0, 0, 0).
    header
        What an MRC file said; None for anything else.
    """

    def __init__(self, source: Source, path: Location | None = None) -> None:
        self._source = source
        self.path = path
        self.shape, self.dtype = source.shape, source.dtype
        self.voxel_size_angstrom = source.voxel_size_angstrom
        self.origin_angstrom, self.start = source.origin_angstrom, source.start
        self.header: MrcHeader | None = source.header if isinstance(source, MrcSource) else None

    @classmethod
    def from_array(
        cls, array: ArrayLike, voxel_size_angstrom: float | tuple[float, float, float] | None = None
    ) -> "Volume":
        """Wrap an array in memory, without copying it unless something in it is masked.

        Parameters
        ----------
        array
            (Z, Y, X); bool, integer or floating-point. A NumPy array, or what NumPy makes one of: nested lists, a torch
            tensor on the CPU. Masked values become NaN, for which integers become float32.
        voxel_size_angstrom
            (z, y, x) in Å, one number for all three, or what mrcfile gives; None if unknown.

        Raises
        ------
        InputError
            If NumPy makes no array of it; if the array is empty, not three-dimensional, or holds complex numbers or
            something that is no number; if the voxel size is not one or three positive numbers.
        """
        voxels = _as_array(array)
        if voxels.ndim != 3 or voxels.size == 0:
            raise InputError(f"array of shape {voxels.shape}: a volume has three axes (Z, Y, X), none of them empty")
        if voxels.dtype.kind not in "biuf":
            raise InputError(f"array of {voxels.dtype}: a volume holds booleans, integers or real numbers")
        sizes = None if voxel_size_angstrom is None else _three_sizes(voxel_size_angstrom)
        return cls(_Array(_with_nan_where_masked(voxels), sizes))

    def at_voxel_size(self, angstrom: float | tuple[float, float, float]) -> "Volume":
        """The same volume with another voxel size, Å in all three axes or (z, y, x), whatever its header says."""
        self.voxel_size_angstrom = angstrom if isinstance(angstrom, tuple) else (angstrom,) * 3
        return self

    @property
    def first_voxel_angstrom(self) -> tuple[float, float, float]:
        """(z, y, x) in Å: place of the first voxel, its origin; where that is 0, start x voxel size, as in ChimeraX."""
        if any(self.origin_angstrom) or self.voxel_size_angstrom is None:
            return self.origin_angstrom
        z, y, x = (start * side for start, side in zip(self.start, self.voxel_size_angstrom, strict=True))
        return z, y, x

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, z: int) -> np.ndarray:
        index = operator.index(z)
        if not -len(self) <= index < len(self):
            raise IndexError(f"slice {index} of a volume with {len(self)} slices")
        return self._source.plane(index % len(self))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[z] for z in range(len(self)))

    def __repr__(self) -> str:
        return f"Volume({str(self.path or 'in memory')!r}, shape={self.shape}, dtype={self.dtype})"

    def read(self) -> np.ndarray:
        """Read the whole volume (Z, Y, X) into a new array; needs all its memory at once."""
        return self._source.read()

    def close(self) -> None:
        """Remove the unpacked copy of a compressed file, which is then unreadable; let go of chunks of a Zarr."""
        self._source.close()

    def __enter__(self) -> "Volume":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_volume(
    path: str | os.PathLike[str], scratch_dir: str | os.PathLike[str] | None = None, *, warn: bool = True
) -> Volume:
    """Open a tomogram in MRC format (also gzip- or bzip2-compressed) or in OME-Zarr, without reading its slices.

    What a file is, is decided by its content; the suffix decides only what to say about something unreadable.

    Parameters
    ----------
    path
        A file with one of `TOMOGRAM_SUFFIXES`, or any other whose content is MRC; or an OME-Zarr: a folder, or an
        address http://, https:// or s3:// (anonymous), followed by `/LEVEL` for another scale level than the first
        (see `etsam.volume.zarr_reader`).
    scratch_dir
        Folder for the unpacked copy of a compressed file; by default the system's (`TMPDIR`). The copy is removed
        with the volume.
    warn
        Whether to log what is odd about the header.

    Raises
    ------
    InputError
        If `path` is no path; if there is no such file, it cannot be read, is damaged, or holds something else than one
        real-space volume.
    OutputError
        If the unpacked copy does not fit into `scratch_dir`.

    Warns
    -----
    One line in the log, if the header is poor or the name is that of a tilt series.
    """
    if not (isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str)):
        raise InputError(
            f"{type(path).__name__}: is no path; read_volume opens a file named by a str or Path, "
            "Volume.from_array takes an array"
        )
    given = locate(path)
    source: Source
    try:
        if isinstance(given, Url) or is_zarr(given):
            from etsam.volume.zarr_reader import open_zarr

            source = open_zarr(given)
        else:
            _refuse_what_is_no_file(given)
            source = open_mrc(given, scratch_dir)
    except OSError as error:
        raise InputError(f"{given}: cannot be read: {error.strerror or error}") from error
    if source.remarks and warn:
        _log.warning("%s: %s", given, "; ".join(source.remarks))
    return Volume(source, given)


def _as_array(given: ArrayLike) -> np.ndarray:
    """Array of what was given, the mask of a masked one kept; raises InputError if NumPy makes none of it."""
    kind = type(given).__name__
    try:
        if isinstance(given, list | tuple) and any(isinstance(one, np.ma.MaskedArray) for one in given):
            given = np.ma.array(given)
        array = np.asanyarray(given)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        tensor = ", such as tensor.detach().cpu().float().numpy()" if hasattr(given, "detach") else ""
        why = " ".join(str(error).split())
        raise InputError(f"{kind}: NumPy makes no array of it ({why}); give a NumPy array{tensor}") from error
    if array.ndim == 0:  # what NumPy knows nothing of, too
        raise InputError(
            f"{kind}: is no array; give an array (Z, Y, X) of numbers, or the path of a file as str or Path"
        )
    return array


def _with_nan_where_masked(array: np.ndarray) -> np.ndarray:
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        array = np.ma.filled(array.astype(array.dtype if array.dtype.kind == "f" else np.float32), np.nan)
    return np.asarray(array)


def _three_sizes(given: Any) -> tuple[float, float, float]:
    """Voxel size (z, y, x) in Å of one number, three, or mrcfile's record; raises InputError if it is none of these."""
    try:
        if set(getattr(getattr(given, "dtype", None), "names", None) or ()) == {"x", "y", "z"}:
            given = tuple(np.asarray(given)[axis] for axis in "zyx")
        sizes = np.asarray(given, dtype=float)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        sizes = np.empty(0)
    if sizes.shape not in ((), (3,)) or not ((sizes > 0) & (sizes < np.inf)).all():
        raise InputError(f"voxel size {given}: one or three positive numbers (z, y, x) in Å are needed")
    z, y, x = np.broadcast_to(sizes, 3).tolist()
    return z, y, x


def _refuse_what_is_no_file(path: Path) -> None:
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; name one tomogram in it ({', '.join(PLAIN_SUFFIXES)})")
    if os.path.isfile(path):
        return
    if os.path.lexists(path):
        raise InputError(f"{path}: is no ordinary file, or a link to nothing; give a tomogram in MRC format")
    if not os.path.isdir(path.parent):
        raise InputError(f"{path}: no such file, and no folder {path.parent}; check the path")
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(path.parent)
    similar = difflib.get_close_matches(path.name, [name for name in names if not name.startswith(".")])
    hint = f"did you mean {', '.join(similar)}?" if similar else "check the path"
    raise InputError(f"{path}: no such file; {hint}")
