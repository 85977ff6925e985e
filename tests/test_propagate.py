"""Streaming, tiles side by side, fusion, and the second look at conditioning slices."""

import gc
import threading
from functools import partial

import numpy as np
import pytest
import torch
from networks import random_tracker, score_bias

from etsam.errors import ConfigError, OutputError
from etsam.inference import prompts
from etsam.inference.fusion import fuse
from etsam.inference.logit_store import FileStore, open_store
from etsam.inference.memory_plan import Batching
from etsam.inference.parallel_tiles import run_tiles_in_parallel
from etsam.inference.propagate import PropagationSettings, _segment_again, propagate, track
from etsam.inference.tiles import Overlapping, Split2x2, Stitched, Tile
from etsam.inference.two_stage import Stage, TwoStage, membrane_mask

SHAPE = (12, 70, 90)


@pytest.fixture(scope="module")
def tracker():
    tracker = random_tracker()
    score_bias(tracker, 20.0)
    return tracker


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(3).random(SHAPE).astype(np.float32)


def run(tracker, volume, prompt, tiles=None, batch=1, resegment=False, folder=None, workers=1):
    depth, height, width = volume.shape
    tiles = tiles or [Tile(0, height, 0, width)]
    store = open_store((depth, len(tiles), tracker.low_res_side, tracker.low_res_side), folder)
    propagate(
        tracker,
        volume,
        [prompt((depth, *tile.shape)) for tile in tiles],
        tiles,
        store,
        PropagationSettings(resegment_conditioning=resegment),
        Batching(tile_batch_size=batch, tile_workers=workers),
    )
    return np.stack([store[z] for z in range(depth)])


def test_without_resegmenting_a_prompted_slice_is_its_prompt(tracker, volume):
    logits = run(tracker, volume, prompts.zero)
    np.testing.assert_allclose(logits[0], -10, atol=1e-5)
    assert (np.abs(logits[1:] + 10) > 1e-3).all()


def test_with_fewer_memory_slices_only_slices_with_more_before_them_change(tracker, volume):
    full = run(tracker, volume, prompts.zero, resegment=True)
    for asked, first in ((6, None), (2, 4), (0, 2)):  # slice 0 is prompted; slice 3 sees it and two others
        fewer = random_tracker(memory_slices=asked)
        score_bias(fewer, 20.0)
        found = run(fewer, volume, prompts.zero, resegment=True)
        changed = [z for z in range(SHAPE[0]) if not np.array_equal(found[z], full[z])]
        expected = [] if first is None else [0, *range(first, SHAPE[0])]  # slice 0 is seen again from those after it
        assert changed == expected


@pytest.mark.parametrize(("batch", "workers"), [(1, 2), (1, 5), (2, 3)])
def test_tiles_side_by_side_give_what_they_give_one_after_another(tracker, volume, batch, workers):
    tiles = Overlapping(overlap_voxels=8).plan(70, 90, 48)
    assert len(tiles) > 3
    alone = run(tracker, volume, prompts.zero, tiles, resegment=True)
    threads = torch.get_num_threads()
    together = run(tracker, volume, prompts.zero, tiles, batch=batch, resegment=True, workers=workers)
    assert torch.get_num_threads() == threads
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)


def test_threads_know_what_torch_was_told_in_the_calling_one():
    def told():
        while True:
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), product.dtype
            yield *modes, torch.get_num_threads(), threading.current_thread().name

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = next(run_tiles_in_parallel([told(), told()], 2))
    assert [known[:4] for known in found] == [(False, True, torch.bfloat16, 1)] * 2
    assert all(name.startswith("tiles") for *_, name in found)
    *modes, _, _ = next(run_tiles_in_parallel([told(), told()], 2))[0]
    assert modes == [True, False, torch.float32]


def test_an_error_in_a_thread_is_raised_and_ends_all_of_them():
    def fails():
        yield 1
        raise OSError("slice 1")

    threads = torch.get_num_threads()
    steps = run_tiles_in_parallel([fails(), iter(range(9))], 2)
    assert next(steps) == [1, 0]
    with pytest.raises(OSError, match="slice 1"):
        next(steps)
    assert torch.get_num_threads() == threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


def test_runs_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match="ended before"):
        list(run_tiles_in_parallel([iter(range(2)), iter(range(3))], 2))
    assert list(run_tiles_in_parallel([iter(range(2)), iter(range(2))], 2)) == [[0, 0], [1, 1]]


