"""Which way a surface faces, voxel by voxel, and how well each direction is found."""

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

from etsam.evaluation.surface import SurfaceVoxels, within
from etsam.io import Slices

THETA_EDGES_DEGREES = tuple(range(0, 91, 10))
"""0: the normal runs along Z, so the membrane lies flat in XY, where the missing wedge hides it; 90: it stands upright."""

SIGMA_VOXELS = 2.0
"""Of the Gaussian, in units of the largest voxel side; see the tests for the angles this gives."""

_TRUNCATE = 3.0  # radius of the Gaussian in sigmas; the rest has 0.3 % of the weight
_REACH = 2  # slices on each side: one to the neighbour whose gradient is taken, one more for that gradient
_CANDIDATES = ((0, 0, 0), (-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))


def smoothed_slices(
    mask: Slices, sigma_voxels: tuple[float, float, float], annotated: Slices | None = None
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

    Yields
    ------
    np.ndarray
        (Y, X) float32, 0..1.
    """
    depth = mask.shape[0]
    radius = int(_TRUNCATE * sigma_voxels[0] + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_voxels[0]) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)

    def blurred(plane: np.ndarray) -> np.ndarray:
        return gaussian_filter(plane.astype(np.float32), sigma_voxels[1:], mode="nearest", truncate=_TRUNCATE)

    known: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    for z in range(depth):
        total = np.zeros(mask.shape[1:], np.float32)
        weight: np.ndarray | None = None if annotated is None else np.zeros_like(total)
        for index in [index for index in known if index < z - radius]:
            del known[index]
        for step, share in zip(range(-radius, radius + 1), weights, strict=True):
            index = min(max(z + step, 0), depth - 1)
            if index not in known:
                if annotated is None:
                    known[index] = blurred(mask[index]), None
                else:
                    known[index] = blurred(mask[index] & annotated[index]), blurred(annotated[index])
            part, norm = known[index]
            total += share * part
            if weight is not None:
                weight += share * norm  # type: ignore[operator]
        yield total if weight is None else np.divide(total, weight, out=total, where=weight > 0)


def angles_to_z(
    voxels: SurfaceVoxels,
    mask: Slices,
    voxel_size: tuple[float, float, float],
    annotated: Slices | None = None,
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

    Returns
    -------
    np.ndarray
        (voxels,) float32, degrees, 0 to 90; NaN where the smoothed mask is level.
    """
    depth = mask.shape[0]
    sigma = SIGMA_VOXELS * max(voxel_size)
    planes = smoothed_slices(mask, (sigma / voxel_size[0], sigma / voxel_size[1], sigma / voxel_size[2]), annotated)
    window: dict[int, np.ndarray] = {}
    angles = np.full(len(voxels), np.nan, np.float32)
    following = 0
    for z in range(depth):
        while following <= min(z + _REACH, depth - 1):
            window[following] = next(planes)
            following += 1
        window.pop(z - _REACH - 1, None)
        rows = slice(voxels.rows[z], voxels.rows[z + 1])
        y, x = voxels.yx[rows].astype(np.int64).T
        if len(y):
            angles[rows] = _steepest(window, z, y, x, mask.shape, voxel_size)
    return angles


def _steepest(
    window: dict[int, np.ndarray],
    z: int,
    y: np.ndarray,
    x: np.ndarray,
    shape: tuple[int, ...],
    voxel_size: tuple[float, float, float],
) -> np.ndarray:
    """Angle to Z of the steepest gradient at (z, y, x) and around, (n,) degrees."""
    steepest = np.zeros(len(y), np.float32)
    cosine = np.full(len(y), np.nan, np.float32)
    for dz, dy, dx in _CANDIDATES:
        at = (min(max(z + dz, 0), shape[0] - 1), np.clip(y + dy, 0, shape[1] - 1), np.clip(x + dx, 0, shape[2] - 1))
        slope_z = _difference(window, at, 0, shape, voxel_size)
        slope_y = _difference(window, at, 1, shape, voxel_size)
        slope_x = _difference(window, at, 2, shape, voxel_size)
        length = np.sqrt(slope_z**2 + slope_y**2 + slope_x**2)
        better = length > steepest
        steepest[better] = length[better]
        cosine[better] = np.abs(slope_z[better]) / length[better]
    return np.degrees(np.arccos(np.minimum(cosine, 1)))


def _difference(
    window: dict[int, np.ndarray],
    at: tuple[int, np.ndarray, np.ndarray],
    axis: int,
    shape: tuple[int, ...],
    voxel_size: tuple[float, float, float],
) -> np.ndarray:
    """Slope along an axis at positions `at`: central difference, one-sided at the faces."""
    low, high = list(at), list(at)
    low[axis], high[axis] = np.maximum(at[axis] - 1, 0), np.minimum(at[axis] + 1, shape[axis] - 1)
    steps = np.maximum(high[axis] - low[axis], 1)  # an axis of one voxel has no slope
    rise = window[int(high[0])][high[1], high[2]] - window[int(low[0])][low[1], low[2]]
    return rise / (steps * voxel_size[axis])


def theta_table(
    truth_angles: np.ndarray,
    truth_distances: np.ndarray,
    prediction_angles: np.ndarray,
    prediction_distances: np.ndarray,
    tolerance: float,
) -> tuple[tuple[float, float, float, float, int], ...]:
    """How well surfaces of each inclination are found.

    Parameters
    ----------
    truth_angles, prediction_angles
        Of the surface voxels' normals to Z, degrees.
    truth_distances, prediction_distances
        Of the surface voxels of each to the surface of the other.
    tolerance
        In the unit of the distances.

    Returns
    -------
    tuple
        Rows (lower degrees, upper degrees, recall, precision, surface voxels of the truth). Recall: share of the
        truth's surface in the bin that lies within the tolerance of the predicted surface. Precision: the same of the
        predicted surface, by its own normals. NaN for empty bins.
    """
    hits = within(truth_distances, tolerance), within(prediction_distances, tolerance)
    rows = []
    for lower, upper in zip(THETA_EDGES_DEGREES[:-1], THETA_EDGES_DEGREES[1:], strict=True):
        last = upper == THETA_EDGES_DEGREES[-1]
        shares, counts = [], []
        for angles, hit in zip((truth_angles, prediction_angles), hits, strict=True):
            here = (angles >= lower) & ((angles < upper) | last)  # NaN is in no bin
            counts.append(int(np.count_nonzero(here)))
            shares.append(float(np.count_nonzero(hit & here) / counts[-1]) if counts[-1] else float("nan"))
        rows.append((float(lower), float(upper), shares[0], shares[1], counts[0]))
    return tuple(rows)
