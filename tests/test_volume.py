"""Volumes: slices on request, names, compression, memory."""

import bz2
import gzip
import multiprocessing
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from etsam.errors import InputError, OutputError
from etsam.volume import TOMOGRAM_SUFFIXES, Slices, Volume, read_volume, strip_suffix, volume_writer

DATA = Path(__file__).parent / "data" / "mrc_dialects"
CONTENT = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


@pytest.fixture
def path(tmp_path):
    with mrcfile.new(tmp_path / "tomo.mrc", data=CONTENT) as mrc:
        mrc.voxel_size = 10.0
    return tmp_path / "tomo.mrc"


@pytest.fixture
def packed(path):
    path.with_name("tomo.mrc.gz").write_bytes(gzip.compress(path.read_bytes()))
    return path.with_name("tomo.mrc.gz")


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture(params=["disk", "memory"])
def volume(request, path):
    return read_volume(path) if request.param == "disk" else Volume.from_array(CONTENT)


def test_volume_gives_slices_by_index(volume):
    slices: Slices = volume
    assert slices.shape == (2, 3, 4)
    np.testing.assert_array_equal(slices[1], [[12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22, 23]])


def test_negative_index_counts_from_the_end(volume):
    np.testing.assert_array_equal(volume[-1], CONTENT[1])
    np.testing.assert_array_equal(volume[-2], CONTENT[0])


@pytest.mark.parametrize("z", [2, -3])
def test_index_out_of_range_is_an_index_error(volume, z):
    with pytest.raises(IndexError, match=rf"slice {z} of a volume with 2 slices"):
        volume[z]


def test_numpy_integers_are_indices_and_floats_are_not(volume):
    np.testing.assert_array_equal(volume[np.int64(1)], CONTENT[1])
    with pytest.raises(TypeError):
        volume[1.0]


def test_length_iteration_and_read_agree(volume):
    assert len(volume) == len(list(volume)) == 2
    np.testing.assert_array_equal(np.stack(list(volume)), CONTENT)
    np.testing.assert_array_equal(volume.read(), CONTENT)


def test_slices_are_the_callers_own(volume):
    volume[0][:] = -1
    volume.read()[:] = -1
    np.testing.assert_array_equal(volume[0], CONTENT[0])
    assert CONTENT[0, 0, 1] == 1


def test_volume_survives_pickling(volume):
    copy = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(copy[1], CONTENT[1])
    assert (copy.shape, copy.dtype, copy.path) == (volume.shape, volume.dtype, volume.path)


def test_relative_path_stays_valid_after_a_change_of_folder(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    volume = read_volume("tomo.mrc")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(volume[1], CONTENT[1])


def test_file_that_disappears_is_an_input_error(path):
    volume = read_volume(path)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read any more"):
        volume[0]


def test_file_that_shrinks_is_an_input_error(path):
    volume = read_volume(path)
    path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(volume[0], CONTENT[0])
    with pytest.raises(InputError, match="became shorter"):
        volume[1]


@pytest.mark.parametrize("dtype", [bool, "u1", "i8", "f2", "f8", ">f4"])
def test_arrays_of_real_numbers_become_volumes(dtype):
    volume = Volume.from_array(CONTENT.astype(dtype), voxel_size_angstrom=(3.0, 2.0, 1.5))
    assert volume.dtype == np.dtype(dtype).newbyteorder("=") == volume[0].dtype
    np.testing.assert_array_equal(volume[1], CONTENT[1].astype(dtype))
    assert (volume.voxel_size_angstrom, volume.path, volume.header) == ((3.0, 2.0, 1.5), None, None)


@pytest.mark.parametrize(
    "array", [CONTENT[0], CONTENT[None], CONTENT[:0], CONTENT.astype(complex), CONTENT.astype(str), CONTENT.astype("O")]
)
def test_other_arrays_are_refused(array):
    with pytest.raises(InputError, match="a volume h"):
        Volume.from_array(array)


@pytest.mark.parametrize("size", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0), (1.0, 1.0, float("nan"))])
def test_impossible_voxel_sizes_of_arrays_are_refused(size):
    with pytest.raises(InputError, match="three positive numbers"):
        Volume.from_array(CONTENT, voxel_size_angstrom=size)


