"""Several processes and one output folder: who makes which tomogram, and what a killed one leaves."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from conftest import grey, write_mrc

from etsam.errors import OutputError
from etsam.prediction.segmenter import Segmenter
from etsam.volume.atomic import claim, hold, remove_abandoned

FAST = "write_preview=false"
SEED = "weights.seed=1"
LOCK = Path("out", ".tomo_etsam_predicted.lock")


def outputs(*stems):
    return sorted(f"{stem}_etsam_predicted_{what}" for stem in stems for what in ("mask.mrc", "record.json"))


@pytest.fixture
def taken(tomogram):
    """`tomo.mrc`, which another process is at work on, and `second.mrc`."""
    write_mrc("second.mrc", grey(seed=1))
    LOCK.parent.mkdir()
    with claim(LOCK) as claimed:
        assert claimed
        yield


@pytest.mark.parametrize("mode", [[], ["--resume"], ["--overwrite"]])
def test_a_tomogram_that_another_process_is_at_work_on_is_left_to_it(predict, taken, caplog, mode):
    outcome = predict("tomo.mrc", "second.mrc", FAST, *mode)
    assert outcome.status == 0, outcome.stderr
    assert outcome.files == sorted([LOCK.name, *outputs("second")])
    assert "left tomo.mrc: another process" in caplog.text
    assert "2 files: 1 segmented, 1 left to another process" in caplog.text


def test_named_singly_it_is_an_error(predict, taken):
    outcome = predict("tomo.mrc", FAST)
    assert outcome.status == 1
    assert "tomo.mrc: another process is segmenting it into out; wait for it, or" in outcome.message
    assert outcome.files == [LOCK.name]


@pytest.mark.parametrize("mode", [[], ["--resume"]])
def test_what_another_process_has_made_meanwhile_is_not_made_again(predict, tomogram, monkeypatch, caplog, mode):
    write_mrc("second.mrc", grey(seed=1))
    assert predict("second.mrc", FAST, SEED).status == 0
    Path("out").rename("other")
    real, seen = Segmenter.attempt, []

    def attempt(segmenter, path):
        seen.append(path)
        for file in Path("other").iterdir():
            file.rename(Path("out", file.name))
        return real(segmenter, path)

    monkeypatch.setattr(Segmenter, "attempt", attempt)
    outcome = predict("tomo.mrc", "second.mrc", FAST, SEED, *mode)
    assert outcome.status == 0, outcome.stderr
    assert seen == ["tomo.mrc"]
    assert outcome.files == outputs("second", "tomo")
    assert "second.mrc: complete, skipped" in caplog.text


def test_what_another_process_has_made_meanwhile_with_other_settings_is_refused(predict, tomogram, monkeypatch):
    write_mrc("second.mrc", grey(seed=1))
    assert predict("second.mrc", FAST, SEED, "--logit-threshold", "1").status == 0
    Path("out").rename("other")
    real = Segmenter.attempt

    def attempt(segmenter, path):
        for file in Path("other").iterdir():
            file.rename(Path("out", file.name))
        return real(segmenter, path)

    monkeypatch.setattr(Segmenter, "attempt", attempt)
    outcome = predict("tomo.mrc", "second.mrc", FAST, SEED)
    assert outcome.status == 1
    assert "second_etsam_predicted_mask.mrc was made with other settings (stage2)" in outcome.message
    assert outcome.files == outputs("second", "tomo")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_run_leaves_no_lock(predict, tomogram, monkeypatch, error):
    def stop(*_):
        assert LOCK.exists()
        raise error

    if error is not None:
        monkeypatch.setattr(Segmenter, "attempt", stop)
    outcome = predict("tomo.mrc", FAST)
    assert (outcome.status, outcome.files) == ((0, outputs("tomo")) if error is None else (130, []))


def test_the_threshold_command_holds_a_lock_while_it_writes(predict, etsam, tomogram, monkeypatch):
    from etsam.prediction import writer

    assert predict("tomo.mrc", FAST, "--store-logits").status == 0
    real, held = writer.write_record, []

    def noted(path, *arguments):
        held.extend(file.name for file in path.parent.glob(".*.lock"))
        real(path, *arguments)

    monkeypatch.setattr(writer, "write_record", noted)
    outcome = etsam("threshold", "out/tomo_etsam_predicted_logits.mrc", "--at", "0.5", "--no-page", "--no-preview")
    assert outcome.status == 0, outcome.stderr
    assert len(held) == 1
    assert not list(Path("out").glob(".*"))


def test_a_subfolder_without_permission_is_refused_before_the_run(predict, work, monkeypatch):
    for series in ("TS_01", "TS_02"):
        write_mrc(work / series / "rec.mrc")
    forbidden, real = work / "out" / "TS_02", os.access
    forbidden.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "TS_02" and real(path, mode))
    outcome = predict("TS_01/rec.mrc", "TS_02/rec.mrc", FAST, "output_subfolders=true")
    assert outcome.status == 1
    assert f"no permission to write in the output folder {Path('out', 'TS_02')}" in outcome.message
    assert outcome.files == ["TS_02"]


def test_on_a_file_system_without_locks_it_works_still(predict, tomogram, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks on this file system")

    monkeypatch.setattr("fcntl.flock", no_locks)
    outcome = predict("tomo.mrc", FAST)
    assert (outcome.status, outcome.files) == (0, outputs("tomo"))


def test_a_lock_that_its_holder_removes_meanwhile_is_taken_anew(work, monkeypatch):
    real, file = fcntl.flock, work / "lock"

    def removed_first(held, how):
        monkeypatch.setattr("fcntl.flock", real)
        file.unlink()
        real(held, how)

    monkeypatch.setattr("fcntl.flock", removed_first)
    with claim(file) as first, claim(file) as second:
        assert (first, second) == (True, False)
    assert not file.exists()


def test_files_are_locked_as_nfs_wants_it(work, monkeypatch):
    real = fcntl.flock

    def of_nfs(held, how):
        if fcntl.fcntl(held, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "not open for writing")
        real(held, how)

    monkeypatch.setattr("fcntl.flock", of_nfs)
    left, held = work / ".a.123456789abc.part", work / ".a.abcdef123456.part"
    left.touch()
    held.touch()
    holder = hold(held)
    remove_abandoned(work, ".a.*.part")
    os.close(holder)
    assert list(work.iterdir()) == [held]


def test_a_lock_that_cannot_be_made_is_one_line(work):
    with pytest.raises(OutputError, match="nowhere"), claim(work / "nowhere" / "lock"):
        pass


KILLED = """
import os, signal, sys
from etsam.prediction import writer
from etsam.volume import atomic, mrc_writer
moment, *arguments = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def die_at(module, name, ending, after=False):
    real = getattr(module, name)
    def deadly(*args, **kwargs):
        if after:
            real(*args, **kwargs)
        if any(str(getattr(one, "path", one)).endswith(ending) for one in args[:2]):
            die()
        if not after:
            return real(*args, **kwargs)
    setattr(module, name, deadly)
