"""Clips and batches of clips, as the loader hands them over."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from etsam.errors import ConfigError


class Clip(NamedTuple):
    """One training example: T neighbouring slices of one tomogram.

    Attributes
    ----------
    images
        Network input (T, Y, X) float32: 0..1 for stage 1, 0..2 (fused) for stage 2. Clips along y have (T, Z, X),
        those along x (T, Z, Y).
    masks
        (T, Y, X) uint8: 1 membrane, 0 not, 255 not annotated or outside the tomogram.
    name
        `dataset_id/run_id`.
    axis
        Axis of the tomogram that the slices follow each other along: `z`, `y` or `x`.
    start
        (z, y, x): first voxel of the clip in the tomogram, padding not counted.
    reversed
        Whether the last slice comes first.
    key
        (seed of the source, epoch, number of the clip): all that the clip was drawn from. Random numbers derived
        from it, such as its augmentation's, are the same whatever batch or process the clip ends up in.
    """

    images: torch.Tensor
    masks: torch.Tensor
    name: str
    axis: str
    start: tuple[int, int, int]
    reversed: bool
    key: tuple[int, int, int]


class ClipBatch(NamedTuple):
    """B clips of one size, fields as in `Clip`: images and masks (B, T, Y, X), keys (B, 3) int64, else lists."""

    images: torch.Tensor
    masks: torch.Tensor
    names: list[str]
    axes: list[str]
    starts: list[tuple[int, int, int]]
    reversed: list[bool]
    keys: torch.Tensor


def collate(clips: Sequence[Clip]) -> ClipBatch:
    """Make a batch of clips.

    Raises
    ------
    ConfigError
        If their sizes differ, as whole slices of different tomograms do.
    """
    sizes = sorted({tuple(clip.images.shape) for clip in clips})
    if len(sizes) > 1:
        raise ConfigError(
            f"clips of different sizes {' and '.join(map(str, sizes))} (T, Y, X) do not fit into one batch; set "
            "data.crop, or data.batch_size=1"
        )
    return ClipBatch(
        images=torch.stack([clip.images for clip in clips]),
        masks=torch.stack([clip.masks for clip in clips]),
        names=[clip.name for clip in clips],
        axes=[clip.axis for clip in clips],
        starts=[clip.start for clip in clips],
        reversed=[clip.reversed for clip in clips],
        keys=torch.tensor([clip.key for clip in clips]),
    )
