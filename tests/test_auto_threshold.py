"""threshold=auto: chosen for a tomogram by what is marked in a copy of it with shuffled phases."""

import json

import mrcfile
import numpy as np
import pytest
from conftest import SHAPE, grey, write_mrc

import etsam as package
from etsam.inference import false_marks
from etsam.inference.false_marks import ThresholdChoice, marked_shares, phase_shuffled, richest_window
from etsam.prediction.record import read_record

NAME = "tomo_etsam_predicted"


def test_a_shuffled_copy_has_the_spectrum_and_the_mean_of_the_volume_and_other_voxels():
    volume = 0.5 + 0.02 * np.random.default_rng(1).normal(size=(8, 10, 14)).astype(np.float32)
    volume[:, 4] -= 0.1
    copy = phase_shuffled(volume)
    np.testing.assert_allclose(np.abs(np.fft.fftn(copy)), np.abs(np.fft.fftn(volume)), atol=2e-3)
    assert abs(np.corrcoef(copy.ravel(), volume.ravel())[0, 1]) < 0.2
    np.testing.assert_array_equal(copy, phase_shuffled(volume))


def test_a_copy_lies_in_the_range_that_the_networks_know():
    volume = np.random.default_rng(0).random((5, 9, 12)).astype(np.float32).round()
    copy = phase_shuffled(volume)
    assert (copy.min(), copy.max()) == (0, 1)


def test_the_window_is_where_grey_values_differ_most_and_no_larger_than_it_may_be(monkeypatch):
    monkeypatch.setattr(false_marks, "WINDOW", (4, 8, 10))
    volume = np.full((9, 20, 31), 3.0, np.float32)
    volume[5:9, 12:20, 21:31] += np.random.default_rng(0).normal(size=(4, 8, 10))
    assert richest_window(volume) == (slice(5, 9), slice(12, 20), slice(21, 31))
    assert richest_window(volume[:3, :5, :7]) == (slice(0, 3), slice(0, 5), slice(0, 7))


def test_shares_count_what_lies_strictly_above():
    logits = np.array([[[-1.0, 0.0], [0.5, 2.0]]], np.float32)
    np.testing.assert_array_equal(marked_shares(logits, [-2, 0, 0.5, 3]), [1, 0.5, 0.25, 0])


def choice(false_rate=0.2, empty=False):
    """One in ten voxels is membrane, of logits 0 to 1 unless there is none; noise has logits -1 to 0 everywhere."""
    noise = np.linspace(-1, 0, 1000, endpoint=False).reshape(10, 5, 20).astype(np.float32)
    logits = noise.copy()
    if not empty:
        logits[0] = np.linspace(0, 1, 100, endpoint=False).reshape(5, 20)
    return ThresholdChoice.of(logits, noise, 0.5, false_rate)


def test_the_lowest_threshold_is_taken_at_which_no_more_is_false_than_allowed():
    # above -0.1 lie 10 % noise and 10 % membrane (minus the noise they replaced), above 0 membrane only
    assert choice(0.2).threshold == 0
    assert choice(0.6).threshold == -0.1
    assert choice(0.6).reached
    rates = choice().rates
    assert rates[choice().thresholds.index(0.0)] == 0
    assert 0.4 < rates[choice().thresholds.index(-0.1)] < 0.6


def test_without_membrane_the_highest_threshold_is_taken_and_said_not_to_do():
    found = choice(empty=True)
    assert not found.reached
    assert found.threshold == 0.5 + false_marks.ABOVE
    assert "20 %" in found.words()


def test_a_choice_comes_back_from_a_record_also_for_another_rate():
    facts = json.loads(json.dumps(choice().facts()))
    assert ThresholdChoice.from_facts(facts).threshold == 0
    assert ThresholdChoice.from_facts(facts, 0.6).threshold == -0.1


def test_mask_record_page_and_log_have_the_threshold_that_was_chosen(predict, etsam, work, caplog):
    caplog.set_level("INFO")
    write_mrc(work / "tomo.mrc")
    outcome = predict("tomo.mrc", "--threshold", "auto", "--store-logits", "weights.seed=1", "write_page=true")
    assert outcome.status == 0, outcome.stderr
    record = read_record(work / "out" / f"{NAME}_record.json")
    found = record["threshold_choice"]
    assert record["threshold"] == found["threshold"]
    assert record["settings"]["threshold"] == "auto"
    logits = mrcfile.read(work / "out" / f"{NAME}_logits.mrc")
    np.testing.assert_array_equal(mrcfile.read(work / "out" / f"{NAME}_mask.mrc") > 0, logits > found["threshold"])
    np.testing.assert_allclose(found["marked_share"], marked_shares(logits, found["thresholds"]), atol=1e-3)
    page = (work / "out" / f"{NAME}.html").read_text()
    (note,) = record["notes"]
    assert note in caplog.text
    assert f"threshold {found['threshold']:g} chosen" in page
    rate = 0.9 if found["threshold"] > found["thresholds"][0] else 0.01
    again = etsam("threshold", f"out/{NAME}_logits.mrc", "--at", "auto", "--false-rate", str(rate), "--no-preview")
    assert again.status == 0, again.stderr
    chosen = ThresholdChoice.from_facts(found, rate).threshold
    mask = mrcfile.read(work / "out" / f"{NAME}_at_{chosen:g}_mask.mrc")
    np.testing.assert_array_equal(mask > 0, logits > chosen)


def test_in_python_it_is_the_same_threshold():
    model = package.load(["net=tiny_test", "weights=random", "weights.seed=1", "threshold=auto"], device="cpu")
    fixed = package.load(["net=tiny_test", "weights=random", "weights.seed=1"], device="cpu")
    ours, plain = model.segment(grey()), fixed.segment(grey())
    np.testing.assert_array_equal(ours.logits, plain.logits)
    assert ours.threshold in [round(plain.threshold + 0.1 * step, 6) for step in range(-25, 11)]
    np.testing.assert_array_equal(ours.mask, ours.logits > ours.threshold)


@pytest.mark.parametrize(("setting", "token"), [("threshold=0.3", "threshold"), ("false_rate=1.5", "false_rate")])
def test_what_is_no_threshold_is_refused(refused, tomogram, setting, token):
    assert token in refused("tomo.mrc", setting)


def test_a_false_rate_without_auto_is_refused_in_the_words_that_were_typed(etsam, refused, tomogram, work):
    assert "--threshold auto" in refused("tomo.mrc", "--false-rate", "0.1")
    write_mrc(work / "other.mrc", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    outcome = etsam("threshold", "other.mrc", "--at", "0", "--false-rate", "0.1")
    assert (outcome.status, "--at auto" in outcome.message) == (1, True)
    assert not list(work.glob("*_mask.mrc"))


def test_stored_logits_of_another_run_do_not_say_what_auto_needs(etsam, work):
    write_mrc(work / "other.mrc", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    outcome = etsam("threshold", "other.mrc", "--at", "auto")
    assert outcome.status == 1
    assert "--threshold auto" in outcome.message
