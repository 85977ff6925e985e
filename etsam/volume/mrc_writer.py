"""Writes an MRC volume slice by slice, with memory for one slice, whole or not at all."""

import gzip
import operator
import os
import shutil
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from mrcfile.constants import MAP_ID, VOLUME_SPACEGROUP
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import machine_stamp_from_byte_order, mode_from_dtype
from numpy.typing import DTypeLike

from etsam._version import __version__
from etsam.errors import OutputError
from etsam.volume.atomic import atomic_path, output_error, scratch_file
from etsam.volume.compressed import write_all
from etsam.volume.mrc_header import ALLOWED_MODES, HEADER_BYTES
from etsam.volume.plane_checks import checked_plane, refuse_missing, slice_number, three_sides
from etsam.volume.volume import Volume

_MRC_VERSION = 20141  # MRC2014: year 2014, version 1; what mrcfile writes
_LABELS, _LABEL_BYTES = 10, 80  # MRC2014


class MrcWriter:
    """Context manager that writes one MRC volume; `writer[z] = plane` in any order, again if need be.

    The file appears under its name when the block ends without an exception, and then holds every slice; before, it is
    a hidden temporary file in the same folder, removed if anything goes wrong. The header has the statistics of
    the slices as written last; not-a-number and infinity do not count in them.

    Parameters
    ----------
    path
        The file to write; its folder must exist.
    shape
        (Z, Y, X).
    dtype
        int8 (mode 0), int16 (1), float32 (2), uint16 (6) or float16 (12). Masks are int8.
    like
        The volume that this one lies on: voxel size, origin, start and labels are taken over.
    voxel_size_angstrom
        (z, y, x) in Å, instead of that of `like`. Without either the header says 0, unknown.
    label
        One line of history, at most 80 ASCII characters, the rest is cut; by default program, version and date. It
        follows the labels of `like`, of which the first nine are kept.
    overwrite
        Replace an existing file.

    Raises
    ------
    OutputError
        On entering: `path` exists, its folder cannot be written or has less room than the whole file needs. Later:
        the disk is full, `path` appeared meanwhile, a value is too large for float16.
    ValueError
        If the arguments, or a slice's shape or values, do not fit together.
    RuntimeError
        On leaving, if slices are missing.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "mask.mrc"
    >>> with MrcWriter(path, (2, 3, 4), np.int8, voxel_size_angstrom=(10.0, 10.0, 10.0)) as writer:
    ...     for z in range(2):
    ...         writer[z] = np.ones((3, 4), dtype=bool)
    >>> path.stat().st_size
    1048
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: tuple[int, int, int],
        dtype: DTypeLike,
        like: Volume | None = None,
        voxel_size_angstrom: tuple[float, float, float] | None = None,
        label: str = "",
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype).newbyteorder("=")
        if self.dtype.name not in ALLOWED_MODES.values():
            raise ValueError(f"dtype {self.dtype}: MRC files hold {', '.join(ALLOWED_MODES.values())}; masks are int8")
        self.shape = three_sides(shape, 2**31)  # header words are int32
        if voxel_size_angstrom is None and like is not None:
            voxel_size_angstrom = like.voxel_size_angstrom
        self._header = _new_header(self.shape, self.dtype, like, voxel_size_angstrom, label)
        self._overwrite = overwrite
        # of each slice: number of finite values, least, greatest, mean, sum of squared deviations from that mean
        self._statistics = np.full((self.shape[0], 5), np.nan)
        self._written = np.zeros(self.shape[0], dtype=bool)
        self._file: IO[bytes] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "MrcWriter":
        with ExitStack() as stack:
            self._open(stack, stack.enter_context(atomic_path(self.path, self._overwrite)))
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: ExitStack, part: Path) -> None:
        """Open an empty file for the volume, until the stack is left."""
        size = HEADER_BYTES + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        free = shutil.disk_usage(part.parent).free
        if free < size:
            raise OutputError(
                f"{self.path}: {size} bytes needed, {free} free in {part.parent}; free some space or choose another "
                "folder"
            )
        # plain seek and write: pages of a memory map would stay resident until the file is closed
        self._file = stack.enter_context(part.open("rb+", buffering=0))
        self._file.truncate(size)  # the full length from the start, but no blocks yet
        stack.push(self._finish)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return self._stack.__exit__(kind, error, traceback)
        finally:
            self._file = None

    def __setitem__(self, z: int, plane: np.ndarray) -> None:
        if self._file is None:
            raise ValueError(f"{self.path}: not open; use MrcWriter in a with statement")
        index = slice_number(z, self.shape[0])
        converted = checked_plane(plane, self.shape, self.dtype, self.path)
        # in this order a slice of which only a part was written does not count as written
        self._written[index] = False
        self._write_at(HEADER_BYTES + index * converted.nbytes, converted)
        self._statistics[index] = _slice_statistics(converted)
        self._written[index] = True

    def __getitem__(self, z: int) -> np.ndarray:
        """Slice `z` (Y, X) as it was written, so that an output can be the input of a further step."""
        index = operator.index(z)
        if self._file is None or not self._written[index]:
            raise ValueError(f"{self.path}: slice {index} has not been written")
        plane = np.empty(self.shape[1:], dtype=self.dtype)
        self._file.seek(HEADER_BYTES + index % self.shape[0] * plane.nbytes)
        view = plane.reshape(-1).view(np.uint8)
        filled = 0
        while filled < view.size and (count := self._file.readinto(view[filled:].data)):  # type: ignore[attr-defined]
            filled += count
        return plane

    def _write_at(self, offset: int, data: np.ndarray) -> None:
        assert self._file is not None
        try:
            self._file.seek(offset)
            write_all(self._file, data.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise output_error(error, self.path) from error

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Complete the header; runs before the file is closed, flushed to disk and renamed."""
        if kind is not None:
            return
        refuse_missing(self._written, self.path)
        _set_statistics(self._header, self._statistics)
        self._write_at(0, self._header)


