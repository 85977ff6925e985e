"""Passes in either direction and from a slice within, along Z, Y and X, each with a memory of its own."""

import json
import logging
from functools import partial

import numpy as np
import pytest
from conftest import write_mrc
from networks import random_tracker, score_bias

from etsam import segment
from etsam.errors import ConfigError
from etsam.inference import prompts, two_stage
from etsam.inference.axes import fused, turned, turned_bytes, turned_shape
from etsam.inference.directions import Pass, passes
from etsam.inference.logit_store import open_store
from etsam.inference.propagate import PropagationSettings
from etsam.inference.slice_stride import segmented_slices
from etsam.inference.tiles import Overlapping
from etsam.inference.two_stage import Stage, TwoStage, run_stage, scratch_bytes

SHAPE = (7, 18, 23)
NO_PICTURES = ("write_preview=false", "write_page=false", "write_chimerax=false")
GRID = partial(prompts.grid_zero, interval=5)
TILING = Overlapping(20)


@pytest.fixture(scope="module")
def trackers():
    found = random_tracker(input_slices=3), random_tracker(seed=1)
    for one in found:
        score_bias(one, 20.0)
    return found


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(4).random(SHAPE).astype(np.float32)


def stack(slices):
    return np.stack([slices[z] for z in range(slices.shape[0])])


def whole(slices_shape):
    return TILING.plan(*slices_shape[1:], side=64)


def logits(tracker, volume, prompt=GRID, mask=None, **settings):
    tiles = whole(volume.shape)
    return stack(
        run_stage(Stage(tracker, prompt), volume, tiles, stage1_mask=mask, settings=PropagationSettings(**settings))
    )


def both_stages(
    trackers,
    volume,
    *others,
    spread=False,
    folder=None,
    progress=None,
    axes=("z",),
    side=None,
    side_slice_stride=1,
    mean=False,
    **more,
):
    stages = Stage(trackers[0], GRID), Stage(trackers[1], partial(prompts.stage1_mask, interval=3))
    settings = PropagationSettings(**more)
    along = {"axes": axes, "side_views": side, "side_slice_stride": side_slice_stride}
    segment = TwoStage(*stages, TILING, settings, spread=spread, mean_of_stages=mean, **along)
    return segment(volume, *others, scratch_folder=folder, progress=progress)


# ---------------------------------------------------------------------- stages


def test_the_mean_of_the_stages_clamps_each_and_has_half_their_difference_as_spread(trackers, volume):
    plain = both_stages(trackers, volume)
    found = both_stages(trackers, volume, spread=True, mean=True)
    first, second = (stack(logits).clip(-10, 10) for logits in (plain.stage1_logits, plain.logits))
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_allclose(stack(found.logits), (first + second) / 2, atol=1e-5)
    np.testing.assert_allclose(stack(found.logits.spread), np.abs(first - second) / 2, atol=1e-5)
    np.testing.assert_array_equal(stack(found.stage1_logits), stack(plain.stage1_logits))


def test_the_mean_of_the_stages_is_taken_for_each_input_and_axis(trackers, volume):
    other = volume[:, ::-1].copy()
    alone = [both_stages(trackers, one, mean=True).logits for one in (volume, other)]
    together = both_stages(trackers, volume, other, mean=True).logits
    np.testing.assert_allclose(stack(together), sum(map(stack, alone)) / 2, atol=1e-5)
    sides = {axis: both_stages(trackers, volume, axes=[axis], mean=True).logits for axis in "zy"}
    np.testing.assert_allclose(
        stack(both_stages(trackers, volume, axes=["z", "y"], mean=True).logits), stack(fused(sides)), atol=1e-2
    )


# ---------------------------------------------------------------------- directions


@pytest.mark.parametrize("more", [{}, {"slice_stride": 3}, {"views": 2}, {"resegment_conditioning": False}])
def test_backward_is_forward_on_the_reversed_volume_to_the_bit(trackers, volume, more):
    backward = logits(trackers[0], volume, propagation="backward", **more)
    reversed_volume = np.ascontiguousarray(volume[::-1])
    np.testing.assert_array_equal(backward, logits(trackers[0], reversed_volume, **more)[::-1])
    assert np.abs(backward - logits(trackers[0], volume, **more)).max() > 0.01


def test_a_backward_pass_takes_its_prompts_from_its_own_first_slice(trackers, volume):
    prompt, mask = partial(prompts.stage1_mask, interval=4), (volume > 0.5).astype(np.uint8)
    found = logits(trackers[0], volume, prompt, mask, propagation="backward", resegment_conditioning=False)
    turned_round = logits(trackers[0], volume[::-1].copy(), prompt, mask[::-1].copy(), resegment_conditioning=False)
    np.testing.assert_array_equal(found, turned_round[::-1])
    assert set(np.unique(np.sign(found[6]))) == {-1, 1}  # slices 6 and 2 are prompted, and shown as they were


