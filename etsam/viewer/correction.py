"""Masks corrected by hand: saved with the header of their tomogram, and added to a manifest for training."""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from etsam.data.manifest import Sample, read_manifest, write_manifest
from etsam.errors import InputError
from etsam.volume import Volume, strip_suffix, volume_writer


def save_mask(path: Path, mask: np.ndarray, tomogram: Volume, overwrite: bool = False) -> None:
    """Write labels as a mask that lies where the tomogram lies: 1 where a label is, 0 elsewhere.

    Parameters
    ----------
    path
        MRC, or OME-Zarr if it ends in `.zarr`.
    mask
        (Z, Y, X), integers or booleans.
    tomogram
        Whose voxel size, origin and start the file gets.
    overwrite
        Replace what is there.

    Raises
    ------
    InputError
        If the shapes differ.
    OutputError
        If the file exists, or cannot be written.
    """
    if tuple(mask.shape) != tomogram.shape:
        raise InputError(f"labels of shape {tuple(mask.shape)} do not lie on a tomogram of shape {tomogram.shape}.")
    with volume_writer(path, tomogram.shape, bool, tomogram, overwrite) as writer:
        for z in range(tomogram.shape[0]):
            writer[z] = np.asarray(mask[z]) > 0


def add_to_manifest(manifest: Path, tomogram: Volume, mask: Path, split: str = "train") -> Counter[str]:
    """Add a tomogram and its mask to a manifest, which is made if it is not there; gives the rows of each split.

    A row of the same tomogram is replaced.

    Parameters
    ----------
    manifest
        CSV file, as `etsam train data.manifest=FILE` takes it.
    tomogram
        Opened from a file.
    mask
        Its mask.
    split
        `train`, `val` or `test`.

    Raises
    ------
    InputError
        If the manifest cannot be read.
    OutputError
        If it cannot be written.
    """
    assert tomogram.path is not None
    sides = tomogram.voxel_size_angstrom
    sample = Sample(
        "corrected",
        strip_suffix(tomogram.path),
        split,
        tomogram.path if not isinstance(tomogram.path, Path) else tomogram.path.absolute(),
        mask.absolute(),
        voxel_size_angstrom=None if sides is None or max(sides) > 1.01 * min(sides) else sides[0],
        shape=tomogram.shape,
    )
    old = read_manifest(manifest) if os.path.exists(manifest) else []
    samples = [one for one in old if one.name != sample.name] + [sample]
    write_manifest(manifest, samples, overwrite=True)
    return Counter(sample.split for sample in samples)
