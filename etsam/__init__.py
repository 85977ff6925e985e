"""etsam segments cell membranes in cryo-electron tomograms with a two-stage SAM2 model."""

__version__ = "0.1.0"
