"""Training of one stage: fit on clips, validate by the real streaming inference."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from etsam.data.augment import Augment, Augmentation, clip_generators
from etsam.data.batch import ClipBatch
from etsam.data.datamodule import ValidationItem
from etsam.data.measured import IGNORE
from etsam.errors import ConfigError, TrainingError
from etsam.network.checkpoint import nonfinite_tensors
from etsam.network.fast.cpu_autocast import Float32Attention
from etsam.network.images import extend
from etsam.network.tracker import SliceTracker
from etsam.training.clip import forward_clip
from etsam.training.losses import MaskLosses
from etsam.training.optimizer import MuonAdamW, freeze_encoder, parameter_groups
from etsam.training.prompting import PromptSampler
from etsam.training.schedule import CosineToFraction, RangeTest
from etsam.training.validation import ValidationResult, Validator

log = logging.getLogger(__name__)

_SCORES = ("dice", "iou", "precision", "recall")
_SCALE_SOUGHT = 20  # steps; the scale of float16 is halved at each that overflows, from 2^16


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW with a cosine to a fraction of the rate; defaults are the published recipe (Selvaraj & Cheng 2026).

    `encoder_lr`: of the image encoder, the last layer of it where `layer_decay` is below 1; `lr`: of all else.
    `muon`: weight matrices are trained by Muon, at so many times the rate; None: by AdamW, as the rest.
    `range_test`: the rates rise from a thousandth to ten times theirs instead, to see which ones a network bears.
    """

    lr: float = 5e-6
    encoder_lr: float = 3e-6
    layer_decay: float = 0.9
    weight_decay: float = 0.1
    final_fraction: float = 0.1
    warmup_steps: int = 0
    muon: float | None = None
    range_test: bool = False


@dataclass(frozen=True)
class Guard:
    """Score of fine-tuning: the Dice of one source, as long as the others do not fall.

    Attributes
    ----------
    source
        Name of the source that is tuned for, in `data.sources`.
    allowed_fall
        Of the Dice of any other source, below what the start weights had.
    """

    source: str = "own"
    allowed_fall: float = 0.01

    def score(self, dice: Mapping[str, float], before: Mapping[str, float]) -> float:
        """Dice of `source`, less 1 where another source has fallen further than allowed.

        Parameters
        ----------
        dice, before
            Dice by source, now and before training.
        """
        fallen = [name for name in dice if name != self.source and dice[name] < before.get(name, 0) - self.allowed_fall]
        return dice.get(self.source, 0.0) - bool(fallen)


