"""`etsam data check` finds whatever is wrong with the files of a manifest, names the file, and says what to do."""

import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest

from etsam.data.checks import examine
from etsam.data.manifest import Sample, write_manifest
from etsam.data.mask_fit import matching_axes, measure_pair
from etsam.volume import MrcWriter

SHAPE = (20, 24, 28)


def write(path, array, voxel_size=10.0):
    with MrcWriter(path, array.shape, array.dtype, voxel_size_angstrom=(voxel_size,) * 3, overwrite=True) as writer:
        for z, plane in enumerate(array):
            writer[z] = plane
    return path


def sphere(shape, centre, radius=6.0):
    """A shell, two voxels thick, int8."""
    z, y, x = np.ogrid[tuple(slice(side) for side in shape)]
    distance = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
    return (np.abs(distance - radius) < 1).astype(np.int8)


def grey_of(mask, seed, sign=-1):
    return (np.random.default_rng(seed).normal(100, 5, mask.shape) + 20 * sign * mask).astype(np.float32)


def make(folder, name, split, seed, shape=SHAPE, sign=-1):
    mask = sphere(shape, [side * (0.35 + 0.04 * seed) for side in shape])
    tomogram = write(folder / f"{name}.mrc", grey_of(mask, seed, sign))
    return Sample("set", name, split, tomogram, write(folder / f"{name}_mask.mrc", mask), 10.0, shape)


@pytest.fixture
def good(work):
    splits = {"a": "train", "b": "train", "c": "val", "d": "test"}
    return [make(work, name, split, seed) for seed, (name, split) in enumerate(splits.items())]


@pytest.fixture
def check(etsam, work):
    def call(samples, *flags):
        write_manifest(work / "manifest.csv", samples, overwrite=True)
        return etsam("data", "check", "manifest.csv", *flags)

    return call


def mask_array(sample):
    from etsam.volume import read_volume

    return read_volume(sample.target_mask).read()


def test_good_samples_give_a_table_one_line_and_status_0(check, good):
    outcome = check(good)
    assert outcome.status == 0, outcome.stdout
    lines = outcome.stdout.rstrip().splitlines()
    assert lines[-1] == "manifest.csv: no fault in 4 samples (2 train, 1 val, 1 test), 0 warnings."
    row = next(line.split() for line in lines if line.split()[:1] == ["a"])
    share = 100 * mask_array(good[0]).mean()
    assert row[1:9] == ["train", "20", "x", "24", "x", "28", "10.00", f"{share:.2f}"]
    assert row[10] == "dark"
    assert row[-1] == "ok"


def test_the_table_fits_into_80_columns_where_it_is_piped(check, good):
    outcome = check([replace(sample, run_id="a_rather_long_name_of_a_run_" + sample.run_id) for sample in good])
    assert max(len(line) for line in outcome.stdout.splitlines()) <= 80


