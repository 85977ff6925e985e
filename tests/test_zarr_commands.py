"""Prediction, post-processing and `segment` take and give OME-Zarr with the values of MRC, or leave nothing."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from conftest import ORIGIN_ZYX, SHAPE, START_ZYX, VOXEL_SIZE_ZYX, grey, write_mrc
from web_server import serving_folder
from zarr_files import metadata, write_zarr

from etsam.volume import read_volume

ENDINGS = ["instances.zarr", "logits.zarr", "mask.zarr", "post_processed_mask.zarr", "preview.png", "record.json"]
ALL = (
    "weights.seed=1",
    "--logit-threshold=-0.075",
    "--store-logits",
    "--post-process",
    "write_instances=true",
    "output_format=zarr",
)


def top(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_command_reads_and_writes_zarr_with_the_values_of_mrc(predict, work):
    write_mrc("tomo.mrc")
    write_zarr(work / "tomo.zarr", grey(), multiscale=metadata(translation=ORIGIN_ZYX))
    assert predict("tomo.mrc", *ALL[:-1]).status == 0
    expected = {
        name: read_volume(work / "out" / f"tomo_etsam_predicted_{name}.mrc").read() for name in ("mask", "logits")
    }
    shutil.rmtree(work / "out")

    outcome = predict("tomo.zarr", *ALL)
    assert outcome.status == 0, outcome.stderr
    assert top(outcome.folder) == [f"tomo_etsam_predicted_{ending}" for ending in ENDINGS]
    for name, data in expected.items():
        volume = read_volume(outcome.folder / f"tomo_etsam_predicted_{name}.zarr")
        np.testing.assert_array_equal(volume.read(), data)
        assert data.min() < data.max()
        assert (volume.voxel_size_angstrom, volume.origin_angstrom) == (VOXEL_SIZE_ZYX, ORIGIN_ZYX)
    record = json.loads((outcome.folder / "tomo_etsam_predicted_record.json").read_text())
    assert record["input"]["fingerprint"]["of"] == "names, sizes and times"
    assert record["input"]["path"] == str(work / "tomo.zarr")
    assert sorted(record["outputs"]) == top(outcome.folder)


def test_the_command_takes_an_address(predict, work):
    write_zarr(work / "data" / "tomo.zarr", grey(), levels=2)
    with serving_folder(work / "data") as site:
        outcome = predict(f"{site.url}/tomo.zarr/1")
    assert outcome.status == 0, outcome.stderr
    assert read_volume(outcome.folder / "tomo_etsam_predicted_mask.mrc").shape == (3, 20, 28)
    record = json.loads((outcome.folder / "tomo_etsam_predicted_record.json").read_text())
    assert record["input"]["path"] == f"{site.url}/tomo.zarr/1"
    assert record["input"]["fingerprint"]["of"] == "metadata"


def test_two_levels_of_a_tomogram_would_write_the_same_files(refused, work):
    write_zarr(work / "tomo.zarr", grey(), levels=2)
    assert "tomo.zarr and tomo.zarr/1 would both write out/tomo_etsam_*" in refused("tomo.zarr", "tomo.zarr/1")


def test_an_existing_output_is_kept_replaced_or_skipped(predict, tomogram, work):
    fast = ("tomo.mrc", "output_format=zarr", "write_preview=false", "weights.seed=1")
    mask = work / "out" / "tomo_etsam_predicted_mask.zarr"
    assert predict(*fast).status == 0
    changed = [path.stat().st_mtime_ns for path in sorted(mask.rglob("*"))]
    assert "mask.zarr exists already (and 1 more); add --overwrite" in predict(*fast).message
    assert predict(*fast, "--resume").status == 0
    assert [path.stat().st_mtime_ns for path in sorted(mask.rglob("*"))] == changed
    assert predict(*fast, "--overwrite", "--logit-threshold", "-100").status == 0
    assert read_volume(mask).read().all()
    assert len(top(work / "out")) == 2


@pytest.mark.parametrize("status", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing(predict, tomogram, monkeypatch, status):
    monkeypatch.setattr("etsam.prediction.writer.apply_steps", lambda *_, **__: os.kill(os.getpid(), status))
    outcome = predict("tomo.mrc", *ALL)
    assert outcome.status == 128 + status
    assert outcome.files == []


def test_a_failure_after_the_files_have_names_leaves_nothing(predict, tomogram, monkeypatch):
    monkeypatch.setattr("etsam.prediction.writer.write_record", lambda *_: 1 / 0)
    outcome = predict("tomo.mrc", *ALL)
    assert outcome.status == 1
    assert outcome.files == []


def test_an_unknown_output_format_is_refused(refused, tomogram):
    assert "output_format=tiff" in refused("tomo.mrc", "output_format=tiff")


def test_post_processing_converts_between_the_formats(etsam, work):
    data = np.zeros(SHAPE, np.uint8)
    data[:, 5:9, 4:40] = 1
    write_mrc("mask.mrc", data.astype(np.int8))
    assert etsam("postprocess", "mask.mrc", "clean.zarr", "--postprocess-remove-thin-noise",
                 "--post-process-min-slices", "2").status == 0  # fmt: skip
    clean = read_volume("clean.zarr")
    np.testing.assert_array_equal(clean.read(), data)
    assert (clean.dtype, clean.voxel_size_angstrom, clean.origin_angstrom) == (np.uint8, VOXEL_SIZE_ZYX, ORIGIN_ZYX)
    assert etsam("postprocess", "clean.zarr", "again.mrc", "--post-process").status == 0
    assert read_volume("again.mrc").start != START_ZYX  # OME-Zarr has no place for it


def test_segment_streams_logits_into_a_zarr(work):
    import etsam

    settings = ["net=tiny_test", "weights=random", "trainer=cpu"]
    in_memory = etsam.segment(grey(), voxel_size=VOXEL_SIZE_ZYX, overrides=settings, device="cpu")
    streamed = etsam.segment(
        grey(), voxel_size=VOXEL_SIZE_ZYX, overrides=settings, device="cpu", output_path="logits.zarr"
    )
    np.testing.assert_array_equal(read_volume("logits.zarr").read(), in_memory.logits)
    np.testing.assert_array_equal(streamed.mask[3], in_memory.mask[3])
    assert read_volume("logits.zarr").voxel_size_angstrom == VOXEL_SIZE_ZYX
