"""Patching of SAM2's methods by faster kernels, and what those for CPUs and for GPUs both know of SAM2."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from etsam.network.build import known_layers
from etsam.network.tracker import SliceTracker

Replacement = tuple[Any, str, Callable[..., Any]]
"""Owner, name of its method, what takes the method's place."""


@contextmanager
def patched(network: nn.Module, replacements: Callable[[Any], Iterable[Replacement]]) -> Iterator[None]:
    """Patch methods while in this context; what is replaced already, or watched by a clock, stays as it is.

    Parameters
    ----------
    network
        Any module.
    replacements
        Replacements for a module; asked for each in `network`.
    """
    with ExitStack() as undo:
        for module in network.modules():
            for owner, name, replacement in replacements(module):
                if name not in vars(owner):
                    object.__setattr__(owner, name, replacement)
                    undo.callback(object.__delattr__, owner, name)
        yield


def wants_reference(network: nn.Module) -> bool:
    """True for a tracker that was built with `kernels=reference`: its methods stay SAM2's own."""
    return isinstance(network, SliceTracker) and network.kernels == "reference"


def constants(module: Any) -> Iterator[Replacement]:
    """Position encodings, kept instead of computed anew for each slice."""
    layers = known_layers()
    if isinstance(module, SliceTracker):
        yield module, "memory_positions", cache(module.memory_positions)
        yield module, "pointer_positions", _Rows(module.pointer_positions)
    elif type(module) is layers.positions:
        yield module, "forward", _Positions(module)
    elif type(module) is layers.trunk:
        yield module, "_get_pos_embed", cache(partial(type(module)._get_pos_embed, module))


class _Positions:
    """Position encodings of a size, computed once and not copied for each image.

    Zeros for levels of another number of channels (those that cpu_kernels.py folds); SAM2 reads the coarsest only.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] != 2 * self.module.num_pos_feats:
            return x.new_zeros(1, 1, 1, 1).expand(x.shape)
        size = tuple(x.shape[-2:])
        if size not in self.known:
            self.known[size] = type(self.module).forward(self.module, x[:1])
        return self.known[size].expand(x.shape[0], -1, -1, -1)


class _Rows:
    """Positions of pointers, a row for each distance; those of the slices that follow are computed with it."""

    AT_ONCE = 256

    def __init__(self, positions: Callable[[tuple[int, ...], int], Tensor]) -> None:
        self.positions = positions
        self.known: dict[tuple[int, int], Tensor] = {}

    def __call__(self, distances: tuple[int, ...], most: int) -> Tensor:
        for distance in distances:
            if (distance, most) not in self.known:
                following = tuple(range(distance, distance + self.AT_ONCE))
                rows = self.positions(following, most).unbind()
                self.known |= {(other, most): row for other, row in zip(following, rows, strict=True)}
        return torch.stack([self.known[distance, most] for distance in distances])


def is_memory_attention(module: Any) -> bool:
    """True for attention to memories of few channels, with one head and rotary positions."""
    rotary = type(module) is known_layers().rotary_attention
    return rotary and module.num_heads == 1 and module.kv_in_dim < module.internal_dim


def rotations(attention: Any, tokens: int, device: torch.device) -> Tensor:
    """(N, C/2) complex: the rotations of a square of N positions; SAM2 keeps them on a GPU wherever there is one."""
    if attention.freqs_cis.shape[0] != tokens:
        attention.freqs_cis = attention.compute_cis(end_x=tokens**0.5, end_y=tokens**0.5)
    attention.freqs_cis = attention.freqs_cis.to(device)
    return attention.freqs_cis
