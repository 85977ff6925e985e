"""Parts of training that need no run: rates, schedule, scores, the cache of stage-1 logits."""

import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from networks import random_tracker, score_bias

from etsam.app import compose_config
from etsam.errors import ConfigError
from etsam.inference import prompts
from etsam.inference.tiles import Overlapping, Split2x2
from etsam.inference.two_stage import Stage, TwoStage, run_stage, stage2_input
from etsam.labels import stat_counts
from etsam.normalize import MinMaxPositive, Robust, normalize
from etsam.pictures import FOUND, MISSED, WRONG
from etsam.training.callbacks import comparison_picture
from etsam.training.module import OptimizerSettings, StageTraining
from etsam.training.optimizer import freeze_encoder, parameter_groups
from etsam.training.schedule import CosineToFraction
from etsam.training.stage1_cache import Stage1Logits
from etsam.training.validation import ValidationResult, Validator
from etsam.volume import MrcWriter, read_volume

RATES = {"lr": 1e-3, "encoder_lr": 5e-4, "layer_decay": 0.9, "weight_decay": 0.1}


@pytest.fixture
def network():
    return random_tracker().network


def test_every_parameter_is_in_exactly_one_group(network):
    names = [name for group in parameter_groups(network, **RATES) for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())


def test_rates_fall_by_the_layer_decay_from_the_last_block_of_the_encoder_down(network):
    rate = {name: group["lr"] for group in parameter_groups(network, **RATES) for name in group["names"]}
    trunk = "image_encoder.trunk"
    depth = len(network.image_encoder.trunk.blocks)
    assert rate["memory_attention.norm.weight"] == 1e-3
    assert rate["image_encoder.neck.convs.0.conv.weight"] == 5e-4
    assert rate[f"{trunk}.pos_embed"] == 5e-4
    for block in range(depth):
        expected = 5e-4 * 0.9 ** (depth - block)
        assert rate[f"{trunk}.blocks.{block}.attn.qkv.weight"] == pytest.approx(expected)
    assert rate[f"{trunk}.patch_embed.proj.weight"] == pytest.approx(5e-4 * 0.9 ** (depth + 1))


def test_biases_and_norms_do_not_decay(network):
    decay = {name: group["weight_decay"] for group in parameter_groups(network, **RATES) for name in group["names"]}
    assert decay["memory_attention.norm.weight"] == decay["memory_attention.layers.0.linear1.bias"] == 0
    assert decay["memory_attention.layers.0.linear1.weight"] == 0.1


def test_a_frozen_encoder_is_left_out(network):
    freeze_encoder(network)
    names = [name for group in parameter_groups(network, **RATES) for name in group["names"]]
    assert names
    assert not [name for name in names if name.startswith("image_encoder")]


@pytest.mark.parametrize("change", [{"lr": -1}, {"layer_decay": 0}, {"layer_decay": 1.1}, {"weight_decay": -0.1}])
def test_impossible_rates_are_an_error(network, change):
    with pytest.raises(ConfigError, match="have to be"):
        parameter_groups(network, **{**RATES, **change})


def test_the_schedule_warms_up_and_ends_at_the_fraction():
    schedule = CosineToFraction(total=110, fraction=0.1, warmup=10)
    assert schedule(0) == pytest.approx(1 / 11)
    assert schedule(10) == 1
    assert schedule(60) == pytest.approx(0.55)
    assert schedule(110) == schedule(500) == pytest.approx(0.1)


def test_a_run_that_goes_on_for_longer_follows_the_schedule_of_its_new_length(monkeypatch):
    def configured(total):
        settings = OptimizerSettings(lr=1.0, encoder_lr=1.0, final_fraction=0.1, warmup_steps=0)
        stage = StageTraining(random_tracker(), None, None, None, settings, {})
        monkeypatch.setattr(stage, "total_steps", lambda: total)
        return stage.configure_optimizers()["lr_scheduler"]["scheduler"]

    short, longer = configured(100), configured(200)
    for _ in range(100):
        short.optimizer.step()
        short.step()
    assert short.get_last_lr()[0] == pytest.approx(0.1)
    longer.load_state_dict(pickle.loads(pickle.dumps(short.state_dict())))
    longer.optimizer.step()
    longer.step()
    assert longer.get_last_lr()[0] == pytest.approx(CosineToFraction(200, 0.1)(101))


