"""Planes of a tomogram for a page to scroll: reduced, bounded in memory, kept in a pass that exists anyway."""

import numpy as np

_SLICE_VOXELS = 32_000_000  # of all XY planes together: 36 slices of 928 x 960
_GREY_PIXELS = 10_000_000  # of all XY planes after reduction: 40 MB
_SIDE_VIEWS = 5  # for each of the two directions


class Samples:
    """XY planes at even distances, XZ and YZ planes, of a volume whose slices pass by in order.

    Where the planes lie is the same for every volume of a shape. Rows and columns of what is kept are means of
    `reduction` voxels each, so that memory is bounded: at most 60 MB, whatever the volume.

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
    xy
        Z -> (Y, X) float32, reduced.
    xz, yz
        Y -> (Z, X), and X -> (Z, Y), float32, reduced along both axes once the last slice has come.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        depth, height, width = shape
        self.z = evenly(depth, max(9, _SLICE_VOXELS // (height * width)))
        self.y, self.x = side_positions(height), side_positions(width)
        self.reduction = 1
        while len(self.z) * height * width > _GREY_PIXELS * self.reduction**2 and self.reduction < 4:
            self.reduction += 1
        self.xy: dict[int, np.ndarray] = {}
        self._rows: dict[int, list[np.ndarray]] = {y: [] for y in self.y}
        self._columns: dict[int, list[np.ndarray]] = {x: [] for x in self.x}

    def add(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of slice `z`, (Y, X); slices come in order."""
        if z in self.z:
            self.xy[z] = reduced(plane, self.reduction)
        for kept, lines in ((self._rows, plane), (self._columns, plane.T)):
            for position, rows in kept.items():
                rows.append(reduced(lines[position : position + 1], self.reduction, along_rows=False)[0])

    @property
    def xz(self) -> dict[int, np.ndarray]:
        """Y -> (Z, X)."""
        return {y: reduced(np.stack(rows), self.reduction, along_columns=False) for y, rows in self._rows.items()}

    @property
    def yz(self) -> dict[int, np.ndarray]:
        """X -> (Z, Y)."""
        return {x: reduced(np.stack(rows), self.reduction, along_columns=False) for x, rows in self._columns.items()}


def evenly(length: int, count: int) -> list[int]:
    """At most `count` positions of 0 to `length` - 1, at even distances, both ends among them."""
    return sorted({round(at) for at in np.linspace(0, length - 1, min(length, count))})


def side_positions(length: int) -> list[int]:
    """Where side views lie, the middle among them."""
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
