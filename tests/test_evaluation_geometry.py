"""Surfaces, normals and topology compared with MONAI, scikit-image, scipy and shapes whose answers are known."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import euler_number
from skimage.morphology import skeletonize

from etsam.evaluation.metrics import surface as surface_module
from etsam.evaluation.metrics.normals import angles_to_z, inclination_counts, inclination_table, smoothed_slices
from etsam.evaluation.metrics.scores import Metrics, Scored
from etsam.evaluation.metrics.surface import nearest_distances, surface_voxels
from etsam.evaluation.metrics.topology import betti_numbers, cl_dice, euler_characteristic

SHAPE = (21, 26, 30)
VOXEL = (4.0, 3.0, 2.0)


def blobs(seed, shape=SHAPE, share=0.3, sigma=1.5):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return noise > np.quantile(noise, 1 - share)


def inside(mask):
    """Without the voxels at the faces, where MONAI sees surfaces and we do not."""
    out = np.zeros_like(mask)
    out[1:-1, 1:-1, 1:-1] = mask[1:-1, 1:-1, 1:-1]
    return out


def ball(radius, centre=(20, 22, 24), shape=(41, 45, 49)):
    return sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True)) <= radius**2


def surface_scores(truth, mask, voxel_size, tolerance=None):
    return Metrics(["surface"], surface_tolerance_angstrom=tolerance)(truth, Scored(mask=mask), voxel_size).metrics


# MONAI 1.6 warns of an argument that it sets itself
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy.*:FutureWarning")
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), VOXEL])
@pytest.mark.parametrize("seeds", [(0, 1), (2, 3)])
def test_surface_scores_are_those_of_monai(seeds, spacing):
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    masks = [inside(blobs(seed)) for seed in seeds]
    tolerance = 1.5 * max(spacing)
    metrics = surface_scores(masks[0], masks[1], spacing, tolerance)
    truth, mask = (torch.from_numpy(m)[None, None].float() for m in masks)
    given = {"include_background": True, "spacing": list(spacing)}
    expected = {
        "surface_dice": monai.compute_surface_dice(mask, truth, [tolerance], **given),
        "hausdorff95_angstrom": monai.compute_hausdorff_distance(mask, truth, percentile=95, **given),
        "assd_angstrom": monai.compute_average_surface_distance(mask, truth, symmetric=True, **given),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-6), name


def test_concentric_spheres_have_the_distance_of_their_radii():
    found = surface_scores(ball(10), ball(14), (2.0, 2.0, 2.0), 10.0)
    assert found["assd_angstrom"] == pytest.approx(8, abs=0.5)
    assert found["hausdorff95_angstrom"] == pytest.approx(8, abs=1.2)
    assert found["surface_dice"] == 1
    near = surface_scores(ball(10), ball(14), (2.0, 2.0, 2.0), 6.0)
    assert near["surface_dice"] < 0.05


@pytest.mark.parametrize(("axis", "shift", "score"), [(0, 1, 1.0), (0, 2, 1.0), (1, 2, 1.0), (2, 4, 1.0), (2, 5, 0.0)])
def test_the_default_tolerance_is_twice_the_largest_voxel_side_and_a_shift_by_it_is_within(axis, shift, score):
    size = (3.3, 2.2, 1.65)  # 2 x 3.3 = 4 x 1.65
    truth = np.zeros((15, 16, 17), bool)
    truth[(slice(None),) * axis + (slice(4, 5),)] = True
    found = Metrics(["surface"])(truth, Scored(mask=np.roll(truth, shift, axis)), size).metrics
    assert found["surface_dice"] == score
    assert found["assd_angstrom"] == pytest.approx(shift * size[axis], rel=1e-6)


def test_a_membrane_that_leaves_the_volume_has_no_surface_there():
    sheet = np.zeros((6, 9, 11), bool)
    sheet[:, 3:6] = True
    found = surface_voxels(sheet)
    assert len(found) == 2 * 6 * 11
    assert set(found.yx[:, 0]) == {3, 5}
    assert len(surface_voxels(np.ones((4, 5, 6), bool))) == 0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), VOXEL, (1.0, 5.0, 2.0)])
@pytest.mark.parametrize("points", [20, 300, 10**6])
def test_distances_are_exact_whatever_the_slabs(spacing, points, monkeypatch):
    monkeypatch.setattr(surface_module, "_TREE_POINTS", points)
    monkeypatch.setattr(surface_module, "_QUERY_POINTS", points)
    shape = (40, 22, 25)
    targets, sources = blobs(0, shape, 0.01, 0.7), blobs(1, shape, 0.3)
    targets[5:30] = False  # slabs without any target, and targets far away
    found = nearest_distances(surface_voxels(sources), surface_voxels(targets), shape, spacing)
    edges = [np.argwhere(np.array(list(surface_module.surface_planes(mask)))) for mask in (sources, targets)]
    expected, _ = KDTree(edges[1] * spacing).query(edges[0] * spacing)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isinf(nearest_distances(surface_voxels(sources), surface_voxels(targets & False), shape, spacing)).all()


def tilted_sheet(degrees, thickness, voxel_size, shape=(40, 46, 50)):
    """A sheet whose normal makes an angle with Z; thickness in the unit of the voxel size."""
    z, y, x = ((axis - side / 2) * size for axis, side, size in zip(np.indices(shape), shape, voxel_size, strict=True))
    tilt = np.radians(degrees)
    return abs(z * np.cos(tilt) + (0.8 * y + 0.6 * x) * np.sin(tilt)) <= thickness / 2


@pytest.mark.parametrize("voxel_size", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0)])
@pytest.mark.parametrize("thickness", [1, 3, 8])
@pytest.mark.parametrize("degrees", [0, 25, 45, 70, 90])
def test_normals_of_sheets_have_their_angle(degrees, thickness, voxel_size):
    sheet = tilted_sheet(degrees, thickness * voxel_size[0], voxel_size)
    voxels = surface_voxels(sheet)
    angles = angles_to_z(voxels, sheet, voxel_size)
    z, (y, x) = voxels.z(0, sheet.shape[0]), voxels.yx.T
    centre = (z > 7) & (z < 32) & (y > 7) & (y < 38) & (x > 7) & (x < 42)
    errors = abs(angles[centre] - degrees)
    assert centre.sum() > 100
    assert errors.mean() < 3
    assert np.percentile(errors, 99) < 7


def test_normals_of_a_shell_point_outwards():
    shell = ball(15) & ~ball(12)
    voxels = surface_voxels(shell)
    from_centre = np.column_stack([voxels.z(0, 41), voxels.yx]) - [20, 22, 24.0]
    expected = np.degrees(np.arccos(abs(from_centre[:, 0]) / np.linalg.norm(from_centre, axis=1)))
    errors = abs(angles_to_z(voxels, shell, (1.0, 1.0, 1.0)) - expected)
    assert errors.mean() < 3
    assert np.percentile(errors, 99) < 8


def test_smoothing_slice_by_slice_is_scipys():
    mask = blobs(0)
    sigma = (1.0, 1.5, 2.0)
    expected = ndimage.gaussian_filter(mask.astype(np.float64), sigma, mode="nearest", truncate=3)
    np.testing.assert_allclose(list(smoothed_slices(mask, sigma)), expected, atol=1e-6)
    known = blobs(1, share=0.7)
    weight = ndimage.gaussian_filter(known.astype(np.float64), sigma, mode="nearest", truncate=3)
    partial = ndimage.gaussian_filter((mask & known).astype(np.float64), sigma, mode="nearest", truncate=3)
    found = np.array(list(smoothed_slices(mask, sigma, known)))
    np.testing.assert_allclose(found[weight > 1e-3], (partial / weight)[weight > 1e-3], atol=1e-4)


def test_inclination_says_which_directions_are_missed():
    shell = ball(15) & ~ball(12)
    z, y, x = (axis - c for axis, c in zip(np.indices(shell.shape), (20, 22, 24), strict=True))
    steep = abs(z) < 0.6 * np.sqrt(z**2 + y**2 + x**2)  # normals at more than 53 degrees: what the wedge leaves
    rows = Metrics(["inclination"], surface_tolerance_angstrom=1.0)(
        shell, Scored(mask=shell & steep), (1.0, 1.0, 1.0)
    ).inclination
    assert [row[:2] for row in rows] == [(10.0 * i, 10.0 * i + 10) for i in range(9)]
    assert all(row[2] == 0 for row in rows[:4])
    assert all(row[2] > 0.99 for row in rows[7:])
    assert all(row[3] > 0.95 for row in rows[7:])
    assert sum(row.truth_voxels for row in rows) == len(surface_voxels(shell))
    assert sum(row.predicted_voxels for row in rows) == len(surface_voxels(shell & steep))


def test_inclination_bins_hold_both_ends_and_no_nan():
    angles = np.array([0, 9.99, 10, 90, np.nan], np.float32)
    hits = np.array([True, False, True, True, True])
    rows = inclination_table(inclination_counts(angles, hits), inclination_counts(np.array([15.0]), np.array([False])))
    assert rows[0] == (0.0, 10.0, 0.5, pytest.approx(np.nan, nan_ok=True), 2, 0)
    assert rows[1] == (10.0, 20.0, 1.0, 0.0, 1, 1)
    assert rows[8][2:] == (1.0, pytest.approx(np.nan, nan_ok=True), 1, 0)


def test_centre_line_dice_is_that_of_its_definition():
    truth, mask = blobs(0, share=0.2), blobs(1, share=0.2)
    of_truth, of_mask = (np.stack([skeletonize(plane) for plane in volume]) for volume in (truth, mask))
    precision, sensitivity = mask[of_truth].mean(), truth[of_mask].mean()
    assert cl_dice(truth, mask) == pytest.approx(2 * precision * sensitivity / (precision + sensitivity), abs=1e-12)


def test_centre_lines_see_a_gap_that_dice_hardly_sees():
    line = np.zeros((3, 20, 60), bool)
    line[:, 8:13, 5:55] = True
    thin = line.copy()
    thin[:, 8] = thin[:, 12] = False
    assert cl_dice(line, thin) > 0.95  # thinner, but whole
    broken = line.copy()
    broken[:, :, 20:40] = False
    assert cl_dice(line, broken) < 0.8


def torus():
    z, y, x = (axis - c for axis, c in zip(np.indices((11, 27, 31)), (5, 13, 15), strict=True))
    return (np.sqrt(y**2 + x**2) - 8) ** 2 + z**2 <= 6


@pytest.mark.parametrize(
    ("mask", "numbers"),
    [
        (np.zeros((4, 5, 6), bool), (0, 0, 0)),
        (np.ones((4, 5, 6), bool), (1, 0, 0)),
        (ball(10), (1, 0, 0)),
        (ball(12) & ~ball(9), (1, 0, 1)),
        ((ball(12) & ~ball(9)) | ball(5), (2, 0, 1)),
        (torus(), (1, 1, 0)),
        ((ball(12) & ~ball(9))[20:], (1, 0, 0)),  # cut by a face: open
        (np.eye(4, dtype=bool)[:, :, None] & np.eye(4, dtype=bool)[:, None], (1, 0, 0)),  # corners touch
    ],
)
def test_betti_numbers_of_known_shapes(mask, numbers):
    assert betti_numbers(mask) == numbers


@pytest.mark.parametrize("depth", [1, 2, 6, 7, 8, 13, 40])
def test_the_euler_number_put_together_from_slices_is_that_of_the_whole(depth):
    mask = np.random.default_rng(depth).random((depth, 9, 12)) < 0.3
    assert euler_characteristic(mask) == euler_number(mask, connectivity=3)


def test_betti_errors_compare_truth_and_prediction_where_it_is_annotated():
    truth = ((ball(12) & ~ball(9)) | ball(5)).astype(np.uint8)
    mask = ball(12)
    names = [f"betti{i}_error" for i in range(3)]
    found = Metrics(["betti"])(truth, Scored(mask=mask)).metrics
    assert [found[name] for name in names] == [1, 0, 1]
    truth[ball(11) & ~ball(7)] = 255  # of the ball a shell and a core are left, as in the truth
    found = Metrics(["betti"])(truth, Scored(mask=mask)).metrics
    assert [found[name] for name in names] == [0, 0, 0]