class StageTraining(LightningModule):
    """One stage's network in training; the same class for both, only inputs and prompts differ.

    Parameters
    ----------
    tracker
        The network, used by the same code as in inference.
    losses
        What is minimised.
    prompts
        How clips are prompted.
    validator
        Streaming inference on a validation tomogram.
    optimizer
        Rates.
    augmentations
        What is done to clips, on the device, in this order.
    freeze_image_encoder
        For fine-tuning on little data.
    checkpoint_encoder
        Recompute the image encoder in the backward pass: less memory, about a third more time.
    encode_batch_size
        Slices that are encoded together; None: all of the clips' slices.
    guard
        For fine-tuning: scores `val/guarded`, by which the best state is chosen.
    seed
        Of prompts, clicks, augmentations and dropout; they depend on it and the step only, so that a resumed run
        goes on as if it had never stopped.
    """

    def __init__(
        self,
        tracker: SliceTracker,
        losses: MaskLosses,
        prompts: PromptSampler,
        validator: Validator,
        optimizer: OptimizerSettings | None = None,
        augmentations: Mapping[str, Augmentation] | None = None,
        *,
        freeze_image_encoder: bool = False,
        checkpoint_encoder: bool = False,
        encode_batch_size: int | None = None,
        guard: Guard | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tracker = tracker.train()  # it is built for prediction
        self.losses = losses
        self.prompts = prompts
        self.validator = validator
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.augment = Augment(augmentations)
        self.checkpoint_encoder, self.encode_batch_size, self.seed = checkpoint_encoder, encode_batch_size, seed
        if freeze_image_encoder:
            freeze_encoder(tracker.network)
        self.guard = guard
        self.scores_at_start: dict[str, float] = {}  # Dice by source
        self.scores: dict[str, float] = {}
        self._sums: dict[str, list[float]] = {}
        self._last_batch: tuple[Tensor, list[str]] = torch.tensor(0.0), []
        self._nonfinite_steps = 0
        self._resumed: _Resumed | None = None
        self._schedule: Callable[[int], float] = lambda step: 1.0

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """Follow the schedule of this run from its first step on; say where that is not what was planned."""
        trainer: Any = self.trainer
        (optimizer,) = trainer.optimizers
        before, step = _factor(optimizer), trainer.lr_scheduler_configs[0].scheduler.last_epoch
        for group in optimizer.param_groups:  # a run that goes on has the last rate of the length that it had
            group["lr"] = group["initial_lr"] * self._schedule(step)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            lr = self.optimizer_settings.lr
            self._tell_rates(lr * before, lr * _factor(optimizer))

    def _tell_rates(self, before: float, now: float) -> None:
        settings, total = self.optimizer_settings, self.total_steps()
        if self._resumed is not None and not math.isclose(before, now, rel_tol=1e-6):
            log.warning(
                "the run now ends at step %d, which is not where it was planned to end: the learning rate %s from %.3g "
                "to %.3g",
                total,
                "rises" if now > before else "falls",
                before,
                now,
            )
        if settings.warmup_steps >= total and not settings.range_test:
            reached = settings.lr * self._schedule(total - 1)
            log.warning(
                "optimizer.warmup_steps=%d is not shorter than the run of %d steps: the learning rate reaches %.3g "
                "(%.0f %% of optimizer.lr=%g); set a smaller one",
                settings.warmup_steps,
                total,
                reached,
                100 * self._schedule(total - 1),
                settings.lr,
            )

    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:
        """Seed everything that is drawn in a step from the step's number: dropout, clicks, and what libraries draw."""
        lightning.seed_everything(_mix(self.seed, self._step, self.global_rank), verbose=False)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Loss of a batch of clips, logged with its parts."""
        images, masks = self._network_input(batch)
        truth, ignore = masks == 1, masks == IGNORE  # (T, B, S, S)
        # all processes draw the same plan, as if the global batch were one
        generator = np.random.default_rng([self.seed, self._step])
        fast = self.tracker.kernels == "fast" and torch.is_autocast_enabled("cpu")
        with Float32Attention() if fast else nullcontext():
            outputs = forward_clip(
                self.tracker,
                images,
                truth,
                self.prompts.draw(images.shape[0], generator),
                ignore=ignore,
                crop_shape=(batch.images.shape[-2], batch.images.shape[-1]),
                clip_seeds=[_mix(self.seed, *key) for key in batch.keys.tolist()],
                checkpoint_encoder=self.checkpoint_encoder,
                encode_batch_size=self.encode_batch_size,
            )
        loss = self.losses(outputs, truth, ignore=ignore)
        size = batch.images.shape[0]
        self._last_batch = loss.total.detach(), list(batch.names)
        self.log("train/loss", loss.total, prog_bar=True, batch_size=size, sync_dist=True)
        # also where an epoch is shorter than the interval of logging
        self.log("train/loss_epoch", loss.total, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        parts = {"mask": loss.mask, "dice": loss.dice, "iou": loss.iou, "object": loss.object}
        self.log_dict({f"train/loss_{name}": value for name, value in parts.items()}, batch_size=size)
        return loss.total

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients; log their norm before that, the fraction of steps that are clipped, and the rates.

        Raises
        ------
        TrainingError
            If the norm is not finite, before the step is taken, so that the weights stay as they were. The norm is the
            same on all devices, so all stop together. With float16, whose scale is sought by trying, at the twentieth
            such step in a row.
        """
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._refuse_nonfinite(float(norm))
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        factor = _factor(optimizer)
        rates = {"lr": self.optimizer_settings.lr * factor, "encoder_lr": self.optimizer_settings.encoder_lr * factor}
        self.log_dict({"train/grad_norm": norm, **rates})
        if gradient_clip_val:
            clipped, clips = (norm > gradient_clip_val).float(), len(self._last_batch[1]) or 1
            self.log("train/clipped", clipped, on_step=False, on_epoch=True, batch_size=clips, sync_dist=True)

    def _refuse_nonfinite(self, norm: float) -> None:
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        self._nonfinite_steps = 0 if math.isfinite(norm) else self._nonfinite_steps + 1
        if self._nonfinite_steps < (_SCALE_SOUGHT if scaled else 1):
            return
        loss, names = self._last_batch
        raise TrainingError(
            f"the gradients of step {self.trainer.global_step + 1} are not finite (norm {norm}, loss {float(loss):g}, "
            f"optimizer.lr={self.optimizer_settings.lr:g}, tomograms {', '.join(dict.fromkeys(names))}). No step was "
            "taken with them; last.ckpt, if there is one, holds the state that was saved last. Lower optimizer.lr, or "
            "look at these tomograms."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the scores of now and from before training; raises `TrainingError` for weights that are not finite."""
        broken = nonfinite_tensors(self.tracker.state_dict())
        if broken:
            raise TrainingError(
                f"{len(broken)} tensors of the weights ({broken[0]}, ...) are not finite after step "
                f"{self.trainer.global_step}; nothing was saved of them. Lower optimizer.lr."
            )
        checkpoint["scores_at_start"], checkpoint["scores"] = self.scores_at_start, self.scores

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the scores from before training, for the guard, and where the run goes on."""
        self.scores_at_start = dict(checkpoint.get("scores_at_start", {}))
        self._resumed = _Resumed.of(checkpoint)

    @property
    def _step(self) -> int:
        """Number of training batches that this run has seen, over all its parts."""
        return int(self.trainer.fit_loop.total_batch_idx) + 1

    def _network_input(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Augmented images (T, B, C, H, W) float32 and masks (T, B, H, W) uint8 of a batch.

        Each clip is augmented by a generator of its own, so it does not matter with which others it shares a batch.
        """
        generators = clip_generators(batch.keys, self.seed)
        images, masks = self.augment(batch.images, batch.masks, generators)  # (B, T, Y, X)
        reach = self.tracker.input_slices // 2  # the outermost slices of a clip are only seen beside others
        masks = masks[:, reach : masks.shape[1] - reach]
        seen = images.unfold(1, 2 * reach + 1, 1).movedim(-1, 2)  # (B, T, input_slices, Y, X)
        prepared = self.tracker.prepare(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])  # (B, T, C, H, W)
        size = prepared.shape[-2], prepared.shape[-1]
        if self.tracker.tile_step:
            fitting = extend(masks, size, IGNORE)  # what lies beyond a crop is not annotated
        else:
            fitting = nn.functional.interpolate(masks.float(), size, mode="nearest-exact").to(torch.uint8)
        return prepared.transpose(0, 1), fitting.transpose(0, 1)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW or Muon, cosine to a fraction of each group's rate over the whole run, stepwise."""
        settings = self.optimizer_settings
        groups = parameter_groups(
            self.tracker.network,
            lr=settings.lr,
            encoder_lr=settings.encoder_lr,
            layer_decay=settings.layer_decay,
            weight_decay=settings.weight_decay,
        )
        for group in groups:
            del group["names"]  # checkpoints hold plain values, and these are many
        optimizer = torch.optim.AdamW(groups) if settings.muon is None else MuonAdamW(groups, factor=settings.muon)
        self._schedule = (
            RangeTest(self.total_steps())
            if settings.range_test
            else CosineToFraction(self.total_steps(), settings.final_fraction, settings.warmup_steps)
        )
        # as a function: LambdaLR restores the attributes of an object, and with them the length of a run that goes on
        factor = LambdaLR(optimizer, lambda step: self._schedule(step))
        scheduler: LRSchedulerConfigType = {"scheduler": factor, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def total_steps(self) -> int:
        """Optimiser steps of the whole run; where it goes on, those that are done and those that remain.

        So the schedule ends with the run, though a step had other clips before, by another batch or number of devices.

        `trainer.estimated_stepping_batches` would set up the loader before its state is restored, and Lightning then
        drops that state (2.6): a resumed run would begin its epoch anew.
        """
        trainer: Any = self.trainer
        batches = trainer.datamodule.clips_per_epoch // (trainer.datamodule.batch_size * trainer.world_size)
        limit = trainer.limit_train_batches  # a number of batches, or a fraction of them
        limited = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if batches and not limited and limit:
            raise ConfigError(
                f"trainer.limit_train_batches={limit} of the {batches} batches of an epoch is less than one; set at "
                f"least {math.ceil(100 / batches) / 100:g}, or a whole number."
            )
        each = max(1, -(-limited // trainer.accumulate_grad_batches))
        if self._resumed is None or trainer.max_epochs is None or trainer.max_epochs < 0:
            steps = each * (trainer.max_epochs or 0)
        else:
            clips = trainer.datamodule.batch_size * trainer.world_size
            remaining = self._resumed.batches_left(limited, batches * clips, clips)
            steps = self._resumed.steps + -(-remaining // trainer.accumulate_grad_batches)
            steps += each * max(0, trainer.max_epochs - self._resumed.epochs_begun)
        limits = [most for most in (trainer.max_steps, steps) if most > 0]  # -1: no limit
        if not limits:
            raise ConfigError("the cosine needs an end: set trainer.max_epochs or trainer.max_steps.")
        return int(min(limits))

    # ------------------------------------------------------------------ validation

    def on_validation_epoch_start(self) -> None:
        """Reset the sums."""
        self._reset_sums(self._data.validation)

    def on_test_epoch_start(self) -> None:
        """Reset the sums."""
        self._reset_sums(self._data.test)

    def validation_step(self, batch: ValidationItem, batch_idx: int) -> dict[str, ValidationResult]:
        """Segment one tomogram as prediction would, and score it; callbacks get `result`."""
        return self._score(batch)

    def test_step(self, batch: ValidationItem, batch_idx: int) -> dict[str, ValidationResult]:
        """As `validation_step`, of the split `test`."""
        return self._score(batch)

    def on_validation_epoch_end(self) -> None:
        """Log means over the tomograms of all processes, of each source, too, so that forgetting is visible."""
        means = self._means()
        self.scores = dice_by_source(means)
        if self.trainer.state.fn == "validate":
            self.scores_at_start = self.scores
        if self.guard is not None:
            means["guarded"] = self.guard.score(self.scores, self.scores_at_start)
        self._log_scores("val", means)

    def on_test_epoch_end(self) -> None:
        """Log means over the tomograms of all processes."""
        self._log_scores("test", self._means())

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _reset_sums(self, tomograms: Sequence[tuple[str, Any]]) -> None:
        sources = dict.fromkeys(source for source, _ in tomograms)
        names = [*_SCORES, *(f"dice_{source}" for source in sources), "false_fraction_empty"]
        self._sums = {name: [0.0, 0.0] for name in names}  # sum and number, the same names in every process

    def _score(self, item: ValidationItem) -> dict[str, ValidationResult]:
        if item.number < 0:  # this process has none left while others work
            return {}
        result = self.validator(self.tracker, item, self._data.normalized(item.number))
        if result.empty:  # of a single false voxel its Dice would be 0
            scores = {"false_fraction_empty": result.false_fraction}
        else:
            scores = {name: getattr(result, name) for name in _SCORES} | {f"dice_{item.source}": result.dice}
        for name, value in scores.items():
            self._sums[name][0] += value
            self._sums[name][1] += 1
        return {"result": result}

    def _means(self) -> dict[str, float]:
        """Mean of each score over the tomograms of all processes; of the usual ones 0 where there was none."""
        sums = torch.tensor(list(self._sums.values()), dtype=torch.float32, device=self.device)  # (scores, 2)
        totals = self.trainer.strategy.reduce(sums, reduce_op="sum")
        counted = zip(self._sums, totals.tolist(), strict=True)
        means = {name: total / number for name, (total, number) in counted if number}
        return {**dict.fromkeys(_SCORES, 0.0), **means}  # callbacks wait for `val/dice`

    def _log_scores(self, split: str, means: Mapping[str, float]) -> None:
        # reduced already; sync_dist only keeps Lightning from recommending it
        self.log(f"{split}/dice", means["dice"], prog_bar=True, sync_dist=True)
        others = {f"{split}/{name}": value for name, value in means.items() if name != "dice"}
        self.log_dict(others, sync_dist=True)


@dataclass(frozen=True)
class _Resumed:
    """Where a run goes on.

    Attributes
    ----------
    steps
        Of the optimizer, that are done.
    epochs_begun, unfinished
        How many, and True if the last one was not ended.
    batches, clips
        Of the last one, that are done; clips on all devices together.
    """

    steps: int
    epochs_begun: int
    unfinished: bool
    batches: int
    clips: int

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> "_Resumed | None":
        """As Lightning 2.6 counts in its checkpoints; None of a file that does not hold the state of a run."""
        loops = checkpoint.get("loops", {}).get("fit_loop")
        if loops is None:
            return None
        epochs = loops["epoch_progress"]["current"]
        batches = int(loops["epoch_loop.batch_progress"]["current"]["ready"])
        loaders = loops["state_dict"].get("combined_loader") or [{}]
        return cls(
            steps=int(checkpoint["global_step"]),
            epochs_begun=int(epochs["ready"]),
            unfinished=epochs["processed"] < epochs["ready"],
            batches=batches,
            clips=int(loaders[0].get("position", 0)),
        )

    def batches_left(self, limit: int, epoch_clips: int, batch_clips: int) -> int:
        """Batches that remain of an epoch that was not ended.

        Parameters
        ----------
        limit
            Batches of an epoch now.
        epoch_clips, batch_clips
            Clips of an epoch and of a batch, on all devices together, now.
        """
        if not self.unfinished:
            return 0
        return max(0, min(limit - self.batches, -(-(epoch_clips - self.clips) // batch_clips)))


def _factor(optimizer: torch.optim.Optimizer) -> float:
    """Share of its rates that an optimizer is at."""
    first = optimizer.param_groups[0]
    return float(first["lr"] / (first.get("initial_lr") or 1.0))


def dice_by_source(means: Mapping[str, float]) -> dict[str, float]:
    """Dice of each source, of scores by name."""
    return {name.removeprefix("dice_"): value for name, value in means.items() if name.startswith("dice_")}


def _mix(*numbers: int) -> int:
    """One 32-bit seed of several numbers."""
    return int(np.random.SeedSequence([number & 0xFFFFFFFF for number in numbers]).generate_state(1)[0])
