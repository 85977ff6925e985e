"""SAM2 over a trunk at voxel resolution: a logit for every voxel, slices of any size, memory on top of the trunk."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from networks import random_tracker, tiny_net
from safetensors.torch import save_file
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from etsam.errors import CheckpointError, ConfigError
from etsam.inference import prompts
from etsam.inference.logit_store import open_store
from etsam.inference.memory_plan import Batching, plan_memory
from etsam.inference.propagate import PropagationSettings, propagate
from etsam.inference.tiles import Overlapping, Split2x2, Stitched, Tile, Whole
from etsam.inference.two_stage import Stage, TwoStage, run_stage, store_for
from etsam.network.build import build_network, build_tracker
from etsam.network.checkpoint import export_weights
from etsam.network.fast.cpu_kernels import faster
from etsam.network.images import extend, mirror
from etsam.network.state import Clicks
from etsam.network.voxel_trunk import VoxelTrunk
from etsam.network.window_attention import WindowAttention
from etsam.training.clip import forward_clip
from etsam.training.prompting import ClipPlan, PromptSampler

NET = "tiny_voxel_test"
SHAPE = (7, 70, 93)
STEP, LEAST = 16, 64  # of the toy: strides of 16 voxels, windows of 4 of them
HALF = 4e-3  # rounding to float16 of logits below 8


@pytest.fixture(scope="module")
def tracker():
    return random_tracker(name=NET)


@pytest.fixture(scope="module")
def untrained():
    return build_tracker(tiny_net(NET))


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(3).random(SHAPE).astype(np.float32)


def run(tracker, volume, tiles=None, folder=None, batching=Batching(), **settings):
    """Logits that `propagate` leaves, (Z, tiles, Y, X) of the tiles' common shape."""
    depth, height, width = volume.shape
    tiles = tiles or [Tile(0, height, 0, width)]
    store = store_for(tracker.logit_format, tiles, depth, folder)
    masks = [prompts.grid_zero((depth, *tile.shape), interval=20) for tile in tiles]
    propagate(tracker, volume, masks, tiles, store, PropagationSettings(**settings), batching)
    return np.stack([np.asarray(store[z], np.float32) for z in range(depth)])


def track_by_hand(tracker, volume):
    """Logits of each slice (Z, H, W) by the tracker's own steps, slice 0 as its prompt."""
    depth = len(volume)
    planes = torch.from_numpy(volume)
    memory = tracker.new_memory(depth)
    found = []
    with torch.no_grad():
        for z in range(depth):
            image = tracker.prepare(planes[tracker.seen_with(z, depth)][None])
            features = tracker.encode(image)
            if z == 0:
                grid = torch.from_numpy(prompts.grid_zero(volume.shape, interval=20)[0])
                found.append(tracker.prompt(0, features, tracker.prepare_prompt(grid[None]), memory))
            else:
                found.append(tracker.track(z, features, memory))
    return torch.cat([state.low_res_logits[:, 0] for state in found]).numpy()


# ------------------------------------------------------------------ slices of any size


def test_inference_is_the_trackers_steps_cropped_to_the_slice(tracker, volume):
    by_hand = track_by_hand(tracker, volume)
    assert by_hand.shape == (7, 80, 96)
    found = run(tracker, volume, resegment_conditioning=False)
    assert np.std(by_hand[1:]) > 0.1
    np.testing.assert_allclose(found[:, 0], by_hand[:, :70, :93], rtol=1e-3, atol=HALF)


@pytest.mark.parametrize("size", [(5, 135, 135), (3, 17, 201), (4, 64, 48), (3, 1, 230), (2, 331, 400)])
def test_a_slice_of_any_size_gets_a_logit_for_every_voxel(tracker, size):
    volume = np.random.default_rng(0).random(size).astype(np.float32)
    tiles = Overlapping().plan(*size[1:], tracker.tile_voxels, tracker.tile_step)
    logits = run_stage(Stage(tracker, prompts.zero), volume, tiles)
    assert logits.shape == size
    found = np.stack([logits[z] for z in range(size[0])])
    assert found.shape == size
    assert np.isfinite(found).all()
    assert np.std(found) > 0.1


