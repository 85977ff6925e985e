"""Thickness of a membrane from the tomogram: density along the normals, never the width of the mask.

Profiles are averaged over patches, and over the upright patches of a membrane: where its normal runs along the beam,
the missing wedge has blurred it. Where two leaflets can be seen in the mean, thickness is the distance between their
peaks, by two Gaussians; where only one peak can be seen, it is the full width at half maximum, which is larger and is
never called reliable.

What makes it wrong on simulated tomograms is seldom noise: proteins in the membrane fill the space between the leaflets
and draw the peaks together, and the transfer function (defocus, filters) moves them. Neither can be undone from one
profile. So a value is reliable only where the profile shows nothing of either.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.optimize import least_squares, nnls
from scipy.sparse import coo_array

from etsam.measure.mesh import Mesh
from etsam.volume.slices import Slices

COLUMNS = (
    "thickness_nm",
    "thickness_method",
    "thickness_reliable",
    "thickness_low_nm",
    "thickness_high_nm",
    "thickness_local_sd_nm",
    "thickness_why",
)
LEAFLETS, FULL_WIDTH, NONE = "two leaflets", "full width", "none"

_STEP_VOXELS = 0.25
_VOXEL_BLUR = 0.35  # sigma of a voxel, voxels
_REACH_NM = 8.0
_SLAB = 24  # slices of the tomogram at a time, with as many around them
_CHUNK = 1 << 14  # profiles at a time
_PATCH_NM = 8.0
_UPRIGHT = 0.35  # largest share of the normal along the beam: 70 degrees and more from flat
_LEAST_PATCHES = 6
_PEAKS_NM = (1.6, 6.5)  # least and largest distance between leaflets
_OFF_CENTRE_NM = 1.5  # of the middle between them, from the middle of the mask
_FLANKS_NM = (4.0, 7.5)
_LEAST_DIP = 0.05  # of the height of the peaks, for two leaflets
# what makes a value reliable; chosen on 43 simulated tomograms of 5 and 8 Å (benchmarks/2026-11-measure.md)
_SURE_DIP, _DEEP_DIP = 0.55, 0.8  # below, blur moves the peaks; above, so may the fringes of the defocus
_SURE_FRINGE, _DEEP_FRINGE = 1.0, 0.1  # largest fringe, and where the dip is deep
_SURE_BALANCE, _SURE_SPREAD, _SURE_PROFILES = 0.6, 0.06, 200
_SURE_BETWEEN = 0.04  # of the thickness, by which something else between the leaflets may change it
_FIT_NM = 5.0  # on either side, of the fits that show that
_LEAFLET_NM, _ELSE_NM = (0.3, 1.0), (1.4, 3.0)  # widths: of a leaflet; of proteins in the membrane, which are larger
_STARTS_NM = (2.8, 3.8)
_RESAMPLES = 25


@dataclass(frozen=True)
class Thickness:
    """Thickness of one membrane.

    Attributes
    ----------
    thickness_nm
        Mean; NaN if there is none.
    method
        `LEAFLETS`, `FULL_WIDTH` or `NONE`.
    reliable
        Whether it may be believed.
    why
        What is against it; empty if nothing is.
    interval_nm
        95 % interval from resampling patches.
    local_nm
        (V,) between the leaflets around each vertex; NaN where they cannot be told apart.
    """

    thickness_nm: float
    method: str
    reliable: bool
    why: str
    interval_nm: tuple[float, float]
    local_nm: np.ndarray

    def row(self) -> dict[str, Any]:
        """Columns of the table."""
        known = self.local_nm[np.isfinite(self.local_nm)]
        values = (
            self.thickness_nm,
            self.method,
            "yes" if self.reliable else "no",
            *self.interval_nm,
            float(known.std()) if len(known) else np.nan,
            self.why,
        )
        return dict(zip(COLUMNS, values, strict=True))


def measure_thickness(
    tomogram: Slices,
    meshes: Sequence[Mesh],
    voxel_nm: float,
    *,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> list[Thickness]:
    """Measure the thickness of each membrane.

    Parameters
    ----------
    tomogram
        (Z, Y, X); membranes may be dark or bright. It is read once.
    meshes
        In its voxels.
    voxel_nm
        Side of a voxel.
    progress
        Called with slices done, slices in all, and a name.
    """
    patches = [_patches(mesh, _PATCH_NM / voxel_nm) for mesh in meshes]
    means, counts, positions = _patch_profiles(tomogram, meshes, patches, _REACH_NM / voxel_nm, progress)
    positions = positions * voxel_nm
    for total, count in zip(means, counts, strict=True):
        total /= np.maximum(count, 1)[:, None]  # in place: profiles of all patches are much of the memory
    sign = _polarity(means, counts, positions)
    results = []
    for mesh, patch, mean, count in zip(meshes, patches, means, counts, strict=True):
        upright = _patch_means(np.abs(mesh.normals[:, 0]), patch, len(count)) <= _UPRIGHT
        results.append(_of_membrane(sign * mean, count, upright, patch, positions, voxel_nm))
    return results


def _patches(mesh: Mesh, side_voxels: float) -> np.ndarray:
    """Number of the patch of each vertex (V,): cells of a grid, those that face different ways apart."""
    cells = np.floor(mesh.vertices / side_voxels).astype(np.int64)
    octant = (mesh.normals > 0) @ np.array([1, 2, 4])
    return np.unique(np.column_stack([cells, octant]), axis=0, return_inverse=True)[1].ravel()


def _patch_means(values: np.ndarray, patch: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(patch, values, minlength=count) / np.maximum(np.bincount(patch, minlength=count), 1)


def _patch_profiles(
    tomogram: Slices,
    meshes: Sequence[Mesh],
    patches: Sequence[np.ndarray],
    reach_voxels: float,
    progress: Callable[[int, int | None, str], None] | None,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Sums (P, S) and numbers (P,) of the profiles of each patch, for each mesh, and positions (S,) in voxels.

    Density is interpolated linearly. Profiles that leave the tomogram are left out.
    """
    steps = int(np.ceil(reach_voxels / _STEP_VOXELS))
    positions = _STEP_VOXELS * np.arange(-steps, steps + 1)
    sums = [np.zeros((int(patch.max()) + 1, len(positions))) for patch in patches]
    counts = [np.zeros(len(total), np.int64) for total in sums]
    limit = np.array(tomogram.shape) - 1
    for start, slab, low in _slabs(tomogram, int(np.ceil(reach_voxels)) + 2):
        for mesh, patch, total, count in zip(meshes, patches, sums, counts, strict=True):
            z = mesh.vertices[:, 0]
            own = np.flatnonzero((z >= start - 0.5) & (z < start + _SLAB - 0.5) & ~mesh.joined)
            for first in range(0, len(own), _CHUNK):
                part = own[first : first + _CHUNK]
                at = mesh.vertices[part, None] + positions[:, None] * mesh.normals[part, None]
                ends = at[:, [0, -1]]
                inside = ((ends >= 0) & (ends <= limit)).all(axis=(1, 2))
                part, at = part[inside], at[inside]
                at[..., 0] -= low
                values = map_coordinates(slab, at.reshape(-1, 3).T, np.float32, order=1, mode="nearest")
                touched, row = np.unique(patch[part], return_inverse=True)
                gather = coo_array((np.ones(len(part)), (row, np.arange(len(part)))), shape=(len(touched), len(part)))
                total[touched] += gather @ values.reshape(len(part), len(positions))
                count[touched] += np.bincount(row, minlength=len(touched))
        if progress is not None:
            progress(min(start + _SLAB, tomogram.shape[0]), tomogram.shape[0], "thickness")
    return sums, counts, positions


