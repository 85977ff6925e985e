"""Slices and prompts as the network takes them: images of a few channels, and masks of the same size.

SAM2's images are squares of one side, so slices are resized. Networks at voxel resolution take any size: slices are
only continued at their ends, to a multiple of the network's stride.

Axes: B tiles or clips, C channels of the network's first convolution, S image side, H and W sides of an image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# ImageNet statistics, with which SAM2's encoder was trained
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RGB = 3  # channels of SAM2's first convolution
# Of networks at voxel resolution, which no photograph has taught: grey values 0 to 1 come out as -2 to 2
VOXEL_MEAN, VOXEL_STD = 0.5, 0.25


def channel_statistics(input_slices: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the channels, (1, C, 1, 1): of red, green and blue, or of more slices alike."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    if input_slices > RGB:
        mean, std = mean.mean().repeat(input_slices), std.mean().repeat(input_slices)
    return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def slices_seen(z: int, num_slices: int, input_slices: int) -> list[int]:
    """The `input_slices` slices that a network sees when it sees slice `z`; the volume's ends are repeated."""
    reach = input_slices // 2
    return [min(max(other, 0), num_slices - 1) for other in range(z - reach, z + reach + 1)]


def prepare_image(planes: Tensor, side: int, mean: Tensor, std: Tensor) -> Tensor:
    """Normalised slices to the network's image: bicubic (a = -0.5, antialiased when shrinking), three channels.

    Parameters
    ----------
    planes
        (B, Y, X), or (B, input_slices, Y, X) as `slices_seen` lists them, float32; about 0..1 for stage 1, 0..2 for
        stage 2. Overshoot is not clamped, as published.
    side
        S.
    mean, std
        From `channel_statistics`.

    Returns
    -------
    Tensor
        (B, C, S, S) float32, C = 3 or more input slices.
    """
    images = (planes if planes.ndim == 4 else planes[:, None]).float()  # (B, input slices, Y, X)
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
    return (images - mean) / std  # (B, C, S, S)


def prepare_prompt(masks: Tensor, side: int) -> Tensor:
    """Prompt masks to the network's image side: bilinear, antialiased, then at least one half.

    Parameters
    ----------
    masks
        (B, Y, X) bool.
    side
        S.

    Returns
    -------
    Tensor
        (B, 1, S, S) float32, 0 or 1.
    """
    prompts = masks[:, None].float()
    if prompts.shape[-2:] == (side, side):
        return prompts
    resized = F.interpolate(prompts, (side, side), mode="bilinear", align_corners=False, antialias=True)
    return (resized >= 0.5).float()


def mirror(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., Y, X) to (..., H, W): continued at the ends of both axes as in a mirror, as often as it takes."""
    for axis, length in ((-2, size[0]), (-1, size[1])):
        known = image.shape[axis]
        if length > known:
            period = max(1, 2 * known - 2)
            there = torch.arange(length, device=image.device) % period
            image = image.index_select(axis, torch.minimum(there, period - there))
    return image


def extend(masks: Tensor, size: tuple[int, int], value: float = 0) -> Tensor:
    """(..., Y, X) to (..., H, W), with one value at the ends of both axes."""
    missing = size[0] - masks.shape[-2], size[1] - masks.shape[-1]
    return F.pad(masks, (0, missing[1], 0, missing[0]), value=value) if any(missing) else masks
