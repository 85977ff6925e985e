"""What goes wrong in a lab with runs, their folders, sweeps and logs: nothing is lost, mixed, or kept silent."""

import logging
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from training_runs import TINY, command, curve, folder, rows, train, whole  # noqa: F401

from etsam.app import compose_config, explain
from etsam.errors import CheckpointError, ConfigError, OutputError
from etsam.network.checkpoint import nonfinite_tensors
from etsam.training.reporting import RunLog
from etsam.training.run_folder import RunFolder


def test_a_loss_that_is_no_number_stops_the_run_before_it_reaches_the_weights(folder, etsam, monkeypatch):
    rates = ["optimizer.lr=1e30", "optimizer.encoder_lr=1e30", "optimizer.warmup_steps=0", "optimizer.muon=null"]
    said = train(folder, "name=blowup", *rates, "callbacks.last.every_n_train_steps=1", status=1)
    assert "not finite" in said
    assert re.search(r"step \d+ are not finite .*optimizer\.lr=1e\+30, tomograms sim/\d", said)
    for file in (folder / "runs/blowup/checkpoints").glob("*.ckpt"):
        assert nonfinite_tensors(torch.load(file, weights_only=True)["state_dict"]) == []


def test_weights_that_are_not_finite_are_not_exported(folder, whole, etsam, monkeypatch):
    monkeypatch.chdir(folder)
    state = torch.load("runs/whole/checkpoints/last.ckpt", weights_only=True)
    state["state_dict"][next(iter(state["state_dict"]))].fill_(float("nan"))
    torch.save({"state_dict": state["state_dict"]}, "broken.ckpt")
    outcome = etsam("export", "broken.ckpt", "broken.safetensors")
    assert outcome.status == 1
    assert "not finite" in outcome.message
    assert not (folder / "broken.safetensors").exists()


def test_without_a_terminal_there_is_a_line_for_each_validation(folder):
    lines = [line for line in train(folder, "name=lines", "trainer.max_epochs=3").splitlines() if "val/dice" in line]
    assert [re.search(r"epoch (\d)/3, step (\d+)/24", line).groups() for line in lines[:3]] == [
        ("1", "8"),
        ("2", "16"),
        ("3", "24"),
    ]
    for words in ("loss ", "lr ", "gradient norm ", "best val/dice "):
        assert all(words in line for line in lines[:3])
    assert " left" in lines[0]


def test_gradient_norm_clipped_steps_and_two_rates_are_logged(folder, whole):
    every = rows(folder, "whole")
    steps = [row for row in every if row.get("train/loss")]
    assert all(float(row["train/grad_norm"]) > 0 for row in steps)
    assert {name for name in every[0] if "lr" in name} == {"lr", "encoder_lr"}
    assert float(steps[0]["lr"]) / float(steps[0]["encoder_lr"]) == pytest.approx(4 / 3)
    assert {0 <= float(row["train/clipped"]) <= 1 for row in every if row.get("train/clipped")} == {True}
    assert [row["step"] for row in every if row.get("train/loss_epoch")] == ["7", "15"]


def test_metrics_are_one_file_and_rows_after_the_step_that_a_run_goes_on_from_are_replaced(tmp_path):
    first = RunLog(tmp_path)
    for step in range(4):
        first.log_metrics({"train/loss": step}, step)
    first.log_metrics({"val/dice": 0.5}, 3)
    again = RunLog(tmp_path)  # killed, its last state is of step 2
    again.log_metrics({"train/loss": 20.0}, 2)
    again.log_metrics({"lr": 1.0}, 2)
    text = (tmp_path / "metrics.csv").read_text().splitlines()
    assert sorted(text[0].split(",")) == ["lr", "step", "train/loss", "val/dice"]
    assert len(text) == 5
    assert [row for row in text if "0.5" in row] == []


def claim(folder, name, *overrides):
    settings = ["experiment=nano_stage1", "data.sources.own.manifest=manifest.csv", *TINY, f"name={name}"]
    return RunFolder(compose_config("train", [*settings, f"output_dir='{folder / 'runs' / name}'", *overrides]))


def test_a_second_run_of_one_name_is_refused_while_the_first_is_at_work(folder):
    with claim(folder, "busy"):
        process = subprocess.run(
            command("name=busy", "seed=7"), cwd=folder, capture_output=True, text=True, check=False
        )
    assert process.returncode == 1
    assert "holds a run" in process.stderr
    with claim(folder, "busy"):  # given back
        pass


