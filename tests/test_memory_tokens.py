"""What a slice attends to is what SAM2's own method would give its memory attention."""

from functools import partial

import pytest
import torch
from networks import random_tracker

from etsam.errors import ConfigError
from etsam.network.fast.patching import constants, patched
from etsam.network.memory_tokens import gather
from etsam.network.state import SliceState

DEPTH, BATCH = 24, 2


def states_of(tracker, slices, seed=0):
    generator = torch.Generator().manual_seed(seed)
    network = tracker.network
    coarse = tracker.side // 16
    return {
        z: SliceState(
            torch.zeros(BATCH, 1, 4, 4),
            torch.zeros(BATCH, 1),
            torch.randn(BATCH, network.hidden_dim, generator=generator),
            torch.randn(BATCH, network.mem_dim, coarse, coarse, generator=generator).bfloat16(),
        )
        for z in slices
    }


def of_sam2(tracker, z, conditioning, others, reverse, monkeypatch):
    """What SAM2's method hands to memory attention."""
    network, given = tracker.network, {}

    def attention(**arguments):
        given.update(arguments)
        return arguments["curr"][0]

    def entries(states):
        for other, state in states.items():
            features = state.memory.to(state.pointer.dtype)
            places = network.memory_encoder.position_encoding(features)
            yield other, {"obj_ptr": state.pointer, "maskmem_features": features, "maskmem_pos_enc": [places]}

    coarse = tracker.side // 16
    level = torch.zeros(coarse * coarse, BATCH, network.hidden_dim)
    with monkeypatch.context() as patch:
        patch.setattr(network.memory_attention, "forward", attention)
        network._prepare_memory_conditioned_features(
            frame_idx=z,
            is_init_cond_frame=False,
            current_vision_feats=[level],
            current_vision_pos_embeds=[level],
            feat_sizes=[(coarse, coarse)],
            output_dict={
                "cond_frame_outputs": dict(entries(conditioning)),
                "non_cond_frame_outputs": dict(entries(others)),
            },
            num_frames=DEPTH,
            track_in_reverse=reverse,
        )
    return given


SETTINGS = {
    "as published": {},
    "two memories": {"num_maskmem": 2},
    "every third slice": {"memory_temporal_stride_for_eval": 3},
    "two conditioning slices": {"max_cond_frames_in_attn": 2},
    "three conditioning slices": {"max_cond_frames_in_attn": 3},
    "four pointers": {"max_obj_ptrs_in_encoder": 4},
    "pointers of later slices": {"only_obj_ptrs_in_the_past_for_eval": False},
    "distance without sign": {"use_signed_tpos_enc_to_obj_ptrs": False, "only_obj_ptrs_in_the_past_for_eval": False},
    "pointers without distance": {"add_tpos_enc_to_obj_ptrs": False, "proj_tpos_enc_in_obj_ptrs": False},
    "distance not projected": {"proj_tpos_enc_in_obj_ptrs": False},
    "no pointers": {"use_obj_ptrs_in_encoder": False, "fixed_no_obj_ptr": False},
}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_tokens_and_positions_are_those_of_sam2(changes, training, monkeypatch):
    tracker = random_tracker(**changes).train(training)
    prompted = [0, 4, 11, 19, 20]
    conditioning = states_of(tracker, prompted)
    others = states_of(tracker, [z for z in range(DEPTH) if z not in prompted], seed=1)
    for z, reverse in ((1, False), (9, False), (12, False), (23, False), (13, True), (2, True)):
        theirs = of_sam2(tracker, z, conditioning, others, reverse, monkeypatch)
        ours = gather(tracker, z, conditioning, others, DEPTH, reverse=reverse)
        assert ours.num_pointer_tokens == theirs["num_obj_ptr_tokens"]
        torch.testing.assert_close(ours.tokens, theirs["memory"], rtol=0, atol=0)
        torch.testing.assert_close(ours.positions, theirs["memory_pos"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("z", "reverse", "nearest"), [(9, False, [7, 8]), (13, True, [14, 15]), (1, False, [])])
def test_of_fewer_memory_slices_the_nearest_are_attended_to_and_pointers_stay(z, reverse, nearest, monkeypatch):
    tracker = random_tracker(memory_slices=2)
    conditioning = states_of(tracker, [0])
    others = states_of(tracker, range(1, DEPTH), seed=1)
    ours = gather(tracker, z, conditioning, others, DEPTH, reverse=reverse)
    few = of_sam2(tracker, z, conditioning, {other: others[other] for other in nearest}, reverse, monkeypatch)
    memories = (1 + len(nearest)) * (tracker.side // 16) ** 2
    torch.testing.assert_close(ours.tokens[:memories], few["memory"][:memories], rtol=0, atol=0)
    torch.testing.assert_close(ours.positions[:memories], few["memory_pos"][:memories], rtol=0, atol=1e-6)
    every = of_sam2(tracker, z, conditioning, others, reverse, monkeypatch)
    assert ours.num_pointer_tokens == every["num_obj_ptr_tokens"] == len(ours.tokens) - memories
    torch.testing.assert_close(ours.tokens[memories:], every["memory"][-ours.num_pointer_tokens :], rtol=0, atol=0)


@pytest.mark.parametrize("asked", [-1, 7, 1.5, True, "all"])
def test_memory_slices_that_a_network_does_not_have_are_refused(asked):
    with pytest.raises(ConfigError, match=r"net\.memory_slices=.* null for all, or a whole number from 0 to 6"):
        random_tracker(memory_slices=asked)


def test_positions_that_are_kept_are_those_computed_anew():
    tracker = random_tracker(only_obj_ptrs_in_the_past_for_eval=False)
    with patched(tracker, constants), torch.no_grad():
        kept = tracker.pointer_positions
        for distances in ((3, 1, 2), (700, 1, 2), (-5, 1), (701, 0)):
            fresh = type(tracker).pointer_positions(tracker, distances, 16)
            torch.testing.assert_close(kept(distances, 16), fresh, rtol=0, atol=1e-6)
        assert not torch.equal(kept((3,), 16), kept((3,), 5))
        places = partial(type(tracker).memory_positions, tracker)
        for arguments in (((6, 2), (4, 4), torch.float32), ((6, 1), (4, 4), torch.float32)):
            assert torch.equal(tracker.memory_positions(*arguments), places(*arguments))
            assert tracker.memory_positions(*arguments) is tracker.memory_positions(*arguments)
    assert "pointer_positions" not in vars(tracker)


def test_attending_to_a_slice_without_memory_is_an_error_that_names_it():
    tracker = random_tracker()
    states = states_of(tracker, [0, 1])
    states[1] = SliceState(states[1].low_res_logits, states[1].object_score, states[1].pointer, None)
    with pytest.raises(ValueError, match="slice 1, to which slice 2 attends, has no memory"):
        gather(tracker, 2, {0: states[0]}, {1: states[1]}, DEPTH)


def test_the_temporal_positions_learn():
    tracker = random_tracker()
    found = gather(tracker, 2, states_of(tracker, [0]), states_of(tracker, [1], seed=1), DEPTH)
    found.positions.sum().backward()
    slots = tracker.network.maskmem_tpos_enc.grad.abs().sum(dim=(1, 2, 3))
    assert slots.nonzero()[:, 0].tolist() == [0, tracker.network.num_maskmem - 1]
    assert tracker.network.obj_ptr_tpos_proj.weight.grad.abs().sum() > 0
