"""Header of an MRC file: what its 1024 bytes say, also when a program wrote them carelessly.

Layout: MRC2014 (Cheng et al., J. Struct. Biol. 192 (2015) 146, https://www.ccpem.ac.uk/mrc_format/mrc2014.php), by
way of `mrcfile.dtypes.HEADER_DTYPE`. What IMOD adds: https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from mrcfile.constants import MAP_ID
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import (
    byte_order_from_machine_stamp,
    dtype_from_mode,
    printable_string_from_bytes,
    spacegroup_is_volume_stack,
)

from etsam.errors import InputError
from etsam.volume.slices import refuse_single_slice

HEADER_BYTES = 1024  # MRC2014; HEADER_DTYPE.itemsize is the same
ALLOWED_MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}  # mrcfile.utils.dtype_from_mode
REFUSED_MODES = {  # IMOD's mrc_format.txt
    3: "pairs of int16, complex",
    4: "pairs of float32, complex",
    16: "RGB colours",
    101: "4-bit numbers",
}
IMOD_STAMP = 1146047817  # IMOD's mrc_format.txt: the bytes "IMOD" at offset 152; flags follow at 156
IMOD_STAMP_OFFSET = 152
IMOD_SIGNED_BYTES = 1  # bit 0 of those flags: mode 0 means signed bytes
_LARGEST_SIGNED = 127
_IMOD_MASKS = ({128, 129}, {128, 127})  # bytes that stand for 0 and 1, and for 0 and 255
_NEAR, _FAR_ABOVE = 8, 4  # grey values, and times as many voxels: our choice
IMOD_4_BIT = 16  # bit 4: mode 0 means two 4-bit numbers in a byte
VOXEL_SIZES_ANGSTROM = (0.1, 1000.0)  # below an atom, above a cell organelle: neither is a tomogram's voxel

# Bounds that tell a header read in the right byte order from one read in the wrong order (or from no header): a wrong
# order makes multiples of 65536 or more of every number below 256 and much more of others. 10^6 is ten times the
# widest montage; 2^28 bytes of extended header are 3.8 kB (an FEI1 block with room to spare) for 70 000 sections.
_LARGEST_SIDE = 1_000_000
_LARGEST_EXTENDED_HEADER = 2**28
_LARGEST_MODE = 127  # 101 is the largest in use
_LARGEST_ORIGIN_ANGSTROM = 1e7  # a millimetre; beyond it the bytes hold something else
_SMALLEST_ORIGIN_ANGSTROM = 1e-6  # what short integers of the layout before 2000 look like as float32
_AXIS_NAMES = {1: "X", 2: "Y", 3: "Z"}


@dataclass(frozen=True)
class MrcHeader:
    """Header of one MRC file that holds one real-space volume.

    Everything of three parts is ordered (z, y, x), except where the file's own order is named.
    """

    shape: tuple[int, int, int]
    """(sections, rows, columns) = (nz, ny, nx), the order of the file; see `volume_shape`."""
    mode: int
    """0, 1, 2, 6 or 12."""
    dtype: np.dtype
    """Of one voxel, in the file's byte order; uint8 for mode 0 where the file shows that it means unsigned bytes."""
    data_offset: int
    """Bytes before the data: 1024 + nsymbt."""
    added: int
    """Offset that is added to stored values: 128 to IMOD's signed bytes, which stand for 0 to 255; else 0."""
    voxel_size_angstrom: tuple[float, float, float] | None
    """(z, y, x) in Å; None if the file does not say."""
    origin_angstrom: tuple[float, float, float]
    """(z, y, x) in Å, the ORIGIN words as they stand (IMOD often means the opposite sign; viewers do not agree)."""
    start: tuple[int, int, int]
    """(z, y, x) in voxels: nzstart, nystart, nxstart put into the order of space."""
    axis_order: tuple[int, int, int]
    """(mapc, mapr, maps): which axis of space (1 X, 2 Y, 3 Z) columns, rows and sections run along."""
    labels: tuple[str, ...] = ()
    """At most ten lines of history, 80 characters each, as written by the programs before us."""
    header_warnings: tuple[str, ...] = ()
    """Remarks on what was wrong or had to be guessed, one phrase each; empty for a good file."""

    @property
    def transpose(self) -> tuple[int, int, int]:
        """File axes (0 sections, 1 rows, 2 columns) that run along z, y, x; (0, 1, 2) for nearly every file."""
        mapc, mapr, maps = self.axis_order
        file_axes = (maps, mapr, mapc)
        return file_axes.index(3), file_axes.index(2), file_axes.index(1)

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """(Z, Y, X) of space, whatever the order in the file."""
        z, y, x = self.transpose
        return self.shape[z], self.shape[y], self.shape[x]


