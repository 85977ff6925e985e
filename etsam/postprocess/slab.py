"""Slab that holds sample: the void around a lamella or thin ice."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize

from etsam.postprocess.coarse import BLOCK_ANGSTROM, Coarse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slab:
    """Sample between two planes, void on either side.

    Attributes
    ----------
    bottom, top
        (a, b, c) of z = a + b * y + c * x, voxels; z of sample lies between.
    voxel_size_angstrom
        (z, y, x), Å; None: unknown.
    shape
        (Z, Y, X) of the tomogram.
    """

    bottom: tuple[float, float, float]
    top: tuple[float, float, float]
    voxel_size_angstrom: tuple[float, float, float] | None
    shape: tuple[int, ...]

    def outside(self, z: int) -> np.ndarray:
        """(Y, X) bool of slice `z`: void."""
        y, x = (np.arange(side, dtype=np.float32) for side in self.shape[1:])
        low, high = (a + b * y[:, None] + c * x[None] for a, b, c in (self.bottom, self.top))
        return np.asarray((z < low) | (z > high))

    @property
    def ends_within(self) -> tuple[bool, bool]:
        """True for bottom and top where there is void beyond it in the tomogram."""
        return _meets(self.bottom, self.shape), _meets(self.top, self.shape)

    @property
    def share(self) -> float:
        """Share of the tomogram that is void."""
        return float(np.mean([self.outside(z).mean() for z in range(self.shape[0])]))

    @property
    def thickness(self) -> float:
        """Along the normal, at the middle, within the tomogram: nm, or voxels where their size is unknown."""
        depth, height, width = self.shape
        middle = np.array([1, (height - 1) / 2, (width - 1) / 2])
        apart = min(float(np.dot(self.top, middle)), depth - 1) - max(float(np.dot(self.bottom, middle)), 0)
        sizes = self.voxel_size_angstrom
        along = apart * np.cos(np.radians(self.tilt_degrees))
        return float(along if sizes is None else along * sizes[0] / 10)

    @property
    def tilt_degrees(self) -> float:
        """Angle between the normal of the planes' mean and Z."""
        z, y, x = self.voxel_size_angstrom or (1.0, 1.0, 1.0)
        _, b, c = (np.array(self.bottom) + self.top) / 2
        return float(np.degrees(np.arctan(np.hypot(b * z / y, c * z / x))))

    def facts(self) -> dict[str, Any]:
        """Facts for the record."""
        unit = "nm" if self.voxel_size_angstrom is not None else "voxels"
        return {
            f"thickness_{unit}": round(self.thickness, 1),
            "tilt_degrees": round(self.tilt_degrees, 1),
            "void_below_and_above": list(self.ends_within),
            "bottom_plane_voxels": [round(value, 4) for value in self.bottom],
            "top_plane_voxels": [round(value, 4) for value in self.top],
            "void_share": round(self.share, 4),
        }

    def words(self) -> str:
        """Sentence for the person."""
        unit = "nm" if self.voxel_size_angstrom is not None else "voxels"
        least = "" if all(self.ends_within) else "at least "
        return (
            f"sample is a slab of {least}{self.thickness:.0f} {unit}, tilted by {self.tilt_degrees:.0f}°; "
            f"{100 * self.share:.0f} % of the tomogram is void"
        )


_COLUMN_ANGSTROM = 320.0  # side in X and Y of the columns in which texture is measured
_MOST_COLUMNS = 12  # along Y and X; more would only take longer
_LEAST_SLAB_BLOCKS = 3
_TEXTURE_SIGMAS = (0.0, 1.0, 2.0)  # blocks: in a noisy tomogram the specimen shows in low frequencies only
_MOST_TILT_DEGREES = 30.0
_MOST_WEDGE_DEGREES = 8.0  # between the planes: a lamella is thinner at one end, by little
_VOID_CONTRAST = 1.75  # standard deviations of the void's texture by which sample exceeds it at least
_VOID_EXPLAINED = 0.3  # share of the texture's variance that the two planes explain at least
_SLAB_MARGIN_ANGSTROM = 30.0  # kept beyond each plane, so that a membrane at the surface is whole


