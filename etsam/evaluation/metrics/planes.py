"""Scores by orientation of the slice: XY slices, as networks see them, and XZ and YZ, where the missing wedge shows."""

from typing import NamedTuple

import numpy as np

from etsam.labels import overlap_scores

PLANES = {"xy": "z", "xz": "y", "yz": "x"}
"""Orientation of a slice -> the axis that its number runs along."""


MOST_MEMBRANE, MOST_ERRORS = "most membrane", "most errors"
"""Reason for which a slice is shown."""


class Shown(NamedTuple):
    """A slice to look at: axis (`z`, `y` or `x`), number along it, and why."""

    axis: str
    number: int
    why: str


class PlaneCounter:
    """Counts voxels for every slice of the three orientations, while XY slices pass by once.

    Parameters
    ----------
    shape
        (Z, Y, X).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        # (slices, 3): true positives, false positives, false negatives
        self.counts = {plane: np.zeros((side, 3), np.int64) for plane, side in zip(PLANES, shape, strict=True)}

    def add(self, z: int, mask: np.ndarray, truth: np.ndarray) -> None:
        """Count slice `z`; both are (Y, X) bool and False where nobody annotated."""
        positions = np.flatnonzero(mask | truth)
        marked, membrane = mask.ravel()[positions], truth.ravel()[positions]
        column = np.where(marked, np.where(membrane, 0, 1), 2)
        for plane, number in (("xz", positions // mask.shape[1]), ("yz", positions % mask.shape[1])):
            counts = self.counts[plane]
            counts += np.bincount(3 * number + column, minlength=counts.size).reshape(counts.shape)
        self.counts["xy"][z] = np.bincount(column, minlength=3)

    def shown(self) -> "tuple[Shown, ...]":
        """Slices to look at: the XY slice with most errors, then of each orientation that with most true membrane.

        Without membrane in the truth it is the middle one. What is first and second is there once.
        """
        found = []
        for plane, axis in PLANES.items():
            membrane = self.counts[plane][:, 0] + self.counts[plane][:, 2]
            found.append(Shown(axis, int(np.argmax(membrane)) if membrane.any() else len(membrane) // 2, MOST_MEMBRANE))
        wrong = self.counts["xy"][:, 1:].sum(axis=1)
        worst = Shown("z", int(np.argmax(wrong)), MOST_ERRORS)
        if wrong.any() and worst.number == found[0].number:
            found[0] = Shown(*found[0][:2], f"{MOST_ERRORS}, {MOST_MEMBRANE}")
        elif wrong.any():
            found.insert(0, worst)
        return tuple(found)

    def scores(self) -> dict[str, dict[str, float]]:
        """Plane -> metric -> mean over the slices that hold membrane in truth or prediction; NaN if none does."""
        out = {}
        for plane, counts in self.counts.items():
            scores = overlap_scores(counts[counts.any(axis=1)])._asdict()
            out[plane] = {name: float(np.mean(values)) if len(values) else np.nan for name, values in scores.items()}
        return out