@pytest.mark.parametrize("size", [12, 12.0, np.float32(12), np.array(12), [12, 12, 12], torch.tensor([12.0] * 3)])
def test_one_number_is_the_side_of_a_cubic_voxel(size):
    assert Volume.from_array(CONTENT, size).voxel_size_angstrom == (12.0, 12.0, 12.0)


def test_the_voxel_size_that_mrcfile_gives_is_taken_in_the_order_of_the_axes():
    record = np.rec.array((1.5, 2.0, 3.0), dtype=[(axis, "f4") for axis in "xyz"])
    assert Volume.from_array(CONTENT, record).voxel_size_angstrom == (3.0, 2.0, 1.5)


@pytest.mark.parametrize("size", ["wide", 0, -12, float("inf"), {"z": 1}, object(), (12,), (None, 1, 1), [[1, 2, 3]]])
def test_any_other_voxel_size_is_refused(size):
    with pytest.raises(InputError, match="positive numbers"):
        Volume.from_array(CONTENT, size)


class _Convertible:
    """What NumPy makes an array of, as arrays of other libraries."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize(
    "given",
    [CONTENT.tolist(), list(CONTENT), torch.tensor(CONTENT), _Convertible(CONTENT)],
    ids=lambda v: type(v).__name__,
)
def test_what_numpy_makes_an_array_of_is_a_volume(given):
    np.testing.assert_array_equal(Volume.from_array(given).read(), CONTENT)


ON_ANOTHER_DEVICE = torch.zeros((2, 3, 4), device="meta")  # as on a GPU: NumPy cannot reach it


@pytest.mark.parametrize(
    ("given", "token"),
    [
        (ON_ANOTHER_DEVICE, "cpu"),
        (torch.zeros((2, 3, 4), requires_grad=True), "detach"),
        (torch.zeros((2, 3, 4), dtype=torch.bfloat16), "float"),
        ([[[1, 2]], [[3]]], "list"),
        (b"tomogram.mrc", "bytes"),
        ("tomogram.mrc", "str"),
        (None, "NoneType"),
        (12, "int"),
        (object(), "object"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_no_array_is_refused_by_its_kind(given, token):
    with pytest.raises(InputError, match=token):
        Volume.from_array(given)


@pytest.mark.parametrize("given", [torch.zeros((2, 3, 4)), CONTENT, b"tomogram.mrc", 12, None, [CONTENT]])
def test_what_is_no_path_is_refused_by_its_kind(given):
    with pytest.raises(InputError, match=rf"{type(given).__name__}: is no path"):
        read_volume(given)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("f2", "f2"), ("f4", "f4"), (">f8", "f8"), ("i2", "f4"), ("u1", "f4"), (bool, "f4")]
)
def test_masked_values_are_nan(dtype, expected):
    plain = CONTENT.astype(dtype)
    hidden = CONTENT % 5 == 1
    wanted = np.where(hidden, np.nan, plain.astype(expected))
    masked = np.ma.MaskedArray(plain, hidden)
    for given in (masked, _Convertible(masked), list(masked)):
        volume = Volume.from_array(given)
        assert volume.dtype == np.dtype(expected)
        np.testing.assert_array_equal(volume.read(), wanted)
    np.testing.assert_array_equal(masked.data, plain)


def test_a_masked_array_without_a_masked_value_is_taken_as_it_is():
    for mask in (np.ma.nomask, np.zeros(CONTENT.shape, bool)):
        volume = Volume.from_array(np.ma.MaskedArray(CONTENT, mask))
        assert volume.dtype == CONTENT.dtype
        np.testing.assert_array_equal(volume.read(), CONTENT)


@pytest.mark.parametrize("suffix", TOMOGRAM_SUFFIXES)
def test_every_suffix_is_read_and_stripped(path, suffix):
    pack = {"gz": gzip.compress, "bz2": bz2.compress}.get(suffix.split(".")[-1], bytes)
    named = path.with_name("a.b" + suffix.upper())
    named.write_bytes(pack(path.read_bytes()))
    with read_volume(named) as volume:
        np.testing.assert_array_equal(volume[1], CONTENT[1])
    assert strip_suffix(named) == "a.b"


@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("TS_01_10.00Apx.mrc", "TS_01_10.00Apx"),
        ("a.b.rec.gz", "a.b"),
        ("x/y.mrc.mrc", "y.mrc"),
        ("a.gz", "a.gz"),
        (".mrc", ".mrc"),
    ],
)
def test_only_the_suffix_of_a_tomogram_is_stripped(name, stripped):
    assert strip_suffix(name) == stripped


@pytest.mark.parametrize("name", ["tomo", "tomo.dat", "tomo.001"])
def test_other_suffixes_are_accepted_if_the_content_is_mrc(path, name, caplog):
    np.testing.assert_array_equal(read_volume(path.rename(path.with_name(name)))[1], CONTENT[1])
    assert caplog.text == ""


def test_content_decides_about_compression_not_the_name(path, packed, caplog):
    with read_volume(packed.rename(path.with_name("packed.mrc"))) as volume:
        np.testing.assert_array_equal(volume[1], CONTENT[1])
    np.testing.assert_array_equal(read_volume(path.rename(path.with_name("plain.mrc.gz")))[1], CONTENT[1])
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "compressed (.gz), unlike its name says",
        "not compressed, unlike its name says",
    ]


def test_unpacked_file_lives_as_long_as_its_volume(packed, scratch):
    volume = read_volume(packed, scratch_dir=scratch)
    assert len(list(scratch.iterdir())) == 1
    np.testing.assert_array_equal(volume[1], CONTENT[1])
    del volume
    assert list(scratch.iterdir()) == []


def test_closed_volume_has_no_unpacked_file_and_says_so(packed, scratch):
    with read_volume(packed, scratch_dir=scratch) as volume:
        volume[0]
    volume.close()
    assert list(scratch.iterdir()) == []
    with pytest.raises(InputError, match="or the volume closed"):
        volume[0]


_KILLED = """
import os, signal, sys
from etsam.volume import read_volume
volume = read_volume(sys.argv[1], scratch_dir=sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_unpacked_goes_when_the_next_file_is_unpacked(packed, scratch):
    (scratch / "etsam_tomogram.mrc").write_text("mine")
    with read_volume(packed, scratch_dir=scratch) as at_work:
        killed = subprocess.run([sys.executable, "-c", _KILLED, packed, scratch], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(list(scratch.iterdir())) == 3
        with read_volume(packed, scratch_dir=scratch) as volume:
            assert len(list(scratch.iterdir())) == 3  # that of the killed one is gone, that at work is not
            np.testing.assert_array_equal(volume[1], at_work[1])
    assert [path.name for path in scratch.iterdir()] == ["etsam_tomogram.mrc"]


def test_pickled_copy_does_not_remove_the_unpacked_file(packed, scratch):
    volume = read_volume(packed, scratch_dir=scratch)
    copy = pickle.loads(pickle.dumps(volume))
    copy.close()
    del copy
    np.testing.assert_array_equal(volume[1], CONTENT[1])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_forked_worker_does_not_remove_the_unpacked_file(packed, scratch):
    volume = read_volume(packed, scratch_dir=scratch)
    worker = multiprocessing.get_context("fork").Process(target=volume.close)
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    np.testing.assert_array_equal(volume[1], CONTENT[1])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-12], lambda raw: raw[:2000] + bytes(9) + raw[2009:]])
def test_damaged_compressed_file_is_an_input_error_and_leaves_nothing(path, scratch, pack, damage):
    noise = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    (path.parent / "bad.mrc.gz").write_bytes(damage(pack(path.read_bytes() + noise)))
    with pytest.raises(InputError, match="damaged or cut off"):
        read_volume(path.parent / "bad.mrc.gz", scratch_dir=scratch)
    assert list(scratch.iterdir()) == []


