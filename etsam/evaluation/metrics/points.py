"""A mask against annotated points on membranes, where nobody has drawn a mask: positions of spikes, pores, lattices."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from etsam.errors import ConfigError, InputError
from etsam.volume import Slices

_COLUMNS = (("z_voxel", "y_voxel", "x_voxel"), ("z", "y", "x"))
"""Names of columns, in lower case; pickers write the short ones."""


@dataclass(frozen=True)
class PointScores:
    """Agreement of a mask with points.

    Attributes
    ----------
    points, mask_voxels
        Numbers of them.
    recall
        Share of points with a mask voxel within the nearer distance; 0 for an empty mask.
    far
        Share of mask voxels without a point within the farther distance; NaN for an empty mask. Membranes that carry no
        point count as far, so it is an upper limit of what is wrong.
    outside
        Number of points that lie outside of the volume.
    """

    points: int
    mask_voxels: int
    recall: float
    far: float
    outside: int = 0


def read_points(path: Path) -> np.ndarray:
    """Points (N, 3) in voxels from a CSV file with the columns z_voxel, y_voxel, x_voxel, or z, y, x, in any order.

    Raises
    ------
    InputError
        If it cannot be read, lacks a column, holds no point, or a position that is no finite number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV file ({error})") from error
    given = {str(name).strip().lower(): name for name in rows[0][1]} if rows else {}
    columns = next((names for names in _COLUMNS if set(names) <= set(given)), None)
    if columns is None:
        allowed, found = " or ".join(", ".join(names) for names in _COLUMNS), ", ".join(map(str, given.values()))
        raise InputError(f"{path}: points are rows with the columns {allowed}, in voxels; found: {found or 'no rows'}")
    points = []
    for line, row in rows:
        typed = [row[given[column]] for column in columns]
        try:
            point = [float(one) for one in typed]
        except (TypeError, ValueError):  # a short row has None
            point = [math.nan]
        if not all(map(math.isfinite, point)):
            found = ", ".join(f"{column}={one or ''}" for column, one in zip(columns, typed, strict=True))
            raise InputError(f"{path}, line {line}: {found} is no position; correct the line, or remove it")
        points.append(point)
    return np.array(points)


def score_points(mask: Slices, points: np.ndarray, near_voxels: float = 1.5, far_voxels: float = 3.0) -> PointScores:
    """Compare a mask (Z, Y, X) with points (N, 3) in voxels of it, voxel centres at whole numbers.

    Parameters
    ----------
    mask
        What is not 0 is membrane.
    points
        (z, y, x).
    near_voxels, far_voxels
        Distances for `PointScores`: finite, from 0 up.

    Raises
    ------
    ConfigError
        If a distance is none.
    InputError
        If all points lie outside of the mask.
    """
    for name, distance in (("near_voxels", near_voxels), ("far_voxels", far_voxels)):
        if not 0 <= distance < math.inf:
            raise ConfigError(f"{name}={distance:g} is no distance; a finite number from 0 up is needed")
    edges = np.array(mask.shape) - 0.5
    outside = int(((points < -0.5) | (points > edges)).any(axis=1).sum())
    if outside == len(points) > 0:
        sides = " x ".join(map(str, mask.shape))
        raise InputError(
            f"all {outside} points lie outside of the mask ({sides} voxels, Z x Y x X): they are in Å, or of another "
            "tomogram; divide positions in Å by the voxel size"
        )
    planes = []
    for z in range(mask.shape[0]):
        rows, columns = np.nonzero(mask[z] != 0)
        planes.append(np.stack([np.full(len(rows), z), rows, columns], axis=1))
    voxels = np.concatenate(planes).astype(np.float32)
    if not len(voxels):
        return PointScores(len(points), 0, 0.0, float("nan"), outside)
    to_mask, _ = cKDTree(voxels).query(points, distance_upper_bound=near_voxels + 1e-6)
    to_point, _ = cKDTree(points).query(voxels, distance_upper_bound=far_voxels + 1e-6)
    recall, far = float(np.isfinite(to_mask).mean()), float(np.isinf(to_point).mean())
    return PointScores(len(points), len(voxels), recall, far, outside)
