"""Prompts of a clip in training: the plan of one batch, and the clicks that a simulated annotator gives.

Two families of prompts. `mask`, `box` and `click` come from the truth, as SAM2 trains. `grid_zero` and `zero` are what
inference gives on slice 0; there the output of slice 0 is the prompt and not a prediction, so that slice has no loss,
unless it is segmented again as inference does (`resegment_conditioning`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from etsam.errors import ConfigError
from etsam.inference.prompts import GRID_INTERVAL, grid_zero, zero
from etsam.network.build import random_box, random_click
from etsam.network.state import Clicks

PromptKind = Literal["mask", "box", "click", "grid_zero", "zero"]
ClickMethod = Literal["uniform", "center"]
FIXED_KINDS: tuple[PromptKind, ...] = ("grid_zero", "zero")
"""The prompts of inference: the same whatever the truth is, on slice 0 alone."""


@dataclass(frozen=True)
class ClipPlan:
    """Plan of the prompts of one batch; all clips of the batch alike.

    Attributes
    ----------
    prompts
        Conditioning slice -> kind; these slices come first, in this order, and see no memory.
    corrections
        Corrected slice -> for each click, whether it is drawn from the truth (True) or from the error (False).
    corrected_as_conditioning
        Whether a corrected slice is remembered as a conditioning slice is.
    click_method
        `uniform`: any voxel of the error; `center`: the voxel deepest inside it (deterministic).
    grid_interval
        Of `grid_zero`, voxels of the crop before it is resized to the network's side.
    resegment_conditioning
        With `grid_zero` and `zero`: slice 0 is segmented again from the slices after it, and trained by that.
    seed
        Of the clicks and boxes, so that they do not depend on torch's global random state.
    alone
        Every slice is segmented by itself, without prompt and without memory.
    """

    prompts: Mapping[int, PromptKind]
    corrections: Mapping[int, tuple[bool, ...]] = field(default_factory=dict)
    corrected_as_conditioning: bool = True
    click_method: ClickMethod = "uniform"
    grid_interval: int = GRID_INTERVAL
    resegment_conditioning: bool = False
    seed: int = 0
    alone: bool = False


@dataclass(frozen=True)
class PromptSampler:
    """Draws the plan of a batch. Defaults: SAM2's `sam2.1_hiera_b+_MOSE_finetune.yaml`, without inference's prompts.

    Attributes
    ----------
    box, click, grid_zero, zero
        Probabilities of the kinds; the rest goes to `mask`. A clip can have both boxes and clicks.
    alone
        Probability that there is no prompt and nothing remembered: each slice by itself, to start a network with.
    max_conditioning_slices
        Of `mask`, `box`, `click`: 1 to so many conditioning slices, slice 0 always among them.
    max_corrected_slices
        Of `box`, `click`: so many slices at most get correction clicks, the conditioning slices always among them.
    clicks_per_slice
        Correction clicks on each of those; 0: none.
    truth_click
        Probability that a correction click is drawn from the truth instead of the error.
    corrected_as_conditioning, click_method, grid_interval, resegment_conditioning
        As in `ClipPlan`.

    Raises
    ------
    ConfigError
        If the probabilities are negative or sum to more than 1, or a number is out of range.
    """

    box: float = 0.25
    click: float = 0.25
    grid_zero: float = 0.0
    zero: float = 0.0
    alone: float = 0.0
    max_conditioning_slices: int = 2
    max_corrected_slices: int = 2
    clicks_per_slice: int = 7
    truth_click: float = 0.1
    corrected_as_conditioning: bool = True
    click_method: ClickMethod = "uniform"
    grid_interval: int = GRID_INTERVAL
    resegment_conditioning: bool = False

    def __post_init__(self) -> None:
        names = ("box", "click", "grid_zero", "zero", "alone", "truth_click")
        shares = {name: getattr(self, name) for name in names}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"prompts.{name}={share}: a probability lies in 0..1.")
        total = sum(share for name, share in shares.items() if name != "truth_click")
        if total > 1 + 1e-9:
            raise ConfigError(
                f"prompts: box + click + grid_zero + zero + alone = {total:g}; at most 1, the rest goes to masks."
            )
        if self.max_conditioning_slices < 1 or self.clicks_per_slice < 0 or self.grid_interval < 1:
            raise ConfigError(
                "prompts: max_conditioning_slices and grid_interval are at least 1, clicks_per_slice at least 0."
            )
        if self.max_corrected_slices < self.max_conditioning_slices:
            raise ConfigError(
                f"prompts.max_corrected_slices={self.max_corrected_slices} has to be at least max_conditioning_slices="
                f"{self.max_conditioning_slices}: slices with clicks are corrected (clicks_per_slice=0: none are)."
            )
        if self.click_method not in ("uniform", "center"):
            raise ConfigError(f"prompts.click_method={self.click_method}: uniform or center.")

    def draw(self, num_slices: int, generator: np.random.Generator) -> ClipPlan:
        """Draw the plan of a batch of clips of `num_slices` slices.

        A slice that is given its mask teaches nothing by itself. So at least one slice is tracked, and a clip of one
        slice gets a box or a click, as in SAM2.
        """
        if self.alone and generator.random() < self.alone:
            return ClipPlan(prompts={}, alone=True)
        kind = self._kind(num_slices, generator)
        by_hand = kind in ("box", "click")
        most = (
            1 if kind in FIXED_KINDS else min(self.max_conditioning_slices, num_slices if by_hand else num_slices - 1)
        )
        conditioning = [0, *_some(range(1, num_slices), int(generator.integers(1, most, endpoint=True)) - 1, generator)]
        corrected: list[int] = []
        if by_hand and self.clicks_per_slice:
            number = int(generator.integers(len(conditioning), self.max_corrected_slices, endpoint=True))
            rest = [z for z in range(num_slices) if z not in conditioning]
            corrected = conditioning + _some(rest, number - len(conditioning), generator)
        return ClipPlan(
            prompts={z: self._box_or_click(generator) if by_hand else kind for z in conditioning},
            corrections={
                z: tuple(bool(x) for x in generator.random(self.clicks_per_slice) < self.truth_click) for z in corrected
            },
            corrected_as_conditioning=self.corrected_as_conditioning,
            click_method=self.click_method,
            grid_interval=self.grid_interval,
            resegment_conditioning=self.resegment_conditioning,
            seed=int(generator.integers(2**31)),
        )

    def _kind(self, num_slices: int, generator: np.random.Generator) -> PromptKind:
        if num_slices == 1:
            return "click"
        drawn = generator.random() * (1 - self.alone)  # of what is not `alone`
        kinds: tuple[PromptKind, ...] = ("box", "click", "grid_zero", "zero")
        for kind in kinds:
            drawn -= getattr(self, kind)
            if drawn < 0:
                return kind
        return "mask"

    def _box_or_click(self, generator: np.random.Generator) -> PromptKind:
        both = self.box + self.click
        return "box" if generator.random() * both < self.box else "click"


def _some(slices: "range | list[int]", number: int, generator: np.random.Generator) -> list[int]:
    chosen = generator.choice(np.asarray(slices, dtype=int), min(number, len(slices)), replace=False)
    return [int(z) for z in chosen]


def fixed_prompt(kind: PromptKind, plan: ClipPlan, crop_shape: tuple[int, int]) -> Tensor:
    """The mask that inference would give on slice 0 of a crop of (Y, X) voxels, (1, Y, X) bool."""
    shape = (1, *crop_shape)
    masks = zero(shape) if kind == "zero" else grid_zero(shape, interval=plan.grid_interval)
    return torch.from_numpy(masks[0])[None]


@dataclass(frozen=True)
class Annotator:
    """Clicks on one slice of B clips, as a person would who knows the truth.

    Attributes
    ----------
    plan, z
        The plan and the slice.
    truth
        (B, 1, S, S) bool.
    ignore
        (B, 1, S, S) bool or None: voxels that are not annotated, on which nobody clicks.
    clip_seeds
        B numbers that seed the clicks of each clip, together with `plan.seed`.
    """

    plan: ClipPlan
    z: int
    truth: Tensor
    ignore: Tensor | None
    clip_seeds: Sequence[int]

    def first(self, kind: PromptKind) -> Clicks:
        """The click, or the box (P = 2), of the slice.

        Where there is no object: a click on the background, and instead of the second corner none.
        """
        click = self._click(torch.zeros_like(self.truth), 0)
        if kind == "click":
            return click
        points = click.points.repeat(1, 2, 1)  # (B, 2, 2)
        labels = torch.cat([click.labels, torch.full_like(click.labels, -1)], dim=1)  # (B, 2)
        for clip in self.truth.flatten(1).any(dim=1).nonzero()[:, 0].tolist():
            with self._seeded(clip, 0):
                points[clip : clip + 1], labels[clip : clip + 1] = random_box(self.truth[clip : clip + 1])
        return Clicks(points, labels)

    def correct(self, step: int, prediction: Tensor, before: Clicks | None) -> Clicks:
        """The clicks so far and correction `step` (from 0); `prediction` (B, 1, S, S) bool."""
        from_truth = self.plan.corrections[self.z][step]
        click = self._click(torch.zeros_like(prediction) if from_truth else prediction, 1 + step)
        if before is None:
            return click
        points = torch.cat([before.points, click.points], dim=1)
        return Clicks(points, torch.cat([before.labels, click.labels], dim=1))

    def _click(self, prediction: Tensor, step: int) -> Clicks:
        """One click (P = 1) where prediction and truth differ."""
        truth, ignore = self.truth, self.ignore
        if ignore is not None:
            prediction = torch.where(ignore, truth, prediction)
        if self.plan.click_method == "center":
            points, labels = _central_click(truth, prediction)
        else:
            drawn = [self._random_click(clip, prediction, step) for clip in range(len(truth))]
            points, labels = (torch.cat(part) for part in zip(*drawn, strict=True))
        if ignore is not None:  # the click of a clip without error can fall anywhere
            at = (points[..., 1] * truth.shape[-1] + points[..., 0]).long()  # (B, 1)
            labels = labels.masked_fill(ignore.flatten(1).gather(1, at), -1)
        return Clicks(points, labels)

    def _random_click(self, clip: int, prediction: Tensor, step: int) -> tuple[Tensor, Tensor]:
        with self._seeded(clip, step):
            return random_click(self.truth[clip : clip + 1], prediction[clip : clip + 1])

    @contextmanager
    def _seeded(self, clip: int, step: int) -> Iterator[None]:
        """Torch's global random state as if seeded, and as it was afterwards."""
        seed = np.random.SeedSequence([self.plan.seed, self.clip_seeds[clip], self.z, step]).generate_state(1)[0]
        device = self.truth.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            yield


def _central_click(truth: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    """The voxel deepest inside the error, as SAM2 evaluates; without any error a negative click at (0, 0)."""
    points, labels = [], []
    for missed, extra in zip((truth & ~prediction).cpu(), (prediction & ~truth).cpu(), strict=True):
        depths = [distance_transform_edt(np.pad(error[0].numpy(), 1))[1:-1, 1:-1] for error in (extra, missed)]
        label = int(depths[1].max() > depths[0].max())
        y, x = np.unravel_index(int(depths[label].argmax()), depths[label].shape)
        points.append([[float(x), float(y)]])
        labels.append([label])
    device = truth.device
    return torch.tensor(points, device=device), torch.tensor(labels, dtype=torch.int32, device=device)