def plant(kind, folder, samples):
    """Samples with one fault, and what has to be said about it: the file, the finding, the advice."""
    first, second, *others = samples
    mask = mask_array(first)
    bad = folder / "bad.mrc"
    broken = replace(first, tomogram=bad)
    with_bad_mask = replace(first, target_mask=bad)
    grey = grey_of(mask, 0)
    if kind == "missing file":
        return [broken, second, *others], ["set/a: bad.mrc: no such file; did you mean"]
    if kind == "truncated file":
        bad.write_bytes(first.tomogram.read_bytes()[:-100])
        return [broken, second, *others], ["set/a: bad.mrc: truncated", "copy or download it again"]
    if kind == "shape mismatch":
        write(bad, mask[:, 1:])
        return [with_bad_mask, second, *others], ["mask of shape (20, 23, 28), tomogram of (20, 24, 28) (bad.mrc)"]
    if kind == "transposed shape":
        write(bad, mask.transpose(0, 2, 1))
        return [with_bad_mask, second, *others], ["mask of shape (20, 28, 24)", "fits with its axes Y and X exchanged"]
    if kind == "voxel size off by 2 %":
        write(bad, mask, 10.2)
        return [with_bad_mask, second, *others], ["10 x 10 x 10 Å in the tomogram, 10.2 x 10.2", "correct the header"]
    if kind == "voxel size of the manifest":
        return [replace(first, voxel_size_angstrom=9.8), second, *others], ["in the tomogram's header, 9.8 Å in the ma"]
    if kind == "mask not binary":
        write(bad, mask * 3)
        return [with_bad_mask, second, *others], ["mask not binary:", "such as 3", "(bad.mrc)", "columns"]
    if kind == "mask empty":
        write(bad, mask * 0)
        return [with_bad_mask, second, *others], ["mask empty: no voxel is 1 (bad.mrc)", "annotate it"]
    if kind == "leak by a renamed copy":
        shutil.copy(first.tomogram, bad)
        shutil.copy(first.target_mask, "bad_mask.mrc")
        copy = replace(first, run_id="e", split="test", tomogram=bad, target_mask=folder / "bad_mask.mrc")
        return [*samples, copy], ["set/a (train) and set/e (test) are the same content", "a.mrc, bad.mrc"]
    if kind == "leak by a compressed copy with another header":
        write(bad, grey_of(mask, 0), 10.01)
        packed = folder / "bad.mrc.gz"
        packed.write_bytes(gzip.compress(bad.read_bytes()))
        copy = replace(first, run_id="e", split="test", tomogram=packed)
        return [*samples, copy], ["set/a (train) and set/e (test) are the same content", "a.mrc, bad.mrc.gz"]
    if kind == "wrong shape in the manifest":
        return [replace(first, shape=(20, 24, 29)), second, *others], ["shape (20, 24, 28), but the manifest says (20"]
    if kind == "NaN":
        grey[2, 3, 4:9] = np.nan
        write(bad, grey)
        return [broken, second, *others], ["5 of 13440 voxels are NaN or infinite (bad.mrc)", "nonfinite=mean"]
    if kind == "bright among dark":
        write(bad, grey_of(mask, 0, sign=1))
        return [broken, second, *others], ["set/a: membranes are bright", "in 3 other tomograms of set dark", "by -1"]
    if kind == "constant":
        write(bad, np.full(SHAPE, 7, np.float32))
        return [broken, second, *others], ["constant: every voxel has the value 7 (bad.mrc)", "again"]
    if kind == "two tomograms of one name":
        return [first, replace(second, run_id="a"), *others], ["set/a is the name of 2 tomograms", "own run_id"]
    if kind == "one mask for two tomograms":
        return [first, replace(second, target_mask=first.target_mask), *others], [
            "with the same mask file (a_mask.mrc)"
        ]
    if kind == "copied mask":
        write(bad, mask.astype(np.float32))
        return [first, replace(second, target_mask=bad), *others], [
            "with masks of the same content (a_mask.mrc, bad.mr"
        ]
    assert kind == "tomogram as its own mask"
    return [replace(first, target_mask=first.tomogram), second, *others], ["one file is both tomogram and mask (a.mrc)"]


