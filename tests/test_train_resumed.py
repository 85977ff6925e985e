"""A run that was stopped, killed or failed goes on as if it had not been, and nothing of it is lost."""

import signal
import subprocess
import time

import psutil
import pytest
import torch
from training_runs import TINY, command, curve, folder, train, train_apart, whole  # noqa: F401

from etsam.app import compose_config
from etsam.errors import ConfigError, OutputError
from etsam.training.run import plugins
from etsam.training.run_folder import RunFolder
from etsam.training.stopping import LastCheckpoint


def waited_for(path):
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return path


@pytest.mark.parametrize(
    ("event", "status", "saved"),
    [
        ("step: 3, number: SIGINT", 130, 4),  # the step at work is finished
        ("number: SIGUSR1", 143, 8),  # during validation, which is finished
        ("step: 5, number: null", 1, 4),  # an error: the state is that of the last whole step that was saved
    ],
)
def test_a_run_that_was_stopped_or_failed_goes_on_as_if_it_had_not(folder, whole, event, status, saved):
    name = f"status{status}"
    often = ["callbacks.last.every_n_train_steps=4", f"name={name}"]
    at_once = ["ckpt_path=auto"] * (status == 143)
    stderr = train(folder, *often, *at_once, f"+callbacks.at={{_target_: training_runs.At, {event}}}", status=status)
    assert ("go on with ckpt_path=last" in stderr) == (status == 130)
    assert ("the same command" in stderr) == (status == 143)
    assert torch.load(folder / f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["global_step"] == saved
    train(folder, *often, "ckpt_path=auto")
    assert curve(folder, name) == whole


@pytest.mark.slow
def test_processes_that_are_told_one_after_the_other_stop_together(folder):
    settings = ["name=told", "trainer=ddp_cpu", "trainer.max_epochs=500"]
    process = subprocess.Popen(
        command(*settings), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    checkpoint = waited_for(folder / "runs/told/checkpoints/last.ckpt")
    (other,) = [one for one in psutil.Process(process.pid).children() if "train.py" in " ".join(one.cmdline())]
    other.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr
    assert stderr.count(b"go on with ckpt_path=last") == 1
    assert torch.load(checkpoint, weights_only=True)["global_step"] > 0


@pytest.mark.slow
def test_a_run_stops_when_its_time_is_up(folder):
    stderr = train_apart(folder, "name=timed", "trainer.max_epochs=500", "max_time=00:00:00:01", status=143)
    assert "max_time is over" in stderr
    step = torch.load(folder / "runs/timed/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step > 0


@pytest.mark.parametrize("text", ["5h", "11:30:00", "1:2:3:4", 30])
def test_a_time_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="days:hours:minutes:seconds"):
        LastCheckpoint("x", max_time=text)


def test_in_a_job_of_slurm_lightning_does_not_requeue(monkeypatch):
    assert plugins() == []
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    (environment,) = plugins()
    assert not environment.auto_requeue


def test_a_run_of_the_same_name_is_refused_and_of_other_settings_not_continued(folder, whole):
    assert "holds a run already; set ckpt_path=last" in train(folder, "name=whole", status=1)
    stderr = train(folder, "name=whole", "ckpt_path=last", "optimizer.lr=1", status=1)
    assert "holds a run with other settings (optimizer.lr)" in stderr


def test_what_does_not_change_the_result_may_change_when_a_run_goes_on(folder, whole):
    settings = ["experiment=nano_stage1", "data.sources.own.manifest=manifest.csv", *TINY, "name=whole"]
    settings += [f"output_dir='{folder / 'runs/whole'}'", "ckpt_path=last"]
    free = ["checkpoint_encoder=true", "encode_batch_size=2", "data.num_workers=1", "trainer.max_epochs=3"]
    with RunFolder(compose_config("train", [*settings, *free])) as run:
        assert run.checkpoint.name == "last.ckpt"
    for other in ("data.num_slices=9", "augment=none", "seed=3"):
        with pytest.raises(OutputError, match="other settings"):
            RunFolder(compose_config("train", [*settings, *free, other])).claim()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["overwrite=no"], "overwrite=no does not fit; allowed: true or false"),
        (["freeze_image_encoder=no"], "freeze_image_encoder=no does not fit"),
        (["overwrite=true", "ckpt_path=last"], "overwrite=true would replace; set one of them"),
        (["overwrite=true", "data.sources.own.manifest=nothing.csv"], "nothing.csv"),
        (["overwrite=true", "max_time=5h"], "max_time=5h does not fit"),
    ],
)
def test_a_run_is_not_replaced_before_the_new_one_can_begin(folder, whole, etsam, monkeypatch, given, said):
    monkeypatch.chdir(folder)
    files = [*(folder / "runs/whole/checkpoints").iterdir(), folder / "runs/whole/config.yaml"]
    before = {path: path.read_bytes() for path in files}
    settings = ["experiment=nano_stage1", "data.sources.own.manifest=manifest.csv", *TINY, "name=whole"]
    outcome = etsam("train", *settings, *given)
    assert outcome.status == 1
    assert said in outcome.message
    assert {path: path.read_bytes() for path in before} == before
