"""`etsam train` and `etsam finetune` as they are typed; the runs themselves are elsewhere."""

import pytest
from omegaconf import OmegaConf

from etsam.cli import finetune
from etsam.cli.main import build_parser
from etsam.training.run import TrainingResult


def test_all_settings_are_listed_with_what_they_do(etsam):
    listed = etsam("train", "--list").stdout
    for part in (
        "max_time: null",
        "# checkpoint, or a name of `etsam weights list`",
        "epoch_clips: null",
        "finetune_nano",
    ):
        assert part in listed


def test_the_choices_of_a_group_are_listed_in_full(etsam):
    listed = etsam("train", "--list", "experiment").stdout
    assert "----- experiment=nano_stage1" in listed
    assert "epoch_clips: 400" in listed
    assert etsam("train", "--list", "nothing").status == 1


def test_the_settings_of_a_command_are_shown_without_a_run(etsam, work):
    outcome = etsam("train", "experiment=nano_stage1", "data.sources.own.manifest=x.csv", "seed=7", "--cfg", "job")
    assert outcome.status == 0
    assert OmegaConf.create(outcome.stdout).seed == 7
    assert not (work / "runs").exists()


def test_a_sweep_on_several_devices_is_one_line_with_the_way_that_works(etsam, monkeypatch):
    words = ["experiment=nano_stage1", "data.sources.own.manifest=x.csv", "name=x", "seed=0,1", "trainer=ddp_cpu"]
    monkeypatch.setattr("sys.argv", ["etsam", "train", "--multirun", *words])
    outcome = etsam("train", "--multirun", *words)
    assert outcome.status == 1
    assert "trainer.devices=2" in outcome.message
    assert "for seed in" in outcome.message


def test_settings_are_added_replaced_and_taken_away(etsam):
    words = [
        "experiment=finetune",
        "data.sources.own.manifest=x.csv",
        "~callbacks.early_stopping",
        "++trainer.max_epochs=3",
    ]
    outcome = etsam("train", *words, "--cfg", "job")
    cfg = OmegaConf.create(outcome.stdout)
    assert "early_stopping" not in cfg.callbacks
    assert cfg.trainer.max_epochs == 3
    assert "callbacks.nothing" in etsam("train", *words[:2], "~callbacks.nothing", "--cfg", "job").message


def test_nothing_to_train_is_one_line(etsam):
    assert "etsam train --list" in etsam("train").message


class Runs:
    """Stands for `run`: notes the configs, and says that a stage became better or not."""

    def __init__(self, *better):
        self.better, self.configs = list(better), []

    def __call__(self, cfg, *, fixed_data):
        assert fixed_data
        self.configs.append(cfg)
        improved = self.better.pop(0)
        best = f"runs/{cfg.name}/checkpoints/best.ckpt"
        return TrainingResult(best_checkpoint=best, best_score=0.5, dice_before={"own": 0.4 if improved else 0.6})


@pytest.mark.parametrize(
    ("better", "stage1", "end"),
    [
        ((True, True), "runs/lab_stage1/checkpoints/best.ckpt", "weights.stage2=runs/lab_stage2/checkpoints/best.ckpt"),
        ((True, False), "runs/lab_stage1/checkpoints/best.ckpt", "weights.stage2=nano_stage2"),
        ((False, True), "nano_stage1", "weights.stage1=nano_stage1"),
        ((False, False), "nano_stage1", "neither stage became better"),
    ],
)
def test_both_stages_are_tuned_and_what_did_not_become_better_is_left(work, monkeypatch, caplog, better, stage1, end):
    runs = Runs(*better)
    monkeypatch.setattr("etsam.training.run.run", runs)
    caplog.set_level("INFO", "etsam")
    words = ["finetune", "my data.csv", "trainer.max_epochs=3", "--name", "lab", "--old", "old.csv"]
    args, rest = build_parser().parse_known_args(words)
    assert not rest
    finetune.run(args)
    first, second = runs.configs
    assert [cfg.name for cfg in runs.configs] == ["lab_stage1", "lab_stage2"]
    assert (first.start, second.start) == ("nano_stage1", "nano_stage2")
    assert (first.stage1, second.stage1.checkpoint) == (None, stage1)
    for cfg in runs.configs:
        assert cfg.data.sources.own.manifest == "my data.csv"
        assert cfg.data.sources.old.manifest == "old.csv"
        assert cfg.trainer.max_epochs == 3
        assert cfg.ckpt_path == "auto"
        assert cfg.guard.source == "own"
    assert end in caplog.text


def test_the_published_weights_have_their_own_recipe(work, monkeypatch):
    runs = Runs(True, True)
    monkeypatch.setattr("etsam.training.run.run", runs)
    args, _ = build_parser().parse_known_args(["finetune", "m.csv", "--weights", "etsam_v1"])
    finetune.run(args)
    assert [cfg.start for cfg in runs.configs] == ["etsam_stage1_v1", "etsam_stage2_v1"]
    assert {cfg.net.image_size for cfg in runs.configs} == {1024}
