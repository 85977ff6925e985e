"""The image encoder with its pixels in the order of windows gives what SAM2's gives, and computes less."""

import pytest
import torch
from flops import slice_flops
from networks import random_tracker, tiny_net

from etsam.network.build import build_network, known_layers
from etsam.network.fast.window_order import WindowOrder, Windows, to_map, to_windows, windows_of


@pytest.mark.parametrize(
    ("size", "side"), [((6, 4), 2), ((7, 5), 3), ((4, 9), 4), ((9, 4), 4), ((2, 3), 5), ((3, 5), 0)]
)
def test_pixels_of_a_window_lie_together_and_find_back(size, side):
    height, width = size
    image = torch.arange(2 * height * width * 3).view(2, height, width, 3)
    ordered = to_windows(image, side)
    at = 0
    for number, rows, columns in windows_of(size, side):
        for _ in range(number):
            window = ordered[:, at : at + rows * columns]
            y, x = (image == window[0, 0, 0]).nonzero()[0, 1:3].tolist()
            torch.testing.assert_close(window.unflatten(1, (rows, columns)), image[:, y : y + rows, x : x + columns])
            at += rows * columns
    assert at == height * width
    torch.testing.assert_close(to_map(ordered, size, side), image)


def test_windows_that_edges_cut_come_after_the_whole_ones():
    assert windows_of((64, 64), 14) == [Windows(16, 14, 14), Windows(4, 14, 8), Windows(4, 8, 14), Windows(1, 8, 8)]
    assert windows_of((16, 24), 8) == [Windows(6, 8, 8)]
    assert windows_of((5, 7), 8) == [Windows(1, 5, 7)]


def trunk_of(windows, seed=0, **changes):
    """A small trunk of random weights, biases included: SAM2 starts some at zero, which would hide mistakes."""
    settings = {"embed_dim": 8, "stages": (1, 2, 3, 2), "global_att_blocks": (4,), **changes}
    trunk = known_layers().trunk(window_spec=windows, window_pos_embed_bkg_spatial_size=(3, 3), **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return trunk.double()  # in which rounding cannot hide anything


def images_of(height, width, count=2):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


SETTINGS = [
    ((8, 4, 14, 7), (96, 160)),  # as published; maps of 6 x 10 and 3 x 5 are smaller than their windows
    ((8, 4, 4, 2), (160, 96)),  # maps of 10 x 6 and 5 x 3 are cut at two edges
    ((8, 6, 4, 3), (96, 224)),  # no window is half of that before it
]


@pytest.mark.parametrize(("windows", "shape"), SETTINGS, ids=str)
def test_all_levels_and_gradients_are_those_of_sam2(windows, shape):
    trunk = trunk_of(windows)
    images = images_of(*shape)
    found = []
    for encode in (trunk, WindowOrder(trunk)):
        levels = encode(images)
        gradients = torch.autograd.grad(sum(level.square().mean() for level in levels), list(trunk.parameters()))
        found.append((levels, gradients))
    (theirs, their_gradients), (ours, our_gradients) = found
    assert [level.shape for level in ours] == [level.shape for level in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert other.std() > 0.1
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_paths_that_training_drops_are_those_of_sam2():
    trunk = trunk_of((8, 4, 14, 7), drop_path_rate=0.6).train()
    images = images_of(96, 64, count=3)
    found = []
    for encode in (trunk, WindowOrder(trunk)):
        torch.manual_seed(3)
        found.append(encode(images))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert not torch.allclose(theirs, trunk.eval()(images)[-1], atol=0.1)


def test_nothing_is_computed_for_pixels_outside_the_map():
    trunk = trunk_of((8, 4, 14, 7))
    rows = []
    for block in trunk.blocks:
        block.attn.qkv.register_forward_hook(lambda module, given, found: rows.append(found[..., 0].numel()))
    images = images_of(96, 160)
    trunk(images)
    theirs, rows[:] = list(rows), []
    WindowOrder(trunk)(images)
    pixels = [2 * 24 * 40, 2 * 24 * 40, 2 * 12 * 20, 2 * 12 * 20, 2 * 6 * 10, 2 * 6 * 10, 2 * 6 * 10, 2 * 3 * 5]
    assert rows == pixels
    assert sum(theirs) > sum(rows)


def test_windows_that_cannot_be_halved_are_left_to_sam2(monkeypatch):
    trunk = trunk_of((8, 7, 4, 2))  # 7 and 5 of 12 pixels, of which SAM2 makes 3 and 3
    images = images_of(96, 96)
    calls = []
    monkeypatch.setattr(type(trunk.blocks[0]), "forward", _counted(type(trunk.blocks[0]).forward, calls))
    found = WindowOrder(trunk)(images)
    assert len(calls) == len(trunk.blocks)
    for ours, theirs in zip(found, trunk(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_elsewhere_than_on_a_cpu_cut_windows_are_left_to_sam2(monkeypatch):
    trunk = trunk_of((8, 4, 4, 2)).to("meta")
    images = images_of(96, 160).to("meta")
    expected = [level.shape for level in trunk(images)]
    calls = []
    monkeypatch.setattr(type(trunk.blocks[0]), "forward", _counted(type(trunk.blocks[0]).forward, calls))
    assert [level.shape for level in WindowOrder(trunk)(images)] == expected
    assert calls == [4, 4, 2]  # of the third stage, but for the first block and that without windows, and the last


def _counted(forward, calls):
    def counted(block, x):
        calls.append(block.window_size)
        return forward(block, x)

    return counted


def test_the_networks_of_trackers_use_it_and_sam2s_predictor_does_not():
    assert isinstance(vars(random_tracker().network.image_encoder.trunk)["forward"], WindowOrder)
    assert "forward" not in vars(build_network(tiny_net()).image_encoder.trunk)


def test_arithmetic_is_counted_as_sam2_computes_it():
    tracker = random_tracker(image_size=96)  # maps of 24, 12, 6 and 3 pixels, which windows of 8, 4, 4, 2 do not divide
    trunk = tracker.network.image_encoder.trunk
    counted = slice_flops(tracker)
    assert isinstance(trunk.forward, WindowOrder)
    del trunk.forward
    assert slice_flops(tracker) == counted


@pytest.mark.gpu
@pytest.mark.parametrize(("windows", "shape"), SETTINGS, ids=str)
def test_a_gpu_gives_the_same(windows, shape):
    trunk, images = trunk_of(windows).float(), images_of(*shape).float()
    with torch.no_grad():
        expected = trunk(images)
        found = WindowOrder(trunk.cuda())(images.cuda())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)
