"""With a stride one of so many slices goes through the networks, and those between are interpolated."""

import json
import logging
from functools import partial

import numpy as np
import pytest
from conftest import CountedSlices, write_mrc
from networks import random_tracker, score_bias

from etsam.errors import ConfigError
from etsam.inference import prompts
from etsam.inference.encode_ahead import SlicesAhead
from etsam.inference.logit_store import open_store
from etsam.inference.propagate import PropagationSettings, propagate
from etsam.inference.slice_stride import InterpolatedLogits, prompts_on, segmented_slices
from etsam.inference.tiles import Tile, enlarge
from etsam.inference.two_stage import Stage, TwoStage, run_stage

SHAPE = (12, 40, 57)
TILE = Tile(0, 40, 0, 57)
PLACES = [0, 4, 8, 11]
EVERY_FOURTH = PropagationSettings(slice_stride=4)


def tracker_of(**changes):
    tracker = random_tracker(**changes)
    score_bias(tracker, 20.0)
    return tracker


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(2).random(SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    ("depth", "stride", "expected"),
    [(12, 4, PLACES), (9, 4, [0, 4, 8]), (3, 10, [0, 2]), (1, 5, [0]), (4, 1, [0, 1, 2, 3])],
)
def test_the_first_slice_one_of_so_many_and_the_last_are_segmented(depth, stride, expected):
    assert segmented_slices(depth, stride) == expected


def test_logits_between_two_slices_are_linear_and_an_absent_object_does_not_rule():
    found = np.zeros((3, 1, 2, 2), np.float32)
    found[0], found[1], found[2] = 4, -1024, 40
    between = InterpolatedLogits(found, [0, 4, 6])
    assert between.shape == (7, 1, 2, 2)
    values = [between[z].item(0) for z in range(7)]
    assert values == pytest.approx([4, 0.5, -3, -6.5, -1024, 0, 40])


def test_segmented_slices_are_those_of_a_volume_of_them_alone(volume):
    tracker = tracker_of()
    stage = Stage(tracker, partial(prompts.grid_zero, interval=7))
    side = tracker.low_res_side
    alone = open_store((4, 1, side, side), None)
    propagate(tracker, volume[PLACES], [stage.prompt((4, 40, 57))], [TILE], alone)
    slices, steps = CountedSlices(volume), []
    found = run_stage(stage, slices, [TILE], settings=EVERY_FOURTH, progress=lambda *step: steps.append(step))
    assert set(slices.read) == set(PLACES)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert alone[1].std() > 0.1
    for index, z in enumerate(PLACES):
        np.testing.assert_array_equal(found[z], enlarge(alone[index, 0], (40, 57)))
    np.testing.assert_allclose(found[5], 0.75 * found[4] + 0.25 * found[8], atol=1e-5)
    np.testing.assert_allclose(found[10], (found[8] + 2 * found[11]) / 3, atol=1e-5)


def test_a_network_of_several_slices_sees_the_true_neighbours(volume):
    stage = Stage(tracker_of(input_slices=3), prompts.zero)
    slices = CountedSlices(volume)
    before = run_stage(stage, slices, [TILE], settings=PropagationSettings(slice_stride=5))
    assert set(slices.read) == {0, 1, 4, 5, 6, 9, 10, 11}
    other = volume.copy()
    other[6] += 1
    after = run_stage(stage, other, [TILE], settings=PropagationSettings(slice_stride=5))
    assert np.abs(after[5] - before[5]).max() > 1e-3


@pytest.mark.parametrize("ahead", [0, 2])
def test_only_slices_that_are_needed_are_read_ahead(volume, ahead):
    slices = CountedSlices(volume)
    with SlicesAhead(slices, 1, ahead, PLACES) as planes:
        for z in PLACES:
            np.testing.assert_array_equal(planes[z], volume[z])
            assert len(planes._planes) <= 1 + ahead
    assert slices.read == PLACES


def test_prompts_go_to_the_nearest_segmented_slice(volume):
    grid = prompts_on(PLACES, partial(prompts.grid, interval=5), (40, 57))
    assert list(grid) == [0, 1, 3]  # of slices 0, 5 and 10
    mask = volume > 0.5
    found = prompts_on([0, 5, 11], partial(prompts.stage1_mask, interval=6), (40, 57), mask)
    assert list(found) == [0, 1]
    np.testing.assert_array_equal(found[1], mask[5])  # not that of slice 6, which shows other places


@pytest.mark.parametrize("stride", [0, 11, -2, 1.5, True, None])
def test_another_stride_is_an_error_for_people(stride):
    stage = Stage(tracker_of(), prompts.zero)
    with pytest.raises(ConfigError, match=rf"slice_stride={stride} is not allowed: 1 for every slice, .* up to 10"):
        TwoStage(stage, stage, settings=PropagationSettings(slice_stride=stride))


def test_both_stages_take_the_stride(volume):
    stages = Stage(tracker_of(), partial(prompts.grid_zero, interval=7)), Stage(tracker_of(seed=1), prompts.zero)
    steps = []
    out = TwoStage(*stages, settings=EVERY_FOURTH)(volume, progress=lambda *step: steps.append(step))
    assert [step for step in steps if step[1] == 4] == [("stage 1", 4, 4), ("stage 2", 4, 4)]
    assert {total for _, _, total in steps} == {4}
    for logits in (out.stage1_logits, out.logits):
        assert logits.shape == SHAPE
        np.testing.assert_allclose(logits[6], (logits[4] + logits[8]) / 2, atol=1e-5)


def test_the_command_takes_the_stride_says_it_and_keeps_it_in_the_record(etsam, work, caplog):
    write_mrc(work / "tomo.mrc", np.random.default_rng(0).normal(size=(11, 40, 57)).astype(np.float32))
    command = ("predict", "tomo.mrc", "--weights", "random", "--output-dir", "out", "net=tiny_test", "trainer=cpu")
    with caplog.at_level(logging.INFO):
        done = etsam(*command, "slice_stride=3")
    assert done.status == 0, done.stderr
    assert "5 of 11 slices are segmented; 1 tile a slice" in caplog.text
    record = json.loads((work / "out/tomo_etsam_predicted_record.json").read_text(encoding="utf-8"))
    assert record["settings"]["slice_stride"] == 3
    assert etsam(*command, "--resume", "slice_stride=3").status == 0
    assert "made with other settings (slice_stride)" in etsam(*command, "--resume").stderr
    assert "slice_stride=12 is not allowed" in etsam(*command, "--overwrite", "slice_stride=12").stderr