def test_what_is_seen_of_a_slice_is_the_slice_continued_as_in_a_mirror(tracker):
    plane = torch.rand(1, 3, 70, 93)
    image = tracker.prepare(plane)
    assert image.shape == (1, 3, 80, 96)
    by_hand = torch.from_numpy(np.pad(plane.numpy(), ((0, 0), (0, 0), (0, 10), (0, 3)), mode="reflect"))
    torch.testing.assert_close(image, tracker.prepare(by_hand), rtol=0, atol=0)
    torch.testing.assert_close(image[..., :70, :93], (plane - tracker.mean) / tracker.std, rtol=0, atol=0)


@pytest.mark.parametrize(("shape", "size"), [((3, 5), (16, 16)), ((1, 2), (5, 7)), ((4, 6), (4, 6)), ((7, 3), (8, 3))])
def test_a_mirror_goes_on_as_often_as_it_takes(shape, size):
    image = np.random.default_rng(1).random((2, *shape))
    expected = np.pad(image, ((0, 0), (0, size[0] - shape[0]), (0, size[1] - shape[1])), mode="reflect")
    np.testing.assert_array_equal(mirror(torch.from_numpy(image), size), expected)


def test_prompts_end_with_the_slice(tracker):
    prompt = tracker.prepare_prompt(torch.ones(1, 70, 93, dtype=torch.bool))
    assert prompt.shape == (1, 1, 80, 96)
    assert float(prompt.sum()) == 70 * 93
    torch.testing.assert_close(extend(torch.ones(2, 3), (3, 5), 7)[2], torch.full((5,), 7.0))


def test_image_sides_are_multiples_of_sixteen_and_no_smaller_than_a_window(tracker):
    assert tracker.tile_step == STEP
    assert tracker.image_shape((135, 201)) == (144, 208)
    assert tracker.image_shape((1, 64)) == (LEAST, 64)
    assert tracker.logit_format.shape((135, 201)) == (135, 201)


def test_nothing_is_magnified_and_stock_networks_keep_their_square():
    stock = random_tracker()
    assert stock.tile_step is None
    assert stock.image_shape((135, 201)) == (64, 64)
    assert stock.logit_format.shape((135, 201)) == (16, 16)
    assert stock.logit_format.dtype is np.float32


# ------------------------------------------------------------------ tiles


@pytest.mark.parametrize("size", [(600, 333), (928, 960), (513, 512), (2000, 1444)])
def test_tiles_are_no_larger_than_so_many_of_them_have_to_be(size):
    fixed, fitting = Overlapping().plan(*size, 512), Overlapping().plan(*size, 512, 16)
    assert len(fitting) == len(fixed)
    covered = np.zeros(size, int)
    for tile in fitting:
        covered[tile.index] += 1
    assert covered.min() == 1
    for sides, length in zip(({t.shape[0] for t in fitting}, {t.shape[1] for t in fitting}), size, strict=True):
        (side,) = sides
        assert side <= 512
        assert side == length or side % 16 == 0
    for ends in ({(t.y0, t.y1) for t in fitting}, {(t.x0, t.x1) for t in fitting}):
        ordered = sorted(ends)
        assert all(before[1] - after[0] >= 64 for before, after in pairwise(ordered))


def test_tiles_of_a_large_slice_cost_a_fifth_more_than_the_slice():
    area = sum(tile.shape[0] * tile.shape[1] for tile in Overlapping().plan(928, 960, 512, 16))
    assert area / (928 * 960) == pytest.approx(1.14, abs=0.01)


def test_tiles_meet_without_seams(untrained):
    """Inside of the overlap they are blended; outside, a tile is what it is alone."""
    volume = np.random.default_rng(1).random((2, 100, 250)).astype(np.float32)
    tiles = Overlapping(overlap_voxels=40).plan(100, 250, 160, 16)
    assert [tile.shape for tile in tiles] == [(100, 160)] * 2
    logits = run_stage(Stage(untrained, prompts.zero), volume, tiles)
    for tile, alone in zip(tiles, (slice(0, 90), slice(160, 250)), strict=True):
        only = run_stage(
            Stage(untrained, prompts.zero), volume[:, tile.index[0], tile.index[1]], [Tile(0, 100, 0, 160)]
        )
        inside = slice(alone.start - tile.x0, alone.stop - tile.x0)
        np.testing.assert_allclose(logits[1][:, alone], only[1][:, inside], rtol=1e-3, atol=HALF)


