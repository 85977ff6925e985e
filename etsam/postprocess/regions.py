"""Parts of a tomogram in which no membrane is to be marked: void around a lamella, gold, carbon, a bad rim.

All of them are found in one coarse copy of the tomogram, means of blocks of about 2 nm that are taken while its slices
pass by, so the tomogram is read no further time and memory does not grow with it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize

from etsam.errors import ConfigError, InputError
from etsam.postprocess.components import Progress, foreground
from etsam.volume import read_volume
from etsam.volume.location import Location, display_name
from etsam.volume.slices import LazySlices, Slices

log = logging.getLogger(__name__)

ARTEFACTS = ("gold", "carbon", "border")

_BLOCK_ANGSTROM = 20.0  # side of a block, about; half of a membrane's thickness, less than the smallest bead
_ROBUST = 1.4826  # times the median deviation: the standard deviation of normal noise
_MOST_BLOCKS = 16_000_000  # 64 MB; of larger tomograms blocks are larger


class Coarse:
    """Means of blocks of a tomogram, taken while its slices pass by in order.

    Parameters
    ----------
    shape
        (Z, Y, X).
    voxel_size_angstrom
        (z, y, x), Å; None, unknown: blocks of 2 x 2 x 2 voxels.

    Attributes
    ----------
    steps
        (z, y, x): voxels along each side of a block.
    values
        (Z, Y, X) of whole blocks, float32; what is left over at the far ends is in none.
    """

    def __init__(self, shape: tuple[int, ...], voxel_size_angstrom: tuple[float, float, float] | None) -> None:
        self.shape, self.voxel_size_angstrom = tuple(shape), voxel_size_angstrom
        sizes = voxel_size_angstrom or (_BLOCK_ANGSTROM / 2,) * 3
        side = _BLOCK_ANGSTROM
        while True:
            self.steps = tuple(
                min(max(1, round(side / size)), length) for size, length in zip(sizes, shape, strict=True)
            )
            blocks = tuple(length // step for length, step in zip(shape, self.steps, strict=True))
            if np.prod(blocks) <= _MOST_BLOCKS:
                break
            side *= 1.25
        self.values = np.zeros(blocks, np.float32)

    def add(self, z: int, plane: np.ndarray) -> None:
        """Take slice `z`, (Y, X) of any real dtype; NaN and infinite voxels count as the mean of the others."""
        block = z // self.steps[0]
        if block >= len(self.values):
            return
        plane = np.asarray(plane, np.float32)
        finite = np.isfinite(plane)
        if not finite.all():
            plane = np.where(finite, plane, plane[finite].mean() if finite.any() else 0)
        _, dy, dx = self.steps
        _, height, width = self.values.shape
        cut = plane[: height * dy, : width * dx].reshape(height, dy, width, dx)
        self.values[block] += cut.mean(axis=(1, 3)) / np.float32(self.steps[0])

    @classmethod
    def of(cls, slices: Slices, voxel_size_angstrom: tuple[float, float, float] | None) -> "Coarse":
        """Blocks of a whole volume, which is read once."""
        found = cls(tuple(slices.shape), voxel_size_angstrom)
        for z in range(slices.shape[0]):
            found.add(z, slices[z])
        return found

    @property
    def angstrom(self) -> np.ndarray:
        """(z, y, x): sides of a block, Å; of voxels of unknown size, voxels."""
        return np.array(self.steps) * np.array(self.voxel_size_angstrom or (1.0, 1.0, 1.0))

    @property
    def flat(self) -> np.ndarray:
        """(Z, Y, X) bool: blocks whose neighbours all have their value, which are padding."""
        equal = np.ones(self.values.shape, bool)
        for axis in range(3):
            step = np.diff(self.values, axis=axis) == 0
            pad = [(0, 0)] * 3
            pad[axis] = (1, 0)
            before = np.pad(step, pad, constant_values=True)
            pad[axis] = (0, 1)
            equal &= before & np.pad(step, pad, constant_values=True)
        return equal


# ---------------------------------------------------------------------- the slab that holds sample


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
    sizes = coarse.angstrom if coarse.voxel_size_angstrom else np.full(3, _BLOCK_ANGSTROM)
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


# ---------------------------------------------------------------------- gold beads


@dataclass(frozen=True)
class Bead:
    """A gold bead.

    Attributes
    ----------
    centre
        (z, y, x), voxels.
    semi_axes
        (z, y, x), voxels: of the ellipsoid that is left out, margin included; along Z the missing wedge draws it out.
    diameter_nm
        In the plane, without margin.
    """

    centre: tuple[float, float, float]
    semi_axes: tuple[float, float, float]
    diameter_nm: float


@dataclass(frozen=True)
class Beads:
    """Gold beads of a tomogram.

    Attributes
    ----------
    beads
        In order of Z.
    shape
        (Z, Y, X) of the tomogram.
    """

    beads: tuple[Bead, ...]
    shape: tuple[int, ...]

    def outside(self, z: int) -> np.ndarray:
        """(Y, X) bool of slice `z`: in a bead or its margin."""
        out = np.zeros(self.shape[1:], bool)
        for bead in self.beads:
            (cz, cy, cx), (az, ay, ax) = bead.centre, bead.semi_axes
            rest = 1 - ((z - cz) / az) ** 2
            if rest <= 0:
                continue
            y0, y1 = max(0, int(cy - ay)), min(self.shape[1], int(cy + ay) + 2)
            x0, x1 = max(0, int(cx - ax)), min(self.shape[2], int(cx + ax) + 2)
            y, x = np.arange(y0, y1)[:, None], np.arange(x0, x1)[None]
            out[y0:y1, x0:x1] |= ((y - cy) / ay) ** 2 + ((x - cx) / ax) ** 2 <= rest
        return out

    def facts(self) -> dict[str, Any]:
        """Facts for the record."""
        diameters = [bead.diameter_nm for bead in self.beads]
        found: dict[str, Any] = {"beads": len(self.beads)}
        if diameters:
            found["median_diameter_nm"] = round(float(np.median(diameters)), 1)
        return found


_BEAD_ANGSTROM = (40.0, 260.0)  # diameters; fiducials have 5 to 20 nm, and a coarse copy blurs their edges
_BEAD_CONTRAST = 8.0  # robust standard deviations of the blocks by which a bead's middle differs from their median
_BEAD_GAP = 1.3  # lowest height of beads over the highest of all other peaks, at least
_MOST_BEADS = 500  # peaks that are looked at, the highest
_BEAD_MARGIN_ANGSTROM = 50.0  # around it, for its rim and the ringing of transfer function and filters
_LONGEST_BEAD = 4.0  # extent along Z over that in the plane, by the missing wedge
_LEAST_FILL = 0.35  # of the bounding box; a ball fills 0.52


def find_gold(coarse: Coarse) -> Beads:
    """Gold beads: compact blobs far darker or brighter than anything else, of the size of fiducials.

    Parameters
    ----------
    coarse
        The tomogram.

    Raises
    ------
    InputError
        If the voxel size is unknown.
    """
    if coarse.voxel_size_angstrom is None:
        raise InputError("gold beads are known by their size, and the voxel size is unknown; set voxel_size=NUMBER.")
    known = ~coarse.flat
    if not known.any():
        return Beads((), coarse.shape)
    values = coarse.values - np.median(coarse.values[known])
    scatter = _ROBUST * float(np.median(np.abs(values[known]))) or 1.0
    beads: list[Bead] = []
    for sign in (-1, 1):  # dark ones as a rule; what then is bright within their margins is their ringing
        for bead in _prominent(np.where(known, sign * values, 0), scatter, coarse):
            if not any(_holds(other, bead.centre) for other in beads):
                beads.append(bead)
    return Beads(tuple(sorted(beads, key=lambda bead: bead.centre)), coarse.shape)


def _holds(bead: Bead, place: tuple[float, float, float]) -> bool:
    return sum(((a - b) / half) ** 2 for a, b, half in zip(place, bead.centre, bead.semi_axes, strict=True)) <= 1


def _prominent(height: np.ndarray, scatter: float, coarse: Coarse) -> list[Bead]:
    """Beads of one sign: the peaks above the widest gap in the sorted heights of all, if it is wide enough.

    Fiducials of a tomogram are alike and denser than anything else, so their heights stand together, apart from those
    of proteins and membranes; no level in standard deviations parts them in every tomogram.
    """
    level = _BEAD_CONTRAST * scatter
    tops = np.argwhere((height > level) & (ndimage.maximum_filter(height, 5) == height))
    order = np.argsort(-height[tuple(tops.T)], kind="stable")[:_MOST_BEADS]
    tops = tops[order]
    heights = np.append(height[tuple(tops.T)], level)
    if not len(tops):
        return []
    ratios = heights[:-1] / heights[1:]
    last = int(np.argmax(ratios))
    if ratios[last] < _BEAD_GAP:
        return []
    found = (_bead(height, tuple(top), coarse) for top in tops[: last + 1])
    return [bead for bead in found if bead is not None]


def _bead(height: np.ndarray, top: tuple[int, ...], coarse: Coarse) -> Bead | None:
    """Bead around a peak, as far as half of its height; None if that is no compact blob of a fiducial's size."""
    reach = np.ceil(_BEAD_ANGSTROM[1] / coarse.angstrom).astype(int)
    grown = tuple(
        slice(max(0, at - int(far)), min(side, at + int(far) + 1))
        for at, far, side in zip(top, reach, height.shape, strict=True)
    )
    near = height[grown]
    labels, _ = ndimage.label(near > 0.5 * height[top])
    blob = labels == labels[tuple(at - part.start for at, part in zip(top, grown, strict=True))]
    blob = _without_holes(blob)
    places = np.argwhere(blob)
    extents = (places.max(axis=0) - places.min(axis=0) + 1) * coarse.angstrom
    across = extents[1:]
    if across.max() > _BEAD_ANGSTROM[1] or extents[0] > _LONGEST_BEAD * _BEAD_ANGSTROM[1]:
        return None
    if across.max() > 2 * across.min() + coarse.angstrom[1:].max() or extents[0] > _LONGEST_BEAD * across.max():
        return None
    if len(places) < _LEAST_FILL * np.prod(places.max(axis=0) - places.min(axis=0) + 1):
        return None
    if across.max() < _BEAD_ANGSTROM[0] and coarse.angstrom[1:].max() < _BEAD_ANGSTROM[0] / 2:
        return None  # a hot pixel
    weights = near[blob][:, None]
    centre = (places * weights).sum(axis=0) / weights.sum() + [part.start for part in grown]
    steps = np.array(coarse.steps)
    sizes = np.array(coarse.voxel_size_angstrom)
    # as long along Z as it is seen to be, as wide as the wider of the two others
    half = np.array([max(extents[0], across.max()), across.max(), across.max()]) / 2 + _BEAD_MARGIN_ANGSTROM
    z, y, x = (float(value) for value in (centre + 0.5) * steps - 0.5)
    dz, dy, dx = (float(value) for value in half / sizes)
    return Bead((z, y, x), (dz, dy, dx), float(across.max()) / 10)


