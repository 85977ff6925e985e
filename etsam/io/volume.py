"""A tomogram that stays on disk: slices along Z on request, with voxel size and origin."""

import difflib
import logging
import operator
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from etsam.errors import InputError
from etsam.io.mrc_header import HEADER_BYTES, MrcHeader, looks_like_mrc, parse_header
from etsam.io.unpack import packing_of, remove_in_process, unpack

_log = logging.getLogger(__name__)

_PLAIN_SUFFIXES = (".mrc", ".rec", ".map", ".mrcs", ".st", ".ali", ".ccp4")
_TILT_SERIES_SUFFIXES = (".st", ".ali")  # IMOD: stack as recorded, stack after alignment
_ZARR_ENTRIES = (".zattrs", ".zgroup", ".zarray", "zarr.json")  # Zarr 2 and 3 specifications
_PACKED_SUFFIXES = (".gz", ".bz2")

TOMOGRAM_SUFFIXES = tuple(plain + packed for packed in ("", *_PACKED_SUFFIXES) for plain in _PLAIN_SUFFIXES)
"""What names of tomograms end in, in lower case; upper case is understood, too."""


class Volume:
    """A volume (Z, Y, X) that gives out one Z slice at a time; made by `read_volume` or `Volume.from_array`.

    `volume[z]` is a new array (Y, X) in the file's dtype and the machine's byte order; `len(volume)` is Z; iterating
    goes slice by slice. Volumes can be pickled; a copy of a compressed one lives only as long as the original, which
    owns the unpacked file.

    Attributes
    ----------
    path
        The file as it was given; None for an array in memory.
    shape
        (Z, Y, X).
    dtype
        Of the slices, in the machine's byte order.
    voxel_size_angstrom
        (z, y, x) in Å; None if unknown.
    origin_angstrom
        (z, y, x) in Å.
    start
        (z, y, x) in voxels: where this volume begins in a larger one.
    header
        What the file said; None for an array in memory.
    """

    def __init__(
        self,
        source: np.ndarray | Path,
        *,
        header: MrcHeader | None = None,
        path: Path | None = None,
        voxel_size_angstrom: tuple[float, float, float] | None = None,
    ) -> None:
        self._source = source  # an array (Z, Y, X), or the uncompressed file that `header` describes
        self.path = path
        self.header = header
        self.origin_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)
        self.start: tuple[int, int, int] = (0, 0, 0)
        self.voxel_size_angstrom = voxel_size_angstrom
        if header is not None:
            self.shape = header.volume_shape
            self.dtype = header.dtype.newbyteorder("=")
            self.voxel_size_angstrom = header.voxel_size_angstrom
            self.origin_angstrom, self.start = header.origin_angstrom, header.start
        elif isinstance(source, np.ndarray):
            self.shape = (source.shape[0], source.shape[1], source.shape[2])
            self.dtype = source.dtype.newbyteorder("=")
        else:
            raise ValueError("a volume on disk needs its header")
        self._remove_scratch: Callable[[], object] | None = None

    @classmethod
    def from_array(cls, array: np.ndarray, voxel_size_angstrom: tuple[float, float, float] | None = None) -> "Volume":
        """Wrap an array in memory, without copying it.

        Parameters
        ----------
        array
            (Z, Y, X); bool, integer or floating-point.
        voxel_size_angstrom
            (z, y, x) in Å; None if unknown.

        Raises
        ------
        InputError
            If the array is empty, not three-dimensional, or holds complex numbers or something that is no number; if
            the voxel size is not three positive numbers.
        """
        array = np.asarray(array)
        if array.ndim != 3 or array.size == 0:
            raise InputError(f"array of shape {array.shape}: a volume has three axes (Z, Y, X), none of them empty")
        if array.dtype.kind not in "biuf":
            raise InputError(f"array of {array.dtype}: a volume holds booleans, integers or real numbers")
        if voxel_size_angstrom is not None:
            sizes = tuple(float(size) for size in voxel_size_angstrom)
            if len(sizes) != 3 or not all(0 < size < float("inf") for size in sizes):
                raise InputError(f"voxel size {voxel_size_angstrom}: three positive numbers (z, y, x) in Å are needed")
            voxel_size_angstrom = (sizes[0], sizes[1], sizes[2])
        return cls(array, voxel_size_angstrom=voxel_size_angstrom)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, z: int) -> np.ndarray:
        index = operator.index(z)
        if not -len(self) <= index < len(self):
            raise IndexError(f"slice {index} of a volume with {len(self)} slices")
        index %= len(self)
        if isinstance(self._source, np.ndarray):
            return np.array(self._source[index], dtype=self.dtype)
        with self._open() as file:
            return self._plane(file, index).astype(self.dtype, order="C", copy=False)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[z] for z in range(len(self)))

    def __repr__(self) -> str:
        return f"Volume({str(self.path or 'in memory')!r}, shape={self.shape}, dtype={self.dtype})"

    def read(self) -> np.ndarray:
        """Read the whole volume (Z, Y, X) into a new array; needs all its memory at once."""
        if isinstance(self._source, np.ndarray):
            return np.array(self._source, dtype=self.dtype)
        assert self.header is not None
        whole = np.empty(self.shape, dtype=self.dtype)
        by_section = whole.transpose(np.argsort(self.header.transpose))  # (sections, rows, columns), a view
        with self._open() as file:
            for section in range(self.header.shape[0]):
                by_section[section] = self._section(file, section)
        return whole

    def close(self) -> None:
        """Remove the unpacked copy of a compressed file, which is then unreadable; otherwise nothing."""
        if self._remove_scratch is not None:
            self._remove_scratch()

    def __enter__(self) -> "Volume":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # a copy, for example in a DataLoader worker, must not remove the file under the original
        return {**self.__dict__, "_remove_scratch": None}

    def _own_scratch(self, scratch: Path) -> None:
        self._remove_scratch = weakref.finalize(self, remove_in_process, scratch, os.getpid())

    # Reading is plain seek and read, and the file is closed again after every access. A memory map, the usual way,
    # would count every page touched as resident memory of this process until it is unmapped, all of a section's
    # neighbours included, and a file that shrinks or a network folder that stalls would kill the process (SIGBUS)
    # instead of raising an error.

    def _open(self) -> IO[bytes]:
        assert isinstance(self._source, Path)
        try:
            return self._source.open("rb", buffering=0)
        except OSError as error:
            gone = f"{self.path}: cannot be read any more: {error.strerror} ({self._source})"
            raise InputError(f"{gone}; was it moved, or the volume closed?") from error

    def _voxels(self, file: IO[bytes], first: int, count: int) -> np.ndarray:
        assert self.header is not None
        dtype = self.header.dtype
        try:
            file.seek(self.header.data_offset + first * dtype.itemsize)
            voxels = np.fromfile(file, dtype=dtype, count=count)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if voxels.size != count:
            raise InputError(f"{self.path}: became shorter while it was read; is a program still writing it?")
        return voxels

    def _section(self, file: IO[bytes], section: int) -> np.ndarray:
        """(rows, columns) as they lie in the file."""
        assert self.header is not None
        _, rows, columns = self.header.shape
        return self._voxels(file, section * rows * columns, rows * columns).reshape(rows, columns)

    def _plane(self, file: IO[bytes], z: int) -> np.ndarray:
        """(Y, X) at height z, in the file's byte order, with one section in memory at a time."""
        assert self.header is not None
        sections, rows, columns = self.header.shape
        along_z, along_y, along_x = self.header.transpose
        if along_z == 0:
            plane = self._section(file, z)
        elif along_z == 1:
            lines = [self._voxels(file, (section * rows + z) * columns, columns) for section in range(sections)]
            plane = np.stack(lines)
        else:
            plane = np.stack([self._section(file, section)[:, z].copy() for section in range(sections)])
        return plane if along_y < along_x else plane.T


