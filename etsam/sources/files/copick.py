"""A copick project as source of tomograms and masks, and as sink of predicted masks.

copick (https://copick.github.io/copick, Ermel et al.) keeps runs with tomograms and segmentations as OME-Zarr, on a
disk or anywhere that fsspec reaches. Everything goes through its own interface; what training reads is exported to MRC.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etsam.data.manifest import Sample
from etsam.errors import ConfigError, EtsamError, InputError, OutputError
from etsam.paths import make_folder
from etsam.volume import MrcWriter, Slices, read_volume, strip_suffix

_TOLERANCE = 0.01  # relative difference of voxel sizes that counts as equal, as for manifests
_BLOCK_BYTES = 256 * 2**20  # of slices read at once: copick's chunks have 256 slices, and each is unpacked as a whole
_OUTPUT_MARK = "_etsam_predicted"
_MRC_DTYPES = {name: name for name in ("int8", "int16", "uint16", "float16")} | {"uint8": "uint16"}  # others: float32


@dataclass(frozen=True)
class SegmentationName:
    """Name of a segmentation of a run: object name, and user and session if there are several."""

    name: str
    user_id: str | None = None
    session_id: str | None = None

    @classmethod
    def parse(cls, text: str) -> "SegmentationName":
        """From `membrane`, `membrane:user` or `membrane:user:session`; raises `ConfigError`."""
        parts = text.split(":")
        if not 1 <= len(parts) <= 3 or not all(parts):
            raise ConfigError(f"--segmentation {text} is not NAME, NAME:USER or NAME:USER:SESSION")
        return cls(*parts)

    def __str__(self) -> str:
        return ":".join(part for part in (self.name, self.user_id, self.session_id) if part)


def open_project(config: str | os.PathLike[str]) -> Any:
    """Open a project by its configuration file (JSON).

    Raises
    ------
    EtsamError
        If copick is not installed or does not run beside the zarr that is; if the file is none of copick's.
    """
    copick = _import_copick()
    path = Path(config).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the configuration of a copick project (JSON)")
    try:
        return copick.from_file(str(path))
    except (ValueError, KeyError, TypeError, OSError) as error:  # what json and pydantic raise
        raise InputError(f"{path}: is no configuration of a copick project ({error})") from error


def _import_copick() -> Any:
    try:
        import copick
    except ModuleNotFoundError as error:
        if error.name != "copick":
            raise
        raise EtsamError("copick is not installed; pip install 'etsam[copick]'") from error
    except AttributeError as error:
        from importlib.metadata import version

        raise EtsamError(
            f"copick {version('copick')} does not run with zarr {version('zarr')} ({error}); it needs zarr 2: make a "
            "Python environment of its own with pip install 'etsam[copick]', without etsam[zarr]"
        ) from error
    return copick


class _ZarrSlices:
    """Slices of a zarr array (Z, Y, X), read in blocks."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape: tuple[int, int, int] = tuple(array.shape)
        slice_bytes = self.shape[1] * self.shape[2] * array.dtype.itemsize
        self._depth = max(1, min(int(array.chunks[0]), _BLOCK_BYTES // slice_bytes))
        self._first, self._block = -1, np.empty(0)

    @property
    def dtype(self) -> np.dtype:
        """As stored."""
        return np.dtype(self._array.dtype)

    def __getitem__(self, z: int, /) -> np.ndarray:
        first = z - z % self._depth
        if first != self._first:
            self._block, self._first = np.asarray(self._array[first : first + self._depth]), first
        plane: np.ndarray = self._block[z - first]
        return plane


def _slices(stored: Any, what: str) -> _ZarrSlices:
    """Full resolution of a copick tomogram or segmentation."""
    import zarr

    try:
        array: Any = zarr.open_group(stored.zarr(), mode="r")["0"]
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"{what}: cannot be read ({type(error).__name__}: {error})") from error
    if len(array.shape) != 3:
        raise InputError(f"{what}: has the shape {tuple(array.shape)}; three axes (Z, Y, X) are needed")
    return _ZarrSlices(array)


def _agree(one: float, other: float) -> bool:
    return abs(one - other) <= _TOLERANCE * other


def export_samples(
    config: str | os.PathLike[str],
    folder: Path,
    *,
    tomogram_type: str,
    voxel_size_angstrom: float,
    segmentation: SegmentationName,
    dataset_id: str,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[list[Sample], list[str]]:
    """Write tomograms and masks of all runs that have both as `RUN.mrc` and `RUN_NAME.mrc`.

    Parameters
    ----------
    config
        Of the project.
    folder
        Where the files go; made if need be.
    tomogram_type, voxel_size_angstrom
        Which tomogram of a run, such as `wbp` at 10 Å.
    segmentation
        A binary one, of the same voxel size; whatever is not 0 is membrane.
    dataset_id
        Of the samples.
    progress
        Called with (runs done, runs in all, run).

    Returns
    -------
    tuple
        Samples without a split (`unassigned`), and a line for each run that was left out.

    Raises
    ------
    InputError
        If no run has both, a run has several such segmentations, or shapes differ.
    OutputError
        If a file exists already.
    """
    root = open_project(config)
    chosen, left_out, faults = [], [], []
    for run in root.runs:
        tomogram = _tomogram(run, tomogram_type, voxel_size_angstrom)
        masks = _segmentations(run, segmentation, voxel_size_angstrom)
        if len(masks) > 1:
            names = ", ".join(f"{mask.name}:{mask.user_id}:{mask.session_id}" for mask in masks)
            faults.append(f"run {run.name} has {len(masks)} segmentations {segmentation}: {names}")
        elif tomogram is None or not masks:
            lacking = f"tomogram {tomogram_type}" if tomogram is None else f"segmentation {segmentation}"
            left_out.append(f"run {run.name} has no {lacking} at {voxel_size_angstrom:g} Å")
        else:
            chosen.append((run.name, tomogram, masks[0]))
    if faults:
        raise InputError.of("several segmentations fit; say which by --segmentation NAME:USER:SESSION", faults)
    if not chosen:
        raise InputError(
            f"no run of {config} has a tomogram {tomogram_type} and a segmentation {segmentation} at "
            f"{voxel_size_angstrom:g} Å ({'; '.join(left_out[:5]) or 'it has no runs'})"
        )
    paths = {name: (folder / f"{name}.mrc", folder / f"{name}_{segmentation.name}.mrc") for name, _, _ in chosen}
    existing = [str(path) for both in paths.values() for path in both if path.exists()]
    if existing:
        raise OutputError(f"{len(existing)} files exist already, such as {existing[0]}; choose another --export-dir")
    volumes = []
    for name, tomogram, mask in chosen:  # all opened and compared before anything is written
        grey, labels = _slices(tomogram, f"tomogram of {name}"), _slices(mask, f"segmentation of {name}")
        if grey.shape != labels.shape:
            raise InputError(f"run {name}: tomogram of shape {grey.shape}, segmentation of {labels.shape} (Z, Y, X)")
        volumes.append((name, grey, labels, float(tomogram.voxel_spacing.voxel_size)))
    make_folder(folder)
    samples = []
    for done, (name, grey, labels, size) in enumerate(volumes, 1):
        tomogram_path, mask_path = paths[name]
        _write_tomogram(tomogram_path, grey, size)
        _write_mask(mask_path, labels, size)
        samples.append(Sample(dataset_id, name, "unassigned", tomogram_path, mask_path, size, grey.shape))
        if progress is not None:
            progress(done, len(volumes), name)
    return samples, left_out


def _tomogram(run: Any, kind: str, voxel_size_angstrom: float) -> Any:
    spacing = next((s for s in run.voxel_spacings if _agree(s.voxel_size, voxel_size_angstrom)), None)
    return None if spacing is None else spacing.get_tomogram(kind)


def _segmentations(run: Any, wanted: SegmentationName, voxel_size_angstrom: float) -> list[Any]:
    found = run.get_segmentations(
        name=wanted.name, user_id=wanted.user_id, session_id=wanted.session_id, is_multilabel=False
    )
    return [segmentation for segmentation in found if _agree(segmentation.voxel_size, voxel_size_angstrom)]


def _write_tomogram(path: Path, grey: _ZarrSlices, voxel_size_angstrom: float) -> None:
    dtype = _MRC_DTYPES.get(grey.dtype.name, "float32")
    with MrcWriter(path, grey.shape, dtype, voxel_size_angstrom=(voxel_size_angstrom,) * 3) as writer:
        for z in range(grey.shape[0]):
            writer[z] = grey[z].astype(dtype)


def _write_mask(path: Path, labels: _ZarrSlices, voxel_size_angstrom: float) -> None:
    with MrcWriter(path, labels.shape, "int8", voxel_size_angstrom=(voxel_size_angstrom,) * 3) as writer:
        for z in range(labels.shape[0]):
            writer[z] = labels[z] != 0


def _run_name(mask: Path, runs: Sequence[str]) -> str:
    """Run that a predicted mask belongs to, by the name of its file."""
    stem = strip_suffix(mask).partition(_OUTPUT_MARK)[0]
    if stem in runs:
        return stem
    # TS_1 is the beginning of TS_1_wbp, not of TS_10
    fitting = [run for run in runs if re.match(rf"{re.escape(run)}(?![^\W_])", stem)]
    longest = max(map(len, fitting), default=0)
    if not fitting:
        raise InputError(f"{mask}: no run of the project is called like it; name it RUN{_OUTPUT_MARK}_mask.mrc")
    return next(run for run in fitting if len(run) == longest)


def _check_mask(mask: Slices, path: Path) -> Iterator[np.ndarray]:
    for z in range(mask.shape[0]):
        plane = mask[z]
        if not np.isin(plane, (0, 1)).all():
            raise InputError(f"{path}: is no predicted mask: it holds other values than 0 and 1")
        yield plane.astype(np.uint8)


def store_masks(
    config: str | os.PathLike[str],
    masks: Sequence[Path],
    *,
    name: str = "membrane",
    user_id: str = "etsam",
    session_id: str = "0",
    progress: Callable[[int, int, str], None] | None = None,
) -> list[str]:
    """Put predicted masks into a project as segmentations; costs the memory of one mask, a byte a voxel.

    Parameters
    ----------
    config
        Of the project.
    masks
        Files with 0 and 1, named after their runs: `RUN_etsam_predicted_mask.mrc`.
    name, user_id, session_id
        Of the segmentations; `name` is one of the project's objects.
    progress
        Called with (masks done, masks in all, run).

    Returns
    -------
    list
        A line for each segmentation.

    Raises
    ------
    InputError
        Before anything is written: no run of a mask's name, another voxel size or shape, no such object.
    OutputError
        If a run has this segmentation already.
    """
    root = open_project(config)
    objects = [item.name for item in root.pickable_objects]
    if name not in objects:
        raise InputError(
            f"{config}: the project has no object {name} (it has {', '.join(objects) or 'none'}); add it to "
            "pickable_objects (is_particle false), or choose one by --name"
        )
    for word, text in (("--user", user_id), ("--session", session_id)):
        if not re.fullmatch(r"[^<>:\"/\\|?*\s_]+", text):  # copick would put dashes there
            raise ConfigError(f'{word} {text}: copick allows no spaces, underscores and none of <>:"/\\|?*')
    runs = {run.name: run for run in root.runs}
    planned = [_plan(mask, runs, name, user_id, session_id) for mask in masks]
    taken: dict[str, Path] = {}
    for mask, (run, _) in zip(masks, planned, strict=True):
        if (other := taken.setdefault(run.name, mask)) != mask:
            raise InputError(f"{other} and {mask} are both of run {run.name}; store one of them")
    lines = []
    for done, (mask, (run, size)) in enumerate(zip(masks, planned, strict=True), 1):
        with read_volume(mask, warn=False) as volume:
            values = np.empty(volume.shape, np.uint8)
            for z, plane in enumerate(_check_mask(volume, mask)):
                values[z] = plane
        stored = run.new_segmentation(size, name, session_id, is_multilabel=False, user_id=user_id)
        try:
            stored.from_numpy(values)
        except BaseException:
            stored.delete()  # complete, or not there
            raise
        lines.append(f"{mask} -> run {run.name}, segmentation {name}:{user_id}:{session_id} at {size:g} Å")
        if progress is not None:
            progress(done, len(masks), run.name)
    return lines


def _plan(mask: Path, runs: dict[str, Any], name: str, user_id: str, session_id: str) -> tuple[Any, float]:
    """Run and voxel spacing for a mask, all checked."""
    with read_volume(mask, warn=False) as volume:
        shape, size = volume.shape, volume.voxel_size_angstrom
    run = runs[_run_name(mask, list(runs))]
    if size is None:
        raise InputError(f"{mask}: its header has no voxel size, by which the tomogram is found; add it")
    spacings = [float(spacing.voxel_size) for spacing in run.voxel_spacings]
    fitting = [spacing for spacing in run.voxel_spacings if all(_agree(side, spacing.voxel_size) for side in size)]
    if not fitting:
        there = ", ".join(f"{spacing:g}" for spacing in spacings) or "none"
        raise InputError(f"{mask}: voxel size {size[2]:g} Å, but run {run.name} has tomograms at {there} Å")
    for tomogram in fitting[0].tomograms[:1]:
        wanted = _slices(tomogram, f"tomogram of {run.name}").shape
        if wanted != shape:
            raise InputError(f"{mask}: shape {shape}, but the tomogram of run {run.name} has {wanted} (Z, Y, X)")
    spacing_size = float(fitting[0].voxel_size)
    if run.get_segmentations(name=name, user_id=user_id, session_id=session_id, voxel_size=spacing_size):
        raise OutputError(
            f"run {run.name} has a segmentation {name}:{user_id}:{session_id} at {spacing_size:g} Å already; choose "
            "another --session"
        )
    return run, spacing_size
