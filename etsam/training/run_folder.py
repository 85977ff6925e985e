"""The folder of a run: whose it is, where it goes on, what it needs before the first step."""

import logging
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from etsam.data.datamodule import TomogramClips
from etsam.errors import CheckpointError, ConfigError, OutputError
from etsam.network.build import input_slices
from etsam.paths import share
from etsam.prediction.record import environment
from etsam.settings import flat
from etsam.training.memory import estimate, require_room
from etsam.training.module import Stage
from etsam.volume import atomic_path

log = logging.getLogger(__name__)

_SETTINGS = "config.yaml"
# may differ when a run goes on: where, how fast and how long it trains, not what it trains
_FREE = (
    "ckpt_path",
    "max_time",
    "debug",
    "overwrite",
    "prepare_only",
    "trainer",
    "logger",
    "callbacks",
    "output_dir",
    "paths",
    "encode_batch_size",
    "checkpoint_encoder",
    "data.batch_size",
    "data.num_workers",
    "data.pin_memory",
    "data.cache_folder",
)


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """All settings as plain values; secrets are not among them."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _different(cfg: DictConfig, before: dict[str, Any]) -> list[str]:
    """Names (`a.b.c`) of settings that are not those of before, but for `_FREE` and copies of others (`${a.b}`)."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    written = flat(plain)
    copies = {name for name, value in written.items() if isinstance(value, str) and "${" in value}
    apart = (*_FREE, *copies)
    now, then = flat(settings_of(cfg)), flat(before)
    return sorted(
        name
        for name in now.keys() | then.keys()
        if now.get(name) != then.get(name) and not any(name == free or name.startswith(f"{free}.") for free in apart)
    )


def claim_folder(cfg: DictConfig) -> None:
    """Make the run's folder, unless it belongs to another run.

    Raises
    ------
    OutputError
        If the folder holds another run: other settings, or the same ones without `ckpt_path` to go on.
    """
    folder = Path(cfg.output_dir)
    file = folder / _SETTINGS
    begun = any((folder / "checkpoints").glob("*.ckpt"))  # else it failed before anything was learned
    if file.exists() and begun and not cfg.overwrite:
        before = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(before, dict)
        different = _different(cfg, {str(key): value for key, value in before.items()})
        if cfg.ckpt_path is None:
            raise OutputError(
                f"{folder} holds a run already; set ckpt_path=last to go on with it, name=OTHER for a new one, or "
                "overwrite=true to replace it."
            )
        if different:
            raise OutputError(
                f"{folder} holds a run with other settings ({', '.join(different)}); a run goes on with its own. Set "
                "name=OTHER (and start=CHECKPOINT to use its weights)."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the run folder {folder} cannot be made: {error.strerror}.") from error


def begin(cfg: DictConfig) -> None:
    """Write the run's settings into its folder; only now is a run that shall be replaced removed."""
    folder = Path(cfg.output_dir)
    if cfg.overwrite:
        for old in (folder / "checkpoints").glob("*.ckpt"):
            old.unlink()
    with atomic_path(folder / _SETTINGS, overwrite=True) as part:
        part.write_text(OmegaConf.to_yaml(OmegaConf.create(settings_of(cfg))), encoding="utf-8")


def checkpoint_to_resume(cfg: DictConfig) -> str | None:
    """Path of the checkpoint that `ckpt_path` names; None to start anew.

    Raises
    ------
    CheckpointError
        If there is none.
    ConfigError
        If it would be overwritten.
    """
    if cfg.ckpt_path is None:
        return None
    if cfg.overwrite:
        raise ConfigError(f"ckpt_path={cfg.ckpt_path} goes on with what overwrite=true would replace; set one of them.")
    last = Path(cfg.output_dir) / "checkpoints" / "last.ckpt"
    path = last if cfg.ckpt_path in ("last", "auto") else Path(cfg.ckpt_path)
    if cfg.ckpt_path == "auto" and not path.exists():
        return None
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; leave ckpt_path out to start the run.")
    return str(path)


def prepare_stage1_logits(cfg: DictConfig, data: TomogramClips) -> None:
    """For stage 2: compute the stage-1 logits of all its tomograms that are not in the cache."""
    if cfg.stage1 is None:
        return
    import torch
    from hydra.utils import instantiate

    cache = instantiate(cfg.stage1)
    accelerated = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    samples = data.all_samples
    made = cache.prepare(samples, "cuda" if accelerated else "cpu")
    log.info("stage-1 logits: %d computed, %d were there", made, len(samples) - made)


def plugins() -> list[Any]:
    """In a job of Slurm: Lightning neither saves a checkpoint of its own nor requeues the job by itself."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if slurm else []


def check_strategy(cfg: DictConfig) -> None:
    """Refuse what several processes can only predict with.

    Raises
    ------
    ConfigError
        Naming what training takes.
    """
    if cfg.trainer.strategy == "ddp":
        there = "ddp_cpu" if cfg.trainer.accelerator == "cpu" else "ddp"
        raise ConfigError(
            "trainer.strategy=ddp (trainer=gpus and trainer=cpus) is for prediction: which weights a step of training "
            f"uses depends on the prompt that is drawn. Take trainer={there}."
        )


def check_memory(cfg: DictConfig, stage: Stage) -> None:
    """Estimate what a step needs; raises `ConfigError` if the device has not got it."""
    import torch

    crop = cfg.data.crop
    footprint = estimate(
        stage.tracker,
        num_slices=cfg.data.num_slices,
        batch_size=cfg.data.batch_size,
        checkpoint_encoder=cfg.checkpoint_encoder,
        encode_batch_size=cfg.encode_batch_size,
        crop=(crop, crop) if isinstance(crop, int) else crop and (int(crop[0]), int(crop[1])),
        half=str(cfg.trainer.precision).startswith(("bf16", "16")),
        averaged="ema" in cfg.callbacks,
    )
    require_room(footprint, cfg.trainer.accelerator != "cpu" and torch.cuda.is_available())


def description(cfg: DictConfig) -> dict[str, Any]:
    """Settings, versions and git state, for loggers."""
    return {**settings_of(cfg), "environment": environment(), "git": _git_state()}


def _git_state() -> dict[str, str]:
    """Commit and whether files differ from it, of a checkout; empty for an installed package."""
    root = share("configs").parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "changed": git("status", "--porcelain")[:2000]} if commit else {}
    except OSError:  # no git
        return {}


def check_net(cfg: DictConfig) -> None:
    """Raise `ConfigError` if clips or the logits of stage 1 do not suit the network."""
    seen = input_slices(cfg.net)
    if cfg.data.num_slices < seen:
        raise ConfigError(
            f"data.num_slices={cfg.data.num_slices} is too short a clip: this network sees {seen} slices at a time "
            f"(net.input_slices), and {seen - 1} more than are to be trained are needed."
        )
    if cfg.stage1 is not None and cfg.stage1.net.image_size != cfg.net.image_size:
        raise ConfigError(
            f"stage 1 has image side {cfg.stage1.net.image_size} and stage 2 {cfg.net.image_size}; they share tiles."
        )
