"""A training run of one stage from its config."""

import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from etsam.app import check_values, compose_config, is_first_process, quiet, require
from etsam.errors import ConfigError, InputError
from etsam.paths import resource_path
from etsam.settings import flat

if TYPE_CHECKING:  # libraries that take seconds come when a run begins
    from lightning import Trainer

    from etsam.data.datamodule import TomogramClips
    from etsam.training.module import StageTraining
    from etsam.training.run_folder import RunFolder

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """Outcome of a run of training.

    Attributes
    ----------
    metrics
        Last values of what was logged, by name (`val/dice`, `train/loss`, ...).
    best_checkpoint, best_score
        File of the best validated state and what it was chosen by; None if nothing was validated.
    dice_before, dice_best
        Dice by source before training, if it started from weights, and at the best state.
    last_checkpoint
        File of the last state; None if none was saved.
    trainer
        None where none was needed: `prepare_only`, and a run that had ended before.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    best_checkpoint: Path | None = None
    best_score: float | None = None
    dice_before: dict[str, float] = field(default_factory=dict)
    dice_best: dict[str, float] = field(default_factory=dict)
    last_checkpoint: Path | None = None
    trainer: "Trainer | None" = None

    def plain(self) -> dict[str, Any]:
        """All of it but the trainer, by name."""
        return {key: value for key, value in vars(self).items() if key != "trainer"}


def run(cfg: DictConfig, *, fixed_data: bool = False) -> TrainingResult:
    """Check, prepare the data, build the network, fit; what is written is in `output_dir`.

    Parameters
    ----------
    cfg
        configs/train.yaml, composed.
    fixed_data
        As for `RunFolder`.

    Raises
    ------
    EtsamError
        If settings, data or weights cannot be used.
    SystemExit
        If the run was told to stop, with the status of the signal; its state is saved.
    """
    require(cfg, "name", "NAME_OF_THE_RUN")
    if cfg.stage1 is not None:
        require(cfg, "stage1.checkpoint", "CHECKPOINT (of stage 1, whose logits stage 2 learns from)")
    require(cfg, "start", "CHECKPOINT (a file, or a name of `etsam weights list`; start=null: from random weights)")
    cfg.name = str(cfg.name)  # name=7 and name=nan are names
    check_values(cfg, "train")
    import lightning
    from hydra.utils import instantiate

    from etsam.training.run_folder import RunFolder, description

    check_settings(cfg)
    # quiet: else it tells the contrast of every tomogram
    with quiet("etsam.normalize"), RunFolder(cfg, fixed_data=fixed_data) as folder:
        lightning.seed_everything(cfg.seed, workers=True, verbose=False)
        data = _checked_data(cfg)
        if (outcome := folder.outcome(data.contents)) is not None:
            return TrainingResult(**outcome)
        _prepare_stage1(cfg, data)
        if cfg.prepare_only:
            return TrainingResult()
        stage = instantiate(cfg.stage, _convert_="all")
        if is_first_process():
            folder.check_state({name: tuple(value.shape) for name, value in stage.state_dict().items()})
            _check_memory(cfg, stage)
        trainer = _trainer(cfg, folder)
        _check_validated(cfg, data, trainer.world_size)
        if is_first_process():
            folder.begin(data.contents())
        for logger in trainer.loggers:
            logger.log_hyperparams(description(cfg))
        if is_first_process():
            _tell_start(cfg, folder)
        try:
            if cfg.start is not None and folder.checkpoint is None and trainer.limit_val_batches:
                trainer.validate(stage, datamodule=data, verbose=False)  # what the weights are worth before training
            _fit(trainer, stage, data, folder.checkpoint, goes_on=cfg.ckpt_path in ("auto", "last"))
            _test(trainer, stage, data)
        finally:
            _finish_wandb(trainer)
        result = _result(trainer, stage)
        if is_first_process():
            if not cfg.trainer.fast_dev_run:
                folder.end(trainer.current_epoch, result.plain())
            _tell_end(cfg, result)
            if cfg.optimizer.range_test:
                _tell_rate(cfg, folder)
        return result


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
    if cfg.net.get("pred_obj_scores") and not cfg.loss.get("object", 1.0):
        raise ConfigError(
            "this network has an object score (net.pred_obj_scores=true), which empties the slices that it takes for "
            "empty, and loss.object=0 (loss=semantic) does not train it: masks cannot be learned. Set loss=sam2, or "
            "net.pred_obj_scores=false net.fixed_no_obj_ptr=false."
        )
    if cfg.trainer.get("overfit_batches"):
        count = cfg.trainer.overfit_batches
        raise ConfigError(
            f"trainer.overfit_batches={count} is not supported; set data.repeat_epoch=true "
            f"trainer.limit_train_batches={count}, which shows the same clips in every epoch."
        )
    if str(cfg.trainer.precision) not in _PRECISIONS:
        raise ConfigError(f"trainer.precision={cfg.trainer.precision}: allowed for training: {', '.join(_PRECISIONS)}.")
    if cfg.guard is not None and cfg.guard.source not in cfg.data.sources:
        raise ConfigError(
            f"guard.source={cfg.guard.source} is no source of the data; allowed: {', '.join(cfg.data.sources)}."
        )
    _check_callbacks(cfg)
    _check_devices(cfg)


def _check_callbacks(cfg: DictConfig) -> None:
    """Refuse a run that would save no state, or write no metrics."""
    if cfg.get("callbacks") is None or cfg.callbacks.get("last") is None:
        what = "callbacks" if cfg.get("callbacks") is None else "callbacks.last"
        raise ConfigError(
            f"{what}=null would save nothing of the run; take callbacks=default. Others can be left out one by one, "
            "such as callbacks.slices=null."
        )
    if cfg.get("logger") is None:
        raise ConfigError("logger=null would write no metrics; take logger=csv, the default, tensorboard or wandb.")


def _check_devices(cfg: DictConfig) -> None:
    """Refuse several devices without the strategy that training needs."""
    strategy, on_cpu = str(cfg.trainer.strategy), cfg.trainer.accelerator == "cpu"
    there = "ddp_cpu" if on_cpu else "ddp"
    why = "which weights a step of training uses depends on the prompt that is drawn"
    if strategy == "ddp":
        raise ConfigError(
            "trainer.strategy=ddp (trainer=gpus and trainer=cpus) is for prediction: "
            f"{why}. Take trainer={there}{_as_typed(cfg, there)}."
        )
    if strategy == "auto" and (_device_count(cfg.trainer.devices, on_cpu) > 1 or cfg.trainer.get("num_nodes", 1) > 1):
        raise ConfigError(
            f"trainer.devices={_written(cfg)} (trainer.num_nodes={cfg.trainer.num_nodes}) needs a strategy for "
            f"several devices: {why}. Take trainer={there}{_as_typed(cfg, there)}."
        )


def _as_typed(cfg: DictConfig, trainer: str) -> str:
    """Number of devices, to be added to a trainer that has another one."""
    usual = OmegaConf.load(resource_path("configs") / "trainer" / f"{trainer}.yaml")
    return "" if cfg.trainer.devices == usual.devices else f" trainer.devices={_written(cfg)}"


def _written(cfg: DictConfig) -> str:
    """`trainer.devices` as it is typed."""
    return str(cfg.trainer.devices).replace(" ", "")


def _device_count(devices: Any, on_cpu: bool) -> int:
    """Number of devices that Lightning 2.6 would take."""
    if OmegaConf.is_list(devices):
        return len(devices)
    text = str(devices)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    if text in ("-1", "auto"):
        import torch

        return 1 if on_cpu else torch.cuda.device_count()
    return int(text) if text.isdigit() else 1


def _check_validated(cfg: DictConfig, data: "TomogramClips", devices: int) -> None:
    """Refuse a validation, shared by so many devices, that has nothing to score: its scores would be 0 for ever.

    Raises
    ------
    ConfigError
        If `trainer.limit_val_batches` leaves no tomogram.
    InputError
        If none that it leaves has membrane, or none of the source by which fine-tuning chooses.
    """
    limit, listed, count = cfg.trainer.limit_val_batches, data.validation, len(data.validation)
    if limit == 0:
        return
    share = -(-count // devices)  # of each process
    kept = devices * (share if limit is None else limit if isinstance(limit, int) else int(share * limit))
    if count and not kept:
        raise ConfigError(
            f"trainer.limit_val_batches={limit} of {count} tomograms to validate on is less than one; set a whole "
            "number, or 0 for no validation."
        )
    listed = listed[:kept]
    marked = {source for source, sample in listed if not sample.without_membrane}
    if listed and not marked:
        raise InputError(
            f"none of the tomograms that are validated ({', '.join(sample.name for _, sample in listed)}) has "
            "membrane; one with membrane is needed for a Dice. Raise trainer.limit_val_batches, or write val in the "
            "column split of one that has membrane."
        )
    if listed and cfg.guard is not None and cfg.guard.source not in marked:
        raise InputError(
            f"no tomogram with membrane of the source {cfg.guard.source} is validated, and by these the best state is "
            "chosen (guard.source); write val in the column split of one that has membrane."
        )


def _checked_data(cfg: DictConfig) -> "TomogramClips":
    """Data module; the first process has checked and measured its files."""
    from hydra.utils import instantiate

    from etsam.network.build import input_slices

    data: TomogramClips = instantiate(cfg.data, context_slices=input_slices(cfg.net) // 2)
    if is_first_process():  # before anything heavy, and once for all processes
        data.prepare_data()
        if cfg.guard is not None and cfg.trainer.limit_val_batches != 0:
            _check_guard(cfg, data)
    return data


def _check_guard(cfg: DictConfig, data: "TomogramClips") -> None:
    """Raise `InputError` if the guard cannot compare the Dice of a source: no membrane is validated in it."""
    from etsam.data.measured import mask_summary

    for source, given in data.sources.items():
        samples = [sample for name, sample in data.validation if name == source]
        if any(mask_summary(sample.target_mask, data.cache_folder).membrane.any() for sample in samples):
            continue
        found = "no tomogram of the split val"
        if samples:
            found = f"no membrane in the {len(samples)} tomograms of the split val that are validated"
        lost = "which state is the best" if source == cfg.guard.source else "whether it is forgotten"
        raise InputError(
            f"{given.manifest} (data.sources.{source}) has {found}, so nothing says {lost}; write val in the column "
            "split of a tomogram with membrane."
        )


def _prepare_stage1(cfg: DictConfig, data: "TomogramClips") -> None:
    """Compute the logits that stage 2 learns from, in the first process."""
    if cfg.stage1 is None or not is_first_process():
        return
    import torch
    from hydra.utils import instantiate

    accelerated = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    tomograms = data.tomograms()
    made = instantiate(cfg.stage1).prepare(tomograms, "cuda" if accelerated else "cpu")
    log.info("stage-1 logits: %d computed, %d were there", made, len(tomograms) - made)


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
        averaged=cfg.callbacks.get("ema") is not None,
    )
    require_room(footprint, cfg.trainer.accelerator != "cpu" and torch.cuda.is_available())


def _trainer(cfg: DictConfig, folder: "RunFolder") -> "Trainer":
    """Trainer with callbacks and loggers; without a terminal, lines instead of a progress bar."""
    from hydra.utils import instantiate
    from lightning.pytorch.callbacks import EarlyStopping

    from etsam.training.reporting import ProgressLines
    from etsam.training.stopping import Lengthened

    callbacks = [one for one in instantiate(cfg.callbacks).values() if one is not None]
    for one in callbacks:
        # a run may end before anything is validated, and then it still has to be saved
        if isinstance(one, EarlyStopping) and (cfg.trainer.limit_val_batches == 0 or cfg.trainer.max_steps > 0):
            one.strict = False
    if folder.lengthened:
        callbacks.append(Lengthened(folder.mark))
    if not sys.stderr.isatty():
        callbacks.append(ProgressLines())
    loggers = []
    for settings in cfg.logger.values():
        if settings is None:
            continue
        more = {}
        if settings._target_.endswith(".WandbLogger") and settings.get("id") is None and is_first_process():
            more = {"id": folder.wandb_id, "resume": "allow"}
        loggers.append(instantiate(settings, **more))
    return instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=loggers,
        plugins=plugins(),
        enable_progress_bar=sys.stderr.isatty(),
    )


def plugins() -> list[Any]:
    """In a job of Slurm: Lightning neither saves a checkpoint of its own nor requeues the job by itself."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if slurm else []


