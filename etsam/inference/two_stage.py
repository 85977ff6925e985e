"""Stage 1 -> fuse -> stage 2: the whole method in plain torch and numpy."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from etsam.errors import ConfigError
from etsam.inference.encode_ahead import EncodeBatch
from etsam.inference.fusion import fuse
from etsam.inference.logit_store import LogitStore, open_store
from etsam.inference.memory_plan import MemoryPlan, plan_memory
from etsam.inference.mirrored_views import mirrored_views
from etsam.inference.prompts import Prompt, prompted_slices
from etsam.inference.propagate import propagate
from etsam.inference.slice_stride import InterpolatedLogits, check_stride, prompts_on, segmented_slices
from etsam.inference.tiles import Overlapping, Stitched, Tile, Tiling
from etsam.network.tracker import SliceTracker
from etsam.volume.slices import LazySlices, Slices

log = logging.getLogger(__name__)

DEFAULT_THRESHOLD = -0.25
"""Logits strictly above this are membrane, in both stages (published default, chosen there on validation data)."""

StageProgress = Callable[[str, int, int], None]
"""Called with (what is being done, slices done, slices in all)."""


def membrane_mask(logits: Slices, threshold: float) -> LazySlices:
    """Mask (Z, Y, X) uint8, 1 where logits lie strictly above a threshold, computed slice by slice."""
    return LazySlices.of(logits).map(lambda plane: (plane > threshold).astype(np.uint8))


@dataclass
class Stage:
    """One stage: a network, how it is prompted, and its threshold."""

    tracker: SliceTracker
    prompt: Prompt
    threshold: float = DEFAULT_THRESHOLD


def run_stage(
    stage: Stage,
    slices: Slices,
    tiles: Sequence[Tile],
    *,
    stage1_mask: Slices | None = None,
    store: LogitStore | None = None,
    resegment_prompted: bool = True,
    tile_batch_size: int = 1,
    tile_workers: int | None = None,
    encode_batch: EncodeBatch | None = None,
    views: int = 1,
    stride: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Stitched:
    """Run one stage over a volume: inference, validation and the inputs of stage-2 training all come through here.

    Parameters
    ----------
    stage
        Network and prompt.
    slices
        Network input (Z, Y, X) float32.
    tiles
        How slices are cut.
    stage1_mask
        For the prompt `stage1_mask`.
    store
        Where low-resolution logits of the segmented slices go, (slices, tiles, S/4, S/4); default: in memory.
    tile_workers
        As for `propagate`; None: as `plan_memory` chooses without a budget.
    stride
        1: every slice is segmented; more: one of so many, and the last (inference/stride.py).
    resegment_prompted, tile_batch_size, encode_batch, views, progress
        As for `propagate`.

    Returns
    -------
    Stitched
        Logits (Z, Y, X), put together slice by slice as they are read.
    """
    depth, height, width = slices.shape
    side = stage.tracker.low_res_side
    places = segmented_slices(depth, stride)
    if store is None:
        store = open_store((len(places), len(tiles), side, side), None)
    if tile_workers is None:
        prompted = [prompted_slices(stage.prompt, depth)]
        plan = plan_memory([stage.tracker], len(tiles) * views, tile_batch_size=tile_batch_size, prompted=prompted)
        tile_workers = plan.tile_workers
    masks = [None if stage1_mask is None else LazySlices.of(stage1_mask).crop(*tile.index) for tile in tiles]
    propagate(
        stage.tracker,
        slices,
        [prompts_on(places, stage.prompt, tile.shape, mask) for tile, mask in zip(tiles, masks, strict=True)],
        tiles,
        store,
        resegment_prompted=resegment_prompted,
        tile_batch_size=tile_batch_size,
        tile_workers=tile_workers,
        encode_batch=encode_batch,
        views=views,
        places=places,
        progress=progress,
    )
    return Stitched(store if stride == 1 else InterpolatedLogits(store, places), tiles, (depth, height, width))


@dataclass
class TwoStageOutput:
    """Logits of both stages, read slice by slice from what the networks left in `stores`.

    Attributes
    ----------
    stage1_logits, logits
        (Z, Y, X) float32, of stage 1 and of stage 2.
    tiles
        How the slices were cut.
    seconds
        Of each stage.
    """

    stage1_logits: Slices
    logits: Slices
    tiles: list[Tile]
    seconds: dict[str, float] = field(default_factory=dict)


class TwoStage(nn.Module):
    """Both stages as one function of a normalised tomogram.

    Parameters
    ----------
    stage1, stage2
        The stages.
    tiling
        How slices are cut; default: overlapping tiles where a slice is larger than the network side.
    resegment_prompted
        Segment prompted slices again from their neighbours; False: as published, prompts stay (slice 0 empty).
    tile_batch_size
        Tiles that go through a network together.
    encode_batch_size
        Slices that are encoded together; None: as `plan_memory` chooses.
    memory_budget_gb
        Memory from which both sizes follow, 10^9 bytes (`plan_memory`); None: they are taken as they are.
    views
        Mirrored views of each tile that are averaged in each stage: 1 (as published), 2 or 4.
    slice_stride
        1: every slice is segmented (as published); up to 10: one of so many, the others interpolated.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    def __init__(
        self,
        stage1: Stage,
        stage2: Stage,
        tiling: Tiling | None = None,
        *,
        resegment_prompted: bool = True,
        tile_batch_size: int = 1,
        encode_batch_size: int | None = None,
        memory_budget_gb: float | None = None,
        views: int = 1,
        slice_stride: int = 1,
    ) -> None:
        super().__init__()
        for name, size in (("tile_batch_size", tile_batch_size), ("encode_batch_size", encode_batch_size)):
            if size is not None and size < 1:
                raise ConfigError(f"{name}={size} has to be at least 1.")
        mirrored_views(views)  # refuses other numbers
        self.stages = (stage1, stage2)
        self.trackers = nn.ModuleList([stage1.tracker, stage2.tracker])  # so that they move to the device
        self.tiling = tiling if tiling is not None else Overlapping()
        self.resegment_prompted = resegment_prompted
        self.tile_batch_size, self.encode_batch_size = tile_batch_size, encode_batch_size
        self.memory_budget_gb = memory_budget_gb
        self.views, self.slice_stride = views, check_stride(slice_stride)
        self.eval()

    def plan(self, num_tiles: int, depth: int) -> MemoryPlan:
        """What goes through the networks together, and the memory that this is expected to take.

        Parameters
        ----------
        num_tiles
            Of a slice.
        depth
            Slices of the volume, Z.

        Raises
        ------
        ConfigError
            If the budget is too small.
        """
        return plan_memory(
            [stage.tracker for stage in self.stages],
            num_tiles * self.views,
            budget_gb=self.memory_budget_gb,
            tile_batch_size=self.tile_batch_size,
            encode_batch_size=self.encode_batch_size,
            prompted=[prompted_slices(stage.prompt, depth) for stage in self.stages],
        )

    def forward(
        self, normalized: Slices, *, scratch_folder: Path | None = None, progress: StageProgress | None = None
    ) -> TwoStageOutput:
        """Segment a tomogram.

        Parameters
        ----------
        normalized
            Normalised tomogram (Z, Y, X) float32.
        scratch_folder
            Where low-resolution logits are kept; None: in memory, S/4 x S/4 float32 a slice, tile and stage.
        progress
            Called slice by slice.
        """
        depth, height, width = normalized.shape
        stage1, stage2 = self.stages
        tiles = self.tiling.plan(height, width, min(stage.tracker.tile_voxels for stage in self.stages))
        seconds: dict[str, float] = {}
        plan = self.plan(len(tiles), depth)
        encode_batch = EncodeBatch(plan.encode_batch_size)
        segmented = len(segmented_slices(depth, self.slice_stride))
        log.info(
            "%s%d tile%s a slice%s, %d together%s; about %.1f GB expected (%s)",
            "" if segmented == depth else f"{segmented} of {depth} slices are segmented; ",
            len(tiles),
            "" if len(tiles) == 1 else "s",
            "" if self.views == 1 else f" in {self.views} views",
            plan.tile_batch_size,
            "" if plan.tile_workers == 1 else f" on each of {plan.tile_workers} cores",
            plan.gigabytes,
            plan.device,
        )

        def run(name: str, stage: Stage, slices: Slices, mask: Slices | None) -> Slices:
            started = time.perf_counter()
            side = stage.tracker.low_res_side
            logits = run_stage(
                stage,
                slices,
                tiles,
                stage1_mask=mask,
                store=open_store((segmented, len(tiles), side, side), scratch_folder),
                resegment_prompted=self.resegment_prompted,
                tile_batch_size=plan.tile_batch_size,
                tile_workers=plan.tile_workers,
                encode_batch=encode_batch,
                views=self.views,
                stride=self.slice_stride,
                progress=None if progress is None else lambda done, total: progress(name, done, total),
            )
            seconds[name] = time.perf_counter() - started
            return logits

        logits1 = run("stage 1", stage1, normalized, None)
        fused = fuse(normalized, logits1, tiles if self.tiling.fuse_per_tile else None)
        logits2 = run("stage 2", stage2, fused, membrane_mask(logits1, stage1.threshold))
        return TwoStageOutput(logits1, logits2, tiles, seconds)
