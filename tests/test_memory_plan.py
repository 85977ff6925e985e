"""How much memory a prediction is expected to take, and what follows from it."""

import copy

import numpy as np
import pytest
import torch
from networks import random_tracker

from etsam.errors import ConfigError
from etsam.inference import memory_plan, prompts
from etsam.inference.memory_plan import Batching, plan_memory, working_bytes


@pytest.fixture(scope="module")
def tracker():
    return random_tracker()


def test_a_memory_budget_chooses_how_many_tiles_go_together(tracker, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    plain = plan_memory([tracker, tracker], num_tiles=12)
    assert (plain.tile_batch_size, plain.encode_batch_size) == (1, 1)
    each = 1.15 * working_bytes(tracker, 1, 1) / 1e9
    roomy = plan_memory([tracker, tracker], 12, Batching(memory_budget_gb=plain.gigabytes + 4.2 * each))
    assert 4 <= roomy.tile_batch_size <= 6
    assert roomy.gigabytes <= plain.gigabytes + 4.2 * each
    assert plan_memory([tracker, tracker], num_tiles=3, batching=Batching(memory_budget_gb=100)).tile_batch_size == 3
    with pytest.raises(ConfigError, match=r"memory_budget_gb=0\.01 is too little: one tile at a time needs about"):
        plan_memory([tracker, tracker], num_tiles=12, batching=Batching(memory_budget_gb=0.01))
    with pytest.raises(ConfigError, match="above 0"):
        plan_memory([tracker, tracker], num_tiles=12, batching=Batching(memory_budget_gb=-1))


def test_the_estimate_grows_with_the_conditioning_slices_that_every_slice_attends_to(tracker):
    network, tokens = tracker.network, (tracker.side // 16) ** 2
    one, ten, eleven = (working_bytes(tracker, 3, 1, prompted) for prompted in (1, 10, 11))
    assert one == working_bytes(tracker, 3, 1)
    each = 3 * network.hidden_dim * 4 * 8 * (tokens + network.hidden_dim // network.mem_dim)  # eight float32 copies
    kept = 3 * (2 * network.mem_dim * tokens + 4 * (tracker.side // 4) ** 2)  # of one slice: memory and mask
    assert eleven - ten == pytest.approx(each + kept, rel=0.01)
    few = random_tracker(max_cond_frames_in_attn=10)
    assert working_bytes(few, 3, 1, 11) - working_bytes(few, 3, 1, 10) == pytest.approx(kept, rel=0.01)
    both = [
        plan_memory([tracker, tracker], 3, conditioning=counts).gigabytes
        for counts in ((1, 50_000), (50_000, 1), (1, 1))
    ]
    assert both[0] == pytest.approx(both[1], rel=0.02)
    assert both[0] > 1.5 * both[2]


@pytest.mark.parametrize("depth", [1, 50, 51, 117])
def test_how_many_slices_a_prompt_takes_is_known_without_masks(depth):
    shape = (depth, 12, 7)
    for prompt in (prompts.zero, prompts.grid, prompts.grid_zero, prompts.stage1_mask):
        assert prompts.conditioning_slices(prompt, depth) == len(prompt(shape, np.ones(shape, dtype=bool)))


def test_only_a_cpu_works_at_batches_side_by_side(tracker, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    elsewhere = copy.deepcopy(tracker).to("meta")  # stands for an accelerator that is not CUDA, such as Apple's
    plan = plan_memory([elsewhere], num_tiles=12)
    assert (plan.tile_workers, plan.device) == (1, "META")


def test_small_tiles_are_worked_at_by_all_cores_as_far_as_memory_allows(tracker, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    each = 1.15 * working_bytes(tracker, 1, 1)
    assert plan_memory([tracker], num_tiles=12).tile_workers == 6
    assert plan_memory([tracker], num_tiles=4).tile_workers == 4
    assert plan_memory([tracker], num_tiles=12, batching=Batching(3)).tile_workers == 4
    monkeypatch.setattr(memory_plan, "_SIDE_BY_SIDE_BYTES", 2.5 * each)
    two = plan_memory([tracker], num_tiles=12)
    assert two.tile_workers == 2
    one = plan_memory([tracker], num_tiles=1)
    assert one.tile_workers == 1
    assert two.gigabytes == pytest.approx(one.gigabytes + each / 1e9, rel=0.02)  # the process itself grows a little
