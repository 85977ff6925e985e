"""Passes: which slices are gone through one after another, in which direction, each with a memory of its own.

The memory of the networks reaches backwards only, so that slice z is segmented by what lies before it. A pass in the
other direction knows what lies behind it; the mean of both knows either side, for twice the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from etsam.errors import ConfigError
from etsam.inference.ensemble import Averaged, mean_of, spread_of
from etsam.volume.slices import LazySlices, Slices

Propagation = Literal["forward", "backward", "bidirectional"]

_PROPAGATIONS = ("forward", "backward", "bidirectional")


@dataclass(frozen=True)
class Pass:
    """Slices `first` to `last` of a volume, both included; backward if `last` is the smaller."""

    first: int
    last: int

    @property
    def step(self) -> int:
        """1, or -1 if it goes backward."""
        return 1 if self.last >= self.first else -1

    @property
    def depth(self) -> int:
        """Number of its slices."""
        return abs(self.last - self.first) + 1

    def of(self, slices: Slices) -> LazySlices:
        """Slices of a volume (Z, Y, X) in the order of the pass, (depth, Y, X)."""
        whole = LazySlices.of(slices)
        return LazySlices((self.depth, *whole.shape[1:]), lambda place: whole.plane(self.first + self.step * place))

    def put_back(self, slices: Slices, depth: int) -> LazySlices:
        """Slices of a volume (Z, Y, X) from those of the pass; there are none where it does not go."""
        return LazySlices((depth, *slices.shape[1:]), lambda z: slices[self.step * (z - self.first)])

    def __contains__(self, z: int) -> bool:
        return min(self.first, self.last) <= z <= max(self.first, self.last)


def check_direction(propagation: str, start_slice: int | None) -> None:
    """Refuse what is no direction.

    Raises
    ------
    ConfigError
        If `propagation` is unknown, or `start_slice` is no slice, or is given for another direction than `forward`.
    """
    if propagation not in _PROPAGATIONS:
        raise ConfigError(f"propagation={propagation} is unknown; allowed: {', '.join(_PROPAGATIONS)}.")
    if start_slice is None:
        return
    if type(start_slice) is not int or start_slice < 0:
        raise ConfigError(f"start_slice={start_slice} is no slice; they are counted from 0.")
    if propagation != "forward":
        raise ConfigError(
            f"start_slice={start_slice} goes both ways from there, so propagation={propagation} has no meaning; "
            "leave one of them out."
        )


def passes(depth: int, propagation: Propagation = "forward", start_slice: int | None = None) -> list[Pass]:
    """Passes through a volume.

    Parameters
    ----------
    depth
        Z.
    propagation
        `forward`: from slice 0 to the last; `backward`: from the last to slice 0; `bidirectional`: both.
    start_slice
        From this slice to the last, and from it to slice 0, instead.

    Raises
    ------
    ConfigError
        If the volume has no such slice.
    """
    last = depth - 1
    if start_slice is not None:
        if start_slice > last:
            raise ConfigError(f"start_slice={start_slice} is beyond the last slice, {last}; they are counted from 0.")
        both = Pass(start_slice, last), Pass(start_slice, 0)
        return [one for one in both if one.depth > 1] or [both[0]]  # a pass of one slice has nothing to remember
    found = {"forward": [Pass(0, last)], "backward": [Pass(last, 0)]}
    return found[propagation] if propagation in found else [Pass(0, last), Pass(last, 0)]


def joined(logits: Sequence[Slices], ways: Sequence[Pass], depth: int) -> Slices:
    """Logits of a volume from those of its passes.

    Parameters
    ----------
    logits
        (depth of the pass, Y, X) float32 for each pass; `Averaged` if the spread of views is known.
    ways
        Passes, which go through every slice.
    depth
        Z.

    Returns
    -------
    Slices
        (Z, Y, X): means of passes that both go through all slices, clamped to +-10; where they start from one slice,
        each has its own, and the start slice is that of the first.
    """
    if len(ways) == 1 and ways[0] == Pass(0, depth - 1):
        return logits[0]
    whole = [_put_back(one, way, depth) for one, way in zip(logits, ways, strict=True)]
    if all(way.depth == depth for way in ways):
        return mean_of(whole)

    def choose(parts: Sequence[Slices]) -> LazySlices:
        def plane(z: int) -> np.ndarray:
            return next(part for part, way in zip(parts, ways, strict=True) if z in way)[z]

        return LazySlices(tuple(parts[0].shape), plane)

    spreads = [one.spread for one in whole]
    return Averaged(choose(whole), None if None in spreads else choose([one for one in spreads if one is not None]))


def _put_back(logits: Slices, way: Pass, depth: int) -> Averaged:
    spread = spread_of(logits)
    return Averaged(way.put_back(logits, depth), None if spread is None else way.put_back(spread, depth))