def test_compressed_file_of_something_else_is_refused_and_leaves_nothing(tmp_path, scratch):
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress(b"not numbers " * 200))
    with pytest.raises(InputError, match=r"suffix \.gz"):
        read_volume(tmp_path / "notes.txt.gz", scratch_dir=scratch)
    (tmp_path / "notes.mrc.gz").write_bytes(gzip.compress(b"not numbers " * 200))
    with pytest.raises(InputError, match="not an MRC file"):
        read_volume(tmp_path / "notes.mrc.gz", scratch_dir=scratch)
    assert list(scratch.iterdir()) == []


def test_full_scratch_disk_is_an_output_error_and_leaves_nothing(packed, scratch, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("etsam.volume.compressed.write_all", full)
    with pytest.raises(OutputError, match="No space left on device; set TMPDIR"):
        read_volume(packed, scratch_dir=scratch)
    assert list(scratch.iterdir()) == []


def test_missing_scratch_folder_is_an_output_error(packed, tmp_path):
    with pytest.raises(OutputError, match="no place to unpack"):
        read_volume(packed, scratch_dir=tmp_path / "none")


def test_missing_file_suggests_similar_names(path):
    with pytest.raises(InputError, match=r"no such file; did you mean tomo\.mrc\?"):
        read_volume(path.with_name("tomo.rec"))
    with pytest.raises(InputError, match="no such file; check the path"):
        read_volume(path.with_name("quite_another"))


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*absent"):
        read_volume(tmp_path / "absent" / "tomo.mrc")


def test_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder; name one tomogram"):
        read_volume(tmp_path)


@pytest.mark.parametrize("name", ["tomo.zarr", "tomo"])
def test_a_folder_that_only_looks_like_zarr_is_refused(tmp_path, name):
    pytest.importorskip("zarr")
    (tmp_path / name).mkdir()
    (tmp_path / name / ".zattrs").write_text("{}")
    with pytest.raises(InputError, match="no Zarr metadata in it"):
        read_volume(tmp_path / name)


def test_dangling_link_is_refused(tmp_path):
    (tmp_path / "tomo.mrc").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="link to nothing"):
        read_volume(tmp_path / "tomo.mrc")