def test_bidirectional_is_the_mean_of_both_and_its_order_does_not_matter(trackers, volume, monkeypatch):
    forward, backward = (logits(trackers[0], volume, propagation=way).clip(-10, 10) for way in ("forward", "backward"))
    found = logits(trackers[0], volume, propagation="bidirectional")
    np.testing.assert_allclose(found, (forward + backward) / 2, atol=1e-5)
    monkeypatch.setattr(two_stage, "passes", lambda depth, *way: passes(depth, *way)[::-1])
    np.testing.assert_array_equal(found, logits(trackers[0], volume, propagation="bidirectional"))


def test_from_a_slice_within_each_way_is_a_pass_of_its_own(trackers, volume):
    found = logits(trackers[0], volume, start_slice=3)
    np.testing.assert_array_equal(found[3:], logits(trackers[0], volume[3:]))
    towards_the_first = logits(trackers[0], volume[3::-1].copy())[::-1]
    np.testing.assert_array_equal(found[:3], towards_the_first[:3])


def test_start_slices_at_the_ends_are_the_two_directions(trackers, volume):
    np.testing.assert_array_equal(logits(trackers[0], volume, start_slice=0), logits(trackers[0], volume))
    backward = logits(trackers[0], volume, propagation="backward")
    np.testing.assert_array_equal(logits(trackers[0], volume, start_slice=6), backward)


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("stride", [1, 3])
def test_passes_go_through_every_slice_once_for_each_direction(depth, stride):
    for start in range(depth):
        ways = passes(depth, start_slice=start)
        assert all(any(z in way for way in ways) for z in range(depth))
        assert sum(way.depth for way in ways) == depth + len(ways) - 1
        for way in ways:
            assert segmented_slices(way.depth, stride)[0] == 0
    assert passes(depth, "bidirectional") == [Pass(0, depth - 1), Pass(depth - 1, 0)]


@pytest.mark.parametrize(
    ("settings", "token"),
    [
        ({"start_slice": -1}, "start_slice=-1"),
        ({"start_slice": 2.5}, "start_slice=2.5"),
        ({"start_slice": 2, "propagation": "backward"}, "propagation=backward"),
        ({"propagation": "sideways"}, "propagation=sideways"),
    ],
)
def test_what_is_no_direction_is_refused(settings, token):
    with pytest.raises(ConfigError, match=token):
        PropagationSettings(**settings)


def test_a_start_slice_beyond_the_volume_is_refused_before_anything_is_segmented(trackers, volume):
    with pytest.raises(ConfigError, match="start_slice=7"):
        both_stages(trackers, volume, start_slice=7)


def test_stage_2_sees_the_mean_of_stage_1(trackers, volume):
    out = both_stages(trackers, volume, propagation="bidirectional")
    np.testing.assert_array_equal(stack(out.stage1_logits), logits(trackers[0], volume, propagation="bidirectional"))
    tiles = whole(SHAPE)
    seen = two_stage.stage2_input(volume, out.stage1_logits, tiles, TILING, two_stage.DEFAULT_THRESHOLD)
    prompt = partial(prompts.stage1_mask, interval=3)
    second = logits(trackers[1], stack(seen.slices), prompt, seen.stage1_mask, propagation="bidirectional")
    np.testing.assert_allclose(stack(out.logits), second, atol=1e-5)


