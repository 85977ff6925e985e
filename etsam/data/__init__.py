"""Training data: manifests of tomograms with masks, clips of neighbouring slices cut straight from the volume files.

`manifest` reads and checks lists of tomograms, `clips` cuts clips, `augment` changes them on the device, `datamodule`
mixes named sources by weight and shares clips out over processes so that a killed run continues where it was.
`collect` downloads the published data set, `simulator` makes tomograms, `polnet` reads the output of the simulator
PolNet and `polnet_run` drives it.

Modules are imported when a name of theirs is first used: a download needs neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etsam.data.augment import Augment, clip_generators
    from etsam.data.batch import Clip, ClipBatch
    from etsam.data.clips import ClipDataset, LogitsFolder
    from etsam.data.datamodule import TomogramClips, ValidationItem
    from etsam.data.manifest import Sample, check_samples, read_manifest, write_manifest

_MODULE_OF = {
    "Augment": "augment",
    "Clip": "batch",
    "ClipBatch": "batch",
    "ClipDataset": "clips",
    "LogitsFolder": "clips",
    "Sample": "manifest",
    "TomogramClips": "datamodule",
    "ValidationItem": "datamodule",
    "check_samples": "manifest",
    "clip_generators": "augment",
    "read_manifest": "manifest",
    "write_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


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
