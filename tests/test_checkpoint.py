"""Every accepted form of weights gives the same network."""

import pytest
import safetensors.torch
import torch
from networks import random_tracker, tiny_net

from etsam.errors import CheckpointError
from etsam.network.build import build_network, build_tracker
from etsam.network.checkpoint import load_weights, read_state_dict


@pytest.fixture(scope="module")
def state():
    return random_tracker(seed=3).network.state_dict()


def write(path, form, state):
    if form == "safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    elif form == "model":
        torch.save({"model": state}, path)
    elif form == "plain":
        torch.save(state, path)
    else:  # as Lightning writes it, with hyper-parameters and optimiser state beside
        prefixed = {f"tracker.network.{k}": v for k, v in state.items()} | {"dice.total": torch.zeros(1)}
        torch.save({"epoch": 3, "state_dict": prefixed, "hyper_parameters": {"lr": 1e-4}, "optimizer_states": []}, path)


@pytest.mark.parametrize(
    ("form", "name"),
    [("model", "a.pt"), ("plain", "a.pt"), ("lightning", "a.ckpt"), ("safetensors", "a.safetensors")],
)
def test_every_form_loads_every_value(tmp_path, state, form, name):
    write(tmp_path / name, form, state)
    loaded = build_tracker(tiny_net(), str(tmp_path / name)).network.state_dict()
    assert loaded.keys() == state.keys()
    for key in state:
        torch.testing.assert_close(loaded[key], state[key], rtol=0, atol=0)


def test_half_precision_weights_load_into_a_float32_network(tmp_path, state):
    torch.save({"model": {k: v.half() for k, v in state.items()}}, tmp_path / "half.pt")
    network = build_network(tiny_net())
    load_weights(network, tmp_path / "half.pt")
    assert all(p.dtype == torch.float32 for p in network.parameters())
    torch.testing.assert_close(network.no_mem_embed.data, state["no_mem_embed"], rtol=1e-3, atol=1e-4)


def test_weights_of_another_architecture_are_named_and_nothing_is_copied(tmp_path, state):
    wrong = dict(state)
    wrong["no_mem_embed"] = torch.zeros(1, 1, 5)
    wrong["surplus"] = wrong.pop("no_obj_ptr")
    torch.save({"model": wrong}, tmp_path / "wrong.pt")
    network = build_network(tiny_net())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_weights(network, tmp_path / "wrong.pt")
    assert "1 missing (no_obj_ptr)" in str(error.value)
    assert "1 unexpected (surplus)" in str(error.value)
    assert "no_mem_embed (1, 1, 5) instead of (1, 1, 32)" in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_a_checkpoint_of_two_networks_is_refused(tmp_path, state):
    both = {f"{name}.{k}": v for name in ("student", "teacher") for k, v in state.items()}
    torch.save({"state_dict": both}, tmp_path / "both.ckpt")
    with pytest.raises(CheckpointError, match=r"2 networks \(student\., teacher\.\)"):
        read_state_dict(tmp_path / "both.ckpt")


def test_random_weights_are_reproducible_and_leave_the_random_state_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, second = (build_tracker(tiny_net(), seed=5).network.state_dict() for _ in range(2))
    torch.testing.assert_close(torch.rand(3), expected)
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = build_tracker(tiny_net(), seed=6).network.state_dict()
    assert not torch.equal(first["no_mem_embed"], other["no_mem_embed"])
