"""Normals of a surface, voxel by voxel, and the recall of each direction."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

from etsam.evaluation.metrics.results import InclinationRow
from etsam.evaluation.metrics.surface import SurfaceVoxels
from etsam.threads import in_order
from etsam.volume import Slices

THETA_EDGES_DEGREES = tuple(range(0, 91, 10))
"""0: the normal runs along Z, the membrane lies flat in XY, where the missing wedge hides it; 90: it stands upright."""

SIGMA_VOXELS = 2.0
"""Of the Gaussian, in units of the largest voxel side; see the tests for the angles this gives."""

_TRUNCATE = 3.0  # radius of the Gaussian in sigmas; the rest has 0.3 % of the weight


def smoothed_slices(
    mask: Slices,
    sigma_voxels: tuple[float, float, float],
    annotated: Slices | None = None,
    workers: int | None = None,
) -> Iterator[np.ndarray]:
    """A mask smoothed by a Gaussian, slice by slice, with one Gaussian's depth of slices in memory.

    Voxels that nobody annotated have no weight (normalised convolution); beyond a face the outermost slice goes on.

    Parameters
    ----------
    mask
        (Z, Y, X) bool.
    sigma_voxels
        Of the Gaussian, (z, y, x) in voxels.
    annotated
        (Z, Y, X) bool; None: everywhere.
    workers
        Threads, as of `etsam.threads.worker_count`.

    Yields
    ------
    np.ndarray
        (Y, X) float32, 0..1.
    """
    depth, area = mask.shape[0], int(np.prod(mask.shape[1:]))
    radius = int(_TRUNCATE * sigma_voxels[0] + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_voxels[0]) ** 2)
    weights /= weights.sum()

    def blurred(plane: np.ndarray) -> np.ndarray:
        smooth = gaussian_filter(plane.astype(np.float32), sigma_voxels[1:], mode="nearest", truncate=_TRUNCATE)
        return smooth.ravel()

    def blurred_planes(planes: tuple[np.ndarray, np.ndarray | None]) -> tuple[np.ndarray, np.ndarray | None]:
        plane, known = planes
        return (blurred(plane), None) if known is None else (blurred(plane & known), blurred(known))

    planes = ((mask[z], None if annotated is None else annotated[z]) for z in range(depth))
    blurs = in_order(blurred_planes, planes, workers)
    size = len(weights)
    ring = np.zeros((size, area), np.float32)  # slice z lies in row z % size
    norms = None if annotated is None else np.zeros_like(ring)
    following = 0
    for z in range(depth):
        while following <= min(z + radius, depth - 1):
            ring[following % size], norm = next(blurs)
            if norms is not None:
                norms[following % size] = norm
            following += 1
        shares = np.zeros(size, np.float32)
        np.add.at(shares, np.clip(np.arange(z - radius, z + radius + 1), 0, depth - 1) % size, weights)
        total = shares @ ring
        if norms is not None:
            weight = shares @ norms
            np.divide(total, weight, out=total, where=weight > 0)
        yield total.reshape(mask.shape[1:])


def angles_to_z(
    voxels: SurfaceVoxels,
    mask: Slices,
    voxel_size: tuple[float, float, float],
    annotated: Slices | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Angle between Z and the normal of the surface, at each surface voxel.

    The normal is the gradient of the Gaussian-smoothed mask. It is taken where it is steepest: at the voxel or one of
    its six neighbours, because in the middle of a thin sheet it vanishes.

    Parameters
    ----------
    voxels
        Surface voxels of `mask`.
    mask
        (Z, Y, X) bool.
    voxel_size
        (z, y, x), in any one unit.
    annotated
        (Z, Y, X) bool; None: everywhere.
    workers
        Threads, as of `etsam.threads.worker_count`.

    Returns
    -------
    np.ndarray
        (voxels,) float32, degrees, 0 to 90; NaN where the smoothed mask is level.
    """
    depth, height, width = mask.shape
    sigma = SIGMA_VOXELS * max(voxel_size)
    sigmas = sigma / voxel_size[0], sigma / voxel_size[1], sigma / voxel_size[2]
    smooth = smoothed_slices(mask, sigmas, annotated, workers)
    row = width + 2  # of a slice with one pixel around it

    def flat(z: int) -> np.ndarray:
        y, x = voxels.yx[voxels.rows[z] : voxels.rows[z + 1]].astype(np.int64).T
        return (y + 1) * row + x + 1

    def looked_at(z: int) -> np.ndarray:
        """Pixels of slice `z` whose slope some surface voxel asks for, (n,) flat positions in the padded slice."""
        asked = np.zeros((height + 2) * row, bool)
        for index in range(max(z - 1, 0), min(z + 2, depth)):
            here = flat(index)
            for step in (0, -row, row, -1, 1) if index == z else (0,):
                asked[here + step] = True
        inside = np.zeros((height + 2, row), bool)
        inside[1:-1, 1:-1] = asked.reshape(inside.shape)[1:-1, 1:-1]
        return np.flatnonzero(inside)

    slopes = _slopes(smooth, depth, voxel_size, looked_at)
    window: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    angles = np.full(len(voxels), np.nan, np.float32)
    for z in range(depth):
        while len(window) == 0 or max(window) < min(z + 1, depth - 1):
            window[max(window, default=-1) + 1] = next(slopes)
        window.pop(z - 2, None)
        here = flat(z)
        around = [(z, 0), (z - 1, 0), (z + 1, 0), (z, -row), (z, row), (z, -1), (z, 1)]
        steepest, cosines = np.zeros(len(here), np.float32), np.full(len(here), np.nan, np.float32)
        for index, step in around:
            if index in window:
                found = window[index][0][here + step]
                better = np.flatnonzero(found > steepest)
                steepest[better] = found[better]
                cosines[better] = window[index][1][here[better] + step]
        angles[voxels.rows[z] : voxels.rows[z + 1]] = np.degrees(np.arccos(cosines))
    return angles


