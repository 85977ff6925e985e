"""Steps that clean a finished mask: mask in, mask out, one slice at a time.

A step is a small object with its settings; calling it with a mask gives the filtered mask, lazily: an object with
`shape` and `[z]`, of which no more than a few slices are ever in memory. Steps that must know the whole volume first
(everything about connected components) read the mask once when they are called, and each slice again when it is asked
for. Masks may be bool, uint8 or int8 with 0/1 or 0/255; results are uint8 with 0/1.

Defaults named "published" are those of ETSAM's own post-processing (Selvaraj & Cheng, bioRxiv
10.1101/2025.11.23.689996), whose results these steps give exactly.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from etsam.errors import ConfigError, InputError, OutputError
from etsam.labels import odd_value_advice
from etsam.postprocess.components import Progress, StreamedComponents, check_connectivity, check_is_volume, foreground
from etsam.postprocess.misconnections import sever_misconnections
from etsam.threads import worker_count
from etsam.volume import read_volume, volume_writer
from etsam.volume.location import Location, display_name
from etsam.volume.slices import LazySlices, ReadAhead, Slices

log = logging.getLogger(__name__)


class Step(Protocol):
    """Filter of masks, as `apply_steps` applies it."""

    def __call__(self, mask: Slices, *, progress: Progress | None = None, workers: int | None = None) -> Slices:
        """Filter a mask.

        Parameters
        ----------
        mask
            Shape (Z, Y, X); membrane is everything above 0.
        progress
            Called as `progress(done, total)` after each slice of a first pass, if the step has one.
        workers
            Threads that compute slices ahead while the result is read in order, as of `etsam.threads.worker_count`;
            steps that label components use one, because labelling keeps Python's lock.

        Returns
        -------
        Slices
            Shape (Z, Y, X), uint8 0/1.
        """
        ...


@dataclass(frozen=True)
class RemoveThinNoise:
    """Removes 3D components that span only a few slices along Z.

    Membranes go on from slice to slice; what appears in a few slices only is noise. Components are 26-connected and
    the span counts from the first to the last slice, both included.

    The mask is read twice, once by the call and once by reading the result. Memory: a few slices and a table of the 2D
    components (see `StreamedComponents`). Measured at 500 x 928 x 960, 4.2 % synthetic membranes with specks, file to
    file: 3.5 s on one core, peak 20 MB.

    Parameters
    ----------
    min_slices
        Slices that a component must span to stay, at least 1. Published: 10.

    Raises
    ------
    ConfigError
        `min_slices` is not a whole number of at least 1.
    """

    min_slices: int = 10

    def __post_init__(self) -> None:
        _check_whole("min_slices", self.min_slices, 1)

    def __call__(self, mask: Slices, *, progress: Progress | None = None, workers: int | None = None) -> Slices:
        components = StreamedComponents(mask, progress=progress)
        return _select(components, components.z_span >= self.min_slices)


@dataclass(frozen=True)
class RemoveSmallComponents:
    """Removes 3D components of few voxels.

    The mask is read twice, once by the call and once by reading the result. Memory: a few slices and a table of the 2D
    components (see `StreamedComponents`). Measured at 500 x 928 x 960, 4.2 % synthetic membranes with specks, file to
    file: 3.8 s on one core, peak 21 MB.

    Parameters
    ----------
    min_voxels
        Voxels that a component must have to stay, at least 1. The default, 1000, is a choice of this project: with
        voxels of 1 nm, a patch of membrane (4 nm thick) of about 16 nm x 16 nm, a fifth of the smallest vesicles
        (diameter 20 nm: 5000 voxels). Halving the voxel size makes that eight times as many voxels.
    connectivity
        Neighbours of a voxel: 6 (faces), 18 (and edges) or 26 (and corners).

    Raises
    ------
    ConfigError
        `min_voxels` is not a whole number of at least 1, or `connectivity` not 6, 18 or 26.
    """

    min_voxels: int = 1000
    connectivity: int = 26

    def __post_init__(self) -> None:
        _check_whole("min_voxels", self.min_voxels, 1)
        check_connectivity(self.connectivity)

    def __call__(self, mask: Slices, *, progress: Progress | None = None, workers: int | None = None) -> Slices:
        components = StreamedComponents(mask, self.connectivity, progress=progress)
        return _select(components, components.voxels >= self.min_voxels)


@dataclass(frozen=True)
class SeverMisconnections:
    """Cuts short misconnections between membranes, in each Z slice on its own.

    What counts as a bridge or a spur is said in `etsam.postprocess.misconnections`.

    Each slice is computed when it is asked for and the last one is kept; while slices are asked for in order, threads
    compute the following ones meanwhile (`ReadAhead`). A step that reads its input twice computes
    every slice twice, so removing components goes before severing where the choice is free (the published order).
    Memory: for each worker a slice and its skeleton. Measured at 500 x 928 x 960, 4.2 % synthetic membranes,
    file to file: 14 s of one core, peak 18 MB with one worker.

    Parameters
    ----------
    max_bridge_len
        Longest bridge to cut, in pixels of its skeleton; 0 cuts none. Published: 5.
    max_spur_len
        Longest dead end to cut, in pixels of its skeleton; 0 cuts none. Published: 0.

    Raises
    ------
    ConfigError
        A length is not a whole number of at least 0, or both are 0 and nothing would be cut.
    """

    max_bridge_len: int = 5
    max_spur_len: int = 0

    def __post_init__(self) -> None:
        _check_whole("max_bridge_len", self.max_bridge_len, 0)
        _check_whole("max_spur_len", self.max_spur_len, 0)
        if self.max_bridge_len == self.max_spur_len == 0:
            raise ConfigError(
                "max_bridge_len and max_spur_len are both 0, which cuts nothing; "
                "set one of them to 1 or more, or leave the step out"
            )

    def __call__(self, mask: Slices, *, progress: Progress | None = None, workers: int | None = None) -> Slices:
        def read(z: int) -> np.ndarray:
            return foreground(mask, z)

        def sever(plane: np.ndarray) -> np.ndarray:
            return sever_misconnections(plane, self.max_bridge_len, self.max_spur_len).view(np.uint8)

        check_is_volume(mask)
        return LazySlices(mask.shape, ReadAhead(mask.shape[0], read, sever, workers)).keep_last()


@dataclass(frozen=True)
class InstanceLabels:
    """Numbers the 3D components of a mask, for an extra output beside it: uint16, 0 background, 1 the largest.

    The numbers are uint16, the widest integers that MRC knows (mode 6). The mask is read twice, once by the call and
    once by reading the result. Memory: a few slices and a table of the 2D components (see `StreamedComponents`).
    Measured at 500 x 928 x 960, 4.2 % synthetic membranes with specks, file to file: 3.5 s on one core, peak 22 MB.

    Parameters
    ----------
    connectivity
        Neighbours of a voxel: 6 (faces), 18 (and edges) or 26 (and corners).

    Raises
    ------
    ConfigError
        `connectivity` is not 6, 18 or 26.
    InputError
        From a call: the mask has more than 65535 components.
    """

    connectivity: int = 26

    def __post_init__(self) -> None:
        check_connectivity(self.connectivity)

    def __call__(self, mask: Slices, *, progress: Progress | None = None, workers: int | None = None) -> Slices:
        components = StreamedComponents(mask, self.connectivity, progress=progress)
        limit = np.iinfo(np.uint16).max
        if components.count > limit:
            raise InputError(
                f"the mask has {components.count} components; instance labels are uint16 and allow {limit}: "
                f"remove the small ones first (postprocess=small_components postprocess.small_components.min_voxels="
                f"{components.voxels[limit + 1] + 1})"
            )
        numbers = np.arange(components.count + 1, dtype=np.uint16)
        return LazySlices(components.shape, lambda z: components.mapped(z, numbers)).keep_last()


def apply_steps(
    mask: Slices,
    steps: Iterable[Step] | Mapping[str, Step],
    progress: Progress | None = None,
    workers: int | None = None,
) -> Slices:
    """Apply steps to a mask, each to the result of the one before.

    Parameters
    ----------
    mask
        Shape (Z, Y, X); bool, uint8 or int8 with 0/1 or 0/255.
    steps
        In the order of application; of a mapping (the configs' named steps), its values in their order. Without steps
        the result is the mask as 0/1.
    progress
        Called as `progress(done, total)` after each slice of each step's first pass, counting from 1 for each step.
    workers
        Threads, as of `etsam.threads.worker_count`; the result is the same with any number.

    Returns
    -------
    Slices
        Shape (Z, Y, X), uint8 0/1, computed slice by slice as it is read.

    Raises
    ------
    ConfigError
        Something among the steps is not a step.
    InputError
        The mask is not three-dimensional, or holds negative values.
    """
    check_is_volume(mask)
    chosen = list(steps.values() if isinstance(steps, Mapping) else steps)
    for step in chosen:
        if not callable(step):
            raise ConfigError(
                f"a post-processing step is {step!r}; allowed are objects such as RemoveThinNoise(min_slices=10): "
                "instantiate the configuration with _convert_='all' first"
            )
    source = mask
    result: Slices = LazySlices(mask.shape, lambda z: foreground(source, z).astype(np.uint8)).keep_last()
    for step in chosen:
        result = step(result, progress=progress, workers=workers)
    return result


def why_nothing_stays(steps: Iterable[Step], depth: int) -> str:
    """Reason why steps leave nothing of any mask of so many slices, to follow a sentence; empty if there is none."""
    asked = max((step.min_slices for step in steps if isinstance(step, RemoveThinNoise)), default=0)
    if asked <= depth:
        return ""
    return f". The mask has {depth} slices, so that nothing in it spans the {asked} of thin_noise.min_slices={asked}"


def _select(components: StreamedComponents, keep: np.ndarray) -> Slices:
    """Mask of the components marked in `keep`, shape (count + 1,)."""
    table = keep.astype(np.uint8)
    return LazySlices(components.shape, lambda z: components.mapped(z, table)).keep_last()


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} is {value!r}; allowed are whole numbers of at least {least}")


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
        See `etsam.postprocess.steps`.
    overwrite
        Replace what is there.
    workers
        Threads, as of `etsam.threads.worker_count`.

    Raises
    ------
    InputError
        If the input is no mask: more than two different values, or, where there are steps, negative ones.
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
        if min(values) < 0 and steps:
            raise InputError(
                f"{source}: holds the value {min(values):g}; allowed are 0 and 1, or 0 and 255. -1 means not annotated"
                f"{odd_value_advice(min(values))}; if it marks membrane in this mask, write it as 1 first: `etsam "
                "postprocess IN OUT postprocess=none`."
            )
        before += int(np.count_nonzero(plane))
    with volume_writer(target, mask.shape, bool, mask, overwrite) as writer:
        marked = LazySlices.of(mask).map(lambda plane: plane != 0)  # 1, 255, or -1, which is 255 in signed bytes
        cleaned = apply_steps(marked, steps, workers=workers)
        for z in range(mask.shape[0]):
            plane = cleaned[z]
            writer[z] = plane
            after += int(np.count_nonzero(plane))
    name = display_name(source)
    log.info("%s: %d of %d membrane voxels kept -> %s", name, after, before, target)
    if before and not after:
        log.warning(
            "%s: post-processing removed everything there was%s; use the mask before it, or gentler steps",
            name,
            why_nothing_stays(steps, mask.shape[0]),
        )


def _some_values(plane: np.ndarray) -> list[float]:
    """Up to three different values of a slice: all of them, if it has two at most."""
    low, high = plane.min(), plane.max()
    if ((plane == low) | (plane == high)).all():  # a mask; thirty times as fast as looking for all different values
        return [float(low), float(high)]
    return [float(value) for value in np.unique(plane)[:3]]