# ---------------------------------------------------------------------- axes


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_turned_volume_has_the_axis_first_and_turned_again_it_is_as_it_was(
    volume, axis, in_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("etsam.inference.axes._SLAB_BYTES", 4 * 3 * 18 * 23)  # 3 slices, which 7 is no multiple of
    folder = tmp_path if in_file else None
    there = turned(volume, axis, folder)
    np.testing.assert_array_equal(stack(there), volume.swapaxes(0, "zyx".index(axis)))
    assert there.shape == turned_shape(SHAPE, axis)
    np.testing.assert_array_equal(stack(turned(there, axis, folder)), volume)
    assert turned_bytes(SHAPE, axis) == 4 * 9 * 18 * 23


@pytest.mark.parametrize("axis", ["y", "x"])
def test_along_another_axis_is_along_z_of_the_turned_volume(trackers, volume, axis):
    volume = volume[:, :9, :8]
    found = both_stages(trackers, volume, axes=(axis,))
    turned_volume = np.ascontiguousarray(volume.swapaxes(0, "zyx".index(axis)))
    expected = both_stages(trackers, turned_volume).logits
    limited = stack(expected).clip(-10, 10).swapaxes(0, "zyx".index(axis))
    np.testing.assert_allclose(stack(found.logits), limited, atol=0.004)  # kept in 16 bits meanwhile
    assert found.stage1_logits.shape == volume.shape


def test_side_views_add_to_what_is_seen_along_z_whatever_the_order_of_axes(trackers, volume, tmp_path):
    volume = volume[:4, :6, :9]
    alone = {axis: stack(both_stages(trackers, volume, axes=(axis,)).logits).clip(-10, 10) for axis in "zyx"}
    side, floor, shift = (0.4, 0.1, -0.05), 0.1, -0.05
    expected = alone["z"] + 0.4 * sum(np.maximum(alone[axis], floor) + shift for axis in "yx")  # none beyond 10
    assert (alone["y"] < floor).any()
    steps = []
    out = both_stages(
        trackers, volume, axes=("z", "y", "x"), side=side, folder=tmp_path, progress=lambda *s: steps.append(s)
    )
    np.testing.assert_allclose(stack(out.logits), expected, atol=1e-5)
    other = both_stages(trackers, volume, axes=("x", "z", "y"), side=side)
    np.testing.assert_allclose(stack(other.logits), expected, atol=1e-5)
    sides = both_stages(trackers, volume, axes=("y", "x"), side=side)
    np.testing.assert_allclose(stack(sides.logits), (alone["y"] + alone["x"]) / 2, atol=1e-5)
    of_stages = [[done for name, done, _ in steps if name == stage] for stage in ("stage 1", "stage 2")]
    assert [done for done in of_stages[0] if done] == list(range(1, 4 + 6 + 9 + 1))
    assert of_stages[1][-1] == 19
    assert {total for *_, total in steps} == {19}


def test_side_views_of_every_second_slice_are_interpolated_and_what_is_seen_along_z_is_not(trackers, volume, tmp_path):
    volume = volume[:4, :6, :9]
    alone = {
        axis: stack(both_stages(trackers, volume, axes=(axis,), slice_stride=stride).logits).clip(-10, 10)
        for axis, stride in (("z", 1), ("y", 2), ("x", 2))
    }
    side, floor, shift = (0.4, 0.1, -0.05), 0.1, -0.05
    expected = alone["z"] + 0.4 * sum(np.maximum(alone[axis], floor) + shift for axis in "yx")
    steps = []
    out = both_stages(
        *(trackers, volume),
        axes=("z", "y", "x"),
        side=side,
        side_slice_stride=2,
        folder=tmp_path,
        progress=lambda *step: steps.append(step),
    )
    np.testing.assert_allclose(stack(out.logits), expected, atol=1e-2)  # half precision while they wait
    assert {total for *_, total in steps} == {4 + 4 + 5}
    every_third = both_stages(trackers, volume, axes=("y",), side_slice_stride=2, slice_stride=3)
    np.testing.assert_array_equal(
        stack(every_third.logits), stack(both_stages(trackers, volume, axes=("y",), slice_stride=3).logits)
    )
    with pytest.raises(ConfigError, match="side_slice_stride=0"):
        both_stages(trackers, volume, axes=("z", "y"), side_slice_stride=0)


@pytest.mark.parametrize("axes", [(), "zy", ("z", "z"), ("z", "t")])
def test_other_axes_are_refused(trackers, volume, axes):
    with pytest.raises(ConfigError, match="axes="):
        both_stages(trackers, volume, axes=axes)


def test_side_views_have_a_weight_and_a_start_slice_is_for_z_alone(trackers, volume):
    with pytest.raises(ConfigError, match="side_views"):
        both_stages(trackers, volume, axes=("z", "y"), side=(0.0,))
    with pytest.raises(ConfigError, match="start_slice=2"):
        both_stages(trackers, volume, axes=("z", "y"), start_slice=2)


# ---------------------------------------------------------------------- inputs and spread


def test_inputs_of_one_tomogram_are_averaged(trackers, volume):
    other = np.random.default_rng(8).random(SHAPE).astype(np.float32)
    both = stack(both_stages(trackers, volume, other).logits)
    alone = [stack(both_stages(trackers, one).logits).clip(-10, 10) for one in (volume, other)]
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, atol=1e-5)


def test_the_spread_is_that_of_all_members(trackers, volume):
    out = both_stages(trackers, volume, propagation="bidirectional", spread=True)
    ones = [both_stages(trackers, volume, propagation=way) for way in ("forward", "backward")]
    stage1 = [stack(one.stage1_logits).clip(-10, 10) for one in ones]
    seen = two_stage.stage2_input(volume, out.stage1_logits, whole(SHAPE), TILING, two_stage.DEFAULT_THRESHOLD)
    prompt = partial(prompts.stage1_mask, interval=3)
    stage2 = [
        logits(trackers[1], stack(seen.slices), prompt, seen.stage1_mask, propagation=way).clip(-10, 10)
        for way in ("forward", "backward")
    ]
    np.testing.assert_allclose(stack(out.logits.spread), np.std([*stage1, *stage2], axis=0), atol=1e-4)
    plain = both_stages(trackers, volume, propagation="bidirectional")
    np.testing.assert_array_equal(stack(out.logits), stack(plain.logits))


