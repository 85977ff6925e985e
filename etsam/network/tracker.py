"""SAM2 as a tracker of slices: encode a slice, decode it with the memory of others, remember it.

Training and inference use this one class. What is remembered is bounded: dropping what SAM2's memory attention can no
longer reach leaves the output exactly that of SAM2's own video predictor (tests/test_upstream_parity.py).

Axes: B tiles or clips, C channels of the network (d_model), M channels of a memory, H and W sides of the image. SAM2's
images are squares of one side S, its logits squares of S/4. Networks at voxel resolution (`etsam.network.voxel_sam2`)
take images of any size in steps of `tile_step`, and give a logit for every voxel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etsam.network.images import (
    VOXEL_MEAN,
    VOXEL_STD,
    channel_statistics,
    extend,
    mirror,
    prepare_image,
    prepare_prompt,
    slices_seen,
)
from etsam.network.memory_tokens import MemoryTokens, gather, memory_positions, pointer_positions
from etsam.network.state import Clicks, Decoded, MemoryBank, SliceFeatures, SliceState
from etsam.spans import next_multiple

LOW_RES_STRIDE = 4  # the logits of SAM2's mask decoder have a quarter of the image side
MEMORY_DTYPE = torch.bfloat16  # SAM2's predictor rounds memory features to it, whatever the precision of the rest


@dataclass(frozen=True)
class LogitFormat:
    """Size and precision of the logits that are kept of a network's tiles, known before it is built.

    Attributes
    ----------
    side
        Side S of the square image that it sees, pixels.
    tile_step
        Step of image sides of a network at voxel resolution; None: one side only.
    """

    side: int
    tile_step: int | None

    def shape(self, tile: tuple[int, int]) -> tuple[int, int]:
        """Sides of the logits of tiles of (Y, X) voxels: S/4 twice, or (Y, X) itself."""
        return tile if self.tile_step else (self.side // LOW_RES_STRIDE, self.side // LOW_RES_STRIDE)

    @property
    def dtype(self) -> type[np.floating]:
        """Precision: float32, or float16 where they are many, at most 0.004 off below 8."""
        return np.float16 if self.tile_step else np.float32


class SliceTracker(nn.Module):
    """One stage's network, used slice by slice.

    Parameters
    ----------
    network
        A `sam2.modeling.sam2_base.SAM2Base`; a `VoxelSAM2` has a `tile_step`.
    input_slices
        What the network sees of slice z in its channels: 1: the slice three times, as published; 3: the slices z - 1,
        z, z + 1, of which noise averages out; 5 and more: as many channels (`build_network`).
    tile_voxels
        Side of the tiles that the network is made for; smaller than its image side if it sees them magnified. None: the
        image side.
    memory_slices
        Attended to besides conditioning ones, the nearest; None: as many as the network was made for.
    kernels
        `fast`: with the replacements of `etsam.network.fast`; `reference`: SAM2's own code.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Any,
        input_slices: int = 1,
        tile_voxels: int | None = None,
        memory_slices: int | None = None,
        kernels: Literal["fast", "reference"] = "fast",
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.network: Any = network
        self.input_slices, self.tile_voxels = input_slices, tile_voxels or self.side
        self.memory_slices: int = network.num_maskmem - 1 if memory_slices is None else memory_slices
        mean, std = channel_statistics(input_slices)
        if self.tile_step:
            mean, std = torch.full_like(mean, VOXEL_MEAN), torch.full_like(std, VOXEL_STD)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @property
    def side(self) -> int:
        """Side S of the square image that the network sees, pixels; of one of any size, the largest."""
        return int(self.network.image_size)

    @property
    def tile_step(self) -> int | None:
        """Step of image sides that a network at voxel resolution takes, voxels; None: one side only."""
        return getattr(self.network, "tile_step", None)

    @property
    def low_res_side(self) -> int:
        """Side S/4 of the logits that SAM2 gives."""
        return self.side // LOW_RES_STRIDE

    def image_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the image that the network sees of tiles of (Y, X) voxels."""
        if self.tile_step is None:
            return self.side, self.side
        least = self.network.least_side
        return next_multiple(shape[0], self.tile_step, least), next_multiple(shape[1], self.tile_step, least)

    @property
    def logit_format(self) -> LogitFormat:
        """Size and precision of the logits that are kept."""
        return LogitFormat(self.side, self.tile_step)

    @property
    def weight_bytes(self) -> int:
        """Memory of the parameters."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def new_memory(self, num_slices: int) -> MemoryBank:
        """An empty memory bank for a volume of so many slices.

        Two slices more than attention reaches are kept, because a conditioning slice is segmented again after the one
        that follows it (inference/propagate.py).
        """
        network = self.network
        stride = network.memory_temporal_stride_for_eval
        features = max(1, 2 + (stride - 1) + (network.num_maskmem - 3) * stride)  # oldest index in SAM2's own rule
        return MemoryBank(num_slices, max(network.max_obj_ptrs_in_encoder, features) + 1, features + 1)

    def seen_with(self, z: int, num_slices: int) -> list[int]:
        """As `images.slices_seen`."""
        return slices_seen(z, num_slices, self.input_slices)

    def prepare(self, planes: Tensor) -> Tensor:
        """Images of slices (B, Y, X) or (B, input_slices, Y, X): (B, C, S, S) as of `images.prepare_image`.

        Or (B, C, H, W) of `image_shape`; slices are continued to it as in a mirror.
        """
        if self.tile_step is None:
            return prepare_image(planes, self.side, self.mean, self.std)
        images = (planes if planes.ndim == 4 else planes[:, None]).float()
        images = mirror(images, self.image_shape((images.shape[-2], images.shape[-1]))) - self.mean
        return images.div_(self.std).contiguous(memory_format=torch.channels_last)  # as the trunk takes it

    def prepare_prompt(self, masks: Tensor) -> Tensor:
        """Prompts (B, Y, X) bool, 0 or 1: (B, 1, S, S) as `images.prepare_prompt`, or (B, 1, H, W), 0 at the ends."""
        if self.tile_step is None:
            return prepare_prompt(masks, self.side)
        return extend(masks[:, None].float(), self.image_shape((masks.shape[-2], masks.shape[-1])))

    def encode(self, images: Tensor) -> SliceFeatures:
        """Image features of one slice position; `images` is (B, C, H, W) from `prepare`."""
        encoded = self.network.forward_image(images)
        _, levels, positions, sizes = self.network._prepare_backbone_features(encoded)
        return SliceFeatures(levels, positions, sizes)

    def prompt(self, z: int, features: SliceFeatures, prompt: Tensor, memory: MemoryBank) -> SliceState:
        """Put a conditioning slice into memory. Its logits are the prompt itself at +-10, not a prediction.

        Parameters
        ----------
        z
            Slice index.
        features
            From `encode`.
        prompt
            (B, 1, S, S) from `prepare_prompt`.
        memory
            Gets the slice under `conditioning`.
        """
        decoded = self.decode(z, features, memory.num_slices, prompt=prompt)
        memory.conditioning[z] = self.remember_prompt(features, decoded)
        return memory.conditioning[z]

    def track(self, z: int, features: SliceFeatures, memory: MemoryBank) -> SliceState:
        """Segment slice `z` from the memory of others, and remember it.

        `memory` needs at least one conditioning slice.
        """
        state = self.segment(z, features, memory.conditioning, memory.tracked, memory.num_slices, remember=True)
        memory.remember(z, state)
        return state

    def segment(
        self,
        z: int,
        features: SliceFeatures,
        conditioning: Mapping[int, SliceState],
        others: Mapping[int, SliceState],
        num_slices: int,
        *,
        reverse: bool = False,
        remember: bool = False,
    ) -> SliceState:
        """Segment slice `z` from given memories.

        Parameters
        ----------
        z, features
            The slice.
        conditioning
            Slices attended to wherever they lie; at least one.
        others
            Slices attended to by their distance: those before `z`, or after it if `reverse`.
        num_slices
            Of the volume.
        reverse
            Whether the slices are tracked from the last to the first.
        remember
            Whether the state gets memory features.
        """
        if not conditioning:
            raise ValueError("a slice is segmented from the memory of at least one other")
        decoded = self.decode(z, features, num_slices, conditioning, others, reverse=reverse)
        if remember:
            return self.remember(features, decoded)
        return SliceState(decoded.low_res_logits, decoded.object_score, decoded.pointer, None)

    def decode(
        self,
        z: int,
        features: SliceFeatures,
        num_slices: int,
        conditioning: Mapping[int, SliceState] | None = None,
        others: Mapping[int, SliceState] | None = None,
        *,
        prompt: Tensor | None = None,
        clicks: Clicks | None = None,
        reverse: bool = False,
    ) -> Decoded:
        """Answer of the network for slice `z`; nothing is remembered, and gradients flow where they are enabled.

        Parameters
        ----------
        z, features, num_slices, others, reverse
            As in `segment`.
        conditioning
            As in `segment`; none: the slice is decoded by its prompt alone.
        prompt
            (B, 1, S, S), 0 or 1: given back as +-10 (`candidates` has K = 1, `ious` are 1).
        clicks
            Clicks on this slice.
        """
        network = self.network
        *finer, coarsest = (_as_map(level, size) for level, size in zip(features.levels, features.sizes, strict=True))
        fine = finer or None
        if prompt is not None and network.use_mask_input_as_output_without_sam:
            return _decoded(network._use_mask_as_output(coarsest, fine, prompt), fine, coarsest)
        points = _point_inputs(clicks)
        coarse = self._with_memory(z, features, num_slices, conditioning or {}, others or {}, reverse)
        heads = network._forward_sam_heads(
            backbone_features=coarse,
            point_inputs=points,
            mask_inputs=prompt,
            high_res_features=fine,
            multimask_output=network._use_multimask(not conditioning, points),
        )
        return _decoded(heads, fine, coarse)

    def correct(self, decoded: Decoded, clicks: Clicks, *, initial: bool) -> Decoded:
        """Decode a slice again with all clicks so far and its own logits.

        Parameters
        ----------
        decoded
            The slice as it was before the last click.
        clicks
            All clicks on it.
        initial
            Whether it was decoded without memory.
        """
        inputs = _point_inputs(clicks)
        heads = self.network._forward_sam_heads(
            backbone_features=decoded.coarse,
            point_inputs=inputs,
            mask_inputs=decoded.low_res_logits,
            high_res_features=decoded.fine,
            multimask_output=self.network._use_multimask(initial, inputs),
        )
        return _decoded(heads, decoded.fine, decoded.coarse)

    def remember(
        self,
        features: SliceFeatures,
        decoded: Decoded,
        *,
        clicked: bool = False,
        dtype: torch.dtype | None = MEMORY_DTYPE,
    ) -> SliceState:
        """The state of a decoded slice with its memory features.

        Parameters
        ----------
        features, decoded
            The slice.
        clicked
            Whether clicks were given on it (some SAM2 configs binarise such masks).
        dtype
            Of the memory features; None: as computed, for training.
        """
        return self._remember(features, decoded, decoded.logits, clicked, dtype)

    def remember_prompt(
        self, features: SliceFeatures, decoded: Decoded, *, dtype: torch.dtype | None = MEMORY_DTYPE
    ) -> SliceState:
        """As `remember`, for a mask prompt, as SAM2's predictor does: from its logits at a quarter of the side."""
        logits = decoded.low_res_logits
        if self.tile_step is None:
            logits = F.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
        return self._remember(features, decoded, logits, True, dtype)

    def _remember(
        self, features: SliceFeatures, decoded: Decoded, logits: Tensor, is_prompt: bool, dtype: torch.dtype | None
    ) -> SliceState:
        memory, _ = self.network._encode_new_memory(
            current_vision_feats=features.levels,
            feat_sizes=features.sizes,
            pred_masks_high_res=logits,
            object_score_logits=decoded.object_score,
            is_mask_from_pts=is_prompt,
        )
        memory = memory if dtype is None else memory.to(dtype)
        return SliceState(decoded.low_res_logits, decoded.object_score, decoded.pointer, memory)

    def _with_memory(
        self,
        z: int,
        features: SliceFeatures,
        num_slices: int,
        conditioning: Mapping[int, SliceState],
        others: Mapping[int, SliceState],
        reverse: bool,
    ) -> Tensor:
        """Coarsest feature map (B, C, S/16, S/16) of slice `z`, with what it attends to in it."""
        network, level, size = self.network, features.levels[-1], features.sizes[-1]
        if network.num_maskmem == 0:
            return _as_map(level, size)
        if conditioning:
            found = gather(self, z, conditioning, others, num_slices, reverse=reverse)
        elif network.directly_add_no_mem_embed:
            return _as_map(level + network.no_mem_embed, size)
        else:
            shape = (1, level.shape[1], network.mem_dim)
            found = MemoryTokens(network.no_mem_embed.expand(shape), network.no_mem_pos_enc.expand(shape), 0)
        sized = {"size": size} if getattr(network.memory_attention, "needs_size", False) else {}
        attended = network.memory_attention(
            curr=[level],
            curr_pos=[features.positions[-1]],
            memory=found.tokens,
            memory_pos=found.positions,
            num_obj_ptr_tokens=found.num_pointer_tokens,
            **sized,
        )
        return _as_map(attended, size)

    def memory_positions(self, slots: tuple[int, ...], size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """As `memory_tokens.memory_positions`; the same for the same arguments as long as weights do not change."""
        return memory_positions(self.network, slots, size, dtype)

    def pointer_positions(self, distances: tuple[int, ...], most: int) -> Tensor:
        """As `memory_tokens.pointer_positions`; each row the same for the same distance and `most`."""
        return pointer_positions(self.network, distances, most)


def _as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(H*W, B, C) -> (B, C, H, W)."""
    return tokens.permute(1, 2, 0).unflatten(2, size)


def _point_inputs(clicks: Clicks | None) -> dict[str, Tensor] | None:
    return None if clicks is None else {"point_coords": clicks.points, "point_labels": clicks.labels}


def _decoded(heads: tuple[Tensor, ...], fine: list[Tensor] | None, coarse: Tensor) -> Decoded:
    _, candidates, ious, low_res_logits, logits, pointer, object_score = heads
    return Decoded(candidates, ious, low_res_logits, logits, pointer, object_score, fine, coarse)
