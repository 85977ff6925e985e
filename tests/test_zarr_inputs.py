"""Folders, lists and manifests may name OME-Zarr folders and addresses, and a copy of one is recognised."""

import shutil

import numpy as np
import pytest
from conftest import write_mrc
from web_server import serving_folder
from zarr_files import values, write_zarr

from etsam.data.checks import check_samples
from etsam.data.manifest import read_manifest, write_manifest
from etsam.errors import InputError
from etsam.prediction.finding import find_tomograms
from etsam.volume import Url, locate, strip_suffix, volume_writer
from etsam.volume.location import checksum_of, display_name, fingerprint_of, state_of

# Names and content


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
    known = fingerprint_of(path)
    assert known == fingerprint_of(path)
    write_zarr(path, values() + 2)
    assert fingerprint_of(path) != known
    with serving_folder(tmp_path) as site:
        assert checksum_of(Url(f"{site.url}/a.zarr"))[1] == "metadata"
        assert state_of(Url(f"{site.url}/a.zarr"))[0] == f"{site.url}/a.zarr"


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
    with serving_folder(tmp_path) as site:
        start = f"{site.url}/" if remote else ""
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


def test_a_single_slice_is_refused_as_it_is_of_an_array_and_in_mrc(refused, work):
    with volume_writer(work / "image.zarr", (1, 40, 48), np.float32) as writer:
        writer[0] = np.random.default_rng(0).normal(size=(40, 48)).astype(np.float32)
    assert "2D image" in refused("image.zarr")
