import logging

import numpy as np
import pytest
import torch

from etsam.errors import ConfigError, InputError
from etsam.normalize import MinMaxPositive, Moments, Robust, SoftplusMinMax, measure, normalize

SHAPE = (5, 17, 23)


@pytest.fixture
def volume():
    return np.random.default_rng(0).normal(3, 20, SHAPE).astype(np.float32)


def stack(slices):
    return np.stack([slices[z] for z in range(slices.shape[0])])


METHODS = [MinMaxPositive(), SoftplusMinMax(), Robust()]


def test_min_max_positive_clips_negatives_and_divides_by_the_maximum(volume):
    expected = np.clip(volume, 0, None) / volume.max()
    np.testing.assert_array_equal(stack(normalize(volume, MinMaxPositive())), expected)


def test_softplus_minmax_equals_torch_on_the_whole_volume(volume):
    soft = torch.nn.functional.softplus(torch.from_numpy(volume)).numpy()
    expected = (soft - soft.min()) / (soft.max() - soft.min())
    np.testing.assert_array_equal(stack(normalize(volume, SoftplusMinMax())), expected)


def test_robust_maps_the_percentiles_to_zero_and_one(volume):
    low, high = np.percentile(volume, [2, 90])
    ours = stack(normalize(volume, Robust(2, 90, membranes="dark")))
    np.testing.assert_allclose(ours, np.clip((volume - low) / (high - low), 0, 1), atol=1e-6)


def test_robust_inverts_bright_membranes(volume):
    dark, bright = (stack(normalize(volume, Robust(membranes=kind))) for kind in ("dark", "bright"))
    np.testing.assert_allclose(bright, 1 - dark, atol=1e-6)


@pytest.mark.parametrize("sign", [-1, 1])
def test_robust_finds_the_contrast_of_a_sparse_shell_in_noise(sign):
    z, y, x = np.meshgrid(*(np.arange(n) - n / 2 for n in (40, 60, 80)), indexing="ij")
    shell = abs(np.sqrt(z**2 + y**2 + x**2) - 18) < 2
    tomogram = sign * 3.0 * shell + np.random.default_rng(0).normal(size=shell.shape)
    ours = stack(normalize(tomogram.astype(np.float32), Robust()))
    assert ours[shell].mean() < ours[~shell].mean() - 0.1


def test_robust_ignores_a_gold_bead(volume):
    bead = volume.copy()
    bead[2, 3, 4] = 1e6
    plain, spoiled = (stack(normalize(v, Robust(membranes="dark"))) for v in (volume, bead))
    untouched = np.ones(SHAPE, bool)
    untouched[2, 3, 4] = False
    assert np.abs(plain - spoiled)[untouched].max() < 0.02


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.float16, np.float32])
def test_every_file_dtype_gives_finite_float32_from_zero_to_one_and_is_left_as_it_was(volume, method, dtype):
    given = volume.clip(0, 100).astype(dtype)
    before = given.copy()
    ours = stack(normalize(given, method))
    assert ours.dtype == np.float32
    assert 0 <= ours.min() < ours.max() <= 1
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("value", [0, -3.5, 7])
def test_a_constant_volume_is_an_error(method, value):
    with pytest.raises(InputError, match="every voxel has the value"):
        normalize(np.full(SHAPE, value, np.float32), method)


def test_an_all_negative_volume_is_an_error_of_min_max_positive_that_names_the_alternative(volume):
    with pytest.raises(InputError, match=r"no voxel is positive.*normalize=robust"):
        normalize(volume - 1000, MinMaxPositive())


@pytest.mark.parametrize("method", [SoftplusMinMax(), Robust()], ids=lambda m: type(m).__name__)
def test_an_all_negative_volume_is_finite_with_the_other_methods(volume, method):
    ours = stack(normalize(volume - volume.max() - 1, method))
    assert np.isfinite(ours).all()
    assert ours.max() > ours.min()


def test_a_volume_where_softplus_is_flat_is_an_error(volume):
    with pytest.raises(InputError, match="softplus is flat"):
        normalize(volume - 10_000, SoftplusMinMax())


