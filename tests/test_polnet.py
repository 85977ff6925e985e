"""PolNet's output becomes masks and a manifest; what does not fit together is named."""

import gzip
import os
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam.data.checks import check_samples
from etsam.data.manifest import read_manifest
from etsam.sources.files.splits import draw_splits, share_out
from etsam.sources.polnet.importer import import_tree

EXAMPLE = Path(__file__).parent / "data" / "polnet"
SHAPE = (12, 20, 28)
MOTIFS = ("membrane\t1\tsphere", "membrane\t2\ttoroid", "filament\t3\tactin", "mbprotein\t4\tpdb_6rd4")


def write(path, data, voxel_size=10.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = voxel_size
    return path


def labels(shape=SHAPE):
    """Two membranes, a filament, a protein in a membrane, and mostly nothing."""
    found = np.zeros(shape, np.uint16)
    found[2:5] = 1
    found[8, :6] = 2
    found[10, 10:14, 4:6] = 3
    found[3, 4:6, 7:9] = 4
    return found


def write_tomogram(folder, volume=None, motifs=MOTIFS, snr="_snr1.73", voxel_size=10.0):
    """A `TomoNNN` folder as PolNet leaves it, with its second copy of the reconstruction in `tem`."""
    number = folder.name.removeprefix("Tomo")
    volume = labels() if volume is None else volume
    rec = np.random.default_rng(int(number)).normal(0, 1, volume.shape).astype(np.float32)
    write(folder / f"tomo_{number}_rec{snr}.mrc", rec, voxel_size)
    write(folder / f"tomo_{number}_mics{snr}.mrc", rec[:5], voxel_size)
    write(folder / "tem" / f"tomo_{number}_rec{snr}.mrc", rec, voxel_size)
    write(folder / "tem" / "out_rec3d.mrc", rec, voxel_size)
    write(folder / f"tomo_{number}_lbl.mrc", volume, voxel_size)
    header = "type\tlabel\tcode\tpolymer\tx\ty\tz\tq1\tq2\tq3\tq4\n"
    rows = [f"{row}\t{i}\t1.5\t2\t3\t1\t0\t0\t0\n" for row in motifs for i in range(2)]
    (folder / f"tomo_{number}_motif_list.csv").write_text(header + "".join(rows))
    return folder


@pytest.fixture
def tree(work):
    """Two tomograms in the folder `simulated`."""
    for number in ("001", "002"):
        write_tomogram(work / "simulated" / f"Tomo{number}")
    return work / "simulated"


@pytest.fixture
def read(etsam):
    """`etsam data polnet --from FOLDER --output-dir out ...`."""

    def call(folder, *arguments):
        return etsam("data", "polnet", "--from", folder, "--output-dir", "out", *arguments)

    return call


@pytest.fixture
def refused(read):
    """The same, which has to end with status 1 and write nothing; gives the message."""

    def call(folder, *arguments):
        outcome = read(folder, *arguments)
        assert outcome.status == 1
        assert outcome.files == []
        return outcome.message

    return call


def example(folder):
    """The tree of `tests/data/polnet`, or the whole one that ETSAM_POLNET_EXAMPLE names, and its expected masks."""
    given = os.environ.get("ETSAM_POLNET_EXAMPLE")
    if given:
        root = Path(given)
        masks = {path.name[:7]: mrcfile.read(path) for path in root.parent.glob("raw_output_expected/*_membrane.mrc")}
        return root, masks
    masks = {}
    for tomogram in ("Tomo001", "Tomo002"):
        place, number = folder / "raw" / tomogram, tomogram[-3:]
        place.mkdir(parents=True)
        shutil.copy(EXAMPLE / tomogram / f"tomo_{number}_motif_list.csv", place)
        packed = (EXAMPLE / tomogram / f"tomo_{number}_lbl.mrc.gz").read_bytes()
        (place / f"tomo_{number}_lbl.mrc").write_bytes(gzip.decompress(packed))
        masks[tomogram] = mrcfile.read(EXAMPLE / tomogram / "expected_membrane.mrc.gz")
        write(place / f"tomo_{number}_rec_snr1.29.mrc", np.zeros(masks[tomogram].shape, np.float32))
    shutil.copy(EXAMPLE / "labels_table.csv", folder / "raw")
    return folder / "raw", masks


def test_masks_of_a_real_output_are_the_expected_ones_voxel_for_voxel(read, work):
    source, expected = example(work)
    assert read(source).status == 0
    samples = read_manifest("out/manifest.csv")
    assert [sample.run_id for sample in samples] == sorted(expected)
    for sample in samples:
        with mrcfile.open(sample.target_mask) as mask:
            assert mask.data.dtype == np.int8
            assert mask.data.shape == expected[sample.run_id].shape == (48, 96, 96)
            np.testing.assert_array_equal(mask.data, expected[sample.run_id])
            assert mask.voxel_size.tolist() == (10, 10, 10)


def test_labels_table_is_not_believed():
    # the table says that label 3 of Tomo001 is a toroid, which found no room; the motif list says actin
    table = dict(line.split("\t")[::-1] for line in (EXAMPLE / "labels_table.csv").read_text().splitlines())
    assert table["3"] == "in_mbs/toroid.mbs"
    label = mrcfile.read(EXAMPLE / "Tomo001" / "tomo_001_lbl.mrc.gz")
    mask = mrcfile.read(EXAMPLE / "Tomo001" / "expected_membrane.mrc.gz")
    assert (label == 3).sum() > 0
    assert mask[label == 3].sum() == 0


def test_the_manifest_names_reconstruction_mask_voxel_size_shape_and_snr(read, tree):
    write_tomogram(tree / "Tomo003", snr="", voxel_size=7.84)
    outcome = read(tree, "--split", "0.4,0.3,0.3")
    assert outcome.status == 0, outcome.stderr
    samples = read_manifest("out/manifest.csv")
    assert {sample.split for sample in samples} == {"train", "val", "test"}
    assert [sample.name for sample in samples] == [f"simulated/Tomo00{i}" for i in (1, 2, 3)]
    assert [dict(sample.extra)["snr"] for sample in samples] == ["1.73", "1.73", ""]
    assert [sample.voxel_size_angstrom for sample in samples] == pytest.approx([10, 10, 7.84])
    assert samples[0].tomogram == tree / "Tomo001" / "tomo_001_rec_snr1.73.mrc"
    assert samples[0].shape == SHAPE
    check_samples(samples, splits=("train", "val", "test"))
    np.testing.assert_array_equal(mrcfile.read(samples[0].target_mask), np.isin(labels(), [1, 2]))


def test_several_outputs_of_polnet_are_read_together(read, tree, work):
    write_tomogram(work / "all" / "other" / "Tomo001")
    shutil.move(tree, work / "all")
    assert read("all").status == 0
    names = ["other/Tomo001", "simulated/Tomo001", "simulated/Tomo002"]
    assert [sample.name for sample in read_manifest("out/manifest.csv")] == names
    assert (work / "out" / "masks" / "other" / "Tomo001_membrane.mrc").is_file()


def test_every_fault_of_every_tomogram_is_named_and_nothing_is_written(refused, tree):
    (tree / "Tomo001" / "tomo_001_lbl.mrc").unlink()
    (tree / "Tomo001" / "tomo_001_motif_list.csv").unlink()
    (tree / "Tomo002" / "tomo_002_rec_snr1.73.mrc").unlink()  # the copy in tem does not count
    message = refused(tree)
    assert message.startswith("2 faults in the PolNet output: | simulated/Tomo001: tomo_001_lbl.mrc and tomo_001_motif")
    assert "simulated/Tomo002: no reconstruction tomo_002_rec*.mrc" in message


def rewrite(folder, **changes):
    shutil.rmtree(folder)
    write_tomogram(folder, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: rewrite(t, motifs=MOTIFS[:3]),
            "the label volume holds label 4, of which the motif list says nothing",
        ),
        (
            lambda t: rewrite(t, motifs=(*MOTIFS, "membrane\t9\tsphere")),
            "the motif list has the membrane label 9, but no voxel of the label volume has (found: labels 1, 2, 3, 4)",
        ),
        (lambda t: rewrite(t, motifs=(*MOTIFS, "filament\t1\tmt")), "label 1 is both membrane and filament"),
        (lambda t: rewrite(t, motifs=("vesicle\t1\tsphere",)), "line 2: type 'vesicle', label '1'; known types are"),
        (
            lambda t: rewrite(t, motifs=MOTIFS[2:], volume=np.where(labels() > 2, labels(), 0).astype(np.uint16)),
            "no membrane found room in it; --skip-empty leaves such tomograms out",
        ),
        (
            lambda t: write(t / "tomo_002_lbl.mrc", labels((12, 28, 20))),
            "reconstruction of shape (12, 20, 28), labels of (12, 28, 20) (Z, Y, X)",
        ),
        (lambda t: write(t / "tomo_002_lbl.mrc", labels(), 8.0), "voxel size (10.0, 10.0, 10.0) Å in the reconst"),
        (lambda t: write(t / "tomo_002_lbl.mrc", labels() + np.float32(0.5)), "values that are no whole numbers"),
        (lambda t: write(t / "tomo_002_lbl.mrc", labels().astype(np.int16) - 1), "values from -1 to"),
        (lambda t: (t / "tomo_002_lbl.mrc").write_bytes(b"x" * 2000), "tomo_002_lbl.mrc"),
        (lambda t: (t / "tomo_002_motif_list.csv").write_text("a,b\n1,2\n"), "no tab-separated table with the columns"),
        (
            lambda t: shutil.copy(t / "tomo_002_rec_snr1.73.mrc", t / "tomo_002_rec_snr1.8.mrc"),
            "2 reconstructions (tomo_002_rec_snr1.73.mrc, tomo_002_rec_snr1.8.mrc)",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(refused, tree, change, message):
    change(tree / "Tomo002")
    found = refused(tree)
    assert found.startswith("1 fault in the PolNet output: simulated/Tomo002: ")
    assert message in found


def test_a_tomogram_without_membrane_can_be_left_out(read, tree):
    rewrite(tree / "Tomo002", motifs=MOTIFS[2:], volume=np.where(labels() > 2, labels(), 0).astype(np.uint16))
    assert read(tree, "--skip-empty").status == 0
    assert [sample.run_id for sample in read_manifest("out/manifest.csv")] == ["Tomo001"]


def test_a_label_volume_of_floats_is_read(tree, tmp_path):
    write(tree / "Tomo001" / "tomo_001_lbl.mrc", labels().astype(np.float32))
    sample = read_manifest(import_tree(tree, tmp_path / "found"))[0]
    np.testing.assert_array_equal(mrcfile.read(sample.target_mask), np.isin(labels(), [1, 2]))


def test_a_manifest_is_replaced_only_with_overwrite(read, tree, work):
    assert read(tree).status == 0
    (work / "out" / "manifest.csv").write_text("mine")
    assert "exists already" in read(tree).message
    assert (work / "out" / "manifest.csv").read_text() == "mine"
    assert read(tree, "--overwrite").status == 0
    assert len(read_manifest("out/manifest.csv")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "0.8,0.3"], "split 0.8,0.3"),
        (["--split", "most"], "split most: numbers with commas between them are needed"),
        (["--config", "trial"], "--from reads tomograms, --config and --n make some"),
        (["--seed", "-1"], "--seed -1: a whole number from 0 is needed"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(refused, tree, arguments, message):
    assert message in refused(tree, *arguments)


def test_a_folder_without_tomograms_is_refused(refused, work):
    assert "no such folder" in refused("nowhere")
    (work / "empty" / "tomos").mkdir(parents=True)
    assert "empty: no folder TomoNNN in it" in refused("empty")


def test_a_split_is_exact_seeded_and_gives_each_part_something():
    drawn = draw_splits(28, (0.8, 0.1, 0.1), seed=3)
    assert [drawn.count(name) for name in ("train", "val", "test")] == [22, 3, 3]
    assert drawn == draw_splits(28, (0.8, 0.1, 0.1), seed=3) != draw_splits(28, (0.8, 0.1, 0.1), seed=4)
    assert sorted(draw_splits(2, (0.9, 0.1), seed=0)) == ["train", "val"]
    assert sorted(draw_splits(2, (0.9, 0.1, 0), seed=0)) == ["train", "val"]
    assert draw_splits(1, (0.5, 0.5), seed=0) == ["train"]
    assert [share_out(count, [10, 18]) for count in (28, 14, 3, 1)] == [[10, 18], [5, 9], [1, 2], [0, 1]]