KINDS = [
    *("missing file", "truncated file", "shape mismatch", "transposed shape", "voxel size off by 2 %"),
    *("voxel size of the manifest", "mask not binary", "mask empty", "leak by a renamed copy"),
    *("leak by a compressed copy with another header", "wrong shape in the manifest", "NaN", "bright among dark"),
    *("constant", "two tomograms of one name", "one mask for two tomograms", "copied mask", "tomogram as its own mask"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_planted_fault_is_found_with_its_file_and_what_to_do(check, good, work, kind):
    samples, expected = plant(kind, work, good)
    outcome = check(samples)
    assert outcome.status == 1
    listed = outcome.stdout.partition("Faults:")[2]
    for part in expected:
        assert part in listed
    assert outcome.message.startswith("manifest.csv: ")
    assert "listed above" in outcome.message
    assert "FAULT" in outcome.stdout


def test_ten_faults_in_one_manifest_are_all_found_at_once(check, work):
    names = ["file", "cut", "shape", "voxel", "labels", "empty", "stated", "nan", "bright", "constant"]
    samples = [make(work, name, "train", seed % 6, (20, 24 + seed, 28 + seed)) for seed, name in enumerate(names)]
    samples += [make(work, f"good{seed}", "train", seed, (20, 40 + seed, 50)) for seed in range(2)]
    by_name = {sample.run_id: sample for sample in samples}
    masks = {name: mask_array(sample) for name, sample in by_name.items()}
    by_name["file"].tomogram.unlink()
    by_name["cut"].tomogram.write_bytes(by_name["cut"].tomogram.read_bytes()[:5000])
    write(by_name["shape"].target_mask, masks["shape"][1:])
    write(by_name["voxel"].target_mask, masks["voxel"], 10.2)
    write(by_name["labels"].target_mask, masks["labels"] * 2)
    write(by_name["empty"].target_mask, masks["empty"] * 0)
    by_name["stated"] = replace(by_name["stated"], shape=(1, 2, 3))
    noisy = grey_of(masks["nan"], 7)
    noisy[0, 0, 0] = np.inf
    write(by_name["nan"].tomogram, noisy)
    write(by_name["bright"].tomogram, grey_of(masks["bright"], 8, sign=1))
    write(by_name["constant"].tomogram, np.zeros(masks["constant"].shape, np.float32))
    shutil.copy(by_name["good0"].tomogram, "renamed.mrc")
    leak = replace(by_name["good0"], run_id="leak", split="test", tomogram=work / "renamed.mrc")
    outcome = check([*by_name.values(), leak])
    faults = [line for line in outcome.stdout.partition("Faults:")[2].splitlines() if line.strip()]
    assert len(faults) == 11
    found = ["no such file", "truncated", "mask of shape", "10.2 x", "not binary", "mask empty", "manifest says"]
    found += ["1 of ", "are bright", "constant", "the same content"]
    for name, part in zip([*names, "good0"], found, strict=True):
        assert [line for line in faults if f"set/{name}" in line and part in line], (name, part)
    assert "11 faults and 1 warning in 13 samples" in outcome.message  # no val split


def test_the_quick_check_reads_no_grey_values(check, good, work):
    samples, _ = plant("constant", work, good)
    outcome = check(samples, "--quick")
    assert outcome.status == 0
    assert "dark" not in outcome.stdout


def test_warnings_are_shown_apart_and_leave_the_status_at_0(check, good, work):
    crowded = replace(good[0], target_mask=write(work / "full.mrc", 1 - mask_array(good[0])))
    outcome = check([crowded, replace(good[1], run_id="again"), *good[1:3]])
    assert outcome.status == 0
    listed = outcome.stdout.partition("Warnings:")[2]
    assert "% of the mask is membrane (full.mrc); is it inverted" in listed
    assert "set/again and set/b (train) are the same tomogram (b.mrc); it counts 2 times" in listed
    assert "Faults:" not in outcome.stdout
    assert outcome.stderr == ""


def test_a_manifest_without_validation_is_told(check, good):
    outcome = check(good[:2])
    assert outcome.status == 0
    assert "no val split (splits found: train); training needs one" in outcome.stdout


def test_a_wrong_guess_of_the_contrast_is_told_with_the_setting_that_helps(check, good, work):
    mask = mask_array(good[0])
    grey = grey_of(mask, 0)
    grey[:, :6, :6] += 300  # a bright minority that is no membrane
    outcome = check([replace(good[0], tomogram=write(work / "gold.mrc", grey)), *good[1:]])
    assert outcome.status == 0
    assert "membranes are dark under the mask" in outcome.stdout
    assert "would take them for bright" in outcome.stdout
    assert "set normalize.membranes=dark" in outcome.stdout


def test_one_of_two_contrasts_is_no_fault_where_nobody_can_say_which_is_odd(check, good, work):
    bright = replace(good[0], tomogram=write(work / "inverted.mrc", grey_of(mask_array(good[0]), 0, sign=1)))
    outcome = check([bright, good[2]])
    assert outcome.status == 0
    assert "membranes are dark in 1 and bright in 1 of the tomograms; only normalize=robust" in outcome.stdout


def renamed(text, *words):
    """The manifest with other words for its splits."""
    header, *lines = text.splitlines()
    return (
        "\n".join([header, *(line.replace(old, new, 1) for line, (old, new) in zip(lines, words, strict=True))]) + "\n"
    )


def test_splits_are_taken_in_any_case_and_words_that_are_used_for_nothing_are_told(check, good, etsam, work):
    check(good)
    text = (work / "manifest.csv").read_text()
    words = [(",train,", ",Train,"), (",train,", ",train,"), (",val,", ",Validation,"), (",test,", ",tset,")]
    (work / "case.csv").write_text(renamed(text, *words))
    outcome = etsam("data", "check", "case.csv")
    assert outcome.status == 0
    assert "2 train, 1 val, 1 tset" in outcome.stdout
    listed = outcome.stdout.partition("Warnings:")[2]
    for part in ("set/a: split Train: taken as train", "set/c: split Validation: taken as val", "set/d: split tset"):
        assert part in listed
    assert "write test" in listed


def test_a_mask_of_0_and_255_is_met_with_the_commonest_cause(check, good, work):
    outcome = check(
        [replace(good[0], target_mask=write(work / "m255.mrc", mask_array(good[0]) * np.int16(255))), *good[1:]]
    )
    assert outcome.status == 1
    assert "postprocess=none" in " ".join(outcome.stdout.split())


@pytest.mark.parametrize("turn", [lambda mask: mask[:, :, ::-1], lambda mask: np.roll(mask, 9, 2)])
def test_a_mask_that_lies_elsewhere_is_told_by_its_contrast(check, good, work, turn):
    moved = write(work / "moved.mrc", np.ascontiguousarray(turn(mask_array(good[0]))))
    outcome = check([replace(good[0], target_mask=moved), *good[1:]])
    assert outcome.status == 0
    assert "hardly differ" in outcome.stdout.partition("Warnings:")[2]
    assert "moved.mrc" in outcome.stdout


def test_the_contrast_is_that_of_the_membrane_against_its_surroundings():
    mask = np.zeros((4, 40, 40), np.int8)
    mask[:, 18:21] = 1
    rng = np.random.default_rng(0)
    grey = rng.normal(50, 2, mask.shape).astype(np.float32) - 6 * mask
    grey[:, 30:] += 1000  # far away: of no influence
    assert measure_pair(grey, mask).contrast == pytest.approx(-3, abs=0.2)
    assert measure_pair(-grey, mask).contrast == pytest.approx(3, abs=0.2)


def test_voxels_that_nobody_annotated_count_neither_as_membrane_nor_as_surroundings():
    mask = np.zeros((4, 40, 40), np.int8)
    mask[:, 18:21] = 1
    mask[:, 22:] = -1
    grey = np.random.default_rng(0).normal(50, 2, mask.shape).astype(np.float32) - 6 * mask.clip(0)
    grey[:, 22:] = 1000
    pair = measure_pair(grey, mask)
    assert (pair.membrane, pair.annotated) == (4 * 3 * 40, 4 * 22 * 40)
    assert pair.contrast == pytest.approx(-3, abs=0.2)


@pytest.mark.parametrize(
    ("shape", "wanted", "axes"),
    [
        ((100, 300, 200), (100, 200, 300), (0, 2, 1)),
        ((200, 300, 100), (100, 200, 300), (2, 0, 1)),
        ((100, 200, 301), (100, 200, 300), None),
    ],
)
def test_the_order_of_axes_is_found_from_the_shape(shape, wanted, axes):
    assert matching_axes(shape, wanted) == axes


def test_memory_does_not_hold_the_volume(work):
    import tracemalloc

    shape = (60, 300, 320)
    mask = np.zeros(shape[1:], np.int8)
    mask[100:103] = 1
    plane = np.random.default_rng(0).normal(size=shape[1:]).astype(np.float32)
    for name, dtype, content in (("t", np.float32, plane), ("m", np.int8, mask)):
        with MrcWriter(work / f"{name}.mrc", shape, dtype) as writer:
            for z in range(shape[0]):
                writer[z] = np.roll(content, z, 1)
    sample = Sample("set", "a", "train", work / "t.mrc", work / "m.mrc", 10.0)
    examine([sample])  # imports
    tracemalloc.start()
    examine([sample])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 300 * 320 * 20  # bytes of a third of the tomogram
