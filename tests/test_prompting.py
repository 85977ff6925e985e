"""Plans of clips and the clicks of the simulated annotator."""

from collections import Counter

import numpy as np
import pytest
import torch

from etsam.errors import ConfigError
from etsam.training.prompting import Annotator, ClipPlan, PromptSampler, fixed_prompt

KINDS = ["mask", "box", "click", "grid_zero", "zero"]
SIDES = (1, 1, 12, 17)


def draws(sampler, num_slices=6, number=400):
    generator = np.random.default_rng(0)
    return [sampler.draw(num_slices, generator) for _ in range(number)]


def sampler_of(kind, **settings):
    """Draws one kind only."""
    shares = {"box": 0.0, "click": 0.0} | ({} if kind == "mask" else {kind: 1.0})
    return PromptSampler(**shares, **settings)


def annotator(truth, ignore=None, seeds=(0,), **plan):
    return Annotator(ClipPlan({0: "click"}, {0: (False, True)}, **plan), 0, truth, ignore, seeds)


def square(y=3, x=5, size=5):
    truth = torch.zeros(SIDES, dtype=torch.bool)
    truth[..., y : y + size, x : x + size] = True
    return truth


def at(clicks, masks):
    """Values of (1, 1, H, W) masks at the points."""
    x, y = clicks.points[0].long().unbind(1)
    return masks[0, 0][y, x].tolist()


def test_same_seed_gives_the_same_plans():
    sampler = PromptSampler(grid_zero=0.2, zero=0.2)
    assert draws(sampler, number=50) == draws(sampler, number=50)


def test_kinds_come_with_their_probabilities():
    sampler = PromptSampler(box=0.0, click=0.3, grid_zero=0.2, zero=0.1)
    counts = Counter(plan.prompts[0] for plan in draws(sampler, number=4000))
    shares = [counts[kind] / 4000 for kind in KINDS]
    np.testing.assert_allclose(shares, [0.4, 0, 0.3, 0.2, 0.1], atol=0.03)


def test_slices_are_alone_with_their_probability_and_the_other_kinds_share_the_rest():
    plans = draws(PromptSampler(box=0.0, click=0.0, zero=0.3, grid_zero=0.3, alone=0.4), number=4000)
    assert sum(plan.alone for plan in plans) / 4000 == pytest.approx(0.4, abs=0.03)
    assert all(not plan.prompts for plan in plans if plan.alone)
    counts = Counter(plan.prompts[0] for plan in plans if not plan.alone)
    assert counts["zero"] / 4000 == pytest.approx(0.3, abs=0.03)
    assert set(counts) == {"zero", "grid_zero"}


def test_slice_0_is_always_prompted_first_and_up_to_two_are():
    plans = draws(PromptSampler())
    assert all(next(iter(plan.prompts)) == 0 for plan in plans)
    assert {len(plan.prompts) for plan in plans} == {1, 2}
    assert {z for plan in plans for z in plan.prompts} == set(range(6))


@pytest.mark.parametrize("kind", ["grid_zero", "zero"])
def test_prompts_of_inference_are_on_slice_0_alone_without_corrections(kind):
    assert all(plan.prompts == {0: kind} and not plan.corrections for plan in draws(sampler_of(kind)))


def test_masks_are_not_corrected():
    assert not any(plan.corrections for plan in draws(sampler_of("mask")))


def test_prompted_slices_are_corrected_and_some_others():
    plans = draws(sampler_of("click", max_corrected_slices=4, clicks_per_slice=3, truth_click=0.5))
    assert all(set(plan.prompts) <= set(plan.corrections) for plan in plans)
    assert {len(plan.corrections) for plan in plans} == {1, 2, 3, 4}
    clicks = [click for plan in plans for clicks in plan.corrections.values() for click in clicks]
    assert all(len(clicks) == 3 for plan in plans for clicks in plan.corrections.values())
    assert np.mean(clicks) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_slices", [1, 2, 3])
def test_short_clips_always_have_something_to_learn(kind, num_slices):
    for plan in draws(sampler_of(kind, max_conditioning_slices=4, max_corrected_slices=5), num_slices, 50):
        assert set(plan.prompts) | set(plan.corrections) <= set(range(num_slices))
        predicted = {z for z in range(num_slices) if plan.prompts.get(z) in (None, "box", "click")}
        assert predicted


