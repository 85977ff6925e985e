"""Points in the middle of membranes, found slab by slab in a mask.

The normal at a voxel is the direction in which the smoothed mask bends down most (its Hessian's lowest eigenvalue).
From the voxel one walks along it, both ways, to the ends of the mask: a voxel less than a voxel from the middle between
them gives a point of the mid-surface. There are 1.6 points for each square voxel of membrane.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from etsam.threads import in_order

POINTS_PER_VOXEL2 = 1.6
"""Points for each square voxel of membrane, on average over its directions (measured)."""

_SLAB = 32  # slices at a time
_CHUNK = 1 << 19  # voxels at a time
_STEP = 0.25  # voxels between samples of a walk
_MIDDLE = 0.8  # voxels from the middle of the mask to that of a voxel that is a point; at 0.65 there are pinholes
_MAX_SECOND = 0.65  # bending across over bending along the normal: more is an edge, a crossing, or no sheet
_WALK = 3.0  # longest walk, in thicknesses of the mask
_SIGMAS = (1.2, 4.0)  # least and largest Gaussian, voxels


@dataclass(frozen=True)
class MidSurface:
    """Points of the mid-surface, in (z, y, x) order of their voxels.

    Attributes
    ----------
    voxels
        (N,) int64: flat index of the voxel that each point belongs to.
    points
        (N, 3) float32: position, voxels.
    normals
        (N, 3) float32: unit vectors; their sign means nothing.
    widths
        (N,) float32: width of the mask along the normal, voxels; NaN where the tomogram ends before the mask does.
    shape
        (Z, Y, X) of the mask.
    """

    voxels: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    widths: np.ndarray
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.voxels)

    def select(self, chosen: np.ndarray) -> "MidSurface":
        """Some of the points, by a mask or by sorted indices."""
        parts = (part[chosen] for part in (self.voxels, self.points, self.normals, self.widths))
        voxels, points, normals, widths = parts
        return MidSurface(voxels, points, normals, widths, self.shape)


def mask_width(mask: np.ndarray) -> float:
    """Mean width of the membranes of a mask, voxels: three times their volume over the number of faces of voxels.

    A surface of random direction has 1.5 faces for each square voxel, on either side. 0 for an empty mask.

    Parameters
    ----------
    mask
        (Z, Y, X) bool or uint8.
    """
    volume = faces = 0
    below: np.ndarray | None = None
    for plane in mask:
        volume += int(np.count_nonzero(plane))
        faces += int(np.count_nonzero(plane[1:] != plane[:-1])) + int(np.count_nonzero(plane[:, 1:] != plane[:, :-1]))
        if below is not None:
            faces += int(np.count_nonzero(plane != below))
        below = plane
    return 3 * volume / faces if faces else 0.0


def find_midsurface(
    mask: np.ndarray, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> MidSurface:
    """Find the points of the mid-surface of everything in a mask.

    Parameters
    ----------
    mask
        (Z, Y, X) uint8 or bool, 1 is membrane.
    workers
        Threads, as of `etsam.threads.worker_count`.
    progress
        Called with slabs done and slabs in all.
    """
    depth, height, width = mask.shape
    shape = (depth, height, width)
    thickness = mask_width(mask)
    starts = range(0, depth, _SLAB)
    found: list[tuple[np.ndarray, ...]] = []
    if thickness:
        for done, part in enumerate(in_order(lambda start: _slab(mask, start, thickness), starts, workers), 1):
            found.append(part)
            if progress is not None:
                progress(done, len(starts))
    voxels, points, normals, widths = (np.concatenate(parts) for parts in zip(_nothing(), *found, strict=True))
    return MidSurface(voxels, points, normals, widths, shape)


def _nothing() -> tuple[np.ndarray, ...]:
    """Voxels, points, normals and widths of no point."""
    return np.zeros(0, np.int64), np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), np.zeros(0, np.float32)


def _slab(mask: np.ndarray, start: int, thickness: float) -> tuple[np.ndarray, ...]:
    """Points of `_SLAB` slices from `start` on: voxels, points, normals, widths."""
    sigma = float(np.clip(0.45 * thickness, *_SIGMAS))
    halo = int(3 * sigma + 1.5)
    stop = min(start + _SLAB, len(mask))
    low, high = max(start - halo, 0), min(stop + halo, len(mask))
    rows, columns = (np.flatnonzero(mask[start:stop].any(axis=axes)) for axes in ((0, 2), (0, 1)))
    if not len(rows):
        return _nothing()
    y0, y1 = max(rows[0] - halo, 0), min(rows[-1] + halo + 1, mask.shape[1])
    x0, x1 = max(columns[0] - halo, 0), min(columns[-1] + halo + 1, mask.shape[2])
    part = mask[low:high, y0:y1, x0:x1]
    smooth = gaussian_filter(part.astype(np.float32), sigma, mode="nearest", truncate=3.0)
    smooth = np.pad(smooth, 1, mode="edge")
    z, y, x = np.nonzero(part[start - low : stop - low])
    z += start - low
    origin = np.array([low, y0, x0])
    found: list[tuple[np.ndarray, ...]] = []
    for first in range(0, len(z), _CHUNK):
        at = np.stack([axis[first : first + _CHUNK] for axis in (z, y, x)], axis=1)
        normals, sheet = _normals(smooth, at)
        at, normals = at[sheet] + origin, normals[sheet]
        offsets, widths = _middles(mask, at, normals, thickness)
        middle = np.abs(offsets) <= _MIDDLE
        at, normals, offsets = at[middle], normals[middle], offsets[middle]
        points = (at + offsets[:, None] * normals).astype(np.float32)
        found.append((np.ravel_multi_index(tuple(at.T), mask.shape), points, normals, widths[middle]))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _normals(smooth: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals (n, 3) float32 at voxels (n, 3), and where there is a sheet (n,) bool.

    `smooth` has one voxel more on every side.
    """
    _, height, width = smooth.shape
    steps = (height * width, width, 1)
    flat = smooth.ravel()
    here = (at[:, 0] + 1) * steps[0] + (at[:, 1] + 1) * steps[1] + at[:, 2] + 1
    middle = flat[here]
    second = [flat[here + step] + flat[here - step] - 2 * middle for step in steps]
    mixed = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        a, b = steps[one], steps[other]
        mixed.append((flat[here + a + b] + flat[here - a - b] - flat[here + a - b] - flat[here - a + b]) / 4)
    return lowest_direction(*second, *mixed)


