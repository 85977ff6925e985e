"""Slices at another voxel size: the same field, linear in between, each source slice read once."""

import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etsam.errors import ConfigError
from etsam.inference.rescale import _Rescaler, interpolation_shift, rescaled, rescaled_shape, scale_advice
from etsam.volume.slices import LazySlices

SHAPE = (12, 20, 28)


def taken(slices):
    return np.stack([slices[z] for z in range(slices.shape[0])])


@pytest.mark.parametrize("shape", [(6, 10, 14), (18, 31, 40), (7, 20, 50), SHAPE])
def test_rescaling_is_linear_interpolation_of_each_axis_with_means_where_it_becomes_coarser(shape):
    volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    expected = torch.from_numpy(volume)
    expected = F.interpolate(expected[None], shape[1:], mode="bilinear", antialias=True)[0]
    along_z = expected.permute(1, 0, 2)[None]  # (1, Y, Z, X): torch's own filter along Z
    along_z = F.interpolate(along_z, (shape[0], shape[2]), mode="bilinear", antialias=True)[0].permute(1, 0, 2)
    np.testing.assert_allclose(taken(rescaled(volume, shape)), along_z.numpy(), atol=1e-5)


def test_a_ramp_stays_a_ramp_in_both_directions_and_axes_are_not_mixed():
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij")
    ramp = z + 10 * y + 100 * x
    back = taken(rescaled(rescaled(ramp, (24, 40, 56)), SHAPE))
    np.testing.assert_allclose(back[2:-2, 2:-2, 2:-2], ramp[2:-2, 2:-2, 2:-2], rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 10, 14), (30, 20, 28)])
def test_in_order_each_source_slice_is_read_once(shape):
    read = []
    volume = np.zeros(SHAPE, np.float32)
    taken(rescaled(LazySlices(SHAPE, lambda z: read.append(z) or volume[z]), shape))
    assert read == list(range(SHAPE[0]))


def test_sides_follow_the_voxel_size_of_each_axis():
    assert rescaled_shape((100, 200, 300), (20.0, 10.0, 5.0), 10.0) == (200, 200, 150)


def test_a_voxel_size_that_leaves_nothing_is_refused_by_its_name():
    with pytest.raises(ConfigError, match="target_voxel_size"):
        rescaled_shape((100, 200, 300), (10.0, 10.0, 10.0), 300.0)


@pytest.mark.parametrize(("ratio", "shift"), [(0.5, 0), (1, 0), (2**0.5, 0.5), (2, 1), (2**1.5, 2), (4, 3), (8, 3)])
def test_the_shift_of_interpolated_logits_grows_with_the_doublings_up_to_two(ratio, shift):
    assert interpolation_shift(ratio, [1, 3]) == pytest.approx(shift)
    assert interpolation_shift(ratio, None) == 0


@pytest.mark.parametrize("shifts", [[1], [1, 2, 3], [1, float("nan")]])
def test_shifts_are_two_finite_numbers(shifts):
    with pytest.raises(ConfigError, match="finer_shift"):
        interpolation_shift(2, shifts)


@pytest.mark.parametrize(("side", "part"), [(1.9, "target_voxel_size=7"), (80.0, "48"), (10.0, ""), (6.9, "")])
def test_voxels_outside_what_the_weights_know_are_told_with_what_to_do(side, part):
    advice = scale_advice((side, side, side), (7, 48))
    assert part in advice
    assert bool(advice) == bool(part)


@pytest.mark.parametrize(
    ("side", "target", "part"),
    [
        (24.0, 15, "without target_voxel_size"),  # of a size that the weights know, and made finer
        (24.0, 24, ""),
        (10.0, 20, ""),
        (2.0, 10, ""),
        (96.0, 24, ""),
        (10.0, 60, "may not be resolved"),
        (10.0, 2, "try target_voxel_size=7"),
    ],
)
def test_the_size_at_which_a_tomogram_is_seen_is_advised_on(side, target, part):
    advice = scale_advice((side, side, side), (7, 48), target)
    assert part in advice
    assert bool(advice) == bool(part)


@pytest.mark.parametrize("depth", [60, 12, 6, 2])
def test_no_more_slices_are_held_than_one_slice_is_made_of(depth, monkeypatch):
    source, made = (24, 20, 28), []

    def kept(planes):
        return sum(ref() is not None for ref in planes)

    resize = _Rescaler._resize

    def noted(self, plane):
        out = resize(self, plane)
        made.append(weakref.ref(out))
        return out

    monkeypatch.setattr(_Rescaler, "_resize", noted)
    read = []

    def plane(z):
        values = np.full(source[1:], z, np.float32)
        read.append(weakref.ref(values))
        return values

    slices = rescaled(LazySlices(source, plane), (depth, 30, 14))
    most_read = most_made = 0
    for z in range(depth):
        slices[z]
        gc.collect()
        most_read, most_made = max(most_read, kept(read)), max(most_made, kept(made))
    assert len(read) == source[0]
    assert most_read == 0  # a source slice goes as soon as it has its new size
    assert most_made <= 2 * np.ceil(max(source[0] / depth, 1)) + 1
