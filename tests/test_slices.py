"""`LazySlices`: slices computed when they are asked for."""

import numpy as np
import pytest

from etsam.volume.slices import LazySlices

SHAPE = (5, 7, 11)


@pytest.fixture
def array():
    return np.arange(np.prod(SHAPE)).reshape(SHAPE)


def stack(slices):
    return np.stack([slices[z] for z in range(slices.shape[0])])


def test_a_part_of_a_part_has_the_values_of_the_array(array):
    found = LazySlices.of(array).window(1, 4).crop(slice(2, 6), slice(3, None)).map(lambda plane: 2 * plane)
    assert found.shape == (3, 4, 8)
    np.testing.assert_array_equal(stack(found), 2 * array[1:4, 2:6, 3:])


def test_only_the_slice_that_is_asked_for_is_computed():
    asked = []
    slices = LazySlices(SHAPE, lambda z: asked.append(z) or np.zeros(SHAPE[1:])).window(1, 4)
    slices[1], slices[-1]
    assert asked == [2, 3]


@pytest.mark.parametrize("z", [-4, 3, 5])
def test_a_slice_outside_of_a_window_is_an_error_and_not_one_of_the_volume(array, z):
    with pytest.raises(IndexError, match=str(z)):
        LazySlices.of(array).window(1, 4)[z]


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (0, 6), (4, 3)])
def test_a_window_outside_of_the_volume_is_an_error(array, first, last):
    with pytest.raises(IndexError):
        LazySlices.of(array).window(first, last)


def test_the_last_slice_is_kept():
    asked = []
    slices = LazySlices(SHAPE, lambda z: asked.append(z) or np.full(SHAPE[1:], z)).keep_last()
    assert [slices[z][0, 0] for z in (2, 2, -3, 3, 2)] == [2, 2, 2, 3, 2]
    assert asked == [2, 3, 2]
