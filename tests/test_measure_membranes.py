"""A mask becomes membranes: points in their middle, one number each, whatever they touch or cross."""

import numpy as np
import pytest
from membrane_shapes import field, shell, sphere
from scipy.spatial import KDTree

from etsam.measure.label_volume import label_volume
from etsam.measure.membranes import Membranes, find_membranes, membranes_of_labels
from etsam.measure.midsurface import find_midsurface, lowest_direction, mask_width

pytestmark = pytest.mark.workshop
SHAPE = (56, 60, 92)


def membranes(mask: np.ndarray, **settings: float) -> Membranes:
    return find_membranes(find_midsurface(mask, workers=1), **settings)


@pytest.mark.parametrize(("radius", "half"), [(5.0, 1.25), (14.0, 1.5), (20.0, 3.5)])
def test_points_lie_on_the_middle_of_a_shell_and_normals_across_it(radius: float, half: float) -> None:
    centre = (27.3, 29.1, 44.7)
    mask = shell(sphere(SHAPE, centre, radius), half)
    found = find_midsurface(mask, workers=2)
    away = found.points - np.array(centre)
    distance = np.linalg.norm(away, axis=1)
    assert distance.mean() == pytest.approx(radius, abs=0.06)
    assert np.percentile(np.abs(distance - radius), 95) < 1
    across = np.abs(np.einsum("ij,ij->i", away / distance[:, None], found.normals))
    assert np.degrees(np.arccos(across.clip(0, 1))).mean() < 6
    assert np.nanmedian(found.widths) == pytest.approx(2 * half, abs=0.3)
    assert mask_width(mask) == pytest.approx(2 * half, rel=0.05)


def test_the_direction_in_closed_form_is_that_of_lapack() -> None:
    matrices = np.random.default_rng(0).normal(size=(500, 3, 3))
    matrices = matrices + matrices.transpose(0, 2, 1)
    a, b, c, d, e, f = (matrices[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)))
    directions, _ = lowest_direction(a, b, c, d, e, f)
    expected = np.linalg.eigh(matrices)[1][:, :, 0]
    assert np.abs(np.einsum("ij,ij->i", directions, expected)).min() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("gap", [1, 0, -1, -2])
def test_two_shells_that_touch_or_merge_are_two_membranes(gap: int) -> None:
    first = shell(sphere(SHAPE, (28, 30, 26), 16))
    second = shell(sphere(SHAPE, (28, 30, 26 + 16 + 16 + 3 + gap), 16))
    mask = first | second
    found = membranes(mask)
    assert found.count == 2
    labels = label_volume(mask, found)
    volume = np.stack([labels[z] for z in range(SHAPE[0])])
    names = [
        np.bincount(volume[(own == 1) & (other == 0)]).argmax() for own, other in ((first, second), (second, first))
    ]
    assert sorted(names) == [1, 2]
    for own, other, name in ((first, second, names[0]), (second, first, names[1])):
        assert (volume[(own == 1) & (other == 0)] == name).mean() > 0.98
    assert ((volume > 0) == (mask > 0)).all()


def test_planes_that_cross_are_two_membranes() -> None:
    z, _, x = field(SHAPE)
    found = membranes(((abs(z - 27) <= 1.5) | (abs(x - 50) <= 1.5)) * np.ones(SHAPE, np.uint8))
    assert found.count == 2
    assert set(np.unique(found.joined_numbers)) == {1, 2}


def test_sheets_of_a_stack_and_nested_shells_are_membranes_of_their_own() -> None:
    z, y, _ = field(SHAPE)
    stack = ((np.abs((z + 0.2 * y) % 6 - 3) <= 1.6) * np.ones(SHAPE, np.uint8))[:, :30, :40]
    assert membranes(stack, least_points=300).count == 10
    nested = shell(sphere(SHAPE, (28, 30, 46), 22)) | shell(sphere(SHAPE, (28, 30, 46), 17.5))
    found = membranes(nested)
    radii = [np.linalg.norm(part.points - np.array([28, 30, 46]), axis=1).mean() for part, _ in found.parts()]
    assert radii == pytest.approx([22, 17.5], abs=0.3)


def test_a_gap_is_joined_only_where_it_is_narrow_enough_and_what_joins_it_lies_on_the_surface() -> None:
    x = field(SHAPE)[2]
    mask = shell(sphere(SHAPE, (28, 30, 46), 22)) * (np.abs(x - 50) > 4)
    joined, apart = membranes(mask), membranes(mask, gap_voxels=0)
    assert (joined.count, apart.count) == (1, 2)
    assert len(apart.joined) == 0
    distance = np.linalg.norm(joined.joined.points - np.array([28, 30, 46]), axis=1)
    assert np.percentile(np.abs(distance - 22), 95) < 1
    assert np.abs(joined.joined.points[:, 2] - 50).max() < 6


