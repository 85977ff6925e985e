"""What stands behind the panel of napari: lazy arrays, a segmentation in a process of its own, corrected masks."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
from conftest import ORIGIN_ZYX, SHAPE, START_ZYX, VOXEL_SIZE_ZYX, CountedSlices, grey, write_mrc

from etsam.data.manifest import read_manifest
from etsam.errors import EtsamError, InputError, OutputError
from etsam.prediction import progress
from etsam.prediction.forecast import fraction_done
from etsam.prediction.progress import SliceProgress
from etsam.viewer.background import BackgroundRun
from etsam.viewer.correction import add_to_manifest, save_mask
from etsam.viewer.lazy_array import AboveThreshold, LazyArray
from etsam.volume import read_volume

TOY = ["net=tiny_test", "weights=random", "trainer=cpu", "write_preview=false", "write_page=false"]


def ended(run, limit_seconds=240):
    until = time.monotonic() + limit_seconds
    while run.running:
        assert time.monotonic() < until
        time.sleep(0.2)
    return run


@pytest.mark.parametrize(
    "key", [2, -1, np.int64(3), (1, slice(2, 9)), (slice(1, 5, 2), 7), (slice(None), slice(None), 11),
            (Ellipsis, 4), (0, Ellipsis), slice(4, 4), (3, 5, 6), Ellipsis, ()], ids=str
)  # fmt: skip
def test_a_lazy_array_is_indexed_as_an_array(key):
    values = grey()
    lazy = LazyArray(values, values.dtype)
    np.testing.assert_array_equal(lazy[key], values[key])
    assert (lazy.shape, lazy.ndim, lazy.dtype, len(lazy)) == (SHAPE, 3, values.dtype, SHAPE[0])
    np.testing.assert_array_equal(np.asarray(lazy), values)


def test_a_slice_of_a_lazy_array_reads_one_slice_and_a_moved_threshold_none():
    counted = CountedSlices(grey())
    mask = AboveThreshold(counted, 9.0)
    np.testing.assert_array_equal(mask[4], grey()[4] > 9)
    mask.threshold = 10.5
    np.testing.assert_array_equal(mask[4, 3:7], grey()[4, 3:7] > 10.5)
    assert counted.read == [4]


def test_a_moved_threshold_takes_less_than_a_tenth_of_a_second_at_1000_by_1000():
    mask = AboveThreshold(np.random.default_rng(0).normal(size=(2, 1000, 1000)).astype(np.float32), 0.0)
    times = []
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.5):
        mask.threshold = threshold
        started = time.perf_counter()
        mask[1]
        times.append(time.perf_counter() - started)
    assert min(times) < 0.1


def test_the_fraction_done_grows_over_all_parts():
    told = [fraction_done(part, done, 4) for part in ("reading", "stage 1", "stage 2", "writing") for done in range(5)]
    assert told == sorted(told)
    assert (told[0], told[-1], fraction_done("post-processing", 0, 4)) == (0.0, 1.0, 1.0)


def test_progress_is_read_however_long_it_will_take(tmp_path, caplog, monkeypatch):
    run = BackgroundRun(tmp_path / "t.mrc", tmp_path)
    monkeypatch.setattr(progress, "is_terminal", lambda: False)
    monkeypatch.setattr(progress, "_LOG_INTERVAL_SECONDS", 0.0)
    job, told = SimpleNamespace(num_predict_batches=[1]), SliceProgress()
    told.on_predict_start(job, None)
    told.on_predict_batch_start(job, None, "t.mrc", 0)
    seen = []
    for left in (None, 8.0, 252.0, 3852.0):
        monkeypatch.setattr(progress.Forecast, "job_seconds_left", lambda *_, left=left: left)
        caplog.clear()
        with caplog.at_level("INFO", "etsam"):
            told.update("stage 1", 3, 80)
            told.update("stage 1", 4, 80)
        run.log.write_text("".join(f"INFO: {line}\n" for line in [*caplog.messages, "something else"]))
        seen.append(str(run.progress()))
    plain = "stage 1, slice 4 of 80"
    assert seen == [plain, f"{plain}, 8 s left", f"{plain}, 4 min 12 s left", f"{plain}, 1 h 04 min left"]


@pytest.mark.slow
def test_a_run_in_the_background_writes_what_the_command_writes(work, predict):
    write_mrc("tomo.mrc")
    run = BackgroundRun(work / "tomo.mrc", work / "background", TOY)
    assert (run.running, run.progress().fraction) == (False, 0.0)
    run.start()
    names = ended(run).result()
    assert predict("tomo.mrc", "write_preview=false").status == 0
    np.testing.assert_array_equal(mrcfile.read(names.mask), mrcfile.read(work / "out" / names.mask.name))
    assert "membrane" in run.log.read_text()


@pytest.mark.slow
def test_a_cancelled_run_leaves_its_log_and_nothing_else(work):
    write_mrc("tomo.mrc", grey((80, 90, 110)))
    run = BackgroundRun(work / "tomo.mrc", work / "out", [*TOY, "tiles.size_voxels=24"])
    run.start()
    until = time.monotonic() + 240
    while run.running and run.progress().fraction == 0.0 and time.monotonic() < until:
        time.sleep(0.1)
    progress = run.progress()
    assert 0 < progress.fraction < 1
    assert " of 80" in progress.text
    run.cancel()
    assert run.result() is None
    assert os.listdir(work / "out") == [run.log.name]


@pytest.mark.slow
def test_a_damaged_file_and_a_missing_gpu_are_told_in_the_commands_line(work):
    write_mrc("tomo.mrc")
    (work / "bad.mrc").write_bytes((work / "tomo.mrc").read_bytes()[:3000])
    runs = [BackgroundRun(work / "bad.mrc", work / "a", TOY)]
    runs.append(BackgroundRun(work / "tomo.mrc", work / "b", [item for item in TOY if "trainer" not in item]))
    runs[1].arguments.append("trainer=gpus")
    for run, token in zip(runs, ("bad.mrc", "gpu"), strict=True):
        run.start()
        with pytest.raises(EtsamError, match=f"(?i){token}"):
            ended(run).result()


@pytest.mark.slow
def test_a_viewer_that_dies_does_not_stop_the_run(work):
    write_mrc("tomo.mrc")
    program = (
        "import os; from pathlib import Path; from etsam.viewer.background import BackgroundRun;"
        f"BackgroundRun(Path('tomo.mrc').absolute(), Path('out'), {TOY}).start(); os._exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 1
    record = work / "out" / "tomo_etsam_predicted_record.json"
    until = time.monotonic() + 240
    while not record.exists() and time.monotonic() < until:
        time.sleep(0.2)
    assert record.exists()


def test_a_corrected_mask_lies_where_its_tomogram_lies_and_enters_the_manifest_once(work):
    tomogram = read_volume(write_mrc("tomo.mrc"))
    labels = np.zeros(SHAPE, np.int64)
    labels[2, 5:9, 11:20] = 7
    save_mask(work / "mask.mrc", labels, tomogram)
    saved = read_volume(work / "mask.mrc")
    np.testing.assert_array_equal(saved.read(), labels > 0)
    assert (saved.voxel_size_angstrom, saved.origin_angstrom, saved.start) == (VOXEL_SIZE_ZYX, ORIGIN_ZYX, START_ZYX)
    with pytest.raises(OutputError, match=r"mask\.mrc"):
        save_mask(work / "mask.mrc", labels, tomogram)
    with pytest.raises(InputError, match="shape"):
        save_mask(work / "other.mrc", labels[1:], tomogram)
    other = read_volume(write_mrc("other_tomo.mrc"))
    counts = [
        add_to_manifest(work / "manifest.csv", volume, work / "mask.mrc") for volume in (tomogram, other, tomogram)
    ]
    assert counts == [{"train": 1}, {"train": 2}, {"train": 2}]
    samples = read_manifest(work / "manifest.csv")
    assert {sample.run_id for sample in samples} == {"tomo", "other_tomo"}
    assert all(sample.split == "train" and sample.target_mask.samefile(work / "mask.mrc") for sample in samples)
