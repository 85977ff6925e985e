"""Calibration of an uncertainty: of the voxels with a chance of so much, as many should be wrong."""

from dataclasses import dataclass

import numpy as np

from etsam.inference.uncertainty import MOST


@dataclass(frozen=True)
class CalibrationCurve:
    """Bins of uncertainty that hold voxels, in ascending order.

    Attributes
    ----------
    expected
        Mean uncertainty of the voxels of a bin, (N,).
    found
        Share of them that are wrong, (N,).
    voxels
        Their number, (N,).
    """

    expected: np.ndarray
    found: np.ndarray
    voxels: np.ndarray


def calibration_curve(chance: np.ndarray, wrong: np.ndarray, bins: int = 20) -> CalibrationCurve:
    """Calibration curve of voxels.

    Parameters
    ----------
    chance
        Uncertainty, 0 to 0.5, any shape.
    wrong
        Voxels that are called wrongly, bool, of the same shape.
    bins
        Equal ones from 0 to 0.5.
    """
    number = np.minimum((chance.ravel() * (bins / MOST)).astype(int), bins - 1)
    voxels = np.bincount(number, minlength=bins)
    held = voxels > 0
    sums = [np.bincount(number, values.ravel(), bins)[held] / voxels[held] for values in (chance, wrong)]
    return CalibrationCurve(sums[0], sums[1], voxels[held])


def expected_calibration_error(curve: CalibrationCurve) -> float:
    """Mean distance of what is expected from what is found, over voxels (Naeini et al. 2015, AAAI)."""
    return float(np.average(np.abs(curve.expected - curve.found), weights=curve.voxels))
