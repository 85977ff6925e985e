"""The microscope for PolNet's samples, without IMOD: tilt series and reconstruction of a density, from a seed.

What PolNet 1.1.2 does in `polnet/tem/tem.py` with IMOD's `xyzproj` and `tilt`, and what is the same or different here:

===================  ====================================================  ==========================================
step                 PolNet                                                here
===================  ====================================================  ==========================================
projection           `xyzproj` about Y: average along the ray, the         line integral about Y: the same pictures,
                     outside filled with the volume's mean                 each times the ray's length, depth / cos t
misalignment         size in voxels: MIN + (MAX - MIN) sin t / sin t_max   the same shifts, less the part that moves
                     + normal(0, MAX / SG), at least MIN; any direction;   the whole volume, which would put it off its
                     splines, edges repeated                               mask; in Fourier space
noise of each tilt   normal(m, m / SNR), m the mean of its positive pixels the same
contrast             negated: matter is dark                               the same
reconstruction       `tilt`: weighted back-projection, 0.35 and 0.035 of   `tilt_series.backproject`: 0.4 and 0.05
                     the sampling as cut-off and fall-off
randomness           SNR from the seed; shifts and noise unseeded          all from the seed
===================  ====================================================  ==========================================

Since the noise follows the picture's brightness, the ray's length changes nothing but the scale: each tilt has
PolNet's ratio of signal to noise.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from etsam.sources.polnet.config import Acquisition
from etsam.sources.simulation.tilt_series import backproject, project, shift, without_common_shift
from etsam.volume import MrcWriter, read_volume


@dataclass(frozen=True)
class Acquired:
    """Tilt series and reconstruction of a density.

    Attributes
    ----------
    snr
        Signal-to-noise ratio that was drawn; None: no noise.
    micrographs
        (T, Y, X) float32, matter dark.
    reconstruction
        (Z, Y, X) float32, matter dark, the background near zero.
    """

    snr: float | None
    micrographs: Tensor
    reconstruction: Tensor


def acquire(density: Tensor, settings: Acquisition, seed: int) -> Acquired:
    """Tilt series of a density, with misalignment and noise, and its reconstruction.

    Parameters
    ----------
    density
        (Z, Y, X) float32, matter positive; the work is done on its device.
    settings
        Tilts, noise and misalignment.
    seed
        Of all that is random; the random numbers are drawn on the CPU, so that they are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    snr = None
    if settings.snr is not None:
        low, high = settings.snr
        snr = round(low + (high - low) * float(torch.rand(1, generator=generator)), 2)  # two digits, as in PolNet
    angles = settings.tilt_degrees
    shifts = draw_shifts(settings, generator)
    # `project` takes the mean off; what is added is its integral along the ray through a layer of this depth
    ray_voxels = density.shape[0] / torch.deg2rad(torch.tensor(angles, dtype=torch.float64)).cos()
    background = (float(density.mean()) * ray_voxels).float().to(density.device)
    micrographs = shift(project(density, angles) + background[:, None, None], shifts.to(density.device))
    if snr is not None:
        for image in micrographs:
            level = float(image[image > 0].mean())
            noise = torch.randn(image.shape, generator=generator) * (level / snr) + level
            image += noise.to(image.device)
    micrographs = -micrographs
    # beyond the edges back-projection takes zeros, which have to be the background
    level_free = micrographs - micrographs.mean(dim=(1, 2), keepdim=True)
    return Acquired(snr, micrographs, backproject(level_free, angles, density.shape[0]))


def draw_shifts(settings: Acquisition, generator: torch.Generator) -> Tensor:
    """Random shift of each micrograph, (T, 2) in (y, x), voxels; together they do not move the volume."""
    least, largest = settings.shift_voxels
    sines = torch.deg2rad(torch.tensor(settings.tilt_degrees, dtype=torch.float64)).abs().sin()
    growth = sines / sines.max() if sines.max() > 0 else sines
    spread = torch.randn(len(sines), generator=generator, dtype=torch.float64) * largest / settings.shift_divider
    size = (least + (largest - least) * growth + spread).clamp(min=least)
    direction = torch.rand(len(sines), generator=generator, dtype=torch.float64) * 2 * torch.pi
    drawn = torch.stack([size * direction.sin(), size * direction.cos()], dim=1)
    return without_common_shift(settings.tilt_degrees, drawn)


def acquire_folder(
    folder: str | os.PathLike[str], number: int, settings: Acquisition, seed: int, device: torch.device
) -> float | None:
    """Add to a `TomoNNN` folder with a sample what PolNet's own acquisition adds, under the same names.

    These are `tomo_NNN_mics_snrS.mrc` (T, Y, X), `tomo_NNN_rec_snrS.mrc` (Z, Y, X) and `tem/out_tangs.tlt`.

    Parameters
    ----------
    folder
        Holds `tomo_NNN_den.mrc`.
    number
        NNN.
    settings, seed
        As for `acquire`.
    device
        Where to compute.

    Returns
    -------
    float or None
        Signal-to-noise ratio that was drawn.

    Raises
    ------
    InputError
        If the density is missing or unreadable.
    OutputError
        If the disk is full.
    """
    place, stem = Path(folder), f"tomo_{number:03d}"
    with read_volume(place / f"{stem}_den.mrc", warn=False) as density:
        found = acquire(torch.from_numpy(density.read().astype(np.float32)).to(device), settings, seed)
        suffix = "" if found.snr is None else f"_snr{found.snr}"
        for kind, data in (("mics", found.micrographs), ("rec", found.reconstruction)):
            _write(place / f"{stem}_{kind}{suffix}.mrc", data, density.voxel_size_angstrom)
    tilts = place / "tem" / "out_tangs.tlt"
    tilts.parent.mkdir(exist_ok=True)
    tilts.write_text("".join(f"{angle}\n" for angle in settings.tilt_degrees), encoding="utf-8")
    return found.snr


def _write(path: Path, data: Tensor, voxel_size_angstrom: tuple[float, float, float] | None) -> None:
    shape = (data.shape[0], data.shape[1], data.shape[2])
    with MrcWriter(path, shape, np.float32, voxel_size_angstrom=voxel_size_angstrom) as writer:
        for z in range(shape[0]):
            writer[z] = data[z].cpu().numpy()
