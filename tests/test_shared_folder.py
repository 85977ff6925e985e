"""Several processes and one output folder: who makes which tomogram, and what a killed one leaves."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from conftest import grey, write_mrc

from etsam.app import compose_config
from etsam.errors import InputError, OutputError
from etsam.prediction.record import settings_of
from etsam.prediction.segmenter import Segmenter
from etsam.prediction.writer import PredictionWriter
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


def test_what_another_process_has_made_meanwhile_with_other_settings_is_refused(predict, tomogram, monkeypatch, caplog):
    write_mrc("second.mrc", grey(seed=1))
    assert predict("second.mrc", FAST, SEED, "--logit-threshold", "1").status == 0
    Path("out").rename("other")
    write_mrc("third.mrc", grey(seed=2))
    real = Segmenter.attempt

    def attempt(segmenter, path):
        for file in Path("other").iterdir():
            file.rename(Path("out", file.name))
        return real(segmenter, path)

    monkeypatch.setattr(Segmenter, "attempt", attempt)
    outcome = predict("tomo.mrc", "second.mrc", "third.mrc", FAST, SEED)
    assert outcome.status == 1
    assert "second.mrc was not segmented" in outcome.message
    assert "second_etsam_predicted_mask.mrc was made with other settings (stage2)" in caplog.text
    assert outcome.files == outputs("second", "third", "tomo")


@pytest.fixture
def other_process(tomogram):
    """What another process does that has claimed `tomo.mrc`, to make a mask of it without a picture."""
    arguments = ["input=tomo.mrc", "net=tiny_test", "weights=random", SEED, "trainer=cpu"]
    writer = PredictionWriter("out", write_preview=False, settings=settings_of(compose_config("predict", arguments)))
    writer.claim(tomogram.relative_to(Path.cwd()))
    yield writer
    writer.release()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["tom*.mrc"], None),
        (["tom*.mrc", "--logit-threshold", "1"], "with other settings (stage2)"),
        (["tom*.mrc", "--store-logits"], "without tomo_etsam_predicted_logits.mrc"),
        (["other/*.mrc"], "tomo.mrc, not other/tomo.mrc"),
    ],
)
@pytest.mark.parametrize("mode", [[], ["--resume"], ["--overwrite"]])
def test_a_tomogram_is_left_only_to_who_makes_the_same_of_it(predict, other_process, caplog, more, why, mode):
    Path("other").mkdir()
    write_mrc("other/tomo.mrc", grey(seed=5))
    outcome = predict(*more, FAST, SEED, *mode)
    assert outcome.files == [LOCK.name]
    if why is None:
        assert outcome.status == 0
        assert "left         tomo.mrc  another process is segmenting it" in caplog.text
    else:
        assert outcome.status == 1
        assert "another process is making out/tomo_etsam_predicted_mask.mrc" in caplog.text
        assert why in caplog.text


def test_a_lock_of_a_killed_process_does_not_speak_for_who_has_it_now(predict, tomogram, monkeypatch, caplog):
    LOCK.parent.mkdir()
    LOCK.write_text('{"settings": {"net": "another"}}')
    real, said = Segmenter.attempt, []
    monkeypatch.setattr(Segmenter, "attempt", lambda *both: said.append(LOCK.read_text()) or real(*both))
    assert predict("tomo.mrc", FAST, SEED).files == outputs("tomo")
    assert json.loads(said[0])["input"]["path"] == str(tomogram)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("mode", [[], ["--resume"], ["--overwrite"]])
def test_what_has_become_of_a_tomogram_that_was_left_is_told_at_the_end(
    predict, other_process, monkeypatch, caplog, finished, mode
):
    write_mrc("u.mrc", grey(seed=1))
    other_process.release()
    assert predict("tomo.mrc", FAST, SEED).status == 0
    Path("out").rename("made")
    other_process.claim(Path("tomo.mrc"))
    real = Segmenter.attempt

    def attempt(segmenter, path):
        other_process.release()
        if finished:
            for file in Path("made").iterdir():
                file.rename(Path("out", file.name))
        return real(segmenter, path)

    monkeypatch.setattr(Segmenter, "attempt", attempt)
    outcome = predict("tomo.mrc", "u.mrc", FAST, SEED, *mode)
    assert "left tomo.mrc: another process" in caplog.text
    assert "left to another process" not in caplog.text
    if finished:
        assert (outcome.status, outcome.files) == (0, outputs("tomo", "u"))
        assert "tomo.mrc: complete, skipped" in caplog.text
    else:
        assert (outcome.status, outcome.files) == (1, outputs("u"))
        assert "tomo.mrc  another process began it and did not finish" in caplog.text


def test_the_lock_of_a_process_that_was_killed_before_it_wrote_goes_with_the_next_run(predict, tomogram):
    assert predict("tomo.mrc", FAST, SEED).status == 0
    LOCK.touch()
    outcome = predict("tomo.mrc", FAST, SEED, "--resume")
    assert (outcome.status, outcome.files) == (0, outputs("tomo"))


def test_a_lock_stays_beside_what_is_half_made(predict, tomogram, monkeypatch):
    mask = LOCK.with_name("tomo_etsam_predicted_mask.mrc")
    LOCK.parent.mkdir()
    LOCK.touch()
    mask.touch()
    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "attempt", lambda *_: InputError("no memory"))
        assert predict("tomo.mrc", FAST, SEED, "--resume").files == [LOCK.name, mask.name]
    assert predict("tomo.mrc", FAST, SEED, "--resume").files == outputs("tomo")


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


def test_on_a_file_system_without_locks_it_works_still_and_says_so_once(predict, tomogram, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks on this file system")

    monkeypatch.setattr("fcntl.flock", no_locks)
    outcome = predict("tomo.mrc", FAST)
    assert (outcome.status, outcome.files) == (0, outputs("tomo"))
    assert predict("tomo.mrc", FAST, "--overwrite").status == 0
    assert sum("cannot be locked" in message for message in caplog.messages) == 1


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
