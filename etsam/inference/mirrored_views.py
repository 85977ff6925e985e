"""Mirrored views of a slice: the network sees each of them, and what it says is averaged.

A membrane is one in the mirror, too, while the network's mistakes about noise differ: averaging makes masks better for
as many times the time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from etsam.errors import ConfigError
from etsam.inference.tiles import BLEND_LIMIT

_MIRRORED = ((), (-1,), (-2,), (-2, -1))  # axes that are reversed: none, X, Y, both

View = tuple[int, ...]
"""Axes of (..., Y, X) that are reversed."""


def mirrored_views(count: int) -> list[View]:
    """The slice as it is and, for 2, mirrored in X, for 4, in X, in Y and in both.

    Raises
    ------
    ConfigError
        If `count` is another number.
    """
    if count not in (1, 2, 4):
        raise ConfigError(
            f"views={count} is unknown; allowed: 1 (slices as they are), 2 and 4 (and mirrored; averaged)."
        )
    return list(_MIRRORED[:count])


def flip(image: Tensor, view: View) -> Tensor:
    """(..., Y, X) as seen in a view; a second time, as it was."""
    return image.flip(view) if view else image


def average(logits: Tensor, views: Sequence[View]) -> Tensor:
    """Mean over the views of each tile, of logits clamped to +-10 as those of overlapping tiles are.

    Parameters
    ----------
    logits
        (tiles * views, Y, X) float32, all views of a tile one after another, as the network saw them.

    Returns
    -------
    Tensor
        (tiles, Y, X) float32, not mirrored.
    """
    if len(views) == 1:
        return logits
    return _by_view(logits, views).mean(dim=0)


def deviation(logits: Tensor, views: Sequence[View]) -> Tensor:
    """Standard deviation over the views of each tile, of clamped logits; arguments and shape as of `average`."""
    return _by_view(logits, views).std(dim=0, correction=0)


def _by_view(logits: Tensor, views: Sequence[View]) -> Tensor:
    """Clamped logits (views, tiles, Y, X), not mirrored."""
    by_view = logits.clamp(-BLEND_LIMIT, BLEND_LIMIT).unflatten(0, (-1, len(views)))
    return torch.stack([flip(by_view[:, number], view) for number, view in enumerate(views)])