class PackedMrcWriter(MrcWriter):
    """`MrcWriter` of a file that is compressed (gzip) once it is complete; parameters and errors as there.

    Until then the plain file lies hidden beside it, so that slices may be written in any order and read again.
    """

    def __enter__(self) -> "PackedMrcWriter":
        with ExitStack() as stack:
            packed = stack.enter_context(atomic_path(self.path, self._overwrite))
            plain = stack.enter_context(scratch_file(self.path))
            stack.push(lambda kind, *_: self._pack(plain, packed) if kind is None else None)
            self._open(stack, plain)
            self._stack = stack.pop_all()
        return self

    def _pack(self, plain: Path, packed: Path) -> None:
        try:
            # level 1: a mask shrinks to a hundredth all the same, and logits hardly at any level; no time in the
            # header, so that equal masks are equal files
            with (
                plain.open("rb") as source,
                packed.open("wb") as raw,
                gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as target,
            ):
                shutil.copyfileobj(source, target, 1 << 20)
        except OSError as error:
            raise output_error(error, self.path) from error


def _new_header(
    shape: tuple[int, int, int],
    dtype: np.dtype,
    like: Volume | None,
    voxel_size_angstrom: tuple[float, float, float] | None,
    label: str,
) -> Any:
    """Header of one volume as MRC2014 wants it, as an array of one HEADER_DTYPE."""
    header = np.zeros(1, dtype=HEADER_DTYPE)
    size = voxel_size_angstrom or (0.0, 0.0, 0.0)
    origin, start = (like.origin_angstrom, like.start) if like is not None else ((0.0, 0.0, 0.0), (0, 0, 0))
    for i, axis in enumerate("zyx"):
        header[f"n{axis}"] = header[f"m{axis}"] = shape[i]
        header[f"n{axis}start"] = start[i]
        header["cella"][axis] = size[i] * shape[i]
        header["origin"][axis] = origin[i]
    for angle in ("alpha", "beta", "gamma"):
        header["cellb"][angle] = 90.0
    header["mode"] = mode_from_dtype(dtype)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["ispg"] = VOLUME_SPACEGROUP
    header["nversion"] = _MRC_VERSION
    header["map"] = MAP_ID
    header["machst"] = list(machine_stamp_from_byte_order("="))
    history = like.header.labels if like is not None and like.header is not None else ()
    own = label or f"etsam {__version__} {datetime.now():%Y-%m-%d %H:%M:%S}"
    labels = [*history[: _LABELS - 1], own]
    header["nlabl"] = len(labels)
    for i, text in enumerate(labels):
        # padded with spaces, as MRC2014 wants text
        header["label"][0, i] = text.encode("ascii", "replace")[:_LABEL_BYTES].ljust(_LABEL_BYTES)
    return header


def _slice_statistics(plane: np.ndarray) -> tuple[int, float, float, float, float]:
    values = plane if plane.dtype.kind != "f" else plane[np.isfinite(plane)]
    if values.size == 0:
        return 0, np.nan, np.nan, np.nan, np.nan
    mean = float(values.mean(dtype=np.float64))
    deviations = values.astype(np.float64) - mean
    return values.size, float(values.min()), float(values.max()), mean, float(np.vdot(deviations, deviations))


def _set_statistics(header: Any, slices: np.ndarray) -> None:
    """Join the slices' statistics; deviations from slice means do not cancel as sums of squares would."""
    slices = slices[slices[:, 0] > 0]
    if len(slices) == 0:
        # "not well-determined" in MRC2014: dmax < dmin, dmean < both, rms < 0
        header["dmin"], header["dmax"], header["dmean"], header["rms"] = 0, -1, -2, -1
        return
    count, least, greatest, mean, squares = slices.T
    total_mean = np.average(mean, weights=count)
    variance = (squares.sum() + (count * (mean - total_mean) ** 2).sum()) / count.sum()
    header["dmin"], header["dmax"] = least.min(), greatest.max()
    header["dmean"], header["rms"] = total_mean, np.sqrt(variance)
