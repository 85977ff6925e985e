"""Scores compared with other implementations (torchmetrics, MONAI, scipy, brute force) and with known answers."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_f1_score,
    binary_jaccard_index,
    binary_precision,
    binary_recall,
)

from etsam.errors import ConfigError, InputError
from etsam.evaluation.metrics.curves import area_under_curve, sweeps
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.metrics.scores import METRICS, Metrics, PackedMask, Scored
from etsam.evaluation.metrics.thresholds import ThresholdCounter, threshold_grid
from etsam.labels import overlap_scores, stat_counts

SHAPE = (9, 14, 17)
VOXEL = (4.0, 3.0, 2.0)
NONE: list[str] = []


def blobs(seed, shape=SHAPE, share=0.3):
    """Random masks with some extent, bool."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


def logits_of(seed, truth):
    noise = np.random.default_rng(seed).normal(scale=3, size=truth.shape)
    return (noise + np.where(truth, 1.5, -2.0)).astype(np.float32)


def with_ignored(truth, seed=7, value=255, dtype=np.uint8):
    out = truth.astype(dtype)
    out[np.random.default_rng(seed).random(truth.shape) < 0.2] = value
    return out


@pytest.mark.parametrize("value", [255, -1])
def test_overlap_scores_are_those_of_torchmetrics_without_ignored_voxels(value):
    truth = with_ignored(blobs(0), value=value, dtype=np.int16)
    logits = logits_of(1, blobs(0))
    found = Metrics(NONE)(truth, Scored(logits, -0.25)).metrics
    known = truth != value
    mask, target = torch.from_numpy(logits > -0.25)[known].int(), torch.from_numpy(truth)[known].int()
    for name, function in {
        "dice": binary_f1_score, "iou": binary_jaccard_index, "precision": binary_precision, "recall": binary_recall,
    }.items():  # fmt: skip
        assert found[name] == pytest.approx(float(function(mask, target)), abs=1e-6)
    assert set(found) == {"dice", "iou", "precision", "recall"}


def test_what_is_predicted_where_nobody_annotated_changes_no_score():
    truth = with_ignored(blobs(0))
    one = np.where(truth == 255, -9, logits_of(1, blobs(0))).astype(np.float32)
    other = np.where(truth == 255, 9, one).astype(np.float32)
    first, second = (Metrics()(truth, Scored(logits, -0.25), VOXEL) for logits in (one, other))
    assert first.metrics == second.metrics
    assert first.planes == second.planes
    np.testing.assert_array_equal(first.inclination, second.inclination)
    np.testing.assert_array_equal(first.counts, second.counts)


def test_identical_masks_score_1_and_disjoint_ones_0():
    truth = blobs(0, share=0.2)
    same = Metrics()(truth, Scored(mask=truth), VOXEL).metrics
    other = Metrics()(truth, Scored(mask=np.roll(truth, 1, axis=0) & ~truth), VOXEL).metrics
    for name in ("dice", "iou", "precision", "recall"):
        assert same[name] == 1
        assert other[name] == 0
    assert same["surface_dice"] == same["cldice"] == 1
    assert same["hausdorff95_angstrom"] == same["assd_angstrom"] == 0
    assert [same[f"betti{i}_error"] for i in range(3)] == [0, 0, 0]
    assert other["cldice"] == 0
    assert math.isnan(same["auprc"])  # a mask has no curve
    far = np.zeros(SHAPE, bool)
    far[0, 0, 0] = True
    end = far[::-1, ::-1, ::-1]
    assert Metrics(["surface"])(far, Scored(mask=end), VOXEL).metrics["surface_dice"] == 0


EMPTY, FULL = np.zeros(SHAPE, bool), blobs(0)


@pytest.mark.parametrize(("truth", "mask", "score"), [(EMPTY, EMPTY, 1), (EMPTY, FULL, 0), (FULL, EMPTY, 0)])
def test_empty_masks(truth, mask, score):
    logits = np.where(mask, 3, -3).astype(np.float32)
    found = Metrics()(truth, Scored(logits, -0.25), VOXEL)
    for name in ("dice", "iou", "precision", "recall", "surface_dice", "cldice"):
        assert found.metrics[name] == score
    assert math.isnan(found.metrics["hausdorff95_angstrom"])
    assert math.isnan(found.metrics["assd_angstrom"])
    assert math.isnan(found.metrics["auprc"]) == (not truth.any())
    assert len(found.counts) == len(found.thresholds) == 1000
    assert all(math.isnan(value) for value in found.planes["xy"].values()) == (not (truth | mask).any())


