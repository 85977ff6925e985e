"""OME-Zarr: what others write is read, what we write is read by others, and nothing is read that is not needed."""

import builtins
import functools
import http.server
import json
import logging
import os
import pickle
import shutil
import signal
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import ORIGIN_ZYX, SHAPE, START_ZYX, VOXEL_SIZE_ZYX, grey, write_mrc

zarr = pytest.importorskip("zarr")

from etsam.data import check_samples, read_manifest, write_manifest  # noqa: E402
from etsam.errors import InputError, OutputError  # noqa: E402
from etsam.inference.inputs import find_tomograms  # noqa: E402
from etsam.io import Url, Volume, read_volume, strip_suffix, volume_writer  # noqa: E402
from etsam.io.location import checksum_of, display_name, state_of  # noqa: E402
from etsam.io.zarr_writer import ZarrWriter  # noqa: E402

SIDES = (70, 40, 50)  # of a volume with several layers of chunks; three different lengths
CHUNKS = (16, 20, 30)
V2_KEYS = {"name": "v2", "separator": "/"}


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


@contextmanager
def served(folder, status=None):
    """Serve a folder on this machine; yields (address, list of paths that were found)."""
    found = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def send_response(self, code, message=None):
            if code == 200:
                found.append(self.path)
            super().send_response(code, message)

        def do_GET(self):
            if status is None:
                super().do_GET()
            else:
                self.send_error(status)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# Reading


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


# What cannot be read


def without(key):
    described = metadata()
    del described[key]
    return described


@pytest.mark.parametrize(
    ("multiscale", "shape", "said"),
    [
        (metadata(axes="xyz"), SIDES, "axes x, y, z; a tomogram has z, y, x in this order"),
        (metadata(axes="ctzyx"), (1, 1, *SIDES), "axes c, t, z, y, x"),
        (metadata(axes="czyx"), (2, *SIDES), "one time and one channel at most"),
        (metadata(axes="zyx"), (1, *SIDES), "an array of shape (1, 70, 40, 50)"),
        (without("axes"), SIDES, "do not describe the axes, as OME-NGFF before 0.4"),
        (without("datasets"), SIDES, "list no datasets"),
        (metadata(levels=0), SIDES, "list no datasets"),
        (metadata(scale=(1.0, 2.0)), SIDES, "a scale of 2 numbers for 3 axes"),
    ],
)
def test_metadata_that_describe_no_tomogram_are_refused(tmp_path, multiscale, shape, said):
    path = write_zarr(tmp_path / "a.zarr", np.zeros(shape, np.float32), multiscale=multiscale)
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        read_volume(path)
    assert said in str(caught.value)


def test_complex_voxels_are_refused(tmp_path):
    with pytest.raises(InputError, match="voxels of complex64"):
        read_volume(write_zarr(tmp_path / "a.zarr", np.zeros(SIDES, np.complex64)))


def test_a_level_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match=r"a\.zarr/7: there is no level 7; there are 0, 1$"):
        read_volume(write_zarr(tmp_path / "a.zarr", levels=2) / "7")


def test_a_level_that_is_missing_on_disk_is_named(tmp_path):
    shutil.rmtree(write_zarr(tmp_path / "a.zarr") / "0")
    with pytest.raises(InputError, match="the level 0 that the metadata name is not there"):
        read_volume(tmp_path / "a.zarr")


def test_a_bare_array_is_refused(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=values())
    with pytest.raises(InputError, match="a bare Zarr array without OME metadata"):
        read_volume(tmp_path / "a.zarr")


def test_a_group_of_images_names_them(tmp_path):
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    write_zarr(tmp_path / "a.zarr" / "tomogram")
    with pytest.raises(InputError, match=r"without `multiscales`.*did you mean .*a\.zarr/tomogram\?"):
        read_volume(tmp_path / "a.zarr")
    assert read_volume(tmp_path / "a.zarr" / "tomogram").shape == SIDES


@pytest.mark.parametrize("file", [".zattrs", "0/.zarray"])
def test_damaged_metadata_are_refused(tmp_path, file):
    (write_zarr(tmp_path / "a.zarr") / file).write_text("{")
    with pytest.raises(InputError, match=r"a\.zarr: the Zarr metadata are damaged"):
        read_volume(tmp_path / "a.zarr")