def _slabs(tomogram: Slices, halo: int) -> Iterator[tuple[int, np.ndarray, int]]:
    """First slice of each slab, its slices with `halo` more on either side as float32, and the first of these."""
    depth = tomogram.shape[0]
    kept: dict[int, np.ndarray] = {}
    for start in range(0, depth, _SLAB):
        low, high = max(start - halo, 0), min(start + _SLAB + halo, depth)
        kept = {z: kept[z] if z in kept else tomogram[z].astype(np.float32) for z in range(low, high)}
        yield start, np.stack([kept[z] for z in range(low, high)]), low


def _polarity(means: Sequence[np.ndarray], counts: Sequence[np.ndarray], positions: np.ndarray) -> int:
    """1 where membranes are brighter than what lies beside them, -1 where they are darker."""
    total = np.sum([mean.T @ count for mean, count in zip(means, counts, strict=True)], axis=0)
    away = np.abs(positions)
    flanks = (away >= _FLANKS_NM[0]) & (away <= _FLANKS_NM[1])
    return 1 if total[away <= 2.5].mean() >= total[flanks].mean() else -1


def _of_membrane(
    means: np.ndarray,
    counts: np.ndarray,
    upright: np.ndarray,
    patch: np.ndarray,
    positions: np.ndarray,
    voxel_nm: float,
) -> Thickness:
    """Thickness from the mean profiles of patches (P, S), membranes up."""
    used = (counts > 0) & upright
    complaints = []
    if np.count_nonzero(used) < _LEAST_PATCHES:
        complaints.append("hardly any of it stands upright")
        used = counts > 0
    unknown = np.full(len(patch), np.nan)
    if not used.any():
        return Thickness(np.nan, NONE, False, "it lies at the tomogram's end", (np.nan, np.nan), unknown)
    weights = counts[used].astype(np.float64)
    profile = np.average(means[used], axis=0, weights=weights)
    found = _leaflets(profile, positions, voxel_nm)
    if found is None:
        width = _full_width(profile, positions)
        why = "the leaflets cannot be told apart"
        method = FULL_WIDTH if np.isfinite(width) else NONE
        return Thickness(width, method, False, why, (np.nan, np.nan), unknown)
    thickness, middle, dip, balance, fringe = found
    rng = np.random.default_rng(0)
    again = []
    for _ in range(_RESAMPLES):
        drawn = rng.multinomial(len(weights), np.full(len(weights), 1 / len(weights))) * weights
        other = _leaflets(np.average(means[used], axis=0, weights=drawn), positions, voxel_nm)
        again.append(np.nan if other is None else other[0])
    spread = 1.96 * float(np.nanstd(again)) if np.isfinite(again).any() else np.nan
    if np.count_nonzero(np.isnan(again)) > _RESAMPLES // 10 or not spread <= _SURE_SPREAD * thickness:
        complaints.append("it varies with the patches that are taken")
    if weights.sum() < _SURE_PROFILES:
        complaints.append("it is small")
    if dip < _SURE_DIP:
        complaints.append("the leaflets hardly stand apart")
    if balance < _SURE_BALANCE:
        complaints.append("one leaflet is much stronger than the other")
    if fringe > (_DEEP_FRINGE if dip > _DEEP_DIP else _SURE_FRINGE):
        complaints.append("fringes, as of a strong defocus, may have moved the peaks")
    if not complaints:
        alone, beside = (_fitted(profile, positions, voxel_nm, other) for other in (False, True))
        if abs(beside - alone) > _SURE_BETWEEN * alone:
            complaints.append("something else, such as proteins, may lie between the leaflets")
    local = _local(means, counts, positions, middle)[patch]
    return Thickness(
        thickness,
        LEAFLETS,
        not complaints,
        "; ".join(complaints),
        (thickness - spread, thickness + spread),
        local,
    )


