"""Slices and prompts -> logits of one stage, one slice at a time, memory bounded.

A conditioning slice gives back its prompt, not a prediction, so the published pipeline leaves slice 0 empty (DESIGN
decision 4). With `resegment_conditioning` such a slice is segmented again once its neighbours are known: from the
memory of the slice after it, which takes the part of the prompt, and of those before it; for slice 0 from those after
it, in reverse. Its own prompt is not attended to. The other slices are not touched by this.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from etsam.inference.directions import Propagation, check_direction
from etsam.inference.encode_ahead import READ_AHEAD, EncodeBatch, EncodedAhead, SlicesAhead, one_batch
from etsam.inference.logit_store import LogitStore
from etsam.inference.memory_plan import Batching
from etsam.inference.mirrored_views import View, average, deviation, flip, mirrored_views
from etsam.inference.parallel_tiles import run_tiles_in_parallel
from etsam.inference.slice_stride import check_stride, segmented_slices
from etsam.inference.tiles import Tile, common_shape
from etsam.network.fast.cpu_kernels import faster
from etsam.network.fast.gpu_graphs import graphed
from etsam.network.images import extend, mirror
from etsam.network.tracker import MemoryBank, SliceFeatures, SliceState, SliceTracker
from etsam.transfers import download, upload
from etsam.volume.slices import Slices


@dataclass(frozen=True)
class PropagationSettings:
    """Way in which slices are segmented one after another; it decides the result.

    Attributes
    ----------
    resegment_conditioning
        Segment conditioning slices from their neighbours afterwards; False: as published, they stay their prompts.
    views
        Mirrored views of each tile that are averaged: 1 (as published), 2 or 4.
    slice_stride
        1: every slice is segmented (as published); up to 10: one of so many and the last (slice_stride.py).
    propagation
        `forward` (as published), `backward`, or `bidirectional` for the mean of both (directions.py).
    start_slice
        Slice from which both directions start, each with a memory of its own; None: from the first, or the last.

    Raises
    ------
    ConfigError
        If a number is out of range, or there is no such direction.
    """

    resegment_conditioning: bool = True
    views: int = 1
    slice_stride: int = 1
    propagation: Propagation = "forward"
    start_slice: int | None = None

    def __post_init__(self) -> None:
        mirrored_views(self.views)  # refuses other numbers
        check_direction(self.propagation, self.start_slice)
        check_stride(self.slice_stride)


def track(
    tracker: SliceTracker,
    image_at: Callable[[int], Tensor],
    num_slices: int,
    prompts: Mapping[int, Tensor],
    *,
    resegment_conditioning: bool = True,
    encode_batch: EncodeBatch | None = None,
) -> Iterator[tuple[int, SliceState]]:
    """Track forward from slice 0; yields each slice once, conditioning slices late if they are segmented again.

    Parameters
    ----------
    tracker
        The stage.
    image_at
        Slice index -> (B, C, H, W) image from `tracker.prepare`.
    num_slices
        Z.
    prompts
        Slice index -> (B, 1, S, S) mask from `tracker.prepare_prompt`; at least one.
    resegment_conditioning
        False: conditioning slices yield their prompt at +-10, as published.
    encode_batch
        Number of slices encoded together; default: one.
    """
    if not prompts:
        raise ValueError("tracking needs at least one conditioning slice")
    memory = tracker.new_memory(num_slices)
    order = [z for z in range(num_slices) if z not in prompts]
    features = EncodedAhead(tracker, image_at, order, encode_batch)
    for z in sorted(prompts):
        tracker.prompt(z, features[z], prompts[z], memory)
    waiting: list[int] = []
    for z in range(num_slices):
        if z not in prompts:
            yield z, tracker.track(z, features[z], memory)
        elif resegment_conditioning:
            waiting.append(z)
        else:
            yield z, memory.conditioning[z]
        for due in [p for p in waiting if _neighbours_known(tracker, memory, p, z)]:
            waiting.remove(due)
            yield due, _segment_again(tracker, due, features[due], memory)


def _neighbours_known(tracker: SliceTracker, memory: MemoryBank, conditioning: int, z: int) -> bool:
    """True if conditioning slice `conditioning` can be segmented again now that `z` is done."""
    if z == memory.num_slices - 1:
        return True
    if any(other < conditioning for other in memory.tracked):
        return any(other > conditioning for other in memory.tracked)
    return z - conditioning >= tracker.network.num_maskmem - 1


def _segment_again(tracker: SliceTracker, z: int, features: SliceFeatures, memory: MemoryBank) -> SliceState:
    known = {other: state for other, state in memory.tracked.items() if state.memory is not None}
    before = {other: state for other, state in known.items() if other < z}
    after = {other: state for other, state in known.items() if other > z}
    if not known:  # a single slice, or every slice a conditioning slice: nothing but prompts to start from
        return tracker.segment(z, features, memory.conditioning, {}, memory.num_slices)
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
    settings: PropagationSettings = PropagationSettings(),
    batching: Batching = Batching(),
    progress: Callable[[int, int], None] | None = None,
    spread: LogitStore | None = None,
) -> None:
    """Logits of one pass of one stage over a volume, all tiles side by side, so that each slice is read once.

    A slice is read a second time if it, or one that is seen with it, is a conditioning slice and not among the first.

    Parameters
    ----------
    tracker
        The stage, in eval mode, on its device.
    slices
        Network input (Z, Y, X), float32.
    prompts
        For each tile: index of a slice that is segmented -> (Y, X) bool mask of the tile's shape. The indices are the
        same for all tiles.
    tiles
        From `Tiling.plan`.
    out
        Gets the logits of the slices that are segmented, (slices, tiles, S/4, S/4), or the tiles' common (Y, X) for
        S/4 twice.
    settings
        With a stride, the network takes the slices that are segmented for neighbours. Directions are not for here.
    batching
        Sizes; None among them counts as 1, a budget is not looked at.
    progress
        Called with (slices done, slices that are segmented).
    spread
        Gets the standard deviation of the views, shaped as `out`; None: nobody asks.
    """
    seen = mirrored_views(settings.views)
    shape = common_shape(tiles)
    # continued before views are flipped, so that all of them see the same
    size = None if tracker.tile_step is None else tracker.image_shape(shape)
    inputs = [_Input(tile, view, masks, size) for tile, masks in zip(tiles, prompts, strict=True) for view in seen]
    height, width = tracker.logit_format.shape(shape)
    encode_batch = EncodeBatch(batching.encode_batch_size or 1)
    kept = tracker.input_slices + encode_batch.size - 1
    ahead = 0 if tracker.mean.device.type == "cpu" else READ_AHEAD
    depth = slices.shape[0]
    seen_with = [tracker.seen_with(z, depth) for z in segmented_slices(depth, settings.slice_stride)]
    needed = sorted({z for together in seen_with for z in together})
    pinned = _waiting_longest(tracker, seen_with, prompts[0]) if settings.resegment_conditioning else ()
    with SlicesAhead(slices, kept, ahead, needed, pinned) as planes, faster(tracker), graphed(tracker):
        runs = _runs(tracker, planes, seen_with, inputs, settings, batching, encode_batch)
        under_way: deque[tuple[LogitStore, int, Callable[[], Tensor]]] = deque()
        with closing(run_tiles_in_parallel(runs, batching.tile_workers or 1)) as steps:
            for done, states in enumerate(steps, start=1):
                z = states[0][0]  # the runs go through the slices in the same order
                of_views = torch.cat([state.low_res_logits for _, state in states])[:, 0].float()
                under_way.append((out, z, download(average(of_views, seen)[:, :height, :width])))
                if spread is not None:
                    under_way.append((spread, z, download(deviation(of_views, seen)[:, :height, :width])))
                while len(under_way) > ahead:  # late, so that a GPU has the next ones to work at
                    _put(*under_way.popleft())
                if progress is not None:
                    progress(done, len(seen_with))
        for one in under_way:
            _put(*one)


def _waiting_longest(
    tracker: SliceTracker, seen_with: Sequence[Sequence[int]], conditioning: Collection[int]
) -> list[int]:
    """Slices that stay in memory for the first conditioning ones, which are segmented again after several others."""
    first = takewhile(lambda index: index in conditioning, range(min(len(seen_with), tracker.network.num_maskmem)))
    return sorted({z for index in first for z in seen_with[index]})


def _put(out: LogitStore, z: int, logits: Callable[[], Tensor]) -> None:
    out[z] = logits().numpy()


@dataclass(frozen=True)
class _Input:
    """Image of one tile in one view, slice by slice, with its prompts.

    `size`: (H, W) to which it is continued, if it is not to be resized.
    """

    tile: Tile
    view: View
    prompts: Mapping[int, np.ndarray]
    size: tuple[int, int] | None

    def crop(self, planes: Sequence[np.ndarray]) -> Tensor:
        # cut before they are stacked: a slice can have a hundred tiles
        cut = [torch.from_numpy(plane[self.tile.index]) for plane in planes]
        image = torch.stack(cut) if len(cut) > 1 else cut[0][None]
        return flip(image if self.size is None else mirror(image, self.size), self.view)

    def prompt(self, z: int) -> Tensor:
        mask = torch.from_numpy(self.prompts[z])
        return flip(mask if self.size is None else extend(mask, self.size), self.view)


def _runs(
    tracker: SliceTracker,
    planes: SlicesAhead,
    seen_with: Sequence[Sequence[int]],
    inputs: Sequence[_Input],
    settings: PropagationSettings,
    batching: Batching,
    encode_batch: EncodeBatch,
) -> list[Iterator[tuple[int, SliceState]]]:
    """`track` for each batch of inputs; what it takes for slice i is made of the slices `seen_with[i]`."""
    device = tracker.mean.device

    def images(batch: Sequence[_Input]) -> Callable[[int], Tensor]:
        def image_at(z: int) -> Tensor:
            seen = [planes[other] for other in seen_with[z]]
            return one_batch([tracker.prepare(upload(one.crop(seen), device)[None]) for one in batch])

        return image_at

    def masks(batch: Sequence[_Input]) -> dict[int, Tensor]:
        return {
            z: torch.cat([tracker.prepare_prompt(one.prompt(z).to(device)[None]) for one in batch])
            for z in batch[0].prompts
        }

    size = batching.tile_batch_size
    batches = [inputs[start : start + size] for start in range(0, len(inputs), size)]
    return [
        track(
            tracker,
            images(batch),
            len(seen_with),
            masks(batch),
            resegment_conditioning=settings.resegment_conditioning,
            encode_batch=encode_batch,
        )
        for batch in batches
    ]
