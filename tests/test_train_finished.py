"""Runs that are finished: they are not trained on by chance, and what they came to is told again."""

import io
import logging
import re
from contextlib import redirect_stderr

import pytest
import torch
from command_line import status_of
from training_runs import TINY, folder, train  # noqa: F401

from etsam.errors import OutputError
from etsam.training import run

SHORT = ["data.epoch_clips=1", "data.num_slices=2", "validation.max_slices=2"]
EARLY = ["trainer.max_epochs=6", "callbacks.early_stopping.patience=1", "+callbacks.early_stopping.min_delta=0.9"]


def finetune(folder, *words, status=0):
    """What `etsam finetune` with the toy network says on standard error."""
    said = io.StringIO()
    listener = logging.StreamHandler(said)
    logging.getLogger("etsam").addHandler(listener)
    start = "start=runs/ended/checkpoints/last.ckpt"
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        patch.chdir(folder)
        patch.setattr("etsam.cli.finetune._better", lambda result, start: str(result.best_checkpoint))
        try:
            ended = status_of(["finetune", "manifest.csv", *TINY, *SHORT, start, *EARLY, *words])
        finally:
            logging.getLogger("etsam").removeHandler(listener)
    assert ended == status, said.getvalue()
    return said.getvalue()


def contents(folder, *names):
    """Every file of the checkpoints of runs, and its bytes."""
    files = [path for name in names for path in (folder / f"runs/{name}/checkpoints").iterdir()]
    return {path: path.read_bytes() for path in files}


def epochs(folder, name):
    return torch.load(folder / f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["epoch"]


STAGES = ("lab_stage1", "lab_stage2")


@pytest.fixture(scope="module")
def ended(folder):
    """A run of two epochs."""
    train(folder, "name=ended", *SHORT)


@pytest.fixture(scope="module")
def lab(folder, ended):
    """Both stages, of which each stopped early."""
    return finetune(folder, "--name", "lab")


def test_a_finished_finetune_changes_nothing_and_tells_its_end_again(folder, lab):
    before = contents(folder, *STAGES)
    again = finetune(folder, "--name", "lab")
    assert contents(folder, *STAGES) == before
    end = lab.splitlines()[-1].partition("etsam predict")[2]
    assert end
    assert end in again
    assert "lab_stage2 is finished (2 epochs; " in again
    assert "trainer.max_epochs=7 or more" in again


def test_stage_2_goes_on_after_a_break_without_stage_1_being_trained_again(folder, ended, monkeypatch):
    prepare = run._prepare_stage1

    def broken(cfg, data):
        prepare(cfg, data)
        if cfg.stage1 is not None:
            raise OutputError("broken off")

    monkeypatch.setattr("etsam.training.run._prepare_stage1", broken)
    assert "broken off" in finetune(folder, "--name", "cut", status=1)
    monkeypatch.undo()
    before = contents(folder, "cut_stage1")
    assert "cut_stage1 is finished" in finetune(folder, "--name", "cut")
    assert contents(folder, "cut_stage1") == before
    assert epochs(folder, "cut_stage2") == 1


def test_a_run_that_ended_goes_on_if_it_may_be_longer(folder, ended):
    before = contents(folder, "ended")
    assert "is finished (2 epochs" in train(folder, "name=ended", *SHORT, "ckpt_path=last")
    assert contents(folder, "ended") == before
    assert "goes on from" in train(folder, "name=ended", *SHORT, "ckpt_path=last", "trainer.max_epochs=3")
    assert epochs(folder, "ended") == 2
    assert "is finished (3 epochs" in train(folder, "name=ended", *SHORT, "ckpt_path=auto")


def test_a_changed_manifest_is_not_answered_with_the_old_result(folder, lab):
    manifest, before = folder / "manifest.csv", contents(folder, *STAGES)
    lines = manifest.read_text().splitlines(keepends=True)
    try:
        manifest.write_text("".join([*lines[:1], *lines[2:]]))
        said = finetune(folder, "--name", "lab", status=1)
        assert re.search(r"the manifest has changed since runs/lab_stage2 .*; --name OTHER", said)
        said = train(folder, "name=ended", *SHORT, "ckpt_path=last", "trainer.max_epochs=1", status=1)
        assert re.search(r"the manifest has changed since \S*runs/ended .*; name=OTHER", said)
    finally:
        manifest.write_text("".join(lines))
    assert contents(folder, *STAGES) == before
