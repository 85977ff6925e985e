"""Part of a volume that holds an image: without constant slices, a constant rim, and areas filled with one value.

Programs pad: tomograms of one series get the same size, tilt series are shifted and rotated, empty slices are left at
both ends. The value they put there says nothing of the specimen, and noise never repeats one value over an area.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from etsam.volume.slices import LazySlices, Slices

NO_MEMBRANE = -32.0
"""Logit of voxels without an image: SAM2's image predictor clamps logits to -32 and 32, so no threshold lies below."""

_SHORTEST_LINE = 8  # voxels of a row or column of which a rim is made; shorter ones are equal by chance
# side in voxels of an area that is padding if all of it has one value: of floats noise never makes one, of integers a
# saturated membrane may, which is not so thick
_AREA, _AREA_OF_INTEGERS = 8, 16
_AREAS_SHARE = 0.01  # of a volume's areas: fewer do not move percentiles or the skewness


@dataclass(frozen=True)
class Content:
    """Part of a volume that holds an image.

    Attributes
    ----------
    shape
        (Z, Y, X) of the whole volume.
    kept
        Numbers of its slices, in order.
    rows, columns
        First row (column) and the one after the last, voxels.
    """

    shape: tuple[int, ...]
    kept: tuple[int, ...]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Content":
        """All of a volume of this shape, (Z, Y, X)."""
        return cls(tuple(shape), tuple(range(shape[0])), (0, shape[1]), (0, shape[2]))

    @property
    def is_whole(self) -> bool:
        """True where nothing is left out."""
        return self.inner_shape == self.shape

    @property
    def inner_shape(self) -> tuple[int, int, int]:
        """(Z, Y, X) of what is kept."""
        return len(self.kept), self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def of(self, slices: Slices) -> LazySlices:
        """The kept part of such a volume."""
        if self.is_whole:
            return LazySlices.of(slices)
        rows, columns = slice(*self.rows), slice(*self.columns)
        return LazySlices(self.inner_shape, lambda z: slices[self.kept[z]][rows, columns])

    def around(self, inner: Slices, fill: float) -> Slices:
        """Slices of the whole shape, of which the kept part is `inner` and everything else `fill`."""
        if self.is_whole:
            return inner
        place = {z: number for number, z in enumerate(self.kept)}

        def plane(z: int) -> np.ndarray:
            whole = np.full(self.shape[1:], fill, np.float32)
            if z in place:
                whole[slice(*self.rows), slice(*self.columns)] = inner[place[z]]
            return whole

        return LazySlices(self.shape, plane)

    def narrowed(self, inner: "Content") -> "Content":
        """The part of this part that `inner`, which counts from its corner, keeps."""
        (top, _), (left, _) = self.rows, self.columns
        return Content(
            self.shape,
            tuple(self.kept[z] for z in inner.kept),
            (top + inner.rows[0], top + inner.rows[1]),
            (left + inner.columns[0], left + inner.columns[1]),
        )


class ContentSearch:
    """Finds the content of a volume, and what it is padded with, from its slices as they pass.

    Parameters
    ----------
    shape
        (Z, Y, X).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)
        self._kept: list[int] = []
        self._rim = [shape[1], shape[1], shape[2], shape[2]]  # constant lines at the top, bottom, left, right
        self._areas = 0
        self._values: Counter[float] = Counter()

    def add(self, z: int, plane: np.ndarray) -> None:
        """Look at slice `z`, (Y, X) of any real dtype."""
        if plane[0, 0] == plane[-1, -1] and (plane == plane[0, 0]).all():
            return
        self._kept.append(z)
        for side, lines in enumerate((plane, plane[::-1], plane.T, plane.T[::-1])):
            self._rim[side] = _constant_lines(lines, self._rim[side])
        area = _area_side(plane)
        self._areas += (plane.shape[0] // area) * (plane.shape[1] // area)
        values, counts = np.unique(_constant_areas(plane), return_counts=True)
        self._values.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    @property
    def content(self) -> Content:
        """Content; the whole volume if no slice holds an image, or nothing but lines would be left of it."""
        top, bottom, left, right = self._rim
        height, width = self.shape[1:]
        rows, columns = (top, height - bottom), (left, width - right)
        if not self._kept or any(
            last - first < min(side, _SHORTEST_LINE) for (first, last), side in ((rows, height), (columns, width))
        ):
            return Content.whole(self.shape)
        return Content(self.shape, tuple(self._kept), rows, columns)

    @property
    def padding(self) -> float | None:
        """Value that fills whole areas of the slices; None if there is none."""
        value, count = max(self._values.items(), key=lambda item: item[1], default=(0.0, 0))
        return float(value) if count >= max(1, _AREAS_SHARE * self._areas) else None


def padded_voxels(plane: np.ndarray, value: float) -> np.ndarray:
    """Voxels of a slice that are padding: of this value, in areas of it and connected with them; (Y, X) bool."""
    equal = plane == value
    areas = ndimage.minimum_filter(equal, _area_side(plane))
    if not areas.any():
        return np.zeros(plane.shape, bool)
    labels, _ = ndimage.label(equal)
    kept = np.unique(labels[areas])
    return np.isin(labels, kept[kept > 0])


def _constant_lines(lines: np.ndarray, most: int) -> int:
    """Number of lines at the start that hold one value each, at most `most`."""
    if lines.shape[1] < _SHORTEST_LINE:
        return 0
    count = 0
    while count < most and (lines[count] == lines[count, 0]).all():
        count += 1
    return count


def _area_side(plane: np.ndarray) -> int:
    return _AREA if plane.dtype.kind == "f" else _AREA_OF_INTEGERS


def _constant_areas(plane: np.ndarray) -> np.ndarray:
    """Values of those areas, on a grid, that hold one value only, shape (N,)."""
    side = _area_side(plane)
    height, width = (length - length % side for length in plane.shape)
    grid = plane[:height, :width]
    corner = grid[::side, ::side]
    alike = corner == grid[side // 3 :: side, side // 3 :: side]  # a diagonal first: that leaves few areas of noise
    alike &= corner == grid[side - 1 :: side, side - 1 :: side]
    if not alike.any():
        return corner[:0, :0].ravel()
    areas = grid.reshape(height // side, side, width // side, side).transpose(0, 2, 1, 3)[alike]
    values: np.ndarray = areas[:, 0, 0]
    return values[(areas == values[:, None, None]).all(axis=(1, 2))]
