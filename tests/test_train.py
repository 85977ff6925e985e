"""Training through the real entry points, with the toy network."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from training_runs import NO_DROPOUT, SHAPE, TINY, curve, folder, tomogram, train, train_apart, whole  # noqa: F401

from etsam.app import compose_config, explain
from etsam.data.datamodule import TomogramClips
from etsam.errors import ConfigError
from etsam.network.checkpoint import read_state_dict
from etsam.paths import resource_path
from etsam.training.module import StageTraining
from etsam.training.run import check_settings
from etsam.volume import MrcWriter

EXPERIMENTS = sorted(path.stem for path in (resource_path("configs") / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_can_do_without_augmentation_and_averaging(experiment):
    changed = ["augment=none", "callbacks=default"]
    cfg = compose_config("train", [f"experiment={experiment}", *changed, "data.sources.own.manifest=x"])
    assert not cfg.augment
    assert "ema" not in cfg.callbacks


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_builds_with_a_tiny_network(folder, experiment, tmp_path):
    overrides = [f"experiment={experiment}", f"data.sources.own.manifest='{folder / 'manifest.csv'}'", *TINY]
    cfg = compose_config("train", [*overrides, "start=null", "trainer.precision=32-true"])
    if cfg.stage1 is not None:
        cfg.stage1.checkpoint, cfg.stage1.folder = None, str(tmp_path)
    assert isinstance(instantiate(cfg.data), TomogramClips)
    assert isinstance(instantiate(cfg.stage, _convert_="all"), StageTraining)
    callbacks = instantiate(cfg.callbacks)
    assert {"best", "last"} <= set(callbacks)
    # W&B calls the file of any other the best one, too
    assert all(one.monitor for one in callbacks.values() if isinstance(one, ModelCheckpoint))
    instantiate(cfg.trainer, logger=False)


def test_one_seed_is_that_of_weights_clips_and_prompts():
    cfg = compose_config("train", ["experiment=nano_stage1", "data.sources.own.manifest=x", "seed=7"])
    assert cfg.stage.tracker.seed == cfg.data.seed == cfg.stage.seed == 7


def test_a_run_learns_validates_and_saves(folder, whole):
    assert [key for key in whole if isinstance(key, int)] == list(range(16))
    assert {"val0", "val1"} <= set(whole)
    assert all(np.isfinite(value) for value in whole.values())
    saved = {path.name for path in (folder / "runs/whole/checkpoints").iterdir()}
    assert "last.ckpt" in saved
    assert any(name.startswith("best_") for name in saved)
    assert list((folder / "runs/whole/slices").glob("*.png"))


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(folder):
    train(folder, "name=one", *NO_DROPOUT, "data.batch_size=2")
    stderr = train_apart(folder, "name=two", *NO_DROPOUT, "trainer=ddp_cpu", "data.batch_size=1")
    assert "GLOBAL_RANK" not in stderr
    one, two = curve(folder, "one"), curve(folder, "two")
    assert one.keys() == two.keys()
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert [two[key] for key in two] == pytest.approx([one[key] for key in one], rel=1e-2)
    train_apart(folder, "name=two", *NO_DROPOUT, "trainer=ddp_cpu", "ckpt_path=last", "trainer.max_epochs=3")
    assert "val2" in curve(folder, "two")


@pytest.mark.parametrize(("trainer", "right"), [("cpus", "ddp_cpu"), ("gpus", "ddp")])
def test_a_trainer_of_prediction_is_refused(trainer, right):
    with pytest.raises(ConfigError, match=rf"for prediction: .* Take trainer={right}\."):
        check_settings(compose_config("train", ["experiment=nano_stage1", "name=x", f"trainer={trainer}"]))


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (["trainer=auto", "trainer.devices=2"], "ddp trainer.devices=2"),
        (["trainer=cpu", "trainer.devices=3"], "ddp_cpu trainer.devices=3"),
        (["trainer=auto", "trainer.devices=[0,1]"], "ddp trainer.devices="),
        (["trainer=auto", "trainer.num_nodes=2"], "ddp"),
    ],
)
def test_several_devices_without_their_strategy_are_refused(given, right):
    with pytest.raises(ConfigError, match=re.escape(f"Take trainer={right}")):
        check_settings(compose_config("train", ["experiment=nano_stage1", "name=x", *given]))


def test_an_object_score_that_the_loss_does_not_train_is_refused():
    nano = ["experiment=nano_stage1", "name=x", "net=tiny_test"]
    with pytest.raises(ConfigError, match=r"loss=sam2, or net\.pred_obj_scores=false"):
        check_settings(compose_config("train", nano))
    check_settings(compose_config("train", [*nano, "loss=sam2"]))
    without = compose_config("train", [*nano, "net.pred_obj_scores=false", "net.fixed_no_obj_ptr=false"])
    check_settings(without)
    instantiate(without.stage.tracker)


@pytest.mark.parametrize(
    ("given", "named"),
    [("~callbacks", "callbacks=null"), ("callbacks.last=null", "callbacks.last=null"), ("~logger", "logger=null")],
)
def test_a_run_that_would_leave_nothing_is_refused(given, named):
    with pytest.raises(ConfigError, match=re.escape(named)):
        check_settings(compose_config("train", ["experiment=nano_stage1", "name=x", given]))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_rate_of_the_encoder_follows_the_rate(experiment):
    """Where nothing is set it is the number that it was before."""
    once = compose_config("train", [f"experiment={experiment}"]).optimizer
    usual = {"nano_slices": (7e-4, 7e-4), "nano_stage1": (4e-4, 3e-4)}
    usual |= dict.fromkeys(["nano_stage2", "nano_stage2_slices"], (4e-4, 3e-4))
    usual |= dict.fromkeys(["finetune_nano", "finetune_nano_stage2"], (1.5e-4, 1.5e-4))
    assert (once.lr, once.encoder_lr) == usual.get(experiment, (5e-6, 3e-6))
    twice = compose_config("train", [f"experiment={experiment}", f"optimizer.lr={2 * once.lr}"]).optimizer
    assert twice.encoder_lr == pytest.approx(2 * once.encoder_lr, rel=1e-12)
    assert compose_config("train", [f"experiment={experiment}", "optimizer.encoder_lr=1"]).optimizer.encoder_lr == 1


@pytest.mark.parametrize("setting", ["trainer.precision=16-true", "+trainer.overfit_batches=1"])
def test_what_training_cannot_do_is_refused_with_what_it_can(setting):
    with pytest.raises(ConfigError, match=setting.lstrip("+").partition("=")[0]):
        check_settings(compose_config("train", ["experiment=nano_stage1", "name=x", setting]))


def test_clips_and_logits_that_do_not_suit_the_network_are_refused():
    nano = ["experiment=nano_stage2", "name=x", "stage1.checkpoint=x"]
    with pytest.raises(ConfigError, match=r"data\.num_slices=8 .* sees 21 slices at a time"):
        check_settings(compose_config("train", [*nano, "data.num_slices=8"]))
    cfg = compose_config("train", [*nano, "net=nano_v1", "data.num_slices=9"])
    check_settings(cfg)
    cfg.stage1.net = {**cfg.net, "image_size": 512}
    with pytest.raises(ConfigError, match="stage 1 has image side 512 and stage 2 256"):
        check_settings(cfg)


@pytest.mark.slow
def test_nano_stage_1_learns_one_clip_to_a_dice_of_0_9_in_minutes(folder):
    """Validated on the same shells under other noise."""
    truth = tomogram(0)[1]
    with MrcWriter(folder / "again.mrc", SHAPE, np.float32, voxel_size_angstrom=(10, 10, 10), overwrite=True) as writer:
        for z, plane in enumerate(np.random.default_rng(9).normal(size=SHAPE) - 2.0 * truth):
            writer[z] = plane.astype(np.float32)
    rows = ["dataset_id,run_id,split,tomogram,target_mask", "a,1,train,t0.mrc,m0.mrc", "a,2,val,again.mrc,m1.mrc"]
    (folder / "one.csv").write_text("\n".join(rows) + "\n")
    settings = [
        "net=nano",
        "augment=none",
        "data.crop=null",
        "data.num_slices=24",
        "data.epoch_clips=25",
        "trainer.max_epochs=4",
    ]
    settings += ["data.sources.own.manifest=one.csv", "callbacks=default", "optimizer.warmup_steps=10"]
    train(folder, "name=overfit", *settings)
    scores = [value for key, value in curve(folder, "overfit").items() if str(key).startswith("val")]
    assert max(scores) >= 0.9


def test_a_setting_that_is_not_listed_is_refused_with_the_way_to_add_it(folder):
    stderr = train(folder, "trainer.benchmark=true", status=1)
    assert "+trainer.benchmark=true" in stderr


@pytest.mark.parametrize(
    ("written", "meant"), [("trainer.max_epoch", "trainer.max_epochs"), ("optimzer.lr", "optimizer.lr")]
)
def test_a_setting_written_wrongly_is_answered_with_one_of_training(folder, written, meant):
    assert f"did you mean {meant}?" in train(folder, f"{written}=3", status=1)


@pytest.mark.parametrize("program", ["etsam", "/lib/etsam/__main__.py"])
def test_resume_is_answered_with_how_training_goes_on(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "train", "resume=true"])
    told = explain(ConfigCompositionException("Could not override 'resume'."), ["resume=true"])
    assert "ckpt_path=last" in told
    assert "did you mean" not in told


def test_checkpoints_hold_plain_values_and_the_averaged_weights_first(folder, whole):
    path = folder / "runs/whole/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    averaged = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("tracker.network.")}
    read = read_state_dict(path)
    assert all(torch.equal(value, read[key.removeprefix("tracker.network.")]) for key, value in averaged.items())
    current = checkpoint["current_model_state"]
    assert any(not torch.equal(value, current[key]) for key, value in averaged.items())


def test_stage_2_trains_on_the_logits_of_stage_1_and_prediction_reads_both(folder, whole, predict_with):
    stage1 = "runs/whole/checkpoints/last.ckpt"
    train(folder, "name=second", f"stage1.checkpoint={stage1}", experiment="nano_stage2")
    cached = list((folder / "runs/stage1_logits").glob("*.npy"))
    assert len(cached) == 3
    before = {path: path.stat().st_mtime_ns for path in cached}
    train(folder, "name=third", f"stage1.checkpoint={stage1}", "prepare_only=true", experiment="nano_stage2")
    assert {path: path.stat().st_mtime_ns for path in cached} == before
    logits = predict_with(folder / stage1, folder / "runs/second/checkpoints/last.ckpt", folder / "t0.mrc")
    assert logits.shape == SHAPE
    assert np.isfinite(logits).all()


@pytest.fixture
def predict_with():
    import etsam

    def predict(stage1, stage2, path):
        weights = ["weights=files", f"weights.stage1='{stage1}'", f"weights.stage2='{stage2}'"]
        return etsam.segment(path, overrides=["net=tiny_test", *weights]).logits

    return predict


def test_export_writes_a_small_file_that_prediction_reads(folder, whole, predict_with):
    from etsam.cli.main import main

    source, target = folder / "runs/whole/checkpoints/last.ckpt", folder / "small.safetensors"
    main(["export", str(source), str(target), "--overwrite"])
    assert target.stat().st_size < source.stat().st_size / 3
    by_file = predict_with(target, target, folder / "t0.mrc")
    np.testing.assert_array_equal(by_file, predict_with(source, source, folder / "t0.mrc"))


def test_wandb_offline_writes_config_metrics_and_images(folder):
    train_apart(folder, "name=tracked", "logger=wandb", "logger.wandb.offline=true", "trainer.max_epochs=1")
    (run,) = (folder / "runs/tracked/wandb").glob("offline-run-*")
    assert list((run / "files/media/images").rglob("*.png"))
    recorded = next(run.glob("*.wandb")).read_bytes()
    for word in (b"train/loss", b"train/grad_norm", b"train/clipped", b"val/dice", b"encoder_lr", b"commit"):
        assert word in recorded


def test_wandb_is_not_imported_unless_asked_for(folder):
    code = (
        "import sys, etsam.training.module; from etsam.app import compose_config; from hydra.utils import instantiate\n"
        "cfg = compose_config('train', ['experiment=nano_stage1', 'data.sources.own.manifest=x'])\n"
        "instantiate(cfg.logger)\n"
        "print('wandb' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.strip() == "False"
