"""MRC files as programs really write them: each test is one sentence about how we read them."""

import logging
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from mrcfile.dtypes import HEADER_DTYPE

from etsam.errors import InputError
from etsam.volume import read_volume
from etsam.volume.mrc_header import looks_like_mrc, parse_header

DATA = Path(__file__).parent / "data" / "mrc_dialects"
SHAPE = (3, 4, 5)  # Z, Y, X
STAMPS = {"<": (0x44, 0x44, 0, 0), ">": (0x11, 0x11, 0, 0), "": (0, 0, 0, 0)}
MODES = [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")]


def counting(dtype="f4", shape=SHAPE):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def write_mrc(path, data, order="<", mode=2, stamp=None, map_id=b"MAP ", extended=b"", voxel=10.0, imod=None, **words):
    """Write a file byte by byte; `words` set any header word, as (x, y, z) where it has three parts."""
    header = np.zeros((), dtype=HEADER_DTYPE.newbyteorder(order))
    header["nz"], header["ny"], header["nx"] = header["mz"], header["my"], header["mx"] = data.shape
    header["cella"] = tuple(voxel * side for side in data.shape[::-1])
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["mode"], header["nsymbt"], header["ispg"], header["map"] = mode, len(extended), 1, map_id
    header["machst"] = STAMPS[order if stamp is None else stamp]
    for word, value in words.items():
        header[word] = value
    raw = bytearray(header.tobytes())
    if imod is not None:
        raw[152:160] = np.array([1146047817, imod], dtype=f"{order}i4").tobytes()
    path.write_bytes(bytes(raw) + extended + data.astype(data.dtype.newbyteorder(order)).tobytes())
    return path


def header_warnings(path):
    return read_volume(path).header.header_warnings


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("mode", "dtype"), MODES)
def test_every_mode_is_read_in_both_byte_orders(tmp_path, mode, dtype, order):
    path = write_mrc(tmp_path / "a.mrc", counting(dtype), order, mode)
    volume = read_volume(path)
    assert volume.dtype == np.dtype(dtype)
    assert volume[1].dtype.isnative
    np.testing.assert_array_equal(volume[1], counting(dtype)[1])
    np.testing.assert_array_equal(volume.read(), mrcfile.read(path))
    assert volume.header.header_warnings == ()


def test_big_endian_file_under_little_endian_stamp_is_read_as_big_endian(tmp_path):
    path = write_mrc(tmp_path / "a.mrc", counting("i2"), ">", mode=1, stamp="<")
    np.testing.assert_array_equal(read_volume(path).read(), counting("i2"))
    assert header_warnings(path) == ("big-endian file with a little-endian machine stamp",)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sides_that_make_sense_in_both_orders_are_decided_by_the_size_of_the_file(tmp_path, order):
    data = np.ones((256, 256, 2), dtype=np.int8)  # 256 swapped is 65536; mode 0 is 0 either way
    path = write_mrc(tmp_path / "a.mrc", data, order, mode=0, stamp="<" if order == ">" else ">")
    header = np.frombuffer(path.read_bytes()[:1024], dtype=HEADER_DTYPE.newbyteorder(order))
    assert header["nz"] == 256
    assert read_volume(path).shape == (256, 256, 2)


@pytest.mark.parametrize("order", ["<", ">"])
def test_stamp_decides_where_both_orders_fit(tmp_path, order):
    raw = bytearray(write_mrc(tmp_path / "a.mrc", np.zeros((256, 256, 256), "i1"), order, mode=0).read_bytes()[:1024])
    assert parse_header(bytes(raw), file_size=2**60, name="a").shape == (256, 256, 256)  # not 65536


def test_blank_map_id_and_zero_stamp_are_accepted(tmp_path):
    path = write_mrc(tmp_path / "a.mrc", counting(), map_id=b"    ", stamp="")
    np.testing.assert_array_equal(read_volume(path)[2], counting()[2])
    assert header_warnings(path) == ("no MAP id", "no valid machine stamp")


