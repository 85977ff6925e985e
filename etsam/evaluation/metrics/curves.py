"""Sweep of the threshold: Dice at every threshold, the best ones, precision against recall."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from etsam.evaluation.metrics.results import TomogramResult
from etsam.labels import overlap_scores

_DECIMALS = 5  # thresholds that agree so far are the same


@dataclass(frozen=True)
class Sweep:
    """Counts of one method at the thresholds that all its tomograms share.

    Attributes
    ----------
    method
        Name.
    tomograms
        M names.
    thresholds
        (N,) float64, increasing.
    counts
        (M, N, 3) int64: true positives, false positives, false negatives.
    threshold
        The one that all masks were made with; NaN if there are several, or none is known.
    """

    method: str
    tomograms: tuple[str, ...]
    thresholds: np.ndarray
    counts: np.ndarray
    threshold: float = math.nan

    @property
    def dice(self) -> np.ndarray:
        """(M, N) float64; 1 where neither truth nor prediction has membrane."""
        return overlap_scores(self.counts).dice

    @property
    def mean_dice(self) -> np.ndarray:
        """(N,): mean over tomograms."""
        return self.dice.mean(axis=0)

    def at(self, threshold: float) -> float:
        """Mean Dice at a threshold, linear between those of the sweep; NaN outside."""
        return float(np.interp(threshold, self.thresholds, self.mean_dice, left=np.nan, right=np.nan))

    @property
    def best_fixed(self) -> tuple[float, float]:
        """(threshold, mean Dice) of the one threshold that serves all these tomograms best."""
        best = int(np.argmax(self.mean_dice))
        return float(self.thresholds[best]), float(self.mean_dice[best])

    @property
    def oracle(self) -> np.ndarray:
        """(M, 2): threshold and Dice of each tomogram at its own best threshold, which needs the truth to be known."""
        best = self.dice.argmax(axis=1)
        return np.stack([self.thresholds[best], self.dice.max(axis=1)], axis=1)

    @property
    def oracle_mean(self) -> float:
        """Mean of the tomograms' own best Dice."""
        return float(self.oracle[:, 1].mean())

    @property
    def pooled_area(self) -> float:
        """Area under the precision-recall curve of all voxels of all tomograms together."""
        return area_under_curve(self.counts.sum(0))


def area_under_curve(counts: np.ndarray) -> float:
    """Area under the precision-recall curve as average precision: sum of (recall step) x (precision after the step).

    That is what torchmetrics' `BinaryAveragePrecision` and scikit-learn's `average_precision_score` compute, here over
    the thresholds given: membrane whose logit is below the lowest of them counts as never found.

    Parameters
    ----------
    counts
        (N, 3): true positives, false positives, false negatives, for increasing thresholds.

    Returns
    -------
    float
        0 to 1; NaN without any membrane in the truth, or without thresholds.
    """
    if len(counts) == 0 or counts[0, 0] + counts[0, 2] == 0:
        return float("nan")
    precision, recall = precision_recall(counts)
    steps = recall - np.append(recall[1:], 0.0)
    return float(np.nansum(steps * precision))  # no precision where nothing is called membrane: there is no step


def sweeps(results: Sequence[TomogramResult]) -> list[Sweep]:
    """Sweeps of the methods that have thresholds, in the order of the results."""
    by_method: dict[str, list[TomogramResult]] = {}
    for result in results:
        if len(result.thresholds) and not result.error:
            by_method.setdefault(result.method, []).append(result)
    found = []
    for method, own in by_method.items():
        rounded = [np.round(np.asarray(result.thresholds, np.float64), _DECIMALS) for result in own]
        shared = rounded[0]
        for other in rounded[1:]:
            shared = np.intersect1d(shared, other)
        if not shared.size:
            continue
        counts = np.stack(
            [result.counts[np.isin(grid, shared)] for grid, result in zip(rounded, own, strict=True)]
        ).astype(np.int64)
        made_with = {result.threshold for result in own}
        threshold = made_with.pop() if len(made_with) == 1 else math.nan
        found.append(Sweep(method, tuple(result.tomogram for result in own), shared, counts, threshold))
    return found


def precision_recall(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """TP / (TP + FP) and TP / (TP + FN) of counts (..., 3); NaN for 0 / 0."""
    true, wrong, missed = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return _ratio(true, true + wrong), _ratio(true, true + missed)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