def _leaflets(
    profile: np.ndarray, positions: np.ndarray, voxel_nm: float
) -> tuple[float, float, float, float, float] | None:
    """Distance between two peaks, their middle, the dip, the balance and the fringes; None if there is one peak.

    The dip is that of the lower peak; all three are shares of the height of the higher peak above what lies beside.
    """
    smooth = gaussian_filter1d(profile, 1.0)
    peaks = np.flatnonzero((smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:])) + 1
    away = np.abs(positions)
    level = float(np.median(smooth[(away >= _FLANKS_NM[0]) & (away <= _FLANKS_NM[1])]))
    best: tuple[float, int, int] | None = None
    candidates = [int(peak) for peak in peaks]
    for number, low in enumerate(candidates):
        for high in candidates[number + 1 :]:
            apart, middle = positions[high] - positions[low], (positions[high] + positions[low]) / 2
            if _PEAKS_NM[0] <= apart <= _PEAKS_NM[1] and abs(middle) <= _OFF_CENTRE_NM:
                height = float(min(smooth[low], smooth[high]))
                if best is None or height > best[0]:
                    best = height, low, high
    if best is None:
        return None
    height, low, high = best
    tall = float(max(smooth[low], smooth[high])) - level
    bottom = float(smooth[low : high + 1].min())
    if tall <= 0 or height <= level or (height - bottom) / tall < _LEAST_DIP:
        return None
    beside = (away > 2.5) & (away <= _FLANKS_NM[1])
    fringe = (level - float(smooth[beside].min())) / tall
    thickness, middle = _two_gaussians(profile, positions, low, high, level, voxel_nm)
    return thickness, middle, (height - bottom) / tall, (height - level) / tall, fringe


def _two_gaussians(
    profile: np.ndarray, positions: np.ndarray, low: int, high: int, level: float, voxel_nm: float
) -> tuple[float, float]:
    """Distance between two Gaussians of one width on a level ground, and their middle.

    What counts is the upper part: samples weigh as much as they are high.
    """
    apart = positions[high] - positions[low]
    inside = (positions >= positions[low] - 0.6 * apart) & (positions <= positions[high] + 0.6 * apart)
    x, y = positions[inside], profile[inside] - level
    tall = max(y.max(), 1e-12)
    weight = np.clip(y / tall, 0, 1)

    def residuals(values: np.ndarray) -> np.ndarray:
        one, other, left, right, sigma = values
        shape = one * np.exp(-0.5 * ((x - left) / sigma) ** 2) + other * np.exp(-0.5 * ((x - right) / sigma) ** 2)
        return weight * (shape - y / tall)

    start = [profile[low] - level, profile[high] - level, positions[low], positions[high], max(apart / 3, voxel_nm / 2)]
    start[0], start[1] = max(start[0] / tall, 0.05), max(start[1] / tall, 0.05)
    lower = [0, 0, start[2] - apart / 2, start[3] - apart / 2, 0.15 * voxel_nm]
    upper = [3, 3, start[2] + apart / 2, start[3] + apart / 2, max(apart, 2 * voxel_nm)]
    found = least_squares(residuals, start, bounds=(lower, upper)).x
    return float(abs(found[3] - found[2])), float((found[2] + found[3]) / 2)


