"""Simulated tomogram: a reconstruction, what people do to it before they look at it, and how they store it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from etsam.errors import ConfigError
from etsam.sources.simulation import tilt_series
from etsam.sources.simulation.settings import Range, Shape, SpecimenSettings, between, between_log, check_weights
from etsam.sources.simulation.specimen import Specimen, draw_specimen
from etsam.sources.simulation.truth import MembraneTruth


def finished(
    found: np.ndarray, kind: str, lowpass_sigma_voxels: Range, denoise_sigma_voxels: Range, rng: np.random.Generator
) -> np.ndarray:
    """Filter a reconstruction (Z, Y, X) float32: "none", "lowpass", "deconvolved" or "denoised"."""
    if kind == "lowpass":
        return gaussian_filter(found, between(lowpass_sigma_voxels, rng))
    if kind == "deconvolved":  # as Wiener-like filters do: low frequencies up, high ones down
        wide = gaussian_filter(found, rng.uniform(2.5, 6.0))
        return gaussian_filter(found, 0.6) + np.float32(rng.uniform(0.5, 3.0)) * wide
    if kind == "denoised":  # where a wide blur finds structure a narrow one is kept
        sigma = between(denoise_sigma_voxels, rng)
        narrow, wide = gaussian_filter(found, 0.5 * sigma), gaussian_filter(found, sigma)
        strength = np.abs(wide - wide.mean()) / max(float(wide.std()), 1e-12)
        fraction = np.clip(strength - 1.0, 0, 1)
        return fraction * narrow + (1 - fraction) * wide
    return found


def stored(values: np.ndarray, storage: str, rng: np.random.Generator) -> np.ndarray:
    """Grey values of arbitrary offset and scale in the dtype of a file, clipped as programs clip."""
    centred = (values - values.mean()) / max(float(values.std()), 1e-12)
    if storage in ("float32", "float16"):
        scale, offset = (1.0, 0.0) if rng.random() < 0.6 else (between_log((0.01, 50.0), rng), rng.uniform(-20, 20))
        return (scale * centred + offset).astype(storage)
    reach = rng.uniform(3.0, 7.0)  # standard deviations that fill the range
    limits = np.iinfo(storage)
    full = min(limits.max, 20_000) if storage != "uint16" else 20_000
    offset = 30_000 if storage == "uint16" else 0
    return np.clip(np.rint(centred / reach * full) + offset, limits.min, limits.max).astype(storage)


RECONSTRUCTIONS = ("wbp", "sirt")
FILTERS = ("none", "lowpass", "deconvolved", "denoised")
STORAGES = ("int8", "int16", "uint16", "float16", "float32")
_GOLD_CLIP = 40.0  # projections beyond so many standard deviations of the signal: a detector saturates
_ATTEMPTS = 20  # tomograms drawn for one whose membranes can be seen
_STRIDE = 1 << 20  # between the numbers of the attempts for one tomogram


@dataclass(frozen=True)
class AcquisitionSettings:
    """Ranges that tilt series and reconstruction are drawn from.

    Attributes
    ----------
    max_tilt_degrees, tilt_step_degrees
        From minus to plus the largest tilt.
    snr
        Variance of the signal over that of the noise in the tilt images; the signal is everything but gold and carbon.
    defocus_um
        Underfocus; what is drawn below 0.1 leaves the contrast transfer out.
    phase_flip_probability
        Of a transfer function that is corrected for its sign.
    misalignment_voxels
        Sigma of each tilt's shift, without what would move the tomogram as a whole.
    white_probability
        Of white noise; otherwise it falls off with `noise_envelope`, cycles per voxel.
    background
        Amplitude of a smooth background in each tilt image, against the signal's standard deviation.
    reconstructions, filters
        Relative frequency of each of `RECONSTRUCTIONS` and `FILTERS`.
    cutoff
        End of the ramp, cycles per voxel.
    sirt_iterations
        That a SIRT-like filter stands for.
    lowpass_sigma_voxels, denoise_sigma_voxels
        Of Gaussians; `denoised` keeps edges by mixing two.
    """

    max_tilt_degrees: Range = (48.0, 66.0)
    tilt_step_degrees: Range = (2.0, 4.0)
    snr: Range = (0.04, 0.8)
    defocus_um: Range = (-1.0, 6.0)
    phase_flip_probability: float = 0.6
    misalignment_voxels: Range = (0.0, 1.0)
    white_probability: float = 0.5
    noise_envelope: Range = (0.15, 0.5)
    background: Range = (0.0, 1.0)
    reconstructions: Mapping[str, float] = field(default_factory=lambda: {"wbp": 2, "sirt": 1})
    filters: Mapping[str, float] = field(
        default_factory=lambda: {"none": 2, "lowpass": 1.5, "deconvolved": 1, "denoised": 1}
    )
    cutoff: Range = (0.28, 0.48)
    sirt_iterations: tuple[int, int] = (3, 25)
    lowpass_sigma_voxels: Range = (0.5, 1.3)
    denoise_sigma_voxels: Range = (0.8, 1.8)

    def __post_init__(self) -> None:
        for name, allowed in (("reconstructions", RECONSTRUCTIONS), ("filters", FILTERS)):
            check_weights(f"acquisition.{name}", getattr(self, name), allowed)
        if self.snr[0] <= 0 or not 0 < self.tilt_step_degrees[0] <= self.tilt_step_degrees[1]:
            raise ConfigError(f"acquisition.snr={self.snr} and tilt_step_degrees={self.tilt_step_degrees} are above 0.")
        if not 0 <= self.max_tilt_degrees[0] <= self.max_tilt_degrees[1] <= 90:
            raise ConfigError(f"acquisition.max_tilt_degrees={self.max_tilt_degrees} lies between 0 and 90.")


@dataclass(frozen=True)
class SimulatedTomogram:
    """One tomogram with its truth.

    Attributes
    ----------
    tomogram
        (Z, Y, X) in the dtype it is to be stored in.
    mask
        (Z, Y, X) int8, 1 is membrane.
    instances
        (Z, Y, X) uint16, 0 or the number of the membrane.
    voxel_size_angstrom
        Equal in all directions.
    parameters
        What was drawn, for the manifest.
    truths
        Measures of each membrane, those in the margin included.
    """

    tomogram: np.ndarray
    mask: np.ndarray
    instances: np.ndarray
    voxel_size_angstrom: float
    parameters: dict[str, str]
    truths: tuple[MembraneTruth, ...] = ()


@dataclass(frozen=True)
class Simulator:
    """Makes tomograms.

    Attributes
    ----------
    shape
        (Z, Y, X).
    voxel_size_angstrom
        Drawn uniformly in the logarithm.
    specimen, acquisition
        What else is drawn.
    bright_probability
        Of membranes that are bright in the file.
    min_contrast
        Tomograms whose membranes differ by less than so many standard deviations of the tomogram from all else
        (`contrast`) are drawn again: there, masks would teach what nobody can see.
    margin_voxels
        Specimen on either side along X that is in the images and not in the tomogram: tomograms are cut from a larger
        field, and what lies beside them sends streaks through them.
    storages
        Relative frequency of each of `STORAGES`.
    seed
        Of everything, together with the number of a tomogram.
    device
        Where projections are computed.
    """

    shape: Shape = (128, 256, 256)
    voxel_size_angstrom: Range = (10.0, 10.0)
    specimen: SpecimenSettings = field(default_factory=SpecimenSettings)
    acquisition: AcquisitionSettings = field(default_factory=AcquisitionSettings)
    bright_probability: float = 0.0
    min_contrast: float = 0.0
    margin_voxels: int = 0
    storages: Mapping[str, float] = field(default_factory=lambda: {"float32": 1})
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_weights("storages", self.storages, STORAGES)
        if len(self.shape) != 3 or min(self.shape) < 8:
            raise ConfigError(f"shape={list(self.shape)} is not three sides (Z, Y, X) of at least 8 voxels.")
        if self.margin_voxels < 0:
            raise ConfigError(f"margin_voxels={self.margin_voxels} has to be at least 0.")
        if not 0 < self.voxel_size_angstrom[0] <= self.voxel_size_angstrom[1]:
            raise ConfigError(f"voxel_size_angstrom={list(self.voxel_size_angstrom)} is no range of positive numbers.")

    def tomogram(self, number: int) -> SimulatedTomogram:
        """Make tomogram `number`; the same settings, seed and number give the same tomogram.

        Raises
        ------
        ConfigError
            If `min_contrast` is not reached in 20 attempts.
        """
        for attempt in range(_ATTEMPTS):
            drawn = number + attempt * _STRIDE
            made = self._cut(self.image(self.draw(drawn), drawn))
            if self.min_contrast <= 0 or not made.mask.any() or contrast(made) >= self.min_contrast:
                return made
        raise ConfigError(
            f"min_contrast={self.min_contrast:g} was not reached in {_ATTEMPTS} attempts for tomogram {number}; lower "
            "it, or raise acquisition.snr or specimen.contrast."
        )

    def draw(self, number: int) -> Specimen:
        """Draw specimen `number`, with its margin."""
        rng = np.random.default_rng([self.seed, number])
        depth, height, width = (int(side) for side in self.shape)
        voxel_size = between_log(self.voxel_size_angstrom, rng)
        return draw_specimen(self.specimen, (depth, height, width + 2 * self.margin_voxels), voxel_size, rng)

    def _cut(self, made: SimulatedTomogram) -> SimulatedTomogram:
        """Without the margin."""
        inner = slice(self.margin_voxels, self.margin_voxels + int(self.shape[2]))
        arrays = {name: getattr(made, name)[:, :, inner] for name in ("tomogram", "mask", "instances")}
        return replace(made, **arrays)

    def image(self, specimen: Specimen, number: int) -> SimulatedTomogram:
        """Take and reconstruct a tilt series of a specimen, on the specimen's grid.

        The same specimen, seed and number give the same tomogram; where the ranges of the acquisition differ, what is
        drawn from the others stays.
        """
        rng = np.random.default_rng([self.seed, number, 1])  # 1: not that of the specimen
        voxel_size = specimen.voxel_size_angstrom
        series = take_tilt_images(specimen, self.acquisition, voxel_size, rng, torch.device(self.device))
        density, drawn = _reconstruct(series, specimen.density.shape[0], self.acquisition, rng)
        bright = rng.random() < self.bright_probability
        storage = _choose(self.storages, rng)
        return SimulatedTomogram(
            tomogram=stored(density if bright else -density, storage, rng),
            mask=specimen.mask,
            instances=specimen.instances,
            voxel_size_angstrom=voxel_size,
            parameters={
                **series.drawn,
                **drawn,
                "membranes": "bright" if bright else "dark",
                "stored": storage,
                "seed": str(self.seed),
            },
            truths=specimen.truths,
        )


def contrast(made: SimulatedTomogram) -> float:
    """Difference of membranes from all else in the mean, in standard deviations of the tomogram."""
    values, membrane = made.tomogram.astype(np.float32), made.mask == 1
    return abs(float(values[membrane].mean() - values[~membrane].mean())) / max(float(values.std()), 1e-12)


@dataclass(frozen=True)
class TiltImages:
    """A simulated tilt series.

    Attributes
    ----------
    tilt_degrees
        (T,) float64.
    images
        (T, Y, X) float32, dense matter positive, misaligned and noisy.
    signal
        (T, Y, X) float32: what the signal-to-noise ratio is measured with.
    drawn
        What was drawn, for the manifest.
    """

    tilt_degrees: Tensor
    images: Tensor
    signal: Tensor
    drawn: dict[str, str]


def take_tilt_images(
    specimen: Specimen,
    settings: AcquisitionSettings,
    voxel_size_angstrom: float,
    rng: np.random.Generator,
    device: torch.device | None = None,
) -> TiltImages:
    """Draw an acquisition from the settings' ranges and take the tilt images of a specimen."""
    device = device or torch.device("cpu")
    max_tilt, step = between(settings.max_tilt_degrees, rng), between(settings.tilt_step_degrees, rng)
    snr = between_log(settings.snr, rng)
    count = max(1, round(2 * max_tilt / step) + 1)
    tilts = torch.linspace(-max_tilt, max_tilt, count, dtype=torch.float64) if count > 1 else torch.zeros(1).double()
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    defocus, flipped = between(settings.defocus_um, rng), rng.random() < settings.phase_flip_probability
    transfer = _transfer(specimen.density.shape[1:], voxel_size_angstrom, defocus, flipped, device)
    signal = tilt_series.project(torch.from_numpy(specimen.density).to(device), tilts, fill=0.0)
    signal = _imaged(signal, transfer)
    strength = float(signal.std()) or 1.0
    images = signal
    if specimen.strong is not None:
        strong = tilt_series.project(torch.from_numpy(specimen.strong).to(device), tilts, fill=0.0)
        images = images + _imaged(strong, transfer).clamp(-_GOLD_CLIP * strength, _GOLD_CLIP * strength)
    envelope = None if rng.random() < settings.white_probability else between(settings.noise_envelope, rng)
    images = tilt_series.add_noise(images, snr, generator, envelope_sigma=envelope, signal=signal)
    images = images + between(settings.background, rng) * strength * _background(images.shape, generator).to(device)
    misalignment = between(settings.misalignment_voxels, rng)
    if misalignment > 0.05:
        images = tilt_series.shift(images, tilt_series.misalignment(tilts, misalignment, generator).to(device))
    drawn = {
        "snr": f"{snr:.4g}",
        "max_tilt_degrees": f"{max_tilt:.4g}",
        "tilt_step_degrees": f"{step:.3g}",
        "defocus_um": f"{defocus:.3g}" if transfer is not None else "none",
        "misalignment_voxels": f"{misalignment:.3g}",
    }
    return TiltImages(tilts, images, signal, drawn)


