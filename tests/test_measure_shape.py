"""Meshes and tables of shapes whose measures are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import trimesh
from membrane_shapes import cylinder, field, shell, sphere, torus

from etsam.errors import ConfigError, InputError
from etsam.measure.columns import COLUMNS, CONTACT_COLUMNS
from etsam.measure.measure import Measurement, MeasureSettings, _label_surfaces, measure
from etsam.measure.page import sentence
from etsam.measure.shape import fitted_sphere

pytestmark = pytest.mark.workshop
SHAPE = (56, 60, 92)
VOXEL_NM = 0.8


def measured(mask: np.ndarray, **settings: object) -> Measurement:
    return measure(mask, VOXEL_NM, settings=MeasureSettings(min_area_nm2=50, **settings), workers=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("radius", "half"), [(5.0, 1.25), (9.0, 1.25), (21.0, 3.0)])
def test_a_sphere_is_closed_and_has_its_area_volume_diameter_and_curvature(radius: float, half: float) -> None:
    found = measured(shell(sphere(SHAPE, (27.3, 29.1, 44.7), radius), half))
    row, nm = found.table.iloc[0], radius * VOXEL_NM
    assert (len(found.table), row["closed"], row["diameter_from"]) == (1, "closed", "volume")
    assert row["area_nm2"] == pytest.approx(4 * np.pi * nm**2, rel=0.03)
    assert row["volume_nm3"] == pytest.approx(4 / 3 * np.pi * nm**3, rel=0.045)
    assert row["diameter_nm"] == pytest.approx(2 * nm, rel=0.02)
    assert row["sphere_radius_nm"] == pytest.approx(nm, rel=0.02)
    assert row["mean_curvature_per_nm"] == pytest.approx(1 / nm, rel=0.03)
    assert row["gaussian_curvature_per_nm2"] == pytest.approx(1 / nm**2, rel=0.06)
    assert [row[f"axis_{n}_nm"] for n in (1, 2, 3)] == pytest.approx([2 * nm] * 3, rel=0.03)
    assert [row[f"centre_{a}_voxel"] for a in "zyx"] == pytest.approx([27.3, 29.1, 44.7], abs=0.1)
    assert row["inclination_degrees"] == pytest.approx(57.3, abs=1.5)  # 1 radian, the mean over a sphere
    assert row["open_edge_nm"] == 0
    mesh = found.meshes[0]
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert body.is_watertight
    assert body.is_winding_consistent
    assert body.body_count == 1
    outward = np.einsum("ij,ij->i", mesh.vertices - np.array([27.3, 29.1, 44.7]), mesh.normals)
    assert (outward > 0).all()


def test_a_cylinder_through_the_tomogram_is_open_at_its_border_only() -> None:
    row = measured(shell(cylinder(SHAPE, (29.1, 44.7), 14))).table.iloc[0]
    nm = 14 * VOXEL_NM
    assert row["closed"] == "open"
    assert np.isnan(row["volume_nm3"])
    assert row["area_nm2"] == pytest.approx(2 * np.pi * nm * 56 * VOXEL_NM, rel=0.03)
    assert row["mean_curvature_per_nm"] == pytest.approx(1 / (2 * nm), rel=0.05)
    assert row["inclination_degrees"] > 85
    assert row["open_edge_at_border_share"] == 1
    assert row["open_edge_nm"] == pytest.approx(4 * np.pi * nm, rel=0.25)


def test_a_torus_has_saddles_and_its_area_and_volume() -> None:
    found = measured(shell(torus(SHAPE, (27.3, 29.1, 44.7), 18, 7)))
    row = found.table.iloc[0]
    assert row["area_nm2"] == pytest.approx(4 * np.pi**2 * 18 * 7 * VOXEL_NM**2, rel=0.02)
    assert row["volume_nm3"] == pytest.approx(2 * np.pi**2 * 18 * 49 * VOXEL_NM**3, rel=0.02)
    assert row["mean_curvature_per_nm"] == pytest.approx(1 / (2 * 7 * VOXEL_NM), rel=0.05)
    assert abs(row["gaussian_curvature_per_nm2"]) < 0.2 / (7 * VOXEL_NM) ** 2  # 0 over the whole, by Gauss and Bonnet
    assert np.ptp(found.values[0].shape_index) > 0.4


def test_a_slanted_plane_has_its_area_within_the_tomogram_and_no_curvature() -> None:
    z, y, x = field(SHAPE)
    normal = np.array([0.3, 0.5, 1.0]) / np.linalg.norm([0.3, 0.5, 1.0])
    row = measured(shell((z - 28) * normal[0] + (y - 30) * normal[1] + (x - 46) * normal[2])).table.iloc[0]
    assert row["area_nm2"] == pytest.approx(56 * 60 / normal[2] * VOXEL_NM**2, rel=0.02)
    assert abs(row["mean_curvature_per_nm"]) < 0.002
    assert row["inclination_degrees"] == pytest.approx(np.degrees(np.arccos(normal[0])), abs=1)


def test_nested_spheres_know_their_distance_and_their_contact() -> None:
    shape = (42, 44, 46)
    mask = shell(sphere(shape, (21, 22, 23), 18)) | shell(sphere(shape, (21, 22, 23), 10))
    found = measured(mask, contact_nm=7.0)
    assert list(found.table["nearest_membrane"]) == [2, 1]
    assert found.table["nearest_mean_nm"].to_numpy() == pytest.approx(8 * VOXEL_NM, rel=0.03)
    assert found.table["nearest_min_nm"].to_numpy() == pytest.approx(8 * VOXEL_NM, rel=0.08)
    contact = found.contacts.iloc[0]
    assert (len(found.contacts), contact["membrane"], contact["other"]) == (1, 1, 2)
    assert contact["area_nm2"] == pytest.approx(2 * np.pi * (18**2 + 10**2) * VOXEL_NM**2, rel=0.05)
    assert contact["distance_mean_nm"] == pytest.approx(8 * VOXEL_NM, rel=0.03)
    assert len(measured(mask, contact_nm=5.0).contacts) == 0


def test_distances_of_large_membranes_are_searched_within_a_bound_and_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = np.maximum.reduce(
        [shell(sphere(SHAPE, centre, radius)) for centre, radius in (((28, 30, 22), 18), ((28, 30, 70), 14))]
        + [shell(sphere(SHAPE, centre, 6)) for centre in ((8, 9, 46), (46, 48, 48), (28, 30, 22))]
    )
    whole = measured(mask, contact_nm=9.0)
    monkeypatch.setattr("etsam.measure.shape._LARGE", 0)
    bounded = measured(mask, contact_nm=9.0)
    assert len(whole.meshes) == 5
    for one, other in zip(whole.values, bounded.values, strict=True):
        np.testing.assert_array_equal(one.distance_nm, other.distance_nm)
        np.testing.assert_array_equal(one.nearest, other.nearest)
    pd.testing.assert_frame_equal(whole.contacts, bounded.contacts)


def test_a_cap_is_open_by_itself_and_a_bridged_gap_counts_as_joined() -> None:
    z, _, x = field(SHAPE)
    bowl = measured(shell(sphere(SHAPE, (28, 30, 46), 22)) * (z < 30).astype(np.uint8)).table.iloc[0]
    assert (bowl["closed"], bowl["open_edge_at_border_share"]) == ("open", 0)
    assert bowl["diameter_nm"] == pytest.approx(44 * VOXEL_NM, rel=0.03)
    joined = measured(shell(sphere(SHAPE, (28, 30, 46), 22)) * (np.abs(x - 50) > 4).astype(np.uint8)).table.iloc[0]
    assert joined["closed"] == "closed"
    assert joined["joined_share"] == pytest.approx(9 / 44, rel=0.3)
    assert joined["area_nm2"] == pytest.approx(4 * np.pi * (22 * VOXEL_NM) ** 2, rel=0.03)


@pytest.mark.parametrize("edge", [1.5, 3.0])
def test_triangles_have_the_size_that_was_asked_for(edge: float) -> None:
    found = measured(shell(sphere(SHAPE, (28, 30, 46), 22)), triangle_nm=edge)
    mesh = found.meshes[0]
    edges = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).edges_unique_length * VOXEL_NM
    assert edges.mean() == pytest.approx(edge, rel=0.1)
    assert found.table.iloc[0]["area_nm2"] == pytest.approx(4 * np.pi * (22 * VOXEL_NM) ** 2, rel=0.02)


def test_membranes_are_kept_and_dropped_by_number_size_and_distance_and_keep_their_numbers() -> None:
    shape = (30, 34, 52)
    mask = shell(sphere(shape, (15, 17, 14), 11)) | shell(sphere(shape, (15, 17, 38), 9))
    mask |= shell(sphere(shape, (15, 17, 38), 4.5))
    everything = measured(mask)
    assert everything.numbers == (1, 2, 3)
    assert (np.diff(everything.table["area_nm2"]) < 0).all()
    assert measured(mask, keep="2-3").numbers == (2, 3)
    assert measured(mask, drop="1,3").numbers == (2,)
    without_first = measured(mask, drop="1")
    assert without_first.closest_nm == pytest.approx(4.5 * VOXEL_NM, abs=0.4)
    assert everything.closest_nm < without_first.closest_nm - 0.5  # of the first and the second
    assert f"closest two {without_first.closest_nm:.1f} nm" in sentence(without_first)
    assert "closest" not in sentence(measured(mask, keep="1"))
    assert measured(mask, keep="area_nm2>300 and nearest_min_nm<5 and diameter_nm<16").numbers == (2,)
    assert measured(mask, keep="2-3").left_out
    assert measured(mask, keep="3-9").numbers == (3,)
    with pytest.raises(InputError, match=r"--keep.* number 4, 5-7;"):
        measured(mask, keep="1,4,5-7")
    with pytest.raises(ConfigError, match="--keep"):
        measured(mask, keep="big ones")
    with pytest.raises(ConfigError, match="size"):
        measured(mask, keep="size>3")


def test_labels_are_measured_as_they_are() -> None:
    labels = shell(sphere(SHAPE, (28, 30, 24), 12)) * 7 + shell(sphere(SHAPE, (28, 30, 66), 18)) * 3
    given, settings = labels.astype(np.uint16), MeasureSettings(min_area_nm2=50)
    found = measure(given, VOXEL_NM, labels=True, settings=settings)
    assert found.table["label"].tolist() == [3, 7]
    assert measure(given, VOXEL_NM, labels=True, settings=replace(settings, drop="label==3")).numbers == (2,)
    with pytest.raises(InputError, match=r"--drop 7.* number 7;.*label==3"):
        measure(given, VOXEL_NM, labels=True, settings=replace(settings, drop="7"))
    assert found.table["diameter_nm"].to_numpy() == pytest.approx([36 * VOXEL_NM, 24 * VOXEL_NM], rel=0.02)


@pytest.mark.parametrize("gap", [5, 0])
def test_pieces_of_one_membrane_have_no_contact_with_each_other(gap: int) -> None:
    shape = (40, 42, 66)
    _, _, x = field(shape)
    large, small = sphere(shape, (20, 21, 24), 16), sphere(shape, (20, 21, 54), 7)
    slit = (np.abs(x - 27) > gap / 2).astype(np.uint8)
    mask = shell(large) * slit | shell(small)
    joined = measured(mask, contact_nm=12.0)
    assert len(joined.table) == 2
    assert [tuple(pair) for pair in joined.contacts[["membrane", "other"]].to_numpy()] == [(1, 2)]
    labels = (shell(large) * slit * np.where(x < 27, 4, 9) | shell(small)).astype(np.uint16)
    assert set(np.unique(labels)) == {0, 1, 4, 9}
    settings = MeasureSettings(min_area_nm2=50, contact_nm=12.0)
    found = measure(labels, VOXEL_NM, labels=True, settings=settings)
    assert len(found.table) == 3  # as they were told apart
    assert [tuple(pair) for pair in found.contacts[["membrane", "other"]].to_numpy()] == [(2, 3)]
    assert "1 and 2" in found.left_out[0]
    apart = measure(labels, VOXEL_NM, labels=True, settings=MeasureSettings(min_area_nm2=50, join_gap_nm=0))
    assert (1, 2) in [tuple(pair) for pair in apart.contacts[["membrane", "other"]].to_numpy()]


def test_every_column_is_explained_and_nothing_else() -> None:
    density = -shell(sphere(SHAPE, (28, 30, 46), 20)).astype(np.float32)
    found = measure(shell(sphere(SHAPE, (28, 30, 46), 20)), VOXEL_NM, density)
    assert list(found.table) == [name for name in COLUMNS if name != "label"]  # which is of --instances
    assert list(found.contacts) == list(CONTACT_COLUMNS)


def test_a_sphere_is_fitted_to_part_of_it() -> None:
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(400, 3))
    directions[:, 0] = np.abs(directions[:, 0]) + 1
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    centre, radius, deviation = fitted_sphere(np.array([3.0, 4.0, 5.0]) + 7 * directions, np.ones(400))
    assert centre == pytest.approx([3, 4, 5], abs=1e-6)
    assert (radius, deviation) == pytest.approx((7, 0), abs=1e-6)


def test_labels_that_fill_their_boxes_have_a_surface() -> None:
    labels = np.zeros((20, 40, 50), np.uint8)
    labels[6:9, 5:35, 5:45], labels[14:17, 5:35, 5:45] = 1, 2  # flat, along the axes
    found = _label_surfaces(labels, 1)
    assert [len(one.points) > 1000 for one in found] == [True, True]
