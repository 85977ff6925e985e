"""What a person sees in a terminal: lines that stay whole, bars that go, the time to the end of the job."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import status_of
from conftest import write_mrc
from terminal import Terminal, standard_error

from etsam.app import quiet
from etsam.prediction import progress
from etsam.prediction.closing import viewing_hints
from etsam.prediction.forecast import Forecast
from etsam.prediction.progress import SliceProgress
from etsam.screen import Bars, ScreenHandler, bar_column, readable_seconds, working

LONG_NAME = "TS_037_bin4_denoised_isonet_corrected_rec"
TOY = ("net=tiny_test", "weights=random", "trainer=cpu")


@pytest.fixture(params=[80, 120])
def terminal(request):
    made = Terminal(request.param)
    yield made
    made.close()


def predicted_in(terminal, monkeypatch, *arguments):
    """Status of a prediction by the toy network, in this process, whose standard error is the terminal."""
    with standard_error(terminal, monkeypatch):
        return status_of(["predict", *arguments, *TOY, "--output-dir", "out"])


def test_a_screen_keeps_the_path_of_each_mask_whole_and_no_dead_bar(work, terminal, monkeypatch):
    names = [LONG_NAME, "short"]
    for name in names:
        write_mrc(work / f"{name}.mrc")
    status = predicted_in(
        terminal, monkeypatch, *(f"{name}.mrc" for name in names), "--post-process", "write_preview=false"
    )
    terminal.close()
    assert status == 0
    for name in names:
        record = json.loads((work / "out" / f"{name}_etsam_predicted_record.json").read_text())
        for output in (f"{name}_etsam_predicted_mask.mrc", f"{name}_etsam_predicted_post_processed_mask.mrc"):
            assert f"  out/{output}\n" in terminal.text()
            assert f"{100 * record['membrane_share_of'][output]:.2f} %" in terminal.text()
    assert not any("━" in line or " left" in line for line in terminal.screen())
    assert terminal.screen()[-1].startswith("2 of 2 tomograms")
    assert b"\x1b[31m" not in terminal.output  # no red


def test_one_bar_a_tomogram_names_its_part_and_fits_the_line(terminal, monkeypatch):
    job = SimpleNamespace(num_predict_batches=[2])
    with standard_error(terminal, monkeypatch):
        bars = SliceProgress()
        bars.on_predict_start(job, None)
        bars.on_predict_batch_start(job, None, f"folder/{LONG_NAME}.mrc", 0)
        for part in ("reading", "stage 1", "stage 2"):
            bars.update(part, 0, 100)
            bars.update(part, 19, 100)
        bars._bars.refresh()
        at_work = terminal.until("stage 2 of 2, slice 19 of 100")
        bars.on_predict_end(job, None)
    terminal.close()
    whole, tomogram = terminal.screen(at_work)
    assert whole.startswith("all tomograms")
    assert "1 of 2" in whole
    assert whole.endswith("left")
    assert tomogram.startswith("…" if terminal.columns == 80 else "TS_037")  # shortened where there is no room
    assert "corrected_rec.mrc "[-8:] in tomogram
    assert tomogram.endswith("stage 2 of 2, slice 19 of 100")
    assert terminal.screen() == []


def test_a_log_tells_the_time_to_the_end_of_both_stages(caplog, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress, "is_terminal", lambda: False)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    job, bars = SimpleNamespace(num_predict_batches=[1]), SliceProgress()
    bars.on_predict_start(job, None)
    bars.on_predict_batch_start(job, None, "folder/t.mrc", 0)
    with caplog.at_level(logging.INFO, "etsam"):
        bars.update("reading", 100, 100)
        for done in range(91):
            bars.update("stage 1", done, 100)
            now += 1
    # ten slices of stage 1 at a second each, a hundred of stage 2, and a tenth of that to write
    assert caplog.messages[-1] == "t.mrc: stage 1 90 of 100 slices, 2 min 00 s left"


def test_a_log_line_above_a_bar_is_whole(terminal, monkeypatch):
    with standard_error(terminal, monkeypatch):
        logger = logging.Logger("etsam.somewhere")
        logger.addHandler(ScreenHandler())
        working("loading")
        with Bars("{task.description}", bar_column()) as bars:
            task = bars.add_task("at work", total=3)
            for number in range(3):
                bars.update(task, completed=number, refresh=True)
                logger.warning("%d %s", number, "x" * 100)
    terminal.close()
    lines = [f"WARNING: {number} {'x' * 100}" for number in range(3)]
    assert terminal.text().split() == " ".join(lines).split()


def test_a_sign_of_life_stands_while_the_program_is_loaded_and_goes(tomogram, terminal, monkeypatch):
    at_work = []
    monkeypatch.setattr("etsam.cli.predict.run_config", lambda *_: at_work.append(terminal.until("loading")))
    with standard_error(terminal, monkeypatch):
        assert status_of(["predict", "tomo.mrc"]) == 0
    terminal.close()
    assert terminal.screen(at_work[0])[0].endswith("loading")
    assert terminal.screen() == []


def test_a_log_file_gets_one_plain_line_a_tomogram(work, tomogram, predict, caplog):
    caplog.set_level(logging.INFO)
    assert predict("tomo.mrc", "--post-process", "write_instances=true").status == 0
    line = next(message for message in caplog.messages if message.startswith("tomo.mrc: ") and "_mask.mrc" in message)
    shares = json.loads((work / "out" / "tomo_etsam_predicted_record.json").read_text())["membrane_share_of"]
    before, after = (f"{100 * share:.2f} %" for share in shares.values())
    first, cleaned, instances = line.split("; ")
    assert first.startswith(f"tomo.mrc: {before}")
    assert first.endswith("out/tomo_etsam_predicted_mask.mrc")
    assert after in cleaned
    assert cleaned.endswith("post_processed_mask.mrc")
    assert instances.endswith("instances.mrc")


def test_time_left_counts_the_parts_and_tomograms_to_come():
    job = Forecast(3)
    job.begin(0.0)
    job.update("reading", 10, 10, now=1.0)
    assert job.job_seconds_left(1.0) is None  # reading says nothing about the networks
    job.update("stage 1", 0, 10, now=1.0)
    job.update("stage 1", 5, 10, now=11.0)
    assert job.seconds_left() == pytest.approx(10 + 20 + 2)  # stage 2 as fast as stage 1, writing ten times
    assert job.share_done(11.0) == pytest.approx(11 / 43)
    assert job.job_seconds_left(11.0) == pytest.approx(32 + 2 * 43)
    job.update("stage 1", 10, 10, now=21.0)
    job.update("stage 2", 0, 10, now=21.0)
    job.update("stage 2", 10, 10, now=31.0)
    job.update("writing", 0, 10, now=31.0)
    job.update("writing", 10, 10, now=33.0)
    job.end()
    job.begin(40.0)
    job.update("reading", 0, 20, now=40.0)
    job.update("reading", 20, 20, now=42.0)
    job.update("stage 1", 0, 20, now=42.0)
    assert job.seconds_left() == pytest.approx(20 * 2 + 20 * 1 + 20 * 0.2)  # as fast as before, twice as many slices
    assert job.job_seconds_left(42.0) == pytest.approx(64 + 40)


def test_the_first_slice_of_a_part_counts_from_the_end_of_the_part_before():
    job = Forecast(1)
    job.begin(0.0)
    job.update("reading", 10, 10, now=1.0)
    job.update("stage 1", 1, 10, now=4.0)
    assert job.seconds_left() == pytest.approx(9 * 3 + 10 * 3 + 3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3852, "1 h 04 min"),
        (7199, "2 h 00 min"),
    ],
)
def test_times_are_written_for_people(seconds, text):
    assert readable_seconds(seconds) == text


@pytest.mark.parametrize(
    ("tomogram", "mask", "more", "expected"),
    [
        ("my tomo.mrc", "m.mrc", {}, ["look at it:  chimerax 'my tomo.mrc' m.mrc"]),
        ("tomo.mrc.gz", "m.mrc", {}, ["look at it:  chimerax m.mrc"]),
        ("tomo.mrc", "m.zarr", {}, []),
        ("tomo.mrc", "m.mrc", {"script": Path("m.cxc")}, ["look at it:  chimerax m.cxc"]),
        (
            "tomo.mrc",
            "m.zarr",
            {"script": Path("m.cxc")},
            [
                "ChimeraX opens MRC only (output_format=mrc):  etsam postprocess m.zarr m.mrc postprocess=none",
                "and then look at it:  chimerax tomo.mrc m.mrc",
            ],
        ),
        (
            "tomo.mrc.gz",
            "a/m.mrc.gz",
            {"script": Path("m.cxc")},
            [
                "ChimeraX opens MRC only (output_format=mrc):  etsam postprocess a/m.mrc.gz a/m.mrc postprocess=none",
                "and then look at it:  chimerax a/m.mrc",
            ],
        ),
        ("tomo.mrc", "m.zarr", {"logits": Path("l.zarr")}, ["another threshold:  etsam threshold l.zarr --at 0"]),
    ],
)
def test_what_may_be_typed_next_is_a_command_that_reads_these_files(tomogram, mask, more, expected):
    assert viewing_hints(Path(tomogram), Path(mask), **more) == expected


def test_a_log_that_two_hold_back_speaks_again_when_both_have_ended():
    logger = logging.getLogger("etsam.somewhere.else")
    logger.setLevel(logging.INFO)
    first, second = quiet(logger.name), quiet(logger.name)
    for one in (first, second):
        one.__enter__()
    first.__exit__(None, None, None)
    assert logger.level == logging.WARNING
    second.__exit__(None, None, None)
    assert logger.level == logging.INFO
