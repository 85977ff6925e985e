"""Carbon film of a holey grid that reaches into the tomogram, found by its edge."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.optimize import minimize

from etsam.errors import InputError
from etsam.postprocess.coarse import ROBUST, Coarse

log = logging.getLogger(__name__)


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
        film, edge = self._film_and_edge
        (first, last), (edge_first, edge_last) = self.slices, self.edge_slices
        beside = edge_last - edge_first - (last - first)
        return float(film.mean() * (last - first) + edge.mean() * beside) / self.shape[0]

    @cached_property
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
        film, edge = self._film_and_edge
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

    def words(self) -> str:
        """Sentence for the person."""
        share = f"{100 * self.share:.0f} % of the tomogram"
        if not self.believed:
            return f"what looks like carbon would be {share}, too much to be believed; none is left out"
        return f"a carbon film in slices {self.slices[0]} to {self.slices[1] - 1}, {share}, left out"


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
        scatter = ROBUST * float(np.median(np.abs(slopes[:, :, usable])))
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
