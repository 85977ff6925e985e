"""Precision, recall and Dice at a thousand thresholds, from two histograms of the logits."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from etsam.evaluation.results import TomogramResult
from etsam.inference.two_stage import DEFAULT_THRESHOLD
from etsam.overlap import overlap_scores

LOGIT_LIMIT = 20.0
"""Thresholds lie between +-20: beyond, a probability differs from 0 or 1 by less than 2.1e-9."""

_BASE_THRESHOLDS = 999  # odd, so that 0 (probability 1/2) is one of them
_TEMPERATURE = 4.0  # steps of 0.016 around 0, of 0.6 at +-20; with 1 the tails beyond +-7 would have no threshold


def threshold_grid(threshold: float = DEFAULT_THRESHOLD) -> np.ndarray:
    """Thresholds at which predictions are counted, the same for all tomograms.

    999 of them are 4 * logit(p) with p evenly spaced, from -20 to 20: dense where networks are undecided. 0, the
    default -0.25 and `threshold` are among them exactly.

    Parameters
    ----------
    threshold
        The one that makes masks.

    Returns
    -------
    np.ndarray
        (1000 or 1001,) float32, increasing.
    """
    end = 1 / (1 + np.exp(-LOGIT_LIMIT / _TEMPERATURE))
    half = np.linspace(0.5, end, _BASE_THRESHOLDS // 2 + 1)
    positive = _TEMPERATURE * np.log(half / (1 - half))
    grid = np.concatenate([-positive[:0:-1], positive]).astype(np.float32)
    return np.union1d(grid, np.array([DEFAULT_THRESHOLD, threshold], np.float32))


class ThresholdCounter:
    """Counts, slice by slice, what each threshold would call membrane.

    Parameters
    ----------
    thresholds
        (N,) float32, increasing.
    """

    def __init__(self, thresholds: np.ndarray) -> None:
        self.thresholds = thresholds
        self._histogram = np.zeros((2, len(thresholds) + 1), np.int64)

    def add(self, logits: np.ndarray, truth: np.ndarray, annotated: np.ndarray | None = None) -> None:
        """Count a slice.

        Parameters
        ----------
        logits
            Any shape, float32.
        truth
            The same shape, bool.
        annotated
            The same shape, bool; None: all voxels.
        """
        if annotated is not None:
            logits, truth = logits[annotated], truth[annotated]
        grid = torch.from_numpy(self.thresholds)
        below = torch.bucketize(torch.from_numpy(np.ascontiguousarray(logits).ravel()), grid, out_int32=True).numpy()
        columns = self._histogram.shape[1]  # `below`: how many thresholds are smaller than the logit
        below += columns * truth.ravel().astype(np.int32)
        self._histogram += np.bincount(below, minlength=2 * columns).reshape(2, columns)

    @property
    def counts(self) -> np.ndarray:
        """(N, 3) int64: true positives, false positives, false negatives of `logits > threshold`."""
        above = self._histogram[:, ::-1].cumsum(axis=1)[:, ::-1]
        false_positive, true_positive = above[:, 1:]
        return np.stack([true_positive, false_positive, above[1, 0] - true_positive], axis=1)


def area_under_curve(counts: np.ndarray) -> float:
    """Area under the precision-recall curve as average precision: sum of (recall step) x (precision after the step).

    That is what torchmetrics' `BinaryAveragePrecision` and scikit-learn's `average_precision_score` compute, here over
    the thresholds given: membrane whose logit is below the lowest of them counts as never found. Where no threshold
    calls anything membrane precision is undefined, and nothing is added.

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
    scores = overlap_scores(counts)
    steps = scores.recall - np.append(scores.recall[1:], 0.0)
    return float(np.sum(steps * scores.precision))


def oracle(thresholds: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Threshold with the best Dice for one tomogram, which only its truth can tell, and that Dice.

    Of equally good ones the lowest. NaN without thresholds.
    """
    if len(thresholds) == 0:
        return float("nan"), float("nan")
    dice = overlap_scores(counts).dice
    best = int(np.argmax(dice))
    return float(thresholds[best]), float(dice[best])


def _with_curve(results: Iterable[TomogramResult]) -> list[TomogramResult]:
    return [result for result in results if not result.error and len(result.thresholds)]


def _same_thresholds(results: Sequence[TomogramResult]) -> np.ndarray:
    thresholds = results[0].thresholds
    if any(not np.array_equal(thresholds, result.thresholds) for result in results):
        raise ValueError("results with different thresholds cannot be put together")
    return thresholds


def pooled_counts(results: Iterable[TomogramResult]) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds and counts of all voxels of all tomograms together; empty arrays if none has a curve.

    Raises
    ------
    ValueError
        If their thresholds differ.
    """
    found = _with_curve(results)
    if not found:
        return np.empty(0, np.float32), np.empty((0, 3), np.int64)
    return _same_thresholds(found), np.sum([result.counts for result in found], axis=0)


def best_fixed_threshold(results: Iterable[TomogramResult]) -> tuple[float, float]:
    """The one threshold with the best mean Dice over tomograms, and that mean; NaN if none has a curve.

    Raises
    ------
    ValueError
        If their thresholds differ.
    """
    found = _with_curve(results)
    if not found:
        return float("nan"), float("nan")
    thresholds = _same_thresholds(found)
    dice = np.mean([overlap_scores(result.counts).dice for result in found], axis=0)
    best = int(np.argmax(dice))
    return float(thresholds[best]), float(dice[best])
