"""Random changes of training clips, on the device: the same for all slices of a clip, masks with their images.

Each augmentation is a module that acts on each clip of a batch with a probability; `Augment` applies several in order.
Geometric ones move the masks, too: what comes in from outside continues the image by reflection and is labelled 255
(ignored). Grey-value ones leave the masks alone and neither clip nor rescale, so they serve the fused input of stage 2
(0..2) as well as that of stage 1 (0..1). Nothing is changed in place.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etsam.data.measured import IGNORE
from etsam.errors import ConfigError
from etsam.transfers import upload

Range = Sequence[float]
"""(low, high): a value is drawn from between, uniformly."""


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number between `low` and `high`."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def check_range(name: str, bounds: Range, lowest: float, highest: float = math.inf) -> tuple[float, float]:
    """Raise a ConfigError unless `lowest <= low <= high <= highest`; gives (low, high)."""
    if len(bounds) != 2 or not lowest <= bounds[0] <= bounds[1] <= highest:
        raise ConfigError(f"{name}={list(bounds)} is not (low, high) with {lowest:g} <= low <= high <= {highest:g}.")
    return float(bounds[0]), float(bounds[1])


class Augmentation(nn.Module):
    """Base: decides whether to act; subclasses say in `change` what is done.

    Parameters
    ----------
    probability
        Of acting on a clip.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ConfigError(f"augmentation probability={probability} is not between 0 and 1.")
        self.probability = probability

    def forward(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change each clip, or not.

        Parameters
        ----------
        images
            (B, T, Y, X) float32.
        masks
            (B, T, Y, X) uint8: 0, 1, 255.
        generator
            Source of all random numbers, on the CPU. The clips draw in turn.
        """
        changed = [
            self.change(*clip, generator) if uniform(0, 1, generator) < self.probability else clip
            for clip in zip(images, masks, strict=True)
        ]
        return torch.stack([image for image, _ in changed]), torch.stack([mask for _, mask in changed])

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change one clip: images (T, Y, X) float32 and masks (T, Y, X) uint8."""
        raise NotImplementedError


class Augment(nn.Module):
    """Augmentations one after another.

    Parameters
    ----------
    steps
        Name -> augmentation, applied in this order.
    """

    def __init__(self, steps: Mapping[str, Augmentation] | None = None) -> None:
        super().__init__()
        self.steps = nn.ModuleDict(dict(steps or {}))

    @torch.no_grad()
    def forward(self, images: Tensor, masks: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Parameters
        ----------
        images
            (B, T, Y, X) float32.
        masks
            (B, T, Y, X) uint8: 0, 1, 255.
        generators
            One a clip (`clip_generators`), so that the result for a clip does not depend on what else is in its batch,
            hence not on the number of devices.
        """
        if not self.steps:
            return images, masks
        changed = []
        for i, generator in enumerate(generators):
            clip = images[i : i + 1], masks[i : i + 1]
            for step in self.steps.values():
                clip = step(*clip, generator)
            changed.append(clip)
        return torch.cat([image for image, _ in changed]), torch.cat([mask for _, mask in changed])


def clip_generators(keys: Tensor, seed: int = 0) -> list[torch.Generator]:
    """One generator a clip, on the CPU: a clip is the same on every device, and no number is waited for on a GPU.

    Parameters
    ----------
    keys
        `ClipBatch.keys`, (B, 3) int64.
    seed
        Of the run.
    """
    seeds = [int(np.random.SeedSequence([seed, *key]).generate_state(1)[0]) for key in keys.tolist()]
    return [torch.Generator().manual_seed(number) for number in seeds]


# --- geometry: images and masks alike ---------------------------------------------------------------------------------


class HorizontalFlip(Augmentation):
    """Mirror along X."""

    def __init__(self, probability: float = 0.5) -> None:
        super().__init__(probability)

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images.flip(2), masks.flip(2)


class SliceFlip(Augmentation):
    """Reverse the order of the slices (for clips along z: flip z)."""

    def __init__(self, probability: float = 0.5) -> None:
        super().__init__(probability)

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images.flip(0), masks.flip(0)


class Rotate90(Augmentation):
    """Turn by 90, 180 or 270 degrees within the slices; clips that are not square by 180 only."""

    def __init__(self, probability: float = 0.75) -> None:
        super().__init__(probability)

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        square = images.shape[1] == images.shape[2]
        turns = 1 + min(2, int(uniform(0, 3, generator))) if square else 2
        return images.rot90(turns, (1, 2)), masks.rot90(turns, (1, 2))


class Affine(Augmentation):
    """Rotate, shear and magnify within the slices about their centre, bilinear; membrane where its mask comes to 0.5.

    Parameters
    ----------
    degrees
        Largest rotation, either way.
    shear_degrees
        Largest shear along X, either way.
    scale
        Magnification; one number for both axes is drawn from between.
    """

    def __init__(
        self,
        degrees: float = 25,
        shear_degrees: float = 20,
        probability: float = 1.0,
        scale: Range = (1.0, 1.0),
    ) -> None:
        super().__init__(probability)
        self.scale = check_range("affine.scale", scale, 0.1, 10)
        if not (0 <= degrees <= 180 and 0 <= shear_degrees < 90):
            raise ConfigError(f"affine: degrees={degrees} (0..180) or shear_degrees={shear_degrees} (0..90) is off.")
        self.degrees, self.shear_degrees = degrees, shear_degrees

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        angle = math.radians(uniform(-self.degrees, self.degrees, generator))
        slope = math.tan(math.radians(uniform(-self.shear_degrees, self.shear_degrees, generator)))
        height, width = images.shape[1:]
        cos, sin = math.cos(angle), math.sin(angle)
        # output (x, y) in voxels from the centre -> input: shear, then rotation
        matrix = [[cos, cos * slope - sin], [sin, sin * slope + cos]]
        if self.scale != (1.0, 1.0):
            scale = uniform(*self.scale, generator)
            matrix = [[value / scale for value in row] for row in matrix]
        scaled = [[matrix[0][0], matrix[0][1] * height / width], [matrix[1][0] * width / height, matrix[1][1]]]
        theta = torch.tensor([[[*scaled[0], 0.0], [*scaled[1], 0.0]]], device=images.device)  # (1, 2, 3)
        grid = F.affine_grid(theta, [1, 1, height, width], align_corners=False)  # (1, Y, X, 2), -1..1
        moved = _sample(images, grid)
        membrane, ignored = _sample((masks == 1).float(), grid), _sample((masks == IGNORE).float(), grid)
        outside = (grid.abs() > 1).any(-1)  # (1, Y, X)
        changed = (membrane >= 0.5).to(torch.uint8)
        return moved, changed.masked_fill((ignored >= 0.5) | outside, IGNORE)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    """(T, Y, X) at the points of a grid (1, Y, X, 2), bilinear; beyond the border by reflection."""
    return F.grid_sample(images.float()[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]


# --- grey values: masks stay ------------------------------------------------------------------------------------------


class Brightness(Augmentation):
    """Multiply by a factor from 1 - strength to 1 + strength."""

    def __init__(self, strength: float = 0.1, probability: float = 1.0) -> None:
        super().__init__(probability)
        self.strength = check_range("brightness.strength", (0, strength), 0, 1)[1]

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images * uniform(1 - self.strength, 1 + self.strength, generator), masks


class Contrast(Augmentation):
    """Multiply the distance from the clip's mean by a factor from 1 - strength to 1 + strength."""

    def __init__(self, strength: float = 0.03, probability: float = 1.0) -> None:
        super().__init__(probability)
        self.strength = check_range("contrast.strength", (0, strength), 0, 1)[1]

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mean = images.mean()
        return mean + (images - mean) * uniform(1 - self.strength, 1 + self.strength, generator), masks


class InvertContrast(Augmentation):
    """Dark to bright between the clip's extremes. Not for stage 2: it would invert stage 1's evidence, too."""

    def __init__(self, probability: float = 0.1) -> None:
        super().__init__(probability)

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images.amin() + images.amax() - images, masks


class Gradient(Augmentation):
    """Add a plane of grey values: ice that gets thicker to one side, uneven background.

    Parameters
    ----------
    strength
        Standard deviation of its rise from the middle to an edge, along each axis.
    """

    def __init__(self, strength: float = 0.1, probability: float = 0.3) -> None:
        super().__init__(probability)
        self.strength = check_range("gradient.strength", (0, strength), 0)[1]

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rise = (self.strength * torch.randn(2, generator=generator)).tolist()
        y, x = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[1:])
        return images + rise[0] * y[:, None] + rise[1] * x, masks


class Rim(Augmentation):
    """One grey value, and no membrane, along one side: where a reconstruction was padded or masked.

    Parameters
    ----------
    width_voxels
        Of the rim.
    """

    def __init__(self, width_voxels: Range = (2, 30), probability: float = 0.08) -> None:
        super().__init__(probability)
        self.width_voxels = check_range("rim.width_voxels", width_voxels, 1)

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        width, value = round(uniform(*self.width_voxels, generator)), uniform(0, 1, generator)
        side = min(3, int(uniform(0, 4, generator)))
        axis, first = 1 + side // 2, side % 2
        rim = (slice(None),) * axis + (slice(None, width) if first else slice(-width, None),)
        images, masks = images.clone(), masks.clone()
        images[rim], masks[rim] = value, 0
        return images, masks


class FaintSlices(Augmentation):
    """Take signal away from neighbouring slices, so that only memory can tell what they hold; masks stay.

    Parameters
    ----------
    slices
        How many, drawn from between.
    left
        Share of the signal that is left; noise of the clip's own standard deviation takes the place of the rest.
    """

    def __init__(self, slices: Range = (3, 9), left: Range = (0.0, 0.4), probability: float = 0.3) -> None:
        super().__init__(probability)
        self.slices = check_range("faint_slices.slices", slices, 1)
        self.left = check_range("faint_slices.left", left, 0, 1)

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count, left = round(uniform(*self.slices, generator)), uniform(*self.left, generator)
        first = int(uniform(0, max(1, len(images) - count + 1), generator))
        std, mean = torch.std_mean(images)
        noise = upload(torch.randn(images[first : first + count].shape, generator=generator), images.device)
        faint = mean + left * (images[first : first + count] - mean) + (1 - left**2) ** 0.5 * std * noise
        return torch.cat([images[:first], faint, images[first + count :]]), masks


class GaussianNoise(Augmentation):
    """Add noise of one standard deviation per clip, independent from voxel to voxel, hence from slice to slice.

    Parameters
    ----------
    sigma
        Standard deviation, in units of the network input.
    """

    def __init__(self, sigma: Range = (0.0, 0.1), probability: float = 0.3) -> None:
        super().__init__(probability)
        self.sigma = check_range("gaussian_noise.sigma", sigma, 0)

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        sigma = uniform(*self.sigma, generator)
        noise = torch.randn(images.shape, generator=generator)
        return images + sigma * upload(noise, images.device), masks


class GaussianBlur(Augmentation):
    """Blur within the slices.

    Parameters
    ----------
    sigma_voxels
        Standard deviation of the Gaussian.
    """

    def __init__(self, sigma_voxels: Range = (0.3, 1.0), probability: float = 0.2) -> None:
        super().__init__(probability)
        self.sigma_voxels = check_range("gaussian_blur.sigma_voxels", sigma_voxels, 0)

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        sigma = max(uniform(*self.sigma_voxels, generator), 1e-3)
        radius = math.ceil(3 * sigma)  # beyond 3 sigma lie 0.3 % of the weight
        offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel /= kernel.sum()
        padded = F.pad(images[:, None], (radius,) * 4, mode="replicate")  # (T, 1, Y + 2r, X + 2r)
        return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[:, 0], masks
