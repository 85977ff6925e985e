"""Manifests are read completely or refused with all their faults, in one line."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from etsam.data import measured
from etsam.data.checks import check_samples
from etsam.data.manifest import Sample, read_manifest, write_manifest
from etsam.errors import InputError, OutputError
from etsam.volume import MrcWriter

SHAPE = (6, 20, 28)
HEADER = "dataset_id,run_id,split,tomogram,target_mask"


def write(path, array, voxel_size=10.0):
    with MrcWriter(path, array.shape, array.dtype, voxel_size_angstrom=(voxel_size,) * 3) as writer:
        for z, plane in enumerate(array):
            writer[z] = plane
    return path


def make_sample(folder, name="a", split="train", shape=SHAPE, seed=0):
    """Noise with a dark vertical sheet of membrane, three voxels thick, as two files."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.int8)
    mask[:, :, shape[2] // 2 : shape[2] // 2 + 3] = 1
    grey = (rng.normal(100, 10, shape) - 40 * mask).astype(np.float32)
    return Sample(
        "set", name, split, write(folder / f"{name}.mrc", grey), write(folder / f"{name}_mask.mrc", mask), 10.0, shape
    )


@pytest.fixture
def good(tmp_path):
    return [make_sample(tmp_path, "a", seed=1), make_sample(tmp_path, "b", "val", (5, 18, 22), seed=2)]


def with_mask(sample, array, voxel_size=10.0):
    folder = sample.target_mask.parent
    path = folder / f"other{len(list(folder.iterdir()))}_mask.mrc"
    return replace(sample, target_mask=write(path, array, voxel_size))


def manifest(folder, *lines):
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_what_is_written_is_read_again(tmp_path, good):
    samples = [replace(good[0], extra=(("snr", "0.75"),)), replace(good[1], shape=None, extra=(("snr", ""),))]
    write_manifest(tmp_path / "m.csv", samples)
    assert read_manifest(tmp_path / "m.csv") == samples


def test_files_are_named_relative_to_the_manifest(tmp_path, good):
    write_manifest(tmp_path / "m.csv", good)
    assert "set,a,train,a.mrc,a_mask.mrc,10.0" in (tmp_path / "m.csv").read_text()


def test_relative_names_start_from_the_root_if_one_is_given(tmp_path):
    path = manifest(tmp_path, HEADER, "d,r,train,x/t.mrc,/else/m.mrc")
    (sample,) = read_manifest(path, root="/data")
    assert [str(sample.tomogram), str(sample.target_mask)] == ["/data/x/t.mrc", "/else/m.mrc"]


def test_the_columns_of_the_polnet_manifest_are_understood(tmp_path):
    row = 'polnet_sim,polnet_sim_01,train,a.mrc,b.mrc,10.0,"(100, 200, 210)",0.75,4100'
    (sample,) = read_manifest(manifest(tmp_path, f"{HEADER},voxel_size,shape,snr,seed", row))
    assert (sample.voxel_size_angstrom, sample.shape) == (10.0, (100, 200, 210))
    assert sample.extra == (("snr", "0.75"), ("seed", "4100"))
    assert sample.name == "polnet_sim/polnet_sim_01"


def test_a_manifest_saved_by_a_spreadsheet_with_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(("\ufeff" + HEADER + "\r\nd,r,val,t.mrc,m.mrc\r\n").encode())
    assert read_manifest(path)[0].dataset_id == "d"


def test_missing_columns_are_listed(tmp_path):
    with pytest.raises(InputError, match=r"lacks the columns dataset_id, target_mask; it has run_id, split, tomogram"):
        read_manifest(manifest(tmp_path, "run_id,split,tomogram", "a,train,t.mrc"))


def test_all_malformed_rows_are_named_in_one_line(tmp_path):
    rows = ["d,,train,t.mrc,,10,", "d,b,train,t.mrc,m.mrc,ten,", 'd,c,train,t.mrc,m.mrc,10,"(1, 2)"']
    with pytest.raises(InputError) as error:
        read_manifest(manifest(tmp_path, f"{HEADER},voxel_size,shape", *rows))
    for part in ("line 2: no value for run_id, target_mask", "line 3: voxel_size 'ten'", "line 4: shape '(1, 2)'"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "found"), [(b"", "lacks the columns"), (b"\xff\xfe\x00", "no manifest")])
