"""Files are examined and measured once in a run, and a validation reads a tomogram as a prediction does."""

from collections import Counter
from dataclasses import replace

import lightning
import numpy as np
import pytest
from test_datamodule import QUIET, module, source
from test_manifest import with_mask
from test_schedule import Cheap

from etsam.data import checks, measured
from etsam.training.callbacks import SliceLogger
from etsam.volume import Volume

pytestmark = pytest.mark.filterwarnings(*QUIET)
DEPTH = 6


@pytest.fixture
def counted(monkeypatch):
    """Calls by name, and reads of planes by file."""
    calls, planes = Counter(), Counter()

    def counting(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((checks, "examine"), (checks, "fingerprint"), (measured, "measure"), (measured, "summarize")):
        counting(owner, name)
    read = Volume.__getitem__

    def plane(volume, z):
        planes[volume.path.name] += np.ndim(z) == 0
        return read(volume, z)

    monkeypatch.setattr(Volume, "__getitem__", plane)
    return calls, planes


def test_a_run_examines_and_measures_each_file_once_and_validates_by_what_was_measured(tmp_path, counted):
    calls, planes = counted
    data = module(source(tmp_path, "own", train=2), epoch_clips=2)  # and one for validation
    data.prepare_data()
    (sample,) = data.val_samples
    before = planes[sample.tomogram.name]
    callbacks = [SliceLogger(folder=tmp_path / "slices")]
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Cheap(), datamodule=data)
    assert calls == {"examine": 1, "fingerprint": 3, "measure": 3, "summarize": 3}
    each = (planes[sample.tomogram.name] - before) / 3
    assert each <= DEPTH + 2  # stage 1, slice 0 again, and the one that is shown
    assert len(list((tmp_path / "slices").glob("*.png"))) == 3


def test_tomograms_without_membrane_do_not_count_for_the_dice_but_for_themselves(tmp_path):
    def validated(samples):
        data = module(manifest, epoch_clips=2)
        data.samples = {"own": samples}
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        trainer = lightning.Trainer(accelerator="cpu", **dict.fromkeys(quiet, False))
        return trainer.validate(Cheap(), datamodule=data, verbose=False)[0]

    manifest = source(tmp_path, "own", train=1, val=2)
    train, kept, last = module(manifest).samples["own"]
    empty = replace(with_mask(last, np.zeros((6, 20, 28), np.int8)), extra=(("without_membrane", "yes"),))
    both, one = validated([train, kept, empty]), validated([train, kept])
    assert both["val/dice"] == both["val/dice_own"] == one["val/dice"]
    assert 0 < both["val/false_fraction_empty"] <= 1
    assert "val/false_fraction_empty" not in one
