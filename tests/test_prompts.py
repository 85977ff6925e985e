import numpy as np
import pytest

from etsam.errors import ConfigError
from etsam.inference import prompts

SHAPE = (7, 9, 11)


def test_zero_is_an_empty_mask_on_slice_zero():
    found = prompts.zero(SHAPE)
    assert list(found) == [0]
    np.testing.assert_array_equal(found[0], np.zeros((9, 11), bool))


def test_grid_zero_has_single_voxels_at_every_interval_from_the_corner():
    found = prompts.grid_zero(SHAPE, interval=4)
    assert list(found) == [0]
    assert sorted(zip(*np.nonzero(found[0]), strict=True)) == [(y, x) for y in (0, 4, 8) for x in (0, 4, 8)]


def test_grid_prompts_every_interval_th_slice_with_the_same_points():
    found = prompts.grid(SHAPE, interval=3)
    assert list(found) == [0, 3, 6]
    for mask in found.values():
        np.testing.assert_array_equal(mask, prompts.grid_zero(SHAPE, interval=3)[0])


def test_stage1_mask_prompts_with_the_mask_itself():
    mask = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.uint8)
    found = prompts.stage1_mask(SHAPE, mask, interval=5)
    assert list(found) == [0, 5]
    np.testing.assert_array_equal(found[5], mask[5] > 0)


def test_stage1_mask_without_a_mask_is_an_error():
    with pytest.raises(ConfigError, match="for stage 2 only"):
        prompts.stage1_mask(SHAPE)


@pytest.mark.parametrize("interval", [0, -1, 2.5])
@pytest.mark.parametrize("prompt", [prompts.grid, prompts.grid_zero])
def test_an_interval_below_one_or_not_whole_is_an_error(prompt, interval):
    with pytest.raises(ConfigError, match="whole number"):
        prompt(SHAPE, interval=interval)
