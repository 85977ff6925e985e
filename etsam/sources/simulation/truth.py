"""The measures of a simulated membrane, from its field of distances: what `etsam measure` is judged by."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

_BAND = 1.0  # voxels on either side of the middle, over which areas are averaged


@dataclass(frozen=True)
class MembraneTruth:
    """Measures of the middle of one membrane, within the tomogram.

    Attributes
    ----------
    number
        In the volume of instances.
    thickness_nm
        Between the middles of the two leaflets.
    area_nm2
        Of its middle.
    enclosed_nm3
        Volume within it, if it is closed and whole; None otherwise.
    mean_curvature_per_nm
        Mean over the area of (1 / r1 + 1 / r2) / 2, positive where it bulges away from its inside.
    nearest_earlier_mean_nm, nearest_earlier_min_nm
        From its middle to the middle of the nearest membrane of a lower number; None if there is none.
    """

    number: int
    thickness_nm: float
    area_nm2: float
    enclosed_nm3: float | None
    mean_curvature_per_nm: float
    nearest_earlier_mean_nm: float | None
    nearest_earlier_min_nm: float | None


def measured_truth(
    number: int,
    distance: np.ndarray,
    present: np.ndarray,
    at_border: bool,
    closed: bool,
    earlier: np.ndarray,
    corner: np.ndarray,
    thickness_angstrom: float,
    voxel_size_angstrom: float,
) -> tuple[MembraneTruth, np.ndarray]:
    """Measure a field of distances; gives the measures, and points (N, 3) float32 on the middle, in voxels of the grid.

    The area is that of all level sets within a voxel of the middle, on average: the sum of the gradient's length over
    the voxels between them (co-area formula), divided by their distance.

    Parameters
    ----------
    number
        Of the membrane.
    distance
        (z, y, x) float32: signed distance from the middle, voxels, negative inside.
    present
        (z, y, x) bool: where the membrane is.
    at_border
        Whether the membrane is cut by the tomogram's end.
    closed
        Whether it has an inside.
    earlier
        (M, 3): such points of all membranes before it. Fields are distances near their own membrane only.
    corner
        (3,): first voxel of the box that the field is of.
    thickness_angstrom, voxel_size_angstrom
        Of the bilayer and the grid.
    """
    nm = voxel_size_angstrom / 10
    at = np.stack(np.nonzero(present & (np.abs(distance) <= _BAND)), axis=1)
    slope, gradient, bend = _slope_and_bend(distance, at)
    middle = (at + corner - (distance[tuple(at.T)] / slope**2)[:, None] * gradient).astype(np.float32)
    area = max(float(slope.sum()) / (2 * _BAND), 1e-9)
    known = len(earlier) > 0 and len(middle) > 0
    away = KDTree(earlier).query(middle)[0] if known else np.zeros(0)
    # a voxel that the middle passes through counts in part
    inside = float(np.clip(0.5 - distance, 0, 1).sum()) if closed and not at_border and present.all() else None
    truth = MembraneTruth(
        number=number,
        thickness_nm=thickness_angstrom / 10,
        area_nm2=area * nm**2,
        enclosed_nm3=None if inside is None else inside * nm**3,
        mean_curvature_per_nm=float((slope * bend).sum() / max(float(slope.sum()), 1e-9)) / nm,
        nearest_earlier_mean_nm=float(np.average(away, weights=slope)) * nm if known else None,
        nearest_earlier_min_nm=float(away.min()) * nm if known else None,
    )
    return truth, middle


def _slope_and_bend(distance: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Length of the gradient (n,), the gradient (n, 3) and the mean curvature of the level set (n,), at voxels (n, 3).

    By central differences.
    """
    padded = np.pad(distance.astype(np.float64), 1, mode="reflect", reflect_type="odd")
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    flat, here = padded.ravel(), (at + 1) @ strides
    gradient = np.stack([(flat[here + step] - flat[here - step]) / 2 for step in strides], axis=1)
    hessian = np.empty((len(at), 3, 3))
    for one, a in enumerate(strides):
        hessian[:, one, one] = flat[here + a] + flat[here - a] - 2 * flat[here]
        for other in range(one):
            b = strides[other]
            mixed = flat[here + a + b] + flat[here - a - b] - flat[here + a - b] - flat[here - a + b]
            hessian[:, one, other] = hessian[:, other, one] = mixed / 4
    slope = np.maximum(np.linalg.norm(gradient, axis=1), 1e-6)
    normal = gradient / slope[:, None]
    along = np.einsum("ni,nij,nj->n", normal, hessian, normal)
    return slope, gradient, (np.einsum("nii->n", hessian) - along) / slope / 2
