"""A copick project, made by copick itself, gives training data and takes predicted masks."""

import json

import numpy as np
import pytest

from etsam.data.manifest import read_manifest
from etsam.errors import EtsamError
from etsam.volume import MrcWriter, read_volume

try:
    import copick

    PROBLEM = ""
except (ImportError, AttributeError) as error:  # not installed, or beside a zarr that it does not run with
    PROBLEM = f"copick cannot be imported: {error}"

needs_copick = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM or "copick is there")
# copick 1.31 on zarr 2.18 and its own models
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

SHAPE, SPACING = (5, 7, 9), 10.012
RUNS = ("TS_1", "TS_10", "TS_2", "TS_3")


def grey(seed):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def membrane(seed):
    return (np.random.default_rng(seed).random(SHAPE) > 0.8).astype(np.uint8)


@pytest.fixture
def project(work):
    """Four runs with tomograms and segmentations, and one without a segmentation; `project.json` is its config."""
    config = {
        "name": "test",
        "description": "four runs",
        "version": "1.31.0",
        "config_type": "filesystem",
        "pickable_objects": [{"name": "membrane", "is_particle": False, "label": 1, "color": [0, 255, 0, 255]}],
        "overlay_root": f"local://{work}/project",
        "overlay_fs_args": {"auto_mkdir": True},
        "user_id": "expert",
    }
    (work / "project.json").write_text(json.dumps(config))
    root = copick.from_file(str(work / "project.json"))
    for seed, name in enumerate((*RUNS, "empty")):
        run = root.new_run(name)
        run.new_voxel_spacing(SPACING).new_tomogram("wbp").from_numpy(grey(seed), levels=1)
        if name != "empty":
            run.new_segmentation(SPACING, "membrane", "1", user_id="expert").from_numpy(membrane(seed))
    return root


def make_manifest(etsam, *arguments):
    common = ["--copick", "project.json", "--tomogram-type", "wbp", "--voxel-size", "10", "--export-dir", "mrc"]
    return etsam("data", "manifest", *common, "--segmentation", "membrane", "--output", "m.csv", *arguments)


@needs_copick
def test_tomograms_and_masks_of_a_project_become_a_manifest(etsam, project, work):
    outcome = make_manifest(etsam, "--split", "0.5,0.25,0.25")
    assert outcome.status == 0, outcome.stderr
    assert "left out: run empty has no segmentation membrane at 10 Å" in outcome.stdout
    samples = {sample.run_id: sample for sample in read_manifest("m.csv")}
    assert sorted(samples) == sorted(RUNS)
    for seed, name in enumerate(RUNS):
        sample = samples[name]
        assert (sample.dataset_id, sample.voxel_size_angstrom, sample.shape) == ("project", SPACING, SHAPE)
        tomogram, mask = read_volume(sample.tomogram), read_volume(sample.target_mask)
        np.testing.assert_array_equal(tomogram.read(), grey(seed))
        np.testing.assert_array_equal(mask.read(), membrane(seed))
        assert mask.dtype == np.int8
        assert tomogram.voxel_size_angstrom == pytest.approx((SPACING,) * 3)
    assert etsam("data", "check", "m.csv", "--quick").status == 0


@needs_copick
def test_one_of_several_segmentations_has_to_be_named(etsam, project, work):
    project.get_run("TS_2").new_segmentation(SPACING, "membrane", "5", user_id="student").from_numpy(membrane(7))
    message = make_manifest(etsam).message
    assert "run TS_2 has 2 segmentations membrane: " in message
    assert "membrane:student:5" in message
    assert not (work / "mrc").exists()
    assert make_manifest(etsam, "--segmentation", "membrane:expert:1").status == 0
    np.testing.assert_array_equal(read_volume("mrc/TS_2_membrane.mrc").read(), membrane(2))


@needs_copick
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--tomogram-type", "denoised"], "no run of project.json has a tomogram denoised"),
        (["--voxel-size", "13.3"], "at 13.3 Å"),
        (["--segmentation", "nucleus"], "no segmentation nucleus at 10 Å"),
        (["--segmentation", "a:b:c:d"], "is not NAME, NAME:USER or NAME:USER:SESSION"),
        (["--copick", "none.json"], "none.json: no such file"),
        (["--copick", "text.json"], "text.json: is no configuration of a copick project"),
    ],
)
def test_what_the_project_does_not_have_is_refused(etsam, project, work, arguments, part):
    (work / "text.json").write_text("no json")
    outcome = make_manifest(etsam, *arguments)
    assert outcome.status == 1
    assert part in outcome.message
    assert not (work / "mrc").exists()


