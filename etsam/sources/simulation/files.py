"""Simulated tomograms as files: tomogram, mask and instance labels, and the manifest that lists them."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from etsam.data.manifest import Sample, write_manifest
from etsam.errors import ConfigError, OutputError
from etsam.paths import make_folder
from etsam.sources.simulation.simulator import SimulatedTomogram, Simulator
from etsam.volume import MrcWriter, atomic_path
from etsam.volume.atomic import refuse_existing

DATASET = "simulated"


def simulate_files(
    simulator: Simulator,
    count: int,
    output_dir: str | Path,
    *,
    val_fraction: float = 0.2,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make `count` tomograms with masks (`NAME_membrane.mrc`) and numbered membranes (`NAME_instances.mrc`).

    Parameters
    ----------
    simulator
        What they are like.
    count
        How many.
    output_dir
        Made if need be.
    val_fraction
        Share of the split `val` (the last ones), at least one of two or more tomograms unless 0; the rest is `train`.
    resume
        Keep tomograms that are complete.
    overwrite
        Replace files that exist.
    progress
        Called with (tomograms done, tomograms in all).

    Returns
    -------
    Path
        `manifest.csv`.

    Raises
    ------
    ConfigError
        If there is nothing to make, or the fraction is none.
    OutputError
        If files exist (unless `resume` or `overwrite`) or cannot be written.
    """
    if count < 1 or not 0 <= val_fraction <= 1:
        raise ConfigError(f"n={count} has to be at least 1, and val_fraction={val_fraction} between 0 and 1.")
    folder = Path(output_dir).expanduser()
    manifest = claim(folder, resume or overwrite, "add --overwrite to replace it, or --resume to go on")
    validated = 0 if not val_fraction else min(count - 1, max(1, round(count * val_fraction)))
    samples = []
    for number in range(count):
        stem = folder / f"{DATASET}_{simulator.seed}_{number:04d}"
        settings = plain_settings(simulator)
        record = finished(stem, settings, resume, overwrite)
        if record is None:
            record = save(simulator.tomogram(number), stem, settings, overwrite or resume)
        # one data set, one contrast
        dataset = f"{DATASET}_bright" if record["parameters"]["membranes"] == "bright" else DATASET
        samples.append(sample(dataset, "val" if number >= count - validated else "train", stem, record))
        if progress is not None:
            progress(number + 1, count)
    write_manifest(manifest, samples, overwrite=resume or overwrite)
    return manifest


def claim(folder: Path, going_on: bool, remedy: str) -> Path:
    """Make a folder for simulated tomograms; returns the path of its manifest.

    Parameters
    ----------
    folder
        Made if need be.
    going_on
        Whether a manifest may be there already.
    remedy
        What to do if one is, in the words of the caller's settings.

    Raises
    ------
    OutputError
        If one is there, or the folder cannot be made.
    """
    manifest = folder / "manifest.csv"
    if manifest.exists() and not going_on:
        raise OutputError(f"{manifest}: exists already; {remedy}.")
    make_folder(folder)
    return manifest


def path_of(stem: Path, role: str) -> Path:
    """File of a tomogram's `tomogram`, `membrane`, `instances` or `record`."""
    return stem.with_name(stem.name + {"tomogram": ".mrc", "record": ".json"}.get(role, f"_{role}.mrc"))


def plain_settings(simulator: Simulator) -> dict[str, Any]:
    """Settings that decide a tomogram, as JSON gives them back."""
    settings = asdict(simulator)
    del settings["device"]
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found


def save(made: SimulatedTomogram, stem: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Write a tomogram with its masks, and its record, which is given back.

    Raises
    ------
    OutputError
        If a file exists and may not be replaced, or cannot be written.
    """
    arrays = {"membrane": made.mask, "instances": made.instances, "tomogram": made.tomogram}
    for role, array in arrays.items():
        voxel_size = (made.voxel_size_angstrom,) * 3
        with MrcWriter(
            path_of(stem, role), made.tomogram.shape, array.dtype, voxel_size_angstrom=voxel_size, overwrite=overwrite
        ) as writer:
            for z, plane in enumerate(array):
                writer[z] = plane
    record = {
        "shape": list(made.tomogram.shape),
        "voxel_size_angstrom": round(made.voxel_size_angstrom, 4),
        "parameters": {**made.parameters, "without_membrane": "" if made.mask.any() else "yes"},
        "membranes": [asdict(truth) for truth in made.truths],
        "settings": settings,
    }
    # last: where it lies, the volumes are complete
    with atomic_path(path_of(stem, "record"), overwrite) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def finished(stem: Path, settings: dict[str, Any], resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """The record of a tomogram that is complete and may be kept; None if it is to be made.

    Raises
    ------
    OutputError
        If it was made with other settings, or a file of it is there and may neither be kept nor replaced.
    """
    if overwrite or not resume:
        for role in ("membrane", "instances", "tomogram", "record"):
            refuse_existing(path_of(stem, role), overwrite)
        return None
    path = path_of(stem, "record")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); remove it, or overwrite it.") from error
    if record.get("settings") != settings:
        raise OutputError(
            f"{path}: this tomogram was made with other settings; choose another output folder, or overwrite it."
        )
    return record if all(path_of(stem, role).exists() for role in ("membrane", "instances", "tomogram")) else None


def sample(dataset: str, split: str, stem: Path, record: dict[str, Any], **columns: str) -> Sample:
    """A tomogram's line of the manifest, from its record, with further columns before the parameters."""
    z, y, x = record["shape"]
    return Sample(
        dataset,
        stem.name,
        split,
        path_of(stem, "tomogram"),
        path_of(stem, "membrane"),
        record["voxel_size_angstrom"],
        (z, y, x),
        (*columns.items(), *record["parameters"].items()),
    )
