"""Projection and reconstruction against theory, on volumes with three different side lengths."""

import math

import numpy as np
import pytest
import torch

from etsam.sources.simulation.tilt_series import (
    add_noise,
    apply_transfer,
    backproject,
    contrast_transfer,
    misalignment,
    project,
    shift,
)

SHAPE = (40, 48, 64)
WHOLE_CIRCLE = torch.arange(-88.0, 90.0, 2.0)
SERIES = torch.arange(-60.0, 61.0, 3.0)


def _blob(centre: tuple[float, float, float], sigma: float = 2.5, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    axes = [torch.arange(float(side)) - at for side, at in zip(shape, centre, strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.exp(-(z**2 + y**2 + x**2) / (2 * sigma**2))


def _centre(volume: torch.Tensor) -> list[float]:
    weight = (volume - 0.4 * volume.max()).clamp(min=0)
    axes = torch.meshgrid(*[torch.arange(float(side)) for side in volume.shape], indexing="ij")
    return [float((weight * axis).sum() / weight.sum()) for axis in axes]


@pytest.mark.parametrize("degrees", [-60.0, -20.0, 0.0, 35.0])
def test_a_point_falls_on_the_detector_where_the_geometry_says(degrees):
    centre = (26.0, 17.0, 40.0)
    image = project(_blob(centre), [degrees], fill=0.0)[0]
    z, x = centre[0] - (SHAPE[0] - 1) / 2, centre[2] - (SHAPE[2] - 1) / 2
    angle = math.radians(degrees)
    expected = x * math.cos(angle) + z * math.sin(angle) + (SHAPE[2] - 1) / 2
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    assert float((image * columns).sum() / image.sum()) == pytest.approx(expected, abs=0.01)
    assert float((image * rows).sum() / image.sum()) == pytest.approx(17.0, abs=0.01)


def test_the_projection_at_zero_degrees_is_the_sum_along_z():
    volume = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 9, 12))).float()
    image = project(volume, [0.0], fill=0.0)[0]
    torch.testing.assert_close(image, volume.sum(dim=0))


def test_the_projection_at_ninety_degrees_is_the_sum_along_x():
    volume = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 9, 12))).float()
    image = project(volume, [90.0], fill=0.0)[0]
    torch.testing.assert_close(image[:, 2:10], volume.sum(dim=2).T, rtol=1e-4, atol=1e-4)


def test_every_projection_of_an_object_inside_has_the_same_mass():
    masses = project(_blob((20.0, 20.0, 30.0)), SERIES, fill=0.0).sum(dim=(1, 2))
    torch.testing.assert_close(masses, masses[:1].expand_as(masses), rtol=1e-3, atol=0)


def test_all_angles_give_the_density_back():
    volume = _blob((18.0, 22.0, 36.0)) + 0.6 * _blob((25.0, 30.0, 24.0))
    found = backproject(project(volume, WHOLE_CIRCLE, fill=0.0), WHOLE_CIRCLE, SHAPE[0])
    assert float((found - volume).square().mean().sqrt()) < 0.01
    assert float(found.max()) == pytest.approx(float(volume.max()), rel=0.1)


@pytest.mark.parametrize("sirt_iterations", [None, 10])
def test_a_limited_series_moves_nothing(sirt_iterations):
    centre = (23.0, 30.0, 28.0)
    found = backproject(project(_blob(centre), SERIES), SERIES, SHAPE[0], sirt_iterations=sirt_iterations)
    assert _centre(found) == pytest.approx(list(centre), abs=0.05)