def test_counts_leave_out_voxels_that_nobody_annotated():
    mask = np.array([[1, 1, 0], [0, 1, 0]], bool)
    target = np.array([[1, 0, 1], [0, 255, 255]], np.uint8)
    assert stat_counts(mask, target).tolist() == [1, 1, 1, 1]


@dataclass(frozen=True)
class Pair:
    tomogram: Path
    target_mask: Path


@pytest.fixture
def pair(tmp_path):
    rng = np.random.default_rng(0)
    grey, mask = rng.normal(size=(7, 50, 61)).astype(np.float32), rng.integers(0, 2, (7, 50, 61)).astype(np.int8)
    for name, data in (("t", grey), ("m", mask)):
        with MrcWriter(tmp_path / f"{name}.mrc", data.shape, data.dtype) as writer:
            for z in range(7):
                writer[z] = data[z]
    return Pair(tmp_path / "t.mrc", tmp_path / "m.mrc"), mask


@pytest.fixture
def tracker():
    tracker = random_tracker()
    score_bias(tracker, 20.0)
    return tracker


def normalized(sample, method=None):
    return normalize(read_volume(sample.tomogram), method or Robust(membranes="dark"))


def test_validation_scores_equal_a_direct_count(pair, tracker):
    sample, truth = pair
    validator = Validator(prompts.zero, threshold=0.0)
    result = validator(tracker, sample, normalized(sample))
    logits = validator.segment(tracker, sample, normalized(sample))[1]
    mask = np.stack([logits[z] for z in range(7)]) > 0
    both = (mask & (truth == 1)).sum()
    assert result.dice == pytest.approx(2 * both / (mask.sum() + truth.sum()))
    assert result.iou == pytest.approx(both / (mask | (truth == 1)).sum())
    assert result.precision == pytest.approx(both / mask.sum())
    assert result.recall == pytest.approx(both / truth.sum())
    assert result.truth.sum() == truth.sum(axis=(1, 2)).max()


def test_validation_on_a_part_takes_the_middle_slices(pair, tracker):
    sample, truth = pair
    result = Validator(prompts.zero, max_slices=3)(tracker, sample, normalized(sample))
    assert result.truth.sum() == truth[2:5].sum(axis=(1, 2)).max()


def test_validation_goes_where_the_membrane_is_if_the_middle_has_none(pair, tracker):
    sample, truth = pair
    only = np.zeros_like(truth)
    only[0:2] = truth[0:2]
    with MrcWriter(sample.target_mask, truth.shape, truth.dtype, overwrite=True) as writer:
        for z in range(7):
            writer[z] = only[z]
    validator = Validator(prompts.zero, max_slices=3)
    assert validator.part(sample, 7) == (0, 3)
    assert not validator(tracker, sample, normalized(sample)).empty


@pytest.mark.parametrize(("dtype", "unknown"), [(np.float32, -1), (np.int8, -1), (np.uint16, 255)])
def test_voxels_that_nobody_annotated_are_known_by_their_value_whatever_the_dtype(pair, tracker, dtype, unknown):
    sample, truth = pair
    known = np.ones_like(truth, bool)
    known[:, 10:30] = False
    with MrcWriter(sample.target_mask, truth.shape, dtype, overwrite=True) as writer:
        for z in range(7):
            writer[z] = np.where(known[z], truth[z].astype(np.int16), unknown).astype(dtype)
    validator = Validator(prompts.zero)
    logits = validator.segment(tracker, sample, normalized(sample))[1]
    mask = (np.stack([logits[z] for z in range(7)]) > validator.threshold) & known
    both = (mask & (truth == 1)).sum()
    result = validator(tracker, sample, normalized(sample))
    assert result.dice == pytest.approx(2 * both / (mask.sum() + (truth * known).sum()))
    assert set(np.unique(result.truth)) == {0, 1, 255}


