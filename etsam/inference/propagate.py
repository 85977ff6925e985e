"""Slices and prompts -> logits of one stage, one slice at a time, memory bounded.

A prompted slice gives back its prompt, not a prediction, so the published pipeline leaves slice 0 empty (DESIGN
decision 4). With `resegment_prompted` such a slice is segmented again once its neighbours are known: from the memory of
the slice after it, which takes the part of the prompt, and of those before it; for slice 0 from those after it, in
reverse. Its own prompt is not attended to. The other slices are not touched by this.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from etsam.inference.encode_ahead import READ_AHEAD, EncodeBatch, EncodedAhead, SlicesAhead
from etsam.inference.logit_store import LogitStore
from etsam.inference.mirrored_views import View, average, mirrored_views, turn
from etsam.inference.parallel_tiles import side_by_side
from etsam.inference.tiles import Tile
from etsam.network.fast.cpu_kernels import faster
from etsam.network.fast.gpu_graphs import graphed
from etsam.network.tracker import SliceFeatures, SliceMemory, SliceState, SliceTracker
from etsam.transfers import download, upload
from etsam.volume.slices import Slices


def track(
    tracker: SliceTracker,
    image_at: Callable[[int], Tensor],
    num_slices: int,
    prompts: Mapping[int, Tensor],
    *,
    resegment_prompted: bool = True,
    encode_batch: EncodeBatch | None = None,
) -> Iterator[tuple[int, SliceState]]:
    """Track forward from slice 0; yields each slice once, prompted ones late if they are segmented again.

    Parameters
    ----------
    tracker
        The stage.
    image_at
        Slice index -> (B, C, S, S) image from `tracker.prepare`.
    num_slices
        Z.
    prompts
        Slice index -> (B, 1, S, S) mask from `tracker.prepare_prompt`; at least one.
    resegment_prompted
        False: prompted slices yield their prompt at +-10, as published.
    encode_batch
        How many slices are encoded together; default: one.
    """
    if not prompts:
        raise ValueError("tracking needs at least one prompted slice")
    memory = tracker.new_memory(num_slices)
    order = [z for z in range(num_slices) if z not in prompts]
    features = EncodedAhead(tracker, image_at, order, encode_batch)
    for z in sorted(prompts):
        tracker.prompt(z, features[z], prompts[z], memory)
    waiting: list[int] = []
    for z in range(num_slices):
        if z not in prompts:
            yield z, tracker.track(z, features[z], memory)
        elif resegment_prompted:
            waiting.append(z)
        else:
            yield z, memory.prompted[z]
        for due in [p for p in waiting if _neighbours_known(tracker, memory, p, z)]:
            waiting.remove(due)
            yield due, _segment_again(tracker, due, features[due], memory)


def _neighbours_known(tracker: SliceTracker, memory: SliceMemory, prompted: int, z: int) -> bool:
    """Whether prompted slice `prompted` can be segmented again now that `z` is done."""
    if z == memory.num_slices - 1:
        return True
    if any(other < prompted for other in memory.tracked):
        return any(other > prompted for other in memory.tracked)
    return z - prompted >= tracker.network.num_maskmem - 1


def _segment_again(tracker: SliceTracker, z: int, features: SliceFeatures, memory: SliceMemory) -> SliceState:
    known = {other: state for other, state in memory.tracked.items() if state.memory is not None}
    before = {other: state for other, state in known.items() if other < z}
    after = {other: state for other, state in known.items() if other > z}
    if not known:  # a single slice, or every slice prompted: nothing but prompts to start from
        return tracker.segment(z, features, memory.prompted, {}, memory.num_slices)
    nearest = min(after) if after else max(before)
    others = before if before else after
    others = {other: state for other, state in others.items() if other != nearest}
    return tracker.segment(z, features, {nearest: known[nearest]}, others, memory.num_slices, reverse=not before)


@torch.no_grad()  # not inference_mode: sam2 caches position encodings, which training then needs as ordinary tensors
def propagate(
    tracker: SliceTracker,
    slices: Slices,
    prompts: Sequence[Mapping[int, np.ndarray]],
    tiles: Sequence[Tile],
    out: LogitStore,
    *,
    resegment_prompted: bool = True,
    tile_batch_size: int = 1,
    tile_workers: int = 1,
    encode_batch: EncodeBatch | None = None,
    views: int = 1,
    places: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Run one stage over a volume, all tiles side by side, so that each slice is read once.

    Parameters
    ----------
    tracker
        The stage, in eval mode, on its device.
    slices
        Network input (Z, Y, X), float32.
    prompts
        For each tile: index in `places` -> (Y, X) bool mask of the tile's shape. They are the same for all tiles.
    tiles
        From `Tiling.plan`.
    out
        Gets the logits of the slices in `places`, (slices, tiles, S/4, S/4) float32.
    resegment_prompted
        Segment prompted slices from their neighbours afterwards; False is the published behaviour.
    tile_batch_size
        Tiles that go through the network together, each view of one counted.
    tile_workers
        Such batches at the same time, each by one core of a CPU (`side_by_side`).
    encode_batch
        Slices of these tiles that are encoded together; default: one.
    views
        Mirrored views of each tile that are averaged: 1, 2 or 4.
    places
        Slices that are segmented, ascending; the network takes them for neighbours. None: all.
    progress
        Called with (slices done, slices that are segmented).
    """
    seen = mirrored_views(views)
    inputs = [_Input(tile, view, masks) for tile, masks in zip(tiles, prompts, strict=True) for view in seen]
    kept = tracker.input_slices + (encode_batch.size - 1 if encode_batch else 0)
    ahead = 0 if tracker.mean.device.type == "cpu" else READ_AHEAD
    depth = slices.shape[0]
    seen_with = [tracker.seen_with(z, depth) for z in (range(depth) if places is None else places)]
    needed = sorted({z for together in seen_with for z in together})
    with SlicesAhead(slices, kept, ahead, needed) as planes, faster(tracker), graphed(tracker):
        runs = _runs(tracker, planes, seen_with, inputs, resegment_prompted, tile_batch_size, encode_batch)
        under_way: deque[tuple[int, Callable[[], Tensor]]] = deque()
        with closing(side_by_side(runs, tile_workers)) as steps:
            for done, states in enumerate(steps, start=1):
                z = states[0][0]  # the runs go through the slices in the same order
                logits = average(torch.cat([state.low_res_logits for _, state in states])[:, 0].float(), seen)
                under_way.append((z, download(logits)))
                if len(under_way) > ahead:  # late, so that a GPU has the next ones to work at
                    _put(out, *under_way.popleft())
                if progress is not None:
                    progress(done, len(seen_with))
        for one in under_way:
            _put(out, *one)


