"""etsam segments cell membranes in cryo-electron tomograms with a two-stage SAM2 model.

`etsam.load().segment(array_or_path)` is the Python interface, `etsam.segment` the same for a single tomogram; importing
the package itself is cheap and has no side effects.
"""

from typing import TYPE_CHECKING, Any

from etsam._version import __version__

__all__ = ["Model", "Segmentation", "__version__", "ensure_checkpoints", "load", "segment"]

if TYPE_CHECKING:
    from etsam.api import Model, Segmentation, load, segment
    from etsam.plugin_api import ensure_checkpoints


def __getattr__(name: str) -> Any:
    if name in ("Model", "Segmentation", "load"):
        from etsam import api

        return getattr(api, name)
    if name in ("segment", "ensure_checkpoints"):  # `segment` takes the published tool's arguments as well
        from etsam import plugin_api

        return getattr(plugin_api, name)
    raise AttributeError(f"module 'etsam' has no attribute '{name}'")
