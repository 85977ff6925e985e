"""Runs of training with the toy network through the real entry point, as several files of tests start them."""

import csv
import io
import logging
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr

import numpy as np
import pytest
from command_line import status_of
from lightning.pytorch.callbacks import Callback

from etsam.paths import resource_path
from etsam.volume import MrcWriter

SHAPE = (12, 72, 80)
TINY = ["net=tiny_test", "loss=sam2", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
TINY += ["data.crop=64", "data.num_slices=8", "data.epoch_clips=8", "data.batch_size=1", "trainer=cpu"]
NO_DROPOUT = [f"net.memory_attention.layer.{part}dropout=0" for part in ("", "self_attention.", "cross_attention.")]


def tomogram(seed):
    """Noise with a dark shell, and the mask of the shell; (Z, Y, X)."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    mask = abs(np.sqrt((z - 4.0) ** 2 + (y - 35) ** 2 + (x - 40) ** 2) - 25) < 2
    return (np.random.default_rng(seed).normal(size=SHAPE) - 2.0 * mask).astype(np.float32), mask.astype(np.int8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    rows = ["dataset_id,run_id,split,tomogram,target_mask"]
    for seed, split in enumerate(["train", "train", "val"]):
        for name, data in zip((f"t{seed}", f"m{seed}"), tomogram(seed), strict=True):
            with MrcWriter(folder / f"{name}.mrc", SHAPE, data.dtype, voxel_size_angstrom=(10, 10, 10)) as writer:
                for z in range(SHAPE[0]):
                    writer[z] = data[z]
        rows.append(f"sim,{seed},{split},t{seed}.mrc,m{seed}.mrc")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def command(*overrides, experiment="nano_stage1"):
    script = [sys.executable, str(resource_path("train.py")), f"experiment={experiment}"]
    return [*script, "data.sources.own.manifest=manifest.csv", *TINY, *overrides]


def train(folder, *overrides, experiment="nano_stage1", status=0):
    """What `etsam train` says on standard error; in this process, since starting one takes as long as a run."""
    settings = ["train", *command(*overrides, experiment=experiment)[2:]]
    said = io.StringIO()
    listener = logging.StreamHandler(said)  # the one of the command line has the standard error of an earlier run
    logging.getLogger("etsam").addHandler(listener)
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["etsam", *settings])
        try:
            ended = status_of(settings)
        finally:
            logging.getLogger("etsam").removeHandler(listener)
    assert ended == status, said.getvalue()
    return said.getvalue()


def train_apart(folder, *overrides, experiment="nano_stage1", status=0):
    """What `python train.py` says on standard error; in processes of its own."""
    done = subprocess.run(
        command(*overrides, experiment=experiment),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr


def curve(folder, name):
    """{step: training loss} and {`val` + epoch: Dice} of a run."""
    found = {}
    for row in rows(folder, name):
        if row.get("train/loss"):
            found[int(row["step"])] = float(row["train/loss"])
        if row.get("val/dice"):
            found[f"val{row['epoch']}"] = float(row["val/dice"])
    return found


def rows(folder, name):
    """Rows of `metrics.csv`."""
    return list(csv.DictReader((folder / "runs" / name / "metrics.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted run."""
    train(folder, "name=whole")
    return curve(folder, "whole")


class At(Callback):
    """Sends its process a signal, or raises an error, once: before a step, or when validation begins."""

    def __init__(self, step=None, number=None):
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.step is not None and trainer.global_step == self.step:
            self._do()

    def on_validation_start(self, trainer, pl_module):
        if self.step is None:
            self.step = -1
            self._do()

    def _do(self):
        if self.number is None:
            raise RuntimeError("a step went wrong")
        os.kill(os.getpid(), signal.Signals[self.number])