@pytest.mark.parametrize("name", ["m.tif", "m.hdf", "m.em", "m.mrc.bz2", "m", "mrc", "m.mrc/m"])
def test_names_of_formats_that_are_not_written_are_refused(tmp_path, name):
    with pytest.raises(OutputError, match=r"\.mrc \.rec .*\.zarr"):
        volume_writer(tmp_path / name, (2, 3, 4), np.int8)


@pytest.mark.parametrize("name", ["m.mrc", "M.REC", "m.map.gz", "m.ccp4", "m.st", "m.ome.zarr", "m.zarr"])
def test_names_of_formats_that_are_written_have_a_writer(tmp_path, name):
    if name.endswith("zarr"):
        pytest.importorskip("zarr")
    assert volume_writer(tmp_path / name, (2, 3, 4), np.int8).path == tmp_path / name


def test_unknown_format_lists_the_allowed_suffixes(tmp_path):
    (tmp_path / "tomo.tif").write_bytes(b"II*\0" + bytes(2000))
    with pytest.raises(InputError, match=r"suffix \.tif.*\.mrc, \.rec, \.map"):
        read_volume(tmp_path / "tomo.tif")


def test_missing_permission_is_an_input_error(path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)  # tests may run as root, who may read everything
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        read_volume(path)


def test_messages_are_one_line(path):
    for bad in (path.parent, path.with_name("x"), path.with_name("x.zarr")):
        with pytest.raises(InputError) as caught:
            read_volume(bad)
        assert "\n" not in str(caught.value)


MEMORY_SCRIPT = """
import sys, numpy as np, mrcfile
from etsam.volume import MrcWriter, read_volume

def peak_mib():  # of this process image; ru_maxrss would start with that of the parent
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

path, out = sys.argv[1:]
volume = read_volume(path)
with MrcWriter(out, volume.shape, np.int8, like=volume) as writer:
    for z in range(3):
        writer[z] = volume[z] > 0
    few = peak_mib()
    for z in range(3, len(volume)):
        writer[z] = volume[z] > 0
streamed = peak_mib()
mapped = np.memmap(path, dtype=np.float32, mode="r", offset=1024)
mapped.sum()
print(streamed - few, peak_mib() - few)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")
def test_memory_does_not_grow_with_the_slices_read_and_written(tmp_path):
    with mrcfile.new_mmap(tmp_path / "large.mrc", shape=(200, 256, 1024), mrc_mode=2) as mrc:  # 200 MiB, sparse
        mrc.voxel_size = 10.0
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path / "large.mrc"), str(tmp_path / "out.mrc")]
    root = Path(__file__).parents[1]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    streamed, mapped = map(float, output.split())
    assert streamed < 5  # MiB
    assert mapped > 150  # the measurement does see what a memory map would cost
