"""The voxels, sizes, units and levels of an OME-Zarr are those of the file, and nothing is read that is not needed."""

import json
import logging
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ORIGIN_ZYX, VOXEL_SIZE_ZYX
from zarr_files import SIDES, metadata, values, write_zarr

from etsam.volume import read_volume


@pytest.fixture
def asked(monkeypatch):
    """Names of the chunks of level 0 that are read from disk, in order."""
    from zarr.storage import LocalStore

    names, get = [], LocalStore.get

    async def counted(self, key, *arguments, **named):
        found = await get(self, key, *arguments, **named)
        if found is not None and not key.endswith((".json", ".zarray", ".zattrs", ".zgroup")):
            names.append(key)
        return found

    monkeypatch.setattr(LocalStore, "get", counted)
    return names


# Voxels and levels


@pytest.mark.parametrize("version", [2, 3])
def test_slices_shape_and_voxel_size_are_those_of_the_file(tmp_path, version):
    path = write_zarr(tmp_path / "a.zarr", version=version, multiscale=metadata(translation=ORIGIN_ZYX))
    with read_volume(path) as volume:
        assert (volume.shape, volume.dtype, len(volume)) == (SIDES, np.float32, SIDES[0])
        assert volume.voxel_size_angstrom == VOXEL_SIZE_ZYX
        assert (volume.origin_angstrom, volume.start) == (ORIGIN_ZYX, (0, 0, 0))
        for z in (0, 17, -1, 3):
            np.testing.assert_array_equal(volume[z], values()[z])
        np.testing.assert_array_equal(volume.read(), values())
        with pytest.raises(IndexError):
            volume[SIDES[0]]


def test_the_caller_may_write_into_a_slice(tmp_path):
    volume = read_volume(write_zarr(tmp_path / "a.zarr"))
    volume[2][...] = -1
    np.testing.assert_array_equal(volume[2], values()[2])


@pytest.mark.parametrize("dtype", ["uint8", "int8", ">i2", ">f4", "float64", "bool"])
def test_voxels_come_in_the_byte_order_of_the_machine(tmp_path, dtype):
    data = values(dtype=dtype)
    volume = read_volume(write_zarr(tmp_path / "a.zarr", data))
    assert volume[5].dtype == volume.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(volume[5], data[5])


@pytest.mark.parametrize("axes", ["tczyx", "czyx", "tzyx"])
def test_time_and_channel_of_length_one_are_left_out(tmp_path, axes):
    data = values().reshape(*[1] * (len(axes) - 3), *SIDES)
    volume = read_volume(write_zarr(tmp_path / "a.zarr", data, multiscale=metadata(axes=axes)))
    assert (volume.shape, volume.voxel_size_angstrom) == (SIDES, VOXEL_SIZE_ZYX)
    np.testing.assert_array_equal(volume[20], values()[20])


def test_shards_are_read(tmp_path):
    volume = read_volume(write_zarr(tmp_path / "a.zarr", version=3, shards=(32, 40, 60)))
    np.testing.assert_array_equal(volume.read(), values())


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_is_chosen_after_the_name(tmp_path, version, level):
    write_zarr(tmp_path / "a.zarr", levels=3, version=version)
    volume = read_volume(tmp_path / "a.zarr" / str(level))
    np.testing.assert_array_equal(volume.read(), values()[:: 2**level, :: 2**level, :: 2**level])
    assert volume.voxel_size_angstrom == tuple(size * 2**level for size in VOXEL_SIZE_ZYX)