def test_a_run_whose_last_state_is_gone_does_not_begin_anew_in_silence(folder, whole, tmp_path):
    shutil.copytree(folder / "runs/whole", tmp_path / "runs/gone")
    (tmp_path / "runs/gone/checkpoints/last.ckpt").unlink()
    with pytest.raises(CheckpointError, match="best_"):
        claim(tmp_path, "gone", "ckpt_path=auto").claim()


def test_a_state_of_a_run_with_other_settings_is_refused_with_what_differs(folder, whole):
    state = folder / "runs/whole/checkpoints/last.ckpt"
    with pytest.raises(CheckpointError, match=rf"\(optimizer\.lr, seed\).* start={state}"):
        claim(folder, "other", f"ckpt_path={state}", "optimizer.lr=1", "seed=3").claim()
    with claim(folder, "other", f"ckpt_path={state}", "trainer.max_epochs=3") as run:  # a branch of it
        assert run.checkpoint == state


def test_a_run_goes_on_with_the_average_of_weights_that_it_began_with_and_not_without(folder):
    for name, began, goes_on in (("averaged", "ema", "default"), ("plain", "default", "ema")):
        with claim(folder, name, f"callbacks={began}") as run:
            run.begin({})
        state = run.path / "checkpoints/last.ckpt"
        state.parent.mkdir()
        state.touch()
        with pytest.raises(OutputError, match=r"other settings \(callbacks\.ema\._target_, callbacks\.ema\.decay\)"):
            claim(folder, name, f"callbacks={goes_on}", "ckpt_path=last").claim()
        with claim(folder, name, f"callbacks={began}", "ckpt_path=last", "~callbacks.slices"):
            pass


def test_a_checkpoint_that_is_none_is_answered_with_what_is_allowed(folder):
    with pytest.raises(CheckpointError, match=r"ckpt_path=best: .* allowed: last, auto .* file"):
        claim(folder, "other", "ckpt_path=best").claim()


def test_a_state_without_its_run_is_compared_with_the_network(folder, whole, tmp_path):
    state = torch.load(folder / "runs/whole/checkpoints/last.ckpt", weights_only=True)
    shapes = {name: tuple(value.shape) for name, value in state["state_dict"].items()}
    first = next(iter(shapes))
    files = {name: tmp_path / f"{name}.ckpt" for name in ("state", "weights", "none")}
    torch.save(state, files["state"])
    torch.save({"state_dict": state["state_dict"]}, files["weights"])
    files["none"].write_text("no checkpoint")
    with claim(folder, "copied", f"ckpt_path={files['state']}") as run:
        run.check_state(shapes)
        with pytest.raises(CheckpointError, match=f"another network: {first} "):
            run.check_state({**shapes, first: (1, 2, 3)})
    for name in ("weights", "none"):
        said = pytest.raises(CheckpointError, match=f"no state .* start={files[name]}")
        with claim(folder, "copied", f"ckpt_path={files[name]}") as run, said:
            run.check_state(shapes)
    said = pytest.raises(ConfigError, match=r"trainer\.max_epochs=1, but .* 2 epochs")
    with claim(folder, "copied", f"ckpt_path={files['state']}", "trainer.max_epochs=1") as run, said:
        run.check_state(shapes)


@pytest.fixture(scope="module")
def short(folder):
    """A run of one epoch, of which others go on."""
    train(folder, "name=short", "trainer.max_epochs=1")
    return folder / "runs/short"


def test_a_run_goes_on_with_data_that_moved(folder, whole, tmp_path):
    for file in (*folder.glob("*.mrc"), folder / "manifest.csv"):
        shutil.copy(file, tmp_path)
    stop = "+callbacks.at={_target_: training_runs.At, step: 3, number: SIGUSR1}"
    train(folder, "name=moved", stop, status=143)
    train(folder, "name=moved", "ckpt_path=last", f"data.sources.own.manifest='{tmp_path / 'manifest.csv'}'")
    assert curve(folder, "moved") == whole


def test_other_data_under_another_path_are_refused(folder, short, tmp_path):
    for file in folder.glob("*.mrc"):
        shutil.copy(file, tmp_path)
    lines = (folder / "manifest.csv").read_text().splitlines()
    (tmp_path / "fewer.csv").write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    other = f"data.sources.own.manifest='{tmp_path / 'fewer.csv'}'"
    assert "3 tomograms before, 2 now" in train(folder, "name=short", "ckpt_path=last", other, status=1)


