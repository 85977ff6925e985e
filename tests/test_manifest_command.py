"""`etsam data manifest` pairs files by name, never guesses between two, and draws splits by tomogram."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from etsam.data.manifest import SPLITS, read_manifest
from etsam.errors import InputError
from etsam.sources.files.pairing import expand, pair
from etsam.sources.files.splits import draw_splits
from etsam.volume import MrcWriter

SHAPE = (4, 6, 7)


def write(path, seed, voxel_size=10.0, dtype=np.float32):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=SHAPE) > 0.5 if dtype == np.int8 else None
    with MrcWriter(path, SHAPE, dtype, voxel_size_angstrom=voxel_size and (voxel_size,) * 3) as writer:
        for z in range(SHAPE[0]):
            plane = np.random.default_rng((seed, z)).normal(size=SHAPE[1:]).astype(np.float32)
            writer[z] = plane if values is None else values[z]
    return path


def make(count, tomogram="data/TS_{:02d}.mrc", mask="data/TS_{:02d}_mask.mrc"):
    for seed in range(1, count + 1):
        write(tomogram.format(seed), seed)
        write(mask.format(seed), seed, dtype=np.int8)


@pytest.fixture
def manifest(etsam):
    def call(*arguments, tomograms="data/*.mrc", masks="data/*_mask.mrc"):
        return etsam(
            "data", "manifest", "--tomograms", tomograms, "--masks", masks, "--output", "manifest.csv", *arguments
        )

    return call


def test_files_are_paired_split_and_written_with_voxel_size_and_shape(manifest):
    make(10)
    outcome = manifest("--dataset", "mine")
    assert outcome.status == 0, outcome.stderr
    samples = read_manifest("manifest.csv")
    assert [sample.run_id for sample in samples] == [f"TS_{number:02d}" for number in range(1, 11)]
    assert Counter(sample.split for sample in samples) == {"train": 8, "val": 1, "test": 1}
    for sample in samples:
        assert sample.target_mask == sample.tomogram.with_name(f"{sample.run_id}_mask.mrc")
        assert (sample.dataset_id, sample.voxel_size_angstrom, sample.shape) == ("mine", 10.0, SHAPE)
    assert "10 tomograms (8 train, 1 val, 1 test) -> manifest.csv" in outcome.stdout


def test_the_next_commands_are_told_and_the_first_of_them_works(manifest, etsam):
    make(10)
    lines = [line.strip() for line in manifest().stdout.splitlines()]
    command = next(line for line in lines if line.startswith("etsam data check"))
    assert any(
        line == "etsam train experiment=nano_stage1 name=first data.sources.own.manifest=manifest.csv" for line in lines
    )
    checked = etsam(*command.split()[1:])
    assert checked.status == 0, checked.stdout


def test_the_data_set_is_called_like_the_folder(manifest):
    make(3)
    manifest("--split", "0.4,0.3,0.3")
    assert {sample.dataset_id for sample in read_manifest("manifest.csv")} == {"data"}


def test_the_seed_decides_the_splits(etsam):
    make(12)

    def splits(seed, name):
        arguments = ["--tomograms", "data/*.mrc", "--masks", "data/*_mask.mrc", "--seed", seed, "--output", name]
        assert etsam("data", "manifest", *arguments).status == 0
        return [sample.split for sample in read_manifest(name)]

    first = splits(0, "a.csv")
    assert splits(0, "b.csv") == first
    assert any(splits(seed, f"{seed}.csv") != first for seed in (1, 2, 3))


def test_copies_of_one_tomogram_stay_in_one_split(manifest):
    make(6)
    for number in range(20):
        shutil.copy("data/TS_01.mrc", f"data/copy_{number:02d}.mrc")
        write(f"data/copy_{number:02d}_mask.mrc", 1, dtype=np.int8)
    assert manifest("--split", "0.4,0.3,0.3").status == 0
    samples = read_manifest("manifest.csv")
    same = {sample.split for sample in samples if sample.run_id.startswith("copy") or sample.run_id == "TS_01"}
    assert len(same) == 1
    assert {sample.split for sample in samples} == set(SPLITS)


@pytest.mark.parametrize(
    ("total", "shares", "expected"),
    [
        (10, (0.8, 0.1, 0.1), [8, 1, 1]),
        (3, (0.8, 0.1, 0.1), [1, 1, 1]),
        (4, (0.8, 0.2, 0), [3, 1, 0]),
        (7, (0.5, 0.5, 0), [4, 3, 0]),
        (100, (0.98, 0.01, 0.01), [98, 1, 1]),
        (5, (0, 0, 1), [0, 0, 5]),
        (2, (0.99, 0.01, 0), [1, 1, 0]),
    ],
)
def test_every_split_with_a_share_gets_a_tomogram(total, shares, expected):
    drawn = draw_splits(total, shares, seed=1)
    assert [drawn.count(split) for split in SPLITS] == expected


def test_too_few_tomograms_for_the_splits_are_refused(manifest, work):
    make(2)
    message = manifest().message
    assert "2 tomograms of different content cannot fill the splits train, val, test" in message
    assert "--split 0.8,0.2,0" in message
    assert not (work / "manifest.csv").exists()


@pytest.mark.parametrize("split", ["0.8,0.1", "1", "a,b,c", "0.5,0.7,-0.2", "0.2,0.2,0.2,0.4"])
def test_shares_that_are_none_are_refused(manifest, split):
    make(3)
    message = manifest("--split", split).message
    assert message.startswith(f"etsam: error: split {split}: ") or message.startswith(f"split {split}: ")
    assert "such as 0.8,0.2" in message


def test_a_manifest_that_exists_is_not_overwritten(manifest, work):
    make(3)
    (work / "manifest.csv").write_text("mine")
    assert "manifest.csv: exists already" in manifest().message
    assert (work / "manifest.csv").read_text() == "mine"


def test_a_voxel_size_that_the_header_does_not_say_stays_empty(manifest):
    make(2)
    write("data/TS_03.mrc", 3, voxel_size=None)
    write("data/TS_03_mask.mrc", 3, dtype=np.int8)
    assert manifest().status == 0
    assert [sample.voxel_size_angstrom for sample in read_manifest("manifest.csv")] == [10.0, 10.0, None]


def pairs(tomograms, masks):
    found = pair(expand([tomograms]), expand([masks]))
    return {str(both.tomogram): (str(both.mask), both.name, both.guessed) for both in found}


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_wildcards_in_any_place_name_the_run(work):
    touch("a/tomo.mrc", "a/mask.mrc", "b/tomo.mrc", "b/mask.mrc")
    assert pairs("*/tomo.mrc", "*/mask.mrc") == {
        "a/tomo.mrc": ("a/mask.mrc", "a", False),
        "b/tomo.mrc": ("b/mask.mrc", "b", False),
    }
    touch("rec/x_1.rec", "seg/mask_x_1.mrc")
    assert pairs("rec/*.rec", "seg/mask_*.mrc") == {"rec/x_1.rec": ("seg/mask_x_1.mrc", "x_1", False)}


def test_masks_that_the_pattern_of_tomograms_matches_are_left_out(work):
    touch("d/a.mrc", "d/a_mask.mrc")
    assert pairs("d/*.mrc", "d/*_mask.mrc") == {"d/a.mrc": ("d/a_mask.mrc", "a", False)}


def test_the_longest_common_beginning_counts_words_not_letters(work):
    touch("t/TS_1_wbp.mrc", "t/TS_10_wbp.mrc", "m/TS_1_seg.mrc", "m/TS_10_seg.mrc")
    assert pairs("t/*.mrc", "m/*.mrc") == {
        "t/TS_1_wbp.mrc": ("m/TS_1_seg.mrc", "TS_1_wbp", True),
        "t/TS_10_wbp.mrc": ("m/TS_10_seg.mrc", "TS_10_wbp", True),
    }


def test_a_guess_by_the_beginning_is_told(manifest):
    make(3, "t/TS_{:02d}_wbp.mrc", "m/TS_{:02d}_seg.mrc")
    outcome = manifest(tomograms="t/*.mrc", masks="m/*.mrc")
    assert outcome.status == 0, outcome.stderr
    assert "by the beginning of the name: t/TS_01_wbp.mrc - m/TS_01_seg.mrc" in outcome.stdout


def test_files_that_the_shell_has_listed_are_paired_too(etsam, work):
    make(3)
    masks = sorted(map(str, Path("data").glob("*_mask.mrc")))
    everything = sorted(map(str, Path("data").glob("*.mrc")))
    outcome = etsam("data", "manifest", "--tomograms", *everything, "--masks", *masks, "--output", "m.csv")
    assert outcome.status == 0, outcome.stderr
    assert [(s.tomogram.name, s.target_mask.name) for s in read_manifest("m.csv")] == [
        (f"TS_{number:02d}.mrc", f"TS_{number:02d}_mask.mrc") for number in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("tomograms", "masks", "listed"),
    [
        (["t/A_01.mrc"], ["m/A_02.mrc"], ["tomogram without a mask: t/A_01.mrc", "mask without a tomogram: m/A_02"]),
        (["t/a.mrc", "t/b.mrc"], ["m/a.mrc"], ["tomogram without a mask: t/b.mrc"]),
        (["t/a.mrc"], ["m/a.mrc", "m/b.mrc"], ["mask without a tomogram: m/b.mrc"]),
        # two masks begin like one tomogram, two tomograms like one mask: nobody can say which
        (["t/a_x.mrc"], ["m/a_1.mrc", "m/a_2.mrc"], ["without a mask: t/a_x.mrc", "without a tomogram: m/a_1.mrc"]),
        (["t/a_x.mrc", "t/a_y.mrc"], ["m/a_z.mrc"], ["without a mask: t/a_x.mrc", "without a mask: t/a_y.mrc"]),
        (["t/one.mrc"], ["m/two.mrc"], ["without a mask: t/one.mrc", "without a tomogram: m/two.mrc"]),
    ],
)
def test_what_has_no_certain_partner_is_listed(work, tomograms, masks, listed):
    touch(*tomograms, *masks)
    with pytest.raises(InputError) as error:
        pairs("t/*.mrc", "m/*.mrc")
    for part in listed:
        assert part in str(error.value)


def test_two_tomograms_of_one_name_are_refused(work):
    touch("a/tomo.mrc", "a/tomo.rec", "m/tomo.mrc")
    with pytest.raises(InputError, match=r"2 tomograms are called tomo: a/tomo.mrc, a/tomo.rec"):
        pair(expand(["a/*.mrc", "a/*.rec"]), expand(["m/*.mrc"]))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--tomograms", "data/*.mrc"], "--tomograms needs --masks, too"),
        (["--tomograms", "nothing/*.mrc", "--masks", "data/*_mask.mrc"], "no file matches nothing/*.mrc"),
        (["--tomograms", "data/*_mask.mrc", "--masks", "data/*_mask.mrc"], "match nothing but masks"),
        (["--copick", "c.json", "--voxel-size", "10"], "--copick needs --tomogram-type, --segmentation, --export-dir"),
        (["--tomograms", "a", "--copick", "c.json"], "not both, not neither"),
        ([], "not both, not neither"),
    ],
)
def test_half_a_question_is_refused(etsam, work, arguments, part):
    make(1)
    outcome = etsam("data", "manifest", *arguments, "--output", "m.csv")
    assert outcome.status == 1
    assert part in outcome.message


def test_tomograms_that_cannot_be_read_are_all_named(manifest):
    make(3)
    for number in (1, 3):
        Path(f"data/TS_{number:02d}.mrc").write_text("no volume")
    message = manifest().message
    assert "data/TS_01.mrc: not an MRC file" in message
    assert "data/TS_03.mrc: not an MRC file" in message


def test_paths_are_relative_to_the_manifest(manifest, work):
    make(3)
    manifest()
    assert "data,TS_01," in Path("manifest.csv").read_text()
    assert ",data/TS_01.mrc,data/TS_01_mask.mrc,10.0," in Path("manifest.csv").read_text()
