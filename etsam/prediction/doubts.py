"""Doubts about a mask: what is wrong with it most probably, and what to try."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from etsam.normalize import Normalization, Robust, SliceTransform, Statistics

_MOST_SHARE = 0.25  # our choice; cells and simulations have 1 to 10 %
_LEAST_SHARE = 0.00005  # what is shown as 0.00 %
_BORDER_PARTS = 20  # the border is a 20th of each side, at either end; our choice
_AT_BORDER_SHARE = 0.99


class Noted:
    """A normalisation that keeps the statistics it is fitted to.

    Parameters
    ----------
    method
        What normalises.

    Attributes
    ----------
    statistics
        Of the volume; None before `fit`.
    """

    def __init__(self, method: Normalization) -> None:
        self.method = method
        self.statistics: Statistics | None = None

    def fit(self, statistics: Statistics) -> SliceTransform:
        """As that of the method."""
        self.statistics = statistics
        return self.method.fit(statistics)

    @property
    def contrast(self) -> str | None:
        """Contrast that membranes were taken to have, `dark` or `bright`; None: the method does not ask."""
        if self.statistics is None or not isinstance(self.method, Robust):
            return None
        taken = self.statistics.contrast if self.method.membranes == "auto" else self.method.membranes
        return "bright" if taken == "bright" else "dark"

    @property
    def contrast_is_guessed(self) -> bool:
        """True if the contrast was found out, and by little."""
        guessed = isinstance(self.method, Robust) and self.method.membranes == "auto"
        return guessed and self.statistics is not None and not self.statistics.contrast_is_clear


class Coverage:
    """Share of membrane in a volume, and of membrane at its border, counted slice by slice.

    Parameters
    ----------
    shape
        (Z, Y, X).

    Attributes
    ----------
    membrane, inside
        Voxels of membrane, and those of them that do not lie at the border.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._voxels = int(np.prod(shape))
        self._inner = tuple(slice(side // _BORDER_PARTS, side - side // _BORDER_PARTS) for side in shape)
        self.membrane = self.inside = 0

    def add(self, z: int, plane: np.ndarray) -> None:
        """Count slice `z` of the mask, (Y, X)."""
        self.membrane += int(np.count_nonzero(plane))
        if self._inner[0].start <= z < self._inner[0].stop:
            self.inside += int(np.count_nonzero(plane[self._inner[1:]]))

    @property
    def share(self) -> float:
        """Membrane / all voxels, 0 to 1."""
        return self.membrane / self._voxels

    @property
    def only_at_border(self) -> bool:
        """True if what there is of membrane lies within a 20th of a side from a face, or nearly all of it."""
        return self.membrane > 0 and self.inside <= (1 - _AT_BORDER_SHARE) * self.membrane


@dataclass(frozen=True)
class Mask:
    """Facts about a mask that is judged.

    Attributes
    ----------
    share, share_before
        Membrane / all voxels, of the mask and of that before post-processing (the same without).
    only_at_border
        See `Coverage`.
    contrast, contrast_is_guessed
        See `Noted`.
    threshold
        That the logits were cut at.
    why_nothing_stays
        See `etsam.postprocess.steps.why_nothing_stays`.
    """

    share: float
    share_before: float
    only_at_border: bool
    contrast: str | None
    contrast_is_guessed: bool
    threshold: float
    why_nothing_stays: str = ""


def doubts(mask: Mask) -> Iterator[str]:
    """Sentences about what is probably wrong, each with what to try in terms of settings."""
    percent = f"{100 * mask.share:.2f} % of the tomogram is membrane"
    other = "dark" if mask.contrast == "bright" else "bright"
    invert = "" if mask.contrast is None else f", the other contrast (normalize.membranes={other})"
    if mask.share < _LEAST_SHARE <= mask.share_before:
        yield (
            f"{percent}: post-processing removed everything there was ({100 * mask.share_before:.2f} %)"
            f"{mask.why_nothing_stays}; use the mask before it, or gentler steps"
        )
    elif mask.share < _LEAST_SHARE:
        yield (
            f"{percent}: nothing was found. Try a lower threshold (stage2.threshold={mask.threshold - 1:g}){invert}, "
            "and `etsam inspect` on the tomogram"
        )
    elif mask.share > _MOST_SHARE:
        yield (
            f"{percent}, far more than cells have. Try a higher threshold (stage2.threshold={mask.threshold + 1:g})"
            f"{invert}, and `etsam inspect` on the tomogram"
        )
    if mask.only_at_border:
        yield (
            "all membrane lies at the border of the tomogram, where reconstructions often have edges; crop them away, "
            "and look at the picture before you use the mask"
        )
    if mask.contrast_is_guessed:
        yield (
            f"whether membranes are dark or bright is unclear here; they were treated as {mask.contrast}. Look at the "
            f"picture; if it is wrong: normalize.membranes={other}"
        )