def test_non_finite_voxels_are_counted_in_the_error(volume):
    volume[0, 0, :3] = np.nan
    volume[4, 2, 1] = np.inf
    with pytest.raises(InputError, match=r"4 of 1955 voxels are NaN or infinite.*nonfinite=mean"):
        normalize(volume, Robust())


def test_non_finite_voxels_become_the_mean_of_the_others_on_request(volume):
    spoiled = volume.copy()
    spoiled[1, 2, 3] = np.nan
    ours = stack(normalize(spoiled, MinMaxPositive(), nonfinite="mean"))
    others = np.delete(volume.ravel(), np.ravel_multi_index((1, 2, 3), SHAPE))
    assert np.isfinite(ours).all()
    assert ours[1, 2, 3] == pytest.approx(max(others.mean(), 0) / others.max(), rel=1e-5)


def test_a_volume_without_any_finite_voxel_is_an_error():
    with pytest.raises(InputError, match="none of the 1955 voxels"):
        normalize(np.full(SHAPE, np.nan, np.float32), Robust(), nonfinite="mean")


def test_statistics_of_a_known_volume():
    volume = np.arange(5 * 17 * 23, dtype=np.int16).reshape(SHAPE)
    statistics = measure(volume)
    assert (statistics.minimum, statistics.maximum, statistics.mean) == (0, 1954, 977)
    assert (statistics.voxels, statistics.nonfinite) == (1955, 0)
    assert statistics.percentile(50) == 977


def test_percentiles_of_a_subsampled_volume_are_close_to_the_true_ones():
    volume = np.random.default_rng(1).normal(size=(20, 512, 520)).astype(np.float32)
    statistics = measure(volume)
    assert len(statistics.sample) < volume.size
    assert statistics.percentile(1) == pytest.approx(np.percentile(volume, 1), abs=0.02)


@pytest.mark.parametrize("percents", [(50, 50), (-1, 99), (1, 101), (99, 1)])
def test_impossible_percentiles_are_an_error(percents):
    with pytest.raises(ConfigError, match="two increasing numbers"):
        Robust(*percents)


def one_sided(sign):
    """Noise with a band of blocks on one side of it: the minority is bright (+1) or dark (-1)."""
    grey = np.random.default_rng(0).normal(size=(32, 64, 65))
    grey[:, 20:24] += 4 * sign
    return grey


@pytest.mark.parametrize("offset", [0, -1e3, 1e5, -1e6, 1e6, 1e7])
@pytest.mark.parametrize("scale", [2, 5, 1e4])
@pytest.mark.parametrize(("sign", "name"), [(1, "bright"), (-1, "dark")])
def test_the_contrast_is_told_whatever_the_offset_and_scale(offset, scale, sign, name):
    found = measure((one_sided(sign) * scale + offset).astype(np.float32))
    assert found.contrast == name
    assert found.skewness == pytest.approx(measure(one_sided(sign)).skewness, rel=0.02)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_the_skewness_does_not_depend_on_the_scale(scale):
    found = measure((one_sided(1) * scale).astype(np.float32))
    assert found.skewness == pytest.approx(measure(one_sided(1)).skewness, rel=1e-5)


def test_moments_of_parts_merge_to_those_of_the_whole():
    values = np.random.default_rng(1).gamma(2.0, size=1000) + 1e6
    merged = Moments()
    for part in np.split(values, [3, 10, 500]):
        merged = merged.merged(Moments.of(part))
    whole = Moments.of(values)
    assert merged.count == 1000
    np.testing.assert_allclose(
        (merged.mean, merged.squares, merged.cubes), (whole.mean, whole.squares, whole.cubes), rtol=1e-9
    )


def test_a_contrast_that_cannot_be_told_is_said_and_not_guessed(caplog):
    volume = np.zeros((3, 8, 12), np.float32)
    volume[:, ::2], volume[:, 1::2] = 5, 7  # every block has the same mean
    assert measure(volume).contrast == "unknown"
    with caplog.at_level(logging.WARNING, "etsam"):
        normalize(volume, Robust())
    assert "normalize.membranes" in caplog.text


def test_every_slice_is_read_once_and_shown_to_who_looks_on(volume):
    shown = {}
    measure(volume, seen=shown.__setitem__)
    assert sorted(shown) == list(range(len(volume)))
    np.testing.assert_array_equal(np.stack([shown[z] for z in sorted(shown)]), volume)