def find_slab(coarse: Coarse) -> Slab | None:
    """Slab that holds sample: two planes between which the tomogram has more texture than outside.

    Texture is the logarithm of the variance within columns of 32 nm x 32 nm, block by block along Z. The planes are
    those that explain most of its variance as one value inside and another outside, tilted freely, found by descent
    from the best horizontal pair. This is the idea of slabify (Rangel Silva et al.; local variance, two planes), with
    one fit to all columns instead of one boundary for each.

    Parameters
    ----------
    coarse
        The tomogram.

    Returns
    -------
    Slab or None
        None where no void is to be seen: the texture outside the best planes is not clearly less, or there are too few
        slices to tell.
    """
    found = [fit for sigma in _TEXTURE_SIGMAS if (fit := _fit_slab(coarse, sigma)) is not None]
    return max(found, key=lambda fit: fit[0])[1] if found else None


def _fit_slab(coarse: Coarse, sigma_blocks: float) -> tuple[float, Slab] | None:
    """Contrast of sample and void, and the slab, from the texture after a Gaussian; see `find_slab`."""
    texture, y, x = _texture(coarse, sigma_blocks)
    if texture is None:
        return None
    depth = len(texture)
    z = np.arange(depth)
    known = np.isfinite(texture)
    low, high = np.percentile(texture[known], (2, 98))
    values = np.where(known, np.clip(texture, low, high), low)
    weights = known.astype(np.float64)
    # columns at the middle of the volume are 0, and its half side 1, so that all six numbers have one scale
    yy = (y - coarse.values.shape[1] / 2) / (coarse.values.shape[1] / 2)
    xx = (x - coarse.values.shape[2] / 2) / (coarse.values.shape[2] / 2)
    halves = np.array(coarse.values.shape[1:]) / 2
    sizes = coarse.angstrom
    steepest, wedged = np.tan(np.radians((_MOST_TILT_DEGREES, _MOST_WEDGE_DEGREES)))
    spread = float((weights * (values - np.average(values, weights=weights)) ** 2).sum())
    if spread <= 0:
        return None

    def inside(planes: np.ndarray) -> np.ndarray:
        bottom = planes[0] + planes[1] * yy[:, None] + planes[2] * xx[None]
        top = planes[3] + planes[4] * yy[:, None] + planes[5] * xx[None]
        at = z[:, None, None]
        softly = 0.5  # blocks
        return np.asarray(1 / (1 + np.exp(-np.clip(np.minimum(at - bottom, top - at) / softly, -30, 30))))

    def explained(planes: np.ndarray) -> tuple[float, float, float]:
        """Share of the variance, and the values inside and outside."""
        slopes = (
            np.stack([planes[1:3], planes[4:6]]) / halves * sizes[0] / sizes[1:]
        )  # of bottom and top; along Y and X
        apart = np.hypot(*(slopes[0] - slopes[1]))
        if np.hypot(*slopes.T).max() > steepest or apart > wedged or planes[0] >= planes[3]:
            return 0.0, 0.0, 0.0
        share = inside(planes) * weights
        total, within = weights.sum(), share.sum()
        if not _LEAST_SLAB_BLOCKS / depth < within / total < 1 - 1e-6:
            return 0.0, 0.0, 0.0
        mean_share, mean = within / total, (weights * values).sum() / total
        variance = (share**2 / np.maximum(weights, 1e-9)).sum() / total - mean_share**2
        both = (share * values).sum() / total - mean_share * mean
        if variance <= 1e-9 or both <= 0:  # more texture outside is no sample
            return 0.0, 0.0, 0.0
        slope = both / variance
        outer = mean - slope * mean_share
        return float(slope * both * total / spread), float(outer + slope), float(outer)

    best = _horizontal(values, weights)
    if best is None:
        return None
    start = np.array([best[0], 0, 0, best[1], 0, 0], float)
    steep = max(1.0, 0.1 * depth)
    slopes = (-2 * steep, -steep, 0, steep, 2 * steep)
    tilted = [start + np.array([0, b, c, 0, b, c]) for b in slopes for c in slopes]
    start = max(tilted, key=lambda planes: explained(planes)[0])
    simplex = np.vstack([start, start + np.diag([1, steep / 2, steep / 2] * 2)])
    found = minimize(
        lambda planes: -explained(planes)[0],
        start,
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxiter": 2000, "xatol": 0.02, "fatol": 1e-6},
    )
    share, sample, void = explained(found.x)
    outer = values[(inside(found.x) < 0.1) & known]
    if outer.size < 8:
        return None
    scatter = max(float(np.std(outer)), 1e-6)
    log.debug(
        "slab at sigma %g: explains %.2f, contrast %.1f standard deviations of the void",
        sigma_blocks,
        share,
        (sample - void) / scatter,
    )
    if share < _VOID_EXPLAINED or sample - void < _VOID_CONTRAST * scatter:
        return None
    margin = _SLAB_MARGIN_ANGSTROM / coarse.angstrom[0] if coarse.voxel_size_angstrom else 1.0
    planes = [
        _in_voxels(found.x[:3], -margin, halves, coarse.steps),
        _in_voxels(found.x[3:], margin, halves, coarse.steps),
    ]
    if not any(_meets(plane, coarse.shape) for plane in planes):
        return None
    for here, other, face, furthest in ((0, 1, 0, max), (1, 0, coarse.shape[0] - 1, min)):
        if not _meets(planes[here], coarse.shape):  # sample goes on to the face; nothing says how that plane is tilted
            _, b, c = planes[other]
            corners = [b * y + c * x for y in (0, coarse.shape[1] - 1) for x in (0, coarse.shape[2] - 1)]
            planes[here] = (face - furthest(corners), b, c)
    return (sample - void) / scatter, Slab(planes[0], planes[1], coarse.voxel_size_angstrom, coarse.shape)


