"""Slices of an MRC file, in any mode, axis order and byte order, compressed or not; the file stays on disk."""

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from etsam.errors import InputError
from etsam.volume.compressed import packing_of, release, unpack
from etsam.volume.location import PACKED_SUFFIXES, PLAIN_SUFFIXES, suffix_of
from etsam.volume.mrc_header import HEADER_BYTES, MrcHeader, looks_like_mrc, parse_header

_PIECES, _PIECE_BYTES = 16, 1 << 16  # of a file of bytes that are looked at to tell signed from unsigned ones
_TILT_SERIES_SUFFIXES = (".st", ".ali")  # IMOD: stack as recorded, stack after alignment


class MrcSource:
    """Voxels of an MRC file; made by `open_mrc`.

    Parameters
    ----------
    file
        The uncompressed file, an absolute path.
    header
        What it says.
    path
        The file as it was given, for messages.
    """

    def __init__(self, file: Path, header: MrcHeader, path: Path) -> None:
        self._file, self.header, self._path = file, header, path
        self.shape = header.volume_shape
        self.dtype = header.dtype.newbyteorder("=")
        self.voxel_size_angstrom = header.voxel_size_angstrom
        self.origin_angstrom, self.start = header.origin_angstrom, header.start
        self.remarks = header.header_warnings
        self._remove_scratch: Callable[[], object] | None = None

    def plane(self, z: int) -> np.ndarray:
        """Slice `z`, (Y, X)."""
        with self._open() as file:
            return self._plane(file, z).astype(self.dtype, order="C", copy=False)

    def read(self) -> np.ndarray:
        """Everything, (Z, Y, X)."""
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

    def __getstate__(self) -> dict[str, Any]:
        # a copy, for example in a DataLoader worker, must not remove the file under the original
        return {**self.__dict__, "_remove_scratch": None}

    def _own_scratch(self, scratch: Path, held: int) -> None:
        self._remove_scratch = weakref.finalize(self, release, scratch, held, os.getpid())

    # Reading is plain seek and read, and the file is closed again after every access. A memory map, the usual way,
    # would count every page touched as resident memory of this process until it is unmapped, all of a section's
    # neighbours included, and a file that shrinks or a network folder that stalls would kill the process (SIGBUS)
    # instead of raising an error.

    def _open(self) -> IO[bytes]:
        try:
            return self._file.open("rb", buffering=0)
        except OSError as error:
            gone = f"{self._path}: cannot be read any more: {error.strerror} ({self._file})"
            raise InputError(f"{gone}; was it moved, or the volume closed?") from error

    def _voxels(self, file: IO[bytes], first: int, count: int) -> np.ndarray:
        dtype = self.header.dtype
        try:
            file.seek(self.header.data_offset + first * dtype.itemsize)
            voxels = np.fromfile(file, dtype=dtype, count=count)
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        if voxels.size != count:
            raise InputError(f"{self._path}: became shorter while it was read; is a program still writing it?")
        if self.header.added:
            voxels ^= 0x80  # the same as adding 128 to the signed value
        return voxels

    def _section(self, file: IO[bytes], section: int) -> np.ndarray:
        """(rows, columns) as they lie in the file."""
        _, rows, columns = self.header.shape
        return self._voxels(file, section * rows * columns, rows * columns).reshape(rows, columns)

    def _plane(self, file: IO[bytes], z: int) -> np.ndarray:
        """(Y, X) at height z, in the file's byte order, with one section in memory at a time."""
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


def open_mrc(given: Path, scratch_dir: str | os.PathLike[str] | None = None) -> MrcSource:
    """Open a file in MRC format without reading its slices; parameters and errors as of `read_volume`."""
    suffix = suffix_of(given.name)
    raw, size = _head(given)
    packing = packing_of(raw)
    with ExitStack() as undo:
        file = given.absolute()  # Hydra may change the working directory
        if packing is not None:
            file, held = unpack(given, packing, scratch_dir, lambda first: _refuse_unknown(first, suffix, given))
            undo.callback(release, file, held, os.getpid())
            raw, size = _head(file)
        _refuse_unknown(raw, suffix, given)
        header = parse_header(raw, size, str(given), partial(_some_bytes, file))
        header = replace(header, header_warnings=(*header.header_warnings, *_odd_name(given, suffix, packing)))
        source = MrcSource(file, header, given)
        if packing is not None:
            source._own_scratch(file, held)
        undo.pop_all()
    return source


def _odd_name(path: Path, suffix: str, packing: str | None) -> Iterator[str]:
    if suffix.startswith(_TILT_SERIES_SUFFIXES):
        yield "the name looks like a tilt series, not a reconstruction; etsam needs the reconstructed tomogram"
    named = next((packed for packed in PACKED_SUFFIXES if path.name.lower().endswith(packed)), None)
    if named != packing:
        yield f"{'not compressed' if packing is None else 'compressed (' + packing + ')'}, unlike its name says"


def _refuse_unknown(raw: bytes, suffix: str, path: Path) -> None:
    """Raise for what is neither MRC nor called so; what is called so is explained by `parse_header`."""
    if suffix or looks_like_mrc(raw):
        return
    found = f"suffix {path.suffix}" if path.suffix else "no suffix"
    allowed = ", ".join(PLAIN_SUFFIXES)
    raise InputError(f"{path}: not an MRC file ({found}); allowed are {allowed}, also with .gz or .bz2; convert it")


def _some_bytes(path: Path, first: int, count: int) -> np.ndarray:
    """Bytes of a file in pieces spread over `count` of them from `first` on, (N,) uint8."""
    pieces = max(1, min(_PIECES, count // _PIECE_BYTES))
    starts = np.linspace(0, max(0, count - _PIECE_BYTES), pieces).astype(int)
    with path.open("rb") as file:
        found = []
        for start in starts:
            file.seek(first + int(start))
            found.append(np.frombuffer(file.read(min(_PIECE_BYTES, count)), np.uint8))
    return np.concatenate(found)


def _head(path: Path) -> tuple[bytes, int]:
    """First 1024 bytes and the size of a file."""
    with path.open("rb") as file:
        return file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