def read_volume(
    path: str | os.PathLike[str], scratch_dir: str | os.PathLike[str] | None = None, *, warn: bool = True
) -> Volume:
    """Open a tomogram in MRC format, gzip- or bzip2-compressed or not, without reading its slices.

    What the file is, is decided by its content; the suffix decides only what to say about something unreadable.

    Parameters
    ----------
    path
        A file with one of `TOMOGRAM_SUFFIXES`, or any other whose content is MRC.
    scratch_dir
        Folder for the unpacked copy of a compressed file; by default the system's (`TMPDIR`). The copy is removed
        with the volume.
    warn
        Whether to log what is odd about the header.

    Raises
    ------
    InputError
        If there is no such file, it cannot be read, is damaged, or holds something else than one real-space volume.
    OutputError
        If the unpacked copy does not fit into `scratch_dir`.

    Warns
    -----
    One line in the log, if the header is poor or the name is that of a tilt series.
    """
    given = Path(os.path.expanduser(path))  # unlike Path.expanduser it leaves names such as ~$tomo.mrc alone
    _refuse_what_is_no_file(given)
    suffix = _suffix(given)
    try:
        raw, size = _head(given)
        packing = packing_of(raw)
        with ExitStack() as undo:
            source = given.absolute()  # Hydra may change the working directory
            if packing is not None:
                source = unpack(given, packing, scratch_dir, lambda first: _refuse_unknown(first, suffix, given))
                undo.callback(source.unlink, missing_ok=True)
                raw, size = _head(source)
            _refuse_unknown(raw, suffix, given)
            header = parse_header(raw, size, str(given))
            header = replace(header, oddities=(*header.oddities, *_odd_name(given, suffix, packing)))
            volume = Volume(source, header=header, path=given)
            if packing is not None:
                volume._own_scratch(source)
            undo.pop_all()
    except OSError as error:
        raise InputError(f"{given}: cannot be read: {error.strerror or error}") from error
    if header.oddities and warn:
        _log.warning("%s: %s", given, "; ".join(header.oddities))
    return volume