if moment == "in the mask":
    die_at(mrc_writer.MrcWriter, "_write_at", "mask.mrc")
elif moment == "in the logits":
    die_at(mrc_writer.MrcWriter, "_write_at", "logits.mrc")
elif moment == "before the mask has its name":
    die_at(atomic, "_publish", "mask.mrc")
elif moment == "when the mask has its name":
    die_at(os, "link", "mask.mrc", after=True)
elif moment == "before the record":
    writer.write_record = die
elif moment == "in the record":
    die_at(atomic, "_publish", "record.json")
from etsam.cli.main import main
main(arguments)
"""
MOMENTS = [
    "in the mask",
    "in the logits",
    "before the mask has its name",
    "when the mask has its name",
    "before the record",
    "in the record",
]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_killed_run_left_half_made_is_made_anew(predict, tomogram, moment):
    arguments = ["predict", "tomo.mrc", "-o", "out", "net=tiny_test", "weights=random", SEED, "trainer=cpu", FAST]
    process = [sys.executable, "-c", KILLED, moment, *arguments, "--no-page", "write_chimerax=false", "--store-logits"]
    killed = subprocess.run(process, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert LOCK.exists()
    outcome = predict("tomo.mrc", FAST, SEED, "--resume")  # without logits: those that were begun go, too
    assert outcome.status == 0, outcome.stderr
    assert outcome.files == outputs("tomo")
    mask = mrcfile.read("out/tomo_etsam_predicted_mask.mrc")
    Path("out").rename("resumed")
    assert predict("tomo.mrc", FAST, SEED).status == 0
    np.testing.assert_array_equal(mask, mrcfile.read("out/tomo_etsam_predicted_mask.mrc"))
