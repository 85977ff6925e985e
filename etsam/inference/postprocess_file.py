"""Post-process a mask that is already on disk: `etsam postprocess mask_in.mrc mask_out.mrc`."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from etsam.errors import InputError, OutputError
from etsam.inference.postprocess import Step, apply_steps
from etsam.io import read_volume, volume_writer
from etsam.io.location import Location, display_name
from etsam.workers import worker_count

log = logging.getLogger(__name__)


def postprocess_file(
    source: Location, target: Path, steps: Sequence[Step], *, overwrite: bool = False, workers: int | None = None
) -> None:
    """Apply steps in order; the output carries the input's voxel size, origin and start.

    Parameters
    ----------
    source
        A mask, (Z, Y, X).
    target
        Where the result goes.
    steps
        See `etsam.inference.postprocess`.
    overwrite
        Replace what is there.
    workers
        Threads, as of `etsam.workers.worker_count`.

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
    workers = worker_count(workers)
    values: set[float] = set()
    before = after = 0
    for z in range(mask.shape[0]):
        plane = mask[z]
        values.update(_some_values(plane))
        if len(values) > 2 or (len(values) == 2 and 0 not in values):
            more = " and perhaps others" if len(values) > 2 else ""
            shown = ", ".join(f"{value:g}" for value in sorted(values)[:3])
            raise InputError(
                f"{source} is no mask: it holds the values {shown}{more}; a mask has 0 and one other, such as 1."
            )
        before += int(np.count_nonzero(plane))
    with volume_writer(target, mask.shape, bool, mask, overwrite) as writer:
        cleaned = apply_steps(mask, steps, workers=workers)
        for z in range(mask.shape[0]):
            plane = cleaned[z]
            writer[z] = plane
            after += int(np.count_nonzero(plane))
    log.info("%s: %d of %d membrane voxels kept -> %s", display_name(source), after, before, target)


def _some_values(plane: np.ndarray) -> list[float]:
    """Up to three different values of a slice: all of them, if it has two at most."""
    low, high = plane.min(), plane.max()
    if ((plane == low) | (plane == high)).all():  # a mask; thirty times as fast as looking for all different values
        return [float(low), float(high)]
    return [float(value) for value in np.unique(plane)[:3]]
