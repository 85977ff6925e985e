"""The benchmark of voxel sizes: the same field, coarser, in the same place."""

import importlib.util

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from etsam.paths import resource_path

FILE = resource_path("configs").parent / "benchmarks/scale_matching.py"
if not FILE.exists():
    pytest.skip("needs a checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("scale_matching", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_smooth_field_with_its_transform_cropped_is_that_of_block_means(benchmark, factor):
    volume = gaussian_filter(np.random.default_rng(0).normal(size=(24, 32, 48)), 7, mode="wrap").astype(np.float32)
    blocks = volume.reshape(24 // factor, factor, 32 // factor, factor, 48 // factor, factor)
    cropped = benchmark.fourier_cropped(volume, factor)
    np.testing.assert_allclose(cropped, blocks.mean(axis=(1, 3, 5)), atol=0.1 * volume.std())


def test_a_coarse_voxel_is_membrane_where_more_than_half_of_it_is(benchmark):
    mask = np.zeros((4, 6, 8), bool)
    mask[:2, :2, 0] = mask[2:, 2:4, 2:4] = True
    mask[0, 0, 1] = True
    expected = np.zeros((2, 3, 4), bool)
    expected[0, 0, 0] = expected[1, 1, 1] = True
    np.testing.assert_array_equal(benchmark.coarse_mask(mask, 2), expected)
