"""The same network by faster kernels, for inference in float32 on a CPU; nothing here changes what is computed.

What the published code spends its time on (base-plus at image side 1024, two cores of an AMD EPYC, measured): linear
layers of the image encoder, and four layers of attention to 28,736 memory tokens. Hence

- linear layers through oneDNN instead of the BLAS that torch calls by default: 1.1 to 1.6 times as fast there;
- the two layers of an MLP over a few thousand tokens at a time, with the activation in the first product, so that the
  hidden layer stays in the cache;
- what the encoder does for outputs that nobody reads: finer levels are projected once to the decoder's 32 and 64
  channels and not to 256 in between, position encodings are computed once;
- attention to memories over the memories themselves (64 channels) and not over their projection to 256: softmax weights
  sum to one, so that the projection can come afterwards. That saves 37 % of the arithmetic of cross attention.

The operator of oneDNN is torch's own, the one that
`torch.compile` uses; where a build of torch lacks it, or it gives something else than `torch.nn.functional.linear`,
everything stays as it is.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etsam.network.build import known_layers
from etsam.network.fast.patching import Replacement, constants, is_memory_attention, patched, rotations, wants_reference

log = logging.getLogger(__name__)

# of a block of attention, whose scores stay in a cache: best of 256 to 1024 and 512 to 2048, and a sixth faster than
# all 28,736 keys at once (Intel Xeon, measured)
_QUERIES, _KEYS = 256, 2048
_LEAST_SCORES = 1 << 22  # below so many scores blocks cost more than they save (nano: 0.5 million)
_HIDDEN_BYTES = 4 << 20  # of the part of a hidden layer that is computed at a time


@contextmanager
def faster(network: nn.Module) -> Iterator[None]:
    """Let a network compute by faster kernels while in this context; its weights must not change meanwhile.

    Layers that this does not know, inputs that are no float32 on a CPU, autocast, and gradients go the usual way.

    Parameters
    ----------
    network
        Any module; of SAM2, its image encoder, MLPs and attention to memories are known besides linear layers.
    """
    parameter = next(network.parameters(), None)
    suits = parameter is not None and parameter.device.type == "cpu" and parameter.dtype == torch.float32
    if wants_reference(network) or not suits or not available():
        yield
        return
    with patched(network, _replacements):
        yield


@cache
def available() -> bool:
    """True if this build of torch has oneDNN's linear layer and it computes what it should."""
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
    """True for an input that has to go the usual way."""
    return (
        x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or x.numel() == 0
    )


def _replacements(module: Any) -> Iterator[Replacement]:
    """Replacements for a module."""
    layers = known_layers()
    if type(module) is nn.Linear:
        yield module, "forward", _Linear(module)
    elif type(module) is layers.mlp and _is_gelu_mlp(module):
        yield module, "forward", _GeluMLP(module)
    elif is_memory_attention(module):
        yield module, "forward", _NarrowAttention(module)
    elif isinstance(module, layers.network):
        yield from _folded_levels(module)
    else:
        yield from constants(module)