@needs_copick
def test_exported_files_are_never_overwritten(etsam, project, work):
    (work / "mrc").mkdir()
    (work / "mrc" / "TS_3.mrc").write_text("mine")
    assert "1 files exist already, such as mrc/TS_3.mrc; choose another --export-dir" in make_manifest(etsam).message
    assert [path.name for path in (work / "mrc").iterdir()] == ["TS_3.mrc"]


def predicted(name, values, voxel_size=10.0):
    with MrcWriter(name, values.shape, np.int8, voxel_size_angstrom=voxel_size and (voxel_size,) * 3) as writer:
        for z, plane in enumerate(values):
            writer[z] = plane
    return name


@needs_copick
def test_predicted_masks_become_segmentations_of_their_runs(etsam, project, work):
    first = predicted("TS_1_etsam_predicted_mask.mrc", membrane(21))
    other = predicted("TS_10_etsam_predicted_post_processed_mask.mrc", membrane(22))
    outcome = etsam("data", "copick-store", first, other, "--copick", "project.json", "--session", "7")
    assert outcome.status == 0, outcome.stderr
    assert f"{first} -> run TS_1, segmentation membrane:etsam:7 at {SPACING:g} Å" in " ".join(outcome.stdout.split())
    root = copick.from_file("project.json")
    for name, seed in (("TS_1", 21), ("TS_10", 22)):
        (stored,) = root.get_run(name).get_segmentations(name="membrane", user_id="etsam", session_id="7")
        np.testing.assert_array_equal(stored.numpy(), membrane(seed))
        assert stored.voxel_size == SPACING


@needs_copick
def test_a_segmentation_that_exists_is_not_replaced_and_then_none_is_written(etsam, project):
    masks = [predicted(f"{name}_etsam_predicted_mask.mrc", membrane(30)) for name in ("TS_1", "TS_2")]
    assert etsam("data", "copick-store", masks[1], "--copick", "project.json").status == 0
    message = etsam("data", "copick-store", *masks, "--copick", "project.json").message
    assert "run TS_2 has a segmentation membrane:etsam:0" in message
    assert "choose another --session" in message
    assert not copick.from_file("project.json").get_run("TS_1").get_segmentations(user_id="etsam")


REFUSED = {
    "voxel size": ("TS_1_mask.mrc", membrane(1), 13.3, [], "voxel size 13.3 Å, but run TS_1 has tomograms at 10.012"),
    "no voxel size": ("TS_1_mask.mrc", membrane(1), None, [], "its header has no voxel size"),
    "shape": (
        "TS_1_mask.mrc",
        membrane(1)[1:],
        10.0,
        [],
        "shape (4, 7, 9), but the tomogram of run TS_1 has (5, 7, 9)",
    ),
    "name": ("other_mask.mrc", membrane(1), 10.0, [], "no run of the project is called like it"),
    "values": ("TS_1_mask.mrc", membrane(1) * 2, 10.0, [], "is no predicted mask"),
    "object": ("TS_1_mask.mrc", membrane(1), 10.0, ["--name", "nucleus"], "the project has no object nucleus"),
    "user": ("TS_1_mask.mrc", membrane(1), 10.0, ["--user", "my_name"], "copick allows no spaces, underscores"),
}


@needs_copick
@pytest.mark.parametrize("kind", REFUSED)
def test_a_mask_that_does_not_fit_the_project_is_refused(etsam, project, kind):
    name, values, size, flags, part = REFUSED[kind]
    outcome = etsam("data", "copick-store", predicted(name, values, size), "--copick", "project.json", *flags)
    assert outcome.status == 1
    assert part in outcome.message
    for run in copick.from_file("project.json").runs:
        assert all(segmentation.user_id == "expert" for segmentation in run.segmentations)


@needs_copick
def test_two_masks_of_one_run_are_refused(etsam, project):
    masks = [predicted(f"TS_3_etsam_predicted_{kind}.mrc", membrane(1)) for kind in ("mask", "post_processed_mask")]
    assert (
        "are both of run TS_3; store one" in etsam("data", "copick-store", *masks, "--copick", "project.json").message
    )


def test_without_a_copick_that_runs_one_line_says_what_to_do(etsam, work, monkeypatch):
    import sys

    from etsam.sources.files.copick import open_project

    (work / "project.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "copick", None)
    with pytest.raises(EtsamError, match=r"copick is not installed; pip install 'etsam\[copick\]'"):
        open_project("project.json")


@pytest.mark.skipif("has no attribute" not in PROBLEM, reason="copick runs with the zarr that is installed")
def test_beside_a_zarr_that_copick_does_not_run_with_the_message_says_so(etsam, work):
    (work / "project.json").write_text("{}")
    message = make_manifest(etsam).message
    assert "does not run with zarr 3" in message
    assert "environment of its own" in message
