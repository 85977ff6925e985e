"""OME-Zarr for tests, as another program would write it and as we do."""

import numpy as np
import pytest
from conftest import ORIGIN_ZYX, VOXEL_SIZE_ZYX

from etsam.volume import Volume, volume_writer

zarr = pytest.importorskip("zarr")

SIDES = (70, 40, 50)  # of a volume with several layers of chunks; three different lengths
CHUNKS = (16, 20, 30)
V2_KEYS = {"name": "v2", "separator": "/"}
LARGE = (70, 150, 131)  # more than two layers of chunks along z, two along y and x; three levels


def values(shape=SIDES, dtype=np.float32):
    return np.random.default_rng(3).integers(0, 100, shape).astype(dtype)


def metadata(levels=1, axes="zyx", unit="angstrom", scale=VOXEL_SIZE_ZYX, translation=None):
    """One multiscale, as a program that is not ours would write it."""
    datasets = []
    for level in range(levels):
        leading = [1.0] * (len(axes) - 3)
        steps = [{"type": "scale", "scale": [*leading, *(size * 2**level for size in scale)]}]
        if translation is not None:
            steps.append({"type": "translation", "translation": [*(0.0 for _ in leading), *translation]})
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in described[-3:]:
        if unit is not None:
            axis["unit"] = unit
    return {"version": "0.4", "axes": described, "datasets": datasets}


def write_zarr(path, data=None, *, version=2, levels=1, chunks=CHUNKS, multiscale=None, **options):
    """An OME-Zarr written by the zarr package; each level is every second voxel of the one before."""
    data = values() if data is None else data
    group = zarr.open_group(path, mode="w", zarr_format=version)
    described = metadata(levels) if multiscale is None else multiscale
    group.attrs.update({"multiscales": [described]} if version == 2 else {"ome": {"multiscales": [described]}})
    for level in range(levels):
        leading = data.ndim - 3
        named = {"chunk_key_encoding": V2_KEYS} if version == 2 else {}
        array = group.create_array(
            str(level), shape=data.shape, dtype=data.dtype, chunks=(*[1] * leading, *chunks), **named, **options
        )
        array[...] = data
        data = data[..., ::2, ::2, ::2]
    return path


def written(path, data, *, order=None, **options):
    with volume_writer(path, data.shape, data.dtype, **options) as writer:
        for z in range(len(data)) if order is None else order:
            writer[z] = data[z]
    return path


def lying():
    """A volume that lies somewhere."""
    volume = Volume.from_array(np.zeros(LARGE, np.uint8), VOXEL_SIZE_ZYX)
    volume.origin_angstrom = ORIGIN_ZYX
    return volume
