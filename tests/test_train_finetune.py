"""Fine-tuning: what it starts from, how often it is validated, by what its best state is chosen, and what it tells."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from training_runs import folder, rows, tomogram, train, whole  # noqa: F401

from etsam.app import compose_config
from etsam.data.datamodule import Source
from etsam.data.manifest import Sample
from etsam.errors import ConfigError, EtsamError, InputError
from etsam.training.module import Guard
from etsam.training.run import _check_guard, _check_validated, _stage2_experiment, check_settings
from etsam.volume import MrcWriter

FINETUNE = ["finetune", "finetune_nano", "finetune_stage2", "finetune_nano_stage2"]


def composed(experiment, *overrides):
    return compose_config("train", [f"experiment={experiment}", "name=x", "data.sources.own.manifest=x", *overrides])


@pytest.mark.parametrize("experiment", [*FINETUNE, "stage1", "stage2"])
def test_weights_to_start_from_have_to_be_named(experiment):
    assert OmegaConf.is_missing(composed(experiment), "start")


@pytest.mark.parametrize("experiment", ["nano_slices", "nano_stage1"])
def test_experiments_from_nothing_say_so(experiment):
    assert composed(experiment).start is None


@pytest.mark.parametrize("experiment", ["nano_stage2", "nano_stage2_slices"])
def test_stage_2_of_nano_starts_from_stage_1_unless_told_otherwise(experiment):
    assert composed(experiment, "stage1.checkpoint=first.ckpt").start == "first.ckpt"
    assert composed(experiment, "stage1.checkpoint=first.ckpt", "start=null").start is None


def test_a_forgotten_start_is_one_line_and_no_folder(folder):
    assert "start is not given" in train(folder, "name=forgotten", experiment="finetune", status=1)
    assert "error: stage1.checkpoint is" in train(folder, "name=forgotten", experiment="nano_stage2", status=1)
    assert not (folder / "runs/forgotten").exists()


@pytest.mark.parametrize("experiment", FINETUNE)
def test_there_are_steps_enough_between_two_validations_of_two_tomograms(experiment):
    cfg = composed(experiment, "start=x")
    assert cfg.data.epoch_clips // cfg.data.batch_size >= 50
    # a slice of a validated tile costs less than a step's slice, and a step has at least four
    validated = cfg.validation.max_slices * cfg.data.val_tomograms
    assert validated <= cfg.data.epoch_clips


@pytest.mark.parametrize("experiment", FINETUNE)
def test_the_recipes_fit_their_networks(experiment):
    cfg = composed(experiment, "start=x")
    check_settings(cfg)
    assert cfg.callbacks.best.monitor == cfg.callbacks.early_stopping.monitor == "val/guarded"
    assert (cfg.stage1 is None) == ("stage2" not in experiment)


def test_a_guard_of_a_source_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"guard\.source"):
        check_settings(composed("finetune", "start=x", "guard.source=mine"))


def test_the_best_state_has_the_highest_own_dice_of_those_that_keep_the_old():
    guard = Guard("own", 0.01)
    before = {"own": 0.4, "old": 0.65}
    epochs = [{"own": 0.45, "old": 0.66}, {"own": 0.60, "old": 0.63}, {"own": 0.50, "old": 0.645}]
    scores = [guard.score(dice, before) for dice in epochs]
    assert scores == [0.45, pytest.approx(0.60 - 1), 0.50]


@pytest.fixture(scope="module")
def old(folder):
    """A second source: other noise, for training and validation."""
    lines = ["dataset_id,run_id,split,tomogram,target_mask"]
    for seed, split in ((7, "train"), (8, "val")):
        for name, data in zip((f"t{seed}", f"m{seed}"), tomogram(seed), strict=True):
            with MrcWriter(folder / f"{name}.mrc", data.shape, data.dtype) as writer:
                for z, plane in enumerate(data):
                    writer[z] = plane
        lines.append(f"old,{seed},{split},t{seed}.mrc,m{seed}.mrc")
    (folder / "old.csv").write_text("\n".join(lines) + "\n")
    return ["+data.sources.old.manifest=old.csv", "+data.sources.old.weight=0.3"]


@pytest.fixture(scope="module")
def tuned(folder, whole, old):
    """What a run of fine-tuning with old data said."""
    start = "start=runs/whole/checkpoints/last.ckpt"
    return train(folder, "name=tuned", start, *old, "optimizer.lr=1e-3", experiment="finetune_nano")


def test_the_first_row_is_what_the_weights_were_worth_and_sources_are_told_apart(folder, tuned):
    validated = [row for row in rows(folder, "tuned") if row.get("val/dice")]
    assert [row["step"] for row in validated] == ["0", "7", "15"]
    for row in validated:
        mean = (float(row["val/dice_own"]) + float(row["val/dice_old"])) / 2
        assert float(row["val/dice"]) == pytest.approx(mean, rel=1e-5)


def test_the_best_file_is_of_the_epoch_with_the_highest_guarded_score(folder, tuned):
    epochs = [row for row in rows(folder, "tuned") if row.get("val/guarded")][1:]
    best = max(epochs, key=lambda row: float(row["val/guarded"]))
    (file,) = (folder / "runs/tuned/checkpoints").glob("best_*")
    assert file.name == f"best_{int(best['epoch']):04d}_{float(best['val/dice_own']):.4f}.ckpt"
    kept = torch.load(file, weights_only=True)
    assert kept["scores"] == {
        "own": pytest.approx(float(best["val/dice_own"])),
        "old": pytest.approx(float(best["val/dice_old"])),
    }
    assert set(kept["scores_at_start"]) == {"own", "old"}


def test_the_last_lines_say_what_it_came_to_and_what_to_do(folder, tuned):
    (file,) = (folder / "runs/tuned/checkpoints").glob("best_*")
    assert "starts from the weights runs/whole/checkpoints/last.ckpt" in tuned
    assert "before training" in tuned
    end = tuned.partition("at the best state")[2]
    assert "own 0." in end
    assert "old 0." in end
    assert f"weights.stage1=runs/tuned/checkpoints/{file.name}" in end
    assert f"experiment=finetune_nano_stage2 net=tiny_test stage1.checkpoint=runs/tuned/checkpoints/{file.name}" in end


@pytest.mark.parametrize(
    ("given", "advised"),
    [
        (["finetune"], "experiment=finetune_stage2"),
        (["finetune_nano", "optimizer.lr=1e-5", "data.crop=64"], "experiment=finetune_nano_stage2"),
        (["finetune", "net=sam2.1_hiera_s"], "experiment=finetune_stage2 net=sam2.1_hiera_s"),
        (["finetune_nano", "net.num_maskmem=3"], "experiment=finetune_nano_stage2 net=AS_TRAINED"),
    ],
)
def test_stage_2_is_advised_by_the_recipe_and_network_of_stage_1(given, advised):
    assert _stage2_experiment(composed(*given)) == advised


MEMBRANE = {"full": [0, 5, 5, 0], "empty": [0, 0, 0, 0]}


@pytest.mark.parametrize(
    ("own", "old", "found"),
    [
        ("full", "full", None),
        ("full", None, r"old\.csv \(data\.sources\.old\) has no tomogram of the split val"),
        ("full", "empty", r"old\.csv .* no membrane in the 1 tomograms"),
        ("empty", "full", r"own\.csv"),
    ],
)
def test_every_source_that_the_guard_compares_needs_membrane_in_val(monkeypatch, own, old, found):
    monkeypatch.setattr(
        "etsam.data.measured.mask_summary", lambda mask, _: SimpleNamespace(membrane=np.array(MEMBRANE[mask]))
    )
    data = SimpleNamespace(
        cache_folder=None,
        sources={name: Source(f"{name}.csv") for name in ("own", "old")},
        validation=[
            (name, SimpleNamespace(target_mask=mask)) for name, mask in (("own", own), ("old", old)) if mask is not None
        ],
    )
    with nullcontext() if found is None else pytest.raises(InputError, match=found):
        _check_guard(composed("finetune_nano", "start=x", "validation.max_slices=2"), data)


def test_old_data_without_val_are_refused_before_anything_is_trained(folder, old):
    lines = (folder / "old.csv").read_text().splitlines()
    (folder / "unguarded.csv").write_text("\n".join(row for row in lines if ",val," not in row))
    settings = ["start=null", "+data.sources.old.manifest=unguarded.csv"]
    assert "unguarded.csv (data.sources.old)" in train(
        folder, "name=unguarded", *settings, experiment="finetune_nano", status=1
    )


def test_stage_2_is_tuned_too(folder, whole):
    stage1 = "runs/whole/checkpoints/last.ckpt"
    said = train(
        folder,
        "name=tuned2",
        f"start={stage1}",
        f"stage1.checkpoint={stage1}",
        "trainer.max_epochs=1",
        experiment="finetune_nano_stage2",
    )
    assert f"weights.stage1={stage1} weights.stage2=runs/tuned2/checkpoints/best_0000_" in said


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key.*")
@pytest.mark.parametrize(
    "given", ["trainer.limit_val_batches=0", "trainer.max_steps=3", "callbacks.early_stopping=null"]
)
def test_a_tuning_that_ends_without_a_validation_is_saved(folder, given):
    name = f"unjudged_{given.partition('=')[0].rpartition('.')[2]}"
    settings = [f"name={name}", "start=null", "trainer.max_epochs=1", given]
    train(folder, *settings, experiment="finetune_nano")
    assert (folder / f"runs/{name}/checkpoints/last.ckpt").exists()


NOTHING = {True: (), False: (("without_membrane", "yes"),)}


class Listed:
    """Validation tomograms by source, with membrane or without."""

    def __init__(self, *tomograms):
        self.validation = [
            (source, Sample("set", str(number), "val", Path("t"), Path("m"), extra=NOTHING[membrane]))
            for number, (source, membrane) in enumerate(tomograms)
        ]


def test_a_validation_that_would_score_nothing_is_refused():
    data = Listed(("own", False), ("old", True), ("own", True))
    _check_validated(composed("finetune"), data, 1)
    for limit, named in (("1", "set/0"), ("2", r"guard\.source"), ("0.1", r"limit_val_batches=0\.1 of 3")):
        with pytest.raises(EtsamError, match=named):
            _check_validated(composed("finetune", f"trainer.limit_val_batches={limit}"), data, 1)
    _check_validated(composed("finetune", "trainer.limit_val_batches=0"), data, 1)


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key.*")
def test_the_validation_before_training_changes_nothing_of_it(folder, whole):
    start = ["start=runs/whole/checkpoints/last.ckpt", "trainer.max_epochs=1"]
    train(folder, "name=with", *start)
    train(folder, "name=without", *start, "trainer.limit_val_batches=0")
    losses = [
        [row["train/loss"] for row in rows(folder, name) if row.get("train/loss")] for name in ("with", "without")
    ]
    assert losses[0] == losses[1]
