"""Collects the published data set: downloads what is missing, then writes a manifest of all that is complete."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from etsam.data.manifest import Sample, read_manifest, write_manifest
from etsam.download import Progress, fetch_all, missing_bytes
from etsam.errors import EtsamError, InputError, OutputError
from etsam.paths import make_folder
from etsam.sources.collection.lists import PublishedRow
from etsam.sources.collection.plan import FOLDERS, KINDS, Wanted, zarr_part
from etsam.sources.collection.portal import shape_of
from etsam.volume import TOMOGRAM_SUFFIXES, read_volume

_SPARE_BYTES = 1 << 30  # left free on the disk


def collect(
    wanted: Sequence[Wanted], output_dir: Path, *, threads: int = 4, progress: Progress | None = None
) -> list[str]:
    """Download what a plan names, then write `manifest.csv` for the rows that are complete.

    Parameters
    ----------
    wanted
        From `plan`.
    output_dir
        Of the collection. Rows of its manifest whose files are there stay, whatever this plan is about.
    threads, progress
        As for `etsam.download.fetch_all`.

    Returns
    -------
    list[str]
        What failed, each with its name and reason.

    Raises
    ------
    OutputError, InputError
        If there is no room for what is missing, the folder cannot be written, or its manifest cannot be read.
    """
    manifest = output_dir / "manifest.csv"
    before = read_manifest(manifest) if manifest.exists() else []
    jobs = [job for one in wanted if not one.fault for job in one.jobs]
    make_folder(output_dir)
    _require_room(output_dir, missing_bytes(jobs))
    owner = {job.target: one for one in wanted for job in one.jobs}
    for job, failure in fetch_all(jobs, threads=threads, progress=progress):
        one = owner[job.target]
        one.fault = one.fault or str(failure)  # of an OME-Zarr folder the first object that failed
    for one in wanted:
        if one.is_zarr and not one.fault and not one.is_there and one.target is not None:
            os.rename(zarr_part(one.target), one.target)
    samples, misfits = _complete_samples(wanted, output_dir)
    settled = {sample.name for sample in samples} | set(misfits)
    kept = [
        one
        for one in before
        if one.name not in settled and all(os.path.exists(f) for f in (one.tomogram, one.target_mask))
    ]
    if samples or kept:
        write_manifest(manifest, [*kept, *samples], overwrite=True)
    elif before:
        manifest.unlink()  # none of its rows is complete any more
    faults = {one.name: one.fault for one in wanted if one.fault}
    return [f"{name}: {fault}" for name, fault in (faults | misfits).items()]


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed and needed + _SPARE_BYTES > free:
        raise OutputError(
            f"{folder}: {needed / 1e9:.1f} GB are to come and 1 GB has to stay free, but only {free / 1e9:.1f} GB are; "
            "free some space or choose another --output-dir"
        )


def _complete_samples(wanted: Iterable[Wanted], output_dir: Path) -> tuple[list[Sample], dict[str, str]]:
    """(rows whose tomogram and mask are there and fit together, row -> fault of those that do not fit)."""
    samples, misfits = [], {}
    by_row: dict[str, dict[str, Wanted]] = {}
    for one in wanted:
        by_row.setdefault(one.row.name, {})[one.kind] = one
    for parts in by_row.values():
        if any(one.fault for one in parts.values()):
            continue
        row = next(iter(parts.values())).row
        try:
            files = {kind: _file_of(parts.get(kind), row, kind, output_dir) for kind in KINDS}
            sample = _sample(row, files["tomograms"], files["masks"], parts.get("tomograms"))
        except EtsamError as error:
            misfits[row.name] = str(error)
            continue
        if sample is not None:
            samples.append(sample)
    return samples, misfits


def _file_of(one: Wanted | None, row: PublishedRow, kind: str, output_dir: Path) -> Path | None:
    """Find the file of this run, or, if it was not asked for, of an earlier one."""
    if one is not None:
        return one.target
    folder = output_dir / row.dataset_id / row.run_id / FOLDERS[kind]
    names = (*TOMOGRAM_SUFFIXES, ".zarr")
    found = [path for path in folder.glob("*") if path.name.lower().endswith(names)] if folder.is_dir() else []
    return found[0] if len(found) == 1 else None


def _sample(row: PublishedRow, tomogram: Path | None, mask: Path | None, source: Wanted | None) -> Sample | None:
    if tomogram is None or mask is None:
        return None
    shape, voxel_size = _measure(tomogram, source)
    mask_shape, _ = _measure(mask, None)
    if shape != mask_shape:
        raise InputError(f"the mask has the shape {mask_shape}, the tomogram {shape} ({mask}, {tomogram})")
    if row.shape is not None and shape != row.shape:
        raise InputError(f"the tomogram has the shape {shape}, the list says {row.shape} ({tomogram})")
    return Sample(row.dataset_id, row.run_id, row.split, tomogram, mask, row.voxel_size_angstrom or voxel_size, shape)


def _measure(path: Path, source: Wanted | None) -> tuple[tuple[int, int, int], float | None]:
    """(shape, voxel size in Å) as the file says, of OME-Zarr as the portal does."""
    if path.suffix == ".zarr" and source is not None and source.tomogram is not None:
        return shape_of(source.tomogram), source.tomogram.voxel_spacing
    with read_volume(path, warn=False) as volume:
        size = volume.voxel_size_angstrom
        return volume.shape, None if size is None else size[2]
