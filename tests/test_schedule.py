"""The learning rate comes to its last value with the last step, whatever ends a run."""

import math

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from networks import random_tracker
from test_datamodule import QUIET, module, source

from etsam.errors import ConfigError
from etsam.inference import prompts
from etsam.training.module import OptimizerSettings, StageTraining, _Resumed
from etsam.training.reporting import suggested_rate
from etsam.training.schedule import CosineToFraction, RangeTest
from etsam.training.validation import Validator

pytestmark = pytest.mark.filterwarnings(*QUIET)


class Cheap(StageTraining):
    """Trains the real parameters at the real rates, by a loss that costs nothing."""

    def __init__(self, **settings):
        rates = OptimizerSettings(lr=1.0, encoder_lr=1.0, layer_decay=1.0, final_fraction=0.125, **settings)
        super().__init__(random_tracker(), None, None, Validator(prompts.zero), rates)

    def training_step(self, batch, batch_idx):
        return sum(parameter.sum() for parameter in self.parameters()) * 0


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return source(tmp_path_factory.mktemp("schedule"), "own", train=3)  # 12 clips an epoch


def fitted(manifest, stage, batch_size=2, checkpoint=None, **limits):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        accelerator="cpu", limit_val_batches=0, gradient_clip_val=0.1, **dict.fromkeys(quiet, False), **limits
    )
    data = module(manifest, batch_size=batch_size)
    trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"max_epochs": 2}, 12),
        ({"max_epochs": 2, "limit_train_batches": 2}, 4),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 6),
        ({"max_epochs": 2, "limit_train_batches": 100}, 12),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 4),
        ({"max_epochs": 2, "accumulate_grad_batches": 4, "limit_train_batches": 3}, 2),
        ({"max_epochs": 2, "max_steps": 5}, 5),
        ({"max_epochs": 1, "max_steps": 50}, 6),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"fast_dev_run": 3}, 3),
    ],
    ids=str,
)
def test_the_rate_ends_at_the_fraction_with_the_last_step(manifest, limits, steps):
    trainer = fitted(manifest, Cheap(), **limits)
    assert trainer.global_step == steps
    (optimizer,) = trainer.optimizers
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.125)


@pytest.mark.parametrize("devices", [2, 3])
def test_several_devices_share_the_steps_of_an_epoch(manifest, devices, monkeypatch):
    stage = Cheap()
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False)
    stage.trainer = trainer
    trainer.datamodule = module(manifest, batch_size=2)
    monkeypatch.setattr(lightning.Trainer, "world_size", devices)
    assert stage.total_steps() == 4 * (12 // (2 * devices))


def paused(manifest, folder, **limits):
    """A run of four epochs that stopped; its checkpoint."""
    trainer = fitted(manifest, Cheap(), **limits)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


class Rates(Callback):
    """Rate of each step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


def resumed(manifest, checkpoint, batch_size=2, **limits):
    rates = Rates()
    trainer = fitted(manifest, Cheap(), batch_size, checkpoint, callbacks=[rates], **limits)
    return trainer, rates.seen


def test_a_run_that_goes_on_with_another_batch_ends_at_the_fraction(manifest, tmp_path):
    checkpoint = paused(manifest, tmp_path, max_epochs=2)  # 12 steps
    trainer, rates = resumed(manifest, checkpoint, batch_size=4, max_epochs=4)
    assert trainer.global_step == 12 + 2 * 3
    schedule = CosineToFraction(18, 0.125)
    assert rates == pytest.approx([schedule(step) for step in range(12, 18)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.125)


def test_a_longer_run_takes_its_new_rate_from_the_first_step_on_and_says_so(manifest, tmp_path, caplog):
    checkpoint = paused(manifest, tmp_path, max_epochs=2)
    caplog.set_level("WARNING", "etsam")
    _, rates = resumed(manifest, checkpoint, max_epochs=4)
    schedule = CosineToFraction(24, 0.125)
    assert rates == pytest.approx([schedule(step) for step in range(12, 24)])
    assert f"rises from 0.125 to {schedule(12):.3g}" in caplog.text


@pytest.mark.parametrize(
    ("done", "now", "left"), [((3, 6), (6, 12, 2), 3), ((3, 6), (3, 12, 4), 0), ((1, 4), (6, 12, 2), 4)]
)
def test_batches_that_remain_of_an_epoch_are_those_that_the_loader_still_gives(done, now, left):
    assert _Resumed(3, 1, True, *done).batches_left(*now) == left
    assert _Resumed(3, 1, False, *done).batches_left(*now) == 0


def test_a_warm_up_longer_than_the_run_is_told_with_the_rate_that_is_reached(manifest, caplog):
    caplog.set_level("WARNING", "etsam")
    fitted(manifest, Cheap(warmup_steps=100), max_epochs=1)
    assert "optimizer.warmup_steps=100" in caplog.text
    assert "run of 6 steps" in caplog.text
    assert "reaches 0.0594 (6 %" in caplog.text
    caplog.clear()
    fitted(manifest, Cheap(warmup_steps=5), max_epochs=1)
    assert "warmup" not in caplog.text


def test_a_fraction_of_an_epoch_that_is_less_than_a_batch_is_refused(manifest):
    with pytest.raises(ConfigError, match=r"trainer\.limit_train_batches=0\.1 of the 6 batches .* at least 0\.17"):
        fitted(manifest, Cheap(), max_epochs=1, limit_train_batches=0.1)


def test_a_run_without_end_is_refused(manifest):
    with pytest.raises(ConfigError, match=r"max_epochs"):
        fitted(manifest, Cheap(), max_epochs=-1, max_steps=-1)


def test_torch_and_lightning_count_alike(manifest):
    trainer = fitted(manifest, Cheap(), max_epochs=2, limit_train_batches=0.7, accumulate_grad_batches=3)
    assert trainer.estimated_stepping_batches == trainer.global_step == 4
    assert torch.isfinite(next(trainer.model.parameters())).all()


def test_a_range_test_raises_the_rates_ten_thousandfold(manifest):
    trainer = fitted(manifest, Cheap(range_test=True), max_epochs=2)
    (optimizer,) = trainer.optimizers
    assert optimizer.param_groups[0]["lr"] == pytest.approx(10.0)
    assert RangeTest(100)(0) == pytest.approx(1e-3)
    assert RangeTest(100)(50) == pytest.approx(0.1)


def test_the_rate_suggested_is_where_the_loss_falls_fastest():
    rates = [1e-6 * 10 ** (step / 20) for step in range(100)]
    losses = [10 - 8 / (1 + math.exp(-(step - 50) / 4)) + (0 if step < 80 else (step - 80) ** 2) for step in range(100)]
    assert rates[48] <= suggested_rate(rates, losses) <= rates[65]
    assert suggested_rate(rates, list(range(100))) is None
    assert suggested_rate(rates[:10], losses[:10]) is None
