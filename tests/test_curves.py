"""Sweeps of the threshold and scores by direction, against cases computed by hand."""

import numpy as np
import pandas as pd
import pytest

from etsam.evaluation.metrics.curves import precision_recall, sweeps
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.report.tables import THETA_COLUMNS, inclination_by_method
from etsam.labels import overlap_scores, stat_counts


def test_sweeps_find_the_best_single_and_each_own_best_threshold():
    def counted(name, *rows):
        thresholds = np.arange(len(rows), dtype=np.float32)
        return TomogramResult("m", name, thresholds=thresholds, counts=np.array(rows))

    # Dice: 2 TP / (2 TP + FP + FN)
    first = counted("a", (1, 1, 1), (2, 0, 0), (1, 0, 2))  # 0.5, 1, 0.5
    second = counted("b", (3, 0, 0), (1, 1, 1), (0, 0, 3))  # 1, 0.5, 0
    (sweep,) = sweeps([first, second])
    np.testing.assert_allclose(sweep.mean_dice, [0.75, 0.75, 0.25])
    assert sweep.best_fixed == (0.0, 0.75)
    np.testing.assert_allclose(sweep.oracle, [[1, 1], [0, 1]])
    assert sweep.oracle_mean == 1
    assert sweep.at(1.5) == pytest.approx(0.5)
    assert np.isnan(sweep.at(9))
    precision, recall = precision_recall(sweep.counts.sum(0))
    np.testing.assert_allclose(precision, [4 / 5, 3 / 4, 1])
    np.testing.assert_allclose(recall, [4 / 5, 3 / 4, 1 / 6])


def test_sweeps_use_the_thresholds_that_all_tomograms_share():
    one = TomogramResult("m", "a", thresholds=np.array([0.0, 0.1, 0.2], np.float32), counts=np.array([[1, 2, 3]] * 3))
    two = TomogramResult("m", "b", thresholds=np.array([0.1, 0.2, 0.3], np.float32), counts=np.array([[4, 5, 6]] * 3))
    (sweep,) = sweeps([one, two, TomogramResult("masks", "a")])
    np.testing.assert_allclose(sweep.thresholds, [0.1, 0.2])
    assert sweep.counts.shape == (2, 2, 3)


def test_two_empty_masks_agree_in_the_curve_as_in_the_score():
    assert overlap_scores(stat_counts(np.zeros((4, 5), bool), np.zeros((4, 5), np.uint8))).dice == 1.0
    results = [TomogramResult("m", "a", thresholds=np.array([0.0, 1.0]), counts=np.array([[0, 4, 0], [0, 0, 0]]))]
    assert sweeps(results)[0].best_fixed == (1.0, 1.0)


def test_precision_and_recall_of_nothing_are_not_defined():
    empty = np.zeros((1, 3), np.int64)
    assert np.isnan(precision_recall(empty)).all()


def test_by_inclination_recall_is_weighted_by_the_truth_and_precision_by_what_is_predicted():
    nothing = float("nan")
    rows = [  # recall, precision, voxels of the truth, voxels of the prediction
        ("m", "a", 0.0, 30.0, 1.0, 1.0, 100, 50),
        ("m", "b", 0.0, 30.0, 0.0, 0.5, 300, 50),
        ("m", "c", 0.0, 30.0, nothing, 0.0, 0, 100),  # false membranes where there is none
        ("m", "a", 30.0, 60.0, nothing, nothing, 0, 0),
        ("other", "a", 0.0, 30.0, 0.5, nothing, 10, 0),
    ]
    found = inclination_by_method(pd.DataFrame(rows, columns=list(THETA_COLUMNS))).set_index(
        ["method", "lower_degrees"]
    )
    np.testing.assert_allclose(found.loc[("m", 0.0), ["recall", "precision"]], [0.25, (50 + 25) / 200])
    np.testing.assert_allclose(found.loc[("m", 30.0), ["recall", "precision"]], nothing)
    np.testing.assert_allclose(found.loc[("other", 0.0), ["recall", "precision"]], [0.5, nothing])
