"""A tomogram and its mask read together, once and slice by slice: contrast of the membranes, and whether both fit."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import maximum_filter

from etsam.data.measured import IGNORE, labels
from etsam.data.placement import Placement, find_placement
from etsam.io import Slices
from etsam.normalize import Statistics, measure

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