def _without_holes(blob: np.ndarray) -> np.ndarray:
    """Blob (Z, Y, X) bool filled within each plane: of a large bead the reconstruction leaves a shell, open along Z."""
    filled = blob.copy()
    for axis in range(3):
        for plane, whole in zip(np.moveaxis(blob, axis, 0), np.moveaxis(filled, axis, 0), strict=True):
            whole |= ndimage.binary_fill_holes(plane)
    return filled


# ---------------------------------------------------------------------- carbon film


@dataclass(frozen=True)
class Film:
    """Carbon film of the grid: a slab along Z, on one side of a straight or curved edge in the plane.

    Attributes
    ----------
    angle
        Of the edge's normal in the plane, which points from the film to the hole: radians from Y to X.
    distance
        From the middle of the tomogram to the edge along that normal, Å.
    curvature
        Of the edge, 1 / Å; positive around a hole.
    slices
        Slices of the film: the first, and the one after the last.
    edge_slices
        Slices in which its edge is seen, which the missing wedge draws out along Z.
    voxel_size_angstrom
        (z, y, x), Å.
    shape
        (Z, Y, X) of the tomogram.
    """

    angle: float
    distance: float
    curvature: float
    slices: tuple[int, int]
    edge_slices: tuple[int, int]
    voxel_size_angstrom: tuple[float, float, float]
    shape: tuple[int, ...]

    @cached_property
    def share(self) -> float:
        """Share of the tomogram that is film or its edge."""
        film, edge = self._film_and_edge()
        (first, last), (edge_first, edge_last) = self.slices, self.edge_slices
        beside = edge_last - edge_first - (last - first)
        return float(film.mean() * (last - first) + edge.mean() * beside) / self.shape[0]

    def _film_and_edge(self) -> tuple[np.ndarray, np.ndarray]:
        """(Y, X) bool: film and the band at its edge; the band alone."""
        beyond = _beyond(self.angle, self.distance, self.curvature, self.shape[1:], self.voxel_size_angstrom[1:])
        return beyond < _EDGE_MARGIN_ANGSTROM, np.abs(beyond) < _EDGE_MARGIN_ANGSTROM

    @property
    def believed(self) -> bool:
        """False for a film that would cover most of the tomogram; nothing is left out then."""
        return self.share <= _MOST_FILM

    def outside(self, z: int) -> np.ndarray:
        """(Y, X) bool of slice `z`: in the film or at its edge."""
        if not self.believed or not self.edge_slices[0] <= z < self.edge_slices[1]:
            return np.zeros(self.shape[1:], bool)
        film, edge = self._film_and_edge()
        return film if self.slices[0] <= z < self.slices[1] else edge

    def facts(self) -> dict[str, Any]:
        """Facts for the record."""
        return {
            "slices": list(self.slices),
            "edge_slices": list(self.edge_slices),
            "share": round(self.share, 4),
            "left_out": self.believed,
            "edge_normal_degrees_from_y": round(float(np.degrees(self.angle)) % 360, 1),
            "edge_from_middle_nm": round(self.distance / 10, 1),
            "edge_curvature_per_um": round(self.curvature * 1e4, 2),
        }


