"""A GPU runs what has the same shapes slice after slice as CUDA graphs, and gives what it gives without."""

import gc
import weakref
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from networks import random_tracker, score_bias

import etsam.inference.propagate as propagation
from etsam.inference import prompts
from etsam.inference.memory_plan import Batching
from etsam.inference.propagate import PropagationSettings
from etsam.inference.tiles import Overlapping, Tile
from etsam.inference.two_stage import Stage, run_stage
from etsam.network.fast import gpu_graphs
from etsam.network.fast.gpu_graphs import Graphed, graphed
from etsam.network.fast.patching import patched

SHAPE = (30, 60, 52)  # more slices than the memory bank and the pointers reach


class Recorder:
    """Stands for CUDA: what is recorded runs again on the same inputs."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def __call__(self, run, device):
        self.recorded += 1
        run()

        def replay():
            self.replayed += 1
            run()

        return replay


@pytest.fixture
def volume():
    return np.random.default_rng(4).random(SHAPE).astype(np.float32)


def tracker_of(seed=0, name="tiny_test"):
    tracker = random_tracker(seed, name)
    if tracker.tile_step is None:
        score_bias(tracker, 20.0)
    return tracker


def logits(tracker, volume, tiles=None, batch=1, **settings):
    stage = Stage(tracker, partial(prompts.grid_zero, interval=16))
    tiles = tiles or [Tile(0, SHAPE[1], 0, SHAPE[2])]
    chosen = PropagationSettings(**settings)
    stitched = run_stage(stage, volume, tiles, settings=chosen, batching=Batching(batch, batch))
    return np.stack([stitched[z] for z in range(len(volume))])


@torch.no_grad()
def test_what_comes_a_third_time_is_recorded_and_from_then_on_replayed():
    record = Recorder()
    function = Graphed(lambda pair, factor: {"sum": pair[0] + pair[1], "all": [factor * pair[0]]}, record)
    kept = []
    for number in range(6):
        pair = [torch.full((2, 3), float(number)), torch.ones(2, 3)]
        kept.append(function(pair, factor=2))
        function([torch.ones(1), torch.ones(number + 2)], factor=2)  # shapes that do not come again
    assert (record.recorded, record.replayed) == (1, 4)
    for number, found in enumerate(kept):  # a later replay has not changed what was given before
        assert torch.equal(found["sum"], torch.full((2, 3), number + 1.0))
        assert torch.equal(found["all"][0], torch.full((2, 3), 2.0 * number))
    function([torch.ones(2, 3), torch.ones(2, 3)], factor=3)
    assert record.replayed == 4  # other numbers are another recording


def test_with_gradients_nothing_is_recorded():
    record = Recorder()
    function = Graphed(lambda x: x * x, record)
    for _ in range(4):
        x = torch.ones(2, requires_grad=True)
        function(x).sum().backward()
        assert torch.equal(x.grad, torch.full((2,), 2.0))
    assert record.recorded == 0


@torch.no_grad()
def test_what_cannot_be_recorded_goes_on_as_usual_and_is_said_once(caplog):
    def fail(run, device):
        raise torch.OutOfMemoryError("no memory for a graph")

    function = Graphed(lambda x: x + 1, fail)
    found = [function(torch.full((2,), float(number))) for number in range(5)]
    assert [float(one[0]) for one in found] == [1, 2, 3, 4, 5]
    assert caplog.text.count("no memory for a graph") == 1


@pytest.mark.parametrize("name", ["tiny_test", "tiny_voxel_test"])
@pytest.mark.parametrize(("tiles", "batch"), [(None, 1), (Overlapping(overlap_voxels=8).plan(60, 52, 48), 3)])
def test_replayed_parts_give_the_logits_of_the_plain_network(monkeypatch, volume, tiles, batch, name):
    tracker, record = tracker_of(name=name), Recorder()
    plain = logits(tracker, volume, tiles, batch)
    with patched(tracker, partial(gpu_graphs._replacements, record)), torch.no_grad():
        monkeypatch.setattr(propagation, "faster", lambda tracker: nullcontext())
        replayed = logits(tracker, volume, tiles, batch)
    assert record.recorded >= 4  # the encoder, attention with a full bank, decoder, memory encoder
    assert record.replayed > 3 * (SHAPE[0] - 20)
    step = 0 if tracker.tile_step is None else 8e-3  # kept as float16, by whose step a logit of 8 to 16 may differ
    np.testing.assert_allclose(replayed, plain, rtol=0, atol=1e-4 + step)
    np.testing.assert_array_equal(logits(tracker, volume, tiles, batch), logits(tracker, volume, tiles, batch))


@torch.no_grad()
def test_recordings_and_their_memory_are_gone_with_their_context():
    tracker, images = tracker_of(), torch.zeros(1, 3, 64, 64)
    encoder = gpu_graphs._Encoder(tracker.network, Recorder())
    for _ in range(4):
        encoder(images)
    (recording,) = encoder._levels._recordings.values()
    watched = weakref.ref(recording)
    gc.disable()
    try:
        del encoder, recording
        assert watched() is None
    finally:
        gc.enable()


def test_on_a_cpu_nothing_is_replaced():
    tracker = tracker_of()
    before = dict(vars(tracker.network))
    with graphed(tracker):
        assert dict(vars(tracker.network)) == before


def on_gpu(precision, monkeypatch, volume, graphs, batch=4):
    tracker = tracker_of().cuda()
    with monkeypatch.context() as patch:
        if not graphs:
            patch.setattr(propagation, "graphed", lambda tracker: nullcontext())
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed"):
            return logits(tracker, volume, batch=batch)


@pytest.mark.gpu
class TestGPU:
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_graphs_change_nothing(self, monkeypatch, volume, precision):
        plain, graphs = (on_gpu(precision, monkeypatch, volume, graphs) for graphs in (False, True))
        np.testing.assert_allclose(graphs, plain, rtol=0, atol=1e-5)

    def test_a_gpu_gives_what_a_cpu_gives(self, monkeypatch, volume):
        there = on_gpu("32-true", monkeypatch, volume, True)
        np.testing.assert_allclose(there, logits(tracker_of(), volume), rtol=0, atol=1e-3)

    def test_weights_are_their_own_again_afterwards(self, volume):
        tracker = tracker_of().cuda()
        before = {name: value.clone() for name, value in tracker.state_dict().items()}
        with torch.autocast("cuda", torch.bfloat16):
            logits(tracker, volume)
        assert {name: value.dtype for name, value in before.items()} == {
            name: value.dtype for name, value in tracker.state_dict().items()
        }
        assert all(torch.equal(value, before[name]) for name, value in tracker.state_dict().items())

    def test_what_waits_for_the_gpu_cannot_be_recorded_and_goes_on(self, caplog):
        function = Graphed(lambda x: x * float(x.sum()), partial(gpu_graphs._record, torch.cuda.graph_pool_handle()))
        with torch.no_grad():
            found = [function(torch.full((2,), float(number), device="cuda")) for number in range(5)]
        assert [float(one[0]) for one in found] == [2.0 * number * number for number in range(5)]
        assert "no CUDA graph" in caplog.text