def test_what_is_no_manifest_is_refused(tmp_path, content, found):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(InputError, match=found):
        read_manifest(tmp_path / "m.csv")


def test_a_missing_manifest_and_one_without_rows_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(InputError, match="lists no tomogram"):
        read_manifest(manifest(tmp_path, HEADER))


def test_an_existing_manifest_is_not_overwritten(tmp_path, good):
    path = manifest(tmp_path, HEADER)
    with pytest.raises(OutputError, match="exists already"):
        write_manifest(path, good)


def test_good_samples_pass(good):
    check_samples(good, clip_slices=6, axes=("z", "y", "x"))


def faults(samples, **settings):
    with pytest.raises(InputError) as error:
        check_samples(samples, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def planted(tmp_path, good):
    """Name -> (samples with one fault, what the message has to say)."""
    train, val = good
    mask = np.zeros(SHAPE, np.uint16)
    mask[2, 3, 4] = 1
    labels = mask.copy()
    labels[0, 0, :5] = 7
    (tmp_path / "text.mrc").write_text("no volume")
    (tmp_path / "link.mrc").symlink_to(train.tomogram)
    shutil.copy(train.tomogram, tmp_path / "copy.mrc")
    half = tmp_path / "half.mrc"
    half.write_bytes(train.target_mask.read_bytes()[:-100])
    return {
        "missing": ([replace(train, tomogram=tmp_path / "gone.mrc"), val], "gone.mrc: no such file"),
        "unreadable": ([replace(train, tomogram=tmp_path / "text.mrc"), val], "text.mrc: not an MRC file"),
        "cut": ([replace(train, target_mask=half), val], "half.mrc"),
        "shape": ([with_mask(train, mask[:, 1:]), val], "mask of shape (6, 19, 28), tomogram of (6, 20, 28)"),
        "stated": ([replace(train, shape=(6, 20, 29)), val], "but the manifest says (6, 20, 29)"),
        "empty": ([with_mask(train, mask * 0), val], "mask empty"),
        "ignored": ([with_mask(train, mask * 255), val], "1 voxels are 255 or -1"),
        "labels": ([with_mask(train, labels), val], "mask not binary: 5 voxels such as 7"),
        "no train": ([val], "no train split (splits found: val)"),
        "no val": ([train], "no val split (splits found: train)"),
        "same file": (
            [train, replace(train, split="val", run_id="c", tomogram=tmp_path / "link.mrc")],
            "the same file",
        ),
        "copy": ([train, replace(train, split="val", run_id="c", tomogram=tmp_path / "copy.mrc")], "the same content"),
        "short": ([train, val], "a clip of 7 slices is longer than the tomogram, which has 6 along z"),
        "voxels": ([with_mask(train, mask, 10.2), val], "voxel size 10 x 10 x 10 Å in the tomogram, 10.2 x"),
    }


KINDS = [
    *("missing", "unreadable", "cut", "shape", "stated", "empty", "ignored", "labels", "no train", "no val"),
    *("same file", "copy", "short", "voxels"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_planted_fault_is_found_and_named(tmp_path, good, kind):
    samples, expected = planted(tmp_path, good)[kind]
    message = faults(samples, clip_slices=7 if kind == "short" else 6)
    assert message.startswith("1 fault in the training data: ")
    assert expected in message
    assert "split" in message or samples[0].name in message


def test_every_kind_of_fault_is_tested(tmp_path, good):
    assert sorted(planted(tmp_path, good)) == sorted(KINDS)


def test_all_faults_come_together(tmp_path, good):
    cases = planted(tmp_path, good)
    kinds = ["missing", "shape", "empty", "labels", "voxels"]
    message = faults([cases[kind][0][0] for kind in kinds], clip_slices=7)
    assert all(cases[kind][1] in message for kind in [*kinds, "short"])
    assert "no val split" in message


def test_a_difference_of_voxel_sizes_below_one_per_cent_passes(good):
    train, val = good
    mask = np.ones(SHAPE, np.int8)
    check_samples([with_mask(train, mask, 10.09), val])
    check_samples([with_mask(train, mask, 0.0), val])  # the header does not say


def test_one_tomogram_twice_in_the_same_split_is_no_fault(good):
    check_samples([*good, replace(good[0], run_id="again")])


def test_clips_longer_than_a_validation_tomogram_are_no_fault(good):
    check_samples(good, clip_slices=6)  # the validation tomogram has five slices


def test_a_mask_is_read_once_and_again_when_it_changes(tmp_path, good, monkeypatch):
    reads = []
    summarize = measured.summarize
    monkeypatch.setattr(measured, "summarize", lambda mask: reads.append(mask.path) or summarize(mask))
    check_samples(good)
    check_samples(good)
    assert reads == [sample.target_mask for sample in good]
    good[0].target_mask.unlink()
    changed = replace(good[0], target_mask=write(good[0].target_mask, np.zeros(SHAPE, np.uint16)))
    assert "mask empty" in faults([changed, good[1]])


def test_what_was_found_in_masks_is_kept_for_other_processes(tmp_path, good, monkeypatch):
    check_samples(good, cache_folder=tmp_path / "cache")
    measured._summaries.clear()
    monkeypatch.setattr(measured, "summarize", None)  # would fail if it were called
    check_samples(good, cache_folder=tmp_path / "cache")


def test_a_damaged_cache_is_measured_again(tmp_path, good):
    check_samples(good, cache_folder=tmp_path / "cache")
    measured._summaries.clear()
    for stored in (tmp_path / "cache").iterdir():
        stored.write_bytes(b"PK\x03\x04 torn")
    check_samples(good, cache_folder=tmp_path / "cache")


def test_labels_are_membrane_background_and_ignored():
    values = np.array([[0, 1, -1, 3]], np.int8), np.array([[0, 1, 255, np.nan]], np.float32)
    for plane in values:
        found, odd = measured.labels(plane)
        np.testing.assert_array_equal(found, [[0, 1, 255, 255]])
        np.testing.assert_array_equal(odd, [[False, False, False, True]])


def test_a_tomogram_without_membrane_is_taken_if_the_manifest_says_so(tmp_path, good):
    train, val = good
    empty = with_mask(make_sample(tmp_path, "c", seed=3), np.zeros(SHAPE, np.int8))
    said = replace(empty, extra=(("without_membrane", "yes"),))
    check_samples([train, val, said])
    with pytest.raises(InputError, match="mask empty"):
        check_samples([train, val, empty])
    with pytest.raises(InputError, match="the manifest says without_membrane"):
        check_samples([replace(train, extra=said.extra), val])


@pytest.mark.parametrize("separator", [";", "\t"])
def test_what_spreadsheets_write_is_read_whatever_separates_and_without_rows_left_over(tmp_path, separator):
    plain = f"{HEADER}\nset,a,train,t.mrc,m.mrc\nset,b,val,u.mrc,n.mrc\n"
    (tmp_path / "plain.csv").write_text(plain)
    (tmp_path / "sheet.csv").write_text((plain + ",,,,\n , ,,,\n").replace(",", separator))
    assert read_manifest(tmp_path / "sheet.csv") == read_manifest(tmp_path / "plain.csv")


def test_a_manifest_of_empty_rows_lists_nothing(tmp_path):
    (tmp_path / "m.csv").write_text(f"{HEADER}\n,,,,\n")
    with pytest.raises(InputError, match="no tomogram"):
        read_manifest(tmp_path / "m.csv")
