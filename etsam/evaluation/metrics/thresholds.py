"""Voxels above a thousand thresholds, counted from two histograms of the logits; `curves` makes scores of them."""

import numpy as np
import torch

from etsam.inference.two_stage import DEFAULT_THRESHOLD

LOGIT_LIMIT = 20.0
"""Thresholds lie between +-20: beyond, a probability differs from 0 or 1 by less than 2.1e-9."""

_BASE_THRESHOLDS = 999  # odd, so that 0 (probability 1/2) is one of them
_TEMPERATURE = 4.0  # steps of 0.016 around 0, of 0.6 at +-20; with 1 the tails beyond +-7 would have no threshold
_LOST = 0.01  # share of the membrane below the lowest threshold, or of all above the highest, that goes unsaid
_FEWEST = 20  # thresholds among the logits
_CELLS = 1 << 15  # 0.0013 wide; steps between thresholds are at least 0.016


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

    Logits are sorted into cells much narrower than the steps between thresholds. All logits of a cell lie between the
    same two thresholds, except in the few cells that hold one: those logits are compared with the thresholds
    themselves. So the counts are exact, in a quarter of the time of comparing every logit.

    Parameters
    ----------
    thresholds
        (N,) float32, increasing.
    """

    def __init__(self, thresholds: np.ndarray) -> None:
        self.thresholds = thresholds
        # logits further out are as good as these
        self._least, self._greatest = np.float32(thresholds[0] - 1), np.float32(thresholds[-1] + 1)
        self._scale = np.float32((_CELLS - 1) / (float(self._greatest) - float(self._least)))
        self._cells_with_threshold = self._cells(thresholds)
        self._holds_threshold = np.zeros(_CELLS, bool)
        self._holds_threshold[self._cells_with_threshold] = True
        self._by_cell = np.zeros((2, _CELLS), np.int64)  # logits outside and inside the truth, in all cells
        self._compared = np.zeros((2, len(thresholds) + 1), np.int64)  # those compared, by thresholds below them

    def _cells(self, logits: np.ndarray) -> np.ndarray:
        """Cell of each logit, int64; a larger logit never has a smaller cell, however floats are rounded."""
        cells = np.clip(logits, self._least, self._greatest)
        cells -= self._least
        cells *= self._scale
        return cells.astype(np.int64)

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
        logits, truth = logits.ravel(), truth.ravel()
        cells = self._cells(logits)
        membrane = np.bincount(cells[truth], minlength=_CELLS)
        self._by_cell += np.bincount(cells, minlength=_CELLS) - membrane, membrane
        near = np.flatnonzero(self._holds_threshold[cells])
        grid = torch.from_numpy(self.thresholds)
        below = torch.bucketize(torch.from_numpy(logits[near]), grid).numpy()  # thresholds smaller than the logit
        columns = self._compared.shape[1]
        below += columns * truth[near]
        self._compared += np.bincount(below, minlength=2 * columns).reshape(2, columns)

    @property
    def counts(self) -> np.ndarray:
        """(N, 3) int64: true positives, false positives, false negatives of `logits > threshold`."""
        histogram = self._compared.copy()
        rest = np.flatnonzero(~self._holds_threshold)
        below = np.searchsorted(self._cells_with_threshold, rest)
        for row, cells in zip(histogram, self._by_cell, strict=True):
            np.add.at(row, below, cells[rest])
        above = histogram[:, ::-1].cumsum(axis=1)[:, ::-1]
        false_positive, true_positive = above[:, 1:]
        return np.stack([true_positive, false_positive, above[1, 0] - true_positive], axis=1)

    @property
    def doubt(self) -> str:
        """Why the counts say little of these logits, in a line; empty if nothing is wrong."""
        outside, membrane = self._by_cell.sum(axis=1)
        lost = int(self._by_cell[1, 0]), int(self._by_cell[:, -1].sum())
        if lost[0] > _LOST * membrane or lost[1] > _LOST * (outside + membrane):
            what = f"of logits beyond {LOGIT_LIMIT:g} no threshold tells one from another"
        else:
            met = np.flatnonzero(self._by_cell.any(axis=0))
            between = np.searchsorted(self._cells_with_threshold, met[[0, -1]]) if len(met) else np.zeros(2)
            if not 0 < between[1] - between[0] < _FEWEST:
                return ""
            what = f"only {between[1] - between[0]} thresholds lie among the logits"
        return f"{what}, so AUPRC and curve are too rough; give logits as log(p / (1 - p))"