_EDGE_ANGSTROM = 80.0  # sigma at which an edge is looked for: wider than a membrane, narrower than a film is thick
_EDGE_BLOCK_ANGSTROM = 60.0
_MOST_EDGE_BLOCKS = 96  # along Y and X; more would only take longer
_EDGE_ANGLES = 60
_EDGE_RADII = (np.inf, 20_000.0, 11_000.0, 6_500.0)  # Å; holes of usual films measure 1.2 to 4 µm, lacey ones more
_SHARPEST_EDGE = 1 / 5_000  # 1 / Å
_EDGE_RIM_ANGSTROM = 160.0  # at the faces, where projections end and leave edges of their own
_EDGE_CLIP = 3.0  # robust standard deviations that a point of the edge counts at most
_EDGE_CLEAR = 2.8  # of these, on the average of the edge, at least: nearly all of it is an edge
_EDGE_MEDIAN = 4.0  # robust standard deviations of the middle point, at least
_EDGE_BACK = 0.4  # slope the other way beside the edge, at most; a membrane has as much of it, for it is thin
_EDGE_BACK_ANGSTROM = 300.0  # as far it is looked for
_LEAST_EDGE = 0.5  # of the shorter side in the plane
_GRAIN_ANGSTROM = 200.0  # side of the windows whose texture is measured
_GRAINIER = 0.04  # logarithm of the film's variance over the other's, at least
_LEAST_SIDE = 0.02  # share of the plane on either side
_EDGE_MARGIN_ANGSTROM = 100.0  # beyond the edge, for the false membrane that follows it
_EDGE_ENDS = 0.5  # of the slope in the best slice: as far along Z its edge is seen
_FILM_ENDS = 0.7  # as far along Z there is film; the edge is drawn out by the wedge and by the Gaussian
_MOST_FILM = 0.5  # of the tomogram


