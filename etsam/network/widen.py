"""Weights of a network that sees few slices, for one that sees more of them."""

import torch
from torch import Tensor

from etsam.network.images import IMAGENET_MEAN, IMAGENET_STD, RGB

_WEIGHT = "image_encoder.trunk.patch_embed.proj.weight"
_BIAS = "image_encoder.trunk.patch_embed.proj.bias"


def widen_input(state: dict[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Weights whose first convolution takes `channels` slices and gives what it gave of those in the middle.

    Parameters
    ----------
    state
        Weights of SAM2 by name. A first convolution of three channels is taken as one that sees a grey slice three
        times, each time normalised as another colour, as SAM2's own weights and ETSAM's do; the result is the same
        but for the outermost pixels, where the image is continued by the mean colour.
    channels
        Input slices, odd.

    Returns
    -------
    dict
        `state` itself if it has as many channels already, or more; or if there is nothing to widen, since up to three
        slices are seen through three channels.
    """
    weight = state.get(_WEIGHT)
    if weight is None or channels <= RGB or weight.shape[1] >= channels:
        return state
    bias = state[_BIAS]
    if weight.shape[1] == RGB:
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        scaled = weight.float() / std.view(1, -1, 1, 1)
        bias = bias.float() + (scaled * (mean.mean() - mean).view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
        weight = scaled.sum(dim=1, keepdim=True) * std.mean()
    wide = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    before = (channels - weight.shape[1]) // 2
    wide[:, before : before + weight.shape[1]] = weight
    return {**state, _WEIGHT: wide, _BIAS: bias}
