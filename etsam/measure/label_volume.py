"""The voxels of a mask with the numbers of their membranes, slice by slice."""

import numpy as np
from scipy.spatial import KDTree

from etsam.measure.membranes import Membranes, may_be_within
from etsam.postprocess.components import StreamedComponents
from etsam.volume.slices import LazySlices

_SEVERAL = -1
_BLOCK, _AROUND = 32, 8  # slices that are searched at a time, and beside them: nearly all points are as near


class _Nearest:
    """Nearest of some of the points of a surface, which are in the order of their slices.

    Searched in a few slices at a time: a tree of all points of a large tomogram would take a gigabyte.

    Parameters
    ----------
    points, slices
        (N, 3) positions, and the slice that each belongs to, ascending.
    chosen
        Indices of those that are asked for, ascending.
    workers
        Threads of the search.
    """

    def __init__(self, points: np.ndarray, slices: np.ndarray, chosen: np.ndarray, workers: int) -> None:
        self._points, self._slices, self._chosen, self._workers = points, slices[chosen], chosen, workers
        self._block, self._here, self._tree = -1, chosen[:0], KDTree(np.zeros((0, 3)))

    def __call__(self, plane: int, at: np.ndarray) -> np.ndarray:
        """Index (n,) of the point nearest to each position (n, 3) of a slice."""
        if plane // _BLOCK != self._block:
            self._block = plane // _BLOCK
            self._here = self._between(self._block * _BLOCK - _AROUND, (self._block + 1) * _BLOCK + _AROUND)
            self._tree = KDTree(self._points[self._here])
        if not len(self._here):  # a part of the mask that its membranes' points do not come near
            return self._chosen[KDTree(self._points[self._chosen]).query(at, workers=self._workers)[1]]
        distance, nearest = self._tree.query(at, workers=self._workers)
        found, within = self._here[nearest], _AROUND
        while (far := np.flatnonzero(distance > within)).size:  # a nearer one may lie in slices that were not searched
            within *= 4
            some = far[distance[far] <= within]
            if len(some):
                found[some] = self._of_all(plane, at[some], within)
                distance[some] = 0
        return found

    def _between(self, first: int, last: int) -> np.ndarray:
        """Chosen points of some slices, and of one more on either side: a point lies within a voxel of its own."""
        return self._chosen[slice(*np.searchsorted(self._slices, (first - 1, last + 1)))]

    def _of_all(self, plane: int, at: np.ndarray, within: int) -> np.ndarray:
        """As above, where there is a point within so many voxels."""
        here = self._between(plane - within, plane + within + 1)
        close = here[may_be_within(within, self._points[here], at)]
        return close[KDTree(self._points[close]).query(at, workers=self._workers)[1]]


def label_volume(mask: np.ndarray, membranes: Membranes, *, workers: int = 1) -> LazySlices:
    """Number of the membrane that each voxel of a mask belongs to.

    A connected part of the mask with one membrane in it gets that number as a whole; in one with several, each voxel
    gets that of the nearest point of their mid-surfaces.

    Parameters
    ----------
    mask
        (Z, Y, X) uint8.
    membranes
        Of that mask.
    workers
        Threads of the search.

    Returns
    -------
    LazySlices
        (Z, Y, X) uint16, 0 where there is no membrane; OverflowError if there are more than 65535.
    """
    if membranes.count > np.iinfo(np.uint16).max:
        raise OverflowError(f"{membranes.count} membranes do not fit into 16 bits")
    components = StreamedComponents(mask)
    surface, numbers = membranes.surface, membranes.numbers
    z, flat = np.divmod(surface.voxels, mask.shape[1] * mask.shape[2])
    rows = np.searchsorted(z, np.arange(len(mask) + 1))
    of_point = np.zeros(len(surface), np.int64)
    for plane in range(len(mask)):
        own = slice(rows[plane], rows[plane + 1])
        if own.start < own.stop:
            of_point[own] = components.labels(plane).ravel()[flat[own]]
    part, number = np.divmod(np.unique((of_point * (membranes.count + 1) + numbers)[numbers > 0]), membranes.count + 1)
    table = np.zeros(components.count + 1, np.int32)
    table[part] = number
    component, count = np.unique(part, return_counts=True)
    table[component[count > 1]] = _SEVERAL
    nearest = _Nearest(surface.points, z, np.flatnonzero((table[of_point] == _SEVERAL) & (numbers > 0)), workers)

    def labels(plane: int) -> np.ndarray:
        found = components.mapped(plane, table)
        y, x = np.nonzero(found == _SEVERAL)
        if len(y):
            found[y, x] = numbers[nearest(plane, np.stack([np.full(len(y), plane), y, x], axis=1))]
        return found.astype(np.uint16)

    return LazySlices(tuple(mask.shape), labels)
