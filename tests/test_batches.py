"""Lists of tomograms: what cannot be used is told and does not stop the others, what is none is passed over."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
from conftest import grey, write_mrc

from etsam.errors import InputError
from etsam.prediction.finding import gather
from etsam.prediction.kinds import orientation_remark
from etsam.volume import read_volume

SHAPE = (6, 40, 56)


def masks(outcome):
    return [name.split("_etsam")[0] for name in outcome.files if "_mask." in name]


def labels():
    drawn = np.zeros(SHAPE, np.int16)
    drawn[:, 5:15, 5:25], drawn[:, 20:30, 30:50] = 4, 9
    return drawn


@pytest.fixture
def twelve(work):
    """Three good tomograms of different formats and nine other files, none of them the same."""
    folder = work / "in"
    write_mrc(folder / "good.mrc")
    write_mrc(folder / "good_too.rec", (100 * grey(seed=1)).astype(np.int16))
    packed = write_mrc(folder / "third.mrc", grey(seed=2)).read_bytes()
    import bz2

    (folder / "third.mrc.bz2").write_bytes(bz2.compress(packed))
    (folder / "third.mrc").unlink()
    (folder / "cut.mrc").write_bytes(packed[:-100])
    spoiled = grey()
    spoiled[2, 3, 4] = np.nan
    write_mrc(folder / "nan.mrc", spoiled)
    write_mrc(folder / "drawn.mrc", (labels() > 0).astype(np.float32))
    write_mrc(folder / "labels.mrc", labels())
    write_mrc(folder / "tilts.st")
    write_mrc(folder / "good_EVN.mrc")
    write_mrc(folder / "good_ODD.mrc")
    (folder / "text.mrc").write_text("this is not a volume\n" * 100)
    (folder / "empty.mrc").touch()
    write_mrc(folder / "locked.mrc")
    return folder


@pytest.fixture
def locked(monkeypatch):
    """`locked.mrc` may not be read; root may read everything, so that the system has to be asked otherwise."""
    from etsam.volume import mrc_reader

    real = mrc_reader._head

    def refusing(path):
        if path.name == "locked.mrc":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(mrc_reader, "_head", refusing)


GOOD = ["good", "good_too", "third"]
NOT_USABLE = ["cut.mrc", "empty.mrc", "locked.mrc", "nan.mrc", "text.mrc"]
PASSED_OVER = ["drawn.mrc", "good_EVN.mrc", "good_ODD.mrc", "labels.mrc", "tilts.st"]


def told(caplog, kind):
    """Files of a kind in the table at the end."""
    rows = [line[2:] for line in caplog.messages if line.startswith("  ")]
    return [row.removeprefix(kind).split()[0] for row in rows if row.startswith(kind)]


def test_of_a_folder_of_twelve_the_good_ones_are_segmented_and_the_others_told(etsam, twelve, locked, caplog):
    outcome = etsam("predict", "in", "--output-dir", "out", "--weights", "nano", "write_preview=false", "trainer=cpu")
    assert outcome.status == 1
    assert masks(outcome) == GOOD
    assert (told(caplog, "not usable"), told(caplog, "passed over")) == (NOT_USABLE, PASSED_OVER)
    assert "5" in outcome.message
    for name in NOT_USABLE:  # when it is met, and in the table
        assert sum(name in line for line in [*caplog.messages, *outcome.stderr.splitlines()]) == 2, name
    assert "3 segmented, 5 not usable, 5 passed over" in caplog.text


def test_killed_in_the_middle_and_resumed_the_folder_of_twelve_ends_the_same(
    predict, twelve, locked, monkeypatch, caplog
):
    from etsam.prediction.segmenter import Segmenter

    real, before = Segmenter.attempt, {}

    def interrupted(segmenter, path):
        if "good_too" in path:
            raise KeyboardInterrupt
        return real(segmenter, path)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "attempt", interrupted)
        outcome = predict("in", "write_preview=false", "weights.seed=1")
    assert (outcome.status, masks(outcome)) == (130, ["good"])
    before = {path: path.stat().st_mtime_ns for path in outcome.folder.iterdir()}
    caplog.clear()
    outcome = predict("in", "write_preview=false", "weights.seed=1", "--resume")
    assert outcome.status == 1
    assert masks(outcome) == GOOD
    assert (told(caplog, "not usable"), told(caplog, "passed over")) == (NOT_USABLE, PASSED_OVER)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


KILLED = """
import os, signal, sys
from pathlib import Path
from etsam.prediction.progress import SliceProgress
from etsam.volume import mrc_reader
kill_in, *arguments = sys.argv[1:]
head, update = mrc_reader._head, SliceProgress.update
def refusing(path):
    if path.name == "locked.mrc":
        raise PermissionError(13, "Permission denied", str(path))
    return head(path)
