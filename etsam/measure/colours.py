"""A colour for each membrane, by its number, the same on page and picture, in scenes and in files for deposition."""

from functools import cache

import numpy as np
from skimage.color import rgb2lab

from etsam.pictures import MEMBRANE

_STEPS = 24  # of red, green and blue, of which colours are chosen
_LIGHTNESS, _CHROMA = (45, 85), (25, 80)  # seen on white and on black, in light and in shade; not grey, not glaring
_SHADE = 0.6  # weight of lightness: shading in three dimensions takes some of it


def colour_of(number: int) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of membrane `number` from 1 up, whatever other membranes there are.

    Each is the colour that is farthest (CIELAB) from all before it, beginning with the blue of masks, so that the first
    ones differ most.

    Examples
    --------
    >>> colour_of(1), colour_of(1) == colour_of(1 + 12)
    ((86, 180, 233), False)
    """
    count = 64
    while count < number:
        count *= 2
    chosen = _farthest(count)
    red, green, blue = chosen[(number - 1) % len(chosen)]
    return int(red), int(green), int(blue)


@cache
def _farthest(count: int) -> np.ndarray:
    """Colours (N, 3) uint8, at most `count`; of a larger count the first ones are the same."""
    steps = np.rint(np.linspace(0, 255, _STEPS)).astype(np.uint8)
    offered = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = rgb2lab(offered)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    fit = (lab[:, 0] >= _LIGHTNESS[0]) & (lab[:, 0] <= _LIGHTNESS[1])
    fit &= (chroma >= _CHROMA[0]) & (chroma <= _CHROMA[1])
    first = np.array([[int(MEMBRANE[i : i + 2], 16) for i in (1, 3, 5)]], np.uint8)
    offered = np.concatenate([first, offered[fit]])
    lab = np.concatenate([rgb2lab(first), lab[fit]]) * (_SHADE, 1, 1)
    chosen, apart = [0], np.full(len(offered), np.inf)
    for _ in range(min(count, len(offered)) - 1):
        apart = np.minimum(apart, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(apart.argmax()))
    return offered[chosen]