def _put(out: LogitStore, z: int, logits: Callable[[], Tensor]) -> None:
    out[z] = logits().numpy()


@dataclass(frozen=True)
class _Input:
    """What goes through the network as one image a slice: a tile in one view, with its prompts."""

    tile: Tile
    view: View
    prompts: Mapping[int, np.ndarray]

    def crop(self, planes: Sequence[np.ndarray]) -> Tensor:
        # cut before they are stacked: a slice can have a hundred tiles
        cut = [torch.from_numpy(plane[self.tile.index]) for plane in planes]
        return turn(torch.stack(cut) if len(cut) > 1 else cut[0][None], self.view)

    def prompt(self, z: int) -> Tensor:
        return turn(torch.from_numpy(self.prompts[z]), self.view)


def _runs(
    tracker: SliceTracker,
    planes: SlicesAhead,
    seen_with: Sequence[Sequence[int]],
    inputs: Sequence[_Input],
    resegment_prompted: bool,
    tile_batch_size: int,
    encode_batch: EncodeBatch | None,
) -> list[Iterator[tuple[int, SliceState]]]:
    """`track` for each batch of inputs; what it takes for slice i is made of the slices `seen_with[i]`."""
    device = tracker.mean.device

    def images(batch: Sequence[_Input]) -> Callable[[int], Tensor]:
        def image_at(z: int) -> Tensor:
            seen = [planes[other] for other in seen_with[z]]
            return torch.cat([tracker.prepare(upload(one.crop(seen), device)[None]) for one in batch])

        return image_at

    def masks(batch: Sequence[_Input]) -> dict[int, Tensor]:
        return {
            z: torch.cat([tracker.prepare_prompt(one.prompt(z).to(device)[None]) for one in batch])
            for z in batch[0].prompts
        }

    batches = [inputs[start : start + tile_batch_size] for start in range(0, len(inputs), tile_batch_size)]
    return [
        track(
            tracker,
            images(batch),
            len(seen_with),
            masks(batch),
            resegment_prompted=resegment_prompted,
            encode_batch=encode_batch,
        )
        for batch in batches
    ]