@pytest.mark.parametrize("more", [{"slice_stride": 2}, {"start_slice": 3}, {"propagation": "backward"}])
def test_the_spread_has_that_of_views_in_it(trackers, volume, more):
    tiles, settings = whole(SHAPE), PropagationSettings(views=2, **more)
    found = run_stage(Stage(trackers[0], GRID), volume, tiles, spread=True, settings=settings)
    assert found.spread.shape == SHAPE
    spread = stack(found.spread)
    assert spread.min() >= 0
    assert spread.max() > 0.01
    mirrored = logits(trackers[0], np.ascontiguousarray(volume[..., ::-1]), **more)[..., ::-1]
    assert np.corrcoef(spread.ravel(), np.abs(logits(trackers[0], volume, **more) - mirrored).ravel())[0, 1] > 0.5


def test_the_size_of_scratch_files_is_known_beforehand(trackers, volume, tmp_path, monkeypatch):
    made, volume = [], volume[:3, :5, :7]

    def counted(shape, folder, dtype=np.float32):
        made.append(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return open_store(shape, folder, dtype)

    for module in ("two_stage", "axes"):
        monkeypatch.setattr(f"etsam.inference.{module}.open_store", counted)
    settings = {"propagation": "bidirectional", "views": 2, "slice_stride": 2}
    both_stages(trackers, volume, volume, axes=("y", "z"), spread=True, folder=tmp_path, **settings)
    formats = [one.logit_format for one in trackers]
    expected = scratch_bytes(formats, 64, TILING, volume.shape, PropagationSettings(**settings), ("y", "z"), 2, True)
    assert sum(made) == expected


# ---------------------------------------------------------------------- the command


def test_the_command_takes_directions_and_axes_and_keeps_them_in_the_record(etsam, work, caplog):
    write_mrc(work / "tomo.mrc", np.random.default_rng(0).normal(size=(11, 14, 17)).astype(np.float32))
    command = ("predict", "tomo.mrc", "--weights", "random", "-o", "out", "net=tiny_test", "trainer=cpu", *NO_PICTURES)
    with caplog.at_level(logging.INFO):
        assert etsam(*command, "propagation=bidirectional", "axes=[z,x]").status == 0
    assert "along z, x" in caplog.text
    record = json.loads((work / "out/tomo_etsam_predicted_record.json").read_text(encoding="utf-8"))
    assert record["settings"]["propagation"] == "bidirectional"
    assert record["settings"]["axes"] == ["z", "x"]
    assert "start_slice" not in record["settings"]
    refused = etsam(*command, "--resume", "propagation=bidirectional")
    assert "axes" in refused.stderr
    assert "start_slice=11" in etsam(*command, "--overwrite", "start_slice=11").stderr
    assert "axes=" in etsam(*command, "--overwrite", "axes=[z,q]").stderr


def test_a_start_slice_is_one_of_the_tomogram_whatever_the_networks_see(work):
    grey = np.random.default_rng(1).normal(size=(9, 16, 18)).astype(np.float32)
    padded = np.concatenate([np.zeros((2, 16, 18), np.float32), grey])
    plain = ["weights=random", "net=tiny_test"]
    inner = segment(grey, overrides=[*plain, "start_slice=4"], device="cpu").logits
    outer = segment(padded, overrides=[*plain, "start_slice=6"], device="cpu").logits
    np.testing.assert_array_equal(outer[2:], inner)
    coarse = [*plain, "target_voxel_size=5", "start_slice=8"]
    found = segment(grey, voxel_size=(10.0, 10.0, 10.0), overrides=coarse, device="cpu")
    assert found.logits.shape == grey.shape
    with pytest.raises(ConfigError, match="start_slice=9"):
        segment(grey, voxel_size=(10.0, 10.0, 10.0), overrides=[*coarse, "start_slice=9"], device="cpu")


def test_voxels_that_are_not_cubic_are_told_of_where_slices_are_cut_across_y(caplog):
    grey = np.random.default_rng(1).normal(size=(8, 16, 18)).astype(np.float32)
    plain = ["weights=random", "net=tiny_test"]
    for axes, told in (("[z]", False), ("[y]", True)):
        caplog.clear()
        segment(grey, voxel_size=(20.0, 10.0, 10.0), overrides=[*plain, f"axes={axes}"], device="cpu")
        assert ("target_voxel_size=20" in caplog.text) is told
