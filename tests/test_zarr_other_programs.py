"""Programs of the OME-NGFF community read the OME-Zarr that we write, and we read theirs."""

import numpy as np
import pytest
from conftest import ORIGIN_ZYX, VOXEL_SIZE_ZYX
from zarr_files import LARGE, lying, values, written, zarr

from etsam.volume import read_volume


@pytest.mark.parametrize("mask", [False, True])
def test_ome_zarr_reads_what_we_write(tmp_path, mask):
    reader, ome_io = pytest.importorskip("ome_zarr.reader"), pytest.importorskip("ome_zarr.io")
    data = values(LARGE) > 50 if mask else values(LARGE)
    path = written(tmp_path / "a.zarr", data, like=lying())
    (node,) = reader.Reader(ome_io.parse_url(str(path)))()
    assert [level.shape for level in node.data] == [LARGE, (35, 75, 66), (18, 38, 33)]
    np.testing.assert_array_equal(node.data[0].compute(), data)
    np.testing.assert_array_equal(node.data[1].compute(), read_volume(path / "1").read())
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    assert node.metadata["axes"] == axes
    transforms = node.metadata["coordinateTransformations"]
    assert transforms[0] == [
        {"type": "scale", "scale": list(VOXEL_SIZE_ZYX)},
        {"type": "translation", "translation": list(ORIGIN_ZYX)},
    ]
    assert transforms[1][0]["scale"] == [8.0, 6.0, 4.0]
    assert any(isinstance(spec, reader.Label) for spec in node.specs) == mask


def test_our_metadata_are_valid_ome_zarr_0_4(tmp_path):
    models = pytest.importorskip("ome_zarr_models.v04")
    path = written(tmp_path / "a.zarr", values(LARGE), like=lying())
    image = models.Image.from_zarr(zarr.open_group(path, mode="r"))
    assert [dataset.path for dataset in image.attributes.multiscales[0].datasets] == ["0", "1", "2"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_we_read_what_ome_zarr_writes(tmp_path, version):
    writer, formats = pytest.importorskip("ome_zarr.writer"), pytest.importorskip("ome_zarr.format")
    fmt = formats.format_from_version(version)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2 if version == "0.4" else 3)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    transforms = [
        [
            {"type": "scale", "scale": [0.4 * factor, 0.3 * factor, 0.2 * factor]},
            {"type": "translation", "translation": [0.7, 0.6, 0.5]},
        ]
        for factor in (1, 2)
    ]
    writer.write_multiscale(
        [values(), values()[::2, ::2, ::2]], group, fmt=fmt, axes=axes, coordinate_transformations=transforms
    )
    (multiscale,) = dict(group.attrs).get("ome", dict(group.attrs))["multiscales"]
    if "unit" not in multiscale["axes"][0]:  # ome-zarr 0.21 leaves the unit out: the scale is taken as Å then
        for transform in (one for dataset in transforms for one in dataset):
            transform[transform["type"]] = [10 * value for value in transform[transform["type"]]]
        writer.write_multiscale(
            [values(), values()[::2, ::2, ::2]],
            zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2 if version == "0.4" else 3),
            fmt=fmt,
            axes=axes,
            coordinate_transformations=transforms,
        )
    half_path = multiscale["datasets"][1]["path"]
    volume, half = read_volume(tmp_path / "a.zarr"), read_volume(tmp_path / "a.zarr" / half_path)
    np.testing.assert_array_equal(volume.read(), values())
    np.testing.assert_array_equal(half.read(), values()[::2, ::2, ::2])
    assert volume.voxel_size_angstrom == pytest.approx(VOXEL_SIZE_ZYX)
    assert half.voxel_size_angstrom == pytest.approx([2 * size for size in VOXEL_SIZE_ZYX])
    assert volume.origin_angstrom == pytest.approx(ORIGIN_ZYX)