def _meets(plane: tuple[float, float, float], shape: tuple[int, ...]) -> bool:
    """True if a plane has voxels of the volume on either side."""
    a, b, c = plane
    levels = [a + b * y + c * x for y in (0, shape[1] - 1) for x in (0, shape[2] - 1)]
    return max(levels) > 0 and min(levels) < shape[0] - 1


def _horizontal(values: np.ndarray, weights: np.ndarray) -> tuple[float, float] | None:
    """Bottom and top, blocks, of the horizontal slab that differs most from the rest, with more texture within."""
    depth = len(values)
    sums = np.append(0, (weights * values).sum(axis=(1, 2)).cumsum())
    counts = np.append(0, weights.sum(axis=(1, 2)).cumsum())
    first, last = np.triu_indices(depth + 1, _LEAST_SLAB_BLOCKS)  # from block `first` to the one before `last`
    inside, total = counts[last] - counts[first], counts[-1]
    over = sums[last] - sums[first] - inside * sums[-1] / total
    between = np.where(
        (inside > 0) & (inside < total) & (over > 0), over**2 / np.maximum(inside * (total - inside), 1e-9), 0
    )
    if not between.any():
        return None
    best = int(np.argmax(between))
    return float(first[best]) - 0.5, float(last[best]) - 0.5


def _in_voxels(
    plane: np.ndarray, margin: float, halves: np.ndarray, steps: tuple[int, ...]
) -> tuple[float, float, float]:
    """(a, b, c) in voxels of a plane in blocks whose Y and X run from -1 to 1."""
    dz, dy, dx = steps
    slopes = plane[1:] / halves  # blocks of Z a block
    level = plane[0] + margin - float(np.dot(slopes, halves))  # at the corner of block 0
    b, c = dz * slopes[0] / dy, dz * slopes[1] / dx
    # the middle of block i lies at step * (i + 1/2) - 1/2 voxels; `halves` counts blocks from the first one's corner
    return float(dz * (level + 0.5) - 0.5 + (b + c) * 0.5), float(b), float(c)


def _texture(coarse: Coarse, sigma_blocks: float) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Log variance (Z, Y, X) of columns, NaN in padding, and where in Y and X their middles lie, blocks."""
    values = ndimage.gaussian_filter(coarse.values, sigma_blocks) if sigma_blocks else coarse.values
    depth, height, width = values.shape
    sizes = coarse.angstrom if coarse.voxel_size_angstrom else np.full(3, BLOCK_ANGSTROM)
    sides = [
        max(int(np.clip(round(_COLUMN_ANGSTROM / size), 4, max(4, side // 4))), side // _MOST_COLUMNS)
        for size, side in zip(sizes[1:], (height, width), strict=True)
    ]
    rows, columns = height // sides[0], width // sides[1]
    if depth < 3 * _LEAST_SLAB_BLOCKS or not rows or not columns:
        return None, np.zeros(0), np.zeros(0)
    wide = ndimage.uniform_filter(values, (1, *sides), mode="nearest")  # slopes are no texture
    cut = (values - wide)[:, : rows * sides[0], : columns * sides[1]]
    blocks = cut.reshape(depth, rows, sides[0], columns, sides[1])
    variance = blocks.var(axis=(2, 4), dtype=np.float64)
    padding = coarse.flat[:, : rows * sides[0], : columns * sides[1]].reshape(blocks.shape).mean(axis=(2, 4)) > 0.2
    variance[padding | (variance <= 0)] = np.nan
    if np.isfinite(variance).sum() < 8:
        return None, np.zeros(0), np.zeros(0)
    return np.log(variance), (np.arange(rows) + 0.5) * sides[0], (np.arange(columns) + 0.5) * sides[1]
