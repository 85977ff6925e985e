"""Post-process a mask that is already on disk: `etsam postprocess mask_in.mrc mask_out.mrc`."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from etsam.errors import InputError, OutputError
from etsam.inference.postprocess import Step, apply_steps
from etsam.io import read_volume, volume_writer
from etsam.io.location import Location, display_name

log = logging.getLogger(__name__)


def postprocess_file(source: Location, target: Path, steps: Sequence[Step], *, overwrite: bool = False) -> None:
    """Apply steps in order; the output carries the input's voxel size, origin and start.

    Raises
    ------
    InputError
        If the input is no mask: more than two different values.
    OutputError
        If the output exists (and `overwrite` is not set), is the input, or cannot be written.
    """
    mask = read_volume(source)
    if isinstance(source, Path) and target.exists() and target.samefile(source):
        raise OutputError(f"{target} is the input; name another file for the output.")
    values: set[float] = set()
    for z in range(mask.shape[0]):
        values.update(np.unique(mask[z])[:3].tolist())
        if len(values) > 2 or (len(values) == 2 and 0 not in values):
            more = " and perhaps others" if len(values) > 2 else ""
            shown = ", ".join(f"{value:g}" for value in sorted(values)[:3])
            raise InputError(
                f"{source} is no mask: it holds the values {shown}{more}; a mask has 0 and one other, such as 1."
            )
    before = after = 0
    with volume_writer(target, mask.shape, bool, mask, overwrite) as writer:
        cleaned = apply_steps(mask, steps)
        for z in range(mask.shape[0]):
            plane = cleaned[z]
            writer[z] = plane
            before, after = before + int(np.count_nonzero(mask[z])), after + int(np.count_nonzero(plane))
    log.info("%s: %d of %d membrane voxels kept -> %s", display_name(source), after, before, target)