def find_carbon(coarse: Coarse) -> Film | None:
    """Film of a holey carbon grid that reaches into the tomogram from a side.

    Its edge is looked for: a line or an arc through the whole plane on which the grey value steps everywhere by far
    more than elsewhere, the same way, and does not step back, as it does at a membrane. It has to end above or below
    within the tomogram, since the film is thin. The film is the side with more texture, which must also be that which
    differs as the minority of the blocks does (dense matter).

    Parameters
    ----------
    coarse
        The tomogram.

    Returns
    -------
    Film or None
        None where no film is clearly to be seen.

    Raises
    ------
    InputError
        If the voxel size is unknown.
    """
    if coarse.voxel_size_angstrom is None:
        raise InputError("carbon is known by its size, and the voxel size is unknown; set voxel_size=NUMBER.")
    slopes = _Slopes.of(coarse)
    if slopes is None:
        return None
    found = slopes.clearest_edge()
    if found is None:
        return None
    sign, angle, distance, curvature = found
    steps = sign * slopes.along(angle, distance, curvature)  # of each slice
    peak = int(np.argmax(steps))
    near = np.arange(-_EDGE_BACK_ANGSTROM, _EDGE_BACK_ANGSTROM + 1, slopes.sizes[1:].min() / 2)
    back = -min(float(sign * slopes.along(angle, distance + off, curvature)[peak]) for off in near)
    log.debug("edge of carbon: %.1f robust standard deviations, back %.1f", steps[peak], back)
    if steps[peak] < _EDGE_MEDIAN or back > _EDGE_BACK * steps[peak]:
        return None
    seen, film = (_around(steps, peak, level * steps[peak]) for level in (_EDGE_ENDS, _FILM_ENDS))
    if seen == (0, len(steps)):
        return None  # a rim, padding, or the wall of a cell
    grain, share = _grain(coarse, *film, angle, distance, curvature)
    log.debug("carbon: log variance %.2f on a share of %.2f over the other side's", grain, share)
    values = coarse.values
    dense = np.sign(float(((values - values.mean()) ** 3).mean()))  # of the minority: -1 is dark
    # sign > 0: brighter beyond the edge, so this side is dark
    if not _LEAST_SIDE <= share <= 1 - _LEAST_SIDE or abs(grain) < _GRAINIER or np.sign(grain) != -sign * dense:
        return None
    if grain < 0:  # the film lies beyond
        angle, distance, curvature = angle + np.pi, -distance, -curvature

    def in_slices(blocks: tuple[int, int]) -> tuple[int, int]:
        first, last = blocks
        return first * coarse.steps[0], coarse.shape[0] if last == len(steps) else last * coarse.steps[0]

    both = in_slices(film), in_slices(seen)
    return Film(angle, distance, curvature, *both, coarse.voxel_size_angstrom, coarse.shape)


