"""Predictions of any tool: which file is whose, and whether it holds a mask, logits or probabilities."""

import json

import numpy as np
import pytest
from conftest import CountedSlices, write_mrc

from etsam.data.manifest import Sample
from etsam.errors import InputError
from etsam.evaluation.metrics.scores import _mask_and_logits
from etsam.evaluation.stored import StoredPrediction, StoredValues, find_predictions


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
        assert "TS_1.mrc" in result
    elif found == "2 files":
        assert "TS_1-y.mrc, TS_1_x.mrc" in result
    else:
        assert str(result) == f"p/{found}"


def test_a_pattern_picks_the_files_that_count(work):
    (work / "p").mkdir()
    for name in ("TS_1_semantic", "TS_1_instance", "TS_2_instance"):
        (work / f"p/{name}.mrc").touch()
    samples = [sample("set", run, work / f"{run}.mrc") for run in ("TS_1", "TS_2")]
    assert "'p/*_instance.mrc'" in find_predictions("p", samples)["set/TS_1"]
    found = find_predictions("p/*_semantic.mrc", samples)
    assert str(found["set/TS_1"]) == "p/TS_1_semantic.mrc"
    assert "*_semantic.mrc" in found["set/TS_2"]


def test_a_copy_of_the_tomogram_is_no_prediction_though_it_bears_its_name(work):
    grey = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    write_mrc("one.mrc", grey)
    (work / "p").mkdir()
    write_mrc("p/one.mrc", grey)
    samples = [sample("set", "one", work / "one.mrc")]
    assert "copy" in find_predictions("p", samples)["set/one"]
    write_mrc("p/one_segmented.mrc", (grey > 1).astype(np.int8))
    assert str(find_predictions("p", samples)["set/one"]) == "p/one_segmented.mrc"
    write_mrc("p/one.mrc", (grey > 0).astype(np.int8))
    assert str(find_predictions("p", samples)["set/one"]) == "p/one.mrc"


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
    assert isinstance(found["set/two"], str)


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
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_values_mean_is_told_by_their_range_wherever_they_lie(work, values, dtype, kind, at):
    volume = np.zeros((3, 4, 5), dtype)
    volume[at, 0, : len(values)] = values
    kinds = []

    def read(scored):
        of = scored.mask if scored.logits is None else scored.logits
        planes = [of[z] for z in range(3)]
        kinds.append(of.kind)
        return planes

    planes = StoredPrediction(write_mrc("p.mrc", volume)).score(read)
    assert kinds == [kind]
    assert all((plane == planes[at][1, 0]).all() for z, plane in enumerate(planes) if z != at)


def test_a_prediction_is_read_once_and_the_slice_in_the_middle_twice():
    volume = np.zeros((5, 4, 6), np.float32)
    volume[2, 0, :2] = -1.5, 2.5
    slices = CountedSlices(volume)
    values = StoredValues(slices, "x")
    assert [values[z].dtype for z in range(5)] == [np.float32] * 5
    assert slices.read == [2, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("values", [[0.5, 1.5], [np.nan, 1], [np.inf, 0]])
def test_values_that_mean_nothing_are_refused(work, values):
    volume = np.ones((2, 3, 4), np.float32)
    volume[1, 0, :2] = values
    stored = StoredPrediction(write_mrc("p.mrc", volume))
    with pytest.raises(InputError, match=r"p\.mrc"):
        stored.score(lambda scored: [(scored.mask or scored.logits)[z] for z in range(2)])


@pytest.mark.parametrize(
    ("values", "dtype", "threshold", "membrane"),
    [
        ([0, 1, 2], np.int8, None, [0, 1, 1]),
        ([0, -1, 0], np.int8, None, [0, 1, 0]),
        ([-0.3, -0.25, -0.2], np.float32, -0.25, [0, 0, 1]),
        ([0.4, 0.5, 0.6], np.float32, None, [0, 0, 1]),
        ([0.2, 0.3, 0.4], np.float32, 0.3, [0, 0, 1]),
        ([0.2, 0.3, 0.4], np.float32, 0.2, [0, 1, 1]),
    ],
)
def test_a_prediction_is_opened_as_what_it_is(work, values, dtype, threshold, membrane):
    volume = np.zeros((2, 3, 4), dtype)
    volume[0, 0, :3] = values
    stored = StoredPrediction(write_mrc("p.mrc", volume), threshold)
    plane = stored.score(lambda scored: _mask_and_logits(scored, 0)[0])
    np.testing.assert_array_equal(plane[0, :3], np.array(membrane, bool))


@pytest.mark.parametrize(("scale", "good"), [(1, True), (255, False)])
def test_whole_numbers_that_change_from_voxel_to_voxel_are_no_mask(work, scale, good):
    ramp = np.clip(np.arange(8) - 2, 0, 4)[None, None].repeat(5, axis=1).repeat(3, axis=0) / 4
    volume = np.rint(np.where(ramp > 0, 1, 0) * 3 if good else ramp * scale).astype(np.uint8)
    stored = StoredPrediction(write_mrc("p.mrc", volume))
    if good:
        assert stored.score(lambda scored: sum(int(_mask_and_logits(scored, z)[0].sum()) for z in range(3))) == 75
        return
    with pytest.raises(InputError, match="255"):
        stored.score(lambda scored: [_mask_and_logits(scored, z) for z in range(3)])


@pytest.mark.parametrize("threshold", [-0.25, 1, 2])
def test_a_threshold_that_is_no_probability_is_refused_for_probabilities(work, threshold):
    volume = np.zeros((2, 3, 4), np.float32)
    volume[1, 0, 0] = 0.75
    with pytest.raises(InputError, match="prediction_threshold"):
        StoredPrediction(write_mrc("p.mrc", volume), threshold).score(
            lambda scored: [_mask_and_logits(scored, z) for z in (0, 1)]
        )


def test_a_threshold_for_masks_is_told_to_change_nothing(work, caplog):
    stored = StoredPrediction(write_mrc("p.mrc", np.eye(4, dtype=np.int8)[None, :3].repeat(2, axis=0)), 0.5)
    plane = stored.score(lambda scored: _mask_and_logits(scored, 0)[0])
    np.testing.assert_array_equal(plane, np.eye(4, dtype=bool)[:3])
    assert "prediction_threshold" in caplog.text


def test_logits_are_cut_where_their_record_says_unless_a_threshold_is_set(work):
    volume = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    logits = write_mrc("a_etsam_predicted_logits.mrc", volume)

    def threshold(given=None):
        return StoredPrediction(logits, given).score(
            lambda scored: [_mask_and_logits(scored, z) and scored.threshold for z in (0, 1)][-1]
        )

    assert threshold() == -0.25
    record = work / "a_etsam_predicted_record.json"
    record.write_text(json.dumps({"settings": {"stage2": {"threshold": 0.5}}}))
    assert threshold() == 0.5
    assert threshold(0.125) == 0.125
    record.write_text("{}")
    with pytest.raises(InputError, match="prediction_threshold"):
        threshold()
