"""Training starts from weights of fewer input slices, and begins where they are."""

import numpy as np
import pytest
import torch
from networks import random_tracker, tiny_net
from safetensors.torch import save_file

from etsam.errors import CheckpointError
from etsam.network.build import build_tracker

DEPTH, SIDE = 11, 64


def _saved(tracker, path):
    save_file({name: value.contiguous() for name, value in tracker.network.state_dict().items()}, path)
    return str(path)


def _levels(tracker, volume, z):
    planes = torch.from_numpy(volume[tracker.seen_with(z, DEPTH)])[None]
    with torch.no_grad():
        return tracker.encode(tracker.prepare(planes)).levels


@pytest.fixture
def volume():
    return np.random.default_rng(3).random((DEPTH, SIDE, SIDE), dtype=np.float32)


def test_weights_of_five_slices_give_the_same_in_a_network_of_nine(tmp_path, volume):
    five = random_tracker(input_slices=5)
    nine = build_tracker(tiny_net(input_slices=9), _saved(five, tmp_path / "five.safetensors"), widen=True)
    for z in (0, 4, 9):
        for a, b in zip(_levels(five, volume, z), _levels(nine, volume, z), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    weight = nine.network.image_encoder.trunk.patch_embed.proj.weight
    assert not weight[:, :2].any()
    assert not weight[:, 7:].any()


def test_weights_of_one_grey_slice_give_the_same_away_from_the_border(tmp_path, volume):
    one = random_tracker()
    five = build_tracker(tiny_net(input_slices=5), _saved(one, tmp_path / "one.safetensors"), widen=True)
    planes = torch.from_numpy(volume[one.seen_with(4, DEPTH)])[None], torch.from_numpy(volume[2:7])[None]
    with torch.no_grad():
        first = one.network.image_encoder.trunk.patch_embed.proj(one.prepare(planes[0]))
        wide = five.network.image_encoder.trunk.patch_embed.proj(five.prepare(planes[1]))
    assert first.std() > 0.1
    torch.testing.assert_close(first[..., 2:-2, 2:-2], wide[..., 2:-2, 2:-2], rtol=0, atol=1e-5)


def test_prediction_does_not_take_weights_of_another_number_of_slices(tmp_path):
    path = _saved(random_tracker(input_slices=5), tmp_path / "five.safetensors")
    with pytest.raises(
        CheckpointError, match=r"1 of another shape \(image_encoder.trunk.patch_embed.proj.weight \(8, 5, 7, 7\)"
    ):
        build_tracker(tiny_net(input_slices=9), path)


@pytest.mark.parametrize(("slices", "levels"), [(3, 1), (5, 2)])
def test_nano_takes_weights_that_saw_fewer_slices_at_fewer_levels_and_says_the_same(tmp_path, volume, slices, levels):
    def net(slices, levels):
        config = tiny_net("tiny_voxel_test", input_slices=slices)
        config["image_encoder"]["trunk"]["seen_at"] = levels
        return config

    few = build_tracker(net(slices, levels), seed=4)
    wide = build_tracker(net(9, 3), _saved(few, tmp_path / "few.safetensors"))
    for z in (0, 4, 9):
        for a, b in zip(_levels(few, volume, z), _levels(wide, volume, z), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    trunk = few.network.image_encoder.trunk
    save_file(trunk.state_dict(), tmp_path / "trunk.safetensors")
    started = build_tracker(net(9, 3), str(tmp_path / "trunk.safetensors"), widen=True)
    torch.testing.assert_close(_levels(started, volume, 4)[0], _levels(few, volume, 4)[0], rtol=0, atol=1e-5)
    path = _saved(wide, tmp_path / "wide.safetensors")
    other = net(9, 3)
    other["image_encoder"]["trunk"]["widths"] = [8, 24, 16, 16, 24]
    for config in (net(slices, levels), other):
        with pytest.raises(CheckpointError, match="of another shape"):
            build_tracker(config, path)


def test_weights_of_more_slices_are_not_cut(tmp_path):
    path = _saved(random_tracker(input_slices=9), tmp_path / "nine.safetensors")
    with pytest.raises(CheckpointError, match="of another shape"):
        build_tracker(tiny_net(input_slices=5), path, widen=True)
