"""What is there already: kept, replaced when asked for, completed by `--resume`."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import grey, write_mrc

from etsam.errors import InputError
from etsam.prediction import writer
from etsam.prediction.writer import PredictionWriter
from etsam.volume.location import checksum_of

FAST = "write_preview=false"
MASK, RECORD = "tomo_etsam_predicted_mask.mrc", "tomo_etsam_predicted_record.json"
LOGITS = "tomo_etsam_predicted_logits.mrc"


@pytest.fixture
def states(work):
    """Content and time of change of each output: equal as long as nobody touched them."""
    return lambda: {p.name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in (work / "out").iterdir()}


@pytest.fixture
def first(predict, tomogram):
    """Outputs of a first run."""
    outcome = predict("tomo.mrc", FAST)
    assert outcome.status == 0, outcome.stderr
    return tomogram


def test_a_second_run_fails_and_touches_nothing(predict, first, states):
    before = states()
    outcome = predict("tomo.mrc", FAST)
    assert outcome.status == 1
    assert f"out/{MASK} exists already (and 1 more); add --overwrite to replace it, --resume" in outcome.message
    assert states() == before


def test_overwrite_replaces(predict, first, states):
    before = states()
    assert predict("tomo.mrc", FAST, "--overwrite", "--logit-threshold", "-100").status == 0
    assert all(states()[name] != before[name] for name in (MASK, RECORD))


def test_resume_leaves_what_is_complete(predict, first, states):
    before = states()
    assert predict("tomo.mrc", FAST, "--resume").status == 0
    assert states() == before


def test_resume_makes_anew_what_has_lost_its_mask(predict, first, states, work):
    before = states()
    (work / "out" / MASK).unlink()
    assert predict("tomo.mrc", FAST, "--resume").status == 0
    assert states().keys() == before.keys()
    assert states()[MASK][0][1024:] == before[MASK][0][1024:]  # but for the date in the header


def test_resume_does_not_touch_a_mask_without_a_record(predict, first, states, work):
    (work / "out" / RECORD).unlink()
    before = states()
    outcome = predict("tomo.mrc", FAST, "--resume")
    assert outcome.status == 1
    assert f"out/{MASK} is there without the record of a complete run" in outcome.message
    assert states() == before


def test_resume_notices_that_the_input_has_changed(predict, first, states):
    write_mrc("tomo.mrc", grey(seed=5))
    before = states()
    outcome = predict("tomo.mrc", FAST, "--resume")
    assert outcome.status == 1
    assert f"out/{MASK} was made from tomo.mrc, which has changed since" in outcome.message
    assert states() == before


def test_resume_notices_a_change_in_mid_file(predict, first, states):
    with open("tomo.mrc", "r+b") as file:
        file.seek(os.path.getsize("tomo.mrc") // 2)
        file.write(b"\x7f")
    before = states()
    assert "tomo.mrc, which has changed" in predict("tomo.mrc", FAST, "--resume").message
    assert states() == before


@pytest.mark.parametrize("known", [True, False])
def test_resume_takes_records_that_hold_a_checksum_of_the_whole_file(predict, first, states, work, known):
    record = json.loads((work / "out" / RECORD).read_text())
    del record["input"]["fingerprint"]
    record["input"] |= {"sha256": checksum_of(first)[0] if known else "0", "sha256_of": "file"}
    (work / "out" / RECORD).write_text(json.dumps(record))
    before = states()
    assert predict("tomo.mrc", FAST, "--resume").status == (0 if known else 1)
    assert states() == before


@pytest.mark.parametrize("more", [[], ["--store-logits"]])
def test_resume_refuses_another_tomogram_of_the_same_name(predict, first, states, work, more):
    before = states()
    (work / "other").mkdir()
    write_mrc(work / "other" / "tomo.mrc", grey(seed=5))
    outcome = predict("other/tomo.mrc", FAST, "--resume", *more)
    assert outcome.status == 1
    assert f"out/{MASK} was made from {work / 'tomo.mrc'}, not other/tomo.mrc" in outcome.message
    assert states() == before


def test_resume_looks_at_each_input_once(predict, first, monkeypatch):
    write_mrc("second.mrc")
    assert predict("tomo.mrc", "second.mrc", FAST, "--resume").status == 0
    looked, real = [], writer.fingerprint_of
    monkeypatch.setattr(writer, "fingerprint_of", lambda path: looked.append(path.name) or real(path))
    assert predict("tomo.mrc", "second.mrc", FAST, "--resume").status == 0
    assert looked == ["tomo.mrc", "second.mrc"]


def test_resume_completes_a_batch(predict, first, states):
    write_mrc("second.mrc")
    before = states()
    assert predict("tomo.mrc", "second.mrc", FAST, "--resume").status == 0
    after = states()
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before} == {
        "second_etsam_predicted_mask.mrc",
        "second_etsam_predicted_record.json",
    }


def test_resume_adds_an_output_that_is_wanted_now(predict, first, states):
    assert predict("tomo.mrc", FAST, "--resume", "--store-logits").status == 0
    assert set(states()) == {MASK, RECORD, LOGITS}


def test_resume_knows_a_setting_by_its_name_of_version_0_1(predict, first, states):
    path = Path("out", RECORD)
    path.write_text(path.read_text().replace('"resegment_conditioning"', '"resegment_prompted"'))
    before = states()
    assert predict("tomo.mrc", FAST, "--resume").status == 0
    assert states() == before


@pytest.mark.parametrize("more", [[], ["--store-logits"]])
def test_resume_refuses_what_was_made_with_other_settings(predict, first, states, more):
    before = states()
    outcome = predict("tomo.mrc", FAST, "--resume", "--logit-threshold", "1", *more)
    assert outcome.status == 1
    assert f"out/{MASK} was made with other settings (stage2); choose another --output-dir, or add" in outcome.message
    assert states() == before


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 3}', ""])
def test_resume_refuses_a_record_that_is_none(predict, first, states, work, content):
    (work / "out" / RECORD).write_text(content)
    before = states()
    outcome = predict("tomo.mrc", FAST, "--resume")
    assert outcome.status == 1
    assert f"out/{RECORD} is no record of a run" in outcome.message
    assert "--overwrite" in outcome.message
    assert states() == before


def test_outputs_are_not_taken_for_inputs_of_their_folder(predict, first, work):
    (work / "tomo.mrc").rename(work / "out" / "tomo.mrc")
    assert predict("out", FAST, "--resume").status == 0
    assert json.loads((work / "out" / RECORD).read_text())["input"]["path"].endswith("/tomo.mrc")


def test_a_run_that_is_stopped_while_it_replaces_leaves_what_was_complete(predict, first, states, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    before = states()
    with monkeypatch.context() as patch:
        patch.setattr("etsam.prediction.writer.InstanceLabels", stop)
        assert predict("tomo.mrc", FAST, "--overwrite", "write_instances=true", "stage2.threshold=-100").status == 130
    assert states() == before
    assert predict("tomo.mrc", FAST, "--resume").status == 0
    assert states() == before


def test_what_an_earlier_mask_had_beside_it_goes_with_it(predict, first, work):
    assert predict("tomo.mrc", FAST, "--overwrite", "--store-logits", "--post-process").status == 0
    assert predict("tomo.mrc", FAST, "--overwrite", "stage2.threshold=-100").status == 0
    assert not list((work / "out").glob("*_logits.mrc")) + list((work / "out").glob("*_post_processed_mask.mrc"))


def test_outputs_of_another_format_go_with_their_mask(predict, tomogram):
    pytest.importorskip("zarr")
    assert predict("tomo.mrc", FAST, "--store-logits", "output_format=zarr").status == 0
    assert predict("tomo.mrc", FAST, "--resume", "output_format=mrc.gz").status == 0
    assert predict("tomo.mrc", FAST, "--overwrite").files == [MASK, RECORD]


def test_resume_does_not_touch_a_mask_of_another_format_without_a_record(predict, tomogram, states, work):
    (work / "out").mkdir()
    (work / "out" / f"{MASK}.gz").write_bytes(b"somebody's")
    before = states()
    assert f"out/{MASK}.gz is there without the record" in predict("tomo.mrc", FAST, "--resume").message
    assert states() == before


def test_resume_refuses_another_voxel_size(predict, first):
    assert "(voxel_size)" in predict("tomo.mrc", FAST, "--resume", "voxel_size=12.5").message


def test_a_setting_that_does_not_fit_one_tomogram_leaves_the_others(predict, work):
    values = np.random.default_rng(0).normal(0, 1, (13, 30, 31)).astype(np.float32)
    write_mrc("small.mrc", values[:9])
    write_mrc("tomo.mrc", values)
    outcome = predict("small.mrc", "tomo.mrc", FAST, "start_slice=11")
    assert outcome.status == 1
    assert "small.mrc" in outcome.message
    assert [name for name in outcome.files if name.endswith("_mask.mrc")] == ["tomo_etsam_predicted_mask.mrc"]


def test_resume_refuses_other_views(predict, first):
    assert "made with other settings (views)" in predict("tomo.mrc", FAST, "--resume", "views=2").message


def test_a_tomogram_that_cannot_be_written_does_not_stop_the_others(predict, first, work, monkeypatch, caplog):
    write_mrc("bad.mrc")
    write_mrc("later.mrc")
    real = PredictionWriter.write

    def gone(self, prediction):
        if prediction.volume.path.name == "bad.mrc":
            raise InputError("it was moved meanwhile")
        return real(self, prediction)

    monkeypatch.setattr(PredictionWriter, "write", gone)
    outcome = predict("bad.mrc", "later.mrc", FAST)
    assert outcome.status == 1
    assert "bad.mrc" in outcome.message
    assert "it was moved meanwhile" in caplog.text
    assert outcome.files == [
        f"{name}_etsam_predicted_{what}" for name in ("later", "tomo") for what in ("mask.mrc", "record.json")
    ]


def test_a_picture_that_cannot_be_drawn_leaves_what_was_complete(predict, first, states, monkeypatch):
    monkeypatch.setattr("etsam.prediction.writer.preview", lambda *arguments: 1 / 0)
    before = states()
    assert predict("tomo.mrc", "--overwrite", "--logit-threshold", "-100").status == 1
    assert states() == before


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (ZeroDivisionError, 1)])
@pytest.mark.parametrize("name", ["tomo_etsam_predicted_preview.png", LOGITS, MASK, RECORD])
def test_what_has_begun_to_replace_is_removed_with_what_it_replaces(predict, first, monkeypatch, name, error, status):
    def stop(part, target):
        real(part, target)
        if target.name == name:
            raise error

    real = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        outcome = predict("tomo.mrc", "--overwrite", "--store-logits")
    assert (outcome.status, outcome.files) == (status, [])
    assert "goes on" not in outcome.stderr  # with --overwrite and --resume nothing does
    assert predict("tomo.mrc", FAST, "--resume").status == 0


def test_a_run_that_is_stopped_once_the_record_is_there_has_made_all_of_it(predict, first, states, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(PredictionWriter, "_tell", stop)
    assert predict("tomo.mrc", FAST, "--overwrite").status == 130
    assert set(states()) == {MASK, RECORD}
