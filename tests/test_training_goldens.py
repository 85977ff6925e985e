"""Losses, gradients and outputs of SAM2's own training code on one clip batch with random weights.

`ETSAM_GOLDENS=DIR pytest tests/test_training_goldens.py` checks any folder DIR/training of that form (README.md there):
`training_model.yaml`, `training_init.pt` and `training_clip.npz`, whose first path segments are the runs.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from etsam.network.build import build_tracker
from etsam.training.clip import forward_clip
from etsam.training.losses import MaskLosses
from etsam.training.prompting import ClipPlan

GOLDENS = Path(os.environ.get("ETSAM_GOLDENS", Path(__file__).parent / "goldens"))
FOLDER = GOLDENS / "training"
NAMES = ["training_clip.npz", "training_model.yaml", "training_init.pt"]
COMPLETE = all((FOLDER / name).exists() for name in NAMES)
pytestmark = pytest.mark.skipif(not COMPLETE, reason=f"no {', '.join(NAMES)} in {FOLDER.name}")


def read():
    if not COMPLETE:
        return {}
    with np.load(FOLDER / "training_clip.npz") as file:
        return dict(file)


FILE = read()
RUNS = sorted(key.removesuffix("/core_loss") for key in FILE if key.endswith("/core_loss"))
DEPTH = len(FILE["masks"]) if FILE else 0


def of_slice(run, z, name):
    return FILE.get(f"{run}/slice{z}/{name}")


def plan_of(run):
    """Clicks and corrections as the numbers of points and steps tell; without any, slice 0 is prompted by its mask."""
    prompts, corrections = {}, {}
    for z in range(DEPTH):
        steps, points = int(of_slice(run, z, "steps")), of_slice(run, z, "points")
        if points is not None and points.shape[1] == steps:
            prompts[z] = "click"
        if steps > 1:
            corrections[z] = (False,) * (steps - 1)
    return ClipPlan(prompts or {0: "mask"}, corrections, click_method="center")


@pytest.fixture(scope="module", params=RUNS or ["none"])
def result(request):
    """Name of the run, its slice outputs, losses, and gradient norms by parameter."""
    torch.set_num_threads(1)
    tracker = build_tracker(
        OmegaConf.load(FOLDER / "training_model.yaml").model, str((FOLDER / "training_init.pt").absolute())
    )
    tracker.train(not request.param.endswith("_eval"))
    images, masks = torch.from_numpy(FILE["images"]).float(), torch.from_numpy(FILE["masks"])
    outputs = forward_clip(tracker, images, masks, plan_of(request.param))
    losses = MaskLosses()(outputs, masks)
    losses.total.backward()
    norms = {
        name: 0.0 if parameter.grad is None else float(parameter.grad.norm())
        for name, parameter in tracker.network.named_parameters()
    }
    values = {part: getattr(losses, part).item() for part in ("mask", "dice", "iou", "object", "total")}
    return request.param, outputs, values, norms


@pytest.mark.parametrize(("ours", "theirs"), [("mask",) * 2, ("dice",) * 2, ("iou",) * 2, ("object", "class")])
def test_each_part_of_the_loss_equals_sam2s(result, ours, theirs):
    run, _, losses, _ = result
    assert losses[ours] == pytest.approx(float(FILE[f"{run}/loss_{theirs}"]), rel=1e-4)


def test_the_weighted_sum_equals_sam2s(result):
    run, _, losses, _ = result
    assert losses["total"] == pytest.approx(float(FILE[f"{run}/core_loss"]), rel=1e-4)


def test_gradient_norms_equal_sam2s(result):
    run, _, _, norms = result
    start = f"{run}/gradnorm/"
    golden = {key.removeprefix(start): float(value) for key, value in FILE.items() if key.startswith(start)}
    assert golden
    for name, norm in golden.items():
        assert norms[name] == pytest.approx(norm, rel=1e-4, abs=0), name


@pytest.mark.parametrize("z", range(DEPTH))
def test_slices_equal_sam2s(result, z):
    run, outputs, _, _ = result
    output = outputs[z]
    found = {
        "low_res_masks": output.low_res_logits,
        "ious": torch.cat(output.ious, dim=1),
        "object_score_logits": torch.cat(output.object_scores, dim=1),
    }
    for name, ours in found.items():
        np.testing.assert_allclose(ours.detach(), of_slice(run, z, name), rtol=0, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("z", range(DEPTH))
def test_steps_and_clicks_equal_sam2s(result, z):
    run, outputs, _, _ = result
    output = outputs[z]
    assert len(output.candidates) == of_slice(run, z, "steps")
    if of_slice(run, z, "points") is None:
        assert output.clicks is None
    else:
        np.testing.assert_array_equal(output.clicks.points, of_slice(run, z, "points"))
        np.testing.assert_array_equal(output.clicks.labels, of_slice(run, z, "point_labels"))
