"""What people do to a reconstruction before they look at it, and how they store it."""

import numpy as np
from scipy.ndimage import gaussian_filter

from etsam.data.specimen_settings import Range, between, between_log


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
        share = np.clip(strength - 1.0, 0, 1)
        return share * narrow + (1 - share) * wide
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