@pytest.mark.parametrize("compressor", ["blosc", "gzip", "bz2"])
def test_a_damaged_chunk_is_named(tmp_path, compressor):
    import numcodecs

    codec = {"blosc": numcodecs.Blosc, "gzip": numcodecs.GZip, "bz2": numcodecs.BZ2}[compressor]()
    path = write_zarr(tmp_path / "a.zarr", compressors=codec)
    (path / "0" / "1" / "0" / "1").write_bytes(b"not what it was")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume[0], values()[0])
    with pytest.raises(InputError, match=r"a\.zarr: the chunk 1/0/1 is damaged"):
        volume[16]


def test_a_zarr_that_vanished_is_an_input_error(tmp_path):
    copy = pickle.loads(pickle.dumps(read_volume(write_zarr(tmp_path / "a.zarr"))))
    shutil.rmtree(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"a\.zarr: cannot be read any more; was it moved\?"):
        copy[0]


def test_a_missing_package_says_how_to_get_it(tmp_path, monkeypatch):
    write_zarr(tmp_path / "a.zarr")
    original = builtins.__import__

    def without_zarr(name, *arguments, **named):
        if name.partition(".")[0] == "zarr":
            raise ModuleNotFoundError("No module named 'zarr'")
        return original(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_zarr)
    with pytest.raises(InputError, match=r"No module named 'zarr'.*pip install 'etsam\[zarr\]'"):
        read_volume(tmp_path / "a.zarr")
    with (
        pytest.raises(OutputError, match=r"pip install 'etsam\[zarr\]'"),
        volume_writer(tmp_path / "b.zarr", SIDES, int),
    ):
        pass


# Over the network


def test_a_remote_slice_fetches_its_chunks_and_nothing_else(tmp_path):
    write_zarr(tmp_path / "a.zarr", levels=2)
    with served(tmp_path) as (address, found):
        volume = read_volume(f"{address}/a.zarr")
        assert (volume.shape, volume.voxel_size_angstrom) == (SIDES, VOXEL_SIZE_ZYX)
        assert all(path.rpartition("/")[2].startswith(".z") for path in found)
        before = len(found)
        np.testing.assert_array_equal(volume[40], values()[40])
        volume[33]
        assert sorted(found[before:]) == [f"/a.zarr/0/2/{y}/{x}" for y in (0, 1) for x in (0, 1)]
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[69], values()[69])


@pytest.mark.parametrize("version", [2, 3])
def test_a_remote_level_is_chosen_after_the_address(tmp_path, version):
    write_zarr(tmp_path / "a.zarr", levels=2, version=version)
    with served(tmp_path) as (address, found):
        volume = read_volume(f"{address}/a.zarr/1/")
        np.testing.assert_array_equal(volume.read(), values()[::2, ::2, ::2])
        assert not any("/a.zarr/0/" in path for path in found)
        assert str(volume.path) == f"{address}/a.zarr/1"


def test_what_is_not_at_an_address_is_said(tmp_path):
    with served(tmp_path) as (address, _), pytest.raises(InputError, match=r"no Zarr at this address \(404\)"):
        read_volume(f"{address}/gone.zarr")


def test_the_servers_refusal_is_said(tmp_path):
    with served(tmp_path, 403) as (address, _), pytest.raises(InputError, match="the server answered 403 Forbidden"):
        read_volume(f"{address}/a.zarr")


def test_no_network_is_said():
    with pytest.raises(InputError, match=r"cannot be read: .*; check the address and the network$"):
        read_volume("http://127.0.0.1:1/a.zarr")


def test_a_server_that_fails_is_asked_again_before_giving_up(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("etsam.io.zarr.time.sleep", pauses.append)
    write_zarr(tmp_path / "a.zarr")
    with served(tmp_path) as (address, _):
        volume = read_volume(f"{address}/a.zarr")
    with pytest.raises(InputError, match=r"a\.zarr: cannot be read: .*check the address"):
        volume[0]
    assert pauses == [2.0, 4.0]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("gs://bucket/a.zarr", "addresses of gs are not read; allowed are http, https, s3"),
        ("https://host/a.mrc", "only OME-Zarr is read over the network; download the file first"),
    ],
)
def test_other_addresses_are_refused(address, said):
    with pytest.raises(InputError, match=said):
        read_volume(address)