def strip_suffix(path: str | os.PathLike[str]) -> str:
    """File name without its folder and without the suffix of a tomogram, nothing else removed.

    Examples
    --------
    >>> strip_suffix("TS_01_10.00Apx.mrc")
    'TS_01_10.00Apx'
    >>> strip_suffix("folder/a.b.rec.gz")
    'a.b'
    """
    name = Path(path).name
    return name[: len(name) - len(_suffix(name))] or name


def _suffix(path: str | os.PathLike[str]) -> str:
    """Find the entry of TOMOGRAM_SUFFIXES that the name ends in; else nothing."""
    name = Path(path).name.lower()
    return next((suffix for suffix in TOMOGRAM_SUFFIXES if name.endswith(suffix)), "")


def _odd_name(path: Path, suffix: str, packing: str | None) -> Iterator[str]:
    if suffix.startswith(_TILT_SERIES_SUFFIXES):
        yield "the name looks like a tilt series, not a reconstruction; etsam needs the reconstructed tomogram"
    named = next((packed for packed in _PACKED_SUFFIXES if path.name.lower().endswith(packed)), None)
    if named != packing:
        yield f"{'not compressed' if packing is None else 'compressed (' + packing + ')'}, unlike its name says"


def _refuse_what_is_no_file(path: Path) -> None:
    if path.suffix == ".zarr" or any((path / entry).is_file() for entry in _ZARR_ENTRIES):
        raise InputError(f"{path}: OME-Zarr is not supported yet; convert it to MRC, for example with IMOD")
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; name one tomogram in it ({', '.join(_PLAIN_SUFFIXES)})")
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


def _refuse_unknown(raw: bytes, suffix: str, path: Path) -> None:
    """Raise for what is neither MRC nor called so; what is called so is explained by `parse_header`."""
    if suffix or looks_like_mrc(raw):
        return
    found = f"suffix {path.suffix}" if path.suffix else "no suffix"
    allowed = ", ".join(_PLAIN_SUFFIXES)
    raise InputError(f"{path}: not an MRC file ({found}); allowed are {allowed}, also with .gz or .bz2; convert it")


def _head(path: Path) -> tuple[bytes, int]:
    """First 1024 bytes and the size of a file."""
    with path.open("rb") as file:
        return file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
