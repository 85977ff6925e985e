"""The four prompts: what the network is told before it tracks, as masks on some slices.

Each takes the shape of the volume (or tile) and the stage-1 mask, and returns {slice index: (Y, X) bool mask}. A grid
is single voxels at `[::interval, ::interval]`; the network sees the mask resized to its own side, where from about
1.4 times that side on none of the points survives (as published: `grid_zero` becomes `zero` there).
"""

from typing import Protocol

import numpy as np

from etsam.errors import ConfigError
from etsam.volume.slices import Slices

GRID_INTERVAL = 50
"""Published interval of grid points and of conditioning slices, voxels; 10 in split mode."""


class Prompt(Protocol):
    """Prompt of a stage: one of the functions below, its interval bound."""

    def __call__(self, shape: tuple[int, ...], stage1_mask: Slices | None = None) -> dict[int, np.ndarray]:
        """Masks of the conditioning slices of a volume of `shape` (Z, Y, X)."""
        ...


def zero(shape: tuple[int, ...], stage1_mask: Slices | None = None) -> dict[int, np.ndarray]:
    """Empty mask on slice 0: the network finds what it was trained to find (published default of stage 2)."""
    return {0: np.zeros(shape[1:], dtype=bool)}


def grid(
    shape: tuple[int, ...], stage1_mask: Slices | None = None, interval: int = GRID_INTERVAL
) -> dict[int, np.ndarray]:
    """Grid of points on slices 0, interval, 2 * interval, ..."""
    points = _points(shape, interval)
    return {z: points for z in range(0, shape[0], interval)}


def grid_zero(
    shape: tuple[int, ...], stage1_mask: Slices | None = None, interval: int = GRID_INTERVAL
) -> dict[int, np.ndarray]:
    """Grid of points on slice 0 only (published default of stage 1)."""
    return {0: _points(shape, interval)}


def stage1_mask(
    shape: tuple[int, ...], stage1_mask: Slices | None = None, interval: int = GRID_INTERVAL
) -> dict[int, np.ndarray]:
    """Mask of stage 1 on slices 0, interval, 2 * interval, ... (published as `etsam_stage1_partial`).

    Raises
    ------
    ConfigError
        In stage 1, where there is no such mask.
    """
    _check(interval)
    if stage1_mask is None:
        raise ConfigError("the prompt stage1_mask needs a mask of stage 1, so it is for stage 2 only; use grid_zero.")
    return {z: np.asarray(stage1_mask[z], dtype=bool) for z in range(0, shape[0], interval)}


def conditioning_slices(prompt: Prompt, depth: int) -> int:
    """Number of slices that a prompt has masks for, given the depth; it does not depend on what a mask shows."""
    return len(prompt((depth, 1, 1), np.zeros((depth, 1, 1), dtype=bool)))


def _points(shape: tuple[int, ...], interval: int) -> np.ndarray:
    _check(interval)
    points = np.zeros(shape[1:], dtype=bool)
    points[::interval, ::interval] = True
    return points


def _check(interval: int) -> None:
    if not isinstance(interval, int) or interval < 1:
        raise ConfigError(f"prompt interval {interval} has to be a whole number of voxels of at least 1.")