def test_a_level_may_be_chosen_by_its_number(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", levels=2)
    attributes = json.loads((path / ".zattrs").read_text())
    for number, dataset in enumerate(attributes["multiscales"][0]["datasets"]):
        dataset["path"] = f"s{number}"
        (path / str(number)).rename(path / f"s{number}")
    (path / ".zattrs").write_text(json.dumps(attributes))
    assert read_volume(path / "1").shape == read_volume(path / "s1").shape == (35, 20, 25)


def test_reading_in_order_decompresses_each_chunk_once(tmp_path, asked):
    volume = read_volume(write_zarr(tmp_path / "a.zarr"))
    for _ in volume:
        pass
    assert len(asked) == len(set(asked)) == 5 * 2 * 2


def test_a_slice_reads_its_layer_of_chunks_and_nothing_else(tmp_path, asked):
    volume = read_volume(write_zarr(tmp_path / "a.zarr"))
    assert asked == []
    volume[33], volume[40]
    assert sorted(asked) == ["2/0/0", "2/0/1", "2/1/0", "2/1/1"]


def test_threads_may_read_more_volumes_than_keep_a_layer(tmp_path):
    volumes = [read_volume(write_zarr(tmp_path / f"{number}.zarr", values() + number)) for number in range(3)]
    expected = values()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns within a line
    try:
        with ThreadPoolExecutor(6) as pool:
            for z in range(0, SIDES[0], 12):  # another layer each time
                for number, plane in enumerate(pool.map(lambda volume, z=z: volume[z], volumes * 4)):
                    np.testing.assert_array_equal(plane, expected[z] + number % 3)
    finally:
        sys.setswitchinterval(before)
    assert sum(volume._source._layer is not None for volume in volumes) <= 2


def test_no_more_than_two_volumes_keep_a_layer(tmp_path):
    volumes = [read_volume(write_zarr(tmp_path / f"{name}.zarr")) for name in "abc"]
    for volume in volumes:
        volume[0]
    assert [volume._source._layer is None for volume in volumes] == [True, False, False]
    volumes[2].close()
    assert volumes[2]._source._layer is None
    np.testing.assert_array_equal(volumes[0][1], values()[1])


def test_a_pickled_volume_reads_on_without_its_cache(tmp_path):
    volume = read_volume(write_zarr(tmp_path / "a.zarr"))
    volume[0]
    raw = pickle.dumps(volume)
    assert len(raw) < 5000  # no voxels
    np.testing.assert_array_equal(pickle.loads(raw)[69], values()[69])


# Units


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("angstrom", 1),
        ("Angstrom", 1),
        ("nanometer", 10),
        ("nm", 10),
        ("micrometer", 1e4),
        ("\u00b5m", 1e4),
        ("picometer", 0.01),
    ],
)
def test_units_are_converted(tmp_path, unit, factor):
    described = metadata(unit=unit, scale=(1.5, 1.0, 2.0), translation=(3.0, 0.0, 1.0))
    volume = read_volume(write_zarr(tmp_path / "a.zarr", multiscale=described))
    assert volume.voxel_size_angstrom == pytest.approx((1.5 * factor, factor, 2 * factor))
    assert volume.origin_angstrom == pytest.approx((3 * factor, 0, factor))


@pytest.mark.parametrize(
    ("unit", "scale", "expected", "said"),
    [
        (None, (10.0, 10.0, 12.0), (10.0, 10.0, 12.0), "no unit; scale 10 x 10 x 12 is taken as Å"),
        (None, (1.0, 1.0, 1.0), None, "no unit and scale 1 x 1 x 1, so that the voxel size is unknown"),
        (None, (1e-9, 1e-9, 1e-9), None, "so that the voxel size is unknown"),
        ("furlong", (10.0, 10.0, 10.0), None, "unknown unit furlong of the axes, so that the voxel size is unknown"),
        ("angstrom", (10.0, 0.0, 10.0), None, "scale 10 x 0 x 10 is no voxel size"),
    ],
)
def test_a_unit_that_nobody_knows_is_said(tmp_path, caplog, unit, scale, expected, said):
    path = write_zarr(tmp_path / "a.zarr", multiscale=metadata(unit=unit, scale=scale))
    with caplog.at_level(logging.WARNING, "etsam"):
        assert read_volume(path).voxel_size_angstrom == expected
    assert said in caplog.text


def test_the_scale_of_the_whole_image_comes_on_top(tmp_path):
    described = metadata(scale=(1.0, 1.0, 1.0), translation=(0.5, 0.0, 2.0)) | {
        "coordinateTransformations": [{"type": "scale", "scale": [4.0, 3.0, 2.0]}]
    }
    volume = read_volume(write_zarr(tmp_path / "a.zarr", multiscale=described))
    assert volume.voxel_size_angstrom == (4.0, 3.0, 2.0)
    assert volume.origin_angstrom == (2.0, 0.0, 4.0)