def deadly(self, part, done, total):
    if part == kill_in and done == 3 and "good_too" in self._name:
        os.kill(os.getpid(), signal.SIGKILL)
    update(self, part, done, total)
mrc_reader._head, SliceProgress.update = refusing, deadly
from etsam.cli.main import main
main(arguments)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three runs of a folder, each a process of its own
@pytest.mark.parametrize("part", ["stage 1", "writing"])
def test_killed_by_sigkill_and_resumed_the_folder_of_twelve_is_as_if_nothing_had_happened(twelve, work, part):
    def run(kill_in, folder, *more):
        arguments = ["predict", "in", "-o", folder, "net=tiny_test", "weights=random", "weights.seed=1", "trainer=cpu"]
        arguments += ["--threshold", "-0.075", "write_preview=false", "--no-page", *more]
        return subprocess.run(
            [sys.executable, "-c", KILLED, kill_in, *arguments], capture_output=True, text=True, check=False
        )

    whole = run("never", "whole")
    killed = run(part, "out")
    assert (whole.returncode, killed.returncode) == (1, -signal.SIGKILL)
    assert not (work / "out" / "good_too_etsam_predicted_mask.mrc").exists()
    done = work / "out" / "good_etsam_predicted_mask.mrc"
    before = done.stat().st_mtime_ns
    resumed = run("never", "out", "--resume")
    assert resumed.returncode == 1
    assert done.stat().st_mtime_ns == before
    visible = [{path.name for path in Path(folder).glob("[!.]*")} for folder in ("out", "whole")]
    assert visible[0] == visible[1]  # a hidden part of what was being written cannot be removed by who was killed
    for name in GOOD:
        mask = f"{name}_etsam_predicted_mask.mrc"
        np.testing.assert_array_equal(mrcfile.read(Path("out", mask)), mrcfile.read(Path("whole", mask)))
    for name in (*NOT_USABLE, *PASSED_OVER):
        assert name in resumed.stderr
    assert resumed.stderr.partition("etsam: error: ")[2] == whole.stderr.partition("etsam: error: ")[2]


def test_strict_is_all_or_nothing(refused, twelve, locked):
    message = refused("in", "strict=true")
    assert "cut.mrc" in message
    assert "text.mrc" in message


@pytest.mark.parametrize("name", ["drawn.mrc", "labels.mrc", "tilts.st", "good_EVN.mrc"])
def test_named_singly_another_kind_of_file_is_an_error_that_force_overrides(predict, refused, twelve, name):
    assert "force" in refused(f"in/{name}")
    if name != "labels.mrc":
        outcome = predict(f"in/{name}", "force=true", "write_preview=false")
        assert outcome.status == 0, outcome.stderr


def test_a_folder_or_pattern_gives_no_tilt_series_stacks_or_halves(work):
    for name in ("TS_01.rec", "TS_01.st", "TS_01.ali", "parts.mrcs", "a_half1.mrc", "a_half2.mrc", "b_odd.mrc"):
        write_mrc(work / "in" / name)
    for given in ("in", "in/*"):
        found = gather(given)
        assert [path.name for path in found.tomograms] == ["TS_01.rec", "b_odd.mrc"]  # of which there is no even half
        assert len(found.passed_over) == 5
    assert len(gather("in", force=True).tomograms) == 7
    for half in ("even", "odd"):
        write_mrc(work / "warp" / half / "TS.mrc")
    with pytest.raises(InputError, match="force=true"):
        gather("warp/*/*.mrc")


def test_a_folder_of_warp_stands_for_its_reconstructions(work):
    write_mrc(work / "warp_tiltseries/reconstruction/TS_1_10.00Apx.mrc")
    (work / "warp_tiltseries/TS_1.xml").touch()
    assert [path.name for path in gather("warp_tiltseries").tomograms] == ["TS_1_10.00Apx.mrc"]


