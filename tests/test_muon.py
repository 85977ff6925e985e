"""Muon for matrices and AdamW for the rest, against torch's own two."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from networks import random_tracker
from torch import nn

from etsam.errors import CheckpointError, ConfigError
from etsam.network.fast.cpu_autocast import Float32Attention
from etsam.training.optimizer import MuonAdamW, is_matrix, parameter_groups

SETTINGS = {"lr": 1e-2, "weight_decay": 0.1}


def _trained(model, optimizer, steps=5):
    torch.manual_seed(3)
    for _ in range(steps):
        x = torch.randn(200, 24)  # more than the sides: of gradients without full rank, Muon amplifies rounding
        optimizer.zero_grad()
        (model(x) - x.sin()[:, :20]).square().mean().backward()
        optimizer.step()
    return model


def _model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.LayerNorm(40), nn.Linear(40, 20))


def test_matrices_step_as_with_torchs_muon_and_the_rest_as_with_its_adamw():
    ours = _model()
    _trained(ours, MuonAdamW([{"params": list(ours.parameters()), **SETTINGS}], factor=2.0))
    theirs = _model()
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    others = [p for p in theirs.parameters() if p.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=2e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, **SETTINGS)

    class Both:
        def zero_grad(self):
            theirs.zero_grad()

        def step(self):
            muon.step()
            adam.step()

    _trained(theirs, Both())
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (expected - dict(_model().named_parameters())[name]).norm() > 0.05
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_schedule_reaches_both_also_after_a_state_was_loaded():
    model = _model()
    optimizer = MuonAdamW([{"params": list(model.parameters()), **SETTINGS}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    _trained(model, optimizer, steps=1)
    optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    schedule.step()
    before = deepcopy(model.state_dict())
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(SETTINGS["lr"] / 2)
        group["lr"] = 0.0
    _trained(model, optimizer, steps=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_state_of_another_optimizer_is_refused():
    model = _model()
    state = torch.optim.AdamW(model.parameters()).state_dict()
    with pytest.raises(CheckpointError, match=r"optimizer\.muon"):
        MuonAdamW([{"params": list(model.parameters()), **SETTINGS}]).load_state_dict(state)


def test_tokens_norms_and_convolutions_are_not_matrices():
    network = random_tracker().network
    sorted_out = {name: is_matrix(parameter) for name, parameter in network.named_parameters()}
    assert sorted_out["memory_attention.layers.0.linear1.weight"]
    assert not sorted_out["memory_attention.layers.0.linear1.bias"]
    assert not sorted_out["sam_mask_decoder.mask_tokens.weight"]
    assert not sorted_out["image_encoder.trunk.patch_embed.proj.weight"]


def test_every_parameter_is_trained_once_at_the_rate_of_its_group():
    network = random_tracker().network
    groups = parameter_groups(network, lr=1e-3, encoder_lr=5e-4, layer_decay=0.9, weight_decay=0.1)
    for group in groups:
        del group["names"]
    optimizer = MuonAdamW(groups, factor=3.0)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(trained) == len(set(trained)) == len(list(network.parameters()))
    rate = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    linear = network.memory_attention.layers[0].linear1
    assert rate[linear.weight] == pytest.approx(3e-3)
    assert rate[linear.bias] == pytest.approx(1e-3)


def test_a_run_goes_on_from_its_state_as_if_it_had_not_stopped():
    whole = _model()
    optimizer = MuonAdamW([{"params": list(whole.parameters()), **SETTINGS}])
    _trained(whole, optimizer)
    state, weights = deepcopy(optimizer.state_dict()), deepcopy(whole.state_dict())
    _trained(whole, optimizer)
    resumed = _model()
    resumed.load_state_dict(weights)
    other = MuonAdamW([{"params": list(resumed.parameters()), **SETTINGS}])
    other.load_state_dict(state)
    _trained(resumed, other)
    for found, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_factor_of_zero_is_refused():
    with pytest.raises(ConfigError, match="muon=0"):
        MuonAdamW([{"params": list(_model().parameters()), **SETTINGS}], factor=0)


def test_attention_under_autocast_is_computed_in_float32_and_all_else_is_not():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 9, 16)
    plain = F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v), plain)
        assert (v[0, 0] @ v[0, 0].T).dtype == torch.bfloat16
