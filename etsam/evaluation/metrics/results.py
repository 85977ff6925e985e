"""Results of an evaluation, as the tables, tests and pictures of the report take them."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class SlicePicture:
    """One slice to look at.

    Attributes
    ----------
    axis, index
        Which slice: `z`, `y` or `x`, and its number.
    grey
        (A, B) float32, 0..1.
    truth
        (A, B) uint8: 0, 1, 255 = not annotated.
    prediction
        (A, B) bool.
    voxel_size_angstrom
        Along (A, B); None if unknown.
    averaged
        Number of slices whose mean is `grey`; the masks are those of the middle one.
    shows
        Why it is shown, such as `most membrane`; may be empty.
    """

    axis: str
    index: int
    grey: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    voxel_size_angstrom: tuple[float, float] | None = None
    averaged: int = 1
    shows: str = ""


class InclinationRow(NamedTuple):
    """Surfaces of one range of angles between their normal and Z.

    Attributes
    ----------
    lower_degrees, upper_degrees
        The range.
    recall
        Share of the truth's surface in it that lies within the tolerance of the predicted surface; NaN without any.
    precision
        Share of the predicted surface in it, by its own normals, that lies within the tolerance of the truth's.
    truth_voxels, predicted_voxels
        Surface voxels in it, which recall and precision are shares of.
    """

    lower_degrees: float
    upper_degrees: float
    recall: float
    precision: float
    truth_voxels: int
    predicted_voxels: int


@dataclass(frozen=True)
class TomogramResult:
    """Scores of one method on one tomogram.

    Attributes
    ----------
    method
        Name of the result set, such as `nano` or `membrain_seg`.
    tomogram
        `dataset_id/run_id`.
    error
        Why there are no scores (one line); empty if there are.
    metrics
        Name -> value; NaN where a metric is not defined. At least dice, iou, precision, recall.
    thresholds
        (N,) float32, increasing; empty for predictions that are masks.
    counts
        (N, 3) int64: true positives, false positives, false negatives of `logits > threshold`, without ignored voxels.
    threshold
        The one that the mask was made with; NaN for predictions that are masks.
    planes
        `xy`, `xz`, `yz` -> metric -> mean over the slices of that orientation that hold membrane in truth or
        prediction.
    inclination
        By the angle of the surface normal to Z.
    pictures
        Slices to look at.
    seconds
        Of prediction; NaN if it was not run here.
    voxels
        Of the tomogram; 0 if unknown.
    """

    method: str
    tomogram: str
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    thresholds: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    counts: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))
    threshold: float = float("nan")
    planes: dict[str, dict[str, float]] = field(default_factory=dict)
    inclination: tuple[InclinationRow, ...] = ()
    pictures: tuple[SlicePicture, ...] = ()
    seconds: float = float("nan")
    voxels: int = 0
