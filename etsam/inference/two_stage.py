"""Stage 1 -> fuse -> stage 2: the whole method in plain torch and numpy."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from etsam.inference.fusion import fuse
from etsam.inference.logit_store import LogitStore, open_store
from etsam.inference.memory_plan import Batching, MemoryPlan, plan_memory
from etsam.inference.prompts import Prompt, prompted_slices
from etsam.inference.propagate import PropagationSettings, propagate
from etsam.inference.slice_stride import InterpolatedLogits, prompts_on, segmented_slices
from etsam.inference.tiles import Overlapping, Stitched, Tile, Tiling, common_shape
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


def store_for(tracker: SliceTracker, tiles: Sequence[Tile], num_slices: int, folder: Path | None = None) -> LogitStore:
    """Store of a stage's logits, (slices, tiles, s, s), in a folder or, without one, in memory."""
    shape = num_slices, len(tiles), *tracker.logit_shape(common_shape(tiles))
    return open_store(shape, folder, tracker.logit_dtype)


def run_stage(
    stage: Stage,
    slices: Slices,
    tiles: Sequence[Tile],
    *,
    stage1_mask: Slices | None = None,
    store: LogitStore | None = None,
    settings: PropagationSettings = PropagationSettings(),
    batching: Batching = Batching(),
    progress: Callable[[int, int], None] | None = None,
) -> Stitched:
    """Logits of one stage over a volume: inference, validation and inputs of stage-2 training all come through here.

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
        Where logits of the segmented slices go, as `store_for` makes it; default: in memory.
    settings, progress
        As for `propagate`.
    batching
        Made complete by `plan_memory`, unless it says how many tiles are worked at by cores of their own.

    Returns
    -------
    Stitched
        Logits (Z, Y, X), put together slice by slice as they are read.
    """
    depth, height, width = slices.shape
    places = segmented_slices(depth, settings.slice_stride)
    if store is None:
        store = store_for(stage.tracker, tiles, len(places))
    if batching.tile_workers is None:  # as in prediction
        batching = plan_memory(
            [stage.tracker], len(tiles) * settings.views, batching, [prompted_slices(stage.prompt, depth)]
        )
    masks = [None if stage1_mask is None else LazySlices.of(stage1_mask).crop(*tile.index) for tile in tiles]
    propagate(
        stage.tracker,
        slices,
        [prompts_on(places, stage.prompt, tile.shape, mask) for tile, mask in zip(tiles, masks, strict=True)],
        tiles,
        store,
        settings,
        batching,
        progress,
    )
    logits = store if settings.slice_stride == 1 else InterpolatedLogits(store, places)
    return Stitched(logits, tiles, (depth, height, width), at_voxels=stage.tracker.tile_step is not None)


@dataclass(frozen=True)
class Stage2Input:
    """Input of stage 2: the same in training, validation and prediction.

    Attributes
    ----------
    slices
        Tomogram fused with the logits of stage 1, (Z, Y, X) float32, 0..2.
    stage1_mask
        (Z, Y, X) uint8, for the prompt `stage1_mask`.
    """

    slices: Slices
    stage1_mask: Slices


def stage2_input(
    normalized: Slices, stage1_logits: Slices, tiles: Sequence[Tile], tiling: Tiling, threshold: float
) -> Stage2Input:
    """Input of stage 2 from the logits of stage 1.

    Parameters
    ----------
    normalized, stage1_logits
        (Z, Y, X) float32.
    tiles, tiling
        How slices are cut, and by what: it says whether each tile is fused by its own extremes.
    threshold
        Of stage 1.

    Raises
    ------
    ConfigError
        If the shapes differ.
    """
    fused = fuse(normalized, stage1_logits, tiles if tiling.fuse_per_tile else None)
    return Stage2Input(fused, membrane_mask(stage1_logits, threshold))


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
    settings
        How both stages go through the slices.
    batching
        Tiles and slices that go through the networks together; made complete by `plan_memory` for each tomogram.
    """

    def __init__(
        self,
        stage1: Stage,
        stage2: Stage,
        tiling: Tiling | None = None,
        settings: PropagationSettings = PropagationSettings(),
        batching: Batching = Batching(),
    ) -> None:
        super().__init__()
        self.stages = (stage1, stage2)
        self.trackers = nn.ModuleList([stage1.tracker, stage2.tracker])  # so that they move to the device
        self.tiling = tiling if tiling is not None else Overlapping()
        self.settings, self.batching = settings, batching
        self.eval()

    def plan(self, num_tiles: int, depth: int) -> MemoryPlan:
        """Batch sizes, and the memory that they are expected to take.

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
            num_tiles * self.settings.views,
            self.batching,
            [prompted_slices(stage.prompt, depth) for stage in self.stages],
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
            Where logits are kept; None: in memory, S/4 x S/4 float32 (or Y x X float16) a slice, tile and stage.
        progress
            Called slice by slice.
        """
        depth, height, width = normalized.shape
        stage1, stage2 = self.stages
        trackers = [stage.tracker for stage in self.stages]
        largest, step = min(one.tile_voxels for one in trackers), trackers[0].tile_step
        tiles = self.tiling.plan(height, width, largest, step)
        seconds: dict[str, float] = {}
        plan = self.plan(len(tiles), depth)
        segmented = len(segmented_slices(depth, self.settings.slice_stride))
        log.info(
            "needs about %.1f GB (%s): %s%d tile%s a slice%s, %d together%s",
            plan.gigabytes,
            plan.device,
            "" if segmented == depth else f"{segmented} of {depth} slices are segmented; ",
            len(tiles),
            "" if len(tiles) == 1 else "s",
            "" if self.settings.views == 1 else f" in {self.settings.views} views",
            plan.tile_batch_size,
            "" if plan.tile_workers == 1 else f" on each of {plan.tile_workers} cores",
        )

        def run(name: str, stage: Stage, slices: Slices, mask: Slices | None) -> Slices:
            started = time.perf_counter()
            logits = run_stage(
                stage,
                slices,
                tiles,
                stage1_mask=mask,
                store=store_for(stage.tracker, tiles, segmented, scratch_folder),
                settings=self.settings,
                batching=plan,
                progress=None if progress is None else lambda done, total: progress(name, done, total),
            )
            seconds[name] = time.perf_counter() - started
            return logits

        logits1 = run("stage 1", stage1, normalized, None)
        seen = stage2_input(normalized, logits1, tiles, self.tiling, stage1.threshold)
        logits2 = run("stage 2", stage2, seen.slices, seen.stage1_mask)
        return TwoStageOutput(logits1, logits2, tiles, seconds)
