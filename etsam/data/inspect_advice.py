"""Settings that suit a tomogram, and what its prediction costs; every number says where it was measured."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from etsam.inference.tiles import Overlapping
from etsam.normalize import BLOCK, Statistics

NANO_SIDE, PUBLISHED_SIDE = 128, 1024  # tiles that the networks are made for, voxels (configs/net)
NANO_VOXEL_ANGSTROM = (7.0, 45.0)
"""Voxel sizes that the nano network is meant for."""

# Measured with nano on two CPU cores: 15 to 20 slices a second, a stage, a tile. Peak memory on the
# demonstration tomogram: 973 MB; more slices add less than 0.7 MB each (tests/test_memory.py).
_NANO_SLICES_PER_SECOND = (15.0, 20.0)
_NANO_MEMORY_MB, _GROWTH_MB_PER_SLICE = 1000, 0.7
_STAGES = 2
_MANY_NEGATIVE = 0.25  # our choice
_UNCLEAR_SKEWNESS = 0.05  # our choice; measured: -0.9 to -2.1 on PolNet tomograms, +0.4 on the HIV particles


@dataclass(frozen=True)
class Estimate:
    """What a prediction costs.

    Attributes
    ----------
    nano_tiles, published_tiles
        Tiles a slice, for the nano network (128 voxels) and the published one (1024) with `tiles=auto`.
    nano_seconds_cpu
        (least, most) on two CPU cores, both stages; about.
    nano_memory_mb
        Peak, about; larger slices need somewhat more.
    output_bytes
        Of mask and, with `--store-logits`, logits together.
    note
        What is not known.
    """

    nano_tiles: int
    published_tiles: int
    nano_seconds_cpu: tuple[int, int]
    nano_memory_mb: int
    output_bytes: int
    note: str


def estimate(shape: tuple[int, int, int]) -> Estimate:
    """Cost of a prediction of a tomogram of this shape (Z, Y, X)."""
    depth, height, width = shape
    tiles = len(Overlapping().plan(height, width, NANO_SIDE))
    passes = tiles * depth * _STAGES
    slowest, fastest = _NANO_SLICES_PER_SECOND
    return Estimate(
        nano_tiles=tiles,
        published_tiles=len(Overlapping().plan(height, width, PUBLISHED_SIDE)),
        nano_seconds_cpu=(math.ceil(passes / fastest), math.ceil(passes / slowest)),
        nano_memory_mb=round(_NANO_MEMORY_MB + _GROWTH_MB_PER_SLICE * depth),
        output_bytes=5 * depth * height * width,  # int8 and float32
        note="not measured: nano on a GPU, the published network on a CPU (much slower than nano); on an H100 the "
        "published network took 27 s for 500 x 928 x 960 voxels",
    )


def suggestions(
    shape: tuple[int, int, int], voxel_size: tuple[float, float, float] | None, statistics: Statistics, kind: str
) -> Iterator[str]:
    """Sentences that name the settings.

    Parameters
    ----------
    shape
        (Z, Y, X).
    voxel_size
        (z, y, x) in Å, None if unknown.
    statistics
        Of the grey values.
    kind
        As `Inspection.looks_like`.
    """
    if kind in ("mask", "label volume"):
        yield "as target_mask of a manifest (1 is membrane, 0 is not, 255 is not annotated); it is nothing to segment"
        return
    if kind != "tomogram":
        return
    yield from _normalization(statistics)
    yield from _network(voxel_size)
    yield from _tiles(shape)


def _normalization(statistics: Statistics) -> Iterator[str]:
    if statistics.nonfinite:
        yield "nonfinite=mean: put the mean of the others in the place of NaN and infinite voxels"
    by_chance = math.sqrt(6 * BLOCK**2 / statistics.voxels)  # deviation of the skewness of so many normal values
    if abs(statistics.skewness) < max(_UNCLEAR_SKEWNESS, 3 * by_chance):
        yield (
            f"normalize=robust would take membranes for {statistics.contrast}, but by little; look at the picture and "
            "set normalize.membranes=dark or bright"
        )
    else:
        other = "dark" if statistics.contrast == "bright" else "bright"
        yield (
            f"normalize=robust takes membranes for {statistics.contrast}; if the picture says otherwise, set "
            f"normalize.membranes={other}"
        )
    if statistics.maximum <= 0:
        yield "no voxel is positive: --weights etsam_v1 (normalize=min_max_positive) needs normalize=softplus_minmax"
        return
    negative = float(np.searchsorted(statistics.sample, 0) / statistics.sample.size)
    if negative > _MANY_NEGATIVE:
        yield (
            f"{100 * negative:.0f} % of the voxels are negative, and the normalisation of etsam_v1 (min_max_positive) "
            "makes them all 0, as the published tool does; compare with normalize=softplus_minmax"
        )


def _network(voxel_size: tuple[float, float, float] | None) -> Iterator[str]:
    smallest, largest = NANO_VOXEL_ANGSTROM
    meant = f"the nano network is meant for {smallest:g} to {largest:g} Å"
    if voxel_size is None:
        yield f"find out the voxel size: {meant}"
    elif voxel_size[2] < smallest:
        binning = math.ceil(smallest / voxel_size[2])
        yield f"voxels of {voxel_size[2]:.3g} Å: {meant}; bin by {binning}, or use --weights etsam_v1"
    elif voxel_size[2] > largest:
        yield f"voxels of {voxel_size[2]:.3g} Å: {meant}; membranes are hardly resolved here"


def _tiles(shape: tuple[int, int, int]) -> Iterator[str]:
    _, height, width = shape
    for name, side in (("nano sees", NANO_SIDE), ("the published weights see", PUBLISHED_SIDE)):
        count = len(Overlapping().plan(height, width, side))
        if count == 1:
            yield f"a slice fits into the {side} x {side} voxels that {name}"
        else:
            yield f"{name} {side} x {side} voxels; tiles=auto covers a slice by {count} overlapping tiles"
