"""Every array of the published code's outputs on random weights, within the limits its README suggests.

`ETSAM_GOLDENS=DIR pytest tests/test_goldens.py` checks any folder of that form: `model.yaml`, `stage1.pt`, `stage2.pt`
and the .npz files. Files and arrays that a folder lacks are skipped by name. The copy in `tests/goldens` (README.md
there) is a part of the set, small enough for the repository.
"""

import os
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from etsam.inference import prompts
from etsam.inference.fusion import fuse
from etsam.inference.memory_plan import Batching
from etsam.inference.propagate import PropagationSettings, propagate
from etsam.inference.tiles import Split2x2, Stitched, Tile
from etsam.inference.two_stage import Stage, TwoStage
from etsam.network.build import build_tracker
from etsam.normalize import MinMaxPositive, SoftplusMinMax, normalize
from etsam.postprocess.steps import RemoveThinNoise, SeverMisconnections, apply_steps

FOLDER = Path(os.environ.get("ETSAM_GOLDENS", Path(__file__).parent / "goldens"))
THRESHOLD = -0.25
INTERVAL = 50  # of the README unless an array says otherwise
METHODS = {"clip": MinMaxPositive(), "softplus": SoftplusMinMax()}


def load(name):
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{name} is not in this set")
    return read(path)


@cache
def read(path):
    with np.load(path) as file:
        return dict(file)


def array(file, key):
    if key not in file:
        pytest.skip(f"{key} is not in this set")
    return file[key]


def stack(slices):
    return np.stack([slices[z] for z in range(slices.shape[0])])


@pytest.fixture(scope="module")
def trackers():
    model = FOLDER / "model.yaml"
    if not model.exists():
        pytest.skip("model.yaml is not in this set")
    net = OmegaConf.load(model).model
    found = {}
    for stage in (1, 2):
        weights = FOLDER / f"stage{stage}.pt"
        if weights.exists():
            found[stage] = build_tracker(net, str(weights.absolute()))
    return found


def tracker_of(trackers, stage):
    if stage not in trackers:
        pytest.skip(f"stage{stage}.pt is not in this set")
    return trackers[stage]


def one_stage(tracker, volume, prompt):
    """Logits of one stage in the published way, the whole slice as one tile."""
    depth, height, width = volume.shape
    tile = Tile(0, height, 0, width)
    store = np.zeros((depth, 1, tracker.low_res_side, tracker.low_res_side), np.float32)
    propagate(tracker, volume, [prompt(volume.shape)], [tile], store, PropagationSettings(resegment_conditioning=False))
    return stack(Stitched(store, [tile], volume.shape))


def assert_logits_agree(ours, golden, mean=1e-4, largest=5e-3):
    difference = np.abs(ours - golden)
    assert ours.shape == golden.shape
    assert difference.mean() <= mean
    assert difference.max() <= largest
    assert_masks_agree(ours > THRESHOLD, golden > THRESHOLD)


def assert_masks_agree(ours, golden):
    assert ours.shape == golden.shape
    assert (ours != golden).mean() <= 1e-4


