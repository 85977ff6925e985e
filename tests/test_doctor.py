"""`etsam doctor` and the demonstration tomogram."""

import json
import shutil

import numpy as np
import pytest

from etsam import _version
from etsam.cli import demo, doctor
from etsam.download import is_offline
from etsam.volume import read_volume


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A copy of the stored numbers, which the doctor uses."""
    copy = tmp_path / "self_test.json"
    shutil.copyfile(doctor.STORED_RESULT, copy)
    monkeypatch.setattr(doctor, "STORED_RESULT", copy)
    monkeypatch.setattr(doctor, "_devices", lambda: ["cpu"])
    return copy


def test_the_volume_of_the_self_test_is_the_same_everywhere():
    volume = doctor.tiny_volume()
    assert volume.shape == (14, 72, 88)
    assert volume.sum(dtype=np.float64) == pytest.approx(-12785.986, abs=0.01)


def test_the_doctor_finds_that_everything_works(etsam, stored):
    outcome = etsam("doctor")
    assert outcome.status == 0, outcome.stderr
    assert "everything works" in outcome.stdout
    assert _version.__version__ in outcome.stdout.splitlines()[0]


def test_other_numbers_are_a_failure_that_names_the_device(etsam, stored):
    numbers = json.loads(stored.read_text())
    numbers["logits"] = [value + 1 for value in numbers["logits"]]
    stored.write_text(json.dumps(numbers))
    outcome = etsam("doctor")
    assert outcome.status == 1
    assert "cpu" in outcome.message
    assert "everything works" not in outcome.stdout


def test_an_error_of_the_segmentation_is_an_outcome(stored, monkeypatch):
    monkeypatch.setattr(doctor, "segment_tiny_volume", lambda device: 1 / 0)
    verdict = doctor.check_device("cpu")
    assert not verdict.passed
    assert "ZeroDivisionError" in verdict.text


def test_the_stored_numbers_are_those_of_these_weights(stored):
    before = json.loads(stored.read_text())
    doctor.store_result()
    after = json.loads(stored.read_text())
    assert after["membrane_fraction"] == pytest.approx(before["membrane_fraction"], abs=0.002)
    assert after["logits"] == pytest.approx(before["logits"], abs=0.05)


def test_without_its_test_the_doctor_segments_nothing(etsam, stored, monkeypatch):
    monkeypatch.setattr(doctor, "segment_tiny_volume", lambda device: pytest.fail("segmented"))
    outcome = etsam("doctor", "--no-test")
    assert outcome.status == 0
    assert {"packages", "weights"} <= {line.split()[0] for line in outcome.stdout.splitlines()}


@pytest.mark.parametrize(("value", "allowed"), [("", True), ("false", True), ("no", True), ("0", True), ("1", False)])
def test_the_doctor_says_what_downloads_do(value, allowed, monkeypatch):
    monkeypatch.setenv("ETSAM_OFFLINE", value)
    assert is_offline() is not allowed
    assert ("requests allowed" in doctor.facts()["downloads"]) is allowed


def test_the_demonstration_tomogram_is_copied_and_never_over_another_file(etsam, work):
    assert etsam("data", "demo", "--output-dir", "d").status == 0
    assert {path.name for path in (work / "d").iterdir()} == set(demo.FILES)
    assert read_volume("d/hiv_vlps.mrc").shape == (101, 135, 135)
    again = etsam("data", "demo", "--output-dir", "d")
    assert again.status == 1
    assert "hiv_vlps.mrc" in again.message
