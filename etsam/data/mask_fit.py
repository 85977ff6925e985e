"""Whether a mask would fit its tomogram better if it were shifted, mirrored, or had its axes in another order.

Membranes differ in grey value from what is around them, so a mask that fits correlates with the tomogram, be they
dark or bright, and one that does not fit correlates where it would. Looked for by cross-correlation of both volumes
after slow changes of grey value are taken away.
"""

import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter, maximum_filter

from etsam.data.measured import IGNORE, labels
from etsam.normalize import Statistics, measure
from etsam.volume import Slices

# Our choices. Measured on the eleven PolNet tomograms, in standard deviations of the correlation: masks that fit peak
# at no shift with 35 to 82, masks of other tomograms anywhere with at most 14 (a sphere finds a sphere).
_SURE_DEVIATIONS = 20.0
_BETTER = 1.5  # how much higher the correlation elsewhere has to be than where the mask lies
_TURNED = 1.1  # and that of a turned mask than that of a shifted one, the simpler explanation
_DETAIL_SIGMA = 4.0  # coarse voxels: what changes more slowly is background
_LEAST_SIDE = 8  # coarse voxels; of thinner volumes nothing is said
_AXIS_NAMES = "ZYX"


@dataclass(frozen=True)
class Placement:
    """How to turn and move a mask so that it fits its tomogram.

    Attributes
    ----------
    axes
        The mask's axes in the order in which they should be: (0, 2, 1) means that Y and X are exchanged.
    mirrored
        Axes (after that) along which the mask is mirrored.
    shift_voxels
        (z, y, x) by which the mask has to be moved (after that); known to `step_voxels`.
    step_voxels
        Resolution of the shift.
    """

    axes: tuple[int, int, int]
    mirrored: tuple[int, ...]
    shift_voxels: tuple[int, int, int]
    step_voxels: int

    @property
    def what(self) -> str:
        """What is wrong, for a message."""
        parts = []
        if self.axes != (0, 1, 2):
            parts.append(f"its axes {axis_exchange(self.axes)}")
        if self.mirrored:
            parts.append(f"mirrored along {' and '.join(_AXIS_NAMES[axis] for axis in self.mirrored)}")
        if any(self.shift_voxels):
            about = "about " if self.step_voxels > 1 else ""
            parts.append(f"moved by {about}{self.shift_voxels} voxels (Z, Y, X)")
        return ", ".join(parts)


def axis_exchange(axes: tuple[int, ...]) -> str:
    """`Y and X exchanged`, or for a cyclic order `in the order Y, X, Z`.

    Examples
    --------
    >>> axis_exchange((0, 2, 1))
    'Y and X exchanged'
    """
    moved = [_AXIS_NAMES[place] for place, axis in enumerate(axes) if axis != place]
    return (
        f"{' and '.join(moved)} exchanged"
        if len(moved) == 2
        else f"in the order {', '.join(_AXIS_NAMES[axis] for axis in axes)}"
    )


