"""Files beside a mask that people or other programs look at, made by workshops that the core does not know."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from etsam.prediction.record import OutputNames

if TYPE_CHECKING:
    from etsam.prediction.result import Prediction


class CompanionInMaking(Protocol):
    """A file that takes what it needs while the slices are written."""

    def add_logits(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of the logits of slice `z`, (Y, X) float32; slices come in order."""
        ...

    def add_uncertainty(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of the uncertainty of slice `z`, (Y, X) float32, 0 to 0.5; not called if none is made."""
        ...

    def add_mask(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of slice `z` of the final mask, (Y, X); slices come in order."""
        ...

    def write(self, record: dict[str, Any], overwrite: bool) -> None:
        """Write the file, whole or not at all; `record` is what `write_record` is about to write."""
        ...


class Companion(Protocol):
    """A kind of file beside each mask."""

    @property
    def enabled(self) -> bool:
        """True if it is written."""
        ...

    def path(self, names: OutputNames) -> Path:
        """Place of the file of a tomogram."""
        ...

    def begin(self, prediction: "Prediction", names: OutputNames, post_processed: bool) -> CompanionInMaking:
        """Start the file of a tomogram; `post_processed` says that the final mask is more than a threshold."""
        ...
