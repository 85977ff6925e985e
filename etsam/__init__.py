"""etsam segments cell membranes in cryo-electron tomograms with a two-stage SAM2 model.

`etsam.segment(array_or_path)` is the Python interface; importing the package itself is cheap and has no side effects.
"""

from typing import TYPE_CHECKING, Any

from etsam._version import __version__

__all__ = ["Segmentation", "__version__", "segment"]

if TYPE_CHECKING:
    from etsam.api import Segmentation, segment


def __getattr__(name: str) -> Any:
    if name in ("segment", "Segmentation"):
        from etsam import api

        return getattr(api, name)
    raise AttributeError(f"module 'etsam' has no attribute '{name}'")