def test_voxels_get_the_nearest_membrane_of_all_however_few_slices_are_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = shell(sphere(SHAPE, (28, 30, 26), 16)) | shell(sphere(SHAPE, (28, 30, 61), 16))  # they touch
    mask[5:50, 28:32, 26] = 1  # through the middle of one, far from its surface
    found = membranes(mask)
    assert found.count >= 2
    numbered = found.numbers > 0
    at = np.argwhere(mask)
    nearest = found.numbers[numbered][KDTree(found.surface.points[numbered]).query(at)[1]]
    monkeypatch.setattr("etsam.measure.label_volume._BLOCK", 5)
    monkeypatch.setattr("etsam.measure.label_volume._AROUND", 1)
    labels = label_volume(mask, found)
    volume = np.stack([labels[z] for z in range(SHAPE[0])])
    assert (volume[tuple(at.T)] == nearest).mean() > 0.999  # of two as near, either


def test_edges_compared_layer_by_layer_join_the_same_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = shell(sphere(SHAPE, (28, 30, 46), 20), 1.5)
    mask[:, 26:34] = 0  # a belt: edges face each other at all heights
    mask[24:30] = 0  # and another, along the layers
    whole = membranes(mask, gap_voxels=12)
    monkeypatch.setattr("etsam.measure.membranes._EDGE_POINTS", 7)
    in_layers = membranes(mask, gap_voxels=12)
    assert len(whole.joined) > 100
    np.testing.assert_array_equal(in_layers.numbers, whole.numbers)
    np.testing.assert_array_equal(np.sort(in_layers.joined.points, axis=0), np.sort(whole.joined.points, axis=0))


@pytest.mark.parametrize("points", [137, 1500])
def test_a_large_part_looked_at_in_pieces_is_told_apart_as_the_whole(
    monkeypatch: pytest.MonkeyPatch, points: int
) -> None:
    mask = shell(sphere(SHAPE, (28, 30, 26), 16)) | shell(sphere(SHAPE, (28, 30, 60), 16))  # merged into one part
    mask[:, 17:20] = 0  # a gap through both
    whole = membranes(mask)
    assert (whole.count, len(whole.joined) > 100) == (2, True)
    assert (whole.numbers == 0).any()
    monkeypatch.setattr("etsam.measure.membranes._PIECE", points)
    in_pieces = membranes(mask)
    np.testing.assert_array_equal(in_pieces.numbers, whole.numbers)
    np.testing.assert_array_equal(in_pieces.surface.normals, whole.surface.normals)
    np.testing.assert_array_equal(in_pieces.joined.points, whole.joined.points)
    np.testing.assert_array_equal(in_pieces.joined_numbers, whole.joined_numbers)


def test_the_largest_membrane_is_number_one_and_small_pieces_are_counted_as_left_out() -> None:
    mask = shell(sphere(SHAPE, (28, 30, 20), 8)) | shell(sphere(SHAPE, (28, 30, 60), 16))
    mask[2:5, 3:10, 82:89] = 1
    found = membranes(mask, least_points=100)
    sizes = np.bincount(found.numbers)[1:]
    assert found.count == 2
    assert sizes[0] > sizes[1]
    assert found.left_out[0] == 1
    assert 10 < found.left_out[1] < 100
    labels = label_volume(mask, found)
    assert labels[28][30, 44] == 1
    assert labels[28][30, 12] == 2
    assert labels[3][6, 85] == 0


def test_the_rim_of_a_thick_membrane_is_no_piece_that_was_left_out() -> None:
    found = membranes(shell(sphere(SHAPE, (28, 30, 46), 18), 3.5) * (field(SHAPE)[2] < 55))
    assert found.count == 1
    assert (found.numbers == 0).any()
    assert found.left_out == (0, 0)


def test_labels_that_are_given_are_the_membranes() -> None:
    parts = [find_midsurface(shell(sphere(SHAPE, (28, 30, 46), radius), 0.8)) for radius in (12.0, 20.0)]
    found = membranes_of_labels(parts)
    assert found.count == 2
    assert (np.bincount(found.numbers)[1:] == [len(parts[1]), len(parts[0])]).all()
    for part, _ in found.parts():  # normals of each to one side
        out = np.einsum("ij,ij->i", part.points - np.array([28, 30, 46]), part.normals) > 0
        assert out.mean() in (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))


def test_normals_of_one_membrane_point_to_one_side_of_it() -> None:
    found = membranes(shell(sphere(SHAPE, (28, 30, 46), 20)))
    away = found.surface.points - np.array([28, 30, 46])
    out = np.einsum("ij,ij->i", away, found.surface.normals) > 0
    assert out.all() or not out.any()


def test_an_empty_mask_has_no_membranes() -> None:
    found = membranes(np.zeros(SHAPE, np.uint8))
    assert (found.count, len(found.surface), len(found.joined)) == (0, 0, 0)
