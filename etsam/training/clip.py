"""Forward of a batch of clips through the tracker of inference, with gradients, as SAM2 trains.

Conditioning slices first, each by its prompt alone; then the others in order, from the memory of those before. Memory
features keep the precision they are computed in, and gradients flow through memory.

Axes: T slices of a clip, B clips, K candidate masks, S image side; (H, W) in its place with a network of any size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from etsam.network.state import Clicks, Decoded, MemoryBank, SliceFeatures
from etsam.network.tracker import SliceTracker
from etsam.training.prompting import FIXED_KINDS, Annotator, ClipPlan, PromptKind, fixed_prompt


@dataclass(frozen=True)
class SliceOutput:
    """Answers of the network for one slice of B clips, step by step: before and after each correction click.

    Attributes
    ----------
    candidates
        For each step (B, K, S, S) float32 logits, K = 1 or 3.
    ious
        For each step (B, K), the predicted IoUs.
    object_scores
        For each step (B, 1) logits of there being an object.
    low_res_logits
        (B, 1, S/4, S/4) float32, the best candidate of the last step.
    clicks
        All clicks on the slice, or None.
    supervised
        Whether it is trained: False where the output is the prompt of inference.
    """

    candidates: list[Tensor]
    ious: list[Tensor]
    object_scores: list[Tensor]
    low_res_logits: Tensor
    clicks: Clicks | None
    supervised: bool


def forward_clip(
    tracker: SliceTracker,
    images: Tensor,
    masks: Tensor,
    plan: ClipPlan,
    *,
    ignore: Tensor | None = None,
    crop_shape: tuple[int, int] | None = None,
    clip_seeds: Sequence[int] | None = None,
    encode_batch_size: int | None = None,
    checkpoint_encoder: bool = False,
    memory_dtype: torch.dtype | None = None,
) -> list[SliceOutput]:
    """Track T neighbouring slices of B clips.

    Parameters
    ----------
    tracker
        In train or eval mode.
    images
        (T, B, C, S, S) float32 from `tracker.prepare`.
    masks
        (T, B, S, S) bool, the truth, of which prompts and clicks are made.
    plan
        What is prompted and corrected.
    ignore
        (T, B, S, S) bool, True where a voxel is not annotated: neither prompted nor clicked.
    crop_shape
        (Y, X) voxels of the crop before it was resized to S, for the grid; None: S x S.
    clip_seeds
        B numbers, at least 0, that with `plan.seed` seed the clicks of each clip, so that it does not matter with which
        others a clip shares a batch or a device; None: 0 to B - 1.
    encode_batch_size
        Images that go through the image encoder together; None: all T * B.
    checkpoint_encoder
        Compute the image encoder again in the backward pass instead of keeping its activations.
    memory_dtype
        Of memory features; None: as computed. `tracker.MEMORY_DTYPE` gives what inference gives.

    Returns
    -------
    list of SliceOutput
        In the order of the slices.
    """
    features = encode_clip(tracker, images, encode_batch_size, checkpoint_encoder)
    if plan.alone:
        return [_output([tracker.decode(z, seen, len(images))], None) for z, seen in enumerate(features)]
    run = _Run(tracker, plan, features, tracker.new_memory(len(images)), memory_dtype)
    due = max(1, min(len(images), tracker.network.num_maskmem) - 1)  # when inference segments slice 0 again
    seeds = range(images.shape[1]) if clip_seeds is None else clip_seeds
    outputs: dict[int, SliceOutput] = {}
    for z in [*plan.prompts, *(z for z in range(len(images)) if z not in plan.prompts)]:
        hidden = None if ignore is None else ignore[z][:, None]
        truth = masks[z][:, None] if hidden is None else masks[z][:, None] & ~hidden  # (B, 1, S, S)
        kind = plan.prompts.get(z)
        if kind is None or kind in ("box", "click"):
            outputs[z] = run.decode(z, kind, Annotator(plan, z, truth, hidden, seeds))
        elif kind in FIXED_KINDS:
            planes = fixed_prompt(kind, plan, crop_shape or (images.shape[-2], images.shape[-1]))
            outputs[z] = run.prompt(z, kind, planes.to(masks.device))
        else:
            outputs[z] = run.prompt(z, kind, truth[:, 0])
        if plan.resegment_conditioning and z == due and plan.prompts.get(0) in FIXED_KINDS:
            outputs[0] = run.segment_first_again()
    return [outputs[z] for z in range(len(images))]


def encode_clip(
    tracker: SliceTracker, images: Tensor, batch_size: int | None = None, checkpointed: bool = False
) -> list[SliceFeatures]:
    """Features of each slice of B clips; arguments as in `forward_clip`."""
    clips, flat = images.shape[1], images.flatten(0, 1)  # (T*B, C, S, S)
    parts = [
        checkpoint(tracker.encode, part, use_reentrant=False) if checkpointed else tracker.encode(part)
        for part in flat.split(batch_size or len(flat))
    ]
    # split, not indexing: its backward joins the gradients of the slices instead of adding T arrays of full length
    alike = zip(*(part.levels for part in parts), strict=True)
    together = parts[0].levels if len(parts) == 1 else [torch.cat(level, dim=1) for level in alike]
    levels = [level.split(clips, dim=1) for level in together]
    positions = [position[:, :1].expand(-1, clips, -1) for position in parts[0].positions]  # the same for all images
    return [SliceFeatures(list(level), positions, parts[0].sizes) for level in zip(*levels, strict=True)]


@dataclass(frozen=True)
class _Run:
    """One pass over the slices: what stays the same, and the memory that fills."""

    tracker: SliceTracker
    plan: ClipPlan
    features: list[SliceFeatures]
    memory: MemoryBank
    dtype: torch.dtype | None

    def prompt(self, z: int, kind: PromptKind, planes: Tensor) -> SliceOutput:
        """A slice prompted by a mask, (B or 1, Y, X) bool; remembered as SAM2 trains, or as inference does."""
        features = self.features[z]
        prompt = self.tracker.prepare_prompt(planes).expand(features.levels[0].shape[1], -1, -1, -1)
        decoded = self.tracker.decode(z, features, self.memory.num_slices, prompt=prompt)
        fixed = kind in FIXED_KINDS
        remember = self.tracker.remember_prompt if fixed else self.tracker.remember
        self.memory.conditioning[z] = remember(features, decoded, dtype=self.dtype)
        return _output([decoded], None, supervised=not fixed)

    def decode(self, z: int, kind: PromptKind | None, annotator: Annotator) -> SliceOutput:
        """A slice that is predicted: from clicks (`kind`), or from memory; then corrected."""
        tracker, plan, features, memory = self.tracker, self.plan, self.features[z], self.memory
        clicks = None if kind is None else annotator.first(kind)
        conditioning, others = (memory.conditioning, memory.tracked) if kind is None else ({}, {})
        steps = [tracker.decode(z, features, memory.num_slices, conditioning, others, clicks=clicks)]
        corrections = plan.corrections.get(z, ())
        for step in range(len(corrections)):
            clicks = annotator.correct(step, steps[-1].logits.detach() > 0, clicks)
            steps.append(tracker.correct(steps[-1], clicks, initial=kind is not None))
        state = tracker.remember(features, steps[-1], clicked=clicks is not None, dtype=self.dtype)
        if kind is not None or (corrections and plan.corrected_as_conditioning):
            memory.conditioning[z] = state
        else:
            memory.remember(z, state)
        return _output(steps, clicks)

    def segment_first_again(self) -> SliceOutput:
        """Slice 0 from those after it, in reverse, as `inference.propagate` does."""
        after = {z: state for z, state in self.memory.tracked.items() if state.memory is not None}
        nearest = {min(after): after.pop(min(after))}
        decoded = self.tracker.decode(0, self.features[0], self.memory.num_slices, nearest, after, reverse=True)
        return _output([decoded], None)


def _output(steps: list[Decoded], clicks: Clicks | None, *, supervised: bool = True) -> SliceOutput:
    return SliceOutput(
        candidates=[step.candidates for step in steps],
        ious=[step.ious for step in steps],
        object_scores=[step.object_score for step in steps],
        low_res_logits=steps[-1].low_res_logits,
        clicks=clicks,
        supervised=supervised,
    )
