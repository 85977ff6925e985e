"""What a tomogram is padded with changes nothing: not the statistics, nor the contrast, nor the mask inside."""

import numpy as np
import pytest
from conftest import grey

import etsam
from etsam.errors import InputError
from etsam.normalize import Robust, fit_to, measure
from etsam.volume.content import NO_MEMBRANE

IMAGE = grey((6, 40, 56))
INSIDE = np.s_[2:8, 3:43, 1:57]


def padded(value, image=IMAGE, dtype=np.float32):
    whole = np.full((11, 48, 64), value, dtype)
    whole[INSIDE] = image
    return whole


@pytest.fixture(scope="module", params=["robust", "min_max_positive", "softplus_minmax"])
def model(request):
    return etsam.load(["net=tiny_test", "weights=random", f"normalize={request.param}"], device="cpu")


def test_inside_a_rim_and_between_empty_slices_logits_are_those_of_the_image_alone(model):
    alone = model.segment(IMAGE)
    found = model.segment(padded(0))
    np.testing.assert_array_equal(found.logits[INSIDE], alone.logits)
    rest = np.ones(found.logits.shape, bool)
    rest[INSIDE] = False
    assert (found.logits[rest] == NO_MEMBRANE).all()
    assert not found.mask[rest].any()


def test_an_empty_slice_within_is_as_if_it_were_cut_out(model):
    with_gap = np.insert(IMAGE, 3, 0, axis=0)
    found = model.segment(with_gap).logits
    np.testing.assert_array_equal(np.delete(found, 3, axis=0), model.segment(IMAGE).logits)


@pytest.mark.parametrize("value", [-50, 0, 8, 1000])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_statistics_are_those_of_the_image_whatever_the_value_around_it(value, dtype):
    image = (10 * IMAGE).astype(dtype)
    alone, found = measure(image), measure(padded(value, image, dtype))
    np.testing.assert_array_equal(found.sample, alone.sample)
    assert (found.mean, found.skewness, found.contrast) == (alone.mean, alone.skewness, "dark")
    assert found.content.inner_shape == image.shape


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_corners_of_one_value_count_in_no_statistics_and_are_no_membrane(dtype):
    rows, columns = np.mgrid[:90, :110]
    corner = rows + columns < 64  # as of a tilt series that was rotated
    image = (100 * grey((4, 90, 110)) + 100).astype(dtype)
    rotated = image.copy()
    rotated[:, corner] = 0
    found = measure(rotated)
    assert found.padding == 0
    assert found.padded == 4 * corner.sum()
    assert (found.minimum > 0, found.contrast) == (True, "dark")
    assert found.percentile(1) == pytest.approx(np.percentile(image[:, ~corner], 1))
    fit = fit_to(found, Robust())
    seen = fit.whole(rotated)[0][corner]
    assert abs(np.median(seen) - fit.transform(np.full((1, 1), found.mean))[0, 0]) < 1e-6
    logits = fit.put_back(np.ones(image.shape, np.float32), rotated, NO_MEMBRANE)
    np.testing.assert_array_equal(logits[0] == NO_MEMBRANE, corner)


def test_saturated_membranes_are_no_padding():
    image = np.clip(60 * grey((5, 64, 80)) - 350, 0, 255).astype(np.uint8)  # the sheet is 0 throughout
    assert (image == 0).mean() > 0.02
    found = measure(image)
    assert (found.padding, found.content) == (None, None)


def test_a_volume_of_one_value_is_refused_as_before(model):
    with pytest.raises(InputError, match="every voxel"):
        model.segment(np.full((4, 9, 12), 3, np.float32))
