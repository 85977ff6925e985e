"""Writing: what other programs will read, and that nothing half written is left."""

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam import __version__
from etsam.errors import OutputError
from etsam.volume import MrcWriter, Volume, atomic_path, read_volume, volume_writer
from etsam.volume.atomic import atomic_folder

SHAPE = (3, 4, 5)
DATA = Path(__file__).parent / "data" / "mrc_dialects"


def content(dtype=np.float32):
    return (np.random.default_rng(1).normal(30, 20, SHAPE)).clip(0, 100).astype(dtype)


def write(path, data, dtype=None, order=None, **options):
    with MrcWriter(path, data.shape, dtype or data.dtype, **options) as writer:
        for z in order or range(len(data)):
            writer[z] = data[z]
    return path


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    ("dtype", "mode"), [(np.int8, 0), (np.int16, 1), (np.float32, 2), (np.uint16, 6), (np.float16, 12)]
)
def test_every_mode_is_valid_and_read_back_by_mrcfile(tmp_path, dtype, mode):
    path = write(tmp_path / "a.mrc", content(dtype), voxel_size_angstrom=(4.0, 3.0, 2.0))
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert (mrc.header.mode, mrc.header.ispg, mrc.header.mz) == (mode, 1, 3)
        assert mrc.is_volume()
        assert mrc.voxel_size.tolist() == (2.0, 3.0, 4.0)
        np.testing.assert_array_equal(mrc.data, content(dtype))


def test_what_is_written_is_read_back_without_oddities(tmp_path):
    volume = read_volume(write(tmp_path / "a.mrc", content(), voxel_size_angstrom=(4.0, 3.0, 2.0)))
    np.testing.assert_array_equal(volume.read(), content())
    assert volume.voxel_size_angstrom == (4.0, 3.0, 2.0)
    assert volume.header.header_warnings == ()


def test_statistics_are_those_of_the_data(tmp_path):
    with mrcfile.open(write(tmp_path / "a.mrc", content())) as mrc:
        data = content().astype(np.float64)
        found = [mrc.header.dmin, mrc.header.dmax, mrc.header.dmean, mrc.header.rms]
        np.testing.assert_allclose(found, [data.min(), data.max(), data.mean(), data.std()], rtol=1e-6)


def test_statistics_survive_a_large_offset(tmp_path):
    data = np.resize(np.array([59999, 60001], dtype=np.uint16), SHAPE)
    with mrcfile.open(write(tmp_path / "a.mrc", data)) as mrc:
        assert (mrc.header.dmean, mrc.header.rms) == (60000.0, 1.0)


