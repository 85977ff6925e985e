"""The settings of PolNet's samples and microscope, and the acquisition that follows them without IMOD."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from etsam.errors import InputError
from etsam.sources.polnet.acquisition import acquire, draw_shifts
from etsam.sources.polnet.config import Acquisition, find_config, read_acquisition, read_config

TILTS = tuple(range(-60, 61, 3))
TEM = """
TILT_ANGS_RG = (-60, 60)
TILT_ANGS_STEP = 20  # few
DETECTOR_SNR = [1.0, 2.0]
MALIGN_MIN = 0.5
MALIGN_MAX = 1
MALIGN_SG = 6.4
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TILT_ANGS_STEP = 20", "", "TILT_ANGS_STEP is missing"),
        ("(-60, 60)", "(-90, 90)", "tilts from -90 to 90 by 20; a range between -90 and 90"),
        ("[1.0, 2.0]", "[2.0, 1.0]", "DETECTOR_SNR = [2.0, 1.0]"),
        ("[1.0, 2.0]", "loud", "DETECTOR_SNR = loud is no number, range or None"),
        ("MALIGN_SG = 6.4", "MALIGN_SG = 0", "SG divides MAX"),
    ],
)
def test_a_tem_file_that_does_not_fit_is_refused(tmp_path, old, new, message):
    (tmp_path / "a.tem").write_text(TEM.replace(old, new))
    with pytest.raises(InputError) as error:
        read_acquisition(tmp_path / "a.tem")
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["polnet_data_1", "polnet_data_2"])
def test_the_shipped_settings_are_the_published_ones(name):
    config = read_config(find_config(name))
    published = {
        "polnet_data_1": (10, [1000, 1000, 250], 20, 9, "in_10A/4v4r_10A.pns"),
        "polnet_data_2": (18, [500, 500, 250], 12, 6, "in_10A/3j9i_10A.pns"),
    }[name]
    sample = config.sample
    assert (config.count, sample["shape"], len(sample["pns"]), len(sample["pms"]), sample["pns"][0]) == published
    assert sample["membranes"] == ["in_mbs/sphere.mbs", "in_mbs/ellipsoid.mbs", "in_mbs/toroid.mbs"]
    assert sample["filaments"] == []
    assert sample["v_size"] == 10.0
    found = read_acquisition(config.path.parent / config.tem_file)
    assert found == Acquisition(TILTS, (1.0, 2.0), (1.0, 1.5), 7.5)


def test_settings_of_an_older_polnet_are_recognised(tmp_path):
    (tmp_path / "old.yaml").write_text("membranes_list: [in_mbs/ellipse.mbs]\nvoi_vsize: 10\n")
    with pytest.raises(InputError, match=r"before 1.1 .membranes_list, voi_vsize.; the published ones are shipped"):
        read_config(tmp_path / "old.yaml")
    with pytest.raises(InputError, match="no such file of PolNet settings; shipped with etsam are polnet_data_1, pol"):
        find_config("polnet_data_3")


def density(shape=(36, 30, 64)):
    """A ball off the centre, denser than its surroundings, (Z, Y, X)."""
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"))
    ball = ((grid - np.array([21, 11, 40])[:, None, None, None]) ** 2).sum(axis=0) < 36
    return torch.from_numpy(ball.astype(np.float32))


def centroid(volume):
    weight = volume.clamp(min=0.5 * float(volume.max()))
    weight = weight - weight.min()
    return [float((weight.sum(dim=[k for k in range(3) if k != axis]) * torch.arange(side)).sum() / weight.sum())
            for axis, side in enumerate(volume.shape)]  # fmt: skip


def test_misalignment_blurs_but_leaves_the_volume_on_its_mask():
    settings = Acquisition(TILTS, None, (1.0, 1.5), 7.5)
    for seed in range(3):
        found = acquire(density(), settings, seed)
        assert found.snr is None
        assert centroid(-found.reconstruction) == pytest.approx([21, 11, 40], abs=0.15)
        sharp = acquire(density(), Acquisition(TILTS, None, (0.0, 0.0), 1.0), seed)
        assert found.reconstruction.min() > 1.05 * sharp.reconstruction.min()


def test_shifts_grow_with_the_tilt_in_all_directions():
    settings = Acquisition(tuple(range(-89, 90)), None, (1.0, 3.0), 30.0)
    shifts = draw_shifts(settings, torch.Generator().manual_seed(0))
    size = shifts.norm(dim=1)
    assert float(size[80:99].mean()) == pytest.approx(1.15, abs=0.15)  # tilts of less than 10 degrees
    assert float(torch.cat([size[:20], size[-20:]]).mean()) == pytest.approx(3.0, abs=0.15)
    assert float(shifts.mean(dim=0).norm()) < 0.3


def test_noise_follows_the_brightness_of_each_picture_as_in_polnet():
    flat = torch.ones(20, 64, 80)  # every picture is its ray's length, without any structure
    found = acquire(flat, Acquisition((-60, 0, 60), (2.0, 2.0), (0.0, 0.0), 1.0), seed=1)
    assert found.snr == 2.0
    brightness = torch.tensor([40.0, 20.0, 40.0])  # 20 / cos 60 = 40
    torch.testing.assert_close(found.micrographs.std(dim=(1, 2)), brightness / 2, rtol=0.05, atol=0)
    torch.testing.assert_close(-found.micrographs.mean(dim=(1, 2)), 2 * brightness, rtol=0.05, atol=0)


def test_an_acquisition_is_the_same_again_and_another_with_another_seed():
    settings = Acquisition(TILTS, (1.0, 2.0), (1.0, 1.5), 7.5)
    one, same, other = (acquire(density(), settings, seed) for seed in (1, 1, 2))
    assert (one.snr, one.snr == other.snr) == (same.snr, False)
    assert torch.equal(one.reconstruction, same.reconstruction)
    still = replace(settings, snr=None)  # nothing but the shifts is drawn
    assert not torch.allclose(acquire(density(), still, 1).micrographs, acquire(density(), still, 2).micrographs)
