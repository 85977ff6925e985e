"""The same network by faster kernels, for inference in float32 on a CPU; nothing here changes what is computed.

What the published code spends its time on (base-plus at image side 1024, two cores of an AMD EPYC, measured): linear
layers of the image encoder, and four layers of attention to 28,736 memory tokens. Hence

- linear layers through oneDNN instead of the BLAS that torch calls by default: 1.1 to 1.6 times as fast there;
- the two layers of an MLP over a few thousand tokens at a time, with the activation in the first product, so that the
  hidden layer stays in the cache;
- attention to memories over the memories themselves (64 channels) and not over their projection to 256: softmax weights
  sum to one, so that the projection can come afterwards. That saves 37 % of the arithmetic of cross attention.

Memory that is freed meanwhile is kept (network/heap.py). The operator of oneDNN is torch's own, the one that
`torch.compile` uses; where a build of torch lacks it, or it gives something else than `torch.nn.functional.linear`,
everything stays as it is.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etsam.network import heap
from etsam.network.build import known_layers

log = logging.getLogger(__name__)

_QUERIES = 256  # of a block of attention, whose scores (256 x 28,736) fill a cache; measured best of 64 to 1024
_LEAST_SCORES = 1 << 22  # below so many scores blocks cost more than they save (nano: 0.5 million)
_HIDDEN_BYTES = 4 << 20  # of the part of a hidden layer that is computed at a time


@contextmanager
def faster(network: nn.Module) -> Iterator[None]:
    """Let a network compute by faster kernels while in this context; its weights must not change meanwhile.

    Layers that this does not know, inputs that are no float32 on a CPU, autocast, and gradients go the usual way.

    Parameters
    ----------
    network
        Any module; of SAM2, its MLPs and its attention to memories are known besides linear layers.
    """
    parameter = next(network.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or parameter.dtype != torch.float32 or not available():
        yield
        return
    changed = []
    try:
        for module in network.modules():
            forward = _forward_of(module)
            if forward is not None and "forward" not in vars(module):
                changed.append(module)
                module.forward = forward
        with heap.kept():
            yield
    finally:
        for module in changed:
            del module.forward


@cache
def available() -> bool:
    """Whether this build of torch has oneDNN's linear layer, and it computes what it should."""
    try:
        x, weight, bias = torch.linspace(-1, 1, 15).view(5, 3), torch.linspace(-1, 2, 12).view(4, 3), torch.arange(4.0)
        found = [_product(x, _packed(weight), bias, kind) for kind in ("none", "gelu")]
        plain = F.linear(x, weight, bias)
        right = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, (plain, F.gelu(plain)), strict=True))
    except (RuntimeError, AttributeError, TypeError) as error:
        log.debug("no faster kernels: %s", error)
        return False
    return right


def _packed(weight: Tensor) -> Tensor:
    """A weight (out, in) as oneDNN wants it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Activation of x W' + b."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none" if activation == "gelu" else "")


def _usual(x: Tensor) -> bool:
    """Whether an input has to go the usual way."""
    return (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or x.numel() == 0
    )


def _forward_of(module: Any) -> Callable[..., Tensor] | None:
    mlp, rotary_attention = known_layers()
    if type(module) is nn.Linear:
        return _Linear(module)
    if type(module) is mlp and _is_gelu_mlp(module):
        return _GeluMLP(module)
    if type(module) is rotary_attention and module.num_heads == 1 and module.kv_in_dim < module.internal_dim:
        return _NarrowAttention(module)
    return None


class _Linear:
    def __init__(self, module: nn.Linear) -> None:
        self.module, self.weight = module, _packed(module.weight)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        if _usual(x):
            return F.linear(x, self.module.weight, self.module.bias)
        return _product(x, self.weight, self.module.bias, activation)


def _is_gelu_mlp(module: Any) -> bool:
    act = module.act
    return module.num_layers == 2 and not module.sigmoid_output and type(act) is nn.GELU and act.approximate == "none"


class _GeluMLP:
    def __init__(self, module: Any) -> None:
        self.module = module
        self.rows = max(1, _HIDDEN_BYTES // (4 * module.layers[0].out_features))

    def __call__(self, x: Tensor) -> Tensor:
        first, second = self.module.layers
        if _usual(x) or not isinstance(vars(first).get("forward"), _Linear):
            return second(self.module.act(first(x)))
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty(len(rows), second.out_features)
        for start in range(0, len(rows), self.rows):
            part = rows[start : start + self.rows]
            out[start : start + self.rows] = second(first.forward(part, "gelu"))
        return out.view(*x.shape[:-1], -1)


class _NarrowAttention:
    """Attention to memories of few channels, one head, with rotary positions."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        module = self.module
        if _usual(q) or q.shape[1] * k.shape[1] < _LEAST_SCORES:
            return type(module).forward(module, q, k, v, num_k_exclude_rope)
        queries, keys = module.q_proj(q), module.k_proj(k)  # (B, N, C), (B, M, C)
        turns = self._turns(q.shape[1])
        attended = torch.empty(*q.shape[:2], v.shape[2])
        for item, (query, key, value) in enumerate(zip(queries, keys, v, strict=True)):
            _rotate(query, turns)
            _rotate(key[: len(key) - num_k_exclude_rope], turns)
            _attend(query * query.shape[1] ** -0.5, key, value, attended[item])
        return module.out_proj(module.v_proj(attended))

    def _turns(self, tokens: int) -> Tensor:
        """(N, C/2) complex: the rotations of a square of `tokens` positions."""
        module = self.module
        if module.freqs_cis.shape[0] != tokens:
            side = tokens**0.5
            module.freqs_cis = module.compute_cis(end_x=side, end_y=side)
        return module.freqs_cis


def _rotate(x: Tensor, turns: Tensor) -> None:
    """Turn (R*N, C) in place by rotations of N positions, which are repeated R times."""
    pairs = torch.view_as_complex(x.view(-1, len(turns), turns.shape[1], 2))
    pairs *= turns


def _attend(queries: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    """Softmax of queries (N, C) times keys (M, C), times values (M, V), into `out` (N, V)."""
    packed, transposed = _packed(keys), _packed(values.t().contiguous())
    for start in range(0, len(queries), _QUERIES):
        scores = _product(queries[start : start + _QUERIES], packed, None)
        torch.softmax(scores, -1, out=scores)
        out[start : start + _QUERIES] = _product(scores, transposed, None)