@pytest.mark.parametrize(("name", "method"), [("main.npz", "clip"), ("main.npz", "softplus"), ("long.npz", "clip")])
def test_normalised_volume_is_exactly_the_published_one(name, method):
    file = load(name)
    key = f"{method}/normalised" if name == "main.npz" else "normalised"
    before = file["volume"].copy()
    ours = stack(normalize(file["volume"], METHODS[method]))
    np.testing.assert_allclose(ours, array(file, key), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(file["volume"], before)


def interval_of(name, key, file):
    """The README's rule for the grid interval of each array."""
    dense = key.endswith(("_grid", "_etsam_stage1_partial"))
    if name == "main.npz":
        return int(file["interval_dense"]) if dense else INTERVAL
    if name == "long.npz":
        return 10 if dense else INTERVAL
    if key.startswith("flat/"):
        return int(file["flat_interval"])
    return 10 if key.startswith(("one/", "two/")) else INTERVAL


def prompt_named(kind, interval, stage1_mask=None):
    if kind == "zero":
        return prompts.zero
    if kind == "etsam_stage1_partial":
        return lambda shape: prompts.stage1_mask(shape, stage1_mask, interval=interval)
    return partial(getattr(prompts, kind), interval=interval)


MAIN_KINDS = ["stage1_zero", "stage1_grid", "stage1_grid_zero"]
MAIN_KINDS += ["stage2_zero", "stage2_grid", "stage2_grid_zero", "stage2_etsam_stage1_partial"]


@pytest.mark.parametrize("kind", MAIN_KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_main_logits_of_every_stage_and_prompt(trackers, method, kind):
    file, key = load("main.npz"), f"{method}/{kind}"
    golden, stage = array(file, key), int(kind[5])
    volume = file[f"{method}/normalised"] if stage == 1 else array(file, f"{method}/fused")
    mask = file[f"{method}/stage1_mask"] if kind.endswith("partial") else None
    prompt = prompt_named(kind[7:], interval_of("main.npz", key, file), mask)
    assert_logits_agree(one_stage(tracker_of(trackers, stage), volume, prompt), golden)


@pytest.mark.parametrize("method", METHODS)
def test_fusion_of_the_published_logits_is_exactly_the_published_input_of_stage_2(method):
    file = load("main.npz")
    golden = array(file, f"{method}/fused")
    fused = fuse(file[f"{method}/normalised"], array(file, f"{method}/stage1_grid_zero"))
    np.testing.assert_allclose(stack(fused), golden, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_default_pipeline_gives_the_published_mask(trackers, method):
    file = load("main.npz")
    golden = array(file, f"{method}/mask")
    out = two_stage(trackers, partial(prompts.grid_zero, interval=INTERVAL), prompts.zero)(
        normalize(file["volume"], METHODS[method])
    )
    assert_masks_agree(stack(out.logits) > THRESHOLD, golden > 0)
    if f"{method}/stage1_mask" in file:
        assert_masks_agree(stack(out.stage1_logits) > THRESHOLD, file[f"{method}/stage1_mask"] > 0)


def two_stage(trackers, prompt1, prompt2, tiling=None, batch=1):
    stages = [Stage(tracker_of(trackers, 1), prompt1, THRESHOLD), Stage(tracker_of(trackers, 2), prompt2, THRESHOLD)]
    return TwoStage(*stages, tiling, PropagationSettings(resegment_conditioning=False), Batching(batch))


LONG_KINDS = ["stage1_zero", "stage1_grid_zero", "stage1_grid", "stage2_zero", "stage2_grid"]
LONG_KINDS += ["stage2_etsam_stage1_partial"]


@pytest.mark.parametrize("kind", LONG_KINDS)
def test_long_logits_beyond_the_memory_and_pointer_windows(trackers, kind):
    file = load("long.npz")
    golden, stage, volume = array(file, kind), int(kind[5]), array(file, "normalised")
    if stage == 2:
        volume = stack(fuse(volume, array(file, "stage1_grid_zero")))
    prompt = prompt_named(kind[7:], interval_of("long.npz", kind, file), file["stage1_mask"])
    assert_logits_agree(one_stage(tracker_of(trackers, stage), volume, prompt), golden)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["split", "split_grid_partial"])
def test_split_processing_with_chained_stages(trackers, kind, batch):
    file = load("long.npz")
    golden = array(file, f"{kind}_logits")
    first = partial(prompts.grid_zero if kind == "split" else prompts.grid, interval=10)
    second = prompts.zero if kind == "split" else partial(prompts.stage1_mask, interval=10)
    out = two_stage(trackers, first, second, Split2x2(), batch)(normalize(file["volume"], MinMaxPositive()))
    ours = stack(out.logits)
    assert_logits_agree(ours, golden, mean=3e-4, largest=2e-2)
    assert_masks_agree(ours > THRESHOLD, array(file, f"{kind}_mask") > 0)


SHAPES = ["down", "exact", "lowres", "flat", "one", "two"]


@pytest.mark.parametrize("kind", ["stage1_grid_zero", "stage1_zero"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_larger_than_equal_to_and_smaller_than_the_network(trackers, shape, kind):
    file, key = load("shapes.npz"), f"{shape}/{kind}"
    golden = array(file, key)
    volume = stack(normalize(file[f"{shape}/volume"], MinMaxPositive()))
    prompt = prompt_named(kind[7:], interval_of("shapes.npz", key, file))
    assert_logits_agree(one_stage(tracker_of(trackers, 1), volume, prompt), golden)


def test_absent_object_gives_minus_1024_everywhere(trackers):
    file, main = load("absent.npz"), load("main.npz")
    tracker = tracker_of(trackers, 1)
    bias = tracker.network.sam_mask_decoder.pred_obj_score_head.layers[2].bias
    scores = []

    def keep_score(module, inputs, outputs):
        scores.append(float(outputs[3].squeeze()))

    hook = tracker.network.sam_mask_decoder.register_forward_hook(keep_score)
    try:
        with torch.no_grad():
            bias += float(file["bias_delta"])
        ours = one_stage(tracker, main["clip/normalised"], prompts.zero)
    finally:
        hook.remove()
        with torch.no_grad():
            bias -= float(file["bias_delta"])
    golden = array(file, "stage1_zero")
    absent = (golden == -1024).all(axis=(1, 2))
    np.testing.assert_array_equal((ours == -1024).all(axis=(1, 2)), absent)
    assert absent.sum() >= 1
    assert_logits_agree(ours[~absent], golden[~absent])
    np.testing.assert_allclose(scores[1:], file["object_score_logits"], rtol=0, atol=5e-3)


@pytest.fixture(scope="module")
def traced(trackers):
    """Intermediates of clip/stage1_grid_zero, caught by hooks on the network."""
    tracker, volume = tracker_of(trackers, 1), load("main.npz")["clip/normalised"]
    load("intermediates.npz")
    network, seen = tracker.network, {"memory_conditioned": [], "ious": [], "states": []}
    hooks = [
        network.memory_attention.register_forward_hook(
            lambda module, inputs, out: seen["memory_conditioned"].append(out.clone())
        ),
        network.sam_mask_decoder.iou_prediction_head.register_forward_hook(
            lambda module, inputs, out: seen["ious"].append(out.clone())
        ),
    ]
    with torch.inference_mode():
        memory = tracker.new_memory(volume.shape[0])
        planes = torch.from_numpy(volume)
        prompt = prompts.grid_zero(volume.shape, interval=INTERVAL)[0]
        seen["prompt"] = tracker.prepare_prompt(torch.from_numpy(prompt)[None])
        for z in range(volume.shape[0]):
            image = tracker.prepare(planes[z : z + 1])
            features = tracker.encode(image)
            if z == 1:
                seen["image"], seen["features"] = image, features
            if z == 0:
                seen["states"].append(tracker.prompt(z, features, seen["prompt"], memory))
            else:
                seen["states"].append(tracker.track(z, features, memory))
    for hook in hooks:
        hook.remove()
    return seen


def close(ours, golden, atol):
    np.testing.assert_allclose(np.asarray(ours, dtype=np.float32), golden, rtol=0, atol=atol)


def test_intermediate_image_and_prompt(traced):
    file = load("intermediates.npz")
    close(traced["image"][0], array(file, "model_input_frame1"), 1e-5)
    close(traced["prompt"], array(file, "prompt_mask_model_res"), 0)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_intermediate_image_features(traced, level):
    golden = array(load("intermediates.npz"), f"fpn{level}_frame1")
    ours = traced["features"].levels[level].permute(1, 2, 0).reshape(golden.shape)
    close(ours, golden, 1e-3)


@pytest.mark.parametrize("z", [1, 8, 11])
def test_intermediate_memory_attention(traced, z):
    golden = array(load("intermediates.npz"), f"memory_conditioned_frame{z}")
    close(traced["memory_conditioned"][z - 1].permute(1, 2, 0).reshape(golden.shape), golden, 5e-3)


@pytest.mark.parametrize("z", [0, 1, 8])
def test_intermediate_memory_features_are_rounded_to_bfloat16(traced, z):
    golden = array(load("intermediates.npz"), f"maskmem_features_frame{z}")
    memory = traced["states"][z].memory
    if memory is None:
        pytest.skip(f"slice {z} is out of reach at the end")
    assert memory.dtype == torch.bfloat16
    np.testing.assert_allclose(memory.float(), golden, rtol=2**-7, atol=1e-3)


def test_intermediate_outputs_of_every_slice(traced):
    file = load("intermediates.npz")
    close(torch.cat([s.low_res_logits for s in traced["states"]]), array(file, "low_res_masks"), 5e-3)
    close(torch.cat([s.pointer for s in traced["states"]]), array(file, "obj_ptr"), 5e-3)
    close(torch.cat([s.object_score for s in traced["states"]]), array(file, "object_score_logits"), 5e-3)
    close(torch.cat(traced["ious"]), array(file, "ious"), 1e-3)


STEPS = {
    "thin_5": [RemoveThinNoise(5)],
    "thin_10": [RemoveThinNoise(10)],
    "parallel_b5_s0": [SeverMisconnections(5, 0)],
    "parallel_b5_s5": [SeverMisconnections(5, 5)],
    "parallel_b8_s0": [SeverMisconnections(8, 0)],
    "parallel_b8_s5": [SeverMisconnections(8, 5)],
    "both_10_5_0": [RemoveThinNoise(10), SeverMisconnections(5, 0)],
    "both_5_8_5": [RemoveThinNoise(5), SeverMisconnections(8, 5)],
    "pipeline_both_5_8_5": [RemoveThinNoise(5), SeverMisconnections(8, 5)],
}


@pytest.mark.parametrize("key", STEPS)
def test_post_processing_is_identical(key):
    file = load("postprocess.npz")
    source = "pipeline_mask" if key.startswith("pipeline") else "mask"
    np.testing.assert_array_equal(stack(apply_steps(array(file, source), STEPS[key])), array(file, key))
