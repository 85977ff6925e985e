"""A training run of one stage from its config."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from etsam.app import check_values, is_first_process, require
from etsam.errors import ConfigError

if TYPE_CHECKING:  # libraries that take seconds come when a run begins
    from lightning import Trainer

    from etsam.data.datamodule import TomogramClips
    from etsam.training.module import StageTraining

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a run of training made.

    Attributes
    ----------
    metrics
        Last values of what was logged, by name (`val/dice`, `train/loss`, ...).
    best_checkpoint, best_dice
        File of the best validated state and its score; None if nothing was validated.
    last_checkpoint
        File of the last state; None if none was saved.
    data, stage, trainer
        Objects of the run; None where it ended before they were made (`prepare_only`).
    """

    metrics: dict[str, float] = field(default_factory=dict)
    best_checkpoint: Path | None = None
    best_dice: float | None = None
    last_checkpoint: Path | None = None
    data: "TomogramClips | None" = None
    stage: "StageTraining | None" = None
    trainer: "Trainer | None" = None


def run(cfg: DictConfig) -> TrainingResult:
    """Check, prepare the data, build the network, fit; what is written is in `output_dir`.

    Parameters
    ----------
    cfg
        configs/train.yaml, composed.

    Raises
    ------
    EtsamError
        If settings, data or weights cannot be used.
    SystemExit
        If the run was told to stop, with the status of the signal; its state is saved.
    """
    require(cfg, "name", "NAME_OF_THE_RUN")
    check_values(cfg, "train")
    import lightning
    from hydra.utils import instantiate

    from etsam.training.run_folder import RunFolder, description

    logging.getLogger("etsam.normalize").setLevel(logging.WARNING)  # else it tells the contrast of every tomogram
    check_settings(cfg)
    folder = RunFolder(cfg)
    checkpoint = folder.claim()
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    data = _prepared_data(cfg)
    if cfg.prepare_only:
        return TrainingResult(data=data)
    stage = instantiate(cfg.stage, _convert_="all")
    if is_first_process():
        _check_memory(cfg, stage)
    callbacks, loggers = (list(instantiate(cfg[group]).values()) for group in ("callbacks", "logger"))
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers, plugins=plugins())
    folder.begin()
    for logger in loggers:
        logger.log_hyperparams(description(cfg))
    _fit(trainer, stage, data, checkpoint)
    return _result(trainer, stage, data)


def check_settings(cfg: DictConfig) -> None:
    """Raise `ConfigError` for settings that contradict each other, before anything is read or built."""
    from etsam.network.build import input_slices

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
    if cfg.trainer.strategy == "ddp":
        there = "ddp_cpu" if cfg.trainer.accelerator == "cpu" else "ddp"
        raise ConfigError(
            "trainer.strategy=ddp (trainer=gpus and trainer=cpus) is for prediction: which weights a step of training "
            f"uses depends on the prompt that is drawn. Take trainer={there}."
        )


def _prepared_data(cfg: DictConfig) -> "TomogramClips":
    """Data module; the first process has checked and measured its files and computed the logits of stage 1."""
    from hydra.utils import instantiate

    data: TomogramClips = instantiate(cfg.data)
    if is_first_process():  # before anything heavy, and once for all processes
        data.prepare_data()
        if cfg.stage1 is not None:
            import torch

            accelerated = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
            tomograms = data.tomograms()
            made = instantiate(cfg.stage1).prepare(tomograms, "cuda" if accelerated else "cpu")
            log.info("stage-1 logits: %d computed, %d were there", made, len(tomograms) - made)
    return data


def _check_memory(cfg: DictConfig, stage: "StageTraining") -> None:
    """Estimate what a step needs; raises `ConfigError` if the device has not got it."""
    import torch

    from etsam.training.memory import estimate, require_room

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


def plugins() -> list[Any]:
    """In a job of Slurm: Lightning neither saves a checkpoint of its own nor requeues the job by itself."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if slurm else []


def _fit(trainer: "Trainer", stage: "StageTraining", data: "TomogramClips", checkpoint: str | None) -> None:
    """Train; a run that is told to stop ends with the status of the signal."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from etsam.network.fast import heap
    from etsam.training.stopping import LastCheckpoint, stopped_by

    try:
        on_cpu = trainer.strategy.root_device.type == "cpu"
        with heap.retain_freed_memory() if on_cpu and stage.tracker.kernels == "fast" else nullcontext():
            trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:
        if is_first_process():
            last = next(one.path for one in trainer.callbacks if isinstance(one, LastCheckpoint))  # type: ignore[attr-defined]
            log.warning("the state is saved in %s; go on with ckpt_path=last", last)
        raise SystemExit(128 + stopped_by(trainer.callbacks)) from None  # type: ignore[attr-defined]


def _result(trainer: "Trainer", stage: "StageTraining", data: "TomogramClips") -> TrainingResult:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from etsam.training.stopping import LastCheckpoint

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    best = next((one for one in callbacks if isinstance(one, ModelCheckpoint) and one.best_model_path), None)
    last = next((one.path for one in callbacks if isinstance(one, LastCheckpoint)), None)
    return TrainingResult(
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        best_checkpoint=None if best is None else Path(best.best_model_path),
        best_dice=None if best is None or best.best_model_score is None else float(best.best_model_score),
        last_checkpoint=last if last is not None and last.exists() else None,
        data=data,
        stage=stage,
        trainer=trainer,
    )
