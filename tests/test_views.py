"""Mirrored views: each stage sees a slice mirrored, too, and its logits are averaged."""

from functools import partial

import numpy as np
import pytest
import torch
from networks import random_tracker, score_bias

from etsam.errors import ConfigError
from etsam.inference import prompts
from etsam.inference.logit_store import open_store
from etsam.inference.memory_plan import Batching
from etsam.inference.mirrored_views import average
from etsam.inference.propagate import PropagationSettings, propagate
from etsam.inference.tiles import Overlapping
from etsam.inference.two_stage import Stage, TwoStage, run_stage

SHAPE = (5, 70, 90)
MIRRORED = {1: [(1, 1)], 2: [(1, 1), (1, -1)], 4: [(1, 1), (1, -1), (-1, 1), (-1, -1)]}
GRID = partial(prompts.grid_zero, interval=4)


@pytest.fixture(scope="module")
def tracker():
    tracker = random_tracker(input_slices=5)
    score_bias(tracker, 20.0)
    return tracker


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(5).random(SHAPE).astype(np.float32)


def logits(tracker, volume, views=1, tile=64, batch=1):
    stage = Stage(tracker, GRID)
    tiles = Overlapping(tile).plan(*SHAPE[1:], side=64)
    stitched = run_stage(stage, volume, tiles, settings=PropagationSettings(views=views), batching=Batching(batch))
    return np.stack([stitched[z] for z in range(SHAPE[0])])


@pytest.mark.parametrize("views", [2, 4])
def test_views_give_the_mean_of_mirrored_volumes_segmented_one_after_another(tracker, volume, views):
    tile = Overlapping(96).plan(*SHAPE[1:], side=64)  # one: where tiles meet, the mean is of what is blended
    stored = []
    for y, x in MIRRORED[views]:
        store = open_store((SHAPE[0], 1, tracker.low_res_side, tracker.low_res_side), None)
        mirrored = np.ascontiguousarray(volume[:, ::y, ::x])
        masks = {z: mask[::y, ::x].copy() for z, mask in GRID(SHAPE).items()}
        propagate(tracker, mirrored, [masks], tile, store)
        stored.append(np.stack([store[z][:, ::y, ::x] for z in range(SHAPE[0])]).clip(-10, 10))
    assert np.abs(stored[0] - stored[1]).max() > 0.01
    store = open_store((SHAPE[0], 1, tracker.low_res_side, tracker.low_res_side), None)
    propagate(tracker, volume, [GRID(SHAPE)], tile, store, PropagationSettings(views=views))
    result = np.stack([store[z] for z in range(SHAPE[0])])
    np.testing.assert_allclose(result, np.mean(stored, axis=0), atol=2e-4)


def test_with_four_views_a_mirrored_tomogram_gives_the_mirrored_logits(volume, tracker):
    # without prompts that differ in the mirror: slice 0, empty, only
    stage, tiles = Stage(tracker, prompts.zero), Overlapping(64).plan(*SHAPE[1:], side=64)
    four, both = PropagationSettings(views=4), (volume, np.ascontiguousarray(volume[:, ::-1]))
    plain, mirrored = (run_stage(stage, one, tiles, settings=four) for one in both)
    for z in range(SHAPE[0]):
        np.testing.assert_allclose(mirrored[z], plain[z][::-1], atol=2e-4)
    alone, turned = (run_stage(stage, np.ascontiguousarray(v), tiles) for v in (volume, volume[:, ::-1]))
    assert np.abs(turned[2] - alone[2][::-1]).max() > 0.01


def test_views_in_one_batch_give_what_each_gives_alone(tracker, volume):
    alone, together = (logits(tracker, volume, views=2, batch=batch) for batch in (1, 3))
    np.testing.assert_allclose(alone, together, atol=2e-4)


def test_an_absent_object_in_one_view_does_not_outvote_the_others():
    told = torch.tensor([-1024.0, 9.0]).view(2, 1, 1)
    assert average(told, [(), (-1,)]).item() == pytest.approx(-0.5)


@pytest.mark.parametrize("views", [0, 3, 8])
def test_another_number_of_views_is_an_error_for_people(tracker, views):
    with pytest.raises(ConfigError, match=rf"views={views} is unknown; allowed: 1 .*, 2 and 4"):
        TwoStage(Stage(tracker, GRID), Stage(tracker, GRID), settings=PropagationSettings(views=views))


def test_both_stages_average_their_views(tracker, volume):
    stages = Stage(tracker, GRID), Stage(tracker, prompts.zero)
    one, four = (TwoStage(*stages, settings=PropagationSettings(views=views))(volume) for views in (1, 4))
    assert np.abs(one.stage1_logits[2] - four.stage1_logits[2]).max() > 0.01
    assert np.abs(one.logits[2] - four.logits[2]).max() > 0.01
    np.testing.assert_array_equal(four.stage1_logits[2], logits(tracker, volume, views=4, tile=None)[2])