def test_motioncor_map_id_ending_in_nul_is_no_oddity(tmp_path):
    assert header_warnings(write_mrc(tmp_path / "a.mrc", counting(), map_id=b"MAP\0")) == ()


def test_signed_bytes_stay_signed(tmp_path):
    data = np.array([-128, -1, 0, 1, 127, 5], dtype=np.int8).reshape(3, 2, 1)
    volume = read_volume(write_mrc(tmp_path / "a.mrc", data, mode=0, dmin=-128, dmax=127))
    assert volume.dtype == np.int8
    np.testing.assert_array_equal(volume.read(), data)


def test_bytes_are_unsigned_if_the_header_maximum_is_above_127(tmp_path):
    data = np.array([0, 100, 127, 128, 254, 255], dtype=np.uint8).reshape(3, 2, 1)
    volume = read_volume(write_mrc(tmp_path / "a.mrc", data, mode=0, dmin=0, dmax=255))
    assert volume.dtype == np.uint8
    np.testing.assert_array_equal(volume[1], [[127], [128]])
    assert volume.header.header_warnings == ("mode 0 read as unsigned bytes",)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("flags", "dmin", "dtype"), [(0, 0, np.uint8), (1, 0, np.int8), (0, -5, np.int8)])
def test_imod_flag_says_whether_bytes_are_signed_unless_the_minimum_is_negative(tmp_path, flags, dmin, dtype, order):
    path = write_mrc(tmp_path / "a.mrc", counting("i1"), order, mode=0, imod=flags, dmin=dmin, dmax=60)
    assert read_volume(path).dtype == dtype


@pytest.mark.parametrize("mode", [3, 4])
def test_fourier_transforms_are_refused(tmp_path, mode):
    path = write_mrc(tmp_path / "a.mrc", counting("c8"), mode=mode)
    with pytest.raises(InputError, match=r"Fourier transform; take the real-space tomogram"):
        read_volume(path)


@pytest.mark.parametrize(("mode", "found"), [(101, "4-bit numbers"), (16, "RGB"), (7, "unknown mode 7")])
def test_other_modes_are_refused_with_the_list_of_allowed_ones(tmp_path, mode, found):
    path = write_mrc(tmp_path / "a.mrc", counting(), mode=mode)
    with pytest.raises(
        InputError, match=rf"{found}.*0 \(int8\), 1 \(int16\), 2 \(float32\), 6 \(uint16\), 12 \(float16"
    ):
        read_volume(path)


def test_imod_flag_for_two_numbers_in_a_byte_is_refused(tmp_path):
    with pytest.raises(InputError, match="4-bit numbers"):
        read_volume(write_mrc(tmp_path / "a.mrc", counting("i1"), mode=0, imod=16))


def test_stack_of_volumes_is_refused(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(np.zeros((2, 3, 4, 5), dtype=np.float32))
    with pytest.raises(InputError, match="holds 2 volumes"):
        read_volume(tmp_path / "a.mrc")


def test_stack_of_one_volume_is_that_volume(tmp_path):
    assert read_volume(write_mrc(tmp_path / "a.mrc", counting(), ispg=401)).shape == SHAPE


def test_single_image_is_refused(tmp_path):
    with pytest.raises(InputError, match="2D image"):
        read_volume(write_mrc(tmp_path / "a.mrc", counting(shape=(1, 4, 5))))


@pytest.mark.parametrize("exttyp", [b"", b"FEI1", b"\xff\xfe\x00z"])
def test_extended_header_is_skipped_whatever_its_type(tmp_path, exttyp):
    path = write_mrc(tmp_path / "a.mrc", counting(), extended=bytes(range(251)) * 3, exttyp=exttyp)
    volume = read_volume(path)
    assert volume.header.data_offset == 1024 + 753
    np.testing.assert_array_equal(volume[2], counting()[2])


def test_truncated_file_is_refused_with_both_sizes(tmp_path):
    path = write_mrc(tmp_path / "a.mrc", counting())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"truncated: 1264 bytes expected \(3 x 4 x 5 float32\), 1263 found"):
        read_volume(path)


