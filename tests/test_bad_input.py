"""Bad tomograms, bad outputs, interruptions: one line, exit status 1, no file left."""

import errno
import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import grey, write_mrc

from etsam.app import explain
from etsam.errors import InputError
from etsam.evaluation.run import raise_failures
from etsam.volume import atomic, mrc_writer

PROGRAM = Path(__file__).parent.parent / "predict.py"


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


def with_nan(name):
    data = grey()
    data[2, 3, 4:10], data[1, 1, 1] = np.nan, np.inf
    return write_mrc(name, data)


# what is refused: name -> (how the file is made, what the message has to say)
FILES = {
    "missing.mrc": (lambda path: None, ["missing.mrc", "no such file", "check the path"]),
    "2d.mrc": (lambda path: write_mrc(path, grey()[0]), ["2D image", "at least two slices"]),
    "complex.mrc": (
        lambda path: write_mrc(path, grey().astype(np.complex64)),
        ["mode 4", "Fourier transform", "take the real-space tomogram"],
    ),
    "truncated.mrc": (lambda path: cut(write_mrc(path), 54684), ["54784 bytes expected", "54684 found", "again"]),
    "header_only.mrc": (lambda path: cut(write_mrc(path), 500), ["not an MRC file", "500 bytes"]),
    "zero.mrc": (lambda path: path.touch(), ["not an MRC file", "0 bytes"]),
    "notes.mrc": (lambda path: path.write_text("no tomogram\n" * 200), ["not an MRC file"]),
    "image.tif": (lambda path: path.write_bytes(b"II*\0" * 500), ["suffix .tif", ".mrc", "convert it"]),
    "store.zarr": (lambda path: path.mkdir(), ["no Zarr metadata in it", "is the copy complete?"]),
    "nan.mrc": (with_nan, ["7 of 13440 voxels are NaN or infinite", "nonfinite=mean"]),
    "only_nan.mrc": (lambda path: write_mrc(path, grey() * np.nan), ["none of the 13440 voxels"]),
    "constant.mrc": (lambda path: write_mrc(path, grey() * 0 + 3), ["every voxel has the value 3", "check"]),
    "folder": (lambda path: path.mkdir(), ["the folder folder holds no tomogram", ".mrc"]),
    "*.rec": (lambda path: None, ["no file matches the pattern *.rec", "check"]),
    "list.txt": (
        lambda path: path.write_text("tomo.mrc\nb.mrc\n"),
        ["list.txt", "line 2", "b.mrc", "correct the list"],
    ),
    "empty.txt": (lambda path: path.write_text("# nothing\n\n"), ["names no tomogram", "one path a line"]),
    "latin.txt": (lambda path: path.write_bytes(b"\xe9.mrc\n"), ["not text (UTF-8)"]),
}


@pytest.mark.parametrize("name", FILES)
def test_what_cannot_be_segmented_is_refused_with_a_reason(refused, tomogram, name):
    make, parts = FILES[name]
    make(tomogram.parent / name)
    message = refused(name)
    assert all(part in message for part in parts), message


def test_a_list_may_begin_with_the_byte_order_mark_of_windows(predict, tomogram):
    (tomogram.parent / "list.txt").write_text("\ufefftomo.mrc\n", encoding="utf-8")
    assert predict("list.txt", "write_preview=false").status == 0


def test_a_truncated_gz_file_is_refused(refused, tomogram):
    (tomogram.parent / "cut.mrc.gz").write_bytes(gzip.compress(tomogram.read_bytes())[:-2000])
    assert "damaged or cut off" in refused("cut.mrc.gz")


def test_the_message_of_a_missing_file_proposes_a_similar_name(refused, tomogram):
    assert refused("tomos.mrc") == "tomos.mrc: no such file; did you mean tomo.mrc?"


def test_one_missing_file_among_several_stops_the_run_before_it_starts(refused, tomogram):
    assert refused("tomo.mrc", "nowhere/b.mrc").startswith("nowhere/b.mrc: no such file")


def test_an_empty_name_is_not_the_current_folder(refused, tomogram):
    assert "empty" in refused("input=")
    assert "empty" in refused("")


@pytest.mark.parametrize("method", ["normalize=min_max_positive", "--normalize-method=min_max_positive_values"])
def test_a_volume_without_positive_voxels_needs_another_normalisation(refused, work, method):
    write_mrc("negative.mrc", -grey())
    message = refused("negative.mrc", method)
    assert "no voxel is positive" in message
    assert "robust" in message.partition("; use ")[2]


