"""Training of the U-Net within a given time, on crops of the tomograms of weighted manifests."""

import argparse
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from unet3d_network import RECIPE, build, make_folder, save

from etsam.app import compose_config
from etsam.data.augment import Augment, clip_generators
from etsam.data.batch import Clip, collate
from etsam.data.checks import check_samples
from etsam.data.clips import ClipDataset
from etsam.data.manifest import Sample, read_manifest
from etsam.data.sampling import ClipSampler, MixedClips
from etsam.errors import ConfigError, InputError
from etsam.labels import IGNORE
from etsam.prediction.record import environment, peak_memory_mb, write_record
from etsam.volume import read_volume
from etsam.volume.atomic import refuse_existing

log = logging.getLogger("etsam.unet3d")

_NO_SETTINGS = ("run", "started", "debug", "overwrite")
_HALVINGS = 4  # of BasicUNet: sides of crops are multiples of 2**4
_EPOCH_CLIPS = 1000  # in so many crops every source has its share
_WARMUP, _FINAL = 0.03, 0.02  # share of the time until the full rate is reached; share of the rate at the end


def train(args: argparse.Namespace) -> None:
    """Train until the time is over; write `unet.safetensors` (averaged weights) and `unet.json`.

    Raises
    ------
    EtsamError
        If a setting, a manifest or a file cannot be used, or the time is over before the first step.
    """
    started, budget = args.started, 60 * args.minutes
    check_training(args)
    weights_file, record_file = args.output_dir / "unet.safetensors", args.output_dir / "unet.json"
    for file in (weights_file, record_file):
        refuse_existing(file, args.overwrite)
    make_folder(args.output_dir)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    net = build(args.features)
    parameters = sum(parameter.numel() for parameter in net.parameters())

    recipe = compose_config("train", RECIPE)
    sources = read_sources(args.manifest, args.cache_folder)
    batches = draw_batches(sources, recipe, args)
    preparing = time.monotonic() - started
    log.info("%d tomograms, %.2f M parameters, begun after %.1f s", sum(map(len, sources)), parameters / 1e6, preparing)

    fitted = fit(net, batches, args, started, budget)
    save(fitted.pop("net"), weights_file, args.features, args.crop, args.overwrite)
    record = {
        "settings": {key: value for key, value in vars(args).items() if key not in _NO_SETTINGS},
        "recipe": {key: OmegaConf.to_container(recipe[key], resolve=True) for key in ("normalize", "augment")},
        "sources": [
            {"manifest": path, "weight": weight, "tomograms": len(samples)}
            for (path, weight), samples in zip(args.manifest, sources, strict=True)
        ],
        "parameters": parameters,
        **fitted,
        "seconds_preparing": round(preparing, 2),
        "seconds": round(time.monotonic() - started, 2),
        "peak_memory_mb": peak_memory_mb(),
        "environment": environment(),
    }
    record["environment"]["packages"]["monai"] = version("monai")
    write_record(record_file, record, args.overwrite)
    log.info("%d steps in %.1f s -> %s", record["steps"], record["seconds"], weights_file)


