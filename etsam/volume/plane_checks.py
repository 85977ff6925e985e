"""Checks of every writer of volumes, whatever the format: shapes, slice numbers, values that do not fit."""

import operator
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from etsam.errors import OutputError


def three_sides(shape: Sequence[int], limit: int) -> tuple[int, int, int]:
    """Shape (Z, Y, X); ValueError unless there are three sides from 1 to below `limit`."""
    if len(shape) != 3 or not all(0 < side < limit for side in shape):
        raise ValueError(f"shape {shape}: three positive sides (Z, Y, X) are needed")
    return int(shape[0]), int(shape[1]), int(shape[2])


def slice_number(z: int, depth: int) -> int:
    """Index from the start, also for a negative one; IndexError if there is no such slice."""
    index = operator.index(z)
    if not -depth <= index < depth:
        raise IndexError(f"slice {index} of a volume with {depth} slices")
    return index % depth


def checked_plane(plane: np.ndarray, shape: tuple[int, int, int], dtype: np.dtype, path: Path) -> np.ndarray:
    """Convert a slice to the file's dtype, contiguous; values that do not survive are an error, rounding is not.

    Parameters
    ----------
    plane
        (Y, X).
    shape
        Of the volume, (Z, Y, X).
    dtype
        Of the file.
    path
        The file, for messages.

    Raises
    ------
    ValueError
        If the shape or kind of number is wrong, or an integer does not fit.
    OutputError
        If a value is too large for a float of this size.
    """
    plane = np.asarray(plane)
    if plane.shape != shape[1:]:
        raise ValueError(f"slice of shape {plane.shape}: this volume has slices of {shape[1:]} (Y, X)")
    kind = plane.dtype.kind
    if kind not in "biuf" or (kind == "f" and dtype.kind != "f"):
        raise ValueError(f"slice of {plane.dtype} in a file of {dtype}: convert it first")
    if kind in "iu" and dtype.kind in "iu" and not np.can_cast(plane.dtype, dtype):
        limits = np.iinfo(dtype)
        if int(plane.min()) < limits.min or int(plane.max()) > limits.max:
            raise ValueError(f"values {plane.min()} to {plane.max()} do not fit into {dtype}")
    if dtype.kind == "f" and not np.can_cast(plane.dtype, dtype):
        limit = float(np.finfo(dtype).max)
        finite = plane[np.isfinite(plane)]
        if finite.size and max(-float(finite.min()), float(finite.max())) > limit:
            raise OutputError(f"{path}: values beyond {limit:g} do not fit into {dtype}; use float32")
    return np.ascontiguousarray(plane, dtype=dtype)


def refuse_missing(written: np.ndarray, path: Path) -> None:
    """RuntimeError if a slice was never written; `written` is (Z,) bool."""
    missing = np.flatnonzero(~written)
    if missing.size:
        names = ", ".join(str(z) for z in missing[:10]) + (", ..." if missing.size > 10 else "")
        raise RuntimeError(f"{path}: {missing.size} of {written.size} slices never written: {names}")