@pytest.mark.parametrize("tiling", [Overlapping(), Whole(), Split2x2()])
def test_two_stages_run_whatever_the_tiles(tracker, volume, tiling):
    both = TwoStage(Stage(tracker, prompts.grid_zero), Stage(tracker, prompts.zero), tiling)
    output = both(volume)
    for logits in (output.stage1_logits, output.logits):
        assert logits.shape == SHAPE
        assert np.std(logits[3]) > 0.1


def test_tiles_of_different_shapes_are_each_what_they_are_alone(untrained, volume):
    odd = volume[:, :69]
    tiles = Split2x2().plan(69, 93, 160, 16)
    together = Stitched(_store(untrained, odd, tiles), tiles, odd.shape, at_voxels=True)
    for tile in tiles:
        padded = np.pad(
            odd[(slice(None), *tile.index)], ((0, 0), (0, 64 - tile.shape[0]), (0, 64 - tile.shape[1])), "reflect"
        )
        alone = _store(untrained, padded, [Tile(0, 64, 0, 64)])
        np.testing.assert_allclose(
            together[4][tile.index], alone[4][0, : tile.shape[0], : tile.shape[1]], rtol=1e-3, atol=HALF
        )


def _store(tracker, volume, tiles, **settings):
    store = store_for(tracker.logit_format, tiles, len(volume))
    masks = [prompts.zero((len(volume), *tile.shape)) for tile in tiles]
    propagate(tracker, volume, masks, tiles, store, PropagationSettings(**settings))
    return store


@pytest.mark.parametrize("settings", [{"tile_batch_size": 2}, {"encode_batch_size": 3}, {"tile_workers": 2}])
def test_batches_and_threads_change_nothing(tracker, volume, settings):
    tiles = Overlapping(overlap_voxels=16).plan(70, 93, 80, 16)
    assert len(tiles) == 2
    np.testing.assert_allclose(
        run(tracker, volume, tiles, batching=Batching(**settings)), run(tracker, volume, tiles), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("tiles", [None, Split2x2().plan(69, 93, 160)])
def test_views_are_the_mean_of_mirrored_runs(untrained, volume, tiles):
    odd = volume[:, :69]
    whole = tiles or [Tile(0, 69, 0, 93)]
    both = _store(untrained, odd, whole, views=2)
    for number, tile in enumerate(whole):
        height, width = tile.shape
        size = untrained.image_shape((max(t.shape[0] for t in whole), max(t.shape[1] for t in whole)))
        seen = mirror(torch.from_numpy(odd[(slice(None), *tile.index)].copy()), size).numpy()
        plain = _store(untrained, seen, [Tile(0, size[0], 0, size[1])])
        turned = _store(untrained, seen[:, :, ::-1].copy(), [Tile(0, size[0], 0, size[1])])
        mean = (np.asarray(plain, np.float32)[:, 0] + np.asarray(turned, np.float32)[:, 0, :, ::-1]) / 2
        np.testing.assert_allclose(both[:, number, :height, :width], mean[:, :height, :width], rtol=1e-3, atol=2 * HALF)


def test_a_file_keeps_what_memory_keeps_in_half_the_bytes_of_float32(tracker, volume, tmp_path):
    in_memory, in_file = run(tracker, volume), run(tracker, volume, folder=tmp_path)
    np.testing.assert_array_equal(in_file, in_memory)
    store = open_store((2, 1, 70, 93), None, tracker.logit_format.dtype)
    assert store[0].nbytes == 2 * 70 * 93
    exact = np.linspace(-8, 8, 2001, dtype=np.float32)
    assert np.abs(exact.astype(tracker.logit_format.dtype) - exact).max() <= HALF


# ------------------------------------------------------------------ the trunk, and what is added to it


def test_an_untrained_network_says_what_its_trunk_says(untrained, volume):
    image = untrained.prepare(torch.from_numpy(volume)[None, 2:5])
    with torch.no_grad():
        trunk = untrained.network.image_encoder.trunk.logits(image)[0, 0, :70, :93]
    np.testing.assert_allclose(run(untrained, volume)[3, 0], trunk, rtol=1e-3, atol=HALF)


def test_memory_changes_what_is_said_of_later_slices_once_the_decoder_adds_something(tracker, untrained, volume):
    changed = volume.copy()
    changed[0] = 1 - changed[0]  # seen by slices 0 and 1; remembered by those after them
    for one, remembers in ((tracker, True), (untrained, False)):
        moved = np.abs(track_by_hand(one, changed) - track_by_hand(one, volume))[2:].max(axis=(1, 2))
        assert (moved > 1e-4).all() if remembers else (moved == 0).all()


def test_prompts_change_what_is_said_once_the_decoder_adds_something(tracker):
    image = tracker.prepare(torch.rand(1, 3, 70, 93))
    with torch.no_grad():
        features = tracker.encode(image)
        alone = tracker.decode(0, features, 1)
        clicked = tracker.decode(0, features, 1, clicks=Clicks(torch.tensor([[[9.0, 60.0]]]), torch.ones(1, 1).int()))
        again = tracker.correct(clicked, Clicks(torch.zeros(1, 2, 2), torch.ones(1, 2).int()), initial=True)
    for one in (clicked, again):
        assert one.logits.shape == (1, 1, 80, 96)
        assert (one.logits - alone.logits).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["mask", "click", "box", "grid_zero"])