def check_training(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for numbers that make no sense."""
    for name in ("minutes", "lr"):
        if not 0 < getattr(args, name) < math.inf:
            raise ConfigError(f"--{name} {getattr(args, name):g} has to be above 0.")
    if args.threads < 1 or args.batch_size < 1:
        raise ConfigError(f"--threads {args.threads} and --batch-size {args.batch_size} have to be at least 1.")
    for path, weight in args.manifest:
        if not 0 < weight < math.inf:
            raise ConfigError(f"--manifest {path}={weight:g}: the weight has to be above 0.")
    unit = 2**_HALVINGS
    if any(side < unit or side % unit for side in args.crop) or max(args.crop) == unit:
        raise ConfigError(f"--crop {args.crop}: three multiples of {unit} are needed, not all of them {unit}.")
    if min(args.features) < 2:
        raise ConfigError(f"--features {args.features}: six numbers of at least 2 are needed.")


def read_sources(manifests: list[tuple[Path, float]], cache_folder: Path | None) -> list[list[Sample]]:
    """Training samples of each manifest; all files of all splits are checked together, as before nano's training.

    Raises
    ------
    InputError
        If a manifest cannot be read or has no training sample, or a file cannot be used.
    """
    listed = [read_manifest(path) for path, _ in manifests]
    samples = [[sample for sample in group if sample.split == "train"] for group in listed]
    for (path, _), group in zip(manifests, samples, strict=True):
        if not group:
            raise InputError(f"{path}: no sample of the split train; leave this manifest out, or set splits in it")
    check_samples([sample for group in listed for sample in group], splits=["train"], cache_folder=cache_folder)
    return samples


def draw_batches(
    sources: list[list[Sample]], recipe: DictConfig, args: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented crops without end: images (B, 1, Z, Y, X) float32 in 0..1, masks alike, uint8: 0, 1, 255.

    Everything is measured at once, so that a file that cannot be used is an error before the first step.
    """
    normalization, augment = instantiate(recipe.normalize), Augment(instantiate(recipe.augment))
    datasets: list[ClipDataset] = []
    shares: list[float] = []
    for samples, (_, weight) in zip(sources, args.manifest, strict=True):
        by_depth: dict[int, list[Sample]] = {}  # a dataset's clips have one length
        for sample in samples:
            depth = min(args.crop[0], read_volume(sample.tomogram, warn=False).shape[0])
            by_depth.setdefault(depth, []).append(sample)
        for depth, group in sorted(by_depth.items()):
            dataset = ClipDataset(
                group,
                normalization,
                num_slices=depth,
                crop=args.crop[1:],
                foreground_probability=recipe.data.foreground_probability,
                cache_folder=args.cache_folder,
                seed=int(np.random.SeedSequence([args.seed, len(datasets)]).generate_state(1)[0]),
            )
            dataset.measure()
            datasets.append(dataset)
            shares.append(weight * len(group) / len(samples))
    clips = max(_EPOCH_CLIPS, args.batch_size)
    sampler = ClipSampler(MixedClips(datasets, clips), shares, args.batch_size, args.seed, 1, 0)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while True:
            draws = sampler.plan(epoch)
            for i in range(0, clips - args.batch_size + 1, args.batch_size):
                chosen = draws[i : i + args.batch_size]
                batch = collate([pad(datasets[draw.source].clip(draw.clip, epoch), args.crop[0]) for draw in chosen])
                images, masks = augment(batch.images, batch.masks, clip_generators(batch.keys, args.seed))
                yield images[:, None], masks[:, None]
            epoch += 1

    return batches()


def pad(clip: Clip, depth: int) -> Clip:
    """Continue a clip along Z to `depth` slices, as `ClipDataset` does in Y, X: by reflection, its mask by 255."""
    missing = depth - len(clip.images)
    if missing == 0:
        return clip
    sides = [(missing // 2, missing - missing // 2), (0, 0), (0, 0)]
    images = np.pad(clip.images.numpy(), sides, mode="reflect")
    masks = np.pad(clip.masks.numpy(), sides, constant_values=IGNORE)
    return clip._replace(images=torch.from_numpy(images), masks=torch.from_numpy(masks))


def losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy, and 1 - Dice of probabilities (mean over the batch); voxels of 255 do not count.

    Parameters
    ----------
    logits
        (B, 1, Z, Y, X) float.
    masks
        The same shape, uint8: 0, 1, 255.
    """
    logits, masks = logits.float().flatten(1), masks.flatten(1)
    valid, truth = (masks != IGNORE).float(), (masks == 1).float()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, weight=valid, reduction="sum") / valid.sum().clamp(
        min=1
    )
    marked = logits.sigmoid() * valid
    dice = (2 * (marked * truth).sum(1) + 1) / (marked.sum(1) + truth.sum(1) + 1)  # 1: empty crops have a gradient, too
    return entropy, 1 - dice.mean()


def fit(
    net: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], args: argparse.Namespace, started: float, budget: float
) -> dict[str, Any]:
    """Take steps while the next one is expected to end in time; AdamW, its rate a cosine over the time.

    Returns
    -------
    dict
        `net`: with averaged weights; `steps`; `seconds_per_step`; `history`: means between two lines of the log.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0.05)  # of configs/optimizer/scratch.yaml
    averaged = AveragedModel(net, avg_fn=_average)
    net.train()
    begun = now = told = time.monotonic()
    end = started + budget
    recent: deque[float] = deque([0.0], maxlen=5)  # seconds of the last steps; the next may take as long as any
    sums, since, steps, history = np.zeros(2), 0, 0, []
    while now + max(recent) <= end:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate((now - begun) / (end - begun))
        sums, since, steps = sums + step(net, optimizer, *next(batches), args.bf16), since + 1, steps + 1
        averaged.update_parameters(net)
        before, now = now, time.monotonic()
        recent.append(now - before)
        if not np.isfinite(sums).all():
            raise ConfigError(f"the loss is not finite at step {steps}; set a lower --lr than {args.lr:g}.")
        if now - told >= min(60.0, budget / 10) or now + max(recent) > end:
            entropy, dice, minutes = *(float(value) for value in sums / since), (now - started) / 60
            history.append({"minutes": round(minutes, 3), "steps": steps, "cross_entropy": entropy, "dice_loss": dice})
            text = "%.1f of %g minutes: step %d, cross entropy %.4f, dice loss %.4f, %.2f s a step"
            log.info(text, minutes, args.minutes, steps, entropy, dice, (now - told) / since)
            sums, since, told = np.zeros(2), 0, now
    if not steps:
        raise ConfigError(f"--minutes {args.minutes:g} were over before the first step; give more, or --cache-folder.")
    seconds = round((now - begun) / steps, 3)
    return {"net": averaged.module, "steps": steps, "seconds_per_step": seconds, "history": history}


def step(net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, masks: Tensor, bf16: bool) -> np.ndarray:
    """Take one step; gives both losses, shape (2,)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = net(images)
    entropy, dice = losses(logits, masks)
    optimizer.zero_grad(set_to_none=True)
    (entropy + dice).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    return np.array([float(entropy.detach()), float(dice.detach())])


def rate(share: float) -> float:
    """Factor of the learning rate after this share of the time: a warm-up, and a cosine that ends at a fiftieth."""
    falling = _FINAL + (1 - _FINAL) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return falling * min(1.0, max(share, 1e-3) / _WARMUP)


def _average(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
    """Moving average with the decay of nano's short runs, which forgets the random start faster."""
    seen = float(count)
    return old + (1 - min(0.99, (1 + seen) / (10 + seen))) * (new - old)
