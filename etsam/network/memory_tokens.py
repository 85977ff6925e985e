"""Tokens that a slice attends to: memories and pointers of other slices, with positions, by the rules of SAM2.

SAM2's own method does the same in more than a hundred steps a slice, few of which compute anything, and on a GPU a
slice waits for the CPU that asks for them. Here there are a dozen, and positions are separate functions, so that
inference computes them once (network/replacing.py). Equal to SAM2's video predictor: tests/test_upstream_parity.py.

Axes: B tiles or clips, C channels of the network (d_model), M channels of a memory, N tokens.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etsam.network.state import SliceState

SINE_TEMPERATURE = 10000  # of the position encoding of pointers (SAM2)
States = Mapping[int, SliceState]


@dataclass(frozen=True)
class MemoryTokens:
    """Input of memory attention.

    Attributes
    ----------
    tokens, positions
        (N, B, M).
    num_pointer_tokens
        The last so many of them are pointers, which have no place in the slice.
    """

    tokens: Tensor
    positions: Tensor
    num_pointer_tokens: int


def gather(
    tracker: Any, z: int, conditioning: States, others: States, num_slices: int, *, reverse: bool = False
) -> MemoryTokens:
    """Tokens that slice `z` attends to.

    Parameters
    ----------
    tracker
        A `SliceTracker`: its network has the rules, its `memory_slices` may be fewer than theirs, its methods
        `memory_positions` and `pointer_positions` are the rest.
    z, conditioning, others, num_slices, reverse
        As in `SliceTracker.segment`.

    Raises
    ------
    ValueError
        If a slice that is attended to has no memory.
    """
    network = tracker.network
    chosen = _closest(z, conditioning, network.max_cond_frames_in_attn)
    rest = {other: state for other, state in conditioning.items() if other not in chosen} | dict(others)
    slots, features = zip(*_features(tracker, z, chosen, rest, reverse), strict=True)
    pointer = next(iter(chosen.values())).pointer  # memories are kept in fewer bits than what is computed with them
    tokens = [torch.cat([_as_tokens(one) for one in features]).to(pointer.dtype)]
    _, channels, *size = features[0].shape
    positions = [tracker.memory_positions(slots, tuple(size), pointer.dtype).expand(-1, pointer.shape[0], -1)]
    pointers = list(_pointers(network, z, chosen, rest, num_slices, reverse))
    parts = 0
    if pointers:
        distances, vectors = zip(*pointers, strict=True)
        parts = vectors[0].shape[1] // channels  # a pointer is as many tokens as it takes
        stacked = torch.stack(vectors)  # (P, B, C)
        tokens.append(stacked.unflatten(2, (parts, channels)).transpose(1, 2).flatten(0, 1))
        most = min(num_slices, network.max_obj_ptrs_in_encoder)
        rows = tracker.pointer_positions(distances, most).repeat_interleave(parts, dim=0)  # (P * parts, M)
        positions.append(rows[:, None].expand(-1, pointer.shape[0], -1))
    return MemoryTokens(torch.cat(tokens), torch.cat(positions), parts * len(pointers))


def _as_tokens(features: Tensor) -> Tensor:
    """(B, M, H, W) -> (H*W, B, M)."""
    return features.flatten(2).permute(2, 0, 1)


def _closest(z: int, conditioning: States, most: int) -> dict[int, SliceState]:
    """The nearest before `z`, the nearest from `z` on, then by distance; all if `most` is -1."""
    if most == -1 or len(conditioning) <= most:
        return dict(conditioning)
    before = [other for other in conditioning if other < z]
    after = [other for other in conditioning if other >= z]
    first = [max(before)] if before else []
    first += [min(after)] if after else []
    others = sorted((other for other in conditioning if other not in first), key=lambda other: abs(other - z))
    return {other: conditioning[other] for other in [*first, *others][:most]}


def _features(tracker: Any, z: int, chosen: States, rest: States, reverse: bool) -> Iterator[tuple[int, Tensor]]:
    """(slot of the temporal position, memory): conditioning slices, then the others, the farthest first."""
    network = tracker.network
    slices = [(network.num_maskmem - 1, other, state) for other, state in chosen.items()]
    stride = 1 if network.training else network.memory_temporal_stride_for_eval
    here = -z if reverse else z  # the rule looks back
    for back in range(tracker.memory_slices, 0, -1):  # slices back, of every `stride`-th; the last one in any case
        there = here - 1 if back == 1 else (here - 2) // stride * stride - (back - 2) * stride
        other = -there if reverse else there
        if other in rest:
            slices.append((back - 1, other, rest[other]))
    for slot, other, state in slices:
        if state.memory is None:
            raise ValueError(f"slice {other}, to which slice {z} attends, has no memory")
        yield slot, state.memory


def _pointers(
    network: Any, z: int, chosen: States, rest: States, num_slices: int, reverse: bool
) -> Iterator[tuple[int, Tensor]]:
    """(distance, pointer): conditioning slices, then the others, the nearest first."""
    if not network.use_obj_ptrs_in_encoder:
        return
    past_only = not network.training and network.only_obj_ptrs_in_the_past_for_eval
    for other, state in chosen.items():
        back = other - z if reverse else z - other
        if back >= 0 or not past_only:
            yield back if network.use_signed_tpos_enc_to_obj_ptrs else abs(back), state.pointer
    for back in range(1, min(num_slices, network.max_obj_ptrs_in_encoder)):
        other = z + back if reverse else z - back
        if not 0 <= other < num_slices:
            return
        if other in rest:
            yield back, rest[other].pointer


def memory_positions(network: Any, slots: tuple[int, ...], size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Positions of memories of one size (H, W): in the slice, plus that of each slot; (slots * H * W, 1, M)."""
    temporal = network.maskmem_tpos_enc  # (slots, 1, 1, M)
    place = network.memory_encoder.position_encoding(temporal.new_empty(1, temporal.shape[-1], *size))
    return (_as_tokens(place.to(dtype)) + torch.stack([temporal[slot] for slot in slots])).flatten(0, 1)


def pointer_positions(network: Any, distances: tuple[int, ...], most: int) -> Tensor:
    """Positions of pointers so many slices away, (P, M); `most`: how many pointers there can be."""
    device, channels = network.maskmem_tpos_enc.device, network.mem_dim
    if not network.add_tpos_enc_to_obj_ptrs:
        return torch.zeros(len(distances), channels, device=device)
    wide = network.hidden_dim if network.proj_tpos_enc_in_obj_ptrs else channels
    half = wide // 2
    powers = 2 * (torch.arange(half, device=device) // 2) / half
    share = torch.tensor(distances, device=device) / max(1, most - 1)
    angles = share[:, None] / SINE_TEMPERATURE**powers
    encoded: Tensor = network.obj_ptr_tpos_proj(torch.cat([angles.sin(), angles.cos()], dim=-1))
    return encoded
