"""Reading and writing tomograms: volumes stay on disk and are read and written one Z slice at a time.

`read_volume` opens any MRC file, however its header was written, and any OME-Zarr, also over the network, as a
`Volume`; `volume_writer` makes the writer for either format (`MrcWriter`, `ZarrWriter`), with memory for a single slice
or one layer of chunks. Everything that takes slices asks for no more than the `Slices` protocol. Outputs go through
`atomic_path` or `atomic_folder`: complete, or not there. `Location` is a path or a URL.
"""

from etsam.volume.atomic import atomic_folder, atomic_path
from etsam.volume.location import TOMOGRAM_SUFFIXES, Location, Url, locate, strip_suffix
from etsam.volume.mrc_writer import MrcWriter
from etsam.volume.slices import Slices
from etsam.volume.volume import Volume, read_volume
from etsam.volume.writers import VolumeWriter, volume_writer

__all__ = [
    "TOMOGRAM_SUFFIXES",
    "Location",
    "MrcWriter",
    "Slices",
    "Url",
    "Volume",
    "VolumeWriter",
    "atomic_folder",
    "atomic_path",
    "locate",
    "read_volume",
    "strip_suffix",
    "volume_writer",
]