def test_longer_file_is_read_and_noted(tmp_path):
    path = write_mrc(tmp_path / "a.mrc", counting())
    path.write_bytes(path.read_bytes() + b"junk")
    np.testing.assert_array_equal(read_volume(path)[2], counting()[2])
    assert header_warnings(path) == ("4 bytes more than the header says, ignored",)


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 2000, b"text, not numbers " * 100])
def test_what_is_no_mrc_file_is_refused(tmp_path, content):
    (tmp_path / "a.mrc").write_bytes(content)
    assert not looks_like_mrc(content)
    with pytest.raises(InputError, match="not an MRC file"):
        read_volume(tmp_path / "a.mrc")


def test_insane_extended_header_length_is_refused(tmp_path):
    with pytest.raises(InputError, match="not an MRC file"):
        read_volume(write_mrc(tmp_path / "a.mrc", counting(), nsymbt=-80))


def test_voxel_size_is_in_the_order_of_the_axes(tmp_path):
    path = write_mrc(tmp_path / "a.mrc", counting(), cella=(5 * 2.0, 4 * 3.0, 3 * 4.0))
    assert read_volume(path).voxel_size_angstrom == (4.0, 3.0, 2.0)
    with mrcfile.open(path) as mrc:
        assert mrc.voxel_size.tolist() == (2.0, 3.0, 4.0)


@pytest.mark.parametrize("voxel", [0.0, -10.0, np.nan, np.inf, 0.01, 5000.0])
def test_impossible_voxel_sizes_are_unknown(tmp_path, voxel):
    volume = read_volume(write_mrc(tmp_path / "a.mrc", counting(), voxel=voxel))
    assert volume.voxel_size_angstrom is None
    assert "impossible, taken as unknown" in volume.header.header_warnings[0]


def test_zero_intervals_make_the_voxel_size_unknown(tmp_path):
    assert read_volume(write_mrc(tmp_path / "a.mrc", counting(), mx=0, my=0, mz=0)).voxel_size_angstrom is None


def test_voxel_size_of_exactly_one_is_kept_but_doubted(tmp_path):
    volume = read_volume(write_mrc(tmp_path / "a.mrc", counting(), voxel=1.0))
    assert volume.voxel_size_angstrom == (1.0, 1.0, 1.0)
    assert volume.header.header_warnings == ("voxel size exactly 1 Å, which often means unknown",)


def test_mz_of_one_means_that_the_height_belongs_to_all_slices(tmp_path):
    volume = read_volume(write_mrc(tmp_path / "a.mrc", counting(), ispg=0, mz=1))
    assert volume.voxel_size_angstrom == (10.0, 10.0, 10.0)
    assert "mz is 1 for 3 slices" in volume.header.header_warnings[0]