def test_a_point_is_missing_its_wedge():
    # a point has equal power at all frequencies; what no tilt measured must be gone
    shape = (48, 40, 64)
    centre = tuple((side - 1) / 2 for side in shape)
    point = _blob(centre, sigma=1.0, shape=shape)
    found = backproject(project(point, SERIES, fill=0.0), SERIES, shape[0])
    power = torch.fft.rfftn(found).abs().square()
    z = torch.fft.fftfreq(shape[0]).abs()[:, None, None]
    x = torch.fft.rfftfreq(shape[2])[None, None]
    radius = torch.sqrt(z**2 + x**2)
    ring = ((radius > 0.1) & (radius < 0.25)).expand(power.shape)
    tilt = torch.atan2(z, x).expand(power.shape).rad2deg()
    measured, missing = power[ring & (tilt < 55)].mean(), power[ring & (tilt > 66)].mean()
    assert float(missing / measured) < 0.02


def test_projecting_and_back_projecting_are_transposes():
    # <project(a), b> = <a, sum over tilts of back-projected b>, checked on a single voxel and a single pixel
    volume = torch.zeros(12, 5, 16)
    volume[4, 2, 9] = 1.0
    angle = math.radians(20.0)
    image = project(volume, [20.0], fill=0.0)[0, 2]
    at = (9 - 7.5) * math.cos(angle) + (4 - 5.5) * math.sin(angle) + 7.5
    assert float((image * torch.arange(16.0)).sum() / image.sum()) == pytest.approx(at, abs=0.05)
    assert float(image.sum()) == pytest.approx(1.0, abs=0.15)  # rays of one voxel distance


def test_the_noise_has_the_asked_strength_white_or_not():
    signal = project(_blob((20.0, 24.0, 32.0)), SERIES)
    for snr in (0.05, 0.5, 2.0):
        for envelope in (None, 0.2):
            noisy = add_noise(signal, snr, torch.Generator().manual_seed(1), envelope_sigma=envelope)
            found = float(signal.var() / (noisy - signal).var())
            assert found == pytest.approx(snr, rel=0.1)


def test_noise_is_the_same_for_the_same_seed_only():
    signal = project(_blob((20.0, 24.0, 32.0)), [0.0, 3.0])
    first, same, other = (add_noise(signal, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_misaligned_tilts_blur_but_do_not_move():
    shifts = misalignment(SERIES, 1.5, torch.Generator().manual_seed(3))
    assert float(shifts.std()) == pytest.approx(1.5, rel=0.3)
    centre = (23.0, 30.0, 28.0)
    tilts = shift(project(_blob(centre), SERIES), shifts)
    assert _centre(backproject(tilts, SERIES, SHAPE[0])) == pytest.approx(list(centre), abs=0.3)


def test_shifting_by_whole_voxels_rolls():
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 9, 15))).float()
    moved = shift(images, torch.tensor([[2.0, -3.0], [0.0, 0.0]]))
    torch.testing.assert_close(moved[0], images[0].roll((2, -3), (0, 1)), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[1], images[1], atol=1e-5, rtol=0)


def test_the_contrast_transfer_crosses_zero_where_theory_says():
    # sin(chi) with chi = pi lambda dz k^2 (Cs and amplitude contrast off): zeros at k^2 = n / (lambda dz)
    transfer = contrast_transfer((64, 512), 5.0, 2.0, spherical_aberration_mm=0.0, amplitude_contrast=0.0)
    frequency = torch.fft.rfftfreq(512) / 5.0  # 1/A
    wavelength_angstrom = 0.0196875  # electrons of 300 kV, relativistic
    expected = torch.sin(torch.pi * wavelength_angstrom * 2.0e4 * frequency**2)
    torch.testing.assert_close(transfer[0], expected, atol=2e-3, rtol=0)


def test_a_transfer_of_one_changes_nothing():
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 9, 15))).float()
    torch.testing.assert_close(apply_transfer(images, torch.ones(9, 8)), images, atol=1e-5, rtol=0)


def test_the_number_of_angles_has_to_fit():
    with pytest.raises(ValueError, match="3 projections and 2 tilt angles"):
        backproject(torch.zeros(3, 4, 6), [0.0, 3.0], 5)
    with pytest.raises(ValueError, match="between -90 and 90"):
        project(torch.zeros(4, 5, 6), [100.0])
