"""The drawing of slices, and the preview made of it: what is shown, where, how large, and in how much memory."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from etsam import pictures
from etsam.errors import ConfigError
from etsam.pictures import averaged_slices, drawn, scale_bar, sheet, short_left, stretched, tinted
from etsam.prediction import preview as module
from etsam.prediction.preview import Caption, MaskSections, Sections, preview
from etsam.prediction.record import weights_of
from etsam.weights.registry import names_of, weights_warning

SHAPE = (24, 50, 70)
NANO = "nano_stage2.safetensors"


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def blue(image):
    """True where the fill is: blue is far above red, which no grey and no amber has."""
    return image[..., 2] - image[..., 0] > 40


def gathered(volume, mask, size=(10.0, 10.0, 10.0)):
    grey = Sections(volume.shape, size)
    found = MaskSections(grey)
    for z in range(len(volume)):
        grey.add(z, volume[z])
        found.add(z, mask[z])
    return grey, found


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).normal(5, 2, SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    ("step", "depth", "number"),
    [(10.0, 100, 9), (43.2, 101, 3), (5.3, 500, 19), (120.0, 90, 1), (None, 90, 5), (2.0, 6, 5), (2.0, 1, 1)],
)
def test_about_ten_nanometres_are_averaged_and_one_slice_is_in_the_middle(step, depth, number):
    assert averaged_slices(step, depth) == number


@pytest.mark.parametrize(
    ("width", "size", "voxels", "label"),
    [
        (960, 10.0, 200, "200 nm"),
        (135, 43.2, 23.148, "100 nm"),
        (4096, 10.0, 1000, "1 µm"),
        (70, None, 20, "20 voxels"),
    ],
)
def test_a_scale_bar_is_round_and_at_most_three_tenths_of_the_width(width, size, voxels, label):
    bar = scale_bar(width, size)
    assert bar.label == label
    assert bar.voxels == pytest.approx(voxels, abs=1e-3)
    assert 0.1 * width < bar.voxels <= 0.3 * width


def test_the_bar_on_a_picture_is_as_long_as_it_says():
    bar = scale_bar(100, 10.0)  # 20 nm: 20 voxels
    image = drawn(np.full((60, 100), 128, np.uint8), zoom=(2.0, 3.0), bar=bar)
    assert image.shape == (120, 300, 3)
    white = (image == 255).all(axis=-1).sum(axis=1)
    assert white[-8:].max() == 60


def test_contrast_leaves_padding_and_what_is_not_finite_out():
    inside = np.random.default_rng(0).normal(100, 1, (40, 60)).astype(np.float32)
    padded = np.zeros((60, 70), np.float32)
    padded[:40, :60] = inside
    np.testing.assert_array_equal(stretched(padded)[:40, :60], stretched(inside))
    assert set(np.unique(stretched(inside))) > {0, 255}
    inside[3, 4] = np.nan
    assert stretched(inside)[3, 4] in (127, 128)
    assert stretched(np.full((3, 5), 7.0)).tolist() == [[128] * 5] * 3
    assert set(np.unique(stretched(np.eye(30)[:, :20]))) == {0, 255}  # a mask is no padding


def test_the_fill_is_translucent_and_only_where_the_mask_is():
    grey = np.array([[0, 100, 200]], np.uint8)
    image = tinted(grey, np.array([[True, True, False]]), "#56B4E9", 0.5)
    assert image.tolist() == [[[43, 90, 116], [93, 140, 166], [200, 200, 200]]]


def test_the_last_row_of_a_slice_is_drawn_first():
    grey = np.zeros((20, 30), np.uint8)
    grey[:10] = 200
    mask = np.zeros((20, 30), bool)
    mask[15:, :15] = True
    image = drawn(grey, mask)
    assert (image[12:] == 200).all()
    assert blue(image.astype(int)).sum() == 5 * 15
    assert blue(image.astype(int))[:5, :15].all()


def test_names_are_shortened_at_the_left():
    assert short_left("TS_037_bin4_rec.mrc", 9) == "…_rec.mrc"
    assert short_left("a.mrc", 9) == "a.mrc"


def test_a_long_title_and_its_badge_stay_on_the_sheet():
    panel = pictures.Panel(np.zeros((30, 40, 3), np.uint8), "slice z = 3")
    plain, marked = (pixels(sheet("n" * 300, ["a line " * 40], [[panel]], badge)) for badge in ("", "DEMO WEIGHTS"))
    assert plain.shape == marked.shape
    assert (marked[:, -5:] == 255).all()
    amber = (marked == (255, 176, 0)).all(axis=-1)
    assert amber.any()
    assert not (plain == (255, 176, 0)).all(axis=-1).any()


def test_a_sheet_without_panels_is_refused():
    with pytest.raises(ConfigError, match="panels"):
        sheet("name", [], [])


@pytest.mark.parametrize("size", [(30.0, 20.0, 10.0), None])
def test_sections_are_means_around_their_places(volume, size):
    grey, _ = gathered(volume, volume > 9, size)
    assert grey.averaged == ({"z": 3, "y": 5, "x": 9} if size else {"z": 5, "y": 5, "x": 5})
    for axis, number in (("z", 0), ("y", 1), ("x", 2)):
        assert len(grey.places[axis]) == SHAPE[number] // grey.averaged[axis]
        half = grey.averaged[axis] // 2
        for place in grey.places[axis][[0, -1]].tolist():
            band = volume.take(range(place - half, place + half + 1), number).mean(number, dtype=np.float64)
            difference = grey.image(axis, place).astype(int) - stretched(band)
            assert abs(difference).max() <= 1  # of rounding


def test_the_slices_shown_are_those_with_most_membrane_and_lie_apart(volume):
    mask = np.zeros(SHAPE, bool)
    mask[4, :40, :40] = mask[5, :30, :40] = True
    mask[8, :10, :20] = True
    mask[:, 33, 5:15:3] = True
    _, found = gathered(volume, mask, (100.0, 100.0, 100.0))
    assert found.richest("z", 2) == [4, 8]
    assert found.richest("y") == [33]
    assert found.voxels == np.count_nonzero(mask)
    np.testing.assert_array_equal(found.mask("z", 4), mask[4])
    np.testing.assert_array_equal(found.mask("x", 5), mask[:, :, 5])


def test_a_vesicle_is_shown_where_it_is_a_ring_and_not_where_it_is_cut_flat(volume):
    mask = np.zeros(SHAPE, bool)
    z, x = np.indices((SHAPE[0], SHAPE[2]))
    distance = np.hypot(z - 12, x - 35)
    mask[:, 10], mask[:, 30] = distance < 11, abs(distance - 10) < 1
    _, found = gathered(volume, mask, (100.0, 100.0, 100.0))
    assert np.count_nonzero(mask[:, 10]) > 2 * np.count_nonzero(mask[:, 30])
    assert found.richest("y") == [30]


def test_without_membrane_the_middle_is_shown(volume):
    grey, found = gathered(volume, np.zeros(SHAPE, bool), (100.0, 100.0, 100.0))
    assert found.richest("z") == [12]
    assert not blue(pixels(preview(grey, found, Caption("t.mrc", 0.5, 0)))).any()


def test_a_preview_shows_each_slice_plain_and_below_it_filled_at_one_scale(volume):
    mask = np.zeros(SHAPE, bool)
    mask[:, 20:30] = True
    grey, found = gathered(volume, mask)
    image = pixels(preview(grey, found, Caption("t.mrc", 0.5, 1)))
    filled = blue(image)
    columns = np.flatnonzero(filled.any(axis=0))
    runs = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    zoom = 480 / 70
    assert [len(run) for run in runs] == [480, 480, 480]  # two slices; the side view across y, all membrane
    heights = [filled[:, run[3]].sum() for run in runs]
    assert heights[0] == heights[1] == pytest.approx(10 * zoom, abs=2)
    assert filled[:, runs[0]].any(axis=1).argmax() > image.shape[0] / 2  # the plain one is above


def test_demo_and_random_weights_are_named():
    assert weights_warning([NANO]) == "DEMO WEIGHTS"
    assert weights_warning(["etsam_stage2_v1.pt"]) == weights_warning([]) == ""
    assert "MEANINGLESS" in weights_warning(["random (seed 0)"])


def test_weights_are_named_for_all_stages_whose_logits_are_in_the_mask():
    files = {"stage1": {"name": "first.pt"}, "stage2": {"name": "second.pt"}}
    assert weights_of({"weights": files}) == ("second.pt",)
    assert weights_of({"weights": files, "mean_of_stages": True}) == ("first.pt", "second.pt")
    assert weights_of({}) == ()  # a record of the first version
    assert names_of(["first.pt", "second.pt"]) == "first.pt + second.pt"
    assert names_of([NANO, NANO.replace("2", "1")]) == "nano"


def test_side_views_of_large_deep_tomograms_are_no_taller_than_regions_of_slices(monkeypatch):
    shape = (90, 64, 72)
    monkeypatch.setattr("etsam.prediction.preview._CROPPED_FROM", 60)
    monkeypatch.setattr("etsam.prediction.preview._PANEL_PIXELS", 48)  # regions of 24 voxels
    mask = np.zeros(shape, np.uint8)
    mask[50:60, 20:24, 10:40] = 1
    regions = []
    real = module._richest_region

    def noted(plane, size, **more):
        regions.append(real(plane, size, **more))
        return regions[-1]

    monkeypatch.setattr(module, "_richest_region", noted)
    preview(*gathered(np.random.default_rng(0).normal(0, 1, shape).astype(np.float32), mask), Caption("a", 0.0, 1))
    for first, last, _, _ in regions[-2:]:  # of the side views
        assert last - first == 24
        assert first <= 50
        assert last >= 60


def test_of_large_slices_the_richest_region_is_shown_beside_the_whole(monkeypatch):
    shape = (3, 700, 900)
    mask = np.zeros(shape, bool)
    mask[:, 500:560, 100:180] = True
    grey, found = gathered(np.zeros(shape, np.float32), mask)
    first, last, left, right = module._richest_region(found.mask("z", 1), (240, 240))
    assert (last - first, right - left) == (240, 240)
    assert first <= 500
    assert last >= 560
    assert left <= 100
    assert right >= 180
    filled = blue(pixels(preview(grey, found, Caption("t.mrc", 0.5, 1))))
    columns = np.flatnonzero(filled.any(axis=0))
    widths = [len(run) for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)]
    assert widths[0] == pytest.approx(80 * 480 / 900, abs=2)  # whole
    assert widths[1] == pytest.approx(80 * 2, abs=2)  # region: two pixels a voxel


def test_a_region_apart_from_the_first_is_preferred_where_there_is_membrane_too():
    mask = np.zeros((300, 400), bool)
    mask[10:40, 10:40] = mask[200:220, 300:330] = True
    assert module._richest_region(mask, (80, 80))[0] <= 10
    assert module._richest_region(mask, (80, 80), apart_from=(0, 80, 0, 80))[0] > 100
    assert module._richest_region(np.zeros((300, 400), bool), (100, 200)) == (100, 200, 100, 300)


def test_memory_of_a_preview_does_not_grow_with_the_volume(monkeypatch):
    monkeypatch.setattr(module, "_SLICE_BYTES", 1_000_000)
    monkeypatch.setattr(module, "_SIDE_BYTES", 500_000)
    shape, plane = (90, 300, 340), np.random.default_rng(0).normal(size=(300, 340)).astype(np.float32)
    tracemalloc.start()
    try:
        grey = Sections(shape, (10.0, 10.0, 10.0))
        found = MaskSections(grey)
        for z in range(shape[0]):
            grey.add(z, plane)
            found.add(z, plane > 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(grey.places["z"]) == 9
    assert len(grey.places["y"]) == 4
    assert peak < 8_000_000  # the volume has 37 MB


def test_the_smallest_volumes_are_drawn():
    for shape in ((1, 1, 1), (1, 2, 3), (40, 3, 2)):
        grey, found = gathered(np.ones(shape, np.float32), np.ones(shape, bool), None)
        assert pixels(preview(grey, found, Caption("t.mrc", 0.5, 1, (NANO,), cleaned=True))).shape[2] == 3