def test_a_manifest_that_changed_is_told_with_both_numbers(folder, short, caplog):
    with caplog.at_level(logging.WARNING, "etsam"), claim(folder, "short", "ckpt_path=last") as run:
        run._compare({"own": [["sim/0", "train", ""]]})
    assert "3 tomograms before, 1 now" in caplog.text


def test_a_run_that_goes_on_is_one_run_of_wandb(folder, short):
    kept = (short / "wandb_id").read_text().strip()
    assert len(kept) == 8
    with claim(folder, "short", "ckpt_path=last") as run:
        assert run.wandb_id == kept
    with claim(folder, "short", "overwrite=true") as run:
        assert run.wandb_id != kept


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_job_that_fails_and_each_job_is_a_run_of_wandb(folder):
    settings = command("data.num_slices=8,99,9", "name=sw_${data.num_slices}", "trainer.max_epochs=1")
    settings += ["logger=wandb", "logger.wandb.offline=true", "--multirun"]
    settings = [one for one in settings if one != "data.num_slices=8"]
    done = subprocess.run(settings, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 1
    assert "1 of the sweep's jobs failed" in done.stderr
    table = done.stderr.partition(" jobs:")[2].splitlines()
    assert sum("best score" in line for line in table) + sum("done" in line for line in table) == 2
    assert sum(" failed: " in line for line in table) == 1
    for name in ("sw_8", "sw_9"):
        assert (folder / f"runs/{name}/checkpoints/last.ckpt").exists()
        assert len(list((folder / f"runs/{name}/wandb").rglob("run-*.wandb"))) == 1
        (run,) = (folder / f"runs/{name}/wandb").glob("offline-run-*")
        assert run.name.endswith((folder / f"runs/{name}/wandb_id").read_text().strip())


@pytest.mark.slow
def test_everything_runs_once_with_fast_dev_run_and_nothing_is_saved(folder):
    assert "nothing was saved" in train(folder, "name=dry", "trainer.fast_dev_run=true")
    assert not list((folder / "runs/dry").rglob("*.ckpt"))


def test_the_best_state_is_scored_on_the_split_test_if_that_is_wanted(folder):
    grey = (folder / "t2.mrc").read_bytes()
    (folder / "t9.mrc").write_bytes(grey[:-4] + bytes(4))  # else it is a copy in two splits
    shutil.copy(folder / "m2.mrc", folder / "m9.mrc")
    lines = (folder / "manifest.csv").read_text()
    (folder / "tested.csv").write_text(lines + "sim,9,test,t9.mrc,m9.mrc\n")
    settings = ["data.sources.own.manifest=tested.csv", "test_after=true", "trainer.max_epochs=1"]
    said = train(folder, "name=tested", *settings)
    assert "of the best state, test/dice 0." in said
    tested = [row for row in rows(folder, "tested") if row.get("test/dice")]
    validated = [row for row in rows(folder, "tested") if row.get("val/dice")]
    assert float(tested[0]["test/dice"]) == pytest.approx(float(validated[0]["val/dice"]), abs=0.01)


def test_early_stopping_says_why_and_where_the_best_is(folder):
    stopping = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/dice, mode: max, patience: 1}"
    said = train(
        folder,
        "name=early",
        f"+callbacks.early={stopping}",
        "optimizer.lr=0",
        "optimizer.encoder_lr=0",
        "trainer.max_epochs=9",
    )
    assert "stopped early: val/dice has not risen for 1 validations" in said
    assert "runs/early/checkpoints/best_0000_" in said
    assert "etsam predict TOMOGRAM.mrc" in said


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 with torch 2.14
def test_a_run_in_python_gives_what_it_made(folder, monkeypatch, whole):
    from etsam.training.run import run

    monkeypatch.chdir(folder)
    settings = ["experiment=nano_stage1", "data.sources.own.manifest=manifest.csv", *TINY, "name=python"]
    result = run(compose_config("train", [*settings, "trainer.max_epochs=1"]))
    assert result.metrics["val/dice"] == pytest.approx(result.best_score)
    assert result.best_checkpoint.exists()
    assert result.last_checkpoint == Path("runs/python/checkpoints/last.ckpt")
    assert result.trainer.global_step == 8
    assert result.dice_best == {"own": pytest.approx(result.best_score)}
    assert curve(folder, "python")[7] == pytest.approx(curve(folder, "whole")[7])


def test_advice_for_slurm_is_told_and_called_no_defect():
    told = explain(RuntimeError("You set `--ntasks=4` in your SLURM bash script. HINT: Use `--ntasks-per-node=4`"))
    assert "--ntasks-per-node" in told
    assert "defect" not in told