@pytest.mark.parametrize("prompt", [prompts.zero, partial(prompts.grid, interval=4), partial(prompts.grid, interval=1)])
def test_resegmenting_replaces_prompted_slices(tracker, volume, prompt):
    plain, again = (run(tracker, volume, prompt, resegment=choice) for choice in (False, True))
    for z in prompt(SHAPE):
        assert np.abs(plain[z] - again[z]).max() > 0.1
        assert (np.abs(np.abs(again[z]) - 10) > 1e-3).any()


@pytest.mark.parametrize("interval", [3, 4, 50])
def test_resegmenting_leaves_all_other_slices_exactly_as_they_are(tracker, volume, interval):
    prompt = partial(prompts.grid, interval=interval)
    plain, again = (run(tracker, volume, prompt, resegment=choice) for choice in (False, True))
    others = [z for z in range(SHAPE[0]) if z not in prompt(SHAPE)]
    np.testing.assert_array_equal(plain[others], again[others])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_volume_of_very_few_slices_is_segmented_on_all_of_them(tracker, volume, depth):
    logits = run(tracker, volume[:depth], prompts.zero, resegment=True)
    assert np.isfinite(logits).all()
    assert (np.abs(np.abs(logits[0]) - 10) > 1e-3).any()


def test_a_prompted_slice_is_segmented_again_from_its_neighbours_and_not_from_its_prompt(tracker, volume):
    """Two different prompts on slice 4 that leave the memory of the others alone give the same slice 4."""
    images = tracker.prepare(torch.from_numpy(volume))
    results = []
    for voxel in (False, True):
        mask = torch.full((1, *SHAPE[1:]), voxel)
        empty = torch.zeros_like(mask)
        masks = {0: tracker.prepare_prompt(empty), 4: tracker.prepare_prompt(mask)}
        memory = tracker.new_memory(SHAPE[0])
        with torch.inference_mode():
            for z, prompt in masks.items():
                tracker.prompt(z, tracker.encode(images[z : z + 1]), prompt, memory)
            del memory.conditioning[4]  # so that slices 1..3 and 5 do not depend on it
            for z in (1, 2, 3, 5):
                tracker.track(z, tracker.encode(images[z : z + 1]), memory)
            results.append(_segment_again(tracker, 4, tracker.encode(images[4:5]), memory).low_res_logits)
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_network_of_three_input_slices_sees_each_with_its_neighbours_and_repeats_the_ends():
    wide = random_tracker(input_slices=3)
    assert [wide.seen_with(z, 5) for z in (0, 2, 4)] == [[0, 0, 1], [1, 2, 3], [3, 4, 4]]
    assert random_tracker().seen_with(2, 5) == [2]
    planes = torch.rand(1, 3, 64, 64)
    expected = (planes - wide.mean) / wide.std
    torch.testing.assert_close(wide.prepare(planes), expected)


def test_a_slice_is_segmented_with_its_neighbours(volume):
    wide = random_tracker(input_slices=3)
    score_bias(wide, 20.0)
    changed = volume.copy()
    changed[6] = changed[6, ::-1]
    before, after = (run(wide, data, prompts.zero) for data in (volume, changed))
    np.testing.assert_array_equal(before[:5], after[:5])
    assert np.abs(before[5] - after[5]).max() > 1e-3  # sees slice 6 beside it


def test_tracking_without_any_prompt_is_refused(tracker):
    with pytest.raises(ValueError, match="at least one conditioning slice"):
        next(track(tracker, lambda z: None, 5, {}))


@pytest.mark.parametrize("resegment", [False, True])
def test_tiles_in_one_batch_give_what_each_gives_alone(tracker, volume, resegment):
    tiles = Split2x2().plan(*SHAPE[1:], side=64)
    alone = run(tracker, volume, prompts.zero, tiles, batch=1, resegment=resegment)
    together = run(tracker, volume, prompts.zero, tiles, batch=3, resegment=resegment)
    assert np.abs(alone - together).mean() < 1e-4
    crop = volume[:, tiles[3].y0 : tiles[3].y1, tiles[3].x0 : tiles[3].x1]
    np.testing.assert_array_equal(alone[:, 3:], run(tracker, crop, prompts.zero, resegment=resegment))


def test_a_store_on_disk_holds_what_one_in_memory_holds_and_leaves_no_file(tracker, volume, tmp_path):
    in_memory = run(tracker, volume, prompts.zero)
    on_disk = run(tracker, volume, prompts.zero, folder=tmp_path)
    np.testing.assert_array_equal(in_memory, on_disk)
    assert list(tmp_path.iterdir()) == []


