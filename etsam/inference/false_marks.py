"""Threshold by what the networks mark where there is nothing: in a copy of the tomogram whose phases are shuffled.

Such a copy has the power spectrum of the tomogram, so its noise, its transfer function and its missing wedge, and no
membranes. What is marked there is false. How it compares with a fixed threshold is measured in
`benchmarks/2026-11-auto_threshold.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft

from etsam.volume.slices import Slices

WINDOW = (64, 160, 160)  # Z, Y, X: largest part that is shuffled, voxels as the networks see them
BELOW, ABOVE = 2.5, 1.0  # of the fixed threshold: as far as the chosen one may lie; our choice
FALSE_RATE = 0.2  # by default; our choice
STEP = 0.1  # between thresholds that are tried
_SEED = 0


def richest_window(slices: Slices) -> tuple[slice, slice, slice]:
    """Part (Z, Y, X) of a volume with the largest variance of grey values, of `WINDOW` or the volume's side if less.

    Windows start at multiples of half a window, and at the far ends.

    Parameters
    ----------
    slices
        (Z, Y, X) float32; read once, unless it is no larger than a window.
    """
    sides = [min(side, most) for side, most in zip(slices.shape, WINDOW, strict=True)]
    starts = [
        np.unique(np.append(np.arange(0, whole - side + 1, max(1, side // 2)), whole - side))
        for whole, side in zip(slices.shape, sides, strict=True)
    ]
    sums = np.zeros((2, *map(len, starts)))
    if sums[0].size > 1:
        for z in range(slices.shape[0]):
            plane = slices[z].astype(np.float64)
            among = np.flatnonzero((starts[0] <= z) & (z < starts[0] + sides[0]))
            for power, values in enumerate((plane, plane**2)):
                table = np.zeros((plane.shape[0] + 1, plane.shape[1] + 1))
                table[1:, 1:] = values.cumsum(0).cumsum(1)
                (y, x), (height, width) = np.ix_(*starts[1:]), sides[1:]
                sums[power][among] += (
                    table[y + height, x + width] - table[y, x + width] - table[y + height, x] + table[y, x]
                )
    mean, squares = sums / np.prod(sides)
    best = np.unravel_index(int(np.argmax(squares - mean**2)), mean.shape)
    parts = [slice(int(first[at]), int(first[at]) + side) for first, at, side in zip(starts, best, sides, strict=True)]
    return parts[0], parts[1], parts[2]


def phase_shuffled(volume: np.ndarray) -> np.ndarray:
    """Volume (Z, Y, X) float32 of the same power spectrum and mean with random phases, clipped to 0..1; fixed seed."""
    volume = np.asarray(volume, np.float32)
    phases = fft.rfftn(np.random.default_rng(_SEED).standard_normal(volume.shape).astype(np.float32))
    phases /= np.maximum(np.abs(phases), np.float32(1e-12))
    phases[0, 0, 0] = 1  # the mean, which is positive, stays
    shuffled = fft.irfftn(np.abs(fft.rfftn(volume)) * phases, volume.shape)
    return np.clip(np.asarray(shuffled, np.float32), 0, 1)


def marked_shares(slices: Slices, thresholds: Sequence[float]) -> np.ndarray:
    """Share of voxels of logits (Z, Y, X) above each threshold, which increase, (N,)."""
    counts = np.zeros(len(thresholds) + 1, np.int64)
    voxels = 0
    for z in range(slices.shape[0]):
        plane = np.asarray(slices[z])
        above = np.searchsorted(np.asarray(thresholds, np.float32), plane.ravel(), side="left")
        counts += np.bincount(above, minlength=len(counts))
        voxels += plane.size
    return counts[::-1].cumsum()[::-1][1:] / voxels


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold that was chosen for one tomogram, and why.

    Attributes
    ----------
    fixed
        That of the weights, around which was looked.
    false_rate
        What was asked for: share of what is marked that may be false.
    thresholds
        That were tried, increasing.
    marked, false
        Share of voxels above each of them, in a part of the tomogram and in that part with its phases shuffled.
    """

    fixed: float
    false_rate: float
    thresholds: tuple[float, ...]
    marked: tuple[float, ...]
    false: tuple[float, ...]

    @classmethod
    def of(cls, logits: Slices, shuffled_logits: Slices, fixed: float, false_rate: float) -> "ThresholdChoice":
        """Choice from the logits of a part of the tomogram and those of its shuffled copy, (Z, Y, X)."""
        steps = np.arange(round(-BELOW / STEP), round(ABOVE / STEP) + 1)
        tried = tuple(round(float(fixed + STEP * step), 6) for step in steps)
        shares = (tuple(map(float, marked_shares(found, tried))) for found in (logits, shuffled_logits))
        return cls(fixed, false_rate, tried, *shares)

    @property
    def rates(self) -> np.ndarray:
        """Estimated share of what is marked that is false, at each threshold, 0 to 1; 1 where nothing is marked."""
        marked, false = np.array(self.marked), np.array(self.false)
        return np.where(marked > 0, np.minimum(1, false / np.maximum(marked, 1e-12)), 1.0)

    @property
    def place(self) -> int:
        """Number of the chosen threshold: the lowest at which no more than `false_rate` is false; else the highest."""
        low = np.flatnonzero(self.rates <= self.false_rate)
        return int(low[0]) if len(low) else len(self.thresholds) - 1

    @property
    def threshold(self) -> float:
        """The chosen threshold."""
        return self.thresholds[self.place]

    @property
    def reached(self) -> bool:
        """False if even at the highest threshold more is false than was asked for."""
        return bool(self.rates[self.place] <= self.false_rate)

    def words(self) -> str:
        """Sentence for the person."""
        here, fixed = self.place, self.thresholds.index(round(self.fixed, 6))

        def at(number: int) -> str:
            return f"{100 * self.marked[number]:.2f} % marked, {100 * self.false[number]:.2f} % with phases shuffled"

        text = f"threshold {self.threshold:g} chosen ({at(here)}"
        if here != fixed:
            text += f"; at {self.fixed:g}: {at(fixed)}"
        if not self.reached:
            return text + f"); more than {100 * self.false_rate:g} % of the marks may be false at any threshold"
        if here == 0:
            text += "; lower ones are not tried"
        return text + ")"

    def facts(self) -> dict[str, Any]:
        """Facts for the record; `from_facts` takes them back."""
        return {
            "threshold": self.threshold,
            "fixed": self.fixed,
            "false_rate": self.false_rate,
            "estimated_false_rate": round(float(self.rates[self.place]), 4),
            "reached": self.reached,
            "thresholds": list(self.thresholds),
            "marked_share": [float(f"{share:.4g}") for share in self.marked],
            "marked_share_with_phases_shuffled": [float(f"{share:.4g}") for share in self.false],
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any], false_rate: float | None = None) -> "ThresholdChoice":
        """Choice from a record, for another rate if one is given."""
        return cls(
            facts["fixed"],
            facts["false_rate"] if false_rate is None else false_rate,
            tuple(facts["thresholds"]),
            tuple(facts["marked_share"]),
            tuple(facts["marked_share_with_phases_shuffled"]),
        )