class _Linear:
    """Weights are not kept in oneDNN's order: that costs 300 MB (base-plus) and gains 8 % in a layer (measured)."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        if _usual(x):
            return F.linear(x, self.module.weight, self.module.bias)
        return _product(x, self.module.weight.detach(), self.module.bias)


def _is_gelu_mlp(module: Any) -> bool:
    act = module.act
    return module.num_layers == 2 and not module.sigmoid_output and type(act) is nn.GELU and act.approximate == "none"


class _GeluMLP:
    def __init__(self, module: Any) -> None:
        self.module = module
        self.rows = max(1, _HIDDEN_BYTES // (4 * module.layers[0].out_features))

    def __call__(self, x: Tensor) -> Tensor:
        first, second = self.module.layers
        if _usual(x):
            return second(self.module.act(first(x)))
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty(len(rows), second.out_features)
        inner, outer = _packed(first.weight), _packed(second.weight)
        for start in range(0, len(rows), self.rows):
            hidden = _product(rows[start : start + self.rows], inner, first.bias, "gelu")
            out[start : start + self.rows] = _product(hidden, outer, second.bias)
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
        turns = rotations(module, q.shape[1], q.device)
        attended = torch.empty(*q.shape[:2], v.shape[2])
        for item, (query, key, value) in enumerate(zip(queries, keys, v, strict=True)):
            _rotate(query, turns)
            _rotate(key[: len(key) - num_k_exclude_rope], turns)
            _attend(query * query.shape[1] ** -0.5, key, value, attended[item])
        return module.out_proj(module.v_proj(attended))


def _rotate(x: Tensor, turns: Tensor) -> None:
    """Turn (R*N, C) in place by rotations of N positions, which are repeated R times."""
    pairs = torch.view_as_complex(x.view(-1, len(turns), turns.shape[1], 2))
    pairs *= turns


def _attend(queries: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    """Softmax of queries (N, C) times keys (M, C), times values (M, V), into `out` (N, V).

    Block after block, with the largest score so far: scores never leave the cache.
    """
    parts = range(0, len(keys), _KEYS)
    blocks = [(_packed(keys[at : at + _KEYS]), _packed(values[at : at + _KEYS].t().contiguous())) for at in parts]
    for start in range(0, len(queries), _QUERIES):
        asked = queries[start : start + _QUERIES]
        largest = torch.full((len(asked), 1), -torch.inf)
        total, mean = torch.zeros(len(asked), 1), torch.zeros(len(asked), values.shape[1])
        for packed, transposed in blocks:
            scores = _product(asked, packed, None)
            before, largest = largest, torch.maximum(largest, scores.amax(1, keepdim=True))
            scores.sub_(largest).exp_()
            shrunk = before.sub_(largest).exp_()
            total.mul_(shrunk).add_(scores.sum(1, keepdim=True))
            mean.mul_(shrunk).add_(_product(scores, transposed, None))
        torch.div(mean, total, out=out[start : start + _QUERIES])


def _folded_levels(network: Any) -> Iterator[Replacement]:
    """The projections of the two finest levels to d_model and on to the decoder's channels, as one each."""
    neck, decoder = network.image_encoder.neck, network.sam_mask_decoder
    if type(neck) is not known_layers().neck:
        return
    if not network.use_high_res_features_in_sam or {0, 1} & set(neck.fpn_top_down_levels):
        return
    for level, second in enumerate((decoder.conv_s0, decoder.conv_s1)):
        first = neck.convs[len(neck.convs) - 1 - level]
        convolutions = first.conv, second
        if all(_is_pointwise(conv) for conv in convolutions):
            folded = _Folded(*convolutions)
            yield first, "forward", folded
            yield second, "forward", folded.second


def _is_pointwise(conv: Any) -> bool:
    return type(conv) is nn.Conv2d and conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.bias is not None


class _Folded:
    """Two 1 x 1 convolutions, of which `second` does nothing because the first has done both."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        self.convolutions = first, second
        assert first.bias is not None
        assert second.bias is not None
        outer = second.weight.detach()[:, :, 0, 0].double()
        inner = first.weight.detach()[:, :, 0, 0].double()
        self.weight = _packed((outer @ inner).float())
        self.bias = (outer @ first.bias.detach().double() + second.bias.detach().double()).float()

    def __call__(self, x: Tensor) -> Tensor:
        if _usual(x):
            return self.convolutions[0](x)
        return _product(x.permute(0, 2, 3, 1).contiguous(), self.weight, self.bias).permute(0, 3, 1, 2)

    def second(self, x: Tensor) -> Tensor:
        """Output of `conv_s0` or `conv_s1`."""
        second = self.convolutions[1]
        return nn.Conv2d.forward(second, x) if x.shape[1] == second.in_channels else x