def test_mz_of_one_with_the_height_of_one_voxel_is_believed(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(counting())
        mrc.set_image_stack()
        mrc.voxel_size = 10.0
        assert mrc.header.cella.z == 10.0
    assert read_volume(tmp_path / "a.mrc").voxel_size_angstrom == (10.0, 10.0, 10.0)


def test_absurd_voxel_height_is_replaced_if_the_number_of_slices_agrees_with_x(tmp_path):
    volume = read_volume(write_mrc(tmp_path / "a.mrc", counting(), mz=100000))
    assert volume.voxel_size_angstrom == (10.0, 10.0, 10.0)


PERMUTATIONS = [(1, 2, 3), (2, 1, 3), (1, 3, 2), (3, 1, 2), (2, 3, 1), (3, 2, 1)]


@pytest.mark.parametrize("axis_order", PERMUTATIONS)
def test_permuted_axes_are_presented_in_the_order_of_space(tmp_path, axis_order):
    space = counting("i2")  # (Z, Y, X)
    columns, rows, sections = (3 - axis for axis in axis_order)  # axis 1 is X, the last of (Z, Y, X)
    start = (7, 8, 9)  # z, y, x
    words = dict(zip(("mapc", "mapr", "maps"), axis_order, strict=True))
    words |= dict(mx=5, my=4, mz=3, cella=(5 * 2.0, 4 * 3.0, 3 * 4.0))
    words |= dict(nxstart=start[columns], nystart=start[rows], nzstart=start[sections])
    stored = np.ascontiguousarray(space.transpose(sections, rows, columns))
    volume = read_volume(write_mrc(tmp_path / "a.mrc", stored, mode=1, **words))
    assert volume.shape == volume.header.volume_shape == SHAPE
    assert volume.header.shape == stored.shape
    assert (volume.start, volume.voxel_size_angstrom) == (start, (4.0, 3.0, 2.0))
    np.testing.assert_array_equal(volume.read(), space)
    np.testing.assert_array_equal(np.stack(list(volume)), space)
    assert volume[1].flags.c_contiguous


@pytest.mark.parametrize("axis_order", [(0, 0, 0), (1, 1, 3), (3, 2, 4)])
def test_invalid_axes_are_taken_as_the_usual_ones(tmp_path, axis_order):
    words = dict(zip(("mapc", "mapr", "maps"), axis_order, strict=True))
    volume = read_volume(write_mrc(tmp_path / "a.mrc", counting(), **words))
    np.testing.assert_array_equal(volume.read(), counting())
    assert volume.header.axis_order == (1, 2, 3)
    assert "columns, rows, sections taken as X, Y, Z" in volume.header.header_warnings[0]


def test_origin_and_start_are_in_the_order_of_the_axes(tmp_path):
    path = write_mrc(tmp_path / "a.mrc", counting(), origin=(1.0, -2.0, 3.5), nxstart=-7, nystart=8, nzstart=9)
    volume = read_volume(path)
    assert volume.origin_angstrom == (3.5, -2.0, 1.0)
    assert volume.start == (9, 8, -7)


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30, 1e-40])
def test_impossible_origin_is_zero(tmp_path, junk):
    volume = read_volume(write_mrc(tmp_path / "a.mrc", counting(), origin=(1.0, junk, 3.0)))
    assert volume.origin_angstrom == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("nlabl", "expected"), [(1, ("first",)), (2, ("first", "second")), (-5, ("first", "second"))])
def test_labels_are_kept_up_to_their_number(tmp_path, nlabl, expected):
    labels = [b"first\0\x01", b"second  "] + [b""] * 8
    assert read_volume(write_mrc(tmp_path / "a.mrc", counting(), nlabl=nlabl, label=labels)).header.labels == expected


def test_all_oddities_of_a_file_are_one_line_of_warning(tmp_path, caplog):
    path = write_mrc(tmp_path / "a.mrc", counting(), map_id=b"junk", stamp="", voxel=0.0)
    read_volume(path)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"{path}: no MAP id; no valid machine stamp; voxel size 0 x 0 x 0 Å (x, y, z) is impossible, taken as unknown"
    )


@pytest.mark.parametrize("name", ["tomo.st", "tomo.ali", "TOMO.ST"])
def test_tilt_series_names_are_warned_about(tmp_path, caplog, name):
    read_volume(write_mrc(tmp_path / name, counting()))
    assert "looks like a tilt series" in caplog.text


# Real files; numbers from their headers (dmin, dmax, cella) and from tests/data/README.md


def test_old_imod_file_holds_unsigned_bytes():
    volume = read_volume(DATA / "imod_old_bytes_no_map_id.mrc")
    assert (volume.shape, volume.dtype) == ((78, 64, 32), np.uint8)
    assert (volume.read().min(), volume.read().max()) == (141, 163)
    np.testing.assert_allclose(volume.voxel_size_angstrom, 23.2, rtol=1e-4)
    assert volume.header.header_warnings == ("no MAP id", "no valid machine stamp", "mode 0 read as unsigned bytes")
    assert volume.header.labels[0].startswith("SerialEM: Digitized by Gatan Camera")