def _around(values: np.ndarray, peak: int, level: float) -> tuple[int, int]:
    """First, and one after the last, of the values around a peak that stay above a level."""
    below = np.append(values <= level, True)
    return int(np.flatnonzero(np.append(True, below[:peak]))[-1]), peak + int(np.argmax(below[peak:]))


def _beyond(
    angle: float, distance: float, curvature: float, shape: Sequence[int], sizes: Sequence[float] | np.ndarray
) -> np.ndarray:
    """(Y, X) Å: how far a grid's points lie beyond an edge, along its normal; the middle of the grid is the origin."""
    y, x = ((np.arange(side) - (side - 1) / 2) * size for side, size in zip(shape, sizes, strict=True))
    along_normal = np.cos(angle) * y[:, None] + np.sin(angle) * x
    along_edge = np.cos(angle) * x - np.sin(angle) * y[:, None]
    return np.asarray(along_normal - distance - curvature * along_edge**2 / 2)  # a circle, to second order


def _grain(
    coarse: Coarse, first: int, last: int, angle: float, distance: float, curvature: float
) -> tuple[float, float]:
    """Log variance on this side of an edge less that beyond it, medians of windows; share of this side."""
    sizes = coarse.angstrom[1:]
    values = coarse.values[first:last]
    fine = values - ndimage.gaussian_filter(values, (0, *(_GRAIN_ANGSTROM / 2 / sizes)))
    variance = np.square(fine).mean(axis=0, dtype=np.float64)
    sides = [max(1, round(_GRAIN_ANGSTROM / size)) for size in sizes]
    texture = np.log(np.maximum(ndimage.uniform_filter(variance, sides), 1e-30))
    beyond = _beyond(angle, distance, curvature, texture.shape, sizes)
    share = float((beyond < 0).mean())
    here, there = texture[beyond < -_GRAIN_ANGSTROM], texture[beyond > _GRAIN_ANGSTROM]
    if not here.size or not there.size:
        return 0.0, share
    return float(np.median(here) - np.median(there)), share