@pytest.mark.parametrize(
    "wrong",
    [
        {"box": 0.6, "click": 0.6},
        {"zero": -0.1},
        {"truth_click": 1.1},
        {"max_conditioning_slices": 0},
        {"max_conditioning_slices": 3},
        {"clicks_per_slice": -1},
        {"grid_interval": 0},
        {"click_method": "edge"},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PromptSampler(**wrong)


def test_grid_is_that_of_inference():
    grid = fixed_prompt("grid_zero", ClipPlan({0: "grid_zero"}, grid_interval=4), (9, 11))
    assert grid[0].nonzero().tolist() == [[y, x] for y in (0, 4, 8) for x in (0, 4, 8)]
    assert not fixed_prompt("zero", ClipPlan({0: "zero"}), (9, 11)).any()


@pytest.mark.parametrize("method", ["uniform", "center"])
def test_first_click_is_on_the_membrane(method):
    clicks = annotator(square(), click_method=method).first("click")
    assert (at(clicks, square()), clicks.labels.tolist()) == ([True], [[1]])


def test_central_click_is_the_middle_of_the_larger_error():
    clicks = annotator(square(), click_method="center").correct(0, square(0, 0, 2), None)
    assert (clicks.points.tolist(), clicks.labels.tolist()) == ([[[7.0, 5.0]]], [[1]])
    clicks = annotator(square(0, 0, 3), click_method="center").correct(0, square(3, 5, 7), None)
    assert (clicks.points.tolist(), clicks.labels.tolist()) == ([[[8.0, 6.0]]], [[0]])


@pytest.mark.parametrize("seed", range(5))
def test_correction_is_in_the_error_with_the_label_of_the_truth(seed):
    truth, prediction = square(), square(5, 7)
    clicks = annotator(truth, seed=seed).correct(0, prediction, None)
    assert at(clicks, truth ^ prediction) == [True]
    assert at(clicks, truth) == [bool(clicks.labels)]


def test_correction_from_the_truth_does_not_look_at_the_prediction():
    someone, before = annotator(square()), annotator(square()).first("click")
    clicks = someone.correct(1, square(), before)
    assert (clicks.points.shape, clicks.labels.tolist()) == ((1, 2, 2), [[1, 1]])
    assert at(clicks, square()) == [True, True]


def test_box_surrounds_the_membrane_within_a_tenth():
    box = annotator(square()).first("box")
    np.testing.assert_allclose(box.points[0], [[5, 3], [9, 7]], atol=0.5)
    assert box.labels.tolist() == [[2, 3]]


@pytest.mark.parametrize("method", ["uniform", "center"])
def test_slice_without_membrane_gets_a_background_click_and_no_box(method):
    someone = annotator(torch.zeros(SIDES, dtype=torch.bool), click_method=method)
    assert someone.first("click").labels.tolist() == [[0]]
    assert someone.first("box").labels.tolist() == [[0, -1]]


@pytest.mark.parametrize("method", ["uniform", "center"])
def test_nobody_clicks_on_voxels_that_are_not_annotated(method):
    truth, ignore = square(), torch.zeros(SIDES, dtype=torch.bool)
    ignore[..., 8:, :] = True
    prediction = truth | ignore  # all the error is ignored
    clicks = annotator(truth, ignore, click_method=method).correct(0, prediction, None)
    assert clicks.labels.tolist() == [[0]]
    assert at(clicks, ignore) == [False]
    everything = annotator(truth & ~truth, ~ignore | ignore, click_method=method).first("click")
    assert everything.labels.tolist() == [[-1]]


def test_clicks_depend_on_the_clip_and_not_on_its_batch():
    truth = torch.cat([square(), square(1, 2, 9)])
    together = annotator(truth, seeds=(8, 9)).first("click")
    alone = annotator(truth[1:], seeds=(9,)).first("click")
    torch.testing.assert_close(together.points[1:], alone.points)
    assert not torch.equal(alone.points, annotator(truth[1:], seeds=(10,)).first("click").points)


def test_clicks_leave_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    annotator(square()).first("box")
    assert torch.equal(torch.random.get_rng_state(), before)
