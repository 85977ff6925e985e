"""Attention to the memory bank on a GPU: few queries, many keys, one head.

A kernel of flash attention gives each processor some queries and all keys. The 4096 queries of one slice are enough
for 32 or 64 of the 132 processors of an H100. With the keys in a few groups that are attended to at the same time all
have work; what they found is then weighed by the sums of their softmax. Base-plus at 1024 on an H100 (torch 2.11,
measured): 0.66 ms as torch does it, 0.23 ms in four groups by cuDNN, 0.41 ms by torch's own kernel, however grouped.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from etsam.network.fast.patching import rotations

log = logging.getLogger(__name__)

Attention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Queries, keys, values (B, H, tokens, C) -> what is attended to (B, H, N, C), and log of the sum of exp(score)."""

_QUERIES = 128  # that one processor takes at a time, with 256 channels
_LEAST_KEYS = 2048  # of a group; with fewer the kernel is too short
_MOST_PARTS = 8
_HALF = (torch.bfloat16, torch.float16)


class SplitAttention:
    """`forward` of SAM2's `RoPEAttention` with one head: 16-bit inputs on a GPU by groups of keys, else as usual.

    Parameters
    ----------
    module
        The attention.
    """

    def __init__(self, module: Any) -> None:
        self._module, self._works = module, True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        module, parts = self._module, parts_of(q.shape[0], q.shape[1], k.shape[1], _processors(q.device))
        lower = q.dtype in _HALF or (torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") in _HALF)
        if parts > 1 and lower and self._works:
            try:
                return self._in_parts(q, k, v, num_k_exclude_rope, parts)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # a GPU or a build of torch that lacks the kernel
                log.debug("attention to the memory bank in one piece: %s", error)
                self._works = False
        return type(module).forward(module, q, k, v, num_k_exclude_rope)

    def _in_parts(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int, parts: int) -> Tensor:
        module = self._module
        queries, keys, values = module.q_proj(q), module.k_proj(k), module.v_proj(v)  # (B, tokens, C)
        turns = rotations(module, q.shape[1], q.device)
        turned = keys[:, : keys.shape[1] - num_k_exclude_rope]
        keys = torch.cat([_rotated(turned, turns), keys[:, turned.shape[1] :]], dim=1)
        kernel = _kernel(q.device)
        found = attend_in_parts(_rotated(queries, turns)[:, None], keys[:, None], values[:, None], parts, kernel)
        return module.out_proj(found[:, 0])


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """(B, R*N, C) turned by rotations of N positions, which are repeated R times; computed in float32."""
    pairs = torch.view_as_complex(x.float().view(x.shape[0], -1, len(turns), turns.shape[1], 2))
    return torch.view_as_real(pairs * turns).view(x.shape).to(x.dtype)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def parts_of(batch: int, queries: int, keys: int, processors: int) -> int:
    """Number of key splits (split-K) that occupies all streaming multiprocessors: 1, 2, 4 or 8."""
    parts = 1
    busy = batch * -(-queries // _QUERIES)
    while 2 * parts * busy <= processors and keys % (2 * parts) == 0 and keys // (2 * parts) >= _LEAST_KEYS:
        parts *= 2
    return min(parts, _MOST_PARTS)


def flash(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Torch's own kernel, for GPUs since Ampere."""
    found, sums, *_ = torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values)
    return found, sums


def cudnn(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """CuDNN's, which since Hopper is faster."""
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(queries.contiguous(), keys, values, None, True)
    return found[0], found[1]


@cache
def _kernel(device: torch.device) -> Attention:
    newest = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return cudnn if newest and torch.backends.cuda.cudnn_sdp_enabled() else flash


def attend_in_parts(queries: Tensor, keys: Tensor, values: Tensor, parts: int, attention: Attention) -> Tensor:
    """Softmax of queries times keys, times values, with the keys in so many groups.

    Parameters
    ----------
    queries, keys, values
        (B, 1, N, C), and twice (B, 1, M, C), M divisible by `parts`.
    parts
        Groups.
    attention
        For each group.

    Returns
    -------
    Tensor
        (B, 1, N, C).
    """
    batch, _, tokens, channels = keys.shape
    groups = (batch, parts, tokens // parts, channels)  # groups take the place of heads
    found, sums = attention(queries.expand(-1, parts, -1, -1), keys.reshape(groups), values.reshape(groups))
    weights = sums.float().view(batch, parts, -1, 1).softmax(dim=1)
    return (found.float() * weights).sum(dim=1, keepdim=True).to(queries.dtype)
