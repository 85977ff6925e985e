"""Result of the networks for a tomogram, before it is in files: its logits, and what was seen on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from etsam.inference.false_marks import ThresholdChoice
from etsam.postprocess.regions import Regions
from etsam.prediction.preview import Sections
from etsam.prediction.samples import Samples
from etsam.volume import Slices, Volume


@dataclass(frozen=True)
class Prediction:
    """Logits of both stages for one tomogram; nothing of the size of the volume is held.

    Attributes
    ----------
    volume
        The tomogram.
    stage1_logits, logits
        (Z, Y, X) float32 of stage 1, and of stage 2 or the mean of both, computed slice by slice from what the
        networks gave; -32 where the tomogram is padded, and in `regions`. With their spread, 0 there, if uncertainty
        was asked for.
    threshold
        That of stage 2; logits strictly above are membrane.
    tiles
        Number of tiles a slice was cut into.
    seconds
        By part: normalise (one pass over the file), stage 1, stage 2.
    grey
        Planes of the tomogram for the preview, taken in the first pass.
    fingerprint
        `fingerprint_of` the file, taken before the first pass; empty for an array.
    contrast, contrast_is_guessed
        `dark` or `bright`, as membranes were taken to be (None: the normalisation does not ask), and whether by little.
    samples
        Planes of the tomogram for a page, taken in the first pass; None if nobody asked.
    uncertainty
        (Z, Y, X) float32, 0 to 0.5: chance that a voxel's call is wrong; 0 where the tomogram is padded. None if nobody
        asked.
    calibration
        Offset, slope and softening that the uncertainty was made with; None: not calibrated.
    also
        Path -> fingerprint of the other reconstructions, taken before their first pass.
    choice
        How the threshold was chosen for this tomogram; None: it is that of the weights.
    regions
        Where nothing is marked; None: nobody asked.
    """

    volume: Volume
    stage1_logits: Slices
    logits: Slices
    threshold: float
    tiles: int
    seconds: dict[str, float]
    grey: Sections
    fingerprint: dict[str, Any]
    contrast: str | None = None
    contrast_is_guessed: bool = False
    samples: Samples | None = None
    uncertainty: Slices | None = None
    calibration: tuple[float, ...] | None = None
    also: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    choice: ThresholdChoice | None = None
    regions: Regions | None = None
