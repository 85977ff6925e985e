"""SAM2 as a tracker of slices: encode a slice, track it with the memory of others, remember it.

Training and inference use this one class. What is remembered is bounded: dropping what SAM2's memory attention can no
longer reach leaves the output exactly that of SAM2's own video predictor (tests/test_upstream_parity.py).

Axes: B tiles or clips, C channels of the network (d_model), M channels of a memory, S image side; all slices square.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ImageNet statistics, with which SAM2's encoder was trained
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
LOW_RES_STRIDE = 4  # the mask decoder's logits have a quarter of the image side


@dataclass(frozen=True)
class SliceFeatures:
    """What the image encoder gives for one slice position of B tiles, finest level first.

    Attributes
    ----------
    levels
        Flattened feature maps, each (H*W, B, channels).
    positions
        Their position encodings, same shapes.
    sizes
        (H, W) of each level.
    """

    levels: list[Tensor]
    positions: list[Tensor]
    sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class SliceState:
    """What is remembered of one slice.

    Attributes
    ----------
    low_res_logits
        (B, 1, S/4, S/4) float32: the prompt at +-10 on a prompted slice, else the prediction; -1024 where the network
        says that there is no object.
    object_score
        (B, 1) logit of there being an object at all.
    pointer
        (B, C) object pointer.
    memory
        (B, M, S/16, S/16) memory features, bfloat16 in inference, or None once out of reach.
    """

    low_res_logits: Tensor
    object_score: Tensor
    pointer: Tensor
    memory: Tensor | None


class SliceMemory:
    """Memory bank of one pass over the slices: all prompted slices, and as many others as attention can reach.

    Parameters
    ----------
    num_slices
        Number of slices of the volume; SAM2 divides the distance of pointers by min(num_slices, 16) - 1.
    pointer_reach, feature_reach
        How many slices back pointers and memory features are used; older ones are dropped.
    """

    def __init__(self, num_slices: int, pointer_reach: int, feature_reach: int) -> None:
        self.num_slices = num_slices
        self.prompted: dict[int, SliceState] = {}
        self.tracked: dict[int, SliceState] = {}
        self._pointer_reach, self._feature_reach = pointer_reach, feature_reach

    def remember(self, z: int, state: SliceState) -> None:
        """Add a tracked slice and drop what is out of reach of the slices that follow."""
        self.tracked[z] = state
        for old in [other for other in self.tracked if other < z - self._pointer_reach]:
            del self.tracked[old]
        for old, kept in self.tracked.items():
            if old < z - self._feature_reach and kept.memory is not None:
                self.tracked[old] = SliceState(kept.low_res_logits, kept.object_score, kept.pointer, None)


class SliceTracker(nn.Module):
    """One stage's network, used slice by slice.

    Parameters
    ----------
    network
        A `sam2.modeling.sam2_base.SAM2Base`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def side(self) -> int:
        """Side S of the square image that the network sees, pixels."""
        return int(self.network.image_size)

    @property
    def low_res_side(self) -> int:
        """Side S/4 of the logits that the network gives."""
        return self.side // LOW_RES_STRIDE

    def new_memory(self, num_slices: int) -> SliceMemory:
        """An empty memory bank for a volume of so many slices.

        Two slices more than attention reaches are kept, because a prompted slice is segmented again after the one
        that follows it (inference/propagate.py).
        """
        network = self.network
        stride = network.memory_temporal_stride_for_eval
        features = max(1, 2 + (stride - 1) + (network.num_maskmem - 3) * stride)  # oldest index in SAM2's own rule
        return SliceMemory(num_slices, max(network.max_obj_ptrs_in_encoder, features) + 1, features + 1)

    def prepare(self, planes: Tensor) -> Tensor:
        """Normalised slices to the network's image: bicubic (a = -0.5, antialiased when shrinking), three channels.

        Parameters
        ----------
        planes
            (B, Y, X) float32; about 0..1 for stage 1, 0..2 for stage 2. Overshoot is not clamped, as published.

        Returns
        -------
        Tensor
            (B, 3, S, S) float32.
        """
        images = planes[:, None].float()  # (B, 1, Y, X)
        if images.shape[-2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True)
        return (images - self.mean) / self.std  # (B, 3, S, S)

    def prepare_prompt(self, masks: Tensor) -> Tensor:
        """Prompt masks to the network's image side: bilinear, antialiased, then at least one half.

        Parameters
        ----------
        masks
            (B, Y, X) bool.

        Returns
        -------
        Tensor
            (B, 1, S, S) float32, 0 or 1.
        """
        prompts = masks[:, None].float()
        if prompts.shape[-2:] == (self.side, self.side):
            return prompts
        resized = F.interpolate(prompts, (self.side, self.side), mode="bilinear", align_corners=False, antialias=True)
        return (resized >= 0.5).float()

    def encode(self, images: Tensor) -> SliceFeatures:
        """Image features of one slice position; `images` is (B, 3, S, S) from `prepare`."""
        encoded = self.network.forward_image(images)
        _, levels, positions, sizes = self.network._prepare_backbone_features(encoded)
        return SliceFeatures(levels, positions, sizes)

    def prompt(self, z: int, features: SliceFeatures, prompt: Tensor, memory: SliceMemory) -> SliceState:
        """Put a prompted slice into memory. Its logits are the prompt itself at +-10, not a prediction.

        Parameters
        ----------
        z
            Slice index.
        features
            From `encode`.
        prompt
            (B, 1, S, S) from `prepare_prompt`.
        memory
            Gets the slice under `prompted`.
        """
        out = self._track_step(z, features, self._bank({}, {}), memory.num_slices, prompt=prompt)
        # as SAM2's predictor does: what is remembered of a prompt comes from its logits at a quarter of the side
        masks = F.interpolate(out["pred_masks"], (self.side, self.side), mode="bilinear", align_corners=False)
        features_out, _ = self.network._encode_new_memory(
            current_vision_feats=features.levels,
            feat_sizes=features.sizes,
            pred_masks_high_res=masks,
            object_score_logits=out["object_score_logits"],
            is_mask_from_pts=True,
        )
        state = self._state(out, features_out)
        memory.prompted[z] = state
        return state

    def track(self, z: int, features: SliceFeatures, memory: SliceMemory) -> SliceState:
        """Segment slice `z` from the memory of others, and remember it.

        `memory` needs at least one prompted slice.
        """
        state = self.segment(z, features, memory.prompted, memory.tracked, memory.num_slices, remember=True)
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
            Slices attended to as prompted ones are, wherever they lie; at least one.
        others
            Slices attended to by their distance: those before `z`, or after it if `reverse`.
        num_slices
            Of the volume.
        reverse
            Whether the slices are tracked from the last to the first.
        remember
            Whether the state gets memory features.
        """
        bank = self._bank(conditioning, others)
        out = self._track_step(z, features, bank, num_slices, reverse=reverse, encode_memory=remember)
        return self._state(out, out["maskmem_features"])

    def _track_step(
        self,
        z: int,
        features: SliceFeatures,
        bank: dict[str, dict[int, Any]],
        num_slices: int,
        *,
        prompt: Tensor | None = None,
        reverse: bool = False,
        encode_memory: bool = False,
    ) -> dict[str, Any]:
        return self.network.track_step(
            frame_idx=z,
            is_init_cond_frame=prompt is not None,
            current_vision_feats=features.levels,
            current_vision_pos_embeds=features.positions,
            feat_sizes=features.sizes,
            point_inputs=None,
            mask_inputs=prompt,
            output_dict=bank,
            num_frames=num_slices,
            track_in_reverse=reverse,
            run_mem_encoder=encode_memory,
        )

    def _state(self, out: Mapping[str, Any], memory: Tensor | None) -> SliceState:
        # SAM2's predictor rounds memory features to bfloat16, whatever the precision of the rest
        rounded = None if memory is None else memory.to(torch.bfloat16)
        return SliceState(out["pred_masks"], out["object_score_logits"], out["obj_ptr"], rounded)

    def _bank(
        self, conditioning: Mapping[int, SliceState], others: Mapping[int, SliceState]
    ) -> dict[str, dict[int, Any]]:
        """Memories in the form that SAM2's `track_step` reads."""
        return {
            "cond_frame_outputs": dict(self._entries(conditioning.items())),
            "non_cond_frame_outputs": dict(self._entries(others.items())),
        }

    def _entries(self, states: Iterable[tuple[int, SliceState]]) -> Iterable[tuple[int, dict[str, Any]]]:
        for z, state in states:
            entry: dict[str, Any] = {"obj_ptr": state.pointer}
            if state.memory is not None:
                # back to the pointers' precision: a network without pointers would meet a bfloat16 memory otherwise
                features = state.memory.to(state.pointer.dtype)
                positions = self.network.memory_encoder.position_encoding(features).to(features.dtype)
                entry |= {"maskmem_features": features, "maskmem_pos_enc": [positions]}
            yield z, entry
