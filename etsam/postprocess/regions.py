"""Parts of a tomogram in which no membrane is to be marked: void around a lamella, gold, carbon, a bad rim.

All of them are found in one coarse copy of the tomogram, means of blocks of about 2 nm that are taken while its slices
pass by, so the tomogram is read no further time and memory does not grow with it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from etsam.errors import ConfigError, InputError
from etsam.postprocess.border import find_border
from etsam.postprocess.carbon import find_carbon
from etsam.postprocess.coarse import Coarse
from etsam.postprocess.components import Progress, foreground
from etsam.postprocess.gold import find_gold
from etsam.postprocess.slab import find_slab
from etsam.volume import read_volume
from etsam.volume.location import Location, display_name
from etsam.volume.slices import LazySlices, Slices

log = logging.getLogger(__name__)


class Part(Protocol):
    """Part of a tomogram where nothing is marked."""

    def outside(self, z: int) -> np.ndarray:
        """(Y, X) bool of slice `z`: nothing is marked there."""

    def facts(self) -> dict[str, Any]:
        """Facts for the record."""

    def words(self) -> str:
        """Sentence for the person."""


_FINDERS: Mapping[str, Callable[[Coarse], Part | None]] = {
    "gold": find_gold,
    "carbon": find_carbon,
    "border": find_border,
}
ARTEFACTS = tuple(_FINDERS)

_NOT_SEEN = {
    "slab": "no void around the sample is to be seen, so all of the tomogram counts as sample",
    "carbon": "no carbon film is clearly to be seen, so none is left out",
}


@dataclass(frozen=True)
class Regions:
    """Parts of one tomogram where nothing is marked.

    Attributes
    ----------
    shape
        (Z, Y, X).
    parts
        By name: `slab`, `gold`, `carbon`, `border`; None where no void or no film was to be seen.
    """

    shape: tuple[int, ...]
    parts: Mapping[str, Part | None]

    def outside(self, z: int) -> np.ndarray:
        """(Y, X) bool of slice `z`: nothing is marked there."""
        out = np.zeros(self.shape[1:], bool)
        for part in self.parts.values():
            if part is not None:
                out |= part.outside(z)
        return out

    def fill(self, slices: Slices, value: float) -> LazySlices:
        """Slices (Z, Y, X) of logits, with `value` there."""

        def plane(z: int) -> np.ndarray:
            kept = slices[z]
            outside = self.outside(z)
            return np.where(outside, kept.dtype.type(value), kept) if outside.any() else kept

        return LazySlices(self.shape, plane)

    def facts(self) -> dict[str, Any]:
        """Facts for the record, by name of the part; empty where no void or no film was found."""
        return {name: {} if part is None else part.facts() for name, part in self.parts.items()}

    def words(self) -> str:
        """Sentences for the person."""
        said = (_NOT_SEEN.get(name) if part is None else part.words() for name, part in self.parts.items())
        return "; ".join(filter(None, said))


@dataclass(frozen=True)
class RegionSettings:
    """Regions that are looked for in each tomogram.

    Attributes
    ----------
    sample
        `all`, or `slab`: nothing is marked outside the slab that holds sample.
    exclude
        Of `gold`, `carbon` and `border`: artefacts where nothing is marked.

    Raises
    ------
    ConfigError
        If a word is unknown.
    """

    sample: Literal["all", "slab"] = "all"
    exclude: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if self.sample not in ("all", "slab"):
            raise ConfigError(f"sample={self.sample} is unknown; allowed: all, slab.")
        unknown = [str(word) for word in self.exclude if word not in ARTEFACTS]
        if unknown or isinstance(self.exclude, str):
            raise ConfigError(
                f"exclude={','.join(unknown) or self.exclude} is unknown; allowed: {', '.join(ARTEFACTS)}."
            )

    @property
    def wanted(self) -> bool:
        """True if anything is looked for."""
        return self.sample == "slab" or bool(self.exclude)

    def find(self, coarse: Coarse) -> Regions:
        """Regions of a tomogram; raises `InputError` if gold or carbon is looked for without a voxel size."""
        parts: dict[str, Part | None] = {"slab": find_slab(coarse)} if self.sample == "slab" else {}
        parts |= {name: find(coarse) for name, find in _FINDERS.items() if name in self.exclude}
        return Regions(coarse.shape, parts)


def regions_of_file(path: Location, settings: RegionSettings) -> "LeaveOut":
    """Step for masks of a tomogram, which is read once; raises `InputError` if it cannot be."""
    volume = read_volume(path)
    found = settings.find(Coarse.of(volume, volume.voxel_size_angstrom))
    log.info("%s: %s", display_name(path), found.words())
    return LeaveOut(found)


@dataclass(frozen=True)
class LeaveOut:
    """Step of post-processing: a mask without what lies in regions of its tomogram.

    Parameters
    ----------
    regions
        As `RegionSettings.find` gives them.

    Raises
    ------
    InputError
        From a call: the mask has another shape than the tomogram.
    """

    regions: Regions

    def __call__(self, mask: Slices, *, progress: Progress | None = None, workers: int | None = None) -> Slices:
        if tuple(mask.shape) != self.regions.shape:
            raise InputError(f"the mask has shape {tuple(mask.shape)}, and its tomogram {self.regions.shape}.")
        return LazySlices(
            self.regions.shape, lambda z: (foreground(mask, z) & ~self.regions.outside(z)).astype(np.uint8)
        ).keep_last()