def test_s3_is_read_without_credentials(monkeypatch):
    from zarr.storage import FsspecStore

    asked = []

    def from_url(address, storage_options, read_only):
        asked.append((address, storage_options, read_only))
        raise PermissionError(13, "Access Denied")

    monkeypatch.setattr(FsspecStore, "from_url", from_url)
    with pytest.raises(InputError, match=r"s3://bucket/a\.zarr: cannot be read: Access Denied; check the address"):
        read_volume("s3://bucket/a.zarr")
    assert asked == [("s3://bucket/a.zarr", {"anon": True}, True)]


# Names


@pytest.mark.parametrize(
    ("name", "stripped", "shown"),
    [
        ("TS_01.zarr", "TS_01", "TS_01.zarr"),
        ("folder/TS_01_10.00Apx.zarr/", "TS_01_10.00Apx", "TS_01_10.00Apx.zarr"),
        ("TS_01.ome.zarr", "TS_01", "TS_01.ome.zarr"),
        ("https://host/a/TS_01.zarr/2", "TS_01", "TS_01.zarr/2"),
        ("s3://bucket/TS_01.mrc.zarr", "TS_01.mrc", "TS_01.mrc.zarr"),
        ("folder/TS_01.mrc", "TS_01", "TS_01.mrc"),
    ],
)
def test_names_of_outputs_come_from_the_zarr(name, stripped, shown):
    from etsam.io import locate

    assert strip_suffix(name) == stripped
    assert display_name(locate(name)) == shown


def test_zarr_folders_are_found_in_folders_patterns_and_lists(work):
    write_zarr(work / "in" / "a.zarr")
    write_zarr(work / "in" / "a_etsam_predicted_mask.zarr")
    write_mrc(work / "in" / "b.mrc")
    (work / "list.txt").write_text("in/a.zarr/0\nhttps://host/x.zarr\n~/in/b.mrc\nin/b.mrc\n".replace("~/", ""))
    inside = [work / "in" / "a.zarr", work / "in" / "b.mrc"]
    assert find_tomograms(work / "in") == inside
    assert find_tomograms(str(work / "in" / "*")) == inside
    assert find_tomograms("in/a.zarr") == [inside[0].relative_to(work)]
    listed = find_tomograms("list.txt")
    assert [str(one) for one in listed] == ["in/a.zarr/0", "https://host/x.zarr", "in/b.mrc"]
    assert isinstance(listed[1], Url)


def test_state_and_checksum_follow_the_content(tmp_path):
    path = write_zarr(tmp_path / "a.zarr")
    shutil.copytree(path, tmp_path / "b.zarr")
    state, checksum = state_of(path), checksum_of(path)
    assert checksum == checksum_of(tmp_path / "b.zarr")
    assert checksum[1] == "files"
    write_zarr(path, values() + 1)
    assert state_of(path) != state
    assert checksum_of(path) != checksum
    with served(tmp_path) as (address, _):
        assert checksum_of(Url(f"{address}/a.zarr"))[1] == "metadata"
        assert state_of(Url(f"{address}/a.zarr"))[0] == f"{address}/a.zarr"


# Training data


def manifest(folder, tomogram, mask, split="train"):
    (folder / "m.csv").write_text(
        f"dataset_id,run_id,split,tomogram,target_mask\nd,r,{split},{tomogram},{mask}\nd,s,val,{tomogram},{mask}\n"
    )
    return read_manifest(folder / "m.csv")


@pytest.mark.parametrize("remote", [False, True])
def test_a_manifest_may_name_zarr_folders_and_addresses(tmp_path, remote):
    write_zarr(tmp_path / "a.zarr")
    write_zarr(tmp_path / "m.zarr", (values() > 50).astype(np.uint8))
    with served(tmp_path) as (address, _):
        start = f"{address}/" if remote else ""
        samples = manifest(tmp_path, f"{start}a.zarr", f"{start}m.zarr")
        with pytest.raises(InputError, match=r"^1 fault .*d/r \(train\) and d/s \(val\) are the same file"):
            check_samples(samples, cache_folder=tmp_path / "cache")
        check_samples(samples[:1], splits=("train",))
        write_manifest(tmp_path / "again.csv", samples)
        assert read_manifest(tmp_path / "again.csv") == samples


