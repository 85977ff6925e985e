from itertools import pairwise

import numpy as np
import pytest
import torch

from etsam.errors import ConfigError
from etsam.inference.tiles import Overlapping, Split2x2, Stitched, Tile, Whole, enlarge


def covered(tiles, height, width):
    count = np.zeros((height, width), int)
    for tile in tiles:
        count[tile.index] += 1
    return count


@pytest.mark.parametrize("size", [(5, 8), (64, 33), (300, 128)])
def test_whole_is_one_tile_whatever_the_size(size):
    assert Whole().plan(*size, side=64) == [Tile(0, size[0], 0, size[1])]


def test_split_cuts_at_half_rounded_down_without_overlap():
    tiles = Split2x2().plan(9, 15, side=64)
    assert tiles == [Tile(0, 4, 0, 7), Tile(0, 4, 7, 15), Tile(4, 9, 0, 7), Tile(4, 9, 7, 15)]
    np.testing.assert_array_equal(covered(tiles, 9, 15), 1)


def test_a_slice_too_small_to_split_is_an_error():
    with pytest.raises(ConfigError, match="cannot be split"):
        Split2x2().plan(1, 15, side=64)


@pytest.mark.parametrize("size", [(64, 64), (10, 50)])
def test_a_slice_that_fits_the_network_is_one_tile(size):
    assert Overlapping().plan(*size, side=64) == [Tile(0, size[0], 0, size[1])]


@pytest.mark.parametrize(("height", "width"), [(65, 64), (100, 233), (500, 71)])
@pytest.mark.parametrize("overlap", [0, 8, 31])
def test_overlapping_tiles_cover_every_voxel_and_are_never_larger_than_the_network(height, width, overlap):
    tiles = Overlapping(overlap_voxels=overlap).plan(height, width, side=64)
    assert covered(tiles, height, width).min() >= 1
    assert all(max(tile.shape) <= 64 for tile in tiles)
    rows = sorted({(tile.y0, tile.y1) for tile in tiles})
    assert all(before[1] - after[0] >= overlap for before, after in pairwise(rows))


def test_the_tile_size_is_a_setting_in_voxels():
    tiles = Overlapping(size_voxels=20, overlap_voxels=4).plan(50, 30, side=64)
    assert {tile.shape for tile in tiles} == {(20, 20)}


@pytest.mark.parametrize("sizes", [(0, None), ("abc", None), (10, 10), (10, -1), (10, 2.5)])
def test_impossible_sizes_are_an_error(sizes):
    with pytest.raises(ConfigError, match="has to be"):
        Overlapping(*sizes).plan(50, 30, side=64)


def test_enlarging_equals_torch_bilinear_without_antialiasing():
    logits = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(logits)[None, None], (7, 40), mode="bilinear")[0, 0]
    np.testing.assert_array_equal(enlarge(logits, (7, 40)), expected.numpy())


def constant_tiles(tiles, values, depth=2, side=8):
    return np.stack([np.stack([np.full((side, side), v, np.float32) for v in values])] * depth), tiles


def test_split_tiles_are_pasted_as_they_are_with_their_minus_1024():
    tiles = Split2x2().plan(9, 15, side=64)
    store, _ = constant_tiles(tiles, [1, -1024, 3, 40])
    plane = Stitched(store, tiles, (2, 9, 15))[1]
    assert (plane[0, 0], plane[0, 14], plane[8, 0], plane[8, 14]) == (1, -1024, 3, 40)


def test_equal_logits_in_all_tiles_stitch_to_the_same_value_everywhere():
    tiles = Overlapping(overlap_voxels=9).plan(150, 97, side=64)
    store, _ = constant_tiles(tiles, [2.5] * len(tiles))
    np.testing.assert_allclose(Stitched(store, tiles, (2, 150, 97))[0], 2.5, atol=1e-5)


def test_blending_has_no_seam_between_tiles_that_disagree():
    tiles = Overlapping(overlap_voxels=16).plan(64, 112, side=64)  # two tiles side by side, 16 columns shared
    store, _ = constant_tiles(tiles, [10, -1024])
    plane = Stitched(store, tiles, (2, 64, 112))[0]
    np.testing.assert_allclose(plane[:, :48], 10)
    np.testing.assert_allclose(plane[:, 64:], -10)
    assert np.abs(np.diff(plane, axis=1)).max() <= 20 / 16 + 1e-5
    assert (np.diff(plane[30]) <= 0).all()


def test_a_smooth_field_survives_tiling():
    y, x = np.meshgrid(np.arange(150), np.arange(97), indexing="ij")
    field = (np.sin(y / 25) * 3 + x / 20).astype(np.float32)
    tiles = Overlapping(overlap_voxels=12).plan(150, 97, side=64)
    store = np.stack([[shrink(field[tile.index]) for tile in tiles]]).astype(np.float32)
    assert np.abs(Stitched(store, tiles, (1, 150, 97))[0] - field).max() < 0.2


def shrink(part):
    tensor = torch.from_numpy(np.ascontiguousarray(part))[None, None]
    return torch.nn.functional.interpolate(tensor, (32, 32), mode="bilinear", antialias=True)[0, 0].numpy()


def test_tiles_are_as_large_as_the_network_is_made_for():
    from networks import random_tracker

    assert random_tracker().tile_voxels == 64
    tracker = random_tracker(tile_voxels=32)
    assert (tracker.side, tracker.tile_voxels) == (64, 32)
    assert {tile.shape for tile in Overlapping().plan(50, 30, tracker.tile_voxels)} == {(32, 30)}