@pytest.mark.parametrize("tiling", [Split2x2(), Overlapping(size_voxels=40)])
@pytest.mark.parametrize("prompt", [prompts.zero, partial(prompts.stage1_mask, interval=3)])
def test_validation_of_stage_2_is_its_prediction(pair, tracker, tmp_path, monkeypatch, tiling, prompt):
    """Also with another threshold for what is scored: stage 1 keeps its own."""
    monkeypatch.setattr("etsam.training.stage1_cache.STORED_DTYPE", np.float32)
    stage1 = Stage(tracker, partial(prompts.grid_zero, interval=10))
    second = random_tracker(seed=1)
    score_bias(second, 20.0)
    method = Robust(membranes="dark")
    predicted = TwoStage(stage1, Stage(second, prompt), tiling)(normalized(pair[0], method))
    assert np.ptp([predicted.stage1_logits[z] for z in range(7)]) > 0.1
    logits1 = Stage1Logits(tmp_path, lambda: stage1, method, {}, tracker.tile_voxels, tiling)
    logits1.prepare([(pair[0], normalized(pair[0], method))])
    validator = Validator(prompt, threshold=0.5, tiling=tiling, stage1_logits=logits1)
    _, validated = validator.segment(second, pair[0], normalized(pair[0], method))
    for z in range(7):
        np.testing.assert_array_equal(validated[z], predicted.logits[z])


def test_clips_of_stage_2_are_what_its_prediction_sees(pair, tracker, tmp_path):
    from etsam.data.clips import ClipDataset
    from etsam.data.manifest import Sample

    stage1 = Stage(tracker, partial(prompts.grid_zero, interval=10))
    method, tiling = Robust(membranes="dark"), Split2x2()
    logits1 = Stage1Logits(tmp_path, lambda: stage1, method, {}, tracker.tile_voxels, tiling)
    sample = Sample("set", "a", "train", pair[0].tomogram, pair[0].target_mask)
    logits1.prepare([(sample, normalized(sample, method))])
    (clip,) = list(ClipDataset([sample], method, num_slices=7, stage1_logits=logits1))
    first = TwoStage(stage1, stage1, tiling)(normalized(sample, method)).stage1_logits
    expected = stage2_input(normalized(sample, method), first, tiling.plan(50, 61, 64), tiling, -0.25).slices
    for z in range(7):
        np.testing.assert_allclose(clip.images[z], expected[z], atol=2e-3)  # stored with 16 bits


def test_workers_that_are_not_forked_can_be_given_stage_1_logits(tmp_path):
    cfg = compose_config(
        "train", ["experiment=nano_stage2", "data.sources.own.manifest=x", f"stage1.folder='{tmp_path}'"]
    )
    cfg.stage1.checkpoint = None
    assert pickle.loads(pickle.dumps(instantiate(cfg.stage1))).folder == tmp_path


def cache(folder, tracker, weights, built, normalization=None, **settings):
    def build():
        built.append(weights)
        return Stage(tracker, partial(prompts.grid_zero, interval=10))

    method = normalization or MinMaxPositive()
    return Stage1Logits(folder, build, method, {"weights": weights}, tracker.tile_voxels, **settings)


def test_stage_1_logits_are_computed_once(pair, tracker, tmp_path):
    built, tomograms = [], [(pair[0], normalized(pair[0], MinMaxPositive()))]
    assert cache(tmp_path / "cache", tracker, "a", built).prepare(tomograms) == 1
    assert cache(tmp_path / "cache", tracker, "a", built).prepare(tomograms) == 0
    assert built == ["a"]


def test_stage_1_logits_that_another_process_made_meanwhile_are_not_computed_again(pair, tracker, tmp_path):
    slices, built = normalized(pair[0], MinMaxPositive()), []
    late = cache(tmp_path / "cache", tracker, "a", built)
    build = late._build

    def other_process_is_faster():
        cache(tmp_path / "cache", tracker, "a", built).prepare([(pair[0], slices)])
        return build()

    late._build = other_process_is_faster
    assert late.prepare([(pair[0], slices)]) == 0
    assert built == ["a", "a"]


