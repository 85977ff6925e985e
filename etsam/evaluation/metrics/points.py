"""A mask against annotated points on membranes, where nobody has drawn a mask: positions of spikes, pores, lattices."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from etsam.errors import InputError
from etsam.volume import Slices

_COLUMNS = ("z_voxel", "y_voxel", "x_voxel")


@dataclass(frozen=True)
class PointScores:
    """How a mask and points agree.

    Attributes
    ----------
    points, mask_voxels
        Numbers of them.
    recall
        Share of points with a mask voxel within the nearer distance; 0 for an empty mask.
    far
        Share of mask voxels without a point within the farther distance; NaN for an empty mask. Membranes that carry no
        point count as far, so it is an upper limit of what is wrong.
    """

    points: int
    mask_voxels: int
    recall: float
    far: float


def read_points(path: Path) -> np.ndarray:
    """Points (N, 3) in voxels from a CSV file with the columns z_voxel, y_voxel, x_voxel.

    Raises
    ------
    InputError
        If it cannot be read, lacks a column, or holds no point.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV file ({error})") from error
    if not rows or not set(_COLUMNS) <= set(rows[0]):
        found = ", ".join(str(column) for column in rows[0]) if rows else "no rows"
        raise InputError(f"{path}: points are rows with the columns {', '.join(_COLUMNS)}; found: {found}")
    try:
        return np.array([[float(row[column]) for column in _COLUMNS] for row in rows])
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a position is no number ({error}); correct the file") from error


def score_points(mask: Slices, points: np.ndarray, near_voxels: float = 1.5, far_voxels: float = 3.0) -> PointScores:
    """Compare a mask (Z, Y, X) with points (N, 3) in voxels of it, voxel centres at whole numbers.

    Parameters
    ----------
    mask
        Above 0 is membrane.
    points
        (z, y, x).
    near_voxels, far_voxels
        Distances for `PointScores`.
    """
    planes = []
    for z in range(mask.shape[0]):
        rows, columns = np.nonzero(mask[z] > 0)
        planes.append(np.stack([np.full(len(rows), z), rows, columns], axis=1))
    voxels = np.concatenate(planes).astype(np.float32)
    if not len(voxels):
        return PointScores(len(points), 0, 0.0, float("nan"))
    to_mask, _ = cKDTree(voxels).query(points, distance_upper_bound=near_voxels + 1e-6)
    to_point, _ = cKDTree(points).query(voxels, distance_upper_bound=far_voxels + 1e-6)
    return PointScores(len(points), len(voxels), float(np.isfinite(to_mask).mean()), float(np.isinf(to_point).mean()))
