"""An OME-Zarr at an address is read chunk by chunk without credentials, and a server that refuses or fails is named."""

import pickle

import numpy as np
import pytest
from conftest import VOXEL_SIZE_ZYX
from web_server import serving_folder
from zarr_files import SIDES, values, write_zarr

from etsam.errors import InputError
from etsam.volume import read_volume


def test_a_remote_slice_fetches_its_chunks_and_nothing_else(tmp_path):
    write_zarr(tmp_path / "a.zarr", levels=2)
    with serving_folder(tmp_path) as site:
        volume = read_volume(f"{site.url}/a.zarr")
        assert (volume.shape, volume.voxel_size_angstrom) == (SIDES, VOXEL_SIZE_ZYX)
        assert all(path.rpartition("/")[2].startswith(".z") for path in site.found)
        before = len(site.found)
        np.testing.assert_array_equal(volume[40], values()[40])
        volume[33]
        assert sorted(site.found[before:]) == [f"/a.zarr/0/2/{y}/{x}" for y in (0, 1) for x in (0, 1)]
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[69], values()[69])


@pytest.mark.parametrize("version", [2, 3])
def test_a_remote_level_is_chosen_after_the_address(tmp_path, version):
    write_zarr(tmp_path / "a.zarr", levels=2, version=version)
    with serving_folder(tmp_path) as site:
        volume = read_volume(f"{site.url}/a.zarr/1/")
        np.testing.assert_array_equal(volume.read(), values()[::2, ::2, ::2])
        assert not any("/a.zarr/0/" in path for path in site.found)
        assert str(volume.path) == f"{site.url}/a.zarr/1"


def test_what_is_not_at_an_address_is_said(tmp_path):
    with serving_folder(tmp_path) as site, pytest.raises(InputError, match=r"no Zarr at this address \(404\)"):
        read_volume(f"{site.url}/gone.zarr")


def test_the_servers_refusal_is_said(tmp_path):
    with serving_folder(tmp_path) as site:
        site.missing_status = 403
        with pytest.raises(InputError, match="the server answered 403 Forbidden"):
            read_volume(f"{site.url}/a.zarr")


def test_no_network_is_said():
    with pytest.raises(InputError, match=r"cannot be read: .*; check the address and the network$"):
        read_volume("http://127.0.0.1:1/a.zarr")


def test_a_server_that_fails_is_asked_again_before_giving_up(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("etsam.volume.zarr_reader.time.sleep", pauses.append)
    write_zarr(tmp_path / "a.zarr")
    with serving_folder(tmp_path) as site:
        volume = read_volume(f"{site.url}/a.zarr")
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
