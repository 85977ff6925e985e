"""Training data: manifests of tomograms with masks, clips of neighbouring slices cut straight from the volume files.

`manifest` reads lists of tomograms and `check` finds what is wrong with them, `clips` cuts clips, `augment` changes
them on the device, `datamodule` mixes named sources by weight and shares clips out over processes so that a killed run
continues where it was.
"""

from etsam.data.augment import Augment, clip_generators
from etsam.data.batch import Clip, ClipBatch
from etsam.data.check import check_samples
from etsam.data.clips import ClipDataset, LogitsFolder
from etsam.data.datamodule import TomogramClips, ValidationItem
from etsam.data.manifest import Sample, read_manifest, write_manifest

__all__ = [
    "Augment",
    "Clip",
    "ClipBatch",
    "ClipDataset",
    "LogitsFolder",
    "Sample",
    "TomogramClips",
    "ValidationItem",
    "check_samples",
    "clip_generators",
    "read_manifest",
    "write_manifest",
]
