"""The U-Net of benchmarks/: trained for a given time, its masks scored by the commands that score ours."""

import csv
import importlib.util
import json
import shlex
import sys
import time
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
import torch
from conftest import ORIGIN_ZYX, VOXEL_SIZE_ZYX, Outcome, grey, write_mrc

from etsam.data.batch import Clip
from etsam.labels import overlap_scores, stat_counts
from etsam.paths import resource_path
from etsam.volume import read_volume

pytest.importorskip("monai", reason="the U-Net is MONAI's")
FOLDER = resource_path("configs").parent / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("needs a checkout", allow_module_level=True)

pytestmark = pytest.mark.workshop
SHAPES = {
    "a": (20, 44, 60),
    "b": (12, 28, 52),
    "c": (12, 40, 36),
}  # b and c are smaller than a crop, each along two axes
SMALL = ["--crop", "16,32,48", "--features", "4,4,4,4,4,4", "--lr", "0.01"]
MINUTES = 0.15


def membrane(shape):
    """Where `grey` has its dark sheet."""
    mask = np.zeros(shape, np.int8)
    mask[:, shape[1] // 2 : shape[1] // 2 + 3] = 1
    return mask


def lay_out(folder):
    """Two manifests, `m.csv` with a (membrane) and b (validation), `n.csv` with c (without membrane)."""
    for seed, (name, shape) in enumerate(SHAPES.items()):
        empty = name == "c"
        noise = np.random.default_rng(seed).normal(10, 1, shape).astype(np.float32)
        write_mrc(folder / f"{name}.mrc", noise if empty else grey(shape, seed))
        write_mrc(folder / f"{name}_mask.mrc", membrane(shape) * (not empty))
    header = "dataset_id,run_id,split,tomogram,target_mask,without_membrane"
    (folder / "m.csv").write_text(f"{header}\nlab,a,train,a.mrc,a_mask.mrc,\nlab,b,val,b.mrc,b_mask.mrc,\n")
    (folder / "n.csv").write_text(f"{header}\nlab,c,train,c.mrc,c_mask.mrc,yes\n")
    return folder


@pytest.fixture(scope="module")
def script():
    """The script as a module; threads of torch are as before when the tests end."""
    threads = torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("unet3d", FOLDER / "unet3d.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))
    torch.set_num_threads(threads)


@pytest.fixture
def unet(script, capsys, tmp_path):
    """Call the script's command line: `unet("train", ...) -> Outcome`."""

    def call(*arguments):
        capsys.readouterr()
        status = 0
        try:
            script.main([str(item) for item in arguments])
        except SystemExit as end:
            status = end.code
        return Outcome(status, capsys.readouterr().err, tmp_path / "out")

    return call


@pytest.fixture(scope="module")
def trained(script, tmp_path_factory):
    """Folder with tomograms and a trained network in `runs`, and the seconds that training took.

    Seconds of the processor: what is learned does not depend on what else the machine does.
    """
    folder = lay_out(tmp_path_factory.mktemp("unet"))
    manifests = ["--manifest", f"{folder / 'm.csv'}=1.0", "--manifest", f"{folder / 'n.csv'}=0.25"]
    began = time.process_time()
    with pytest.MonkeyPatch.context() as patch:
        for module in (script, importlib.import_module("unet3d_training")):
            patch.setattr(module, "time", SimpleNamespace(monotonic=time.process_time))
        script.main(
            ["train", *manifests, "--minutes", str(MINUTES), "--output-dir", str(folder / "runs"), *SMALL, "--seed=3"]
        )
    return folder, time.process_time() - began


def test_training_lowers_the_loss_and_ends_in_time(trained):
    folder, seconds = trained
    record = json.loads((folder / "runs" / "unet.json").read_text())
    history = record["history"]
    losses = [line["cross_entropy"] + line["dice_loss"] for line in history]
    assert losses[-1] < 0.9 * losses[0]
    assert 0.5 * 60 * MINUTES < record["seconds"] <= seconds < 60 * MINUTES + 3
    assert record["steps"] == history[-1]["steps"] >= 10
    assert record["settings"]["seed"] == 3
    assert record["settings"]["threads"] == 1
    assert [(source["weight"], source["tomograms"]) for source in record["sources"]] == [(1.0, 1), (0.25, 1)]
    assert record["recipe"]["normalize"]["_target_"] == "etsam.normalize.Robust"
    assert {"torch", "monai"} <= set(record["environment"]["packages"])
    with (folder / "runs" / "unet.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    assert record["parameters"] == sum(int(np.prod(tensor["shape"])) for tensor in header.values())


def test_its_masks_are_scored_like_ours(trained, unet, etsam, work):
    folder, _ = trained
    files = [folder / "a.mrc", folder / "b.mrc"]
    outcome = unet("predict", "--weights", folder / "runs/unet.safetensors", "--output-dir", "out", *files)
    assert outcome.status == 0, outcome.stderr
    assert outcome.files == ["a_etsam_predicted_mask.mrc", "b_etsam_predicted_mask.mrc"]
    with mrcfile.open("out/b_etsam_predicted_mask.mrc") as mrc:
        mask = mrc.data.copy()
        assert mask.dtype == np.int8
        assert mask.shape == SHAPES["b"]
        assert tuple(float(mrc.voxel_size[axis]) for axis in "zyx") == VOXEL_SIZE_ZYX
        assert tuple(float(mrc.header.origin[axis]) for axis in "zyx") == ORIGIN_ZYX
    truth = membrane(SHAPES["b"])
    expected = overlap_scores(stat_counts(mask == 1, truth.astype(np.uint8)))
    assert expected.dice > 0.5  # by chance: 0.2 at most
    scoring = [f"data.manifest={folder / 'm.csv'}", "predictions={unet: out}", "metrics=[curve]", "output_dir=scores"]
    scored = etsam("evaluate", *scoring)
    assert scored.status == 0, scored.stderr
    (row,) = csv.DictReader((work / "scores/scores.csv").read_text().splitlines())
    assert (row["method"], row["tomogram"]) == ("unet", "lab/b")
    assert float(row["dice"]) == pytest.approx(expected.dice, abs=1e-9)
    points = "\n".join(f"{z},{y},{x}" for z, y, x in np.argwhere(mask)[::50])
    (work / "points.csv").write_text(f"z_voxel,y_voxel,x_voxel\n{points}\n")
    assert "1.000 of" in etsam("points", "out/b_etsam_predicted_mask.mrc", "points.csv").stdout


def test_the_threshold_is_one_of_probabilities_and_logits_are_written_on_request(trained, unet, work):
    folder, _ = trained
    given = ["predict", folder / "b.mrc", "--weights", folder / "runs/unet.safetensors", "--output-dir", "out"]
    assert unet(*given, "--store-logits", "--threshold", "0.9").status == 0
    logits = read_volume("out/b_etsam_predicted_logits.mrc").read()
    mask = read_volume("out/b_etsam_predicted_mask.mrc").read()
    np.testing.assert_array_equal(mask == 1, logits > np.float32(np.log(9)))
    assert 0 < mask.sum() < (logits > 0).sum()
    before = (work / "out/b_etsam_predicted_mask.mrc").read_bytes()
    assert "b_etsam_predicted_mask.mrc: exists already" in unet(*given).message
    assert (work / "out/b_etsam_predicted_mask.mrc").read_bytes() == before
    assert unet(*given, "--overwrite").status == 0
    np.testing.assert_array_equal(read_volume("out/b_etsam_predicted_mask.mrc").read() == 1, logits > 0)


def test_windows_agree_where_they_overlap(script):
    from unet3d_network import segment

    image = np.random.default_rng(0).random((20, 44, 30)).astype(np.float32)
    for overlap in (0.0, 0.5):
        logits = segment(lambda window: 2 * window - 1, image, (16, 32, 48), overlap)
        np.testing.assert_allclose(logits, 2 * image - 1, atol=1e-5)


def test_voxels_not_annotated_have_no_loss(script):
    from unet3d_training import losses

    logits, masks = torch.randn(2, 1, 4, 5, 6), torch.zeros(2, 1, 4, 5, 6, dtype=torch.uint8)
    masks[:, :, 1:3, 2:4] = 1
    masks[:, :, 3] = 255
    annotated = [float(part) for part in losses(logits, masks)]
    logits[:, :, 3] = 1e3
    assert [float(part) for part in losses(logits, masks)] == annotated
    probability, truth = torch.sigmoid(logits[:, 0, :3]), masks[:, 0, :3].float()
    entropy = -(truth * probability.log() + (1 - truth) * (1 - probability).log()).mean()
    dice = [(2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1) for p, t in zip(probability, truth, strict=True)]
    assert annotated == pytest.approx([float(entropy), 1 - float(sum(dice)) / 2], abs=1e-5)
    perfect = [float(part) for part in losses(torch.where(masks == 1, 30.0, -30.0), masks)]
    assert perfect == pytest.approx([0, 0], abs=1e-6)


def test_a_clip_shorter_than_a_crop_is_continued_without_labels(script):
    from unet3d_training import pad

    images, masks = torch.arange(24.0).view(3, 2, 4), torch.ones(3, 2, 4, dtype=torch.uint8)
    padded = pad(Clip(images, masks, "a", "z", (0, 0, 0), False, (0, 0, 0)), 6)
    np.testing.assert_array_equal(padded.images[:, 0, 0], [8, 0, 8, 16, 8, 0])
    np.testing.assert_array_equal(padded.masks[:, 0, 0], [255, 1, 1, 1, 255, 255])


def test_the_default_has_the_size_of_a_nano_stage(script):
    from unet3d_network import build

    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build(script.FEATURES).parameters())
    assert parameters == pytest.approx(4.32e6, rel=0.01)


def test_the_commands_of_the_readme_are_understood(script):
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("python benchmarks/unet3d.py")]
    parsed = [script.build_parser().parse_args(command) for command in commands]
    assert {args.run for args in parsed} == {script.train, script.predict}


TRAIN = ["train", "--manifest", "m.csv", "--minutes", "0.1", "--output-dir", "out"]
PREDICT = ["predict", "a.mrc", "--output-dir", "out"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*TRAIN[:3], "--output-dir", "out"], "the following arguments are required: --minutes"),
        ([*TRAIN, "--minutes", "0"], "--minutes 0 has to be above 0"),
        ([*TRAIN, "--minutes", "1e-9"], "--minutes 1e-09 were over before the first step"),
        ([*TRAIN, "--manifest", "n.csv=x"], "'x' is no number; write FILE.csv=WEIGHT"),
        ([*TRAIN, "--manifest", "n.csv=0"], "--manifest n.csv=0: the weight has to be above 0"),
        ([*TRAIN, "--manifest", "none.csv"], "none.csv: the manifest cannot be read"),
        ([*TRAIN, "--manifest", "val.csv"], "val.csv: no sample of the split train"),
        ([*TRAIN, "--manifest", "empty.csv"], "mask empty: no voxel is 1"),
        ([*TRAIN, "--crop", "16,16,40"], "three multiples of 16 are needed"),
        ([*TRAIN, "--crop", "16,16"], "'16,16' is not 3 whole numbers"),
        ([*PREDICT, "--weights", "none.safetensors"], "the weights none.safetensors cannot be read"),
        ([*PREDICT, "--weights", "other.safetensors"], "other.safetensors holds no U-Net of this program"),
        ([*PREDICT[:1], "none.mrc", *PREDICT[2:], "--weights", "x"], "none.mrc: no such file"),
        ([*PREDICT, "--weights", "x", "--threshold", "1"], "--threshold 1 (between 0 and 1)"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_leaves_no_file(unet, work, arguments, said):
    from safetensors.torch import save_file

    lay_out(work)
    header = (work / "n.csv").read_text().splitlines()[0]
    (work / "val.csv").write_text(f"{header}\nlab,d,val,c.mrc,c_mask.mrc,yes\n")
    (work / "empty.csv").write_text(f"{header}\nlab,d,train,c.mrc,c_mask.mrc,\n")
    save_file({"weight": torch.zeros(3)}, work / "other.safetensors")
    outcome = unet(*arguments)
    assert outcome.status == 1
    assert said in outcome.message
    assert outcome.files == []


def test_without_monai_the_line_says_what_to_install(unet, work, monkeypatch):
    lay_out(work)
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    assert "pip install 'monai>=1.3'" in unet(*TRAIN).message
