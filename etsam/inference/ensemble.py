"""Means of logits, and how far those that a mean is made of differ.

Members are views, directions, axes, inputs and stages. A mean of means is exact here, and so is its spread: the
variance of all is the mean of the variances within, plus the variance of the means.
"""

from collections.abc import Sequence

import numpy as np

from etsam.inference.tiles import BLEND_LIMIT
from etsam.volume.slices import LazySlices, Slices


class Averaged:
    """Logits of a volume that may be a mean, and the spread of its members.

    Parameters
    ----------
    logits
        (Z, Y, X) float32.
    spread
        Standard deviation of the members' logits, clamped to +-10 before, (Z, Y, X) float32; None: there is one member,
        or nobody has asked.
    """

    def __init__(self, logits: Slices, spread: Slices | None = None) -> None:
        self._logits, self.spread = logits, spread

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""
        return tuple(self._logits.shape)

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Logits of slice `z`, (Y, X) float32."""
        return self._logits[z]


def spread_of(logits: Slices) -> Slices | None:
    """Spread of logits that are `Averaged`; None of others."""
    return getattr(logits, "spread", None)


def average_of(members: Sequence[Slices]) -> Averaged:
    """Mean of the logits of members, each clamped to +-10 as those of overlapping tiles are, and its spread.

    -1024, which SAM2 gives a slice without any object, would otherwise outvote all others.

    Parameters
    ----------
    members
        (Z, Y, X) each, of one shape; `Averaged` ones with a spread of their own.

    Returns
    -------
    Averaged
        Computed slice by slice; a slice of a member is not computed again for the spread, if it is asked for next.
    """
    share = np.float32(1 / len(members))
    kept = [LazySlices.of(one).map(_clamped).keep_last() for one in members]
    within = [spread_of(one) for one in members]

    def mean(z: int) -> np.ndarray:
        return np.asarray(sum(share * one[z] for one in kept), np.float32)

    def spread(z: int) -> np.ndarray:
        middle = mean(z)
        variance = np.zeros_like(middle)
        for one, own in zip(kept, within, strict=True):
            variance += share * np.square(one[z] - middle)
            if own is not None:
                variance += share * np.square(own[z])
        return np.sqrt(variance)

    shape = tuple(members[0].shape)
    return Averaged(LazySlices(shape, mean), LazySlices(shape, spread))


def mean_of(members: Sequence[Slices]) -> Slices:
    """The only member as it is, or the average of several."""
    return members[0] if len(members) == 1 else average_of(members)


def with_spread_to(logits: Slices, other: Slices) -> Averaged:
    """The same logits; their spread is that of both together, each one half."""
    return Averaged(logits, average_of([logits, other]).spread)


def _clamped(plane: np.ndarray) -> np.ndarray:
    return np.clip(plane, -BLEND_LIMIT, BLEND_LIMIT)
