"""The losses against numbers by hand and plain loops, and what must not change them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from etsam.errors import ConfigError
from etsam.training.clip import SliceOutput
from etsam.training.losses import MaskLosses

CLIPS, SIDE = 2, 5


def output(candidates, ious, score, supervised=True):
    """One slice with one step; `candidates` (B, K, S, S)."""
    return SliceOutput([candidates], [ious], [score], candidates[:, :1], None, supervised)


@pytest.fixture
def slice_with_truth():
    """A random slice of two clips with three candidates, and its truth (T = 1, B, S, S)."""
    generator = torch.Generator().manual_seed(3)
    candidates = 3 * torch.randn(CLIPS, 3, SIDE, SIDE, generator=generator)
    ious = torch.rand(CLIPS, 3, generator=generator)
    truth = torch.rand(1, CLIPS, SIDE, SIDE, generator=generator) > 0.6
    return output(candidates, ious, torch.tensor([[0.7], [-1.2]])), truth


def by_hand(logits, truth):
    """Focal loss (alpha 1/4, gamma 2), dice loss and IoU of one mask, voxel by voxel in float64."""
    focal, overlap, marked, both, either = 0.0, 0.0, 0.0, 0, 0
    for logit, is_true in zip(logits.flatten().tolist(), truth.flatten().tolist(), strict=True):
        p = 1 / (1 + np.exp(-logit))
        right, alpha = (p, 0.25) if is_true else (1 - p, 0.75)
        focal -= alpha * (1 - right) ** 2 * np.log(right)
        overlap, marked = overlap + p * is_true, marked + p
        both, either = both + (logit > 0 and is_true), either + (logit > 0 or is_true)
    dice = 1 - (2 * overlap + 1) / (marked + truth.sum().item() + 1)
    return focal / truth.numel(), dice, both / max(either, 1)


def test_parts_equal_loops_over_voxels(slice_with_truth):
    found, truth = slice_with_truth
    mask = dice = iou = 0.0
    for clip in range(CLIPS):
        rows = [by_hand(found.candidates[0][clip, k], truth[0, clip]) for k in range(3)]
        best = min(rows, key=lambda row: 20 * row[0] + row[1])
        mask, dice = mask + best[0], dice + best[1]
        iou += np.mean([abs(float(found.ious[0][clip, k]) - rows[k][2]) for k in range(3)])
    losses = MaskLosses()([found], truth)
    assert [losses.mask.item(), losses.dice.item(), losses.iou.item()] == pytest.approx(
        [mask / CLIPS, dice / CLIPS, iou / CLIPS], rel=1e-5
    )


def test_object_part_is_the_cross_entropy_of_presence(slice_with_truth):
    found, truth = slice_with_truth
    truth[:, 1] = False
    expected = (np.log1p(np.exp(-0.7)) + np.log1p(np.exp(-1.2))) / CLIPS
    assert MaskLosses()([found], truth).object.item() == pytest.approx(expected, rel=1e-5)


def test_total_is_the_weighted_sum(slice_with_truth):
    found, truth = slice_with_truth
    losses = MaskLosses(mask=3, dice=5, iou=7, object=11)([found], truth)
    expected = 3 * losses.mask + 5 * losses.dice + 7 * losses.iou + 11 * losses.object
    torch.testing.assert_close(losses.total, expected)


def test_steps_and_slices_add_up(slice_with_truth):
    found, truth = slice_with_truth
    once = MaskLosses()([found], truth).total
    twice = replace(found, candidates=found.candidates * 2, ious=found.ious * 2, object_scores=found.object_scores * 2)
    torch.testing.assert_close(MaskLosses()([twice, found], truth.repeat(2, 1, 1, 1)).total, 3 * once)


def test_slices_that_are_not_supervised_do_not_count(slice_with_truth):
    found, truth = slice_with_truth
    outputs = [replace(found, supervised=False), found]
    losses = MaskLosses()(outputs, truth.repeat(2, 1, 1, 1))
    torch.testing.assert_close(losses.total, MaskLosses()([found], truth).total)


def test_absent_object_trains_the_object_score_only(slice_with_truth):
    found, truth = slice_with_truth
    losses = MaskLosses()([found], torch.zeros_like(truth))
    assert (losses.mask, losses.dice, losses.iou) == (0, 0, 0)
    assert losses.object > 0


def test_the_mask_of_a_slice_without_object_is_trained_if_asked(slice_with_truth):
    found, truth = slice_with_truth
    empty = torch.zeros_like(truth)
    losses = MaskLosses(train_empty=True)([found], empty)
    assert losses.mask > 0
    assert losses.dice > 0.9 * 1
    nothing = output(torch.full((CLIPS, 1, SIDE, SIDE), -20.0), torch.zeros(CLIPS, 1), torch.zeros(CLIPS, 1))
    assert MaskLosses(train_empty=True, object=0)([nothing], empty).total < 1e-3


def test_only_the_best_candidate_has_a_gradient_of_its_mask(slice_with_truth):
    found, truth = slice_with_truth
    candidates = found.candidates[0].clone()
    candidates[:, 1] = torch.where(truth[0], 5.0, -5.0)
    candidates.requires_grad_()
    MaskLosses()([replace(found, candidates=[candidates])], truth).total.backward()
    assert (candidates.grad.abs().sum(dim=(2, 3)) > 0).tolist() == [[False, True, False]] * CLIPS


def test_iou_of_the_best_candidate_only_if_asked(slice_with_truth):
    found, truth = slice_with_truth
    ious = found.ious[0].clone().requires_grad_()
    MaskLosses(supervise_all_iou=False, iou_l1=False)([replace(found, ious=[ious])], truth).total.backward()
    assert (ious.grad != 0).sum(dim=1).tolist() == [1, 1]


def test_perfect_prediction_has_almost_no_loss(slice_with_truth):
    _, truth = slice_with_truth
    logits = torch.where(truth[0, :, None], 30.0, -30.0)
    losses = MaskLosses()([output(logits, torch.ones(CLIPS, 1), torch.full((CLIPS, 1), 30.0))], truth)
    assert 0 <= losses.total < 1e-5


def test_ignored_voxels_change_nothing_whatever_they_hold(slice_with_truth):
    found, truth = slice_with_truth
    ignore = torch.rand(truth.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    other = torch.where(ignore[0, :, None], 100 * torch.randn(CLIPS, 3, SIDE, SIDE), found.candidates[0])
    before = MaskLosses()([found], truth, ignore)
    after = MaskLosses()([replace(found, candidates=[other])], truth ^ ignore, ignore)
    assert after == before


def test_annotated_part_counts_as_if_it_were_the_whole_slice(slice_with_truth):
    found, truth = slice_with_truth
    ignore = torch.zeros_like(truth)
    ignore[..., 3:] = True
    cut = MaskLosses()([replace(found, candidates=[found.candidates[0][..., :3]])], truth[..., :3])
    torch.testing.assert_close(MaskLosses()([found], truth, ignore).total, cut.total)


def test_slice_without_any_annotation_has_no_loss(slice_with_truth):
    found, truth = slice_with_truth
    assert MaskLosses()([found], truth, torch.ones_like(truth)).total == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1024.0, 6e4])
def test_extreme_logits_have_finite_loss_and_gradient(slice_with_truth, dtype, size):
    _, truth = slice_with_truth
    sign = torch.where(torch.rand(CLIPS, 3, SIDE, SIDE) > 0.5, 1, -1)
    candidates, score = (size * sign).to(dtype).requires_grad_(), torch.full((CLIPS, 1), -size, dtype=dtype)
    score.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = MaskLosses()([output(candidates, torch.ones(CLIPS, 3, dtype=dtype), score)], truth)
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert all(torch.isfinite(x).all() for x in (losses.total, candidates.grad, score.grad))


def test_number_of_clips_is_averaged_over_processes(slice_with_truth, monkeypatch):
    found, truth = slice_with_truth
    alone = MaskLosses()([found], truth).total
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda clips: clips.add_(6))  # the other process has 6 clips
    torch.testing.assert_close(MaskLosses()([found], truth).total, alone * CLIPS / 4)


@pytest.mark.parametrize("wrong", [{"dice": -1}, {"alpha": 1.5}, {"gamma": 0.5}, {"gamma": -1}], ids=str)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MaskLosses(**wrong)
