"""Fit of a mask to its tomogram: the grey value under the mask against that around it, and the order of axes.

Membranes differ in grey value from what is around them, be they dark or bright; under a mask that belongs elsewhere
they do not.
"""

import hashlib
import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import maximum_filter

from etsam.data.measured import IGNORE, labels
from etsam.normalize import Statistics, measure
from etsam.volume import Slices

_AXIS_NAMES = "ZYX"


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


# The grey value of a bilayer blurs into its neighbourhood, so its surroundings start 3 voxels away; our choice.
_GAP_VOXELS, _REACH_VOXELS = 2, 6

SUSPICIOUS_SHARE = 0.5
"""Share of membrane above which a mask is inverted or filled; our choice, PolNet's crowded tomograms have 0.1."""
CLEAR_CONTRAST = 0.2
"""Contrast (`PairMeasurement`) whose sign can be trusted. Measured on the PolNet tomograms: 0.35 to 1.2 under their own
masks, at most 0.08 under masks of other tomograms."""


@dataclass(frozen=True)
class PairMeasurement:
    """Fit of a mask to its tomogram, from one pass over both.

    Attributes
    ----------
    statistics
        Of the tomogram, as prediction and training measure them.
    membrane, annotated
        Voxels of the mask that are 1, and voxels that are 0 or 1.
    contrast
        (mean grey value under the mask - mean of the voxels 3 to 6 voxels away from it within the slice) / standard
        deviation of the latter: below 0 where membranes are dark. None without membrane or without surroundings.
    mask_digest
        SHA-256 of which voxels are membrane: equal for copies, whatever the files' dtype and header.
    """

    statistics: Statistics
    membrane: int
    annotated: int
    contrast: float | None
    mask_digest: str

    @property
    def crowded(self) -> bool:
        """True if more than half of the mask is membrane."""
        return self.membrane > SUSPICIOUS_SHARE * self.annotated

    @property
    def membranes(self) -> Literal["dark", "bright"] | None:
        """Contrast of the membranes, None where nobody can say: too little of it, or a mask that is wrong."""
        if self.contrast is None or abs(self.contrast) < CLEAR_CONTRAST or self.crowded:
            return None
        return "bright" if self.contrast > 0 else "dark"


class _Compared:
    """Compares slices of a tomogram with those of its mask, as they pass."""

    def __init__(self, mask: Slices) -> None:
        self._mask = mask
        self.membrane = self.annotated = 0
        self.digest = hashlib.sha256(repr(mask.shape).encode())
        self._inside, self._around = np.zeros(3), np.zeros(3)  # number, sum, sum of squares

    def add(self, z: int, plane: np.ndarray) -> None:
        """Compare slice `z` of the tomogram, (Y, X)."""
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


def measure_pair(tomogram: Slices, mask: Slices) -> PairMeasurement:
    """Read every slice of a tomogram and of its mask once.

    Parameters
    ----------
    tomogram
        (Z, Y, X), grey values of any real dtype.
    mask
        The same shape; 1 is membrane, 0 is not, 255 and -1 are not annotated.

    Raises
    ------
    InputError
        If no voxel of the tomogram is finite, or a file cannot be read.
    """
    compared = _Compared(mask)
    statistics = measure(tomogram, seen=compared.add)
    return PairMeasurement(
        statistics=statistics,
        membrane=compared.membrane,
        annotated=compared.annotated,
        contrast=compared.contrast,
        mask_digest=compared.digest.hexdigest(),
    )