def test_nan_is_replaced_when_asked_for(predict, work):
    with_nan("nan.mrc")
    assert predict("nan.mrc", "nonfinite=mean", "write_preview=false").status == 0


def test_two_inputs_of_the_same_name_are_refused(refused, tomogram):
    write_mrc("other/tomo.rec")
    message = refused("tomo.mrc", "other/tomo.rec")
    assert "tomo.mrc and other/tomo.rec would both write out/tomo_etsam_" in message
    assert "different output folders" in message


def test_the_others_are_segmented_where_one_tomogram_has_nan(predict, tomogram, caplog):
    with_nan("nan.mrc")
    write_mrc("zebra.mrc")
    outcome = predict("nan.mrc", "tomo.mrc", "zebra.mrc", "write_preview=false")
    assert outcome.status == 1
    assert outcome.message.startswith("nan.mrc was not segmented")
    assert caplog.text.count("7 of 13440 voxels") == 2  # when it is met, and in the table
    assert [name for name in outcome.files if name.endswith("mask.mrc")] == [
        "tomo_etsam_predicted_mask.mrc",
        "zebra_etsam_predicted_mask.mrc",
    ]
    assert not any(name.startswith("nan") for name in outcome.files)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything; see the next test")
def test_a_file_without_permission_is_refused(refused, tomogram):
    tomogram.chmod(0)
    assert "Permission denied" in refused("tomo.mrc")


def test_a_file_that_the_system_refuses_to_open_is_refused(refused, tomogram, monkeypatch):
    real = Path.open

    def denied(path, *args, **options):
        if path.name == "tomo.mrc":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", denied)
    assert refused("tomo.mrc") == "tomo.mrc: cannot be read: Permission denied"


def test_a_folder_that_may_not_be_listed_is_refused(refused, work, monkeypatch):
    (work / "private").mkdir()

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    assert refused("private") == "the folder private cannot be read: permission denied."


def test_an_output_folder_that_is_a_file_is_refused(etsam, tomogram):
    outcome = etsam("predict", "tomo.mrc", "net=tiny_test", "weights=random", "--output-dir", "tomo.mrc/sub")
    assert outcome.status == 1
    assert outcome.message == "tomo.mrc is a file, not a folder for outputs; choose another --output-dir."


