"""How often a prediction reads a tomogram; a slice that cannot be read, too little memory, a disk too small."""

from collections import Counter

import pytest
import torch
from conftest import grey, write_mrc

from etsam.inference.two_stage import TwoStage
from etsam.volume import Volume

SHAPE = (12, 40, 56)  # more slices than a prompted one waits for before it is segmented again


@pytest.fixture
def tomogram(work):
    return write_mrc(work / "tomo.mrc", grey(SHAPE))


@pytest.fixture
def three(work):
    return [write_mrc(work / name).name for name in ("a.mrc", "bad.mrc", "z.mrc")]


MASKS = ["a_etsam_predicted_mask.mrc", "z_etsam_predicted_mask.mrc"]


def masks(outcome):
    return [name for name in outcome.files if name.endswith("mask.mrc")]


@pytest.mark.parametrize(
    "settings",
    [
        ["resegment_conditioning=true"],
        ["resegment_conditioning=true", "net.input_slices=3", "encode_batch_size=2"],
        ["resegment_conditioning=false", "write_preview=false"],
        [
            "tiles.size_voxels=32",
            "views=2",
            "postprocess=thin_noise",
            "write_logits=true",
            "write_instances=true",
            "write_page=true",
        ],
    ],
    ids=str,
)
def test_a_prediction_reads_each_slice_three_times(predict, tomogram, monkeypatch, settings):
    reads, real = Counter(), Volume.__getitem__

    def counted(volume, z):
        if volume.path is not None and volume.path.name == "tomo.mrc":
            reads[z] += 1
        return real(volume, z)

    monkeypatch.setattr(Volume, "__getitem__", counted)
    outcome = predict("tomo.mrc", *settings)
    assert outcome.status == 0, outcome.stderr
    assert reads == dict.fromkeys(range(SHAPE[0]), 3)  # measured, stage 1, stage 2


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(116, "Stale file handle")], ids=str)
def test_a_slice_that_cannot_be_read_does_not_end_the_list(predict, three, monkeypatch, error, caplog):
    real = Volume.__getitem__

    def spoiled(volume, z):
        if volume.path is not None and volume.path.name == "bad.mrc" and z == 2:
            raise error
        return real(volume, z)

    monkeypatch.setattr(Volume, "__getitem__", spoiled)
    outcome = predict(*three, "write_preview=false")
    assert outcome.status == 1
    assert outcome.message.startswith("bad.mrc ")
    assert error.strerror in caplog.text
    assert masks(outcome) == MASKS


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_for_one_tomogram_does_not_end_the_list(predict, three, monkeypatch, error, caplog):
    real, calls = TwoStage.forward, []

    def forward(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(self, *arguments, **options)

    monkeypatch.setattr(TwoStage, "forward", forward)
    outcome = predict(*three, "write_preview=false")
    assert outcome.status == 1
    assert "bad.mrc: out of memory" in caplog.text
    assert masks(outcome) == MASKS


@pytest.mark.parametrize("error", [IndexError("of a defect"), RuntimeError("of a defect")], ids=str)
def test_any_other_error_is_a_defect_and_ends_the_list(predict, three, monkeypatch, error):
    def forward(self, *arguments, **options):
        raise error

    monkeypatch.setattr(TwoStage, "forward", forward)
    outcome = predict(*three, "write_preview=false")
    assert (outcome.status, outcome.files) == (1, [])
    assert type(error).__name__ in outcome.message


def test_logits_that_wait_on_the_disk_count_for_the_free_space(predict, tomogram, monkeypatch):
    waiting = 2 * SHAPE[0] * (64 // 4) ** 2 * 4  # both stages, one tile, float32
    mask = SHAPE[0] * SHAPE[1] * SHAPE[2]
    for free, status in ((waiting + mask - 1, 1), (waiting + mask, 0)):
        usage = type("usage", (), {"free": free})
        with monkeypatch.context() as patch:
            patch.setattr("etsam.prediction.writer.shutil.disk_usage", lambda path, usage=usage: usage)
            assert predict("tomo.mrc", "write_preview=false", "tiles=whole").status == status