def lowest_direction(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, e: np.ndarray, f: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvector of the lowest eigenvalue of symmetric matrices [[a, d, e], [d, b, f], [e, f, c]].

    In closed form (Smith, Comm. ACM 4, 168, 1961), twenty times as fast as LAPACK for many small matrices.

    Returns
    -------
    tuple
        (n, 3) float32 unit vectors; (n,) bool: whether it is a sheet, that is, the lowest eigenvalue is negative and
        the other two are much smaller in size.
    """
    mean = (a + b + c) / 3
    a, b, c = a - mean, b - mean, c - mean
    p = np.sqrt(np.maximum((a * a + b * b + c * c + 2 * (d * d + e * e + f * f)) / 6, 1e-20))
    determinant = a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)
    angle = np.arccos(np.clip(determinant / (2 * p**3), -1, 1)) / 3
    lowest = 2 * p * np.cos(angle + 2 * np.pi / 3)
    highest = 2 * p * np.cos(angle)
    second = -lowest - highest
    # two rows of (matrix - lowest) span the plane across the eigenvector; the longest of three cross products
    rows = (
        np.stack([a - lowest, d, e], axis=1),
        np.stack([d, b - lowest, f], axis=1),
        np.stack([e, f, c - lowest], axis=1),
    )
    best = np.zeros_like(rows[0])
    length = np.zeros(len(a), best.dtype)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        cross = np.cross(rows[one], rows[other])
        own = np.einsum("ij,ij->i", cross, cross)
        better = own > length
        best[better], length[better] = cross[better], own[better]
    best /= np.sqrt(np.maximum(length, 1e-30))[:, None]
    lowest, second, highest = lowest + mean, second + mean, highest + mean
    sheet = (lowest < -1e-4) & (second > _MAX_SECOND * lowest) & (highest < -lowest) & (length > 0)
    return best.astype(np.float32), sheet


def _middles(mask: np.ndarray, at: np.ndarray, normals: np.ndarray, thickness: float) -> tuple[np.ndarray, np.ndarray]:
    """Distance along the normal to the middle of the mask (n,), and the mask's width there (n,), voxels.

    Where the walk leaves the tomogram on one side, the mask is taken to be `thickness` wide, and its width is NaN;
    where it finds no end, both are NaN.
    """
    ends, left = [], []
    for sign in (1.0, -1.0):
        end, gone = walk(mask, at, sign * normals, _WALK * thickness)
        ends.append(end)
        left.append(gone)
    (up, down), (up_left, down_left) = ends, left
    widths = up + down
    offsets = (up - down) / 2
    offsets = np.where(up_left & ~down_left, thickness / 2 - down, offsets)
    offsets = np.where(down_left & ~up_left, up - thickness / 2, offsets)
    unknown = up_left | down_left
    return np.where(up_left & down_left, np.nan, offsets), np.where(unknown, np.nan, widths).astype(np.float32)


def walk(mask: np.ndarray, at: np.ndarray, directions: np.ndarray, farthest: float) -> tuple[np.ndarray, np.ndarray]:
    """Distance from positions inside a mask to where it ends, voxels.

    Parameters
    ----------
    mask
        (Z, Y, X) uint8 or bool.
    at, directions
        (n, 3): positions in voxels, unit vectors.
    farthest
        Where the walk is given up.

    Returns
    -------
    tuple
        (n,) float32 distances, `farthest` where there was no end; (n,) bool: whether the tomogram ended first.
    """
    flat, shape = mask.ravel(), np.array(mask.shape)
    strides = np.array([mask.shape[1] * mask.shape[2], mask.shape[2], 1])
    distance = np.full(len(at), farthest, np.float32)
    left = np.zeros(len(at), bool)
    going = np.arange(len(at))
    at, directions = at.astype(np.float32), directions.astype(np.float32)
    for step in np.arange(_STEP, farthest, _STEP, dtype=np.float32):
        cells = np.rint(at + step * directions).astype(np.int32)
        outside = ((cells < 0) | (cells >= shape)).any(axis=1)
        ended = np.zeros(len(going), bool)
        ended[~outside] = flat[cells[~outside] @ strides] == 0
        left[going[outside]] = True
        distance[going[ended | outside]] = step - _STEP / 2
        on = ~(ended | outside)
        going, at, directions = going[on], at[on], directions[on]
        if not len(going):
            break
    return distance, left
