"""The module of the published tool that its plugins import by this name; found in `etsam-plugin-python` only."""

from etsam.plugin_api import postprocess

__all__ = ["postprocess"]
