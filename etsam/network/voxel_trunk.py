"""A small convolutional U-Net as SAM2's image encoder: features at every voxel, and coarse ones for the memory.

SAM2's own trunk cuts an image into patches of four pixels, so that a membrane of three voxels is seen at its size only
in an image that was magnified before. Here the finest features lie on voxels. They come from the U-Net's way up, and so
hold context. A head of one layer gives logits from them alone: the trunk can be trained by itself first, and its
weights then start the whole network (`etsam.network.voxel_sam2`).

Axes: B tiles, K neighbouring slices, C channels; H and W are multiples of 16 voxels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 8  # of GroupNorm; statistics of the tile at hand, so that grey values need no common scale


class _Norm(nn.GroupNorm):
    """Normalisation in float32, whatever the rest is computed in.

    Torch's own kernel for bfloat16 on a CPU takes three times as long as that for float32, casts included; a training
    step of eight crops of 128 takes a quarter less time by it (one core of an AMD EPYC, bf16-mixed, measured).
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).to(x.dtype)


class _SiLU(nn.Module):
    """SiLU, in place where no gradient asks for its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


class _Block(nn.Sequential):
    """Two convolutions of 3 x 3, each normalised and activated."""

    def __init__(self, channels_in: int, channels: int) -> None:
        layers: list[nn.Module] = []
        for before in (channels_in, channels):
            convolution = nn.Conv2d(before, channels, 3, padding=1, bias=False)  # GroupNorm has one
            layers += [convolution, _Norm(_GROUPS, channels), _SiLU()]
        super().__init__(*layers)


class VoxelTrunk(nn.Module):
    """U-Net over neighbouring slices, for the slice in the middle.

    The way up adds to the features of the way down, instead of laying both side by side: half the arithmetic at the
    finest levels, where most of the time goes.

    Parameters
    ----------
    input_slices
        K, odd.
    widths
        Channels at strides 1, 2, 4, 8 and 16; multiples of 8. The coarsest stride is 2 to the number of the others.
    seen_at
        Number of levels, from the finest, that see the slices themselves. A coarser one sees them at its own stride,
        beside what the level before has made of them: it has the channels to tell how they change from slice to slice.
    """

    def __init__(self, input_slices: int = 9, widths: Sequence[int] = (24, 48, 96, 160, 192), seen_at: int = 1) -> None:
        super().__init__()
        widths = list(widths)
        if len(widths) < 2 or any(width < 1 or width % _GROUPS for width in widths):
            raise ValueError(f"widths of the trunk {widths}: two or more, each a multiple of {_GROUPS}")
        if not 1 <= seen_at <= len(widths):
            raise ValueError(f"seen_at={seen_at}: between 1 and the {len(widths)} levels of the trunk")
        self.input_slices, self.channel_list, self.seen_at = input_slices, widths, seen_at
        finer = list(pairwise(widths))
        before = [0, *widths[:-1]]
        seen = [input_slices * (level < seen_at) for level in range(len(widths))]
        self.down = nn.ModuleList(map(_Block, map(sum, zip(before, seen, strict=True)), widths))
        self.across = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in finer)
        self.up = nn.ModuleList(_Block(fine, fine) for fine, _ in finer)
        self.head = nn.Conv2d(widths[0], 1, 1)

    @property
    def stride(self) -> int:
        """Stride of the coarsest level, voxels, of which H and W are multiples."""
        return int(2 ** (len(self.channel_list) - 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of the slice in the middle.

        Parameters
        ----------
        images
            (B, K, H, W) float32, grey values about -2 to 2 (`SliceTracker.prepare`).

        Returns
        -------
        list of Tensor
            (B, C, H / s, W / s) for strides s = 1, 2, 4, 8, 16, with C of `widths`.

        Raises
        ------
        ValueError
            If H or W is no multiple of the coarsest stride.
        """
        if any(side % self.stride for side in images.shape[-2:]):
            raise ValueError(f"an image of {tuple(images.shape)} has sides that are no multiples of {self.stride}")
        x = seen = images.contiguous(memory_format=torch.channels_last)
        levels: list[Any] = []
        for number, block in enumerate(self.down):
            if number:
                x = F.avg_pool2d(x, 2)
                if number < self.seen_at:
                    seen = F.avg_pool2d(seen, 2)
                    x = torch.cat([x, seen], dim=1)
            x = block(x)
            levels.append(x)
        for number in reversed(range(len(self.up))):
            # by no name of their own: a map of the finest level is 25 MB of a tile of 512 x 512
            levels[number] = levels[number] + F.interpolate(self.across[number](x), scale_factor=2.0, mode="nearest")
            x = levels[number] = self.up[number](levels[number])
        return levels

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights by name of a trunk that saw fewer slices, or at fewer levels, as those of this one: the same logits.

        What they saw lies in the middle, and the slices farther out count for nothing. Weights of trunks that differ
        otherwise stay as they are.
        """
        before, changed, own = 0, {}, self.state_dict()
        for level, width in enumerate(self.channel_list):
            name = f"down.{level}.0.weight"
            weight = state.get(name, own[name])
            missing = own[name].shape[1] - weight.shape[1]
            if missing > 0 and weight.shape[1] >= before:
                features, seen = weight[:, :before], weight[:, before:]
                sides = missing // 2, missing - missing // 2
                changed[name] = torch.cat([features, F.pad(seen, (0, 0, 0, 0, *sides))], dim=1)
            before = width
        return {**state, **changed}

    def logits(self, images: Tensor) -> Tensor:
        """Membrane logits by the trunk alone, (B, 1, H, W); `images` as for `forward`."""
        logits: Tensor = self.head(self(images)[0])
        return logits


class VoxelNeck(nn.Module):
    """The coarsest level as tokens of the memory's width.

    Parameters
    ----------
    channels
        Of the trunk's coarsest level.
    d_model
        C of the tokens.
    """

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.project = nn.Conv2d(channels, d_model, 1)

    def forward(self, coarse: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, d_model, H, W)."""
        tokens: Tensor = self.project(coarse)
        return tokens


class NoPositions(nn.Module):
    """Positions that are zero: rotary ones within a window are enough, and a slice may have any size."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of zeros, that take no memory."""
        return x.new_zeros(()).expand(x.shape)


class VoxelEncoder(nn.Module):
    """Trunk and neck, as SAM2 calls its image encoder.

    Parameters
    ----------
    trunk, neck
        Its parts.
    """

    def __init__(self, trunk: VoxelTrunk, neck: VoxelNeck) -> None:
        super().__init__()
        self.trunk, self.neck = trunk, neck
        self.positions = NoPositions()

    def forward(self, sample: Tensor) -> dict[str, Any]:
        """Levels of images (B, K, H, W): the trunk's logits (B, 1, H, W), its features from fine to coarse, tokens."""
        *fine, coarse = self.trunk(sample)
        levels = [self.trunk.head(fine[0]), *fine, self.neck(coarse)]
        positions = [self.positions(level) for level in levels]
        return {"vision_features": levels[-1], "vision_pos_enc": positions, "backbone_fpn": levels}
