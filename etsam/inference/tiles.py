"""Cut slices into tiles for the network, and put the tiles' logits together again.

The network sees a square of fixed side. The published tool shrinks whatever is larger, so that a 10 A membrane of a
2000-voxel slice is lost; here such slices are covered by overlapping tiles whose logits are blended.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from etsam.errors import ConfigError
from etsam.spans import next_multiple, spread
from etsam.volume.slices import Slices

BLEND_LIMIT = 10.0
"""Logits of overlapping tiles are clamped to +-10 before they are averaged: SAM2's own value for a sure voxel. The
-1024 of a tile without any object would otherwise outvote its neighbours."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of a slice, voxels: rows y0..y1, columns x0..x1 (ends excluded)."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """(Y, X)."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def index(self) -> tuple[slice, slice]:
        """Index of its voxels in a (Y, X) slice."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


class Tiling(Protocol):
    """Rule by which slices are cut.

    `fuse_per_tile`: whether the stage-1 logits of each tile are scaled by the tile's own extremes (published split) or
    by those of the whole volume (no seams).
    """

    @property
    def fuse_per_tile(self) -> bool:
        """See above."""
        ...

    def plan(self, height: int, width: int, side: int, step: int | None = None) -> list[Tile]:
        """Tiles that cover slices of (height, width) voxels for a network of image side `side`.

        `step`: of a network that takes any size up to `side`; it sees multiples of so many voxels.
        """
        ...


@dataclass(frozen=True)
class Whole:
    """One tile, whatever the size: larger slices are shrunk, as the published tool does."""

    fuse_per_tile: bool = False

    def plan(self, height: int, width: int, side: int, step: int | None = None) -> list[Tile]:
        """The whole slice."""
        return [Tile(0, height, 0, width)]


@dataclass(frozen=True)
class Split2x2:
    """Four quadrants cut at Y//2 and X//2, without overlap, each fused for itself: the published split processing.

    For tomograms with closely apposed membranes. Seams along the cuts are part of the published behaviour;
    `Overlapping` with a smaller `size_voxels` magnifies as much without them.
    """

    fuse_per_tile: bool = True

    def plan(self, height: int, width: int, side: int, step: int | None = None) -> list[Tile]:
        """Quadrants in the order top left, top right, bottom left, bottom right."""
        if height < 2 or width < 2:
            raise ConfigError(f"a slice of {height} x {width} voxels cannot be split in four; use tiles=auto.")
        rows, columns = ((0, height // 2), (height // 2, height)), ((0, width // 2), (width // 2, width))
        return [Tile(*row, *column) for row in rows for column in columns]


@dataclass(frozen=True)
class Overlapping:
    """As many equal tiles as needed, evenly spread, neighbours overlapping; one tile if the slice is small enough.

    For a network that takes any size, tiles are no larger than so many of them have to be.

    Attributes
    ----------
    size_voxels
        Side of a tile; None: the network's image side, so that nothing is shrunk.
    overlap_voxels
        Least overlap of neighbours, over which their logits are blended; None: an eighth of the tile.
    """

    size_voxels: int | None = None
    overlap_voxels: int | None = None
    fuse_per_tile: bool = False

    def plan(self, height: int, width: int, side: int, step: int | None = None) -> list[Tile]:
        """Tiles row by row."""
        size = side if self.size_voxels is None else self.size_voxels
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"tiles.size_voxels={size} has to be a whole number of at least 1.")
        overlap = size // 8 if self.overlap_voxels is None else self.overlap_voxels
        if not isinstance(overlap, int) or not 0 <= overlap < size:
            raise ConfigError(
                f"tiles.overlap_voxels={overlap} has to be from 0 to {size - 1}, below tiles.size_voxels."
            )
        rows, columns = (_intervals(length, size, overlap, step) for length in (height, width))
        return [Tile(*row, *column) for row in rows for column in columns]


def _intervals(length: int, size: int, overlap: int, step: int | None) -> list[tuple[int, int]]:
    """As `spread`; with a step, `size` is the most, and it takes no more intervals."""
    found = spread(length, size, overlap)
    if step is None or len(found) == 1:
        return found
    shared = overlap * (len(found) - 1)
    return spread(length, min(size, next_multiple(-(-(length + shared) // len(found)), step)), overlap)


def common_shape(tiles: Sequence[Tile]) -> tuple[int, int]:
    """(Y, X) that each of some tiles fits into."""
    return max(tile.shape[0] for tile in tiles), max(tile.shape[1] for tile in tiles)


def _ramp(start: int, end: int, neighbours: Sequence[tuple[int, int]]) -> np.ndarray:
    """Blending weight along one side of a tile, (end - start,) float32: linear where it overlaps a neighbour."""
    weight = np.ones(end - start, dtype=np.float32)
    for other_start, other_end in neighbours:
        if other_start < start < other_end:  # neighbour before: rise
            n = min(other_end, end) - start
            weight[:n] = np.minimum(weight[:n], (np.arange(n) + 0.5) / n)
        if start < other_start < end:  # neighbour after: fall
            n = end - other_start
            weight[-n:] = np.minimum(weight[-n:], (n - np.arange(n) - 0.5) / n)
    return weight


class Stitched:
    """Logits of a whole volume, put together from those of its tiles, slice by slice.

    Parameters
    ----------
    low_res
        Store with `[z] -> (tiles, s, s)` float32, or, `at_voxels`, (tiles, Y, X) of their common shape.
    tiles
        In the order of the store.
    shape
        (Z, Y, X) of the volume.
    at_voxels
        Whether there is a logit for every voxel of a tile; else they are enlarged.
    """

    def __init__(
        self, low_res: Slices, tiles: Sequence[Tile], shape: tuple[int, ...], *, at_voxels: bool = False
    ) -> None:
        self._low_res, self._tiles, self._shape, self._at_voxels = low_res, list(tiles), shape, at_voxels
        area = sum(tile.shape[0] * tile.shape[1] for tile in tiles)
        self._blend = area > shape[1] * shape[2]
        rows, columns = {(t.y0, t.y1) for t in tiles}, {(t.x0, t.x1) for t in tiles}
        self._weights = [
            np.outer(_ramp(t.y0, t.y1, sorted(rows)), _ramp(t.x0, t.x1, sorted(columns))) if self._blend else None
            for t in tiles
        ]
        self._total = np.zeros(shape[1:], dtype=np.float32)
        for tile, weight in zip(self._tiles, self._weights, strict=True):
            if weight is not None:
                self._total[tile.index] += weight

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""
        return self._shape

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Logits of slice `z`, (Y, X) float32."""
        low_res = np.asarray(self._low_res[z], dtype=np.float32)  # (tiles, s, s)
        out = np.zeros(self._shape[1:], dtype=np.float32)
        for logits, tile, weight in zip(low_res, self._tiles, self._weights, strict=True):
            height, width = tile.shape
            enlarged = logits[:height, :width] if self._at_voxels else enlarge(logits, tile.shape)
            if weight is None:
                out[tile.index] = enlarged
            else:
                out[tile.index] += weight * np.clip(enlarged, -BLEND_LIMIT, BLEND_LIMIT)
        return out / self._total if self._blend else out


def enlarge(logits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Low-resolution logits (s, s) to (Y, X): bilinear, `align_corners=False`, never antialiased, as published."""
    import torch  # late: tiles are also planned where no network runs

    image = torch.from_numpy(logits)[None, None]
    resized = torch.nn.functional.interpolate(image, shape, mode="bilinear", align_corners=False)
    return resized[0, 0].numpy()