def _tell_start(cfg: DictConfig, folder: "RunFolder") -> None:
    where = folder.path.resolve()
    if folder.checkpoint is not None:
        log.info("%s goes on from %s", where, folder.checkpoint)
    elif cfg.start is None:
        log.info("%s starts from random weights (seed %s)", where, cfg.seed)
    else:
        log.info("%s starts from the weights %s", where, cfg.start)


def _fit(
    trainer: "Trainer", stage: "StageTraining", data: "TomogramClips", checkpoint: Path | None, goes_on: bool
) -> None:
    """Train; a run that is told to stop ends with the status of the signal, and says how it goes on."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from etsam.network.fast import heap
    from etsam.screen import idle
    from etsam.training.stopping import LastCheckpoint, stopped_by

    idle()  # Lightning has bars of its own
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    try:
        on_cpu = trainer.strategy.root_device.type == "cpu"
        with heap.retain_freed_memory() if on_cpu and stage.tracker.kernels == "fast" else nullcontext():
            trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:
        if is_first_process():
            last = next(one.path for one in callbacks if isinstance(one, LastCheckpoint))
            how = "the same command goes on" if goes_on else "go on with ckpt_path=last"
            log.warning("the state is saved in %s; %s", last, how)
        raise SystemExit(128 + stopped_by(callbacks)) from None


def _test(trainer: "Trainer", stage: "StageTraining", data: "TomogramClips") -> None:
    """Score the best state on the split `test`, if that is wanted."""
    import torch

    from etsam.training.reporting import best_checkpoint

    if not data.test:
        return
    best = best_checkpoint(trainer)
    if best is not None and best.best_model_path:
        stage.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    trainer.test(stage, datamodule=data, verbose=False)
    if is_first_process():
        means = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
        log.info("of the best state, %s", ", ".join(f"{name} {value:.4f}" for name, value in sorted(means.items())))


def _finish_wandb(trainer: "Trainer") -> None:
    """End the run of W&B, else the next job of a sweep would write into it."""
    if any(type(logger).__name__ == "WandbLogger" for logger in trainer.loggers):
        import wandb

        if wandb.run is not None:
            wandb.finish(exit_code=int(sys.exc_info()[0] is not None))


def _tell_end(cfg: DictConfig, result: TrainingResult) -> None:
    """Say why it ended, what it came to, and what to do with it."""
    from lightning.pytorch.callbacks import EarlyStopping

    assert result.trainer is not None
    callbacks: list[Any] = result.trainer.callbacks  # type: ignore[attr-defined]
    for one in callbacks:
        if isinstance(one, EarlyStopping) and one.stopped_epoch:
            log.info("stopped early: %s has not risen for %d validations", one.monitor, one.patience)
    changes = [
        f"{source} {before:.4f} -> {result.dice_best[source]:.4f}"
        for source, before in result.dice_before.items()
        if source in result.dice_best
    ]
    if changes:
        log.info("val/dice before training and at the best state: %s", ", ".join(changes))
    if result.best_checkpoint is None:
        last = result.last_checkpoint
        log.info("nothing was saved" if last is None else f"nothing was validated; the last state: {last}")
        return
    log.info("best state (score %.4f): %s", result.best_score, result.best_checkpoint)
    log.info("to predict with it: %s", _prediction_command(cfg, result.best_checkpoint))
    if cfg.guard is not None and cfg.stage1 is None:
        log.info(
            "stage 2 has learned from the logits of another stage 1; look at a prediction first, then tune it, too: "
            "%s stage1.checkpoint=%s",
            _stage2_experiment(cfg),
            result.best_checkpoint,
        )


def _tell_rate(cfg: DictConfig, folder: "RunFolder") -> None:
    """Say which rate a range test came to."""
    from etsam.training.reporting import rates_and_losses, suggested_rate

    metrics = folder.path / "metrics.csv"
    rate = suggested_rate(*rates_and_losses(metrics)) if metrics.exists() else None
    if rate is None:
        log.warning("the range test shows no rate: it takes 20 steps and more, with trainer.log_every_n_steps=1")
    else:
        ratio = cfg.optimizer.encoder_lr / cfg.optimizer.lr if cfg.optimizer.lr else 0.0
        log.info(
            "the loss falls fastest at optimizer.lr=%.2g optimizer.encoder_lr=%.2g, which were raised together; the "
            "curve of lr and train/loss is in %s",
            rate,
            rate * ratio,
            metrics,
        )


def _stage2_experiment(cfg: DictConfig) -> str:
    """`experiment=...` of stage 2 after this run of stage 1, with `net=` where that experiment has another network.

    A config does not say by which experiment it came about; it is the one that it has most settings in common with.
    """

    def written(settings: DictConfig) -> dict[str, Any]:
        plain = OmegaConf.to_container(settings, resolve=False)
        assert isinstance(plain, dict)
        return {key: value for key, value in flat(plain).items() if not key.startswith("net.")}

    def composed(*settings: str) -> DictConfig:
        return compose_config("train", settings)

    ours = written(cfg)
    started = max(
        ("finetune", "finetune_nano"),
        key=lambda name: sum(ours.get(key) == value for key, value in written(composed(f"experiment={name}")).items()),
    )
    if composed(f"experiment={started}").net == cfg.net:
        return f"experiment={started}_stage2"
    names = sorted(file.stem for file in (resource_path("configs") / "net").glob("[!_]*.yaml"))
    net = next((name for name in names if composed(f"net={name}").net == cfg.net), "AS_TRAINED")
    return f"experiment={started}_stage2 net={net}"


# weights of `etsam predict`: their network and their normalisation
_PREDICTS_WITH = {"nano": ("nano", "robust"), "etsam_v1": ("sam2.1_hiera_b+", "min_max_positive")}


def _predicts_with(cfg: DictConfig) -> str | None:
    """Name of the weights of `etsam predict` that have this network; None for another."""

    def trunk(net: Any) -> list[Any]:
        return [OmegaConf.select(net, f"image_encoder.trunk.{key}") for key in ("embed_dim", "widths")]

    nets = {
        name: OmegaConf.load(resource_path("configs") / "net" / f"{net}.yaml")
        for name, (net, _) in _PREDICTS_WITH.items()
    }
    return next((name for name, net in nets.items() if trunk(net) == trunk(cfg.net)), None)


def _prediction_command(cfg: DictConfig, best: Path) -> str:
    """`etsam predict ...` with the best state as this stage, and with the other stage of the same network."""
    stage, other = ("stage1", "stage2") if cfg.stage1 is None else ("stage2", "stage1")
    name = _predicts_with(cfg)
    if name is None:
        words = ["weights=files net=AS_TRAINED normalize=AS_TRAINED", f"weights.{other}=FILE"]
    else:
        usual = OmegaConf.load(resource_path("configs") / "normalize" / f"{_PREDICTS_WITH[name][1]}.yaml")
        words = [f"weights={name}" + ("" if usual == cfg.normalize else " normalize=AS_TRAINED")]
    if cfg.stage1 is not None and cfg.stage1.checkpoint is not None:
        words = [words[0], f"weights.stage1={cfg.stage1.checkpoint}"]
    return " ".join(["etsam predict TOMOGRAM.mrc", *words, f"weights.{stage}={best}"])


def _result(trainer: "Trainer", stage: "StageTraining") -> TrainingResult:
    import torch

    from etsam.training.reporting import best_checkpoint
    from etsam.training.run_folder import shown
    from etsam.training.stopping import LastCheckpoint

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    best = best_checkpoint(trainer)
    path = shown(best.best_model_path) if best is not None and best.best_model_path else None
    known = {} if path is None or not path.exists() else torch.load(path, weights_only=True, mmap=True)
    last = next((one.path for one in callbacks if isinstance(one, LastCheckpoint)), None)
    return TrainingResult(
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        best_checkpoint=path,
        best_score=None if best is None or best.best_model_score is None else float(best.best_model_score),
        dice_before=dict(stage.scores_at_start),
        dice_best=dict(known.get("scores", {})),
        last_checkpoint=last if last is not None and last.exists() else None,
        trainer=trainer,
    )
