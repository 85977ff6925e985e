"""The fusion: what stage 2 sees is the tomogram with the logits of stage 1, in inference and training alike."""

from collections.abc import Sequence

import numpy as np

from etsam.errors import ConfigError
from etsam.inference.tiles import Tile
from etsam.volume.slices import LazySlices, Slices

FUSE_LIMIT = 5.0
"""Stage-1 logits are clamped to +-5 before they are fused with the tomogram (published)."""


def fuse(normalized: Slices, logits: Slices, regions: Sequence[Tile] | None = None) -> LazySlices:
    """Input of stage 2: normalised tomogram plus stage-1 logits scaled to 0..1; (Z, Y, X) float32, about 0..2.

    The clamped logits are scaled by their own extremes, which need not be -5 and 5 (published). Reads the logits once.

    Parameters
    ----------
    normalized
        Normalised tomogram (Z, Y, X).
    logits
        Stage-1 logits (Z, Y, X).
    regions
        Parts of a slice that are scaled each by its own extremes; default: the whole volume by one pair.
    """
    depth, height, width = normalized.shape
    if tuple(logits.shape) != tuple(normalized.shape):
        raise ConfigError(f"stage-1 logits of shape {logits.shape} do not belong to a tomogram of {normalized.shape}.")
    regions = [Tile(0, height, 0, width)] if regions is None else regions
    low = np.full(len(regions), np.inf)
    high = np.full(len(regions), -np.inf)
    for z in range(depth):
        plane = logits[z]
        low = np.minimum(low, [plane[region.index].min() for region in regions])
        high = np.maximum(high, [plane[region.index].max() for region in regions])
    extremes = np.clip(np.stack([low, high], axis=1), -FUSE_LIMIT, FUSE_LIMIT)

    def fused(z: int) -> np.ndarray:
        out = normalized[z].astype(np.float32)
        clamped = np.clip(logits[z], -FUSE_LIMIT, FUSE_LIMIT)
        for region, (low, high) in zip(regions, extremes, strict=True):
            if high > low:  # else stage 1 says the same everywhere, which is no evidence: add nothing
                out[region.index] += (clamped[region.index] - np.float32(low)) / (np.float32(high) - np.float32(low))
        return out

    return LazySlices((depth, height, width), fused)
