"""Where nothing is to be marked: the void around a slab, gold beads, a carbon film, an incomplete rim."""

import mrcfile
import numpy as np
import pytest
from conftest import write_mrc
from scipy.ndimage import distance_transform_edt, gaussian_filter

from etsam.errors import ConfigError, InputError
from etsam.postprocess.border import Border, find_border
from etsam.postprocess.carbon import Film, find_carbon
from etsam.postprocess.coarse import Coarse
from etsam.postprocess.gold import Beads, find_gold
from etsam.postprocess.regions import LeaveOut, Regions, RegionSettings
from etsam.postprocess.slab import Slab, find_slab
from etsam.prediction.preview import MaskSections, Sections
from etsam.volume.content import NO_MEMBRANE

SHAPE = (60, 128, 160)
TEN = (10.0, 10.0, 10.0)


def noise(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def planes(low, high, slope_y=0.0, slope_x=0.0, shape=SHAPE):
    """Bottom and top, (1, Y, X): levels at the middle of the volume, and slopes, voxels."""
    y = np.arange(shape[1])[None, :, None] - (shape[1] - 1) / 2
    x = np.arange(shape[2])[None, None] - (shape[2] - 1) / 2
    return low + slope_y * y + slope_x * x, high + slope_y * y + slope_x * x


def lamella(low, high, slope_y=0.0, slope_x=0.0, strength=0.7, seed=0):
    """Blobs of 2 nm between two planes, in noise, (Z, Y, X) float32."""
    bottom, top = planes(low, high, slope_y, slope_x)
    z = np.arange(SHAPE[0])[:, None, None]
    blobs = gaussian_filter(noise(seed + 1), 2)
    return noise(seed) + strength * blobs / blobs.std() * ((z >= bottom) & (z <= top))


@pytest.mark.parametrize(
    ("low", "high", "slope_y", "slope_x"), [(15, 44, 0, 0), (20, 45, 0.1, 0), (15, 40, -0.06, 0.08), (18, 80, 0, 0.1)]
)
def test_the_two_planes_of_a_slab_in_noise_are_found(low, high, slope_y, slope_x):
    slab = find_slab(Coarse.of(lamella(low, high, slope_y, slope_x), TEN))
    outside = np.stack([slab.outside(z) for z in range(SHAPE[0])])
    bottom, top = planes(low, high, slope_y, slope_x)
    z = np.arange(SHAPE[0])[:, None, None]
    margin, off = 3, 3  # voxels: what is kept beyond the planes, and half a block more or less
    assert outside[(z < bottom - margin - off) | (z > top + margin + off)].all()
    assert not outside[(z > bottom - margin + off) & (z < top + margin - off)].any()
    assert slab.tilt_degrees == pytest.approx(np.degrees(np.arctan(np.hypot(slope_y, slope_x))), abs=2)
    assert slab.ends_within == (True, high < SHAPE[0])
    assert ("at least" in Regions(SHAPE, {"slab": slab}).words()) == (high > SHAPE[0])
    if high < SHAPE[0]:
        thickness = (high - low) * np.cos(np.radians(slab.tilt_degrees))
        assert slab.thickness == pytest.approx(thickness + 2 * margin, abs=4)
        assert slab.facts()["thickness_nm"] == pytest.approx(slab.thickness, abs=0.1)


def test_where_sample_fills_the_volume_or_nothing_is_there_no_void_is_seen():
    assert find_slab(Coarse.of(lamella(-100, 200), TEN)) is None
    assert find_slab(Coarse.of(noise(), TEN)) is None
    assert find_slab(Coarse.of(noise(shape=(6, 40, 56)), TEN)) is None


def test_padding_is_neither_sample_nor_void():
    padded = lamella(15, 44, seed=3)
    padded[:, :40] = padded.mean()
    slab = find_slab(Coarse.of(padded, TEN))
    assert slab.thickness == pytest.approx(29 + 6, abs=5)


def test_voxels_of_unknown_size_have_a_slab_in_voxels():
    facts = find_slab(Coarse.of(lamella(15, 44), None)).facts()
    assert facts["thickness_voxels"] == pytest.approx(29 + 4, abs=5)


def with_beads(centres, radius, value, seed=0):
    z, y, x = np.indices(SHAPE)
    volume = gaussian_filter(noise(seed), 1.0)
    volume /= volume.std()
    for cz, cy, cx in centres:
        volume[(z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= radius**2] += value
    return volume


CENTRES = [(20, 30, 40), (31, 100, 41), (45, 64, 120)]


@pytest.mark.parametrize(("radius", "value"), [(3, -25), (5, -25), (8, -15), (5, 25)])
def test_gold_beads_are_found_with_their_size_dark_or_bright(radius, value):
    found = find_gold(Coarse.of(with_beads(CENTRES, radius, value), TEN))
    np.testing.assert_allclose([bead.centre for bead in found.beads], CENTRES, atol=1.2)
    assert found.facts()["median_diameter_nm"] == pytest.approx(2 * radius, abs=2.1)


def test_a_large_bead_of_which_only_a_shell_is_left_is_found_as_one():
    volume = with_beads([(30, 64, 80)], 8, -25)
    z, y, x = np.indices(SHAPE)
    volume[(np.abs(z - 30) <= 12) & ((y - 64) ** 2 + (x - 80) ** 2 <= 25)] = 0  # open along Z
    (bead,) = find_gold(Coarse.of(volume, TEN)).beads
    np.testing.assert_allclose(bead.centre, (30, 64, 80), atol=1.5)
    assert bead.diameter_nm == pytest.approx(16, abs=2.1)


def test_a_bead_and_its_margin_are_left_out_and_nothing_else():
    found = find_gold(Coarse.of(with_beads(CENTRES, 5, -25), TEN))
    outside = np.stack([found.outside(z) for z in range(SHAPE[0])])
    distance = np.min([np.linalg.norm(np.indices(SHAPE).T - centre, axis=-1).T for centre in CENTRES], axis=0)
    assert outside[distance <= 5 + 3].all()
    assert not outside[distance > 5 + 9].any()


def test_sheets_and_rods_as_dark_as_gold_are_no_beads():
    volume = with_beads([], 1, 0)
    volume[:, 60:64] -= 25
    volume[28:32, :50, 20:24] -= 25
    assert find_gold(Coarse.of(volume, TEN)).beads == ()


def test_noise_has_neither_gold_nor_a_bad_rim():
    coarse = Coarse.of(noise(), TEN)
    assert find_gold(coarse).beads == ()
    assert find_border(coarse).facts() == {"z_voxels": [0, 0], "y_voxels": [0, 0], "x_voxels": [0, 0]}


@pytest.mark.parametrize("find", [find_gold, find_carbon])
def test_gold_and_carbon_need_the_voxel_size(find):
    with pytest.raises(InputError, match="voxel_size"):
        find(Coarse.of(noise(), None))


def with_film(degrees, distance, radius=np.inf, slices=(20, 36), density=-0.6, grain=0.8, seed=0):
    """Noise with a film, which ends at an edge `distance` voxels from the middle along its normal, and film (bool)."""
    normal = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    y = np.arange(SHAPE[1])[:, None] - (SHAPE[1] - 1) / 2
    x = np.arange(SHAPE[2])[None] - (SHAPE[2] - 1) / 2
    if np.isinf(radius):
        beyond = normal[0] * y + normal[1] * x - distance
    else:  # the hole is a disc
        out = distance + radius
        beyond = radius - np.hypot(y - out * normal[0], x - out * normal[1])
    film = np.zeros(SHAPE, bool)
    film[slices[0] : slices[1]] = beyond < 0
    # a few dark blobs, which tell that dense matter is dark; a film of another sign is of a tomogram of bright ones
    blobs = gaussian_filter((np.random.default_rng(seed + 2).random(SHAPE) < 1e-4).astype(np.float32), 2) * 100
    return noise(seed) + np.sign(density) * blobs + film * (density + grain * noise(seed + 1)), film


@pytest.mark.parametrize(
    ("degrees", "distance", "radius", "density"),
    [(90, -30, np.inf, -0.6), (200, -10, np.inf, 0.6), (15, -25, 300, -0.6), (290, -25, np.inf, -0.6)],
)
def test_a_carbon_film_and_the_band_at_its_edge_are_found_dark_or_bright(degrees, distance, radius, density):
    volume, film = with_film(degrees, distance, radius, density=density)
    found = find_carbon(Coarse.of(volume, TEN))
    outside = np.stack([found.outside(z) for z in range(SHAPE[0])])
    assert (outside & film).sum() > 0.9 * film.sum()
    plane = film.any(axis=0)
    near = distance_transform_edt(~plane) <= 10 + 6  # voxels: the margin, and by how much an edge may be missed
    assert not outside[:, ~near].any()
    edge = plane & (distance_transform_edt(plane) <= 4)
    assert outside[20:36, edge].all()
    assert not outside[:16].any()
    assert not outside[40:].any()
    assert found.share == pytest.approx(outside.mean())
    assert found.facts()["left_out"]
    assert "a carbon film in slices" in Regions(SHAPE, {"carbon": found}).words()


def test_beyond_a_film_only_the_band_at_its_edge_is_left_out():
    film = Film(np.pi / 2, -100.0, 0.0, (4, 6), (3, 9), TEN, (12, 40, 56))  # x = 17.5
    expected = np.zeros((12, 40, 56), bool)
    expected[3:9, :, 8:28] = True
    expected[4:6, :, :28] = True
    np.testing.assert_array_equal(np.stack([film.outside(z) for z in range(12)]), expected)
    assert film.share == pytest.approx(expected.mean())


def test_membranes_walls_and_films_without_grain_are_no_carbon():
    volume, _ = with_film(90, -30, density=0, grain=0)
    assert find_carbon(Coarse.of(volume, TEN)) is None
    membrane = volume.copy()
    membrane[15:45, :, 60:64] -= 3
    wall, _ = with_film(90, -30, slices=(0, SHAPE[0]))
    smooth, _ = with_film(90, -30, grain=0)
    for no_film in (membrane, wall, smooth, noise(shape=(9, 30, 41)), np.zeros(SHAPE, np.float32)):
        assert find_carbon(Coarse.of(no_film, TEN)) is None
    assert "no carbon" in Regions(SHAPE, {"carbon": None}).words()


def test_padding_is_no_carbon():
    padded = noise()
    padded[10:40, :, :60] = -2
    assert find_carbon(Coarse.of(padded, TEN)) is None


def test_a_film_that_would_cover_most_of_the_tomogram_is_not_believed():
    volume, _ = with_film(90, 40, slices=(8, 60))
    found = find_carbon(Coarse.of(volume, TEN))
    assert found.share > 0.5
    assert not any(found.outside(z).any() for z in range(SHAPE[0]))
    assert not found.facts()["left_out"]
    assert "too much" in Regions(SHAPE, {"carbon": found}).words()


def test_a_rim_of_less_scatter_or_another_mean_is_found_to_the_block():
    volume = noise()
    volume[:, :8] *= 0.5
    volume[:, :, -12:] += 2
    assert find_border(Coarse.of(volume, TEN)).facts() == {"z_voxels": [0, 0], "y_voxels": [8, 0], "x_voxels": [0, 12]}


def test_a_coarse_copy_is_of_block_means_and_bounded(monkeypatch):
    volume = noise(shape=(7, 10, 13))
    volume[0, 0, 0] = np.nan
    coarse = Coarse.of(volume, (10.0, 20.0, 5.0))
    assert coarse.steps == (2, 1, 4)
    volume[0, 0, 0] = np.nanmean(volume[0])
    expected = volume[:6, :, :12].reshape(3, 2, 10, 3, 4).mean(axis=(1, 4))
    np.testing.assert_allclose(coarse.values, expected, atol=1e-6)
    monkeypatch.setattr("etsam.postprocess.coarse._MOST_BLOCKS", 100)
    assert Coarse((70, 100, 130), TEN).values.size <= 100


def test_parts_are_joined_and_logits_get_the_value_there():
    slab = Slab((2.0, 0.0, 0.0), (9.0, 0.0, 0.0), TEN, (12, 14, 20))
    border = Border((0, 3, 0), (12, 14, 18), (12, 14, 20))
    regions = Regions((12, 14, 20), {"slab": slab, "gold": Beads((), (12, 14, 20)), "border": border})
    filled = regions.fill(np.ones((12, 14, 20), np.float32), -32)
    expected = np.full((12, 14, 20), -32)
    expected[2:10, 3:, :18] = 1
    np.testing.assert_array_equal(np.stack([filled[z] for z in range(12)]), expected)
    mask = LeaveOut(regions)(np.ones((12, 14, 20), np.uint8))
    np.testing.assert_array_equal(np.stack([mask[z] for z in range(12)]), expected > 0)
    with pytest.raises(InputError, match="13"):
        LeaveOut(regions)(np.ones((13, 14, 20), np.uint8))


@pytest.mark.parametrize("given", [{"sample": "lamella"}, {"exclude": ["ice"]}, {"exclude": "gold"}])
def test_words_that_are_unknown_are_refused(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        RegionSettings(**given)


@pytest.fixture
def rimmed(work):
    """A tomogram with a rim that has no scatter to speak of."""
    volume = noise(seed=5, shape=(10, 96, 130))
    volume[:, :, :10] = 3 + 0.1 * volume[:, :, :10]
    write_mrc(work / "tomo.mrc", volume)
    return volume.shape


def test_all_outputs_are_without_the_rim_and_the_record_says_where_it_is(rimmed, predict, etsam, work, caplog):
    caplog.set_level("INFO")
    flags = ("--exclude", "border", "--voxel-size", "10")
    outcome = predict("tomo.mrc", *flags, "--store-logits", "--threshold", "-31", "write_preview=false")
    assert outcome.status == 0, outcome.stderr
    logits = mrcfile.read(work / "out/tomo_etsam_predicted_logits.mrc")
    rim = np.zeros(rimmed, bool)
    rim[:, :, :10] = True
    np.testing.assert_array_equal(logits == NO_MEMBRANE, rim)
    assert '"x_voxels": [' in (work / "out/tomo_etsam_predicted_record.json").read_text()
    assert "(x) voxels left out" in caplog.text


def test_the_picture_is_darker_where_nothing_is_marked():
    volume, border = noise(shape=(12, 40, 56)), Border((0, 10, 0), (12, 40, 50), (12, 40, 56))
    grey = Sections(volume.shape, TEN)
    for z, plane in enumerate(volume):
        grey.add(z, plane)
    mask = MaskSections(grey)
    place = int(grey.places["y"][1])
    plain = grey.image("y", place)
    np.testing.assert_array_equal(mask.dimmed(plain, "y", place), plain)
    mask.outside = border.outside
    expected = np.where(np.arange(56) >= 50, plain // 2, plain) if place >= 10 else plain // 2
    np.testing.assert_array_equal(mask.dimmed(plain, "y", place), expected)
    place = int(grey.places["x"][0])
    plain = grey.image("x", place)
    np.testing.assert_array_equal(mask.dimmed(plain, "x", place), np.where(np.arange(40) < 10, plain // 2, plain))


def test_logits_and_masks_of_before_can_have_it_left_out_afterwards(rimmed, predict, etsam, work):
    assert predict("tomo.mrc", "--store-logits", "--voxel-size", "10", "write_preview=false").status == 0
    at = ("threshold", "out/tomo_etsam_predicted_logits.mrc", "--at", "-31", "--no-preview", "--exclude", "border")
    outcome = etsam(*at)
    assert outcome.status == 0, outcome.stderr
    mask = mrcfile.read(work / "out/tomo_etsam_predicted_at_-31_mask.mrc")
    write_mrc(work / "ones.mrc", np.ones(rimmed, np.int8))
    outcome = etsam("postprocess", "ones.mrc", "new.mrc", "--exclude", "border", "--tomogram", "tomo.mrc")
    assert outcome.status == 0, outcome.stderr
    cleaned = mrcfile.read(work / "new.mrc")
    for found in (mask, cleaned):
        assert (found[:, :, 10:] == 1).all()
        assert (found[:, :, :10] == 0).all()


def test_leaving_out_needs_the_tomogram(rimmed, etsam, work):
    write_mrc(work / "ones.mrc", np.ones(rimmed, np.int8))
    outcome = etsam("postprocess", "ones.mrc", "new.mrc", "--lamella")
    assert outcome.status == 1
    assert "--tomogram" in outcome.message
    write_mrc(work / "other.mrc", noise(shape=(6, 40, 56)))
    outcome = etsam("threshold", "other.mrc", "--at", "0", "--exclude", "gold")
    assert outcome.status == 1
    assert "tomogram" in outcome.message
