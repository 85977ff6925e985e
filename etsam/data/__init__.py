"""Training data: manifests of tomograms with masks, clips of neighbouring slices cut straight from the volume files.

`manifest` reads and checks lists of tomograms, `clips` cuts clips, `augment` changes them on the device, `datamodule`
mixes named sources by weight and shares clips out over processes so that a killed run continues where it was. `polnet`
reads the output of the simulator PolNet, `polnet_run` drives it.
"""

from etsam.data.augment import Augment, clip_generators
from etsam.data.batch import Clip, ClipBatch
from etsam.data.clips import ClipDataset, LogitsFolder
from etsam.data.datamodule import TomogramClips, ValidationItem
from etsam.data.manifest import Sample, check_samples, read_manifest, write_manifest

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
