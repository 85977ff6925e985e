"""An OME-Zarr that is damaged, incomplete or no tomogram is refused in one line that says what is wrong."""

import builtins
import pickle
import shutil

import numpy as np
import pytest
from zarr_files import SIDES, metadata, values, write_zarr, zarr

from etsam.errors import InputError, OutputError
from etsam.volume import read_volume, volume_writer


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