def _fitted(profile: np.ndarray, positions: np.ndarray, voxel_nm: float, something_else: bool) -> float:
    """Distance between two Gaussians on a slope, nm; optionally beside a wider one in the middle.

    Where a wider one changes the distance, the profile does not tell the membrane from what lies in it.
    """
    inside = np.abs(positions) <= _FIT_NM
    x, y = positions[inside], profile[inside]
    y = (y - y.mean()) / max(float(y.std()), 1e-12)
    blur = _VOXEL_BLUR * voxel_nm

    def heights(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        apart, leaflet, wide, middle = values
        gaussians = [(middle - apart / 2, leaflet), (middle + apart / 2, leaflet), (middle, wide)]
        columns = [
            np.exp(-0.5 * ((x - centre) / np.hypot(sigma, blur)) ** 2)
            for centre, sigma in gaussians[: 3 if something_else else 2]
        ]
        slope = x / _FIT_NM
        basis = np.stack([*columns, np.ones_like(x), -np.ones_like(x), slope, -slope], axis=1)
        found, _ = nnls(basis, y)
        return basis @ found - y, found

    def residuals(values: np.ndarray) -> np.ndarray:
        off, found = heights(values)
        one, other = sorted(found[:2])
        return np.append(off, 2 * max(0.0, 0.5 - one / max(other, 1e-9)))  # no leaflet without the other

    low = [_PEAKS_NM[0], _LEAFLET_NM[0], _ELSE_NM[0], -1.0]
    high = [_PEAKS_NM[1], _LEAFLET_NM[1], _ELSE_NM[1], 1.0]
    fits = [
        least_squares(residuals, [start, 0.6, 1.9, 0.0], bounds=(low, high), max_nfev=25, diff_step=1e-3)
        for start in _STARTS_NM
    ]
    return float(min(fits, key=lambda fit: fit.cost).x[0])


def _full_width(profile: np.ndarray, positions: np.ndarray) -> float:
    """Full width at half maximum of the peak in the middle, nm; NaN if there is none."""
    away = np.abs(positions)
    level = float(np.median(profile[(away >= _FLANKS_NM[0]) & (away <= _FLANKS_NM[1])]))
    centre = int(np.argmax(np.where(away <= 3.0, profile, -np.inf)))
    half = (profile[centre] + level) / 2
    ends = []
    for step in (-1, 1):
        index = centre
        while 0 <= index + step < len(profile) and profile[index + step] > half:
            index += step
        if not 0 <= index + step < len(profile):
            return float("nan")
        share = (profile[index] - half) / max(profile[index] - profile[index + step], 1e-12)
        ends.append(positions[index] + step * share * (positions[1] - positions[0]))
    return float(ends[1] - ends[0])


def _local(means: np.ndarray, counts: np.ndarray, positions: np.ndarray, middle: float) -> np.ndarray:
    """Distance between the leaflets' peaks of each patch (P,), nm; NaN where there is no dip between them."""
    smooth = gaussian_filter1d(means, 1.5, axis=1)
    reach = _PEAKS_NM[1] / 2
    found, heights = [], []
    off = positions - middle
    half = max(0.4, 0.51 * float(positions[1] - positions[0]))  # coarse profiles have a sample in the middle, too
    sides = [np.flatnonzero((sign * off > half) & (np.abs(off) <= reach)) for sign in (-1, 1)]
    if not all(side.size for side in sides):  # the voxels are larger than the space between leaflets
        return np.full(len(means), np.nan)
    for side in sides:
        at = smooth[:, side].argmax(axis=1)
        edge = (at == 0) | (at == len(side) - 1)
        heights.append(smooth[np.arange(len(smooth)), side[at]])
        found.append(np.where(edge, np.nan, positions[side[at]]))
    between = np.abs(off) <= half
    dip = np.minimum(*heights) - smooth[:, between].min(axis=1)
    good = (dip > 0) & (counts > 0)
    return np.where(good, found[1] - found[0], np.nan)