def test_gradients_reach_every_part(kind):
    tracker = random_tracker(name=NET).train()
    images = torch.rand(3, 2, 3, 64, 80)
    masks = torch.rand(3, 2, 64, 80) > 0.8
    outputs = forward_clip(tracker, images, masks, ClipPlan(prompts={0: kind}, resegment_conditioning=True))
    assert outputs[2].candidates[0].shape == (2, 1, 64, 80)
    sum(output.candidates[-1].square().mean() for output in outputs).backward()
    network = tracker.network
    for part in (
        *network.image_encoder.trunk.down,
        *network.image_encoder.trunk.up,
        network.image_encoder.trunk.head,
        network.image_encoder.neck,
        network.memory_attention,
        network.memory_encoder,
        *network.sam_mask_decoder.fine,
        *network.sam_mask_decoder.output_upscaling,
        network.sam_mask_decoder.transformer,
        network.obj_ptr_proj,
    ):
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        assert gradients
        assert max(float(gradient.abs().max()) for gradient in gradients) > 0


def test_each_slice_alone_trains_the_trunk_and_the_decoder():
    tracker = build_tracker(tiny_net(NET)).train()
    plan = PromptSampler(box=0, click=0, alone=1).draw(2, np.random.default_rng(0))
    outputs = forward_clip(tracker, torch.rand(2, 1, 3, 64, 64), torch.rand(2, 1, 64, 64) > 0.8, plan)
    sum(output.candidates[0].square().mean() for output in outputs).backward()
    decoder = tracker.network.sam_mask_decoder.output_hypernetworks_mlps[0].layers[-1]
    assert float(decoder.weight.grad.abs().max()) > 0  # zero itself, it can leave zero
    assert float(tracker.network.image_encoder.trunk.head.weight.grad.abs().max()) > 0


# ------------------------------------------------------------------ windows of memory attention


class Mean(torch.nn.Module):
    """Stands for attention: each token gets the mean of all memories and its own value."""

    def forward(self, curr, curr_pos, memory, memory_pos, num_obj_ptr_tokens):
        return curr[0] + (memory + memory_pos).mean(dim=0, keepdim=True)