def test_stage_1_logits_are_computed_in_the_precision_of_prediction(pair, tracker, tmp_path):
    slices, stage = normalized(pair[0], MinMaxPositive()), Stage(tracker, partial(prompts.grid_zero, interval=10))
    tiles = Overlapping().plan(50, 61, tracker.tile_voxels)
    with torch.autocast("cpu", torch.bfloat16):
        expected = run_stage(stage, slices, tiles)
    half, plain = (cache(tmp_path, tracker, "a", [], precision=precision) for precision in ("bf16-mixed", "32-true"))
    assert half.path(pair[0]) != plain.path(pair[0])
    masks = []
    for logits1 in (half, plain):
        logits1.prepare([(pair[0], slices)])
        masks.append(logits1(pair[0], slices).slices[4])
    expected = stage2_input(slices, expected, tiles, Overlapping(), -0.25).slices[4]
    np.testing.assert_allclose(masks[0], expected, atol=2e-3)
    assert np.abs(masks[1] - expected).max() > 2e-3


def test_other_weights_normalisation_or_tomogram_make_other_logits(pair, tracker, tmp_path):
    sample, built = pair[0], []
    folder = tmp_path / "cache"
    paths = {cache(folder, tracker, "a", built).path(sample), cache(folder, tracker, "b", built).path(sample)}
    paths.add(cache(folder, tracker, "a", built, Robust()).path(sample))
    paths.add(cache(folder, tracker, "a", built, nonfinite="mean").path(sample))
    with MrcWriter(sample.tomogram, (7, 50, 61), np.float32, overwrite=True) as writer:
        for z in range(7):
            writer[z] = np.full((50, 61), z, np.float32)
    paths.add(cache(folder, tracker, "a", built).path(sample))
    assert len(paths) == 5


def test_logits_that_were_not_computed_are_an_error(pair, tracker, tmp_path):
    with pytest.raises(ConfigError, match="no stage-1 logits"):
        cache(tmp_path, tracker, "a", [])(pair[0], normalized(pair[0]))


def test_the_picture_shows_hits_misses_and_false_membrane_in_the_colours_of_the_report():
    truth = np.array([[1, 1, 0, 0, 255]], np.uint8)
    logits = np.array([[5, -5, 5, -5, 5]], np.float32)
    result = ValidationResult(0, 0, 0, 0, False, 0, 0, np.zeros((1, 5), np.float32), logits, truth)
    picture = comparison_picture(result, 0.0)
    assert picture.shape == (1, 10, 3)
    for x, colour in enumerate((FOUND, MISSED, WRONG)):
        paint = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        np.testing.assert_allclose(picture[0, 5 + x], 0.4 * picture[0, x] + 0.6 * paint, atol=1)
    assert tuple(picture[0, 8]) == tuple(picture[0, 9]) == tuple(picture[0, 3])  # true negative, not annotated


def test_training_sees_slices_as_prediction_does():
    from etsam.data.batch import ClipBatch
    from etsam.training.losses import MaskLosses
    from etsam.training.prompting import PromptSampler

    wide = random_tracker(input_slices=3)
    stage = StageTraining(wide, MaskLosses(), PromptSampler(), Validator(prompts.zero))
    images, masks = torch.rand(2, 5, 24, 36), torch.randint(0, 2, (2, 5, 24, 36), dtype=torch.uint8)
    keys = torch.tensor([[0, 0, 0], [0, 0, 1]])
    batch = ClipBatch(images, masks, ["a", "b"], ["z", "z"], [(0, 0, 0)] * 2, [False, False], keys)
    prepared, resized = stage._network_input(batch)
    assert prepared.shape == (3, 2, 3, 64, 64)
    for clip in range(2):
        for z in range(3):  # trained slice z is slice z + 1 of the clip
            seen = wide.prepare(images[clip, z : z + 3][None])
            torch.testing.assert_close(prepared[z, clip], seen[0])
    expected = torch.nn.functional.interpolate(masks[:, 1:4].float(), (64, 64), mode="nearest-exact")
    torch.testing.assert_close(resized.float(), expected.transpose(0, 1))