def test_a_store_in_a_missing_folder_is_an_error_for_people(tmp_path):
    with pytest.raises(OutputError, match="no temporary file can be made"):
        FileStore((2, 1, 4, 4), tmp_path / "missing")


def test_a_store_whose_last_bytes_find_a_full_disk_closes_in_silence(tmp_path, monkeypatch):
    unraised = []
    monkeypatch.setattr("sys.unraisablehook", unraised.append)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "r+b"))  # noqa: SIM115
    store = FileStore((1, 1, 4, 4), tmp_path)
    store[0] = np.ones((1, 4, 4))
    del store
    gc.collect()
    assert unraised == []


def test_each_slice_is_read_once_a_stage_however_many_tiles(tracker, volume):
    class Counting:
        shape, reads = volume.shape, []

        def __getitem__(self, z):
            self.reads.append(z)
            return volume[z]

    slices = Counting()
    tiles = Overlapping(size_voxels=40).plan(*SHAPE[1:], side=64)
    store = open_store((SHAPE[0], len(tiles), 16, 16), None)
    empty = [prompts.zero((SHAPE[0], *tile.shape)) for tile in tiles]
    propagate(tracker, slices, empty, tiles, store, PropagationSettings(resegment_conditioning=False))
    assert slices.reads == list(range(SHAPE[0]))


def test_fusion_scales_by_the_extremes_of_the_clamped_logits():
    normalized = np.random.default_rng(0).random((3, 5, 7)).astype(np.float32)
    logits = np.linspace(-8, 2, 3 * 5 * 7, dtype=np.float32).reshape(3, 5, 7)
    fused = fuse(normalized, logits)
    expected = normalized + (np.clip(logits, -5, 5) + 5) / 7
    np.testing.assert_allclose(np.stack([fused[z] for z in range(3)]), expected, atol=1e-6)


def test_fusion_of_equal_logits_adds_nothing():
    normalized = np.random.default_rng(0).random((3, 5, 7)).astype(np.float32)
    fused = fuse(normalized, np.full((3, 5, 7), -1024, np.float32))
    np.testing.assert_array_equal(fused[1], normalized[1])


def test_fusion_per_tile_scales_each_by_its_own_extremes():
    logits = np.zeros((2, 4, 6), np.float32)
    logits[0, :2], logits[1, :2] = -1, 1
    logits[0, 2:], logits[1, 2:] = -4, 0
    fused = fuse(np.zeros((2, 4, 6), np.float32), logits, [Tile(0, 2, 0, 6), Tile(2, 4, 0, 6)])
    np.testing.assert_array_equal(fused[0], 0)
    np.testing.assert_array_equal(fused[1], 1)


def test_fusion_of_volumes_that_do_not_belong_together_is_an_error():
    with pytest.raises(ConfigError, match="do not belong"):
        fuse(np.zeros((2, 4, 6)), np.zeros((2, 4, 5)))


def test_a_mask_is_strictly_above_the_threshold():
    logits = np.array([[[-0.25, -0.2499, 3.0]]], np.float32)
    assert membrane_mask(logits, -0.25)[0].tolist() == [[0, 1, 1]]


def test_a_slice_larger_than_the_network_is_tiled_and_not_shrunk(tracker, volume):
    model = TwoStage(Stage(tracker, prompts.zero), Stage(tracker, prompts.zero))
    out = model(volume)
    assert len(out.tiles) == 4  # 70 x 90 voxels, network side 64
    assert all(tile.shape == (64, 64) for tile in out.tiles)
    assert isinstance(out.logits, Stitched)
    assert out.logits[5].shape == SHAPE[1:]


def test_both_stages_chained_by_hand_equal_the_two_stages_as_one(tracker, volume):
    other = random_tracker(seed=8)
    score_bias(other, 20.0)
    stages = Stage(tracker, prompts.zero), Stage(other, prompts.zero)
    model = TwoStage(*stages, settings=PropagationSettings(resegment_conditioning=False))
    small = volume[:, :50, :60]
    out = model(small)
    by_hand = fuse(small, Stitched(run(tracker, small, prompts.zero), out.tiles, small.shape))
    by_hand = np.stack([by_hand[z] for z in range(12)])
    expected = Stitched(run(other, by_hand, prompts.zero), out.tiles, small.shape)
    np.testing.assert_array_equal(out.logits[7], expected[7])