def test_slices_in_any_order_and_twice_count_as_written_last(tmp_path):
    with MrcWriter(tmp_path / "a.mrc", SHAPE, np.float32) as writer:
        writer[2] = np.full(SHAPE[1:], 1e6)
        for z in (1, -1, 0):
            writer[z] = content()[z]
    with mrcfile.open(tmp_path / "a.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data, content())
        np.testing.assert_allclose([mrc.header.dmax, mrc.header.rms], [content().max(), content().std()], rtol=1e-6)


def test_values_that_are_no_numbers_do_not_count_in_the_statistics(tmp_path):
    data = content()
    data[0, 0, 0], data[1] = np.inf, np.nan
    with mrcfile.open(write(tmp_path / "a.mrc", data)) as mrc:
        finite = data[np.isfinite(data)]
        np.testing.assert_allclose([mrc.header.dmax, mrc.header.dmean], [finite.max(), finite.mean()], rtol=1e-6)


def test_statistics_of_no_numbers_are_marked_undetermined(tmp_path):
    header = read_volume(write(tmp_path / "a.mrc", np.full(SHAPE, np.nan, np.float32))).header
    assert header.mode == 2
    words = np.frombuffer((tmp_path / "a.mrc").read_bytes()[76:88], dtype=np.float32)
    np.testing.assert_array_equal(words, [0, -1, -2])  # MRC2014: dmax < dmin, dmean < both


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_masks_are_written_as_int8(tmp_path, dtype):
    mask = (content() > 30).astype(dtype)
    with mrcfile.open(write(tmp_path / "a.mrc", mask, dtype=np.int8)) as mrc:
        assert mrc.data.dtype == np.int8
        np.testing.assert_array_equal(mrc.data, mask)


def test_header_is_carried_over_from_the_input(tmp_path):
    like = read_volume(DATA / "EMD-3197.map")
    with mrcfile.open(write(tmp_path / "a.mrc", like.read() > 0, dtype=np.int8, like=like)) as mrc:
        assert mrc.voxel_size.tolist() == pytest.approx((11.4, 11.4, 11.4))
        assert mrc.nstart.tolist() == (-2, 0, 0)
        assert mrc.get_labels()[0].rstrip() == "::::EMDATABANK.org::::EMD-3197::::"
        assert mrc.get_labels()[1].startswith(f"etsam {__version__} 20")


def test_origin_is_carried_over_from_the_input(tmp_path):
    with mrcfile.new(tmp_path / "in.mrc", data=content()) as mrc:
        mrc.header.origin = (1.0, 2.0, 3.0)
    write(tmp_path / "out.mrc", content(), like=read_volume(tmp_path / "in.mrc"))
    assert read_volume(tmp_path / "out.mrc").origin_angstrom == (3.0, 2.0, 1.0)


def test_given_voxel_size_replaces_that_of_the_input(tmp_path):
    like = Volume.from_array(content(), voxel_size_angstrom=(10.0, 10.0, 10.0))
    path = write(tmp_path / "a.mrc", content(), like=like, voxel_size_angstrom=(5.0, 5.0, 5.0))
    assert read_volume(path).voxel_size_angstrom == (5.0, 5.0, 5.0)


def test_unknown_voxel_size_is_written_as_zero(tmp_path):
    with mrcfile.open(write(tmp_path / "a.mrc", content(), like=Volume.from_array(content()))) as mrc:
        assert mrc.voxel_size.tolist() == (0.0, 0.0, 0.0)


def test_own_label_comes_last_and_ten_labels_at_most(tmp_path):
    like = read_volume(DATA / "imod_old_bytes_no_map_id.mrc")
    assert len(like.header.labels) == 10
    path = write(tmp_path / "a.mrc", content(), like=like, label="mask of Å membranes " + 100 * "x")
    labels = read_volume(path).header.labels
    assert labels[:9] == like.header.labels[:9]
    assert labels[9] == "mask of ? membranes " + 60 * "x"


def test_missing_slices_are_named_and_nothing_is_left(tmp_path):
    with pytest.raises(RuntimeError, match="2 of 3 slices never written: 0, 2"):
        write(tmp_path / "a.mrc", content(), order=[1])
    assert names(tmp_path) == []


def test_exception_in_the_block_leaves_nothing(tmp_path):
    def fail():
        with MrcWriter(tmp_path / "a.mrc", SHAPE, np.float32) as writer:
            writer[0] = content()[0]
            assert [name.endswith(".part") and name.startswith(".a.mrc") for name in names(tmp_path)] == [True]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == []


@pytest.mark.parametrize("slices_before", [0, 2, 3])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, slices_before):
    from etsam.volume import mrc_writer

    calls = []

    def write_all(file, data):
        calls.append(data)
        if len(calls) > slices_before:  # the fourth call writes the header
            file.write(data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        file.write(data)

    monkeypatch.setattr(mrc_writer, "write_all", write_all)
    with pytest.raises(OutputError, match=r"a\.mrc: disk full \(\d+ bytes free in "):
        write(tmp_path / "a.mrc", content())
    assert names(tmp_path) == []


def test_too_little_space_is_noticed_before_writing(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="1264 bytes needed, 100 free in"):
        write(tmp_path / "a.mrc", content())
    assert names(tmp_path) == []


def test_forbidden_folder_is_one_line(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(OutputError, match="no permission to write in"):
        write(tmp_path / "a.mrc", content())


def test_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="does not exist; create it"):
        write(tmp_path / "none" / "a.mrc", content())


def test_existing_file_is_kept_unless_told_otherwise(tmp_path):
    (tmp_path / "a.mrc").write_text("precious")
    with pytest.raises(OutputError, match="exists already; choose another name"):
        write(tmp_path / "a.mrc", content())
    assert (tmp_path / "a.mrc").read_text() == "precious"
    write(tmp_path / "a.mrc", content(), overwrite=True)
    np.testing.assert_array_equal(mrcfile.read(tmp_path / "a.mrc"), content())
    assert names(tmp_path) == ["a.mrc"]


def test_failed_overwriting_keeps_the_old_file(tmp_path):
    (tmp_path / "a.mrc").write_text("precious")
    with pytest.raises(RuntimeError, match="never written"):
        write(tmp_path / "a.mrc", content(), order=[0], overwrite=True)
    assert (tmp_path / "a.mrc").read_text() == "precious"
    assert names(tmp_path) == ["a.mrc"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch, hard_links):
    def unsupported(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not hard_links:
        monkeypatch.setattr("os.link", unsupported)

    def race():
        with atomic_path(tmp_path / "a.json"):
            (tmp_path / "a.json").write_text("theirs")

    with pytest.raises(OutputError, match="exists already"):
        race()
    assert (tmp_path / "a.json").read_text() == "theirs"
    assert names(tmp_path) == ["a.json"]


def test_file_system_without_hard_links_is_written_to(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", unsupported)
    with atomic_path(tmp_path / "a.json") as part:
        part.write_text(json.dumps([1]))
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    assert names(tmp_path) == ["a.json"]


_KILLED = """
import os, signal, sys
from etsam.volume.atomic import atomic_folder, atomic_path
lend = atomic_path(sys.argv[1]) if sys.argv[2] == "file" else atomic_folder(sys.argv[1], replaceable=lambda _: False)
with lend as part:
    (part.write_text if sys.argv[2] == "file" else (part / "0").write_text)("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_half_written_goes_when_the_output_is_written_again(tmp_path, kind):
    target = tmp_path / "a"
    assert subprocess.run([sys.executable, "-c", _KILLED, target, kind]).returncode == -signal.SIGKILL
    assert [name.endswith(".part") for name in names(tmp_path)] == [True]
    with atomic_path(target) if kind == "file" else atomic_folder(target, replaceable=lambda _: False) as part:
        if kind == "file":
            part.write_text("whole")
    assert names(tmp_path) == ["a"]


_KILLED_PACKING = """
import os, signal, sys
import numpy as np
from etsam.volume import volume_writer
with volume_writer(sys.argv[1], (2, 3, 4), np.int8) as writer:
    writer[0] = np.ones((3, 4), np.int8)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_of_a_packed_volume_goes_with_it(tmp_path):
    target = tmp_path / "a.mrc.gz"
    assert subprocess.run([sys.executable, "-c", _KILLED_PACKING, target]).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    with volume_writer(target, (2, 3, 4), np.int8) as writer:
        for z in range(2):
            writer[z] = np.full((3, 4), z, np.int8)
    assert names(tmp_path) == ["a.mrc.gz"]
    np.testing.assert_array_equal(read_volume(target).read()[:, 0, 0], [0, 1])


def test_what_another_is_writing_is_left_to_it(tmp_path):
    with atomic_path(tmp_path / "a", overwrite=True) as first:
        first.write_text("first")
        with atomic_path(tmp_path / "a", overwrite=True) as second:
            second.write_text("second")
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first"


def test_output_has_the_permissions_of_an_ordinary_file(tmp_path):
    write(tmp_path / "a.mrc", content())
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "a.mrc").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_errors_of_other_files_are_left_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.json"):
        (tmp_path / "another").read_text()
    assert names(tmp_path) == []


def test_folder_is_not_overwritten(tmp_path):
    with pytest.raises(OutputError, match="is a folder"):
        write(tmp_path, content(), overwrite=True)


def test_very_long_names_are_written(tmp_path):
    assert write(tmp_path / ("ä" * 120 + ".mrc"), content()).exists()


@pytest.mark.parametrize(
    ("dtype", "plane", "message"),
    [
        (np.int8, np.full((4, 5), 200, np.uint8), "do not fit into int8"),
        (np.int8, np.zeros((4, 5), np.float32), "convert it first"),
        (np.float32, np.zeros((4, 5), complex), "convert it first"),
        (np.float32, np.zeros((5, 4), np.float32), r"slices of \(4, 5\)"),
    ],
)
def test_slices_that_do_not_fit_are_refused(tmp_path, dtype, plane, message):
    with pytest.raises(ValueError, match=message), MrcWriter(tmp_path / "a.mrc", SHAPE, dtype) as writer:
        writer[0] = plane
    assert names(tmp_path) == []


@pytest.mark.parametrize("z", [3, -4])
def test_index_out_of_range_is_an_index_error(tmp_path, z):
    with pytest.raises(IndexError), MrcWriter(tmp_path / "a.mrc", SHAPE, np.float32) as writer:
        writer[z] = content()[0]


def test_values_too_large_for_float16_are_refused(tmp_path):
    with pytest.raises(OutputError, match="beyond 65504 do not fit into float16"):
        write(tmp_path / "a.mrc", content() + 65500, dtype=np.float16)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float64, np.complex64])
def test_other_dtypes_are_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match="MRC files hold int8, int16, float32, uint16, float16"):
        MrcWriter(tmp_path / "a.mrc", SHAPE, dtype)


def test_writing_outside_of_the_block_is_refused(tmp_path):
    with pytest.raises(ValueError, match="with statement"):
        MrcWriter(tmp_path / "a.mrc", SHAPE, np.float32)[0] = content()[0]
    assert names(tmp_path) == []
