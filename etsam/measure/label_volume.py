"""The voxels of a mask with the numbers of their membranes, slice by slice."""

import numpy as np
from scipy.spatial import KDTree

from etsam.measure.membranes import Membranes
from etsam.postprocess.components import StreamedComponents
from etsam.volume.slices import LazySlices

_SEVERAL = -1


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
    pairs = np.unique(np.stack([of_point, numbers], axis=1)[numbers > 0], axis=0)
    table = np.zeros(components.count + 1, np.int32)
    table[pairs[:, 0]] = pairs[:, 1]
    component, count = np.unique(pairs[:, 0], return_counts=True)
    table[component[count > 1]] = _SEVERAL
    asked = (table[of_point] == _SEVERAL) & (numbers > 0)
    tree = KDTree(surface.points[asked]) if asked.any() else None
    names = numbers[asked]

    def labels(plane: int) -> np.ndarray:
        found = components.mapped(plane, table)
        if tree is not None:
            y, x = np.nonzero(found == _SEVERAL)
            if len(y):
                _, nearest = tree.query(np.stack([np.full(len(y), plane), y, x], axis=1), workers=workers)
                found[y, x] = names[nearest]
        return found.astype(np.uint16)

    return LazySlices(tuple(mask.shape), labels)