def test_a_copy_of_a_zarr_in_another_split_is_noticed(tmp_path):
    write_zarr(tmp_path / "a.zarr")
    write_zarr(tmp_path / "m.zarr", (values() > 50).astype(np.uint8))
    samples = manifest(tmp_path, "a.zarr", "m.zarr")
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    (tmp_path / "m.csv").write_text((tmp_path / "m.csv").read_text().replace("val,a.zarr", "val,b.zarr"))
    with pytest.raises(InputError, match="are the same content"):
        check_samples(read_manifest(tmp_path / "m.csv"))
    assert len(samples) == 2


# Writing


LARGE = (70, 150, 131)  # more than two layers of chunks along z, two along y and x; three levels


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


def means(data):
    """Mean over 2 x 2 x 2 voxels, at the edges over those that are there."""
    out = np.zeros([-(-side // 2) for side in data.shape])
    count = np.zeros_like(out)
    for place in np.ndindex(2, 2, 2):
        part = data[place[0] :: 2, place[1] :: 2, place[2] :: 2].astype(np.float64)
        inside = tuple(slice(0, side) for side in part.shape)
        out[inside] += part
        count[inside] += 1
    return out / count


def test_what_is_written_is_read_again(tmp_path):
    data = values(LARGE)
    volume = read_volume(written(tmp_path / "a.zarr", data, like=lying()))
    np.testing.assert_array_equal(volume.read(), data)
    assert volume.voxel_size_angstrom == VOXEL_SIZE_ZYX
    assert volume.origin_angstrom == ORIGIN_ZYX
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_levels_of_logits_are_means_and_lie_half_a_voxel_further_in(tmp_path):
    data = values(LARGE)
    path = written(tmp_path / "a.zarr", data, like=lying())
    half, quarter = read_volume(path / "1"), read_volume(path / "2")
    np.testing.assert_allclose(half.read(), means(data), rtol=1e-6)
    np.testing.assert_allclose(quarter.read(), means(means(data)), rtol=0.05)  # edges: means of means
    np.testing.assert_allclose(quarter.read()[:-1, :-1, :-1], means(means(data))[:-1, :-1, :-1], rtol=1e-6)
    assert half.shape == (35, 75, 66)
    assert quarter.shape == (18, 38, 33)
    assert half.voxel_size_angstrom == (8.0, 6.0, 4.0)
    assert half.origin_angstrom == (7.0 + 2.0, 6.0 + 1.5, 5.0 + 1.0)
    assert quarter.origin_angstrom == (7.0 + 6.0, 6.0 + 4.5, 5.0 + 3.0)
    with pytest.raises(InputError, match="there are 0, 1, 2"):
        read_volume(path / "3")


def test_levels_of_masks_are_voxels_of_the_mask_where_they_were(tmp_path):
    data = values(LARGE) > 50
    path = written(tmp_path / "a.zarr", data, like=lying())
    assert read_volume(path).dtype == np.uint8
    for level in (1, 2):
        volume = read_volume(path / str(level))
        step = 2**level
        np.testing.assert_array_equal(volume.read(), data[::step, ::step, ::step])
        assert volume.origin_angstrom == ORIGIN_ZYX


def test_an_unknown_voxel_size_stays_unknown(tmp_path):
    path = written(tmp_path / "a.zarr", values(LARGE))
    for volume in (read_volume(path), read_volume(path / "1")):  # also at level 1, where the scale is 2
        assert (volume.voxel_size_angstrom, volume.origin_angstrom) == (None, (0.0, 0.0, 0.0))


def test_slices_may_come_in_any_order_and_again_and_be_read_back(tmp_path):
    data = values(LARGE)
    with ZarrWriter(tmp_path / "a.zarr", LARGE, np.float32) as writer:
        for z in (*range(64, 70), *range(40, 64), *range(31, -1, -1), *range(32, 40)):
            writer[z] = data[z] - 1
        for z in (69, 0, 33, -69):
            writer[z] = data[z]
        np.testing.assert_array_equal(writer[33], data[33])
        np.testing.assert_array_equal(writer[34], data[34] - 1)
    expected = data - 1
    expected[[0, 1, 33, 69]] += 1
    np.testing.assert_array_equal(read_volume(tmp_path / "a.zarr").read(), expected)


def test_a_missing_slice_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="1 of 6 slices never written: 3"):
        written(tmp_path / "a.zarr", values(SHAPE), order=[0, 1, 2, 4, 5])
    assert os.listdir(tmp_path) == []


def test_an_existing_zarr_is_replaced_only_when_asked_for(tmp_path):
    path = written(tmp_path / "a.zarr", values(LARGE))
    with pytest.raises(OutputError, match=r"a\.zarr: exists already; set overwrite=true"):
        written(path, values(SHAPE))
    with pytest.raises(ZeroDivisionError), ZarrWriter(path, SHAPE, np.float32, overwrite=True):
        raise ZeroDivisionError
    assert read_volume(path).shape == LARGE
    written(path, values(SHAPE), overwrite=True)
    assert os.listdir(tmp_path) == ["a.zarr"]
    assert not (path / "1").exists()
    np.testing.assert_array_equal(read_volume(path).read(), values(SHAPE))


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "thesis.txt").write_text("years")
    with pytest.raises(OutputError, match="holds something else, which is never replaced"):
        written(tmp_path / "a.zarr", values(SHAPE), overwrite=True)
    assert (tmp_path / "a.zarr" / "thesis.txt").read_text() == "years"


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    from zarr.storage import LocalStore

    async def full(self, key, *_):
        raise OSError(28, "No space left on device")

    data = values(LARGE)
    with pytest.raises(OutputError, match="disk full"), ZarrWriter(tmp_path / "a.zarr", LARGE, np.float32) as writer:  # noqa: PT012
        monkeypatch.setattr(LocalStore, "set", full)
        for z in range(40):
            writer[z] = data[z]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("plane", "said"),
    [(np.zeros((3, 4)), "slice of shape"), (np.zeros(SHAPE[1:]), "convert it first"), (np.full(SHAPE[1:], 256), "fit")],
)
def test_what_does_not_fit_is_refused(tmp_path, plane, said):
    with pytest.raises(ValueError, match=said), ZarrWriter(tmp_path / "a.zarr", SHAPE, np.uint8) as writer:
        writer[0] = plane
    assert os.listdir(tmp_path) == []


