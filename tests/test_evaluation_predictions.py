"""Predictions of any tool: which file is whose, and whether it holds a mask, logits or probabilities."""

import json

import numpy as np
import pytest
from conftest import write_mrc

from etsam.data.manifest import Sample
from etsam.errors import InputError
from etsam.evaluation.stored import find_predictions, kind_of_values, open_prediction
from etsam.volume import Volume


def sample(dataset, run, tomogram):
    return Sample(dataset, run, "test", tomogram, tomogram)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["TS_1.mrc"], "TS_1.mrc"),
        (["TS_1_b.mrc", "TS_1.mrc.gz"], "TS_1.mrc.gz"),
        (["TS_1_b_segmented.mrc"], None),
        (["TS_10.mrc"], None),
        (["run1.rec"], "run1.rec"),
        (["set_run1_mask.map"], "set_run1_mask.map"),
        (["TS_1_x.mrc", "TS_1-y.mrc"], "2 files"),
        (["TS_1_etsam_predicted_mask.mrc", "TS_1_etsam_predicted_logits.mrc"], "TS_1_etsam_predicted_logits.mrc"),
        (["TS_1_etsam_predicted_mask.mrc", "TS_1_etsam_predicted_instances.mrc"], "TS_1_etsam_predicted_mask.mrc"),
        (["TS_1.txt"], None),
        (["set/TS_1.mrc", "TS_1_other.mrc"], "set/TS_1.mrc"),
    ],
)
def test_predictions_are_found_by_the_names_of_tomograms(work, files, found):
    for file in files:
        (work / "p" / file).parent.mkdir(parents=True, exist_ok=True)
        (work / "p" / file).touch()
    samples = [sample("set", "run1", work / "TS_1.mrc"), sample("set", "run2", work / "TS_1_b.rec")]
    result = find_predictions("p", samples)["set/run1"]
    if found is None:
        assert result.startswith("no prediction in p; expected a file called TS_1.mrc or run1.mrc")
    elif found == "2 files":
        assert result == "2 files in p can be the prediction: TS_1-y.mrc, TS_1_x.mrc"
    else:
        assert str(result) == f"p/{found}"


def test_a_name_that_two_datasets_share_is_clear_only_in_the_folder_of_one(work):
    samples = [sample("x", "1", work / "tomo.mrc"), sample("y", "2", work / "tomo.mrc")]
    (work / "p/x").mkdir(parents=True)
    (work / "p/x/tomo.mrc").touch()
    (work / "p/tomo.mrc").touch()
    found = find_predictions("p", samples)
    assert str(found["x/1"]) == "p/x/tomo.mrc"
    assert isinstance(found["y/2"], str)


def test_a_file_that_can_be_of_two_tomograms_of_a_dataset_is_of_neither(work):
    samples = [sample("ds", run, work / run / "tomo.mrc") for run in ("a", "b")]
    (work / "p/ds").mkdir(parents=True)
    (work / "p/ds/tomo_logits.mrc").touch()
    assert all(isinstance(found, str) for found in find_predictions("p", samples).values())
    (work / "p/ds/b_logits.mrc").touch()
    found = find_predictions("p", samples)
    assert isinstance(found["ds/a"], str)
    assert str(found["ds/b"]) == "p/ds/b_logits.mrc"


def test_tomograms_and_masks_of_the_truth_are_no_predictions(work):
    samples = [Sample("set", run, "test", work / f"p/{run}.mrc", work / f"p/{run}_mask.mrc") for run in ("one", "two")]
    (work / "p").mkdir()
    for name in ("one", "one_mask", "two", "two_mask", "one_etsam_predicted_mask"):
        (work / f"p/{name}.mrc").touch()
    (work / "link").symlink_to(work / "p")
    found = find_predictions("link", samples)
    assert str(found["set/one"]) == "link/one_etsam_predicted_mask.mrc"
    assert found["set/two"].startswith("no prediction in link")


@pytest.mark.parametrize(
    ("values", "dtype", "kind"),
    [
        ([0, 1], np.int8, "mask"),
        ([0, 255], np.uint8, "mask"),
        ([0, -1], np.int8, "mask"),
        ([0, 1, 17], np.uint16, "mask"),
        ([0, 0], np.float32, "mask"),
        ([0, 1], np.float32, "mask"),
        ([-3, 4], np.int16, "logits"),
        ([-3, 4], np.float32, "logits"),
        ([-0.5, 0.25], np.float32, "logits"),
        ([0, 0.25], np.float32, "probabilities"),
    ],
)
def test_what_values_mean_is_told_by_their_range(values, dtype, kind):
    volume = np.zeros((2, 3, 4), dtype)
    volume[1, 0, : len(values)] = values
    assert kind_of_values(Volume.from_array(volume), "x") == kind


@pytest.mark.parametrize("values", [[0.5, 1.5], [np.nan, 1], [np.inf, 0]])
def test_values_that_mean_nothing_are_refused(values):
    volume = np.ones((2, 3, 4), np.float32)
    volume[1, 0, :2] = values
    with pytest.raises(InputError, match="x: the prediction"):
        kind_of_values(Volume.from_array(volume), "x")


@pytest.mark.parametrize(
    ("values", "dtype", "membrane"),
    [
        ([0, 1, 2], np.int8, [0, 1, 1]),
        ([0, -1, 0], np.int8, [0, 1, 0]),
        ([-0.3, -0.25, -0.2], np.float32, [0, 0, 1]),
        ([0.4, 0.5, 0.6], np.float32, [0, 0, 1]),
    ],
)
def test_a_prediction_is_opened_as_what_it_is(work, values, dtype, membrane):
    volume = np.zeros((2, 3, 4), dtype)
    volume[0, 0, :3] = values
    scored = open_prediction(write_mrc("p.mrc", volume), -0.25)
    plane = scored.mask[0] if scored.logits is None else scored.logits[0] > scored.threshold
    np.testing.assert_array_equal(plane[0, :3], np.array(membrane, bool))


def test_logits_are_cut_where_their_record_says_unless_a_threshold_is_set(work):
    volume = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    logits = write_mrc("a_etsam_predicted_logits.mrc", volume)
    assert open_prediction(logits).threshold == -0.25
    record = work / "a_etsam_predicted_record.json"
    record.write_text(json.dumps({"settings": {"stage2": {"threshold": 0.5}}}))
    assert open_prediction(logits).threshold == 0.5
    assert open_prediction(logits, 0.125).threshold == 0.125
    record.write_text("{}")
    with pytest.raises(
        InputError, match=r"a_etsam_predicted_record.json, beside the logits, .* set prediction_threshold"
    ):
        open_prediction(logits)
