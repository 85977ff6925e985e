"""Agreement of a mask with the truth, in numbers of voxels: what validation and evaluation both count."""

from typing import Any, NamedTuple

import numpy as np

IGNORE = 255
"""Label of voxels that nobody annotated: they count neither as membrane nor as background. -1 in files of int8."""

MARKED_255_ADVICE = "if 255 (or -1) marks membrane in it, write it as 1: `etsam postprocess IN OUT postprocess=none`"

_IMOD_ZERO = -128


def odd_value_advice(value: float) -> str:
    """Hint for masks that hold a value which none should hold, to follow a sentence; empty where nothing is known."""
    if value != _IMOD_ZERO:
        return ""
    return "; bytes of -128 are IMOD's 0 without its mark: write them anew with IMOD's `newstack -bytes 0 IN OUT`"


class Overlap(NamedTuple):
    """Scores made of true positives (TP), false positives (FP) and false negatives (FN); floats or arrays of them.

    Attributes
    ----------
    dice
        2 TP / (2 TP + FP + FN).
    iou
        TP / (TP + FP + FN).
    precision
        TP / (TP + FP).
    recall
        TP / (TP + FN).
    """

    dice: Any
    iou: Any
    precision: Any
    recall: Any


def stat_counts(mask: np.ndarray, target: np.ndarray) -> np.ndarray:
    """True positives, false positives, false negatives and true negatives, without ignored voxels (torchmetrics).

    Parameters
    ----------
    mask
        Any shape, bool.
    target
        The same shape, uint8: 0, 1, 255 = not annotated.

    Returns
    -------
    np.ndarray
        (4,) int64.
    """
    import torch  # late: masks are also read where nothing is scored
    from torchmetrics.functional.classification import binary_stat_scores

    scores = binary_stat_scores(
        torch.from_numpy(np.ascontiguousarray(mask)).int(),
        torch.from_numpy(np.ascontiguousarray(target)).int(),
        ignore_index=IGNORE,
        validate_args=False,
    )
    true_positive, false_positive, true_negative, false_negative, _ = scores.tolist()
    return np.array([true_positive, false_positive, false_negative, true_negative], dtype=np.int64)


def overlap_scores(counts: np.ndarray) -> Overlap:
    """Dice, IoU, precision and recall from counts.

    Where truth and prediction are both empty all four are 1; where only one of them is, all four are 0.

    Parameters
    ----------
    counts
        (..., 3 or more): true positives, false positives, false negatives; what follows is not looked at.

    Returns
    -------
    Overlap
        Arrays of the shape of `counts` without its last axis; floats for a single row.
    """
    true_positive, false_positive, false_negative = (np.asarray(counts)[..., i].astype(np.float64) for i in range(3))
    empty = true_positive + false_positive + false_negative == 0

    def ratio(part: np.ndarray, whole: np.ndarray) -> Any:
        score = np.where(empty, 1.0, np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0))
        return score if score.ndim else float(score)

    return Overlap(
        dice=ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
        iou=ratio(true_positive, true_positive + false_positive + false_negative),
        precision=ratio(true_positive, true_positive + false_positive),
        recall=ratio(true_positive, true_positive + false_negative),
    )