STAR = """
data_global

loop_
_rlnTomoName #1
_rlnVoltage #2
_rlnTomoReconstructedTomogram #3
_rlnTomoReconstructedTomogramDenoised #4
TS_01  300.0  Tomograms/job006/tomograms/rec_TS_01.mrc  Denoise/job007/rec_TS_01.mrc
TS_03  300.0  Tomograms/job006/tomograms/rec_TS_03.mrc  "Denoise/job007/rec TS_03.mrc"
"""


def test_a_star_file_of_relion_is_a_list_whose_paths_start_from_the_project(work):
    write_mrc(work / "project/Denoise/job007/rec_TS_01.mrc")
    write_mrc(work / "project/Denoise/job007/rec TS_03.mrc")
    star = work / "project/Denoise/job007/tomograms.star"
    star.write_text(STAR)
    assert [path.name for path in gather(star).tomograms] == ["rec_TS_01.mrc", "rec TS_03.mrc"]
    star.write_text(STAR.replace("Denoised", "Half1"))
    with pytest.raises(InputError, match=r"job006/tomograms/rec_TS_01\.mrc"):
        gather(star)
    star.write_text(STAR.replace("rlnTomoReconstructed", "rlnTomoOther"))
    with pytest.raises(InputError, match="_rlnTomoReconstructedTomogram"):
        gather(star)


def test_tomograms_of_one_name_go_into_subfolders_when_asked(predict, work, caplog):
    for series in ("TS_01", "TS_02"):
        write_mrc(work / series / "rec.mrc")
    outcome = predict("TS_01/rec.mrc", "TS_02/rec.mrc", "output_subfolders=true", "write_preview=false")
    assert outcome.status == 0, outcome.stderr
    assert sorted(os.listdir(outcome.folder / "TS_02")) == [
        "rec_etsam_predicted_mask.mrc",
        "rec_etsam_predicted_record.json",
    ]
    again = predict("TS_01/rec.mrc", "TS_02/rec.mrc", "output_subfolders=true", "write_preview=false", "--resume")
    assert again.status == 0, again.stderr
    assert caplog.text.count("complete, skipped") == 2


def test_a_voxel_size_that_is_given_goes_into_the_outputs_and_gz_holds_the_same_mask(predict, tomogram):
    first = predict("tomo.mrc", "write_preview=false", "weights.seed=1")
    plain = mrcfile.read(first.folder / "tomo_etsam_predicted_mask.mrc")
    outcome = predict(
        "tomo.mrc",
        "write_preview=false",
        "weights.seed=1",
        "voxel_size=13.48",
        "output_format=mrc.gz",
        "write_logits=true",
        "--overwrite",
    )
    assert outcome.status == 0, outcome.stderr
    packed = outcome.folder / "tomo_etsam_predicted_mask.mrc.gz"
    assert packed.read_bytes()[:2] == b"\x1f\x8b"
    with read_volume(packed) as mask:
        np.testing.assert_allclose(mask.voxel_size_angstrom, [13.48] * 3, rtol=1e-6)
        np.testing.assert_array_equal(mask.read(), plain)
    assert not [name for name in outcome.files if name.startswith(".")]


def of_shape(shape, *labels):
    return SimpleNamespace(shape=shape, header=SimpleNamespace(labels=labels) if labels else None)


def test_slices_that_look_like_xz_are_remarked(predict, work, caplog):
    for shape in ((900, 220, 928), (96, 20, 112)):
        assert "trimvol" in orientation_remark(of_shape(shape))
    for shape in ((220, 900, 928), (20, 96, 112), (128, 128, 128)):
        assert orientation_remark(of_shape(shape)) is None
    write_mrc(work / "xzy.rec", grey((40, 16, 56)))
    outcome = predict("xzy.rec", "write_preview=false", "weights.seed=1")
    assert outcome.status == 0, outcome.stderr
    assert "trimvol" in caplog.text


def test_the_label_of_imods_tilt_is_evidence_unless_something_came_after_it(work):
    tilt, turned = "TILT: Tomographic reconstruction", "clip: rotx"
    assert "tilt" in orientation_remark(of_shape((130, 100, 120), turned, tilt))
    assert orientation_remark(of_shape((130, 100, 120), tilt, turned)) is None
    assert orientation_remark(of_shape((100, 130, 120), tilt)) is None
    write_mrc("unturned.rec", grey((40, 34, 56)))
    with mrcfile.open("unturned.rec", "r+") as file:
        file.header.label[file.header.nlabl] = f"{tilt}        14-Oct-19  11:35:54"
        file.header.nlabl += 1
    assert "trimvol" in orientation_remark(read_volume("unturned.rec"))