def test_an_output_folder_without_permission_is_refused(refused, tomogram, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "no permission to write in the output folder out" in refused("tomo.mrc")


def test_a_disk_too_small_for_the_outputs_is_told_before_the_run(refused, tomogram, monkeypatch):
    usage = type("usage", (), {"free": 10_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    message = refused("tomo.mrc", "--store-logits")
    assert "need 0.079 MB" in message
    assert "0.010 MB free" in message


@pytest.mark.parametrize("full_after", [0, 3, 9])
def test_a_disk_that_gets_full_leaves_nothing(refused, tomogram, monkeypatch, full_after):
    real, calls = mrc_writer.write_all, []

    def write(file, data):
        calls.append(1)
        if len(calls) > full_after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    monkeypatch.setattr(mrc_writer, "write_all", write)
    assert "disk full" in refused("tomo.mrc", "--store-logits")


@pytest.mark.parametrize("kind", ["png", "logits.mrc", "mask.mrc", "json"])
def test_a_disk_that_is_full_when_an_output_gets_its_name_leaves_none_of_them(refused, tomogram, monkeypatch, kind):
    real = atomic._publish

    def publish(part, target, overwrite):
        if target.name.endswith(kind):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(part, target, overwrite)

    monkeypatch.setattr(atomic, "_publish", publish)
    assert "disk full" in refused("tomo.mrc", "--store-logits")


def test_another_process_that_was_faster_keeps_its_outputs(predict, tomogram, monkeypatch):
    real = atomic._publish

    def publish(part, target, overwrite):
        if target.name.endswith("_mask.mrc"):
            target.write_text("of the other process")
        real(part, target, overwrite)

    monkeypatch.setattr(atomic, "_publish", publish)
    outcome = predict("tomo.mrc")
    assert outcome.status == 1
    assert "exists already" in outcome.message
    assert outcome.files == ["tomo_etsam_predicted_mask.mrc"]


def test_ctrl_c_ends_with_status_130_and_leaves_nothing(predict, tomogram, monkeypatch):
    monkeypatch.setattr("etsam.prediction.writer.apply_steps", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    outcome = predict("tomo.mrc", "--post-process")
    assert outcome.status == 130
    assert "--resume" in outcome.message
    assert outcome.message.startswith("interrupted")
    assert outcome.files == []


def test_a_job_stopped_by_its_queue_leaves_nothing(predict, tomogram, monkeypatch):
    monkeypatch.setattr("etsam.prediction.writer.apply_steps", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    outcome = predict("tomo.mrc", "--post-process")
    assert outcome.status == 128 + signal.SIGTERM
    assert outcome.files == []


def test_debug_shows_the_traceback_and_the_line(predict, work):
    outcome = predict("missing.mrc", "--debug")
    assert outcome.status == 1
    assert "Traceback (most recent call last)" in outcome.stderr
    assert outcome.stderr.splitlines()[-1].startswith("etsam: error: missing.mrc: no such file")


def test_a_defect_is_called_a_defect(refused, tomogram, monkeypatch):
    monkeypatch.setattr("etsam.prediction.writer.MaskSections", lambda places: 1 / 0)
    assert refused("tomo.mrc") == (
        "unexpected ZeroDivisionError: division by zero - this is a defect; run again with --debug and report it."
    )


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (
            [Path(sys.executable).parent / "etsam", "predict", "no.mrc", "net=tiny_test", "weights=random"],
            ["no.mrc: no such file"],
        ),
        ([sys.executable, PROGRAM, "input=no.mrc", "net=tiny_test", "weights=random"], ["no.mrc: no such file"]),
        ([sys.executable, PROGRAM, "normalize=foo"], ["normalize=foo is unknown; allowed: min_max_positive, robust"]),
        ([sys.executable, PROGRAM, "input=tomo.mrc", "stage2.treshold=0"], ["no setting stage2.treshold", "threshold"]),
        ([sys.executable, PROGRAM, "tomo.mrc"], ["input=tomo.mrc"]),
        ([sys.executable, PROGRAM, "input=tomo.mrc", "--post-process"], ["unrecognized", "`etsam predict`"]),
        ([sys.executable, PROGRAM], ["input is not given; add input="]),
    ],
)
def test_real_processes_end_with_one_line_and_status_1(tomogram, command, parts):
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tomogram.parent)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("etsam: error: ")
    assert all(part in ended.stderr for part in parts)
    assert sorted(path.name for path in tomogram.parent.iterdir()) == ["tomo.mrc"]


def test_several_faults_get_a_line_each_and_a_single_one_stays_in_its_line(tmp_path):
    head, *lines = explain(InputError.of("2 faults", ["a.mrc: cut", "b.mrc: empty"])).splitlines()
    assert (head.split()[0], lines) == ("2", ["  a.mrc: cut", "  b.mrc: empty"])
    results = [SimpleNamespace(method="m", tomogram=name, error=error) for name, error in (("a", "x"), ("b", "y"))]
    with pytest.raises(InputError) as several:
        raise_failures(results, "the rest is there")
    assert explain(several.value).splitlines()[1:] == ["  m, a: x", "  m, b: y"]
    assert len(explain(InputError.of("head", ["one fault"])).splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "cut.mrc.gz", "net=tiny_test", "weights=random", "trainer=cpu"],
        ["evaluate", "manifest.csv", "weights=nano", "weights.stage2=manifest.csv", "trainer=cpu"],
        ["measure", "stretched.mrc"],
        ["inspect", "cut.mrc.gz", "--preview"],
        ["data", "simulate", "--shape", "8,9,10", "--seed", "-1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_fails_before_it_writes_leaves_no_folder(etsam, tomogram, work, arguments):
    (work / "cut.mrc.gz").write_bytes(gzip.compress(tomogram.read_bytes())[:-100])
    write_mrc("stretched.mrc", (grey() > 5).astype(np.int8))
    (work / "manifest.csv").write_text(
        "dataset_id,run_id,split,tomogram,target_mask\nd,r,test,tomo.mrc,stretched.mrc\n"
    )
    before = sorted(work.rglob("*"))
    outcome = etsam(*arguments, "--output-dir", "new/inner")
    assert outcome.status == 1
    assert sorted(work.rglob("*")) == before


def test_an_empty_folder_that_was_there_stays_where_a_command_fails(etsam, work):
    write_mrc("stretched.mrc", (grey() > 5).astype(np.int8))
    (work / "old").mkdir()
    assert etsam("measure", "stretched.mrc", "--output-dir", "old/new").status == 1
    assert sorted(path.name for path in work.rglob("*")) == ["old", "stretched.mrc"]
