"""Planes of a tomogram for a page to scroll: reduced, bounded in memory, kept in a pass that exists anyway."""

import numpy as np

_SLICE_VOXELS = 32_000_000  # of all XY planes together: 36 slices of 928 x 960
_GREY_PIXELS = 10_000_000  # of all XY planes after reduction: 20 MB
_SIDE_VIEWS = 5  # for each of the two directions
_CLIP_PERCENT = (0.05, 99.95)  # of what is kept: a hot pixel shall not take all of 16 bits


class Samples:
    """XY planes at even distances, XZ and YZ planes, of a volume whose slices pass by in order.

    Where the planes lie is the same for every volume of a shape. Rows and columns of what is kept are means of
    `reduction` voxels each, so that memory is bounded: at most 20 MB, and a row and a column
    of each slice for each side view.

    Parameters
    ----------
    shape
        (Z, Y, X).

    Attributes
    ----------
    z, y, x
        Where the planes lie, voxels, increasing.
    reduction
        Voxels, along Y and X, and in side views along Z, that make one pixel.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        depth, height, width = shape
        self.z = evenly(depth, max(9, _SLICE_VOXELS // (height * width)))
        self.y, self.x = side_positions(height), side_positions(width)
        self.reduction = 1
        while len(self.z) * height * width > _GREY_PIXELS * self.reduction**2 and self.reduction < 4:
            self.reduction += 1
        self._xy: dict[int, _Coarse] = {}
        self._rows: dict[int, list[np.ndarray]] = {y: [] for y in self.y}
        self._columns: dict[int, list[np.ndarray]] = {x: [] for x in self.x}

    def add(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of slice `z`, (Y, X); slices come in order."""
        if z in self.z:
            self._xy[z] = _Coarse(reduced(plane, self.reduction))
        for kept, lines in ((self._rows, plane), (self._columns, plane.T)):
            for position, rows in kept.items():
                rows.append(reduced(lines[position : position + 1], self.reduction, along_rows=False)[0])

    def plane(self, axis: str, at: int) -> np.ndarray:
        """XY plane at `z`, XZ plane (Z, X) at `y` or YZ plane (Z, Y) at `x`, reduced along both axes, float32."""
        if axis == "z":
            return self._xy[at].values()
        lines = (self._rows if axis == "y" else self._columns)[at]
        return reduced(np.stack(lines), self.reduction, along_columns=False)

    def levels(self, low_percent: float, high_percent: float) -> tuple[float, float]:
        """Two percentiles of the XY planes; 0 and 1 if there is nothing between them."""
        values = np.concatenate([kept.values()[::4, ::4].ravel() for kept in self._xy.values()] or [np.zeros(1)])
        values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
        low, high = (float(value) for value in np.percentile(values, (low_percent, high_percent)))
        return (low, high) if high > low else (low, low + 1.0)


class _Coarse:
    """A plane in 16 bits a pixel, between the values that nearly all of it has.

    What is no number is the lowest of them; a plane without any number stays one.
    """

    def __init__(self, plane: np.ndarray) -> None:
        finite = plane[np.isfinite(plane)]
        low, high = np.percentile(finite, _CLIP_PERCENT) if finite.size else (0.0, 0.0)
        self._low, self._step = float(low), max(float(high - low), 1e-30) / np.iinfo(np.uint16).max
        clipped = np.clip(np.nan_to_num(plane, nan=low), low, high)
        self._kept = np.round((clipped - low) / self._step).astype(np.uint16)
        if not finite.size:
            self._low = float("nan")  # and so are all values

    def values(self) -> np.ndarray:
        return self._kept.astype(np.float32) * np.float32(self._step) + np.float32(self._low)


def evenly(length: int, count: int) -> list[int]:
    """At most `count` positions of 0 to `length` - 1, at even distances, both ends among them."""
    return sorted({round(at) for at in np.linspace(0, length - 1, min(length, count))})


def side_positions(length: int) -> list[int]:
    """Places of side views, the middle among them."""
    return sorted({length * (number + 1) // (_SIDE_VIEWS + 1) for number in range(_SIDE_VIEWS)})


def reduced(plane: np.ndarray, by: int, *, along_rows: bool = True, along_columns: bool = True) -> np.ndarray:
    """Means of `by` pixels along both axes, (Y, X) float32; what is left over at an end makes a pixel of its own."""
    out = np.asarray(plane, np.float32)
    for axis, wanted in ((0, along_rows), (1, along_columns)):
        if wanted and by > 1:
            starts = np.arange(0, out.shape[axis], by)
            counts = np.diff(np.append(starts, out.shape[axis]))
            sums = np.add.reduceat(out, starts, axis=axis)
            out = np.asarray(sums / np.expand_dims(counts, 1 - axis), np.float32)
    return out