def test_surface_dice_of_masks_without_a_surface():
    full = np.ones(SHAPE, bool)
    scores = [Metrics(["surface"])(full, Scored(mask=mask), VOXEL).metrics["surface_dice"] for mask in (EMPTY, full)]
    assert scores[0] == 0
    assert math.isnan(scores[1])


@pytest.mark.parametrize(("scale", "doubtful"), [(1, False), (30, True), (0.01, True)])
def test_logits_that_the_thresholds_do_not_resolve_are_told(scale, doubtful):
    logits = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32) * scale
    assert bool(Metrics(["curve"])(FULL, Scored(logits, 0), VOXEL).doubt) == doubtful
    assert not Metrics([])(FULL, Scored(logits, 0), VOXEL).doubt


def test_scores_of_arrays_of_counts_are_those_of_single_counts():
    counts = np.array([[3, 1, 2], [0, 0, 0], [0, 2, 0], [0, 0, 5]])
    together = overlap_scores(counts)
    for row, count in enumerate(counts):
        alone = overlap_scores(count)
        assert isinstance(alone.dice, float)
        assert [scores[row] for scores in together] == list(alone)
    assert list(overlap_scores(counts[0])) == [6 / 9, 3 / 6, 3 / 4, 3 / 5]


def test_thresholds_are_dense_in_the_middle_and_hold_the_default_and_ones_own_exactly():
    grid = threshold_grid()
    assert len(grid) == 1000
    assert {np.float32(-0.25), np.float32(0)} <= set(grid)
    assert (np.diff(grid) > 0).all()
    assert grid[0] == pytest.approx(-20, abs=1e-4)
    assert grid[-1] == pytest.approx(20, abs=1e-4)
    assert np.diff(grid)[400:600].max() < 0.02
    assert len(threshold_grid(0.123)) == 1001
    assert np.float32(0.123) in threshold_grid(0.123)


def test_counts_at_every_threshold_are_exact():
    truth, known = blobs(0), blobs(5, share=0.8)
    logits = logits_of(1, truth)
    grid = threshold_grid()
    logits.flat[:1000] = grid[:1000]  # equal to a threshold is not above it
    counter = ThresholdCounter(grid)
    for z in range(SHAPE[0]):
        counter.add(logits[z], truth[z], known[z])
    for row, threshold in enumerate(grid):
        expected = stat_counts(logits > threshold, np.where(known, truth, 255).astype(np.uint8))[:3]
        np.testing.assert_array_equal(counter.counts[row], expected)


def test_area_under_the_curve_is_that_of_torchmetrics():
    truth = blobs(0)
    logits = logits_of(1, truth)
    counts = Metrics(["curve"])(truth, Scored(logits, -0.25)).counts
    chances = torch.sigmoid(torch.from_numpy(logits.astype(np.float64))).ravel()
    # torchmetrics calls >= what we call >; the exact curve differs by the width of a step
    exact = float(binary_average_precision(chances, torch.from_numpy(truth).ravel().int()))
    assert area_under_curve(counts) == pytest.approx(exact, abs=2e-3)
    rounded = np.clip(np.searchsorted(threshold_grid(), logits), 1, None)  # equal within a step: exact again
    target = torch.from_numpy(truth).ravel().int()
    target = torch.from_numpy(truth).ravel().int()
    exact = float(binary_average_precision(torch.from_numpy(rounded / 1001).ravel(), target))
    assert area_under_curve(counts) == pytest.approx(exact, abs=1e-6)


def test_best_thresholds_are_found_by_trying_all():
    results, dice = [], []
    for seed in range(3):
        truth = blobs(seed)
        logits = logits_of(seed + 10, truth) + seed
        found = Metrics(["curve"])(truth, Scored(logits, -0.25))
        results.append(TomogramResult("a", f"s/{seed}", thresholds=found.thresholds, counts=found.counts))
        values, target = torch.from_numpy(logits), torch.from_numpy(truth).int()
        dice.append([float(binary_f1_score((values > float(t)).int(), target)) for t in found.thresholds])
    (sweep,) = sweeps(results)
    grid = results[0].thresholds
    for row, own in enumerate(dice):
        assert sweep.oracle[row] == pytest.approx((grid[np.argmax(own)], max(own)), abs=1e-5)
    mean = np.mean(dice, axis=0)
    assert sweep.best_fixed == pytest.approx((grid[np.argmax(mean)], mean.max()), abs=1e-5)
    assert sweep.pooled_area == pytest.approx(area_under_curve(sum(result.counts for result in results)))


