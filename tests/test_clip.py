"""Forward of a clip with gradients: every prompt, what gradients reach, equality with inference, memory settings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import random_tracker, score_bias

from etsam.inference.propagate import track
from etsam.network.tracker import MEMORY_DTYPE
from etsam.training.clip import encode_clip, forward_clip
from etsam.training.losses import MaskLosses
from etsam.training.prompting import ClipPlan, PromptSampler, fixed_prompt

DEPTH, CLIPS, SIDE = 4, 2, 64
CROP = (40, 57)
PLANS = {
    "mask": ClipPlan({0: "mask", 2: "mask"}),
    "box": ClipPlan({0: "box"}, {0: (False,)}),
    "click": ClipPlan({0: "click", 3: "click"}, {0: (False, True), 3: (False, False), 2: (False, False)}),
    "center": ClipPlan({0: "click"}, {0: (False,)}, click_method="center"),
    "grid_zero": ClipPlan({0: "grid_zero"}, grid_interval=7),
    "zero": ClipPlan({0: "zero"}),
    "zero_again": ClipPlan({0: "zero"}, resegment_conditioning=True),
}


@pytest.fixture
def tracker():
    tracker = random_tracker()
    score_bias(tracker, 20.0)
    for module in tracker.modules():  # no dropout, so that two forwards can be compared
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_p"):
            module.dropout_p = 0.0
    return tracker.train()


def clip(depth=DEPTH):
    """Noisy images with a brighter moving bar, (T, B, 3, S, S), and the bar, (T, B, S, S)."""
    generator = torch.Generator().manual_seed(4)
    masks = torch.zeros(depth, CLIPS, SIDE, SIDE, dtype=torch.bool)
    for z in range(depth):
        masks[z, 0, 10 : 50 - z, 8 + 3 * z : 20 + 3 * z] = True
        masks[z, 1, 30 + z : 42 + z, 5:60] = True
    noise = torch.randn(depth, CLIPS, 3, SIDE, SIDE, generator=generator)
    return noise + masks[:, :, None].float(), masks


def loss_of(tracker, plan, **options):
    images, masks = clip()
    return MaskLosses()(forward_clip(tracker, images, masks, plan, **options), masks).total


def gradients(tracker, plan, **options):
    tracker.zero_grad()
    loss_of(tracker, plan, **options).backward()
    return {
        name: p.grad.clone() for name, p in tracker.network.named_parameters() if p.grad is not None and p.grad.any()
    }


def final_logits(outputs):
    return torch.stack([output.low_res_logits for output in outputs])


@pytest.mark.parametrize("kind", PLANS)
def test_every_prompt_gives_outputs_of_the_documented_shapes(tracker, kind):
    plan, (images, masks) = PLANS[kind], clip()
    outputs = forward_clip(tracker, images, masks, plan, crop_shape=CROP)
    for z, output in enumerate(outputs):
        steps = 1 + len(plan.corrections.get(z, ()))
        assert len(output.candidates) == len(output.ious) == len(output.object_scores) == steps
        for candidates, ious, score in zip(output.candidates, output.ious, output.object_scores, strict=True):
            assert candidates.shape == (*ious.shape, SIDE, SIDE)
            assert (ious.shape[0], score.shape) == (CLIPS, (CLIPS, 1))
        assert output.low_res_logits.shape == (CLIPS, 1, SIDE // 4, SIDE // 4)
    assert torch.isfinite(MaskLosses()(outputs, masks).total)


@pytest.mark.parametrize(
    ("kind", "first"), [("mask", True), ("grid_zero", False), ("zero", False), ("zero_again", True)]
)
def test_slice_0_is_supervised_unless_its_output_is_the_prompt_of_inference(tracker, kind, first):
    outputs = forward_clip(tracker, *clip(), PLANS[kind])
    assert [output.supervised for output in outputs] == [first, True, True, True]


REACHED = {
    "encoder": ("image_encoder.trunk.patch_embed.proj.weight", PLANS),
    "memory encoder": ("memory_encoder.out_proj.weight", PLANS),
    "memory attention": ("memory_attention.layers.0.cross_attn_image.q_proj.weight", PLANS),
    "pointers": ("obj_ptr_proj.layers.0.weight", PLANS),
    "mask prompt": ("mask_downsample.weight", ["mask", "grid_zero"]),  # zero: the pointer of an absent object
    "click": ("sam_prompt_encoder.point_embeddings.1.weight", ["click"]),
    "box": ("sam_prompt_encoder.point_embeddings.3.weight", ["box"]),
    "logits before a correction": ("sam_prompt_encoder.mask_downscaling.0.weight", ["click", "box"]),
}


@pytest.mark.parametrize("kind", PLANS)
def test_gradients_reach_every_part_that_the_prompt_uses(tracker, kind):
    found = gradients(tracker, PLANS[kind])
    missing = [part for part, (name, kinds) in REACHED.items() if kind in kinds and name not in found]
    assert missing == []
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("kind", PLANS)
def test_clips_without_any_membrane_on_a_slice_work(tracker, kind):
    images, masks = clip()
    masks[0] = False
    masks[2, 1] = False
    outputs = forward_clip(tracker, images, masks, PLANS[kind])
    loss = MaskLosses()(outputs, masks).total
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("kind", PLANS)
def test_bfloat16_autocast_gives_nearly_the_loss_of_float32(tracker, kind):
    exact = loss_of(tracker, PLANS[kind]).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(tracker, PLANS[kind])
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.05)


def test_same_generator_seed_gives_the_same_plan_and_loss(tracker):
    losses = [
        loss_of(tracker, PromptSampler(box=0.0, click=1.0).draw(DEPTH, np.random.default_rng(9))) for _ in range(2)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", ["zero", "grid_zero"])
@pytest.mark.parametrize("depth", [2, 9])
def test_prompts_of_inference_give_what_inference_gives(tracker, kind, again, depth):
    tracker.eval()
    images, masks = clip(depth)
    plan = replace(PLANS[kind], resegment_conditioning=again)
    prompt = tracker.prepare_prompt(fixed_prompt(kind, plan, CROP)).expand(CLIPS, -1, -1, -1)
    with torch.inference_mode():
        ours = final_logits(forward_clip(tracker, images, masks, plan, crop_shape=CROP, memory_dtype=MEMORY_DTYPE))
        found = dict(track(tracker, images.__getitem__, depth, {0: prompt}, resegment_conditioning=again))
    theirs = torch.stack([found[z].low_res_logits for z in range(depth)])
    assert torch.unique(ours).numel() > 400
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_slices_that_are_alone_do_not_depend_on_each_other(tracker):
    tracker.eval()
    images, masks = clip(3)
    plan = ClipPlan({}, alone=True)
    with torch.inference_mode():
        together = final_logits(forward_clip(tracker, images, masks, plan))
        single = final_logits([forward_clip(tracker, images[z : z + 1], masks[z : z + 1], plan)[0] for z in range(3)])
    torch.testing.assert_close(together, single, rtol=0, atol=1e-5)
    assert torch.unique(together).numel() > 400


def test_memory_is_not_rounded_unless_asked(tracker):
    images, masks = clip()
    with torch.no_grad():
        exact, rounded = (
            final_logits(forward_clip(tracker, images, masks, PLANS["mask"], memory_dtype=dtype))
            for dtype in (None, MEMORY_DTYPE)
        )
    assert 0 < (exact - rounded).abs().max() < 0.1


@pytest.mark.parametrize("options", [{"encode_batch_size": 3}, {"checkpoint_encoder": True}], ids=str)
def test_chunks_and_checkpoints_change_neither_loss_nor_gradients(tracker, options):
    whole, other = gradients(tracker, PLANS["click"]), gradients(tracker, PLANS["click"], **options)
    assert whole.keys() == other.keys()
    for name in whole:
        torch.testing.assert_close(other[name], whole[name], rtol=1e-4, atol=1e-5)


def test_checkpointing_keeps_no_activations_of_the_encoder(tracker):
    images, _ = clip()
    seen = []
    for checkpointed in (False, True):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            encode_clip(tracker, images, None, checkpointed)
        seen.append(sum(kept))
    assert seen[1] < seen[0] / 5


@pytest.mark.parametrize("kind", PLANS)
def test_ignored_voxels_are_neither_prompted_nor_clicked(tracker, kind):
    images, masks = clip()
    ignore = torch.zeros_like(masks)
    ignore[..., 32:] = True
    with torch.no_grad():
        outputs = [
            forward_clip(tracker, images, truth, PLANS[kind], ignore=ignore) for truth in (masks, masks ^ ignore)
        ]
    torch.testing.assert_close(final_logits(outputs[0]), final_logits(outputs[1]), rtol=0, atol=0)


def test_a_clip_is_the_same_in_any_batch(tracker):
    images, masks = clip()
    with torch.no_grad():
        both = final_logits(forward_clip(tracker, images, masks, PLANS["click"], clip_seeds=(5, 6)))
        alone = final_logits(forward_clip(tracker, images[:, 1:], masks[:, 1:], PLANS["click"], clip_seeds=(6,)))
    torch.testing.assert_close(both[:, 1:], alone, rtol=0, atol=1e-4)


def test_corrected_slices_are_conditioning_if_asked(tracker):
    images, masks = clip()
    plan = ClipPlan({0: "click"}, {0: (False,), 1: (False,)})
    with torch.no_grad():
        as_prompt, as_other = (
            final_logits(forward_clip(tracker, images, masks, replace(plan, corrected_as_conditioning=asked)))
            for asked in (True, False)
        )
    assert torch.equal(as_prompt[:2], as_other[:2])
    assert not torch.equal(as_prompt[2], as_other[2])


def test_without_memory_a_slice_is_refused(tracker):
    features = encode_clip(tracker, clip()[0])
    with pytest.raises(ValueError, match="memory of at least one other"):
        tracker.segment(1, features[1], {}, {}, DEPTH)


def test_a_few_steps_on_one_clip_lower_the_loss(tracker):
    sampler, generator = PromptSampler(grid_zero=0.25, zero=0.25, clicks_per_slice=1), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(tracker.parameters(), lr=1e-3)
    before = loss_of(tracker, PLANS["zero"]).item()
    for _ in range(25):
        optimizer.zero_grad()
        loss_of(tracker, sampler.draw(DEPTH, generator)).backward()
        torch.nn.utils.clip_grad_norm_(tracker.parameters(), 1.0)
        optimizer.step()
    assert loss_of(tracker, PLANS["zero"]).item() < 0.7 * before
