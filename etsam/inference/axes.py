"""Axes: a tomogram gone through along Z, Y or X, so that membranes are seen from other sides.

A volume is turned slab by slab: memory is that of a slab, the turned volume waits in a scratch file. Along Y the slices
are (Z, X), along X (Y, Z): the axis changes places with Z, which undone is the same again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etsam.errors import ConfigError
from etsam.inference.ensemble import Averaged, average_of, mean_of, spread_of
from etsam.inference.logit_store import open_store
from etsam.inference.tiles import BLEND_LIMIT
from etsam.volume.slices import LazySlices, Slices

AXES = "zyx"

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


@dataclass(frozen=True)
class SideViews:
    """Weight of logits along Y and X beside those along Z.

    From the side the missing wedge hides membranes, and the networks were trained on slices across Z, so that a side
    view that says no says little, while one that says yes is evidence. A mean of all, weighted or not, was measured to
    lose: logits are z + weight * (max(y, floor) + shift) + weight * (max(x, floor) + shift). Y and X weigh the same,
    for files do not say which one the tilt axis was.

    Attributes
    ----------
    weight
        Of each side view.
    floor
        Logit below which a side view counts no further.
    shift
        At a side view's logit of minus this, it changes nothing.

    The numbers are those of least log loss of nano on simulated tomograms, benchmarks/2026-11-better_masks-28.md.
    """

    weight: float = 0.15
    floor: float = -6.0
    shift: float = 2.5

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"weights.side_views: the weight {self.weight:g} has to be above 0.")


def fused(along: Mapping[str, Slices], side_views: SideViews = SideViews()) -> Slices:
    """Logits of all axes together.

    Parameters
    ----------
    along
        Axis -> logits (Z, Y, X) float32.
    side_views
        What Y and X count beside Z. Without Z it is their mean.

    Returns
    -------
    Slices
        (Z, Y, X) float32; `Averaged` if there are several. Their spread is that along Z, and that of one side view or
        the other: how far Z and a side view differ says more of the wedge than of the mask.
    """
    if len(along) == 1 or "z" not in along:
        return mean_of(list(along.values()))
    straight = LazySlices.of(along["z"]).keep_last()
    sides = [along[axis] for axis in sorted(along.keys() - {"z"})]
    weight, floor, shift = (np.float32(number) for number in (side_views.weight, side_views.floor, side_views.shift))
    weight *= len(sides)  # of which the mean is taken

    def with_side(side: Slices) -> Averaged:
        def plane(z: int) -> np.ndarray:
            added = np.clip(side[z], floor, BLEND_LIMIT) + shift
            return np.clip(straight[z], -BLEND_LIMIT, BLEND_LIMIT) + weight * added

        return Averaged(LazySlices(straight.shape, plane), spread_of(along["z"]))

    return average_of([with_side(side) for side in sides])


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
    slab = _slab_slices(slices.shape)
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


def _slab_slices(shape: Sequence[int]) -> int:
    """Slices of a volume (Z, Y, X) that are turned together."""
    depth, height, width = shape
    return min(depth, max(1, _SLAB_BYTES // (4 * height * width)))


def turned_bytes(shape: Sequence[int], axis: str, dtype: type[np.floating] = np.float32) -> int:
    """Bytes of the scratch file of `turned`."""
    if axis == "z":
        return 0
    depth, height, width = shape
    slab = _slab_slices(shape)
    return -(-depth // slab) * slab * height * width * np.dtype(dtype).itemsize
