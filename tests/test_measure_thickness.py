"""Thickness comes from the tomogram's density and says how sure it is; the simulator's truth says what is right."""

import numpy as np
import pytest
from membrane_shapes import shell, sphere

from etsam.measure.measure import measure
from etsam.measure.thickness import COLUMNS, FULL_WIDTH, LEAFLETS, NONE, _local
from etsam.sources.simulation.phantom import Bilayer, Membranes
from etsam.sources.simulation.truth import measured_truth

pytestmark = pytest.mark.workshop
SHAPE = (52, 60, 66)
CENTRE = (26.2, 30.1, 32.7)


def tomogram(thickness_nm: float, voxel_nm: float, blur_voxels: float, noise: float, bright: bool) -> np.ndarray:
    """Bilayer of a sphere of 20 voxels."""
    distance = sphere(SHAPE, CENTRE, 20) * voxel_nm
    sigma = np.hypot(0.5, blur_voxels * voxel_nm)
    density = sum(np.exp(-0.5 * ((distance - side * thickness_nm / 2) / sigma) ** 2) for side in (-1, 1))
    density = density + noise * np.random.default_rng(0).normal(size=SHAPE)
    return (density if bright else -density).astype(np.float32)


@pytest.mark.parametrize(
    ("thickness", "voxel", "bright", "half"),
    [(3.4, 0.5, False, 1.5), (4.0, 0.8, False, 3.0), (4.0, 0.8, True, 1.5)],
)
def test_two_leaflets_are_measured_from_peak_to_peak_whatever_the_width_of_the_mask(
    thickness: float, voxel: float, bright: bool, half: float
) -> None:
    density = tomogram(thickness, voxel, 0.4, 0.3, bright)
    row = measure(shell(sphere(SHAPE, CENTRE, 20), half), voxel, density).table.iloc[0]
    assert (row["thickness_method"], row["thickness_reliable"], row["thickness_why"]) == (LEAFLETS, "yes", "")
    assert row["thickness_nm"] == pytest.approx(thickness, rel=0.06)
    assert row["thickness_low_nm"] <= row["thickness_nm"] <= row["thickness_high_nm"]
    assert row["mask_width_nm"] == pytest.approx(2 * half * voxel, rel=0.2)


def test_where_one_peak_is_left_the_width_is_no_thickness_to_rely_on() -> None:
    mask = shell(sphere(SHAPE, CENTRE, 20), 2)
    row = measure(mask, 1.4, tomogram(3.0, 1.4, 1.0, 0.2, False)).table.iloc[0]
    assert (row["thickness_method"], row["thickness_reliable"]) == (FULL_WIDTH, "no")
    assert row["thickness_nm"] > 3.0
    assert row["thickness_why"]
    noise = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    assert measure(mask, 0.8, noise).table.iloc[0]["thickness_reliable"] == "no"


def test_proteins_between_the_leaflets_make_the_thickness_nothing_to_rely_on() -> None:
    distance = sphere(SHAPE, CENTRE, 20) * 0.5
    proteins = 1.2 * np.exp(-0.5 * (distance / 1.9) ** 2)  # as crowded as in a membrane full of them
    density = tomogram(3.8, 0.5, 0.4, 0.2, True) + proteins.astype(np.float32)
    row = measure(shell(sphere(SHAPE, CENTRE, 20)), 0.5, density).table.iloc[0]
    assert abs(row["thickness_nm"] / 3.8 - 1) > 0.05
    assert (row["thickness_method"], row["thickness_reliable"]) == (LEAFLETS, "no")
    assert row["thickness_why"]


def test_fringes_of_a_strong_defocus_make_the_thickness_nothing_to_rely_on() -> None:
    density = tomogram(3.2, 0.5, 0.4, 0.1, True)
    mask = shell(sphere(SHAPE, CENTRE, 20))
    assert measure(mask, 0.5, density).table.iloc[0]["thickness_reliable"] == "yes"
    frequency = np.sqrt(sum(part**2 for part in np.meshgrid(*map(np.fft.fftfreq, SHAPE), indexing="ij"))) / 0.5
    transfer = np.abs(np.sin(np.pi * 1.97e-3 * 3000 * frequency**2 + 0.07))  # 300 kV, 3 µm, flipped phases
    density = np.fft.ifftn(np.fft.fftn(density) * transfer).real.astype(np.float32)
    row = measure(mask, 0.5, density).table.iloc[0]
    assert (row["thickness_method"], row["thickness_reliable"]) == (LEAFLETS, "no")
    assert "defocus" in row["thickness_why"]


def test_a_membrane_at_the_end_of_the_tomogram_has_no_thickness() -> None:
    flat = np.zeros((30, 40, 50), np.uint8)
    flat[2:5] = 1
    row = measure(flat, 0.8, np.zeros(flat.shape, np.float32)).table.iloc[0]
    assert (row["thickness_method"], row["thickness_reliable"]) == (NONE, "no")
    assert np.isnan(row["thickness_nm"])


@pytest.mark.parametrize("voxel", [2.0, 2.7, 4.3, 5.0])
def test_leaflets_seen_by_voxels_larger_than_they_are_apart_are_nothing_to_rely_on(voxel: float) -> None:
    positions = np.arange(-10, 10 + voxel / 4, voxel / 2)
    profiles = np.random.default_rng(0).normal(size=(5, len(positions)))
    local = _local(profiles, np.ones(5), positions, 0.1)
    assert local.shape == (5,)
    assert np.isnan(local).all() or (local[~np.isnan(local)] > 0).all()


def test_without_a_tomogram_there_is_no_column_of_thickness() -> None:
    table = measure(shell(sphere(SHAPE, CENTRE, 20)), 0.8).table
    assert not set(COLUMNS) & set(table)


def test_the_simulator_records_the_measures_of_its_membranes() -> None:
    box = (slice(0, SHAPE[0]), slice(0, SHAPE[1]), slice(0, SHAPE[2]))
    membranes = Membranes(SHAPE, 8.0)
    for radius in (20.0, 10.0):
        assert membranes.add(box, sphere(SHAPE, CENTRE, radius), Bilayer(thickness_angstrom=36.0), closed=True)
    outer, inner = membranes.truths
    assert (outer.number, inner.number, outer.nearest_earlier_mean_nm) == (1, 2, None)
    for truth, radius in ((outer, 16.0), (inner, 8.0)):
        assert truth.thickness_nm == pytest.approx(3.6)
        assert truth.area_nm2 == pytest.approx(4 * np.pi * radius**2, rel=0.01)
        assert truth.enclosed_nm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)
        assert truth.mean_curvature_per_nm == pytest.approx(1 / radius, rel=0.01)
    assert inner.nearest_earlier_mean_nm == pytest.approx(8.0, rel=0.01)
    half = np.full(SHAPE, True)
    half[:, :, 33:] = False
    size = 8.0
    points = np.zeros((0, 3))
    cut, middle = measured_truth(1, sphere(SHAPE, CENTRE, 20), half, False, True, points, np.zeros(3), 36.0, size)
    assert np.linalg.norm(middle - np.array(CENTRE), axis=1) == pytest.approx(20, abs=0.1)
    assert cut.enclosed_nm3 is None
    assert cut.area_nm2 == pytest.approx(2 * np.pi * 16.0**2, rel=0.03)
