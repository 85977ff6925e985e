"""Axes: a tomogram gone through along Z, Y or X, so that membranes are seen from other sides.

A volume is turned slab by slab: memory is that of a slab, the turned volume waits in a scratch file. Along Y the slices
are (Z, X), along X (Y, Z): the axis changes places with Z, which undone is the same again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from etsam.errors import ConfigError
from etsam.inference.logit_store import open_store
from etsam.volume.slices import LazySlices, Slices

AXES = "zyx"

WEIGHTS = {"z": 1.0, "y": 1.0, "x": 1.0}
"""TODO"""

_SLAB_BYTES = 64_000_000  # of a volume while it is turned; our choice


def check_axes(axes: Sequence[str]) -> tuple[str, ...]:
    """Axes without repetition, each `z`, `y` or `x`.

    Raises
    ------
    ConfigError
        If there is none, another one, or one twice.
    """
    found = tuple(axes)
    if isinstance(axes, str) or not found or len(set(found)) < len(found) or not set(found) <= set(AXES):
        shown = axes if isinstance(axes, str) else f"[{','.join(map(str, found))}]"
        raise ConfigError(f"axes={shown} is not allowed; write one or more of z, y and x, each once, such as [z,y,x].")
    return found


def check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """Weights of all axes; those that are not given are the default.

    Raises
    ------
    ConfigError
        If one is not above 0, or of no axis.
    """
    given = {str(axis): float(weight) for axis, weight in (weights or {}).items()}
    wrong = next((axis for axis, weight in given.items() if axis not in AXES or not weight > 0), None)
    if wrong is not None:
        raise ConfigError(f"axis_weights.{wrong}={given[wrong]:g} is not allowed; of z, y and x each, above 0.")
    return WEIGHTS | given


def turned_shape(shape: Sequence[int], axis: str) -> tuple[int, int, int]:
    """Shape of a volume (Z, Y, X) whose slices are those across an axis; of a turned one, as it was."""
    sides = list(shape)
    number = AXES.index(axis)
    sides[0], sides[number] = sides[number], sides[0]
    depth, height, width = sides
    return depth, height, width


def turned(slices: Slices, axis: str, folder: Path | None = None, dtype: type[np.floating] = np.float32) -> Slices:
    """A volume whose slices are those across an axis, which changes places with Z; a turned one, as it was.

    Parameters
    ----------
    slices
        (Z, Y, X) float32; read once, in order.
    axis
        `z`: the volume as it is.
    folder
        Of the scratch file; None: it is held in memory.
    dtype
        In the scratch file.

    Raises
    ------
    OutputError
        If the folder is not writable or full.
    """
    if axis == "z":
        return slices
    depth, height, width = slices.shape
    planes, across = (height, width) if axis == "y" else (width, height)
    slab = min(depth, max(1, _SLAB_BYTES // (4 * height * width)))
    starts = range(0, depth, slab)
    store = open_store((len(starts) * planes, slab, across), folder, dtype)  # of each slab a part of each new slice
    block = np.zeros((slab, height, width), dtype)
    for number, start in enumerate(starts):
        for z in range(start, min(depth, start + slab)):
            block[z - start] = slices[z]
        for place in range(planes):
            store[number * planes + place] = block[:, place] if axis == "y" else block[:, :, place]

    def plane(place: int) -> np.ndarray:
        parts = [store[number * planes + place] for number in range(len(starts))]
        found = np.concatenate(parts)[:depth].astype(np.float32, copy=False)
        return found if axis == "y" else np.ascontiguousarray(found.T)

    return LazySlices(turned_shape(slices.shape, axis), plane)


def turned_bytes(shape: Sequence[int], axis: str, dtype: type[np.floating] = np.float32) -> int:
    """Bytes of the scratch file of `turned`."""
    if axis == "z":
        return 0
    depth, height, width = shape
    slab = min(depth, max(1, _SLAB_BYTES // (4 * height * width)))
    return -(-depth // slab) * slab * height * width * np.dtype(dtype).itemsize