def _slopes(
    smooth: Iterator[np.ndarray],
    depth: int,
    voxel_size: tuple[float, float, float],
    looked_at: Callable[[int], np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Length of the gradient in each slice, and the share of it that points along Z.

    Both are float32 and flat, of a slice with one pixel around it, and 0 but for the pixels of `looked_at(z)`. Central
    differences, one-sided at the faces; along an axis of one voxel there is no slope.
    """
    below, plane = None, next(smooth)
    height, width = plane.shape
    for z in range(depth):
        above = next(smooth) if z + 1 < depth else None
        low, high = (plane if below is None else below), (plane if above is None else above)
        steps = 1 if below is None or above is None else 2
        padded = looked_at(z)
        y, x = padded // (width + 2) - 1, padded % (width + 2) - 1
        here = y * width + x
        rise = (high.ravel()[here] - low.ravel()[here]) / np.float32(steps * voxel_size[0])
        squares = rise**2
        for side, at, last, stride in ((voxel_size[1], y, height - 1, width), (voxel_size[2], x, width - 1, 1)):
            before, after = at > 0, at < last
            difference = plane.ravel()[here + stride * after] - plane.ravel()[here - stride * before]
            squares += (difference * np.where(before & after, np.float32(0.5 / side), np.float32(1 / side))) ** 2
        length = np.sqrt(squares)
        cosine = np.divide(np.abs(rise), length, out=np.zeros_like(length), where=length > 0)
        out = np.zeros((2, (height + 2) * (width + 2)), np.float32)
        out[0, padded], out[1, padded] = length, np.minimum(cosine, 1)
        yield out[0], out[1]
        if above is not None:
            below, plane = plane, above


def inclination_counts(angles: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Surface voxels in each bin of `THETA_EDGES_DEGREES`, and how many of them are hits, (9, 2) int64.

    Parameters
    ----------
    angles
        (voxels,) degrees, 0 to 90; NaN is in no bin.
    hits
        (voxels,) bool.
    """

    def histogram(values: np.ndarray) -> np.ndarray:
        from_edge_up = [np.count_nonzero(values >= np.float32(edge)) for edge in THETA_EDGES_DEGREES[:-1]]
        too_large = np.count_nonzero(values > np.nextafter(np.float32(THETA_EDGES_DEGREES[-1]), np.float32(np.inf)))
        return -np.diff([*from_edge_up, too_large])

    return np.stack([histogram(angles), histogram(angles[hits])], axis=1)


def inclination_table(truth: np.ndarray, prediction: np.ndarray) -> tuple[InclinationRow, ...]:
    """Recall and precision of surfaces by inclination.

    Parameters
    ----------
    truth, prediction
        `inclination_counts` of both surfaces, a hit being a voxel within the tolerance of the other surface.
    """
    edges = itertools.pairwise(THETA_EDGES_DEGREES)
    return tuple(
        InclinationRow(
            float(lower),
            float(upper),
            _share(*of_truth),
            _share(*of_prediction),
            int(of_truth[0]),
            int(of_prediction[0]),
        )
        for (lower, upper), of_truth, of_prediction in zip(edges, truth, prediction, strict=True)
    )


def _share(voxels: int, hits: int) -> float:
    return float(hits / voxels) if voxels else float("nan")