def _reconstruct(
    series: TiltImages, depth: int, settings: AcquisitionSettings, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, str]]:
    """Reconstruction (Z, Y, X) float32, dense matter positive, and what was drawn."""
    kind, finish = _choose(settings.reconstructions, rng), _choose(settings.filters, rng)
    low, high = settings.sirt_iterations
    found = tilt_series.backproject(
        series.images,
        series.tilt_degrees,
        depth,
        cutoff=between(settings.cutoff, rng),
        sirt_iterations=int(rng.integers(low, high, endpoint=True)) if kind == "sirt" else None,
    )
    sigmas = settings.lowpass_sigma_voxels, settings.denoise_sigma_voxels
    return finished(found.cpu().numpy(), finish, *sigmas, rng), {"reconstruction": kind, "filter": finish}


def _imaged(projections: Tensor, transfer: Tensor | None) -> Tensor:
    return projections if transfer is None else tilt_series.apply_transfer(projections, transfer)


def _transfer(
    shape: tuple[int, ...], voxel_size_angstrom: float, defocus_um: float, flipped: bool, device: torch.device | None
) -> Tensor | None:
    if defocus_um < 0.1:
        return None
    found = tilt_series.contrast_transfer((shape[0], shape[1]), voxel_size_angstrom, defocus_um, device=device)
    return found.abs() if flipped else found


def _background(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A smooth field in each image, (T, Y, X), standard deviation about 1."""
    coarse = torch.randn(shape[0], 1, 3, 3, generator=generator)
    return torch.nn.functional.interpolate(coarse, tuple(shape[1:]), mode="bicubic", align_corners=True)[:, 0]


def _choose(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    names = list(weights)
    fractions = np.array([float(weights[name]) for name in names])
    return str(rng.choice(names, p=fractions / fractions.sum()))