def matching_axes(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Order of the axes in which a volume of `shape` would have the shape `wanted`; None if there is none.

    Examples
    --------
    >>> matching_axes((200, 100, 180), (100, 200, 180))
    (1, 0, 2)
    """
    exchanges_first = sorted(itertools.permutations(range(3)), key=lambda axes: sum(a != i for i, a in enumerate(axes)))
    return next((axes for axes in exchanges_first if tuple(shape[axis] for axis in axes) == tuple(wanted)), None)  # type: ignore[return-value]


def find_placement(grey: np.ndarray, mask: np.ndarray, step_voxels: int = 1) -> Placement | None:
    """Look for a better place of a mask.

    Parameters
    ----------
    grey, mask
        (Z, Y, X) float32 of equal shape: grey values, and share of membrane; means of blocks of `step_voxels` voxels.
    step_voxels
        Side of these blocks.

    Returns
    -------
    Placement or None
        None if the mask fits where it lies, or nothing correlates clearly enough.
    """
    if min(grey.shape) < _LEAST_SIDE or not mask.any():
        return None
    detail = _detail(grey)
    spectrum = fft.rfftn(detail)
    here = _correlate(spectrum, _detail(mask))
    identity = _near_zero(here)
    best_shift, best = _peak(here)
    if identity * _BETTER >= best and identity >= _SURE_DEVIATIONS * here.std():
        return None
    axes: tuple[int, int, int] = (0, 1, 2)
    mirrored: tuple[int, ...] = ()
    shift, height, deviation = best_shift, best, here.std()
    for order, flips in _orientations(grey.shape):
        correlation = _correlate(spectrum, _detail(np.flip(mask.transpose(order), flips)))
        place, peak = _peak(correlation)
        if peak > _TURNED * height:
            axes, mirrored, shift, height, deviation = order, flips, place, peak, correlation.std()
    if height < _SURE_DEVIATIONS * deviation or height < _BETTER * identity:
        return None
    z, y, x = (int(step) * step_voxels if abs(step) > 1 else 0 for step in shift)
    if axes == (0, 1, 2) and not mirrored and not any((z, y, x)):
        return None
    return Placement(axes, mirrored, (z, y, x), step_voxels)


def _orientations(shape: tuple[int, ...]) -> list[tuple[tuple[int, int, int], tuple[int, ...]]]:
    """Orders of axes that keep the shape, each with all mirrorings, without the one that changes nothing."""
    orders = [axes for axes in itertools.permutations(range(3)) if tuple(shape[axis] for axis in axes) == shape]
    mirrorings = [tuple(axis for axis in range(3) if bits >> axis & 1) for bits in range(8)]
    return [(axes, mirrored) for axes in orders for mirrored in mirrorings if mirrored or axes != (0, 1, 2)]  # type: ignore[misc]


def _detail(volume: np.ndarray) -> np.ndarray:
    detail: np.ndarray = volume - gaussian_filter(volume, _DETAIL_SIGMA)
    return detail / max(float(np.linalg.norm(detail)), 1e-30)


def _correlate(spectrum: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Correlation for every shift of the mask, the sign left away."""
    correlation: np.ndarray = np.abs(fft.irfftn(spectrum * np.conj(fft.rfftn(mask)), s=mask.shape))
    return correlation


def _near_zero(correlation: np.ndarray) -> float:
    """Highest value within one coarse voxel of no shift."""
    return float(max(correlation[shift] for shift in itertools.product((-1, 0, 1), repeat=3)))


def _peak(correlation: np.ndarray) -> tuple[tuple[int, ...], float]:
    """Shift of the highest value, at most a quarter of each side; negative ones wrapped around."""
    allowed = correlation.copy()
    for axis, side in enumerate(correlation.shape):
        np.moveaxis(allowed, axis, 0)[side // 4 + 1 : side - side // 4] = 0
    place = np.unravel_index(int(np.argmax(allowed)), allowed.shape)
    shift = tuple(int(p) if p <= side // 2 else int(p) - side for p, side in zip(place, allowed.shape, strict=True))
    return shift, float(allowed[place])


# The grey value of a bilayer blurs into its neighbourhood, so its surroundings start 3 voxels away; our choice.
_GAP_VOXELS, _REACH_VOXELS = 2, 6
_COARSE_SIDE = 160  # of the volumes that are compared as wholes: 16 MB each, whatever the tomogram's size

SUSPICIOUS_SHARE = 0.5
"""Share of membrane above which a mask is inverted or filled; our choice, PolNet's crowded tomograms have 0.1."""
CLEAR_CONTRAST = 0.2
"""Contrast (`PairMeasurement`) whose sign can be trusted. Measured on the PolNet tomograms: 0.35 to 1.2 under their own
masks, at most 0.08 under masks of other tomograms."""


@dataclass(frozen=True)
class PairMeasurement:
    """What one pass over a tomogram and its mask tells.

    Attributes
    ----------
    statistics
        Of the tomogram, as prediction and training measure them.
    membrane, annotated
        Voxels of the mask that are 1, and voxels that are 0 or 1.
    contrast
        (mean grey value under the mask - mean of the voxels 3 to 6 voxels away from it within the slice) / standard
        deviation of the latter: below 0 where membranes are dark. None without membrane or without surroundings.
    placement
        Where the mask would fit better than it lies; None if it fits or nothing can be said.
    mask_digest
        SHA-256 of which voxels are membrane: equal for copies, whatever the files' dtype and header.
    """

    statistics: Statistics
    membrane: int
    annotated: int
    contrast: float | None
    placement: Placement | None
    mask_digest: str

    @property
    def crowded(self) -> bool:
        """Whether more than half of the mask is membrane."""
        return self.membrane > SUSPICIOUS_SHARE * self.annotated

    @property
    def membranes(self) -> Literal["dark", "bright"] | None:
        """Contrast of the membranes, None where nobody can say: too little of it, or a mask that is wrong."""
        if self.contrast is None or abs(self.contrast) < CLEAR_CONTRAST or self.placement is not None or self.crowded:
            return None
        return "bright" if self.contrast > 0 else "dark"


class _Together:
    """Slices of the tomogram; whatever is read is compared with the same slice of the mask on the way."""

    def __init__(self, tomogram: Slices, mask: Slices) -> None:
        self._tomogram, self._mask = tomogram, mask
        self.shape = tomogram.shape
        self.membrane = self.annotated = 0
        self.digest = hashlib.sha256(repr(self.shape).encode())
        self._inside, self._around = np.zeros(3), np.zeros(3)  # number, sum, sum of squares
        self.factor = max(1, math.ceil(max(self.shape) / _COARSE_SIDE))
        self.coarse = np.zeros((2, *(-(-side // self.factor) for side in self.shape)), np.float32)

    def __getitem__(self, z: int, /) -> np.ndarray:
        plane = self._tomogram[z]
        found, _ = labels(self._mask[z])
        membrane = found == 1
        self.membrane += int(np.count_nonzero(membrane))
        self.annotated += int(np.count_nonzero(found != IGNORE))
        self.digest.update(np.packbits(membrane).tobytes())
        grey = plane.astype(np.float32)
        finite = np.isfinite(grey)
        if not finite.all():
            grey = np.where(finite, grey, grey[finite].mean() if finite.any() else np.float32(0))
        self._inside += _moments(grey[membrane & finite])
        if membrane.any():
            self._around += _moments(grey[_surroundings(membrane) & (found == 0) & finite])
        self.coarse[0, z // self.factor] += _block_means(grey, self.factor) / self.factor
        self.coarse[1, z // self.factor] += _block_means(membrane.astype(np.float32), self.factor) / self.factor
        return plane

    @property
    def contrast(self) -> float | None:
        """See `PairMeasurement`."""
        if not self._inside[0] or self._around[0] < 2:
            return None
        mean = self._around[1] / self._around[0]
        variance = self._around[2] / self._around[0] - mean**2
        if variance <= 1e-12 * max(mean**2, 1e-30):
            return None
        return float((self._inside[1] / self._inside[0] - mean) / math.sqrt(variance))


def _surroundings(membrane: np.ndarray) -> np.ndarray:
    near = maximum_filter(membrane, 2 * _GAP_VOXELS + 1)
    return maximum_filter(membrane, 2 * _REACH_VOXELS + 1) & ~near


def _moments(values: np.ndarray) -> np.ndarray:
    doubled = values.astype(np.float64)
    return np.array([doubled.size, doubled.sum(), np.vdot(doubled, doubled)])


def _block_means(plane: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor blocks; the last ones are filled up by repeating the edge."""
    if factor == 1:
        return plane
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % factor), (0, -width % factor)), mode="edge")
    rows, columns = padded.shape[0] // factor, padded.shape[1] // factor
    means: np.ndarray = padded.reshape(rows, factor, columns, factor).mean(axis=(1, 3))
    return means


def measure_pair(tomogram: Slices, mask: Slices, progress: Callable[[int, int], None] | None = None) -> PairMeasurement:
    """Read every slice of a tomogram and of its mask once.

    Parameters
    ----------
    tomogram
        (Z, Y, X), grey values of any real dtype.
    mask
        The same shape; 1 is membrane, 0 is not, 255 and -1 are not annotated.
    progress
        Called with (slices read, slices in all).

    Raises
    ------
    InputError
        If no voxel of the tomogram is finite, or a file cannot be read.
    """
    together = _Together(tomogram, mask)
    statistics = measure(together, progress)
    constant = not statistics.maximum > statistics.minimum
    return PairMeasurement(
        statistics=statistics,
        membrane=together.membrane,
        annotated=together.annotated,
        contrast=together.contrast,
        placement=None if constant else find_placement(together.coarse[0], together.coarse[1], together.factor),
        mask_digest=together.digest.hexdigest(),
    )
