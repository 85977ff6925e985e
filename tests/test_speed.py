"""What makes inference fast changes nothing of what it computes."""

import json
import logging
import re
import sys
import threading

import numpy as np
import pytest
import speed
import speed_pairs
import torch
from conftest import write_mrc
from flops import matmul_rate, slice_flops
from networks import random_tracker, score_bias, tiny_net

from etsam.errors import ConfigError
from etsam.inference import prompts
from etsam.inference.encode_ahead import EncodeBatch, EncodedAhead, SlicesAhead
from etsam.inference.memory_plan import Batching
from etsam.inference.propagate import propagate
from etsam.inference.tiles import Tile
from etsam.network.build import build_tracker
from etsam.network.fast import cpu_kernels, heap
from etsam.network.fast.cpu_kernels import faster
from etsam.network.fast.gpu_graphs import graphed

SHAPE = (21, 40, 57)
needs_onednn = pytest.mark.skipif(not cpu_kernels.available(), reason="torch without oneDNN")


@pytest.fixture(scope="module")
def volume():
    z, y, x = np.indices(SHAPE)
    rings = np.sin(np.hypot(y - 20 - 0.3 * z, x - 30) / 3)
    return (0.5 + 0.25 * rings + 0.2 * np.random.default_rng(5).normal(size=SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def tracker():
    found = random_tracker()
    score_bias(found, 20.0)
    return found


def logits_of(tracker, volume, tiles, **sizes):
    out = np.zeros((SHAPE[0], len(tiles), tracker.low_res_side, tracker.low_res_side), np.float32)
    masks = [prompts.grid((SHAPE[0], *tile.shape), interval=7) for tile in tiles]
    propagate(tracker, volume, masks, tiles, out, batching=Batching(**sizes))
    return out


TILES = [Tile(0, 40, 0, 30), Tile(0, 40, 27, 57)]


@needs_onednn
def test_faster_kernels_compute_the_same(tracker, volume, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_LEAST_SCORES", 0)
    fast = logits_of(tracker, volume, TILES)
    monkeypatch.setattr(cpu_kernels, "available", lambda: False)
    plain = logits_of(tracker, volume, TILES)
    assert plain.std() > 0.1
    np.testing.assert_allclose(fast, plain, rtol=0, atol=2e-5)
    assert (fast != plain).any()  # they are other kernels


@needs_onednn
def test_every_layer_is_as_before_when_the_context_ends(tracker):
    def replaced():
        return [name for name, module in tracker.named_modules() if "forward" in vars(module)]

    x = torch.zeros(1, 3, tracker.side, tracker.side)
    before = replaced()
    with faster(tracker):
        assert len(replaced()) > len(before) + 20
    assert replaced() == before
    assert tracker.encode(x).levels[0].requires_grad


@needs_onednn
def test_attention_to_memories_uses_the_narrow_values_in_blocks(tracker, monkeypatch):
    attention = tracker.network.memory_attention.layers[0].cross_attn_image
    side, pointers = 4, 3
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, side**2, attention.embedding_dim, generator=generator)
    memory = torch.randn(2, 3 * side**2 + pointers, attention.kv_in_dim, generator=generator)
    monkeypatch.setattr(cpu_kernels, "_LEAST_SCORES", 0)
    monkeypatch.setattr(cpu_kernels, "_QUERIES", 5)  # not a divisor of 16
    monkeypatch.setattr(cpu_kernels, "_KEYS", 7)  # nor of 51
    with torch.no_grad():
        plain = attention(q, memory + 0.5, memory, num_k_exclude_rope=pointers)
        widths = []
        attend = cpu_kernels._attend
        monkeypatch.setattr(cpu_kernels, "_attend", lambda *a: (widths.append(a[2].shape), attend(*a))[1])
        with faster(attention):
            fast = attention(q, memory + 0.5, memory, num_k_exclude_rope=pointers)
    assert widths == [(3 * side**2 + pointers, attention.kv_in_dim)] * 2
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("strength", [0.01, 1.0, 300.0])
def test_attention_in_blocks_equals_that_of_all_scores_also_where_one_rules(strength, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_QUERIES", 4)
    monkeypatch.setattr(cpu_kernels, "_KEYS", 10)
    generator = torch.Generator().manual_seed(1)
    queries, keys, values = (torch.randn(size, generator=generator) for size in ((9, 32), (43, 32), (43, 6)))
    found = torch.empty(9, 6)
    cpu_kernels._attend(strength * queries, keys, values, found)
    expected = torch.softmax(strength * queries.double() @ keys.double().T, -1) @ values.double()
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5 * max(1.0, strength))


@needs_onednn
def test_with_gradients_or_autocast_layers_go_the_usual_way():
    layer = torch.nn.Linear(3, 4)
    with faster(layer):
        assert layer(torch.ones(2, 3)).requires_grad
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.ones(2, 3)).dtype == torch.bfloat16
        with torch.no_grad():
            assert layer(torch.ones(0, 3)).shape == (0, 4)


def test_the_heap_is_kept_within_the_outermost_context_only(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

        def malloc_trim(self, pad):
            calls.append("trim")

    monkeypatch.setattr(heap, "_glibc", Library)
    with heap.retain_freed_memory():
        with heap.retain_freed_memory():
            entered = len(calls)
        assert len(calls) == entered == 3
        assert (-4, 0) in calls  # no block is mapped for itself
        assert (-8, 1) in calls  # threads share one heap
    assert (-4, 65536) in calls[3:]
    assert calls[-1] == "trim"


@pytest.mark.parametrize("size", [2, 4, 30])
def test_encoding_slices_together_changes_nothing(tracker, volume, size):
    one = logits_of(tracker, volume, TILES, tile_batch_size=2)
    together = logits_of(tracker, volume, TILES, tile_batch_size=2, encode_batch_size=size)
    np.testing.assert_allclose(together, one, rtol=0, atol=2e-5)


class Encoder:
    """Encodes at most so many slices."""

    def __init__(self, most):
        self.most, self.sizes = most, []

    def encode(self, images):
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return random_features(images)


def random_features(images):
    from etsam.network.state import SliceFeatures

    level = images.mean(dim=(1, 2, 3))[None, :, None]  # (1, B, 1)
    return SliceFeatures([level], [torch.zeros_like(level)], [(1, 1)])


def image_at(z):
    return torch.full((1, 3, 2, 2), float(z))


def test_out_of_memory_halves_the_batch_once_with_a_warning(caplog):
    encoder, batch = Encoder(most=3), EncodeBatch(6)
    features = EncodedAhead(encoder, image_at, list(range(9)), batch)
    with caplog.at_level(logging.WARNING):
        found = [float(features[z].levels[0]) for z in range(9)]
    assert found == list(range(9))
    assert encoder.sizes == [6, 3, 3, 3]
    assert "from now on 3" in caplog.text
    assert caplog.text.count("out of memory") == 1
    encoder.most = 1
    with pytest.raises(torch.OutOfMemoryError):
        EncodedAhead(encoder, image_at, list(range(9)), batch)[0]


def test_a_slice_out_of_order_is_encoded_alone():
    encoder = Encoder(most=4)
    features = EncodedAhead(encoder, image_at, [1, 2, 4, 5], EncodeBatch(3))
    assert [float(features[z].levels[0]) for z in (0, 1, 2, 3, 4, 5)] == [0, 1, 2, 3, 4, 5]
    assert encoder.sizes == [1, 3, 1, 1]


class Reads:
    shape = (9, 2, 3)

    def __init__(self):
        self.read, self.threads = [], set()

    def __getitem__(self, z):
        if z == 7:
            raise OSError("cannot read slice 7")
        self.read.append(z)
        self.threads.add(threading.get_ident())
        return np.full((2, 3), z, np.uint8)


@pytest.mark.parametrize("ahead", [0, 2])
def test_slices_are_read_once_and_a_few_are_kept(ahead):
    slices = Reads()
    with SlicesAhead(slices, kept=3, ahead=ahead) as planes:
        for z in range(1, 4):
            for other in (z - 1, z, z + 1):
                assert planes[other].dtype == np.float32
                assert planes[other][0, 0] == other
        assert len(planes._planes) <= 3 + ahead
    assert slices.read == list(range(len(slices.read)))  # each once, in order
    assert 5 <= len(slices.read) <= 5 + ahead
    assert (threading.get_ident() in slices.threads) == (ahead == 0)


def test_slices_that_may_not_be_written_to_are_copied_others_are_not():
    volume = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    with SlicesAhead(volume, 2, 0) as planes:
        assert np.shares_memory(planes[1], volume)
        volume.flags.writeable = False
        assert planes[2].flags.writeable
        np.testing.assert_array_equal(planes[2], volume[2])


def test_what_cannot_be_read_ahead_is_told_when_its_turn_comes():
    with SlicesAhead(Reads(), kept=1) as planes:
        assert planes[6][0, 0] == 6
        with pytest.raises(OSError, match="slice 7"):
            planes[7]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slices")]


@pytest.fixture
def small_products(monkeypatch):
    """The rate of the machine is that of a small product: not what a report needs, but quickly measured."""
    monkeypatch.setattr(speed_pairs, "matmul_rate", lambda *given: matmul_rate(*given, side=256))


@pytest.mark.workshop
@pytest.mark.usefixtures("small_products")
@pytest.mark.timeout(300)
def test_both_stages_are_timed_beside_sam2s_predictor_and_agree(tmp_path, monkeypatch):
    write_mrc(tmp_path / "tomo.mrc", np.random.default_rng(0).normal(size=(11, 40, 57)).astype(np.float32))
    command = f"speed.py --tomogram {tmp_path}/tomo.mrc --slices 9 --repeats 1 net=tiny_test weights=random"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--output-dir", str(tmp_path / "out")])
    speed.main()
    for stage in ("stage1", "stage2"):
        found = json.loads((tmp_path / "out" / stage / "speed.json").read_text(encoding="utf-8"))
        assert found["shape_zyx"] == [9, 40, 57]
        rows = {(row["side"], row["repeat"]): row for row in found["runs"]}
        assert set(rows) == {("peer", "1"), ("own", "1"), ("peer", "parts"), ("own", "parts")}
        peer, own = rows["peer", "1"], rows["own", "1"]
        ratio = peer["full_bank_seconds_per_slice"] / own["full_bank_seconds_per_slice"]
        assert found["ratios"] == pytest.approx([ratio], rel=1e-6)
        assert all(0 < row["second_half_seconds_per_slice"] < row["seconds_per_slice"] * 3 for row in rows.values())
        parts = rows["own", "parts"]
        seconds = [
            parts[f"{name} (s/slice)"] for name in ("image encoder", "memory attention", "mask decoder", "other")
        ]
        assert 0 < sum(seconds) <= parts["seconds_per_slice"] * 1.01
        difference = float(re.search(r"differ by at most ([\d.e+-]+)", " ".join(found["summary"]))[1])
        assert difference < 1e-4
    assert not list((tmp_path / "out/stage1").glob("speed-*"))


@pytest.mark.workshop
@pytest.mark.usefixtures("small_products")
def test_a_comparison_without_parts_is_of_the_pairs_alone(tmp_path, monkeypatch):
    command = f"speed.py --net tiny_test --shape 9,20,26 --repeats 1 --threads 1 --no-parts --output-dir {tmp_path}"
    monkeypatch.setattr(sys, "argv", command.split())
    speed.main()
    found = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert [(row["side"], row["repeat"]) for row in found["runs"]] == [("peer", "1"), ("own", "1")]
    assert found["shape_zyx"] == [9, 20, 26]
    assert len(found["ratios"]) == 1
    for setting, token in (
        ("net.memory_slices=9", "memory_slices"),
        ("net.memory=1", "net.memory"),
        ("--repeats=0", "0 repeats"),
    ):
        monkeypatch.setattr(sys, "argv", [*command.split(), "--overwrite", setting])
        with pytest.raises(SystemExit, match=token):
            speed.main()


def test_the_arithmetic_of_a_slice_is_that_of_sam2(tracker):
    linear = torch.nn.Linear(6, 5, bias=False)
    assert matmul_rate("cpu", side=128) > 1e8
    whole = slice_flops(tracker)
    attention = tracker.network.memory_attention.layers[0].cross_attn_image
    tokens, bank = (tracker.side // 16) ** 2, tracker.network.num_maskmem
    least = len(tracker.network.memory_attention.layers) * 4 * tokens * bank * tokens * attention.internal_dim
    assert whole > least
    assert linear.weight.requires_grad
    assert all(parameter.requires_grad for parameter in tracker.parameters())


@needs_onednn
def test_the_finest_levels_are_projected_once(tracker):
    levels, images = [], torch.rand(2, 3, tracker.side, tracker.side)
    neck = tracker.network.image_encoder.neck
    hook = neck.register_forward_hook(lambda module, given, found: levels.append([x.shape[1] for x in found[0]]))
    with torch.no_grad():
        plain = tracker.encode(images)
        with faster(tracker):
            fast = tracker.encode(images)
    hook.remove()
    wide = tracker.network.hidden_dim
    assert levels == [[wide] * 4, [wide // 8, wide // 4, wide, wide]]
    for ours, theirs in zip(fast.levels, plain.levels, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(fast.positions[-1], plain.positions[-1], rtol=0, atol=0)


@torch.no_grad()
def test_reference_kernels_are_sam2s_own_and_give_the_same_logits(tracker, volume):
    reference = build_tracker(tiny_net(), kernels="reference")
    reference.load_state_dict(tracker.state_dict())

    def own(network):
        return [
            name for module in network.modules() for name in vars(module) if callable(getattr(type(module), name, 0))
        ]

    with faster(reference), graphed(reference):
        assert own(reference) == []
    with faster(tracker):
        assert len(own(tracker)) > 20
    found, expected = logits_of(tracker, volume, TILES), logits_of(reference, volume, TILES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert (found != expected).any()  # they are other kernels


def test_kernels_of_another_name_are_refused():
    with pytest.raises(ConfigError, match="kernels=quick"):
        build_tracker(tiny_net(), kernels="quick")
