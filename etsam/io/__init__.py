"""Reading and writing tomograms: volumes stay on disk and are read and written one Z slice at a time.

`read_volume` opens any MRC file as a `Volume`, however its header was written; `MrcWriter` writes one with memory for
a single slice. Everything that takes slices asks for no more than the `Slices` protocol. Outputs go through
`atomic_path`: complete, or not there.
"""

from etsam.io.atomic import atomic_path
from etsam.io.mrc_writer import MrcWriter
from etsam.io.slices import Slices
from etsam.io.volume import TOMOGRAM_SUFFIXES, Volume, read_volume, strip_suffix

__all__ = ["TOMOGRAM_SUFFIXES", "MrcWriter", "Slices", "Volume", "atomic_path", "read_volume", "strip_suffix"]
