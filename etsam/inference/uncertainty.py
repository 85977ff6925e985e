"""Uncertainty of a mask: the expected chance that the call of a voxel, membrane or not, is wrong.

The logit says how sure the networks are, and how far members differ (views, directions, axes, inputs, both stages) says
how far to believe it. The chance of membrane is that of a logit known up to the spread s, which MacKay's approximation
(1992, Neural Computation 4:720, "The evidence framework applied to classification networks") makes
sigmoid((offset + slope * logit) / sqrt(1 + softening * s^2)).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from etsam.errors import ConfigError
from etsam.inference.ensemble import spread_of
from etsam.inference.tiles import BLEND_LIMIT
from etsam.volume.slices import LazySlices, Slices

MOST = 0.5
"""Largest uncertainty: a coin."""


@dataclass(frozen=True)
class Calibration:
    """Logit and spread -> chance of membrane, fitted to truth, for one set of weights.

    Attributes
    ----------
    offset, slope
        Of the logit.
    softening
        Of the squared spread; at 0 the spread says nothing.

    Raises
    ------
    ConfigError
        If `slope` is not above 0, or `softening` is below.
    """

    offset: float = 0.0
    slope: float = 1.0
    softening: float = 0.0

    def __post_init__(self) -> None:
        if not self.slope > 0 or not self.softening >= 0:
            raise ConfigError(
                f"weights.calibration=[{self.offset:g},{self.slope:g},{self.softening:g}] is not allowed; the second "
                "number has to be above 0, and the third at least 0."
            )

    @classmethod
    def of(cls, numbers: Sequence[float] | None) -> "Calibration":
        """Calibration of three numbers; None: the logits as they are."""
        if numbers is not None and len(numbers) != 3:
            raise ConfigError(f"weights.calibration has {len(numbers)} numbers; it takes offset, slope and softening.")
        return cls(*(numbers or ()))

    def membrane(self, logits: np.ndarray, spread: np.ndarray | float = 0.0) -> np.ndarray:
        """Chance of membrane, 0 to 1, float32 of the shape of the logits, which are clamped to +-10."""
        limited = np.clip(logits, -BLEND_LIMIT, BLEND_LIMIT)
        softened = np.sqrt(1 + self.softening * np.square(spread))
        return np.asarray(expit((self.offset + self.slope * limited) / softened), np.float32)

    def wrong(self, logits: np.ndarray, threshold: float, spread: np.ndarray | float = 0.0) -> np.ndarray:
        """Chance that calling logits above the threshold membrane, and others not, is wrong; 0 to 0.5, float32."""
        membrane = self.membrane(logits, spread)
        return np.minimum(np.where(logits > threshold, 1 - membrane, membrane), np.float32(MOST))


def uncertainty(logits: Slices, threshold: float, calibration: Calibration) -> LazySlices:
    """Uncertainty (Z, Y, X) float32, 0 to 0.5, of logits; their spread counts if they have one."""
    spread = spread_of(logits)

    def plane(z: int) -> np.ndarray:
        return calibration.wrong(logits[z], threshold, 0.0 if spread is None else spread[z])

    return LazySlices(tuple(logits.shape), plane)
