"""Simulated tomograms: exact masks, the asked noise, the same again from the same seed, and the command."""

import math

import numpy as np
import pytest
import torch

from etsam.cli.main import main
from etsam.data.checks import check_samples
from etsam.data.manifest import read_manifest
from etsam.errors import ConfigError
from etsam.sources.simulation import molecules, phantom
from etsam.sources.simulation.phantom import Bilayer, Membranes
from etsam.sources.simulation.settings import KINDS, SpecimenSettings
from etsam.sources.simulation.simulator import AcquisitionSettings, Simulator, _reconstruct, contrast, take_tilt_images
from etsam.sources.simulation.specimen import Specimen, draw_specimen
from etsam.volume import read_volume

SHAPE = (40, 56, 72)
QUIET = AcquisitionSettings(
    snr=(1e6, 1e6),
    defocus_um=(-1, -1),
    misalignment_voxels=(0, 0),
    background=(0, 0),
    filters={"none": 1},
    reconstructions={"wbp": 1},
)


def _sphere(radius=12.0, voxel_size=10.0, shape=SHAPE, **profile):
    membranes = Membranes(shape, voxel_size)
    centre = np.array([(side - 1) / 2 for side in shape])
    box = phantom.box_around(centre, radius + 8, shape)
    distance = phantom.ellipsoid(box, centre, np.full(3, radius), np.eye(3))
    assert membranes.add(box, distance, Bilayer(**profile), closed=True)
    axes = np.meshgrid(*[np.arange(side) - c for side, c in zip(shape, centre, strict=True)], indexing="ij")
    return membranes, np.sqrt(sum(axis**2 for axis in axes))


def test_the_mask_of_a_sphere_is_the_shell_between_its_leaflets():
    membranes, radius = _sphere(12.0, thickness_angstrom=30.0)
    np.testing.assert_array_equal(membranes.instances > 0, np.abs(radius - 12.0) <= 1.5)


def test_a_membrane_thinner_than_the_grid_has_a_mask_of_two_and_a_half_voxels():
    membranes, radius = _sphere(12.0, voxel_size=40.0, thickness_angstrom=30.0)
    np.testing.assert_array_equal(membranes.instances > 0, np.abs(radius - 12.0) <= 1.25)


def test_the_density_is_highest_at_the_leaflets_and_low_between_them():
    membranes, radius = _sphere(14.0, voxel_size=7.0, thickness_angstrom=42.0, leaflet_sigma_angstrom=4.0, core=0.3)
    inner, middle, outer = (membranes.density[np.abs(radius - r) < 0.3].mean() for r in (11, 14, 17))
    assert inner > 0.7
    assert outer == pytest.approx(inner, rel=0.1)
    assert -0.3 < middle < 0
    assert np.abs(membranes.density[radius > 22]).max() < 0.01


def test_an_ellipsoid_lies_where_its_axes_say():
    box = (slice(0, 41), slice(0, 61), slice(0, 81))
    turned = phantom.ellipsoid(box, np.array([20.0, 30.0, 40.0]), np.array([8.0, 16.0, 24.0]), np.eye(3))
    for point in ((28, 30, 40), (20, 46, 40), (20, 30, 64)):
        assert turned[point] == pytest.approx(0, abs=1e-4)
    assert turned[20, 30, 40] < 0 < turned[0, 0, 0]