@dataclass(frozen=True)
class _Slopes:
    """Slopes of grey values in the plane.

    Attributes
    ----------
    values
        (2, Z, Y, X) float32: along Y and X, robust standard deviations.
    sizes
        (z, y, x): sides of a block, Å.
    usable
        (Y, X) bool: neither at a face nor at padding.
    """

    values: np.ndarray
    sizes: np.ndarray
    usable: np.ndarray

    @classmethod
    def of(cls, coarse: Coarse) -> "_Slopes | None":
        """None where the tomogram is too small or constant."""
        fine, sizes = coarse.values, coarse.angstrom.astype(float)
        by = [
            max(1, round(max(_EDGE_BLOCK_ANGSTROM, side * size / _MOST_EDGE_BLOCKS) / size))
            for side, size in zip(fine.shape[1:], sizes[1:], strict=True)
        ]
        height, width = (side // step for side, step in zip(fine.shape[1:], by, strict=True))
        sizes[1:] *= by
        rim = np.ceil(_EDGE_RIM_ANGSTROM / sizes[1:]).astype(int)
        if height < 2 * rim[0] + 4 or width < 2 * rim[1] + 4:
            return None

        def joined(values: np.ndarray) -> np.ndarray:
            cut = values[:, : height * by[0], : width * by[1]]
            return np.asarray(cut.reshape(len(cut), height, by[0], width, by[1]).mean(axis=(2, 4)))

        padding = (joined(coarse.flat) > 0.5).any(axis=0)
        sigma = np.maximum(_EDGE_ANGSTROM / sizes, (0.5, 1, 1))
        if padding.any():
            padding = ndimage.binary_dilation(padding, iterations=int(np.ceil(2 * sigma[1:].max())))
        usable = np.logical_not(padding)
        usable[: rim[0]] = usable[height - rim[0] :] = False
        usable[:, : rim[1]] = usable[:, width - rim[1] :] = False
        if not usable.any():
            return None
        grey = joined(fine)
        slopes = np.stack([ndimage.gaussian_filter(grey, sigma, order=order) for order in ((0, 1, 0), (0, 0, 1))])
        scatter = _ROBUST * float(np.median(np.abs(slopes[:, :, usable])))
        return cls(slopes / np.float32(scatter), sizes, usable) if scatter > 0 else None

    def _places(self, angle: float, distance: float | np.ndarray, curvature: float, spacing: float) -> np.ndarray:
        """(..., N) numbers of the blocks of edges at distances (..., 1), -1 where they are not usable."""
        shape = np.array(self.usable.shape)
        reach = float(np.hypot(*(shape * self.sizes[1:]))) / 2
        at = np.arange(-reach, reach + spacing, spacing)
        out = distance + curvature * at**2 / 2
        y, x = np.cos(angle) * out - np.sin(angle) * at, np.sin(angle) * out + np.cos(angle) * at
        row, column = (
            np.rint(place / size + (side - 1) / 2).astype(int)
            for place, size, side in zip((y, x), self.sizes[1:], shape, strict=True)
        )
        within = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
        number = np.where(within, row * shape[1] + column, 0)
        return np.where(within & self.usable.ravel()[number], number, -1)

    def along(self, angle: float, distance: float, curvature: float) -> np.ndarray:
        """(Z,) median slope along the normal of an edge; 0 where there is none of it."""
        number = self._places(angle, distance, curvature, float(self.sizes[1:].min()))
        number = number[number >= 0]
        if len(number) < 4:
            return np.zeros(self.values.shape[1])
        y, x = self.values.reshape(2, self.values.shape[1], -1)[:, :, number]
        return np.asarray(np.median(np.cos(angle) * y + np.sin(angle) * x, axis=1))

    def clearest_edge(self) -> tuple[float, float, float, float] | None:
        """Sign of the slope, angle, distance and curvature of the clearest edge; None if none is clear."""
        spacing = float(self.sizes[1:].min())
        sides = np.array(self.usable.shape) * self.sizes[1:]
        distances = np.arange(-np.hypot(*sides) / 2, np.hypot(*sides) / 2, spacing)[:, None]
        least = _LEAST_EDGE * sides.min() / (2 * spacing)
        slices = np.arange(0, self.values.shape[1], max(1, round(_EDGE_ANGSTROM / self.sizes[0])))
        flat = self.values[:, slices].reshape(2, len(slices), -1)
        best, clearest = (0, 0.0, 0.0, 0.0), 0.0
        for number in range(_EDGE_ANGLES):
            angle = 2 * np.pi * number / _EDGE_ANGLES
            slope = np.clip(np.cos(angle) * flat[0] + np.sin(angle) * flat[1], -_EDGE_CLIP, _EDGE_CLIP)
            slope = np.pad(slope, ((0, 0), (0, 1)))  # the last is number -1
            for radius in _EDGE_RADII:
                if np.isinf(radius) and number >= _EDGE_ANGLES // 2:
                    continue  # the same line
                places = self._places(angle, distances, 1 / radius, 2 * spacing)
                counts = (places >= 0).sum(axis=1)
                enough = counts >= least
                if not enough.any():
                    continue
                mean = np.abs(slope[:, places[enough]].sum(axis=2)) / counts[enough]
                z, line = np.unravel_index(int(np.argmax(mean)), mean.shape)
                if mean[z, line] > clearest:
                    clearest = float(mean[z, line])
                    best = (int(slices[z]), angle, float(distances[enough][line, 0]), 1 / radius)
        log.debug("clearest edge of carbon: %.2f of %.0f", clearest, _EDGE_CLIP)
        return self._refined(*best) if clearest >= _EDGE_CLEAR else None

    def _refined(self, z: int, angle: float, distance: float, curvature: float) -> tuple[float, float, float, float]:
        """Edge moved by descent to where its slope is largest, in the slice where it is steepest."""
        start = np.array([angle, distance / 1e3, curvature * 1e4])  # of one scale
        steps = self.along(angle, distance, curvature)
        sign = float(np.sign(steps[z]))
        z = int(np.argmax(sign * steps))

        def flatness(edge: np.ndarray) -> float:
            if not -_SHARPEST_EDGE * 1e4 <= edge[2] <= _SHARPEST_EDGE * 1e4:
                return 0.0
            number = self._places(edge[0], edge[1] * 1e3, edge[2] / 1e4, float(self.sizes[1:].min()) / 2)
            number = number[number >= 0]
            if len(number) < 4:
                return 0.0
            y, x = self.values[:, z].reshape(2, -1)[:, number]
            slope = sign * (np.cos(edge[0]) * y + np.sin(edge[0]) * x)
            return -float(np.sqrt(np.maximum(slope, 0)).mean())  # a root, so that all of the edge counts

        simplex = np.vstack([start, start + np.diag([0.06, 0.08, 0.3])])
        found = minimize(flatness, start, method="Nelder-Mead", options={"initial_simplex": simplex, "maxiter": 200}).x
        return sign, float(found[0]), float(found[1]) * 1e3, float(found[2]) / 1e4


# ---------------------------------------------------------------------- the rim


@dataclass(frozen=True)
class Border:
    """Rim in which the reconstruction is incomplete.

    Attributes
    ----------
    first, last
        (z, y, x): the first voxel that is kept, and the one after the last.
    shape
        (Z, Y, X) of the tomogram.
    """

    first: tuple[int, int, int]
    last: tuple[int, int, int]
    shape: tuple[int, ...]

    def outside(self, z: int) -> np.ndarray:
        """(Y, X) bool of slice `z`: in the rim."""
        out = np.ones(self.shape[1:], bool)
        if self.first[0] <= z < self.last[0]:
            out[self.first[1] : self.last[1], self.first[2] : self.last[2]] = False
        return out

    def facts(self) -> dict[str, Any]:
        """Facts for the record."""
        ends = (side - last for side, last in zip(self.shape, self.last, strict=True))
        return {f"{axis}_voxels": [first, end] for axis, first, end in zip("zyx", self.first, ends, strict=True)}


_RIM_PARTS = 8  # a rim is an eighth of a side at most
_RIM_SCATTERS = 6.0  # robust standard deviations of a layer's mean or log scatter from the inner ones


def find_border(coarse: Coarse) -> Border:
    """Rim of layers, parallel to a face, whose grey values differ from those of the layers within.

    Where tilt images do not cover the volume, fewer of them are summed: the scatter of a layer falls, and at the end of
    an image its mean jumps. Layers of blocks count from each face inward, along Y and X, as long as mean or logarithm
    of the scatter is far from those of the inner layers, at most an eighth of a side.

    Parameters
    ----------
    coarse
        The tomogram.
    """
    first, last = [0, 0, 0], list(coarse.shape)
    values = coarse.values.astype(np.float64)
    for axis in (1, 2):
        side = values.shape[axis]
        most = side // _RIM_PARTS
        if most < 1 or side < 12:
            continue
        others = tuple(other for other in range(3) if other != axis)
        layers = np.stack([values.mean(axis=others), np.log(np.maximum(values.std(axis=others), 1e-12))])
        inner = layers[:, most : side - most]
        middle = np.median(inner, axis=1, keepdims=True)
        scatter = _ROBUST * np.median(np.abs(inner - middle), axis=1, keepdims=True)
        odd = (np.abs(layers - middle) > _RIM_SCATTERS * np.maximum(scatter, 1e-9)).any(axis=0)
        step = coarse.steps[axis]
        for ends, line in ((first, odd), (last, odd[::-1])):
            if not line[0]:
                continue
            layer_count = int(np.argmin(line)) if not line[:most].all() else most
            width = layer_count * step
            if ends is last:
                width += coarse.shape[axis] - side * step  # what no block holds
            ends[axis] = width if ends is first else coarse.shape[axis] - width
    return Border((first[0], first[1], first[2]), (last[0], last[1], last[2]), coarse.shape)


# ---------------------------------------------------------------------- together


@dataclass(frozen=True)
class Regions:
    """Parts of one tomogram where nothing is marked.

    Attributes
    ----------
    shape
        (Z, Y, X).
    parts
        By name: `slab`, `gold`, `carbon`, `border`; None where no void or no film was to be seen.
    """

    shape: tuple[int, ...]
    parts: Mapping[str, "Slab | Beads | Film | Border | None"]

    def outside(self, z: int) -> np.ndarray:
        """(Y, X) bool of slice `z`: nothing is marked there."""
        out = np.zeros(self.shape[1:], bool)
        for part in self.parts.values():
            if part is not None:
                out |= part.outside(z)
        return out

    def fill(self, slices: Slices, value: float) -> LazySlices:
        """Slices (Z, Y, X) of logits, with `value` there."""

        def plane(z: int) -> np.ndarray:
            kept = slices[z]
            outside = self.outside(z)
            return np.where(outside, kept.dtype.type(value), kept) if outside.any() else kept

        return LazySlices(self.shape, plane)

    def facts(self) -> dict[str, Any]:
        """Facts for the record, by name of the part; empty where no void or no film was found."""
        return {name: {} if part is None else part.facts() for name, part in self.parts.items()}

    def words(self) -> str:
        """Sentence for the person."""
        said = []
        for name, part in self.parts.items():
            if isinstance(part, Slab):
                unit = "nm" if part.voxel_size_angstrom is not None else "voxels"
                least = "" if all(part.ends_within) else "at least "
                said.append(
                    f"sample is a slab of {least}{part.thickness:.0f} {unit}, tilted by {part.tilt_degrees:.0f}°; "
                    f"{100 * part.share:.0f} % of the tomogram is void"
                )
            elif isinstance(part, Beads):
                many = f"{len(part.beads)} gold bead{'' if len(part.beads) == 1 else 's'}"
                said.append(f"{many} left out" if part.beads else "no gold bead is to be seen")
            elif isinstance(part, Film):
                share = f"{100 * part.share:.0f} % of the tomogram"
                said.append(
                    f"a carbon film in slices {part.slices[0]} to {part.slices[1] - 1}, {share}, left out"
                    if part.believed
                    else f"what looks like carbon would be {share}, too much to be believed; none is left out"
                )
            elif isinstance(part, Border):
                y, x = list(part.facts().values())[1:]
                rims = f"rims of {y[0]} and {y[1]} (y) and {x[0]} and {x[1]} (x) voxels left out"
                said.append(rims if any((*y, *x)) else "no incomplete rim is to be seen")
            elif name == "slab":
                said.append("no void around the sample is to be seen, so all of the tomogram counts as sample")
            elif name == "carbon":
                said.append("no carbon film is clearly to be seen, so none is left out")
        return "; ".join(said)


@dataclass(frozen=True)
class RegionSettings:
    """Regions that are looked for in each tomogram.

    Attributes
    ----------
    sample
        `all`, or `slab`: nothing is marked outside the slab that holds sample.
    exclude
        Of `gold`, `carbon` and `border`: artefacts where nothing is marked.

    Raises
    ------
    ConfigError
        If a word is unknown.
    """

    sample: Literal["all", "slab"] = "all"
    exclude: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.sample not in ("all", "slab"):
            raise ConfigError(f"sample={self.sample} is unknown; allowed: all, slab.")
        unknown = [str(word) for word in self.exclude if word not in ARTEFACTS]
        if unknown or isinstance(self.exclude, str):
            raise ConfigError(
                f"exclude={','.join(unknown) or self.exclude} is unknown; allowed: {', '.join(ARTEFACTS)}."
            )

    @property
    def wanted(self) -> bool:
        """True if anything is looked for."""
        return self.sample == "slab" or bool(self.exclude)

    def find(self, coarse: Coarse) -> Regions:
        """Regions of a tomogram; raises `InputError` if gold or carbon is looked for without a voxel size."""
        parts: dict[str, Slab | Beads | Film | Border | None] = {}
        if self.sample == "slab":
            parts["slab"] = find_slab(coarse)
        if "gold" in self.exclude:
            parts["gold"] = find_gold(coarse)
        if "carbon" in self.exclude:
            parts["carbon"] = find_carbon(coarse)
        if "border" in self.exclude:
            parts["border"] = find_border(coarse)
        return Regions(coarse.shape, parts)


def regions_of_file(path: Location, settings: RegionSettings) -> "LeaveOut":
    """Step for masks of a tomogram, which is read once; raises `InputError` if it cannot be."""
    volume = read_volume(path)
    found = settings.find(Coarse.of(volume, volume.voxel_size_angstrom))
    log.info("%s: %s", display_name(path), found.words())
    return LeaveOut(found)


@dataclass(frozen=True)
class LeaveOut:
    """Step of post-processing: a mask without what lies in regions of its tomogram.

    Parameters
    ----------
    regions
        As `RegionSettings.find` gives them.

    Raises
    ------
    InputError
        From a call: the mask has another shape than the tomogram.
    """

    regions: Regions

    def __call__(self, mask: Slices, *, progress: Progress | None = None, workers: int | None = None) -> Slices:
        if tuple(mask.shape) != self.regions.shape:
            raise InputError(f"the mask has shape {tuple(mask.shape)}, and its tomogram {self.regions.shape}.")
        return LazySlices(
            self.regions.shape, lambda z: (foreground(mask, z) & ~self.regions.outside(z)).astype(np.uint8)
        ).keep_last()
