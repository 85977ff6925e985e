"""`etsam threshold`: stored logits -> masks of other thresholds."""

import json
import os
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from conftest import ORIGIN_ZYX, SHAPE, START_ZYX, VOXEL_SIZE_ZYX, grey, write_mrc

from etsam.errors import ConfigError
from etsam.prediction.threshold import threshold_logits
from etsam.screen import in_their_words
from etsam.volume import read_volume

NAME = "tomo_etsam_predicted"
LOGITS = f"out/{NAME}_logits.mrc"


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def stored(run_once, work, predict):
    """A run that stored logits, in the current folder; predicted once, copied for each test."""
    if not (run_once / "out").exists():
        write_mrc(work / "tomo.mrc")
        outcome = predict("tomo.mrc", "--store-logits", "write_preview=false", "weights.seed=1")
        assert outcome.status == 0, outcome.stderr
        shutil.copytree(work, run_once, dirs_exist_ok=True)
    shutil.copytree(run_once, work, dirs_exist_ok=True, copy_function=shutil.copy2)
    # the copy is another file; the record names the one of the first test
    record = work / "out" / f"{NAME}_record.json"
    known = json.loads(record.read_text())
    known["input"]["path"] = str(work / "tomo.mrc")
    record.write_text(json.dumps(known))
    return mrcfile.read(work / LOGITS)


@pytest.fixture
def levels(stored):
    """Two thresholds with some membrane above each."""
    return [float(f"{np.percentile(stored, percent):.3g}") for percent in (30, 60)]


def test_several_masks_are_made_at_once_each_above_its_threshold(etsam, stored, levels, work):
    outcome = etsam("threshold", LOGITS, "--at", *levels, "--no-preview")
    assert outcome.status == 0, outcome.stderr
    for level in levels:
        path = work / "out" / f"{NAME}_at_{level:g}_mask.mrc"
        mask = read_volume(path)
        assert 0 < mask.read().mean() < 1
        np.testing.assert_array_equal(mask.read(), stored > level)
        placed = (mask.voxel_size_angstrom, mask.origin_angstrom, mask.start)
        assert placed == (VOXEL_SIZE_ZYX, ORIGIN_ZYX, START_ZYX)
        assert str(path.name) in outcome.stdout


def test_mask_picture_and_record_are_those_of_a_prediction_with_that_threshold(etsam, predict, stored, levels, work):
    steps = ("--post-process", "--post-process-min-slices", "2")
    assert etsam("threshold", LOGITS, "--at", levels[0], *steps).status == 0
    shutil.move(work / "out", work / "first")
    again = predict(
        "tomo.mrc",
        "weights.seed=1",
        "--logit-threshold",
        str(levels[0]),
        "write_chimerax=true",
        "write_page=true",
        *steps,
    )
    assert again.status == 0, again.stderr
    made = [work / "first" / f"{NAME}_at_{levels[0]:g}", work / "out" / NAME]
    for ending in ("mask", "post_processed_mask"):
        ours, theirs = (mrcfile.read(f"{name}_{ending}.mrc") for name in made)
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (Path(f"{name}_preview.png").read_bytes() for name in made)
    assert ours == theirs
    ours, theirs = (Path(f"{name}.cxc").read_text().replace(name.name, "X") for name in made)
    assert ours == theirs
    assert f"{made[0].name}_post_processed_mask" in Path(f"{made[0]}.html").read_text()
    ours, theirs = (json.loads(Path(f"{name}_record.json").read_text()) for name in made)
    assert ours["settings"].pop("made_from")["logits"].endswith(f"{NAME}_logits.mrc")
    assert ours["settings"] == theirs["settings"]
    assert ours["input"] == theirs["input"]
    assert ours["membrane_share"] == theirs["membrane_share"]


def test_what_lies_beside_a_mask_can_be_left_out_and_then_the_tomogram_is_not_read(etsam, stored, work, caplog):
    (work / "tomo.mrc").unlink()
    outcome = etsam("threshold", LOGITS, "--at", "0", "--no-preview", "--no-page", "--output-dir", "new")
    assert outcome.status == 0
    endings = {name.removeprefix(f"{NAME}_at_0") for name in os.listdir(work / "new")}
    assert endings == {".cxc", "_mask.mrc", "_record.json"}


def test_advice_about_the_threshold_is_in_the_flag_of_the_command(etsam, stored, caplog):
    assert etsam("threshold", LOGITS, "--at", "9", "--no-preview").status == 0
    assert "--at 8" in in_their_words(caplog.text)


def test_the_picture_shows_the_logits_where_the_tomogram_is_another(etsam, stored, work, caplog):
    write_mrc(work / "tomo.mrc", grey(seed=5))
    outcome = etsam("threshold", LOGITS, "--at", "-1e-3")
    assert outcome.status == 0, outcome.stderr
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "tomo.mrc" in warning
    assert (work / "out" / f"{NAME}_at_-0.001_preview.png").exists()


def test_logits_without_record_and_by_any_name_will_do(etsam, work):
    logits = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    write_mrc(work / "other.mrc", logits)
    assert etsam("threshold", "other.mrc", "--at", "0.5", "--output-dir", "new", "--no-preview", "--page").status == 0
    assert "0.5" in (work / "new" / "other_etsam_predicted_at_0.5.html").read_text()
    np.testing.assert_array_equal(mrcfile.read(work / "new" / "other_etsam_predicted_at_0.5_mask.mrc"), logits > 0.5)


@pytest.mark.parametrize(
    ("arguments", "token"),
    [
        ([LOGITS, "--at", "0", "0.0"], "--at"),
        ([LOGITS, "--at", "nan"], "--at"),
        ([f"out/{NAME}_mask.mrc", "--at", "0"], "int8"),
        (["out/nothing.mrc", "--at", "0"], "nothing.mrc"),
        ([LOGITS, "--at", "0", "--post-process-min-slices", "3"], "--post-process"),
        ([LOGITS], "--at"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(etsam, stored, work, arguments, token):
    before = sorted(work.rglob("*"))
    outcome = etsam("threshold", *arguments)
    assert outcome.status == 1
    assert token in outcome.message
    assert sorted(work.rglob("*")) == before


def test_a_mask_that_exists_stays_unless_it_may_be_replaced(etsam, stored, work):
    assert etsam("threshold", LOGITS, "--at", "1", "--no-preview").status == 0
    mask = work / "out" / f"{NAME}_at_1_mask.mrc"
    mask.write_bytes(b"kept")
    refused = etsam("threshold", LOGITS, "--at", "2", "1", "--no-preview")
    assert refused.status == 1
    assert mask.name in refused.message
    assert mask.read_bytes() == b"kept"
    assert not (work / "out" / f"{NAME}_at_2_mask.mrc").exists()
    assert etsam("threshold", LOGITS, "--at", "1", "--no-preview", "--overwrite").status == 0
    np.testing.assert_array_equal(mrcfile.read(mask), stored > 1)


def test_no_threshold_is_refused(work):
    with pytest.raises(ConfigError):
        threshold_logits(work / "x.mrc", [])