def test_rotations_are_proper_and_differ():
    found = phantom.random_rotation(np.random.default_rng(0), 20)
    np.testing.assert_allclose(found @ found.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (20, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(found), 1)
    assert np.abs(found.mean(axis=0)).max() < 0.5


def test_smooth_noise_varies_over_its_wavelength():
    field = phantom.smooth_noise((40, 50, 60), 20, np.random.default_rng(0))
    assert field.shape == (40, 50, 60)
    assert field.std() == pytest.approx(1, abs=1e-3)
    assert np.abs(np.diff(field, axis=2)).max() < 0.8  # white noise: above 5


def test_a_tube_lies_at_its_radius_around_its_path():
    path = np.stack([np.full(60, 20.0), np.arange(60.0), np.full(60, 30.0)], axis=1)
    distance = phantom.tube((slice(0, 40), slice(0, 60), slice(0, 64)), path, 8.0)
    for offset in range(2, 16):
        assert distance[20, 30, 30 + offset] == pytest.approx(offset - 8, abs=0.6)


def test_membranes_keep_clear_of_each_other():
    membranes, _ = _sphere(12.0)
    centre = np.add([(side - 1) / 2 for side in SHAPE], (0, 0, 6))
    box = phantom.box_around(centre, 20, SHAPE)
    crossing = phantom.ellipsoid(box, centre, np.full(3, 12.0), np.eye(3))
    inside = phantom.ellipsoid(box, np.subtract(centre, (0, 0, 6)), np.full(3, 6.0), np.eye(3))
    assert not membranes.add(box, crossing, Bilayer())
    assert membranes.add(box, inside, Bilayer())
    assert membranes.count == 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_membrane_can_be_drawn(kind):
    settings = SpecimenSettings(kinds={kind: 1}, membranes=(4, 4), empty_probability=0, crowding=(0, 0))
    found = [draw_specimen(settings, SHAPE, 12.0, np.random.default_rng(seed)) for seed in range(4)]
    assert sum(int(specimen.instances.max()) for specimen in found) >= 4
    for specimen in found:
        numbers = np.unique(specimen.instances)
        np.testing.assert_array_equal(numbers, np.arange(len(numbers)))


def test_no_tube_is_as_narrow_as_a_microtubule(monkeypatch):
    radii_voxels, tube = [], phantom.tube
    monkeypatch.setattr(
        phantom, "tube", lambda box, path, radius: radii_voxels.append(radius) or tube(box, path, radius)
    )
    settings = SpecimenSettings(kinds={"tube": 1}, membranes=(4, 4), empty_probability=0, crowding=(0, 0))
    for seed in range(4):
        draw_specimen(settings, SHAPE, 10.0, np.random.default_rng(seed))
    assert len(radii_voxels) >= 16
    assert min(radii_voxels) >= 16, "a microtubule has 112 Å"
    assert max(radii_voxels) <= 45


def test_particles_keep_clear_of_membranes():
    membranes, _ = _sphere(12.0)
    rng = np.random.default_rng(0)
    centres = molecules.free_positions(membranes, 3.0, 200, rng)
    assert len(centres) > 20
    assert (membranes.nearest[tuple(centres.astype(int).T)] > 4).all()
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[np.triu_indices(len(centres), 1)]
    assert apart.min() > 1.7 * 3.0


def test_points_are_spread_without_loss():
    points = np.array([[3.25, 4.5, 6.0], [1.0, 2.0, 3.0]])
    grid = molecules.spread(points, (8, 9, 11), weight=2.0)
    assert grid.sum() == pytest.approx(4.0)
    assert grid[1, 2, 3] == 2.0
    assert grid[3, 4, 6] == pytest.approx(2 * 0.75 * 0.5)


def _shift_against(reference: np.ndarray, found: np.ndarray) -> list[float]:
    """Displacement of `found` by cross-correlation, with a parabola through its peak."""
    a, b = (np.fft.rfftn(part - part.mean()) for part in (reference, found))
    correlation = np.fft.irfftn(np.conj(a) * b, s=reference.shape, axes=(0, 1, 2))
    peak = np.unravel_index(int(correlation.argmax()), correlation.shape)
    shifts = []
    for axis, at in enumerate(peak):
        side = correlation.shape[axis]
        before, middle, after = (
            correlation[tuple((p + step) % side if i == axis else p for i, p in enumerate(peak))] for step in (-1, 0, 1)
        )
        offset = 0.5 * (before - after) / (before - 2 * middle + after)
        shifts.append((at + side // 2) % side - side // 2 + float(offset))
    return shifts


@pytest.mark.parametrize("misalignment", [0.0, 1.0])  # 1.0: the most that is drawn by default
@pytest.mark.parametrize("shape", [(40, 56, 72), (72, 40, 56)])
def test_the_mask_lies_on_the_density_within_half_a_voxel(shape, misalignment):
    settings = AcquisitionSettings(**{**vars(QUIET), "misalignment_voxels": (misalignment, misalignment)})
    # one peak across the membrane: with two leaflets the correlation would have more
    membranes, _ = _sphere(12.0, shape=shape, thickness_angstrom=10.0, core=0.0)
    specimen = Specimen(membranes.density, None, membranes.instances)
    for seed in range(3):
        series = take_tilt_images(specimen, settings, 10.0, np.random.default_rng(seed))
        found, _ = _reconstruct(series, shape[0], settings, np.random.default_rng(seed))
        assert np.abs(_shift_against(specimen.mask.astype(float), found)).max() < 0.5


@pytest.mark.parametrize("snr", [0.1, 1.0])
def test_the_tilt_images_have_the_signal_to_noise_ratio_asked_for(snr):
    settings = AcquisitionSettings(**{**vars(QUIET), "snr": (snr, snr), "defocus_um": (3, 3)})
    specimen = draw_specimen(SpecimenSettings(), SHAPE, 10.0, np.random.default_rng(1))
    without_gold = Specimen(specimen.density, None, specimen.instances)
    series = take_tilt_images(without_gold, settings, 10.0, np.random.default_rng(2))
    noise = series.images - series.signal
    assert float(series.signal.var() / noise.var()) == pytest.approx(snr, rel=0.1)


def test_membranes_come_out_dark_or_bright_as_asked():
    for bright in (0.0, 1.0):
        quiet = {"acquisition": QUIET, "min_contrast": 0.3}  # one whose membranes hardly show says nothing
        made = Simulator(SHAPE, (10, 10), **quiet, bright_probability=bright, seed=3).tomogram(1)
        inside, outside = made.tomogram[made.mask == 1].mean(), made.tomogram[made.mask == 0].mean()
        assert (inside > outside) == bool(bright)
        assert made.parameters["membranes"] == ("bright" if bright else "dark")


def test_the_same_seed_and_number_give_the_same_tomogram():
    first, again = Simulator(SHAPE, seed=5), Simulator(SHAPE, seed=5)
    for array in ("tomogram", "mask", "instances"):
        np.testing.assert_array_equal(getattr(first.tomogram(2), array), getattr(again.tomogram(2), array))
    assert not np.array_equal(first.tomogram(2).mask, first.tomogram(3).mask)
    assert not np.array_equal(first.tomogram(2).mask, Simulator(SHAPE, seed=6).tomogram(2).mask)


@pytest.mark.parametrize("storage", ["int8", "int16", "uint16", "float16", "float32"])
def test_tomograms_are_stored_in_every_mode_within_its_range(storage):
    made = Simulator(SHAPE, storages={storage: 1}).tomogram(0)
    assert made.tomogram.dtype == storage
    assert np.isfinite(made.tomogram.astype(float)).all()
    assert made.tomogram.astype(float).std() > 0


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="vesicle, tube"):
        SpecimenSettings(kinds={"blob": 1})
    with pytest.raises(ConfigError, match="none below"):
        SpecimenSettings(kinds={"vesicle": -1, "tube": 2})
    with pytest.raises(ConfigError, match="wbp, sirt"):
        AcquisitionSettings(reconstructions={"fbp": 1})
    with pytest.raises(ConfigError, match="three sides"):
        Simulator((4, 64, 64))
    with pytest.raises(ConfigError, match="margin_voxels=-1"):
        Simulator((16, 64, 64), margin_voxels=-1)
    with pytest.raises(ConfigError, match="mind the quotes"):
        AcquisitionSettings(filters="wbp:1")


def test_a_margin_is_seen_in_the_images_and_not_in_the_tomogram():
    settings = SpecimenSettings(
        empty_probability=1, gold_probability=1, gold_beads=(6, 6), gold_radius_angstrom=(80, 80)
    )
    made = [
        Simulator((24, 40, 48), margin_voxels=margin, specimen=settings, acquisition=QUIET, seed=4).tomogram(0)
        for margin in (0, 30)
    ]
    for tomogram in made:
        assert tomogram.tomogram.shape == tomogram.mask.shape == tomogram.instances.shape == (24, 40, 48)
    wide = Simulator((24, 40, 108), specimen=settings, acquisition=QUIET, seed=4).tomogram(0)
    np.testing.assert_array_equal(made[1].mask, wide.mask[:, :, 30:78])
    a, b = made[1].tomogram.ravel(), wide.tomogram[:, :, 30:78].ravel()
    assert np.corrcoef(a, b)[0, 1] > 0.9999  # stored apart, so that only scale and offset differ


def test_tomograms_whose_membranes_hardly_show_are_drawn_again():
    noisy = AcquisitionSettings(snr=(0.002, 1.0))
    kept, all_of_them = (
        Simulator(
            (24, 40, 48), acquisition=noisy, min_contrast=limit, seed=2, specimen=SpecimenSettings(empty_probability=0)
        )
        for limit in (0.4, 0.0)
    )
    before = [contrast(all_of_them.tomogram(number)) for number in range(6)]
    after = [contrast(kept.tomogram(number)) for number in range(6)]
    assert min(before) < 0.4 <= min(after)
    assert [new for old, new in zip(before, after, strict=True) if old >= 0.4] == [old for old in before if old >= 0.4]
    with pytest.raises(ConfigError, match="min_contrast=50"):
        Simulator((24, 40, 48), min_contrast=50, specimen=SpecimenSettings(empty_probability=0)).tomogram(0)


# --- the command ------------------------------------------------------------------------------------------------------


def _simulate(folder, *more):
    main(["data", "simulate", "--n", "2", "--shape", "24,40,48", "--output-dir", str(folder), *more])


def test_the_command_writes_what_training_takes(tmp_path, capsys):
    _simulate(tmp_path, "--voxel-size", "12", "acquisition.snr=[0.5,0.5]", "specimen.empty_probability=0")
    samples = read_manifest(tmp_path / "manifest.csv")
    assert [sample.split for sample in samples] == ["train", "val"]
    check_samples(samples, clip_slices=4)
    for sample in samples:
        tomogram, mask = read_volume(sample.tomogram), read_volume(sample.target_mask)
        instances = read_volume(sample.tomogram.with_name(f"{sample.run_id}_instances.mrc")).read()
        assert tomogram.shape == mask.shape == (24, 40, 48)
        assert tomogram.voxel_size_angstrom == pytest.approx((12, 12, 12))
        np.testing.assert_array_equal(mask.read(), instances > 0)
        assert dict(sample.extra)["snr"] == "0.5"
    assert "2 tomograms" in capsys.readouterr().out


def test_the_command_does_not_overwrite_and_goes_on_where_it_stopped(tmp_path, capsys):
    _simulate(tmp_path)
    with pytest.raises(SystemExit) as stop:
        _simulate(tmp_path)
    assert stop.value.code == 1
    assert "exists already" in capsys.readouterr().err
    kept, lost = (tmp_path / f"simulated_0_000{number}.mrc" for number in (0, 1))
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()[1024:]
    rows = (tmp_path / "manifest.csv").read_text()
    lost.unlink()
    _simulate(tmp_path, "--resume")
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes()[1024:] == content
    assert (tmp_path / "manifest.csv").read_text() == rows


@pytest.mark.parametrize("fault", ["a file in the way", "no permission"])
def test_what_cannot_be_written_is_told_before_anything_is_simulated(tmp_path, capsys, monkeypatch, fault):
    monkeypatch.setattr(Simulator, "tomogram", lambda *_: pytest.fail("it was simulated"))
    if fault == "no permission":
        monkeypatch.setattr("os.access", lambda path, mode: False)
    else:
        (tmp_path / "simulated_0_0000_instances.mrc").touch()
    with pytest.raises(SystemExit) as stop:
        _simulate(tmp_path)
    assert stop.value.code == 1
    assert (str(tmp_path) if fault == "no permission" else "instances.mrc") in capsys.readouterr().err


def test_resuming_with_other_settings_is_refused(tmp_path, capsys):
    _simulate(tmp_path)
    with pytest.raises(SystemExit) as stop:
        _simulate(tmp_path, "--resume", "acquisition.snr=[3,3]")
    assert stop.value.code == 1
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shape", "10x20x30"], "three whole numbers"),
        (["--voxel-size", "ten"], "no number of Angstrom"),
        (["specimen.kinds={blob:1}"], "kinds"),
        (["specimen.unknown=1"], "unknown"),
        (["--n", "0"], "at least 1"),
    ],
)
def test_wrong_arguments_end_with_one_line(tmp_path, capsys, arguments, says):
    with pytest.raises(SystemExit) as stop:
        _simulate(tmp_path / "out", *arguments)
    assert stop.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert says in lines[0]


@pytest.mark.slow
def test_a_tomogram_of_usual_size_takes_less_than_a_minute():
    from time import process_time

    threads, begun = torch.get_num_threads(), process_time()
    Simulator((128, 256, 256)).tomogram(0)
    assert process_time() - begun < 60 * max(1, math.floor(threads))