def looks_like_mrc(raw: bytes) -> bool:
    """True if these bytes can be the header of an MRC file, in either byte order.

    Parameters
    ----------
    raw
        First 1024 bytes of the file; fewer are no header.
    """
    return len(raw) >= HEADER_BYTES and any(_plausible(_unpack(raw, order)) for order in "<>")


def parse_header(
    raw: bytes, file_size: int, name: str, some_bytes: Callable[[int, int], np.ndarray] | None = None
) -> MrcHeader:
    """Read the header of an MRC file.

    The byte order is the one in which mode, sides and size make sense; the machine stamp, which some programs write
    wrong or not at all, is asked only if both orders do.

    Parameters
    ----------
    raw
        First 1024 bytes of the file.
    file_size
        Bytes of the whole (uncompressed) file.
    name
        How messages call the file.
    some_bytes
        Gives some of the bytes from an offset on, of so many, (N,) uint8; asked where the header does not say whether
        bytes are signed. None: they are, then.

    Raises
    ------
    InputError
        If this is not an MRC file, or holds a Fourier transform, colours, several volumes, one 2D image, or fewer
        bytes than its header promises.
    """
    order = _choose_byte_order(raw, file_size, name)
    fields = _unpack(raw, order)
    mode, shape = int(fields["mode"]), (int(fields["nz"]), int(fields["ny"]), int(fields["nx"]))
    imod_flags = _imod_flags(raw, order)
    # bytes that hold two numbers each are what mode 101 says, too
    packed = mode == 0 and imod_flags is not None and bool(imod_flags & IMOD_4_BIT)
    _refuse_unusable(fields, 101 if packed else mode, name)

    header_warnings: list[str] = []
    _check_identification(fields, order, header_warnings)
    dtype = np.dtype(dtype_from_mode(mode)).newbyteorder(order)
    added, data_offset = 0, HEADER_BYTES + int(fields["nsymbt"])
    if mode == 0:
        look = None if some_bytes is None else partial(some_bytes, data_offset, math.prod(shape))
        unsigned, added, remark = _meaning_of_bytes(fields, imod_flags, look)
        dtype = np.dtype(np.uint8) if unsigned else dtype
        header_warnings += [remark] if remark else []
    axis_order = _axis_order(fields, header_warnings)
    unscaled = MrcHeader(
        shape=shape,
        mode=mode,
        dtype=dtype,
        data_offset=data_offset,
        added=added,
        voxel_size_angstrom=None,
        origin_angstrom=_origin(fields, header_warnings),
        start=(0, 0, 0),
        axis_order=axis_order,
    )
    refuse_single_slice(unscaled.volume_shape, name)
    _check_size(unscaled, file_size, name, header_warnings)
    starts = [int(fields[f"n{axis}start"]) for axis in "zyx"]  # of sections, rows, columns
    z, y, x = unscaled.transpose
    return replace(
        unscaled,
        voxel_size_angstrom=_voxel_size(fields, unscaled.volume_shape, header_warnings),
        start=(starts[z], starts[y], starts[x]),
        labels=_labels(fields),
        header_warnings=tuple(header_warnings),
    )


def _unpack(raw: bytes, order: str) -> Any:
    return np.frombuffer(raw, dtype=HEADER_DTYPE.newbyteorder(order), count=1)[0]


def _plausible(fields: Any) -> bool:
    sides = (fields["nx"], fields["ny"], fields["nz"])
    return (
        0 <= fields["mode"] <= _LARGEST_MODE
        and all(1 <= side <= _LARGEST_SIDE for side in sides)
        and 0 <= fields["nsymbt"] <= _LARGEST_EXTENDED_HEADER
    )


def _choose_byte_order(raw: bytes, file_size: int, name: str) -> str:
    advice = "give a tomogram in MRC format"
    if len(raw) < HEADER_BYTES:
        raise InputError(
            f"{name}: not an MRC file: it has {file_size} bytes and the header alone needs {HEADER_BYTES}; {advice}"
        )
    candidates = {order: _unpack(raw, order) for order in "<>"}
    plausible = [order for order, fields in candidates.items() if _plausible(fields)]
    if not plausible:
        raise InputError(
            f"{name}: not an MRC file: its first {HEADER_BYTES} bytes make no sense as an MRC header in either byte "
            f"order; {advice}"
        )
    if len(plausible) == 1:
        return plausible[0]
    # both: only mode 0 reads alike in both orders, and then one order promises a far larger file
    fitting = [order for order in plausible if _expected_size(candidates[order]) <= file_size]
    if len(fitting) == 1:
        return fitting[0]
    return _stamp_order(candidates["<"]) or "<"


