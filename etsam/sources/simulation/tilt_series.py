"""A tilt series of a density and its reconstruction: projection, contrast transfer, noise, weighted back-projection.

Geometry, all positions in voxels from the centre of the volume: the tilt axis is Y, the beam runs along Z at 0 degrees.
At tilt t the point (z, y, x) falls on the detector at (y, x cos t + z sin t). Detector and volume are equally wide.

Both directions are sums over a few voxels for each point, the same for all y, so that they are written as
`embedding_bag`s over rows along Y: exact transposes of each other but for the filter, on any device.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Degrees = Sequence[float] | Tensor

_BAGS_AT_ONCE = 1 << 16  # points of a back-projection handled together: their indices take about 100 MB at 60 tilts
_FALLOFF = 0.05  # sigma in cycles per voxel; IMOD's `tilt` has 0.035
_VOLTAGE_KV = 300.0  # of a Titan Krios


def project(volume: Tensor, tilt_degrees: Degrees, *, fill: float | None = None) -> Tensor:
    """Line integrals of the density above `fill`, by rays one voxel apart with bilinear interpolation.

    Parameters
    ----------
    volume
        Density (Z, Y, X) float32.
    tilt_degrees
        T angles between -90 and 90.
    fill
        Density outside of the volume, which is taken off everywhere; None: the volume's mean.

    Returns
    -------
    Tensor
        (T, Y, X) float32, density times voxels.
    """
    depth, height, width = volume.shape
    level = float(volume.mean()) if fill is None else fill
    rows = (volume - level).permute(0, 2, 1).reshape(depth * width, height).contiguous()  # (Z*X, Y)
    images = []
    for degrees in _angles(tilt_degrees).tolist():
        indices, weights, offsets = _ray_entries(degrees, depth, width, volume.device)
        images.append(F.embedding_bag(indices, rows, offsets, mode="sum", per_sample_weights=weights).T)  # (Y, X)
    return torch.stack(images)


def _ray_entries(degrees: float, depth: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels and weights of the rays of one tilt: indices into Z*X, weights, and where each of the X rays begins."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    reach = math.ceil(math.hypot(depth, width) / 2)
    along = torch.arange(-reach, reach + 1, device=device, dtype=torch.float64)  # on the ray
    across = torch.arange(width, device=device, dtype=torch.float64)[:, None] - (width - 1) / 2  # on the detector
    x = across * cos - along * sin + (width - 1) / 2  # (X, rays' samples)
    z = across * sin + along * cos + (depth - 1) / 2
    left, low = x.floor(), z.floor()
    corners = []
    for dz in (0, 1):
        for dx in (0, 1):
            column, section = left + dx, low + dz
            weight = (1 - (x - column).abs()) * (1 - (z - section).abs())
            inside = (column >= 0) & (column < width) & (section >= 0) & (section < depth) & (weight > 0)
            corners.append((section * width + column, torch.where(inside, weight, 0.0)))
    index = torch.stack([corner[0] for corner in corners], dim=-1).flatten(1)  # (X, 4 * samples)
    weight = torch.stack([corner[1] for corner in corners], dim=-1).flatten(1)
    used = weight > 0
    counts = used.sum(dim=1)
    return index[used].long(), weight[used].float(), counts.cumsum(0) - counts


def backproject(
    projections: Tensor,
    tilt_degrees: Degrees,
    depth: int,
    *,
    cutoff: float = 0.4,
    sirt_iterations: int | None = None,
) -> Tensor:
    """Weighted back-projection; of all angles without noise it gives the density that was projected, less its mean.

    Parameters
    ----------
    projections
        (T, Y, X) float32, line integrals.
    tilt_degrees
        T increasing angles.
    depth
        Z of the reconstruction, voxels.
    cutoff
        In cycles per voxel: where the radial weight ends, with a Gaussian fall-off. The default is usual for tomograms
        (IMOD's `tilt` has 0.35 as its own; here a little more detail is kept).
    sirt_iterations
        Weight low against high frequencies as so many iterations of SIRT would, starting from nothing; None: by the
        full ramp.

    Returns
    -------
    Tensor
        (Z, Y, X) float32.
    """
    count, height, width = projections.shape
    angles = _angles(tilt_degrees).to(projections.device)
    if len(angles) != count:
        raise ValueError(f"{count} projections and {len(angles)} tilt angles")
    weighted = _filtered(projections, cutoff, sirt_iterations) * _spacing(angles)[:, None, None]
    rows = weighted.permute(0, 2, 1).reshape(count * width, height).contiguous()  # (T*X, Y)
    radians = torch.deg2rad(angles)
    cos, sin = radians.cos(), radians.sin()  # (T,)
    x = torch.arange(width, device=rows.device, dtype=torch.float64) - (width - 1) / 2
    first = torch.arange(count, device=rows.device) * width
    volume = torch.empty(depth, width, height, device=rows.device, dtype=rows.dtype)
    for part in torch.arange(depth, device=rows.device).split(max(1, _BAGS_AT_ONCE // width)):
        z = part.double() - (depth - 1) / 2
        position = x[None, :, None] * cos + z[:, None, None] * sin + (width - 1) / 2  # (z, X, T)
        low = position.floor()
        fraction = position - low
        ends, weights = torch.stack([low, low + 1], dim=-1), torch.stack([1 - fraction, fraction], dim=-1)
        weights = torch.where((ends >= 0) & (ends < width), weights, 0.0).float()
        indices = ends.clamp(0, width - 1).long() + first[:, None]
        flat = (len(part) * width, 2 * count)
        bags = F.embedding_bag(indices.reshape(flat), rows, mode="sum", per_sample_weights=weights.reshape(flat))
        volume[part] = bags.reshape(len(part), width, height)
    return volume.permute(0, 2, 1).contiguous()


def _filtered(projections: Tensor, cutoff: float, sirt_iterations: int | None) -> Tensor:
    width = projections.shape[-1]
    length = 2 * width  # padded, or the filter would wrap around
    frequency = torch.fft.rfftfreq(length, device=projections.device)  # cycles per voxel
    ramp = frequency.clone()
    ramp[0] = 0.2 / length  # of the mean of a ray, 0 would leave a bowl-shaped background
    if sirt_iterations is not None:
        # projecting and back-projecting damps a frequency by 1/|k|; what n steps of Landweber have restored of it
        step = (1.0 / width) / frequency.clamp(min=1.0 / width)
        ramp = ramp * (1 - (1 - step) ** sirt_iterations)
    ramp = ramp * torch.exp(-0.5 * ((frequency - cutoff).clamp(min=0) / _FALLOFF) ** 2)
    return torch.fft.irfft(torch.fft.rfft(projections, n=length, dim=-1) * ramp, n=length, dim=-1)[..., :width]


def _spacing(angles: Tensor) -> Tensor:
    """Share of the half circle, in radians, that each tilt stands for; times pi it is the integral over the angle."""
    if len(angles) == 1:
        return torch.full_like(angles, math.pi).float()
    radians = torch.deg2rad(angles)
    middle = (radians[1:] + radians[:-1]) / 2
    ends = torch.cat([2 * radians[:1] - middle[:1], middle, 2 * radians[-1:] - middle[-1:]])
    return ends.diff().float()


def _angles(tilt_degrees: Degrees) -> Tensor:
    angles = torch.as_tensor(tilt_degrees, dtype=torch.float64)
    if angles.ndim != 1 or not len(angles) or bool((angles.abs() > 90).any()):
        raise ValueError("tilt angles are a list of numbers between -90 and 90 degrees")
    return angles


def shift(projections: Tensor, shifts: Tensor) -> Tensor:
    """Move each projection by (y, x) voxels, by interpolation in Fourier space; what leaves one side enters the other.

    Parameters
    ----------
    projections
        (T, Y, X).
    shifts
        (T, 2), towards larger y and x.
    """
    height, width = projections.shape[-2:]
    rows = torch.fft.fftfreq(height, device=projections.device)[None, :, None]
    columns = torch.fft.rfftfreq(width, device=projections.device)[None, None]
    phase = rows * shifts[:, 0, None, None] + columns * shifts[:, 1, None, None]
    moved = torch.fft.rfft2(projections) * torch.exp(-2j * math.pi * phase)
    return torch.fft.irfft2(moved, s=(height, width)).to(projections.dtype)


def misalignment(tilt_degrees: Degrees, sigma_voxels: float, generator: torch.Generator) -> Tensor:
    """Random shifts (T, 2) in (y, x) that blur a reconstruction but do not move it."""
    drawn = sigma_voxels * torch.randn(len(_angles(tilt_degrees)), 2, generator=generator, dtype=torch.float64)
    return without_common_shift(tilt_degrees, drawn)


def without_common_shift(tilt_degrees: Degrees, shifts: Tensor) -> Tensor:
    """Take off shifts (T, 2) in (y, x) what a shift of the whole volume explains, so that its mask stays aligned.

    A shift of the whole volume by (z, y, x) moves tilt t by (y, x cos t + z sin t); of the given shifts the nearest
    such (least squares) is taken off.
    """
    radians = torch.deg2rad(_angles(tilt_degrees))
    drawn = shifts.double()
    along_y = drawn[:, 0] - drawn[:, 0].mean()
    basis = torch.stack([radians.cos(), radians.sin()], dim=1)  # (T, 2)
    whole = torch.linalg.lstsq(basis, drawn[:, 1:]).solution if len(radians) > 2 else torch.zeros(2, 1).double()
    return torch.stack([along_y, drawn[:, 1] - (basis @ whole)[:, 0]], dim=1).float()


def contrast_transfer(
    shape: tuple[int, int],
    voxel_size_angstrom: float,
    defocus_um: float,
    *,
    spherical_aberration_mm: float = 2.7,
    amplitude_contrast: float = 0.07,
    device: torch.device | None = None,
) -> Tensor:
    """Contrast transfer function of an underfocused image, positive at low frequency, (Y, X // 2 + 1) float32.

    Parameters
    ----------
    shape
        (Y, X) of the images.
    voxel_size_angstrom
        Of the images.
    defocus_um
        Underfocus, positive.
    spherical_aberration_mm, amplitude_contrast
        Of the microscope; defaults of a Titan Krios.
    device
        Where the result lies.
    """
    from torch_ctf import calculate_ctf_2d

    return calculate_ctf_2d(
        defocus=torch.tensor(defocus_um, device=device),
        astigmatism=0.0,
        astigmatism_angle=0.0,
        voltage=_VOLTAGE_KV,
        spherical_aberration=spherical_aberration_mm,
        amplitude_contrast=amplitude_contrast,
        phase_shift=0.0,
        pixel_size=voxel_size_angstrom,
        image_shape=shape,
        rfft=True,
        fftshift=False,
    ).float()


def apply_transfer(projections: Tensor, transfer: Tensor) -> Tensor:
    """Multiply the Fourier transforms of projections (T, Y, X) by `transfer` (Y, X // 2 + 1)."""
    size = (projections.shape[-2], projections.shape[-1])
    return torch.fft.irfft2(torch.fft.rfft2(projections) * transfer, s=size)


def add_noise(
    projections: Tensor,
    snr: float,
    generator: torch.Generator,
    *,
    envelope_sigma: float | None = None,
    signal: Tensor | None = None,
) -> Tensor:
    """Add noise of one strength to all tilts, as a dose shared out equally gives.

    Parameters
    ----------
    projections
        (T, Y, X).
    snr
        Variance of the signal over all tilts divided by the variance of the noise.
    generator, envelope_sigma
        As for `detector_noise`.
    signal
        What the ratio is measured with, (T, Y, X); None: the projections. Without any signal the noise is as for one of
        standard deviation 1.
    """
    noise = detector_noise(projections.shape, generator, envelope_sigma=envelope_sigma).to(projections.device)
    strength = float((projections if signal is None else signal).std()) or 1.0
    return projections + noise * strength / math.sqrt(snr)


def detector_noise(shape: Sequence[int], generator: torch.Generator, *, envelope_sigma: float | None = None) -> Tensor:
    """Gaussian noise of standard deviation 1, (T, Y, X) float32.

    Parameters
    ----------
    shape
        (T, Y, X).
    generator
        On the CPU.
    envelope_sigma
        The noise falls off with frequency like a Gaussian of this sigma (cycles per voxel), as through a detector's
        modulation transfer function. None: white.
    """
    noise = torch.randn(tuple(shape), generator=generator)
    if envelope_sigma is not None:
        rows = torch.fft.fftfreq(shape[1])[:, None]
        radius = torch.hypot(rows, torch.fft.rfftfreq(shape[2]))
        noise = apply_transfer(noise, torch.exp(-0.5 * (radius / envelope_sigma) ** 2))
        noise = noise / noise.std()
    return noise
