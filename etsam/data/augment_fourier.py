"""Augmentations in Fourier space: radial amplitudes, and a missing wedge."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from etsam.data.augment import Augmentation, Range, check_range, uniform
from etsam.errors import ConfigError


class FourierAmplitude(Augmentation):
    """Scale the amplitudes of radial bands of the slices' Fourier transforms, as other filters and doses would.

    The logarithm of the factor runs linearly over the radius between bands; the mean stays.

    Parameters
    ----------
    strength
        Largest logarithm of a factor, either way.
    bands
        Number of radii, from 0 to the corner of Fourier space, at which a factor is drawn.
    """

    def __init__(self, strength: float = 0.5, bands: int = 6, probability: float = 0.3) -> None:
        super().__init__(probability)
        if strength < 0 or bands < 2:
            raise ConfigError(
                f"fourier_amplitude: strength={strength} (0 or more) or bands={bands} (2 or more) is off."
            )
        self.strength, self.bands = strength, bands

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.rand(self.bands, generator=generator, device=generator.device).to(images.device)
        logarithms = (2 * drawn - 1) * self.strength
        height, width = images.shape[1:]
        rows = torch.fft.fftfreq(height, device=images.device)[:, None]
        columns = torch.fft.rfftfreq(width, device=images.device)
        position = torch.hypot(rows, columns) / math.sqrt(0.5) * (self.bands - 1)  # (Y, X/2+1), 0..bands-1
        lower = position.floor().clamp(max=self.bands - 2).long()
        share = position - lower
        factors = torch.exp(logarithms[lower] * (1 - share) + logarithms[lower + 1] * share)
        factors[0, 0] = 1
        return torch.fft.irfft2(torch.fft.rfft2(images) * factors, s=(height, width)), masks


class MissingWedge(Augmentation):
    """Empty a missing wedge in the 3D Fourier transform of the clip, as a tilt series of limited range would.

    The beam is taken to run along the slice axis, the tilt axis lies in the slices in a random direction. A tomogram
    that lacks a wedge already loses a second one.

    Parameters
    ----------
    max_tilt_degrees
        Range of the largest tilt, between 0 (everything missing) and 90 (nothing).
    """

    def __init__(self, max_tilt_degrees: Range = (45.0, 65.0), probability: float = 0.2) -> None:
        super().__init__(probability)
        self.max_tilt_degrees = check_range("missing_wedge.max_tilt_degrees", max_tilt_degrees, 0, 90)

    def change(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        max_tilt = uniform(*self.max_tilt_degrees, generator)
        axis_degrees = uniform(0, 180, generator)
        keep = wedge(images.shape, max_tilt, axis_degrees, images.device)
        return torch.fft.irfftn(torch.fft.rfftn(images) * keep, s=images.shape), masks


def wedge(
    shape: Sequence[int], max_tilt_degrees: float, axis_degrees: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Frequencies that a tilt series measures: the complement of the missing wedge.

    Parameters
    ----------
    shape
        (T, Y, X) of the clip, voxels of equal sides.
    max_tilt_degrees
        The series goes from minus to plus this angle.
    axis_degrees
        Direction of the tilt axis in the slices: 0 along Y, 90 along X.

    Returns
    -------
    Tensor
        (T, Y, X // 2 + 1) bool, in the order of `torch.fft.rfftn`; mirror frequencies have equal values.
    """
    depth, height, width = shape
    z = torch.fft.fftfreq(depth, device=device).abs()[:, None, None]  # cycles per voxel; the beam is along z
    y = torch.fft.fftfreq(height, device=device)[:, None]
    x = torch.fft.rfftfreq(width, device=device)
    angle = math.radians(axis_degrees)
    across = (x * math.cos(angle) - y * math.sin(angle)).abs()  # (Y, X/2+1), distance from the tilt axis
    mirrored = (x * math.cos(angle) + y * math.sin(angle)).abs()
    across = torch.where(x == 0.5, torch.maximum(across, mirrored), across)  # 1/2 stands for -1/2, too
    tilt = math.radians(max_tilt_degrees)
    return z * math.cos(tilt) <= across * math.sin(tilt) + 1e-6  # rounding: 90 degrees keep everything
