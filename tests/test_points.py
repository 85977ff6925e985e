"""A mask against annotated points: known geometry, and the command."""

import numpy as np
import pytest

from etsam.errors import ConfigError, InputError
from etsam.evaluation.metrics.points import read_points, score_points

SHAPE = (9, 14, 20)
COLUMNS = "z_voxel,y_voxel,x_voxel"


def test_points_on_the_mask_are_covered_and_far_ones_are_not():
    mask = np.zeros(SHAPE, np.int8)
    mask[4, 3:10, 6] = 1
    points = np.array([[4, 5, 7.5], [4, 5, 7.6], [4, 5, 15], [5, 9, 7]], dtype=float)
    scores = score_points(mask, points)
    assert (scores.points, scores.mask_voxels, scores.recall) == (4, 7, 0.5)


def test_mask_away_from_all_points_is_counted():
    mask = np.zeros(SHAPE, np.int8)
    mask[4, 0:10, 6] = 1
    scores = score_points(mask, np.array([[4.0, 2.0, 6.0]]))
    assert scores.far == pytest.approx(4 / 10)  # rows 6 to 9 are more than 3 voxels from row 2


def test_an_empty_mask_covers_nothing():
    scores = score_points(np.zeros(SHAPE), np.ones((3, 3)))
    assert scores.recall == 0
    assert np.isnan(scores.far)


def test_distances_equal_those_of_brute_force():
    rng = np.random.default_rng(0)
    mask, points = (rng.random(SHAPE) > 0.97).astype(np.int8), rng.uniform(0, SHAPE, size=(50, 3))
    apart = np.linalg.norm(np.argwhere(mask)[:, None] - points[None], axis=-1)
    scores = score_points(mask, points, 2.0, 4.0)
    assert scores.recall == pytest.approx((apart.min(axis=0) <= 2).mean())
    assert scores.far == pytest.approx((apart.min(axis=1) > 4).mean())


@pytest.mark.parametrize(
    "text", ["", "a,b,c\n1,2,3\n", "z_voxel,y_voxel,x_voxel\n", "z_voxel,y_voxel,x_voxel\n1,2,here\n"]
)
def test_files_that_hold_no_points_are_refused(tmp_path, text):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"points\.csv"):
        read_points(path)


@pytest.mark.parametrize("typed", ["nan", "inf", "-1e999", "here", ""])
def test_a_position_that_is_no_finite_number_is_refused_with_its_line(tmp_path, typed):
    path = tmp_path / "points.csv"
    path.write_text(f"{COLUMNS}\n1,2,3\n\n4,{typed},6\n7,8,9\n")
    with pytest.raises(InputError, match=rf"points\.csv, line 4: .*y_voxel={typed}"):
        read_points(path)
    path.write_text(f"{COLUMNS}\n1,2,3\n4,5\n")
    with pytest.raises(InputError, match="line 3"):
        read_points(path)


@pytest.mark.parametrize("distance", [-1.0, -3, float("nan"), float("inf")])
def test_a_distance_is_a_finite_number_from_0_up(distance):
    mask = np.ones(SHAPE, np.int8)
    for name in ("near_voxels", "far_voxels"):
        with pytest.raises(ConfigError, match=name):
            score_points(mask, np.array([[4.0, 2.0, 6.0]]), **{name: distance})
    scores = score_points(mask, np.array([[4.0, 2.0, 6.0]]), 0, 0)
    assert (scores.recall, scores.far) == (1, 1 - 1 / np.prod(SHAPE))


@pytest.mark.parametrize("flag", ["--near", "--far"])
@pytest.mark.parametrize("typed", ["-1", "-1e-3", "nan", "inf", "wide"])
def test_the_command_refuses_a_distance_as_it_was_typed(etsam, work, flag, typed):
    outcome = etsam("points", "mask.mrc", "points.csv", flag, typed)
    assert outcome.status == 1
    assert f"{flag}: {typed} is no distance" in outcome.message


def test_points_that_all_lie_outside_are_an_error_that_names_angstrom(etsam, work):
    from conftest import write_mrc

    write_mrc(work / "mask.mrc", np.ones(SHAPE, np.int8))
    in_voxels = np.array([[8, 2, 6], [4, 13, 19]])
    for scale, status in ((1, 0), (12, 1)):
        rows = "".join(f"{z},{y},{x}\n" for z, y, x in in_voxels * scale)
        (work / "points.csv").write_text(f"{COLUMNS}\n{rows}")
        outcome = etsam("points", "mask.mrc", "points.csv")
        assert (outcome.status, "points lie outside" in outcome.stderr) == (status, status == 1)
    assert "all 2 points" in outcome.message
    assert "Å" in outcome.message
    assert "another tomogram" in outcome.message
    assert outcome.stdout == ""
    with pytest.raises(InputError, match="9 x 14 x 20"):
        score_points(np.ones(SHAPE), in_voxels * 12.0)


def test_the_command_prints_both_shares(etsam, work):
    from conftest import write_mrc

    mask = np.zeros(SHAPE, np.int8)
    mask[4, 0:10, 6] = 1
    write_mrc(work / "mask.mrc", mask)
    (work / "points.csv").write_text("z_voxel,y_voxel,x_voxel\n4,2,6\n4,2,19\n")
    outcome = etsam("points", "mask.mrc", "points.csv")
    assert outcome.status == 0, outcome.stderr
    assert "0.500 of 2 points have mask within 1.5 voxels" in outcome.stdout
    assert "0.400 of 10 mask voxels lie farther than 3" in outcome.stdout
    missing = etsam("points", "mask.mrc", "none.csv")
    assert missing.status == 1
    assert "none.csv" in missing.message


def test_columns_may_be_called_x_y_z_in_any_order(tmp_path):
    path = tmp_path / "picked.csv"
    path.write_text("name,X, y,z\nspike,6,2,4\n")
    np.testing.assert_array_equal(read_points(path), [[4, 2, 6]])


def test_logits_are_cut_where_their_record_says_and_points_of_another_tomogram_are_told(etsam, work):
    from conftest import write_mrc

    logits = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    (work / "points.csv").write_text("z,y,x\n4,2,6\n4,2,99\n")
    write_mrc(work / "a_etsam_predicted_logits.mrc", logits)
    (work / "a_etsam_predicted_record.json").write_text('{"settings": {"stage2": {"threshold": 0.5}}}')
    outcome = etsam("points", "a_etsam_predicted_logits.mrc", "points.csv")
    assert f" of {(logits > 0.5).sum()} mask voxels" in outcome.stdout
    assert "1 of 2 points lie outside" in outcome.stdout
    for value, dtype in ((255, np.uint16), (-1, np.int8), (1, np.float32)):
        write_mrc(work / "mask.mrc", np.where(logits > 0.5, value, 0).astype(dtype))
        assert f" of {(logits > 0.5).sum()} mask voxels" in etsam("points", "mask.mrc", "points.csv").stdout


def test_bytes_of_imod_without_its_mark_are_explained(etsam, work):
    from conftest import write_mrc

    (work / "points.csv").write_text("z,y,x\n4,2,6\n")
    drawn = np.full(SHAPE, -128, np.int8)
    drawn[4, 2] = -127
    write_mrc(work / "mask.mrc", drawn)
    assert "IMOD" in etsam("points", "mask.mrc", "points.csv").message
