"""Uncertainty: the chance that a voxel's call is wrong, from its logit and from how far members differ."""

import json

import numpy as np
import pytest
from conftest import write_mrc
from PIL import Image

from etsam import segment
from etsam.errors import ConfigError
from etsam.evaluation.metrics.calibration import calibration_curve, expected_calibration_error
from etsam.inference.ensemble import Averaged, average_of, with_spread_to
from etsam.inference.uncertainty import Calibration, uncertainty
from etsam.volume import read_volume

SHAPE = (9, 14, 17)
PLAIN = ("write_page=false", "write_chimerax=false", "net=tiny_voxel_test", "trainer=cpu")


@pytest.fixture(scope="module")
def grey():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def stack(slices):
    return np.stack([slices[z] for z in range(slices.shape[0])])


def test_the_chance_of_membrane_is_that_of_a_logit_known_up_to_its_spread():
    calibration = Calibration(offset=-0.5, slope=2.0, softening=0.25)
    logits = np.array([[0.25, 1.0, -30.0]], np.float32)
    chance = calibration.membrane(logits, np.array([[0.0, 4.0, 0.0]], np.float32))
    expected = [0.5, 1 / (1 + np.exp(-1.5 / np.sqrt(5))), 1 / (1 + np.exp(20.5))]  # logits are limited to 10
    np.testing.assert_allclose(chance[0], expected, rtol=1e-5)


def test_uncertainty_is_of_the_call_and_at_most_that_of_a_coin():
    logits, threshold = np.array([[-3.0, 0.0, 0.4, 3.0]], np.float32), 0.5
    found = Calibration().wrong(logits, threshold)
    chance = 1 / (1 + np.exp(-logits[0].astype(float)))
    np.testing.assert_allclose(found[0], [chance[0], 0.5, 0.5, 1 - chance[3]], rtol=1e-5)  # 0.4 is called no membrane
    softened = Calibration(softening=1.0).wrong(logits, threshold, 2.0)
    assert (softened[0, [0, 3]] > found[0, [0, 3]]).all()


def test_a_mean_of_means_has_the_spread_of_all_members():
    members = np.random.default_rng(3).normal(0, 2, (4, *SHAPE)).astype(np.float32)
    both = average_of([average_of(list(members[:2])), average_of(list(members[2:]))])
    np.testing.assert_allclose(stack(both), members.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(stack(both.spread), members.std(axis=0), atol=1e-5)
    far = average_of([np.full(SHAPE, -1024, np.float32), np.full(SHAPE, 4, np.float32)])
    assert far[0][0, 0] == -3
    assert far.spread[0][0, 0] == 7
    kept = with_spread_to(members[0], members[1])
    np.testing.assert_array_equal(stack(kept), members[0])
    np.testing.assert_allclose(stack(kept.spread), np.abs(members[0] - members[1]) / 2, atol=1e-5)


def test_slices_without_a_spread_have_that_of_one_member():
    logits = np.random.default_rng(3).normal(0, 3, SHAPE).astype(np.float32)
    calibration = Calibration(0.1, 0.7, 3.0)
    plain, alone = (stack(uncertainty(one, 0.5, calibration)) for one in (logits, Averaged(logits)))
    np.testing.assert_array_equal(plain, alone)
    np.testing.assert_array_equal(plain, calibration.wrong(logits, 0.5))


@pytest.mark.parametrize("numbers", [(0, 0, 1), (0, 1, -1), (0, 1)])
def test_numbers_that_calibrate_nothing_are_refused(numbers):
    with pytest.raises(ConfigError, match=r"weights\.calibration"):
        Calibration.of(numbers)


def test_the_calibration_error_is_the_mean_distance_from_the_share_that_is_wrong():
    chance = np.array([0.1, 0.1, 0.1, 0.1, 0.4, 0.4])
    wrong = np.array([0, 0, 0, 1, 1, 0], bool)
    curve = calibration_curve(chance, wrong, bins=5)
    np.testing.assert_allclose(curve.expected, [0.1, 0.4])
    np.testing.assert_allclose(curve.found, [0.25, 0.5])
    np.testing.assert_array_equal(curve.voxels, [4, 2])
    assert expected_calibration_error(curve) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)


@pytest.mark.parametrize("kind", ["mrc", "zarr"])
def test_the_command_writes_the_uncertainty_beside_the_mask(etsam, work, grey, kind):
    write_mrc(work / "tomo.mrc", grey)
    command = ("predict", "tomo.mrc", "--weights", "random", "-o", "out", *PLAIN, f"output_format={kind}")
    more = ("--uncertainty", "--store-logits", "weights.calibration=[-0.1,0.7,30]", "views=2")
    assert etsam(*command, *more).status == 0
    found = read_volume(work / f"out/tomo_etsam_predicted_uncertainty.{kind}").read()
    logits = read_volume(work / f"out/tomo_etsam_predicted_logits.{kind}").read()
    assert found.shape == SHAPE
    assert found.dtype == np.float32
    alone = Calibration(-0.1, 0.7, 30).wrong(logits, -0.25)
    assert (found >= alone - 1e-5).all()  # the spread makes nothing surer
    assert (found > alone + 1e-4).mean() > 0.3
    assert found.max() <= 0.5
    record = json.loads((work / "out/tomo_etsam_predicted_record.json").read_text(encoding="utf-8"))
    assert record["uncertainty"]["mean"] == pytest.approx(found.mean(), rel=1e-3)
    assert record["uncertainty"]["calibration"] == [-0.1, 0.7, 30]
    assert f"tomo_etsam_predicted_uncertainty.{kind}" in record["outputs"]
    picture = np.asarray(Image.open(work / "out/tomo_etsam_predicted_preview.png").convert("RGB")).astype(int)
    assert (picture[..., 0] - picture[..., 2] > 60).mean() > 0.02  # orange


def test_resume_makes_the_uncertainty_that_an_earlier_run_did_not(etsam, work, grey):
    write_mrc(work / "tomo.mrc", grey)
    command = ("predict", "tomo.mrc", "--weights", "random", "-o", "out", *PLAIN, "write_preview=false")
    assert etsam(*command).status == 0
    assert etsam(*command, "--resume", "write_uncertainty=true").status == 0
    assert (work / "out/tomo_etsam_predicted_uncertainty.mrc").exists()


def test_python_gives_the_uncertainty_in_memory_and_in_a_file(grey, tmp_path):
    padded = np.concatenate([grey, np.zeros((2, *SHAPE[1:]), np.float32)])
    settings = ["weights=random", "net=tiny_voxel_test", "write_uncertainty=true"]
    in_memory = segment(padded, overrides=settings, device="cpu")
    assert 0 < in_memory.uncertainty[:9].max() <= 0.5
    assert not in_memory.uncertainty[9:].any()
    streamed = segment(padded, overrides=settings, device="cpu", output_path=tmp_path / "logits.mrc")
    np.testing.assert_array_equal(streamed.uncertainty.read(), in_memory.uncertainty)
    assert (tmp_path / "logits_uncertainty.mrc").exists()
    assert segment(padded, overrides=settings[:2], device="cpu").uncertainty is None
    with_other_size = segment(
        grey, voxel_size=(10.0, 10.0, 10.0), overrides=[*settings, "target_voxel_size=12"], device="cpu"
    )
    assert with_other_size.uncertainty.shape == SHAPE
