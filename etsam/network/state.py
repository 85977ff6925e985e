"""States that the tracker hands over and keeps: features, decoded masks, states of slices, the memory bank.

Axes: B tiles or clips, C channels of the network (d_model), M channels of a memory, S image side; all slices square.
With a network at voxel resolution, (H, W) takes the place of S x S and of S/4 x S/4, and (H/16, W/16) that of the rest.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SliceFeatures:
    """Features of the image encoder for one slice position of B tiles, finest level first.

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

    def split(self, tiles: int) -> "list[SliceFeatures]":
        """Features of slices that were encoded together, each of so many tiles."""
        if self.levels[0].shape[1] == tiles:
            return [self]
        levels = zip(*(level.split(tiles, dim=1) for level in self.levels), strict=True)
        positions = [position[:, :tiles] for position in self.positions]  # the same for all images
        return [SliceFeatures(list(level), positions, self.sizes) for level in levels]


@dataclass(frozen=True)
class Clicks:
    """P clicks on one slice of B clips.

    Attributes
    ----------
    points
        (B, P, 2) float32, (x, y) in pixels of the image side S.
    labels
        (B, P) int32: 1 membrane, 0 background, 2 and 3 the first and the last corner of a box, -1 no click.
    """

    points: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Decoded:
    """Answer of the network for one slice, before it is remembered; K = 1 or 3 candidate masks.

    Attributes
    ----------
    candidates
        (B, K, S, S) float32 logits; -1024 where the network says that there is no object.
    ious
        (B, K) predicted IoU of each candidate.
    low_res_logits, logits
        (B, 1, S/4, S/4) and (B, 1, S, S) float32: the candidate of the highest predicted IoU.
    pointer
        (B, C) object pointer.
    object_score
        (B, 1) logit of there being an object at all.
    fine, coarse
        Feature maps that the decoder saw: the finer levels, and the coarsest with the memory in it.
    """

    candidates: Tensor
    ious: Tensor
    low_res_logits: Tensor
    logits: Tensor
    pointer: Tensor
    object_score: Tensor
    fine: list[Tensor] | None
    coarse: Tensor


@dataclass(frozen=True)
class SliceState:
    """Memory of one slice.

    Attributes
    ----------
    low_res_logits
        (B, 1, S/4, S/4) float32: the prompt at +-10 on a conditioning slice, else the prediction; -1024 where the
        network says that there is no object.
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


class MemoryBank:
    """Memory bank of one pass over the slices: all conditioning slices, and as many others as attention can reach.

    Parameters
    ----------
    num_slices
        Number of slices of the volume; SAM2 divides the distance of pointers by min(num_slices, 16) - 1.
    pointer_reach, feature_reach
        How many slices back pointers and memory features are used; older ones are dropped.
    """

    def __init__(self, num_slices: int, pointer_reach: int, feature_reach: int) -> None:
        self.num_slices = num_slices
        self.conditioning: dict[int, SliceState] = {}
        self.tracked: dict[int, SliceState] = {}
        self._pointer_reach, self._feature_reach = pointer_reach, feature_reach

    def remember(self, z: int, state: SliceState) -> None:
        """Add a tracked slice, without its logits, and drop what is out of reach of the slices that follow."""
        nothing = state.low_res_logits.new_empty(0)
        self.tracked[z] = SliceState(nothing, state.object_score, state.pointer, state.memory)
        for old in [other for other in self.tracked if other < z - self._pointer_reach]:
            del self.tracked[old]
        for old, kept in self.tracked.items():
            if old < z - self._feature_reach and kept.memory is not None:
                self.tracked[old] = SliceState(kept.low_res_logits, kept.object_score, kept.pointer, None)