def test_a_token_attends_to_the_memories_of_its_window_and_to_all_pointers():
    height, width, window, slots, pointers = 8, 12, 4, 2, 3
    tokens, memory = torch.rand(96, 2, 5), torch.rand(slots * 96 + pointers, 2, 5)
    attended = WindowAttention(Mean(), window, overlap=0)(
        [tokens], [tokens], memory, torch.zeros_like(memory), pointers, (height, width)
    )
    maps = memory[: slots * 96].unflatten(0, (slots, height, width))
    for y, x in ((0, 0), (3, 4), (7, 11), (5, 7)):
        rows, columns = (slice(at // window * window, at // window * window + window) for at in (y, x))
        inside = torch.cat([maps[:, rows, columns].flatten(0, 2), memory[slots * 96 :]])
        expected = tokens[y * width + x] + inside.mean(dim=0)
        torch.testing.assert_close(attended[y * width + x], expected)


@pytest.mark.parametrize(("size", "overlap"), [((4, 4), 0), ((5, 9), 0), ((7, 13), 2)])
def test_windows_cover_maps_of_any_size(size, overlap):
    tokens, memory = torch.rand(size[0] * size[1], 1, 3), torch.zeros(size[0] * size[1], 1, 3)
    attended = WindowAttention(Mean(), 4, overlap)([tokens], [tokens], memory, memory, 0, size)
    torch.testing.assert_close(attended, tokens)


def test_one_window_is_the_attention_itself(tracker):
    windows = tracker.network.memory_attention
    tokens, memory = torch.rand(16, 2, 32), torch.rand(3 * 16 + 4, 2, 8)
    given = {
        "curr": [tokens],
        "curr_pos": [0 * tokens],
        "memory": memory,
        "memory_pos": memory,
        "num_obj_ptr_tokens": 4,
    }
    with torch.no_grad():
        torch.testing.assert_close(windows(**given, size=(4, 4)), windows.attention(**given))


def test_what_prediction_computed_serves_training():
    tokens, memory = torch.rand(77, 1, 3, requires_grad=True), torch.zeros(77, 1, 3)
    windows = WindowAttention(Mean(), 5)
    with torch.inference_mode():
        windows([tokens], [tokens], memory, memory, 0, (7, 11))
    windows([tokens], [tokens], memory, memory, 0, (7, 11)).sum().backward()
    torch.testing.assert_close(tokens.grad, torch.ones_like(tokens))


def test_a_map_smaller_than_a_window_is_refused(tracker):
    with pytest.raises(ValueError, match="smaller"):
        tracker.network.memory_attention(
            [torch.zeros(6, 1, 32)], [torch.zeros(6, 1, 32)], torch.zeros(6, 1, 8), None, 0, (2, 3)
        )


# ------------------------------------------------------------------ memory, speed, files


def test_what_is_remembered_does_not_grow_with_the_slices(tracker):
    memory = tracker.new_memory(60)
    sizes = []
    with torch.no_grad():
        features = tracker.encode(tracker.prepare(torch.rand(1, 3, 64, 80)))
        tracker.prompt(0, features, torch.zeros(1, 1, 64, 80), memory)
        for z in range(1, 50):
            state = tracker.track(z, features, memory)
            kept = [value for one in memory.tracked.values() for value in vars(one).values() if value is not None]
            sizes.append(sum(value.nbytes for value in kept))
    assert sizes[20] == sizes[-1]
    assert sizes[-1] < 4 * state.low_res_logits.nbytes  # not one of 17 slices is kept with its logits


def test_faster_kernels_compute_the_same(tracker, volume):
    plain = track_by_hand(tracker, volume)
    with faster(tracker):
        np.testing.assert_allclose(track_by_hand(tracker, volume), plain, rtol=0, atol=2e-4)


def test_large_tiles_are_worked_at_by_all_cores_where_there_are_more_cores_than_tiles(tracker, monkeypatch):
    for cores, workers in ((1, 1), (2, 2), (4, 4), (8, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert plan_memory([tracker, tracker], num_tiles=4).tile_workers == workers


def test_weights_go_through_a_file(tracker, volume, tmp_path):
    save_file(tracker.network.state_dict(), tmp_path / "a.safetensors")
    export_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    again = build_tracker(tiny_net(NET), str(tmp_path / "b.safetensors"), seed=5)
    np.testing.assert_array_equal(run(again, volume), run(tracker, volume))


def test_training_starts_from_a_trunk_alone_and_nothing_else_does(tracker, tmp_path):
    trunk = tracker.network.image_encoder.trunk
    save_file(trunk.state_dict(), tmp_path / "trunk.safetensors")
    started = build_tracker(tiny_net(NET), str(tmp_path / "trunk.safetensors"), widen=True)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(started.network.image_encoder.trunk.logits(image), trunk.logits(image))
    with pytest.raises(CheckpointError, match="missing"):
        build_tracker(tiny_net(NET), str(tmp_path / "trunk.safetensors"))


def test_weights_of_the_first_generation_are_refused_by_its_name(tmp_path):
    save_file(build_network(tiny_net("nano_v1")).state_dict(), tmp_path / "old.safetensors")
    with pytest.raises(CheckpointError, match=r"net=nano_v1"):
        build_tracker(tiny_net(NET), str(tmp_path / "old.safetensors"))
    save_file(build_network(tiny_net(NET)).state_dict(), tmp_path / "new.safetensors")
    with pytest.raises(CheckpointError, match=r"net=nano"):
        build_tracker(tiny_net(), str(tmp_path / "new.safetensors"))


@pytest.mark.parametrize(
    "changes",
    [
        {"multimask_output_in_sam": True},
        {"pred_obj_scores": True},
        {"tile_step": 24},
        {"decoder_widths": [4, 4, 8]},
        {"input_slices": 4},
    ],
)
def test_settings_that_this_network_has_not_got_are_refused(changes):
    with pytest.raises(ConfigError, match="net"):
        build_tracker(tiny_net(NET, **changes))


def test_the_trunk_normalises_in_float32_and_goes_on_in_the_precision_of_the_rest():
    trunk = build_tracker(tiny_net(NET)).network.image_encoder.trunk
    image = torch.rand(1, 3, 64, 80)
    with torch.no_grad():
        plain = trunk.logits(image)
        with torch.autocast("cpu", torch.bfloat16):
            levels = trunk(image)
            lower = trunk.logits(image).float()
    assert {level.dtype for level in levels} == {torch.bfloat16}
    assert 0 < (lower - plain).abs().max() < 0.05 * plain.abs().max()


class LiveBytes(TorchDispatchMode):
    """Largest sum of the tensors that are alive at a time, of those that are made within."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in args if isinstance(one, torch.Tensor)}
        for one in made if isinstance(made, (tuple, list)) else (made,):
            storage = one.untyped_storage() if isinstance(one, torch.Tensor) else None
            if storage is not None and storage._cdata not in given:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: known for key, known in self.alive.items() if not known[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return made


def test_without_gradients_a_slice_takes_little_more_than_four_maps_of_the_finest_level():
    trunk = VoxelTrunk(input_slices=21, widths=(24, 48, 96), seen_at=2).eval()
    images = torch.rand(1, 21, 96, 80)
    with LiveBytes() as learning:
        expected = trunk.logits(images).detach()
    with torch.no_grad(), LiveBytes() as predicting:
        images = images.contiguous(memory_format=torch.channels_last)
        found = trunk.logits(images)
    assert torch.equal(found, expected)
    finest = 4 * 24 * 96 * 80
    assert predicting.peak < (21 / 24 + 4.2) * finest < learning.peak


def test_images_come_as_the_trunk_takes_them_so_that_it_makes_no_copy(tracker):
    planes = torch.rand(2, tracker.input_slices, 70, 93)
    images = tracker.prepare(planes)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images[..., :70, :93], (planes - 0.5) / 0.25)


def test_an_image_of_another_size_is_no_image_of_the_trunk(tracker):
    with pytest.raises(ValueError, match="multiples of 16"):
        tracker.network.image_encoder.trunk(torch.rand(1, 3, 64, 72))


def test_stage_one_of_the_method_is_prompted_by_a_grid_over_the_slice_alone(tracker, volume):
    store = store_for(tracker.logit_format, [Tile(0, 70, 0, 93)], 7)
    prompt = partial(prompts.grid_zero, interval=20)
    tiles, settings = [Tile(0, 70, 0, 93)], PropagationSettings(resegment_conditioning=False)
    propagate(tracker, volume, [prompt(SHAPE)], tiles, store, settings)
    expected = np.where(prompt(SHAPE)[0], 10, -10)
    np.testing.assert_array_equal(np.asarray(store[0])[0], expected)