def test_portal_file_is_read_as_mrcfile_reads_it():
    volume = read_volume(DATA / "cdp_int8.rec")
    assert (volume.shape, volume.dtype) == ((10, 8, 6), np.int8)
    np.testing.assert_array_equal(volume.read(), mrcfile.read(DATA / "cdp_int8.rec"))
    np.testing.assert_allclose(volume.voxel_size_angstrom, 13.48, rtol=1e-6)


def test_file_without_voxel_size_is_read_with_unknown_voxel_size():
    volume = read_volume(DATA / "zero_voxel_size_float32.mrc")
    assert volume.voxel_size_angstrom is None
    np.testing.assert_array_equal(volume.read(), mrcfile.read(DATA / "zero_voxel_size_float32.mrc"))


@pytest.mark.parametrize("name", ["EMD-3197.map", "EMD-3197.map.bz2", "emd_3197.map.gz"])
def test_map_is_the_same_plain_and_compressed(name):
    with read_volume(DATA / name) as volume:
        np.testing.assert_array_equal(volume.read(), mrcfile.read(DATA / "EMD-3197.map"))
        assert volume.start == (0, 0, -2)
        assert volume.header.header_warnings == ()


IMAGE = np.random.default_rng(0).normal(120, 30, (9, 60, 70)).clip(0, 255).astype(np.uint8)


def test_imods_signed_bytes_stand_for_0_to_255(tmp_path):
    mask = (IMAGE > 150).astype(np.int16)
    for values in (mask, IMAGE.astype(np.int16)):
        stored = (values - 128).astype(np.int8)
        volume = read_volume(write_mrc(tmp_path / "a.mrc", stored, mode=0, imod=1, dmin=0, dmax=values.max()))
        assert volume.dtype == np.uint8
        np.testing.assert_array_equal(volume.read(), values)
        np.testing.assert_array_equal(volume[4], values[4])
        assert any("IMOD" in warning for warning in volume.header.header_warnings)


@pytest.mark.parametrize("one", [1, 255])
def test_a_mask_in_imods_bytes_is_0_and_1_though_its_minimum_was_counted_anew(tmp_path, one):
    mask = one * (IMAGE > 150).astype(np.int16)
    stored = (mask - 128).astype(np.int8)
    low, high = int(stored.min()), int(stored.max())
    volume = read_volume(write_mrc(tmp_path / "a.mrc", stored, mode=0, imod=1, dmin=low, dmax=high))
    np.testing.assert_array_equal(volume.read(), mask)


def test_plain_bytes_under_a_header_that_was_copied_from_imod_stay_as_they_are(tmp_path):
    mask = (IMAGE > 150).astype(np.int8)
    volume = read_volume(write_mrc(tmp_path / "a.mrc", mask, mode=0, imod=1, dmin=0, dmax=1))
    np.testing.assert_array_equal(volume.read(), mask)


def test_unsigned_bytes_that_nothing_marks_are_known_by_their_histogram(tmp_path):
    volume = read_volume(write_mrc(tmp_path / "a.mrc", IMAGE, mode=0))
    np.testing.assert_array_equal(volume.read(), IMAGE)
    assert any("unsigned" in warning for warning in volume.header.header_warnings)


@pytest.mark.parametrize("kind", ["noise", "saturated", "mask"])
def test_signed_bytes_that_nothing_marks_stay_signed(tmp_path, kind):
    centred = IMAGE.astype(np.int16) - 120
    values = {"noise": centred, "saturated": 5 * centred, "mask": -(centred > 40).astype(np.int16)}[kind]
    stored = values.clip(-128, 127).astype(np.int8)
    volume = read_volume(write_mrc(tmp_path / "a.mrc", stored, mode=0))
    assert volume.dtype == np.int8
    np.testing.assert_array_equal(volume.read(), stored)
