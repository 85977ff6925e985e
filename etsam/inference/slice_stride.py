"""Some slices through the networks, those between them interpolated: for a quick look.

A membrane moves little from one slice to the next. With a stride of 3 the networks see slices 0, 3, 6, ... and the last
one, and take a third of the time; the logits of the others come from the two nearest of these.
"""

from collections.abc import Sequence

import numpy as np

from etsam.errors import ConfigError
from etsam.inference.prompts import Prompt
from etsam.inference.tiles import BLEND_LIMIT
from etsam.volume.slices import LazySlices, Slices

MOST = 10
"""Largest stride: where a membrane of 40 A lies at 45 degrees, it has left its place by twice its thickness in 10
slices of 10 A."""


def check_stride(stride: int, key: str = "slice_stride") -> int:
    """Give back the stride of a setting; `ConfigError` if it is no whole number from 1 to 10."""
    if type(stride) is not int or not 1 <= stride <= MOST:
        raise ConfigError(f"{key}={stride} is not allowed: 1 for every slice, or a whole number up to {MOST}.")
    return stride


def segmented_slices(depth: int, stride: int) -> list[int]:
    """Slices of a volume of `depth` that the networks segment: every so many, and the last one."""
    return sorted({*range(0, depth, stride), depth - 1})


def prompts_on(
    places: Sequence[int], prompt: Prompt, shape: tuple[int, ...], stage1_mask: Slices | None = None
) -> dict[int, np.ndarray]:
    """Masks of conditioning slices, each on the nearest slice that is segmented.

    Parameters
    ----------
    places
        Slices that are segmented, the last one of the volume among them.
    prompt
        Of a stage.
    shape
        (Y, X) of the tile.
    stage1_mask
        Of the tile, (Z, Y, X).

    Returns
    -------
    dict
        Index in `places` -> (Y, X) bool.
    """
    mask = None if stage1_mask is None else _nearest_slices(stage1_mask, places)
    found = prompt((places[-1] + 1, *shape), mask)
    return {_nearest(places, z): points for z, points in found.items()}


def _nearest(places: Sequence[int], z: int) -> int:
    """Index of the place nearest to slice `z`; of two the first."""
    return int(np.argmin(np.abs(np.asarray(places) - z)))


def _nearest_slices(slices: Slices, places: Sequence[int]) -> LazySlices:
    """A volume of which each slice is the one of the nearest place."""
    return LazySlices(slices.shape, lambda z: slices[places[_nearest(places, z)]])


class InterpolatedLogits:
    """Logits of all slices, from those of some.

    Parameters
    ----------
    logits
        Store with `[index] -> (tiles, s, s)` float32, of the slices in `places`.
    places
        Slices of the volume, ascending, the first and the last of it among them.
    """

    def __init__(self, logits: Slices, places: Sequence[int]) -> None:
        self._logits, self._places = logits, np.asarray(places)

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, tiles, s, s)."""
        return (int(self._places[-1]) + 1, *self._logits.shape[1:])

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Logits of slice `z`, (tiles, s, s) float32: as they are, or linear between two, each clamped to +-10.

        -1024, which SAM2 gives a slice without any object, would otherwise outvote its neighbour.
        """
        after = int(np.searchsorted(self._places, z))
        if self._places[after] == z:
            return self._logits[after]
        first, last = self._places[after - 1 : after + 1]
        share = np.float32((z - first) / (last - first))
        one, other = (np.clip(self._logits[index], -BLEND_LIMIT, BLEND_LIMIT) for index in (after - 1, after))
        return (1 - share) * one + share * other