def test_scores_of_planes_are_means_over_slices_that_hold_membrane():
    truth, mask = blobs(0, share=0.1), blobs(1, share=0.1)
    truth[:2] = mask[:2] = False
    found = Metrics(["planes"])(truth, Scored(mask=mask)).planes
    for axis, plane in enumerate(("xy", "xz", "yz")):
        slices = [(np.take(truth, i, axis), np.take(mask, i, axis)) for i in range(SHAPE[axis])]
        dice = [2 * (t & p).sum() / (t.sum() + p.sum()) for t, p in slices if (t | p).any()]
        assert found[plane]["dice"] == pytest.approx(np.mean(dice), abs=1e-12)
        assert len(dice) < SHAPE[0] or axis > 0


@pytest.mark.parametrize("width", [0, 1, 3])
def test_layers_at_the_faces_can_be_left_out(width):
    truth, mask = blobs(0), blobs(1)
    inside = tuple(slice(width, side - width) for side in SHAPE)
    names = ["planes", "cldice"]
    found = Metrics(names, ignore_border_voxels=width)(truth, Scored(mask=mask)).metrics
    assert found == Metrics(names)(truth[inside], Scored(mask=mask[inside])).metrics


def test_a_packed_mask_is_the_mask():
    mask = blobs(0, (3, 5, 7))
    packed = PackedMask.of(mask)
    assert packed.shape == (3, 5, 7)
    np.testing.assert_array_equal([packed[z] for z in range(3)], mask)


@pytest.mark.parametrize(
    ("truth", "scored", "part"),
    [
        (FULL, Scored(mask=FULL[:-1]), "the prediction has shape (8, 14, 17), the mask of the truth (9, 14, 17)"),
        (FULL.astype(np.int8) * 2, Scored(mask=FULL), "not binary: slice 0 holds 2; allowed"),
        (np.full(SHAPE, 255), Scored(mask=FULL), "has no annotated voxel"),
        (FULL, Scored(np.where(FULL, np.nan, 0).astype(np.float32)), "slice 0 of the predicted logits holds values"),
    ],
)
def test_what_cannot_be_scored_is_refused(truth, scored, part):
    with pytest.raises(InputError, match=".*".join(part.replace("(", r"\(").replace(")", r"\)").split())):
        Metrics(NONE)(truth, scored)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"metrics": ["dice", "curve"]}, "dice; allowed is a list of curve, planes"),
        ({"metrics": "curve"}, "allowed is a list"),
        ({"surface_tolerance_angstrom": -1}, "surface_tolerance_angstrom=-1"),
        ({"ignore_border_voxels": -1}, "ignore_border_voxels=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, part):
    with pytest.raises(ConfigError, match=part):
        Metrics(**settings)


def test_without_a_voxel_size_there_are_no_angstroms():
    truth, mask = blobs(0), blobs(1)
    found = Metrics(["surface"])(truth, Scored(mask=mask)).metrics
    assert math.isnan(found["assd_angstrom"])
    assert (
        found["surface_dice"] == Metrics(["surface"])(truth, Scored(mask=mask), (5.0, 5.0, 5.0)).metrics["surface_dice"]
    )
    strict = Metrics(METRICS, surface_tolerance_angstrom=5)(truth, Scored(mask=mask))
    assert math.isnan(strict.metrics["surface_dice"])
    assert strict.inclination == ()


def brute_surface(mask, known):
    """Surface voxels of a small mask by looking at each voxel's neighbours, (n, 3)."""
    points = []
    for at in np.argwhere(mask & known):
        for step in np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)]):
            to = at + step
            if (to >= 0).all() and (to < mask.shape).all() and known[tuple(to)] and not mask[tuple(to)]:
                points.append(at)
                break
    return np.array(points)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_surface_scores_with_ignored_voxels_are_those_of_brute_force(share):
    truth, mask = blobs(2, share=share), blobs(3, share=share)
    known = np.random.default_rng(4).random(SHAPE) > 0.15
    found = Metrics(["surface"], surface_tolerance_angstrom=5.0)(np.where(known, truth, 255), Scored(mask=mask), VOXEL)
    table = cdist(brute_surface(truth, known) * VOXEL, brute_surface(mask, known) * VOXEL)
    there, back = table.min(1), table.min(0)
    both = np.concatenate([there, back])
    assert found.metrics["surface_dice"] == pytest.approx((both <= 5).mean(), abs=1e-6)
    assert found.metrics["assd_angstrom"] == pytest.approx(both.mean(), abs=1e-5)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert found.metrics["hausdorff95_angstrom"] == pytest.approx(expected, abs=1e-5)
    assert found.metrics["hausdorff95_pooled_angstrom"] == pytest.approx(np.percentile(both, 95), abs=1e-5)
