"""`etsam inspect` says what a file is, whether to believe its header, and what to set; it writes what it is told."""

import json

import numpy as np
import pytest
from conftest import ORIGIN_ZYX, SHAPE, START_ZYX, grey, write_mrc

from etsam.pictures import stretched
from etsam.sources.files.inspect import inspect_file
from etsam.sources.files.verdict import verdict
from etsam.volume import MrcWriter


def write(name, array, voxel_size=10.0):
    with MrcWriter(name, array.shape, array.dtype, voxel_size_angstrom=voxel_size and (voxel_size,) * 3) as writer:
        for z, plane in enumerate(array):
            writer[z] = plane
    return name


def noise(shape=(12, 40, 56), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_json(outcome):
    assert outcome.status == 0, outcome.stderr
    return json.loads(outcome.stdout)


def test_a_tomogram_is_explained_on_the_terminal_and_nothing_is_written(etsam, tomogram, work):
    outcome = etsam("inspect", "tomo.mrc", "--verbose")
    assert outcome.status == 0, outcome.stderr
    text = " ".join(outcome.stdout.split())
    assert "looks like a tomogram" in text
    assert "6 x 40 x 56, float32, 54.8 kB" in text
    assert "4 x 3 x 2 Å (Z x Y x X): differs between axes by more than 1 %" in text
    assert "7 x 6 x 5 Å, 3 x 2 x 1 voxels" in text
    assert "the minority is dark" in text
    assert "set normalize.membranes=bright" in text
    assert "--preview" in text
    assert [path.name for path in work.iterdir()] == ["tomo.mrc"]
    assert max(len(line) for line in outcome.stdout.splitlines()) <= 80


def test_a_verdict_comes_first_and_is_three_lines(etsam, tomogram):
    outcome = etsam("inspect", "tomo.mrc")
    name, *lines = [line.rstrip() for line in outcome.stdout.splitlines() if line]
    assert (name, *lines[-2:-1]) == ("tomo.mrc", "  Run: etsam predict tomo.mrc")
    assert lines[0].startswith("  Tomogram: ")
    assert any(line.startswith("  Membranes look dark") for line in lines)
    assert all(line.startswith("  ") and len(line) <= 80 for line in lines[:-1])
    assert lines[-1].startswith("Further flags")


@pytest.mark.parametrize(
    ("values", "size", "parts"),
    [
        (-grey(), 10.0, ("suits nano and etsam_v1", "BRIGHT", "Run: etsam predict file.mrc")),
        (noise(), 30.0, ("suits nano.", "unclear", "--membranes dark")),
        (grey() / np.float32(0.5), 2.0, ("target_voxel_size", "dark", "Run:")),
        (np.where(grey() > 12, np.nan, grey()), 10.0, ("suits", "NaN", "nonfinite=mean")),
        ((noise() > 1).astype(np.int8), 10.0, ("Mask", "Nothing to segment", "etsam postprocess file.mrc")),
        (np.full((4, 5, 6), 3, np.float32), 10.0, ("Constant volume", "value 3", "reconstructed")),
    ],
)  # fmt: skip
def test_the_verdict_says_what_it_is_what_to_look_at_and_what_to_run(work, values, size, parts):
    lines = verdict(inspect_file(write("file.mrc", values, size))[0])
    assert len(lines) == 3
    for line, part in zip(lines, parts, strict=True):
        assert part in line


def test_json_holds_the_numbers_of_the_file(etsam, tomogram):
    (found,) = as_json(etsam("inspect", "tomo.mrc", "--json"))
    values = grey()
    assert found["shape"] == list(SHAPE)
    assert (found["dtype"], found["mode"], found["bytes_on_disk"]) == ("float32", 2, tomogram.stat().st_size)
    assert (found["origin_angstrom"], found["start_voxels"]) == (list(ORIGIN_ZYX), list(START_ZYX))
    assert (found["minimum"], found["maximum"]) == (float(values.min()), float(values.max()))
    assert found["mean"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert found["percentiles"]["95"] == pytest.approx(float(np.percentile(values, 95)), rel=1e-5)
    assert (found["contrast"], found["looks_like"], found["nonfinite_voxels"]) == ("dark", "tomogram", 0)
    assert sum(found["histogram"]["counts"]) == pytest.approx(values.size, rel=0.01)
    assert len(found["histogram"]["edges"]) == len(found["histogram"]["counts"]) + 1


def test_several_files_and_folders_are_one_list(etsam, work):
    for name in ("a.mrc", "b.mrc", "in/c.mrc"):
        write_mrc(work / name)
    found = as_json(etsam("inspect", "a.mrc", "b.mrc", "in", "--json"))
    assert [entry["path"] for entry in found] == ["a.mrc", "b.mrc", "in/c.mrc"]


KINDS = {
    "mask": (noise() > 1).astype(np.int8),
    "label volume": ((noise() > 1) * np.arange(12, dtype=np.int16)[:, None, None]).astype(np.int16),
    "constant volume": np.full((4, 5, 6), 3, np.float32),
    "tomogram": (noise() * 20).astype(np.int8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_looks_like_is_told(work, kind):
    found, _ = inspect_file(write("file.mrc", KINDS[kind]))
    assert found.looks_like == kind
    assert any("target_mask" in line for line in found.suggestions) == (kind in ("mask", "label volume"))


def test_a_tilt_series_is_known_by_its_name_or_by_its_size(work):
    assert inspect_file(write("series.st", noise()))[0].looks_like == "tilt series"
    with MrcWriter("large.mrc", (3, 2800, 2900), np.int8, voxel_size_angstrom=(1.5,) * 3) as writer:
        for z in range(3):
            writer[z] = (noise((2800, 2900), z) * 20).astype(np.int8)
    found, _ = inspect_file("large.mrc")
    assert found.looks_like == "tilt series"
    assert "needs the reconstruction" in found.remarks[0]


@pytest.mark.parametrize(
    ("size", "note"),
    [
        (10.0, "believable"),
        (1.0, "exactly 1 Å"),
        (None, "unknown"),
        (0.7, "outside 4 to 50"),
        (60.0, "outside 4 to 50"),
    ],
)
def test_voxel_sizes_are_believed_or_not(work, size, note):
    assert note in inspect_file(write("file.mrc", noise(), size))[0].voxel_size_note


def test_what_is_odd_about_the_voxels_is_remarked(work):
    values = noise()
    values[0] = 0
    values[1:7] *= np.arange(56) < 10
    values[9, 1, 2], values[9, 3, 4] = np.nan, 1000
    found, _ = inspect_file(write("file.mrc", values))
    text = " ".join(found.remarks)
    assert f"1 of {values.size} voxels are NaN or infinite" in text
    assert "1 of 12 slices hold one value only" in text
    assert "% of the voxels are padding" in text
    assert "some voxels are extreme" in text
    assert any("nonfinite=mean" in line for line in found.suggestions)


def test_a_good_tomogram_has_no_remark(work):
    assert inspect_file(write("file.mrc", noise()))[0].remarks == ()


def suggestions(values, size=10.0):
    return " | ".join(inspect_file(write("file.mrc", values, size))[0].suggestions)


def test_the_contrast_is_the_one_that_robust_decides_for(work):
    from etsam.normalize import Robust, measure

    for sign, name in ((1, "dark"), (-1, "bright")):
        values = grey() * sign
        found, _ = inspect_file(write(f"{name}.mrc", values))
        transform = Robust().fit(measure(values))
        sheet_is_dark = transform(values[0])[20:23].mean() < 0.3
        assert (found.contrast, sheet_is_dark) == (name, True)


def test_suggestions_follow_contrast_voxel_size_and_sign(work):
    assert "normalize=robust takes membranes for dark" in suggestions(grey())
    (work / "file.mrc").unlink()
    unclear = suggestions(noise((20, 60, 80)), 3.0)
    assert "but by little" in unclear
    assert "target_voxel_size=7" in unclear
    assert "50 % of the voxels are negative" in unclear
    (work / "file.mrc").unlink()
    negative = suggestions(-np.abs(noise()), 80.0)
    assert "no voxel is positive" in negative
    assert "may not be resolved" in negative


def test_the_preview_goes_where_it_is_told(etsam, work):
    write_mrc(work / "data" / "tomo.mrc")
    assert etsam("inspect", "data/tomo.mrc", "--preview").status == 0
    assert etsam("inspect", "data/tomo.mrc", "--preview", "--output-dir", "out").files == ["tomo_preview.png"]
    assert etsam("inspect", "data/tomo.mrc", "--preview", "one.png", "--output-dir", "out").status == 0
    outcome = etsam("inspect", "data/tomo.mrc", "--preview", "mine.png")
    assert "picture: mine.png" in outcome.stdout
    for picture in ("tomo_preview.png", "out/tomo_preview.png", "out/one.png", "mine.png"):
        assert (work / picture).read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (work / "data").iterdir()] == ["tomo.mrc"]


def test_a_picture_is_advised_by_its_name_where_it_was_asked_for(etsam, work):
    write_mrc(work / "flat.mrc", np.random.default_rng(0).normal(size=(12, 40, 48)).astype(np.float32))
    assert "(--preview)" in etsam("inspect", "flat.mrc").stdout
    outcome = etsam("inspect", "flat.mrc", "--preview")
    assert "(--preview)" not in outcome.stdout
    assert outcome.stdout.count("flat_preview.png") == 2  # in the advice, and where it lies


def test_a_place_for_pictures_without_any_is_refused(etsam, tomogram, work):
    outcome = etsam("inspect", "tomo.mrc", "--output-dir", "new")
    assert (outcome.status, "--preview" in outcome.message) == (1, True)
    assert not (work / "new").exists()


def test_the_picture_shows_means_around_the_three_middle_planes(tomogram):
    _, planes = inspect_file(tomogram)
    values, sections = grey(), planes.sections
    assert sections.averaged == {"z": 5, "y": 33, "x": 49}  # 10 nm at 4, 3 and 2 Å, as far as there are slices
    np.testing.assert_array_equal(sections.image("z", 2), stretched(values[:5].mean(axis=0)))
    np.testing.assert_array_equal(sections.image("y", 19), stretched(values[:, 3:36].mean(axis=1)))


def test_an_existing_picture_stays_unless_told(etsam, tomogram, work):
    (work / "mine.png").write_text("mine")
    outcome = etsam("inspect", "tomo.mrc", "--preview", "mine.png")
    assert outcome.status == 1
    assert "mine.png: exists already" in outcome.message
    assert outcome.stdout == ""
    assert (work / "mine.png").read_text() == "mine"
    assert etsam("inspect", "tomo.mrc", "--preview", "mine.png", "--overwrite").status == 0


def test_one_name_for_two_pictures_is_refused(etsam, tomogram, work):
    write_mrc(work / "in" / "tomo.mrc")
    assert "is one name for 2 files" in etsam("inspect", "tomo.mrc", "in", "--preview", "x.png").message
    assert "the same picture" in etsam("inspect", "tomo.mrc", "in", "--preview").message


def test_what_cannot_be_read_is_told_after_the_others(etsam, tomogram, work):
    (work / "text.mrc").write_text("no volume")
    write("nan.mrc", noise() * np.nan)
    outcome = etsam("inspect", "text.mrc", "tomo.mrc", "nan.mrc")
    assert outcome.status == 1
    assert "text.mrc: not an MRC file" in outcome.message
    assert "nan.mrc: none of the" in outcome.message
    assert "Run: etsam predict tomo.mrc" in outcome.stdout
