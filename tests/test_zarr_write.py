"""An OME-Zarr that we write holds the voxels with their levels and places, or is not there at all."""

import os

import numpy as np
import pytest
from conftest import ORIGIN_ZYX, SHAPE, VOXEL_SIZE_ZYX
from zarr_files import LARGE, lying, values, written

from etsam.errors import InputError, OutputError
from etsam.volume import read_volume
from etsam.volume.zarr_writer import ZarrWriter


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
    with pytest.raises(OutputError, match=r"a\.zarr: exists already; choose another name"):
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