def _expected_size(fields: Any) -> int:
    voxels = int(fields["nx"]) * int(fields["ny"]) * int(fields["nz"])
    mode = int(fields["mode"])
    itemsize = np.dtype(dtype_from_mode(mode)).itemsize if mode in ALLOWED_MODES else 1
    return HEADER_BYTES + int(fields["nsymbt"]) + voxels * itemsize


def _stamp_order(fields: Any) -> str | None:
    try:
        return str(byte_order_from_machine_stamp(fields["machst"]))
    except ValueError:
        return None


def _refuse_unusable(fields: Any, mode: int, name: str) -> None:
    if mode in (3, 4):
        raise InputError(
            f"{name}: mode {mode} ({REFUSED_MODES[mode]}): this is a Fourier transform; take the real-space tomogram"
        )
    if mode not in ALLOWED_MODES:
        found = f"mode {mode} ({REFUSED_MODES[mode]})" if mode in REFUSED_MODES else f"unknown mode {mode}"
        allowed = ", ".join(f"{key} ({value})" for key, value in ALLOWED_MODES.items())
        raise InputError(f"{name}: {found}; allowed are modes {allowed}; convert it, for example with IMOD's newstack")
    nz, mz = int(fields["nz"]), int(fields["mz"])
    if spacegroup_is_volume_stack(int(fields["ispg"])) and nz != mz:
        count = str(nz // mz) if mz > 0 and nz % mz == 0 else "several"
        raise InputError(f"{name}: holds {count} volumes (space group {int(fields['ispg'])}); extract one")


def _check_identification(fields: Any, order: str, header_warnings: list[str]) -> None:
    """MAP id and machine stamp; old programs write neither. MotionCor2 ends the id with NUL, which is as good."""
    if bytes(fields["map"]).rstrip(b"\0 ") != MAP_ID.rstrip():
        header_warnings.append("no MAP id")
    stamp = _stamp_order(fields)
    if stamp is None:
        header_warnings.append("no valid machine stamp")
    elif stamp != order:
        endian = {"<": "little-endian", ">": "big-endian"}
        header_warnings.append(f"{endian[order]} file with a {endian[stamp]} machine stamp")


def _imod_flags(raw: bytes, order: str) -> int | None:
    stamp, flags = struct.unpack_from(f"{order}ii", raw, IMOD_STAMP_OFFSET)
    return int(flags) if stamp == IMOD_STAMP else None


def _meaning_of_bytes(
    fields: Any, imod_flags: int | None, look: Callable[[], np.ndarray] | None
) -> tuple[bool, int, str]:
    """Reading of bytes: if they are unsigned, what is to be added to them, and what is to be said of it.

    MRC2014 has signed bytes only, but IMOD wrote unsigned ones before 4.2.23 (its mrc_format.txt), others too. Since
    then it stores 0 to 255 as -128 to 127, and its flags say so.
    """
    dmin, dmax = float(fields["dmin"]), float(fields["dmax"])
    if imod_flags is not None and imod_flags & IMOD_SIGNED_BYTES:
        # programs that copy IMOD's header write plain bytes under it: of those none below 0 need be there. But a mask
        # of -128 and -127 is one of 0 and 1, whoever counted its minimum anew
        mask = look is not None and any(set(np.unique(look()).tolist()) <= pair for pair in _IMOD_MASKS)
        if mask:
            return True, 128, "IMOD's signed bytes, read as 0 to 255"
        if look is None or dmin < 0 or (look().max(initial=0) <= _LARGEST_SIGNED and dmin <= _LARGEST_SIGNED):
            return False, 0, ""
        return True, 128, "IMOD's signed bytes, read as 0 to 255"
    says_unsigned = imod_flags is not None
    if dmin >= 0 and (dmax > _LARGEST_SIGNED or says_unsigned):
        return True, 0, "mode 0 read as unsigned bytes"
    if imod_flags is None and (dmin == dmax == 0 or dmax < dmin) and look is not None and _wrapped(look()):
        return True, 0, "mode 0 read as unsigned bytes, which nothing but their values says"
    return False, 0, ""


def _wrapped(values: np.ndarray) -> bool:
    """True if a histogram of bytes, (N,) uint8, goes on from 127 to 128, and hardly has any near 0 and 255."""
    counts = np.bincount(values, minlength=256)
    ends = counts[:_NEAR].sum() + counts[-_NEAR:].sum()
    below, above = counts[128 - _NEAR : 127].sum(), counts[129 : 128 + _NEAR].sum()  # the ends may be saturated
    return bool(min(below, above) > _FAR_ABOVE * max(int(ends), 1))


def _axis_order(fields: Any, header_warnings: list[str]) -> tuple[int, int, int]:
    order = (int(fields["mapc"]), int(fields["mapr"]), int(fields["maps"]))
    if sorted(order) != [1, 2, 3]:
        header_warnings.append(f"axis order {order} is none; columns, rows, sections taken as X, Y, Z")
        return 1, 2, 3
    if order != (1, 2, 3):
        names = ", ".join(_AXIS_NAMES[axis] for axis in order)
        header_warnings.append(
            f"columns, rows, sections run along {names}; presented as (Z, Y, X), which is slower to read"
        )
    return order


def _origin(fields: Any, header_warnings: list[str]) -> tuple[float, float, float]:
    z, y, x = (float(fields["origin"][axis]) for axis in "zyx")
    if all(v == 0 or _SMALLEST_ORIGIN_ANGSTROM <= abs(v) <= _LARGEST_ORIGIN_ANGSTROM for v in (z, y, x)):
        return z, y, x
    header_warnings.append("impossible origin, taken as 0")
    return 0.0, 0.0, 0.0


def _check_size(header: MrcHeader, file_size: int, name: str, header_warnings: list[str]) -> None:
    voxels = math.prod(header.shape)
    expected = header.data_offset + voxels * header.dtype.itemsize
    if file_size < expected:
        sides = " x ".join(str(side) for side in header.shape)
        raise InputError(
            f"{name}: truncated: {expected} bytes expected ({sides} {header.dtype.name}), {file_size} found; "
            "copy or download it again"
        )
    if file_size > expected:
        header_warnings.append(f"{file_size - expected} bytes more than the header says, ignored")


def _possible(size_angstrom: float) -> bool:
    smallest, largest = VOXEL_SIZES_ANGSTROM
    return smallest <= size_angstrom <= largest  # False for NaN and infinity


def _voxel_size(
    fields: Any, volume_shape: tuple[int, int, int], header_warnings: list[str]
) -> tuple[float, float, float] | None:
    """(z, y, x) in Å: cell size over intervals; unlike nx, ny, nz both belong to the axes of space."""
    cell = [float(fields["cella"][axis]) for axis in "zyx"]
    intervals = [int(fields[f"m{axis}"]) for axis in "zyx"]
    z, y, x = (c / m if m > 0 else 0.0 for c, m in zip(cell, intervals, strict=True))
    # mz = 1 marks a stack of images (ispg 0). Most programs still write the whole height as cella.z; mrcfile writes
    # one voxel's. What agrees with x is right; where nothing does, the whole height is likelier.
    z_whole, mz, nz = cell[0] / volume_shape[0], intervals[0], volume_shape[0]
    if mz != nz and (
        (mz == 1 and not _within_one_percent(z, x)) or (not _possible(z) and _within_one_percent(z_whole, x))
    ):
        header_warnings.append(f"mz is {mz} for {nz} slices; voxel size along z taken from the number of slices")
        z = z_whole
    if not all(_possible(v) for v in (z, y, x)):
        header_warnings.append(f"voxel size {x:g} x {y:g} x {z:g} Å (x, y, z) is impossible, taken as unknown")
        return None
    if all(abs(v - 1.0) < 1e-6 for v in (z, y, x)):  # 1e-6: float32 rounding of cella / m
        header_warnings.append("voxel size exactly 1 Å, which often means unknown")
    return z, y, x


def _within_one_percent(value: float, reference: float) -> bool:
    return reference > 0 and abs(value - reference) <= 0.01 * reference


def _labels(fields: Any) -> tuple[str, ...]:
    count = int(fields["nlabl"])
    used = fields["label"][:count] if 0 <= count <= 10 else fields["label"]
    labels = (printable_string_from_bytes(bytes(label)).rstrip() for label in used)
    return tuple(label for label in labels if label)
