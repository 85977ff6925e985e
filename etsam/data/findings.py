"""What a check of tomograms and masks gives: facts about each sample, and findings with advice."""

from dataclasses import dataclass
from typing import Literal

from etsam.data.manifest import Sample
from etsam.data.measured import MaskSummary
from etsam.data.pair import PairMeasurement


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be.

    Attributes
    ----------
    sample
        `dataset_id/run_id`; empty for what concerns the list.
    severity
        `fault`: cannot be used like this; `warning`: look at it.
    what
        What was found, with the file.
    advice
        What to do.
    """

    sample: str
    severity: Literal["fault", "warning"]
    what: str
    advice: str = ""

    @property
    def text(self) -> str:
        """One line."""
        return (f"{self.sample}: " if self.sample else "") + self.what + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Examined:
    """What was found out about one sample; None where a file could not be read.

    Attributes
    ----------
    sample
        The row of the manifest.
    shape
        (Z, Y, X) of the tomogram.
    voxel_size_angstrom
        (z, y, x) of the tomogram's header.
    fingerprint
        Of the tomogram's content.
    summary
        Of the mask.
    pair
        Of both together, if grey values were asked for and the shapes are equal.
    """

    sample: Sample
    shape: tuple[int, int, int] | None = None
    voxel_size_angstrom: tuple[float, float, float] | None = None
    fingerprint: str | None = None
    summary: MaskSummary | None = None
    pair: PairMeasurement | None = None


def fault(sample: str, what: str, advice: str = "") -> Finding:
    """A finding that forbids use."""
    return Finding(sample, "fault", what, advice)


def warning(sample: str, what: str, advice: str = "") -> Finding:
    """A finding to look at."""
    return Finding(sample, "warning", what, advice)