# Other programs


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
    volume, half = read_volume(tmp_path / "a.zarr"), read_volume(tmp_path / "a.zarr" / "1")
    np.testing.assert_array_equal(volume.read(), values())
    np.testing.assert_array_equal(half.read(), values()[::2, ::2, ::2])
    assert volume.voxel_size_angstrom == pytest.approx(VOXEL_SIZE_ZYX)
    assert half.voxel_size_angstrom == pytest.approx([2 * size for size in VOXEL_SIZE_ZYX])
    assert volume.origin_angstrom == pytest.approx(ORIGIN_ZYX)


# The command

ENDINGS = ["instances.zarr", "logits.zarr", "mask.zarr", "post_processed_mask.zarr", "preview.png", "record.json"]
ALL = (
    "weights.seed=1",
    "--logit-threshold=-0.075",
    "--store-logits",
    "--post-process",
    "write_instances=true",
    "output_format=zarr",
)


def top(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_command_reads_and_writes_zarr_with_the_values_of_mrc(predict, work):
    write_mrc("tomo.mrc")
    write_zarr(work / "tomo.zarr", grey(), multiscale=metadata(translation=ORIGIN_ZYX))
    assert predict("tomo.mrc", *ALL[:-1]).status == 0
    expected = {
        name: read_volume(work / "out" / f"tomo_etsam_predicted_{name}.mrc").read() for name in ("mask", "logits")
    }
    shutil.rmtree(work / "out")

    outcome = predict("tomo.zarr", *ALL)
    assert outcome.status == 0, outcome.stderr
    assert top(outcome.folder) == [f"tomo_etsam_predicted_{ending}" for ending in ENDINGS]
    for name, data in expected.items():
        volume = read_volume(outcome.folder / f"tomo_etsam_predicted_{name}.zarr")
        np.testing.assert_array_equal(volume.read(), data)
        assert data.min() < data.max()
        assert (volume.voxel_size_angstrom, volume.origin_angstrom) == (VOXEL_SIZE_ZYX, ORIGIN_ZYX)
    record = json.loads((outcome.folder / "tomo_etsam_predicted_record.json").read_text())
    assert record["input"]["sha256_of"] == "files"
    assert record["input"]["path"] == str(work / "tomo.zarr")
    assert sorted(record["outputs"]) == top(outcome.folder)


def test_the_command_takes_an_address(predict, work):
    write_zarr(work / "data" / "tomo.zarr", grey(), levels=2)
    with served(work / "data") as (address, _):
        outcome = predict(f"{address}/tomo.zarr/1")
    assert outcome.status == 0, outcome.stderr
    assert read_volume(outcome.folder / "tomo_etsam_predicted_mask.mrc").shape == (3, 20, 28)
    record = json.loads((outcome.folder / "tomo_etsam_predicted_record.json").read_text())
    assert record["input"]["path"] == f"{address}/tomo.zarr/1"
    assert record["input"]["sha256_of"] == "metadata"


def test_two_levels_of_a_tomogram_would_write_the_same_files(refused, work):
    write_zarr(work / "tomo.zarr", grey(), levels=2)
    assert "tomo.zarr and tomo.zarr/1 would both write out/tomo_etsam_*" in refused("tomo.zarr", "tomo.zarr/1")


def test_an_existing_output_is_kept_replaced_or_skipped(predict, tomogram, work):
    fast = ("tomo.mrc", "output_format=zarr", "write_preview=false", "weights.seed=1")
    mask = work / "out" / "tomo_etsam_predicted_mask.zarr"
    assert predict(*fast).status == 0
    changed = [path.stat().st_mtime_ns for path in sorted(mask.rglob("*"))]
    assert "mask.zarr exists already (and 1 more); set overwrite=true" in predict(*fast).message
    assert predict(*fast, "--resume").status == 0
    assert [path.stat().st_mtime_ns for path in sorted(mask.rglob("*"))] == changed
    assert predict(*fast, "--overwrite", "--logit-threshold", "-100").status == 0
    assert read_volume(mask).read().all()
    assert len(top(work / "out")) == 2


@pytest.mark.parametrize("status", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing(predict, tomogram, monkeypatch, status):
    monkeypatch.setattr("etsam.inference.writer.apply_steps", lambda *_, **__: os.kill(os.getpid(), status))
    outcome = predict("tomo.mrc", *ALL)
    assert outcome.status == 128 + status
    assert outcome.files == []


def test_a_failure_after_the_files_have_names_leaves_nothing(predict, tomogram, monkeypatch):
    monkeypatch.setattr("etsam.inference.writer.write_record", lambda *_: 1 / 0)
    outcome = predict("tomo.mrc", *ALL)
    assert outcome.status == 1
    assert outcome.files == []


def test_an_unknown_output_format_is_refused(refused, tomogram):
    assert refused("tomo.mrc", "output_format=tiff") == "output_format=tiff is unknown; allowed: mrc, zarr."


def test_post_processing_converts_between_the_formats(etsam, work):
    data = np.zeros(SHAPE, np.uint8)
    data[:, 5:9, 4:40] = 1
    write_mrc("mask.mrc", data.astype(np.int8))
    assert etsam("postprocess", "mask.mrc", "clean.zarr", "--postprocess-remove-thin-noise",
                 "--post-process-min-slices", "2").status == 0  # fmt: skip
    clean = read_volume("clean.zarr")
    np.testing.assert_array_equal(clean.read(), data)
    assert (clean.dtype, clean.voxel_size_angstrom, clean.origin_angstrom) == (np.uint8, VOXEL_SIZE_ZYX, ORIGIN_ZYX)
    assert etsam("postprocess", "clean.zarr", "again.mrc", "--post-process").status == 0
    assert read_volume("again.mrc").start != START_ZYX  # OME-Zarr has no place for it


def test_segment_streams_logits_into_a_zarr(work):
    import etsam

    settings = ["net=tiny_test", "weights=random", "trainer=cpu"]
    in_memory = etsam.segment(grey(), voxel_size=VOXEL_SIZE_ZYX, overrides=settings, device="cpu")
    streamed = etsam.segment(
        grey(), voxel_size=VOXEL_SIZE_ZYX, overrides=settings, device="cpu", output_path="logits.zarr"
    )
    np.testing.assert_array_equal(read_volume("logits.zarr").read(), in_memory.logits)
    np.testing.assert_array_equal(streamed.mask[3], in_memory.mask[3])
    assert read_volume("logits.zarr").voxel_size_angstrom == VOXEL_SIZE_ZYX
