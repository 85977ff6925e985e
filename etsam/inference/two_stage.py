"""Stage 1 -> fuse -> stage 2: the whole method in plain torch and numpy."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from etsam.errors import ConfigError
from etsam.inference.axes import SideViews, check_axes, fused, turned, turned_bytes, turned_shape
from etsam.inference.directions import Pass, joined, passes
from etsam.inference.ensemble import Averaged, average_of, mean_of, spread_of, with_spread_to
from etsam.inference.fusion import fuse
from etsam.inference.logit_store import LogitStore, open_store
from etsam.inference.memory_plan import Batching, MemoryPlan, plan_memory
from etsam.inference.prompts import Prompt, conditioning_slices
from etsam.inference.propagate import PropagationSettings, propagate
from etsam.inference.slice_stride import InterpolatedLogits, check_stride, prompts_on, segmented_slices
from etsam.inference.tiles import BLEND_LIMIT, Overlapping, Stitched, Tile, Tiling, common_shape
from etsam.network.tracker import LogitFormat, SliceTracker
from etsam.volume.slices import LazySlices, Progress, Slices

log = logging.getLogger(__name__)

DEFAULT_THRESHOLD = -0.25
"""Logits strictly above this are membrane, in both stages (published default, chosen there on validation data)."""

_TURNED_DTYPE = np.float16  # of logits up to 10 and their spread while they wait; at most 0.004 off


def membrane_mask(logits: Slices, threshold: float) -> LazySlices:
    """Mask (Z, Y, X) uint8, 1 where logits lie strictly above a threshold, computed slice by slice."""
    return LazySlices.of(logits).map(lambda plane: (plane > threshold).astype(np.uint8))


@dataclass
class Stage:
    """One stage: a network, how it is prompted, and its threshold."""

    tracker: SliceTracker
    prompt: Prompt
    threshold: float = DEFAULT_THRESHOLD


def store_for(form: LogitFormat, tiles: Sequence[Tile], num_slices: int, folder: Path | None = None) -> LogitStore:
    """Store of the logits of one pass, (slices, tiles, s, s), in a folder or, without one, in memory."""
    return open_store(_store_shape(form, tiles, num_slices), folder, form.dtype)


def _store_shape(form: LogitFormat, tiles: Sequence[Tile], num_slices: int) -> tuple[int, ...]:
    return num_slices, len(tiles), *form.shape(common_shape(tiles))


def run_pass(
    stage: Stage,
    slices: Slices,
    tiles: Sequence[Tile],
    *,
    stage1_mask: Slices | None = None,
    store: LogitStore,
    spread: LogitStore | None = None,
    settings: PropagationSettings = PropagationSettings(),
    batching: Batching = Batching(),
    progress: Callable[[int, int], None] | None = None,
) -> Slices:
    """Logits of one stage from one pass over a volume, forward.

    Arguments and result are those of `run_stage`, but for these.

    Parameters
    ----------
    store
        Where logits of the segmented slices go, as `store_for` makes it.
    spread
        Gets the standard deviation of the views, shaped as `store`; None: nobody asks.
    settings
        Directions are not for here.
    """
    depth, height, width = slices.shape
    places = segmented_slices(depth, settings.slice_stride)
    if batching.tile_workers is None:  # as in prediction
        batching = plan_memory(
            [stage.tracker], len(tiles) * settings.views, batching, [conditioning_slices(stage.prompt, depth)]
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
        spread,
    )

    def whole(kept: LogitStore) -> Stitched:
        logits = kept if settings.slice_stride == 1 else InterpolatedLogits(kept, places)
        return Stitched(logits, tiles, (depth, height, width), at_voxels=stage.tracker.tile_step is not None)

    return whole(store) if spread is None else Averaged(whole(store), whole(spread))


def run_stage(
    stage: Stage,
    slices: Slices,
    tiles: Sequence[Tile],
    *,
    stage1_mask: Slices | None = None,
    scratch_folder: Path | None = None,
    spread: bool = False,
    settings: PropagationSettings = PropagationSettings(),
    batching: Batching = Batching(),
    progress: Callable[[int, int], None] | None = None,
) -> Slices:
    """Logits of one stage over a volume: inference, validation and inputs of stage-2 training all come through here.

    Parameters
    ----------
    stage
        Network and prompt; each pass over the volume gets a prompt made for it, and a memory of its own.
    slices
        Network input (Z, Y, X) float32.
    tiles
        How slices are cut.
    stage1_mask
        For the prompt `stage1_mask`.
    scratch_folder
        Where logits are kept; None: in memory.
    spread
        Keep the spread of views, too.
    settings, progress
        As for `propagate`.
    batching
        Made complete by `plan_memory`, unless it says how many tiles are worked at by cores of their own.

    Returns
    -------
    Slices
        Logits (Z, Y, X), put together slice by slice as they are read; `Averaged`, where they are a mean.

    Raises
    ------
    ConfigError
        If there is no start slice of that number.
    """
    depth = slices.shape[0]
    ways = passes(depth, settings.propagation, settings.start_slice)
    counts = [len(segmented_slices(way.depth, settings.slice_stride)) for way in ways]
    form, views_differ = stage.tracker.logit_format, spread and settings.views > 1
    found: list[Slices] = []
    for number, way in enumerate(ways):
        before, total = sum(counts[:number]), sum(counts)
        found.append(
            run_pass(
                stage,
                slices if way == Pass(0, depth - 1) else way.of(slices),
                tiles,
                stage1_mask=None if stage1_mask is None else way.of(stage1_mask),
                store=store_for(form, tiles, counts[number], scratch_folder),
                spread=store_for(form, tiles, counts[number], scratch_folder) if views_differ else None,
                settings=settings,
                batching=batching,
                progress=_shifted(progress, before, total),
            )
        )
    return joined(found, ways, depth)


def _shifted(progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int, int], None] | None:
    """Progress of a part, of which so many steps come before, and as many are there in all."""
    return None if progress is None else lambda done, _: progress(before + done, total)


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


Stage2Inputs = Callable[[Any, Slices], Stage2Input]
"""(Tomogram with its mask, such as a `Sample`; its normalised slices) -> input of stage 2."""


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
    """Logits of both stages, read slice by slice from what the networks left in scratch files.

    Attributes
    ----------
    stage1_logits
        (Z, Y, X) float32, of stage 1; with several axes or inputs, of the first of them.
    logits
        (Z, Y, X) float32, of stage 2, or the mean of both stages. They have a `spread` if that was asked for.
    tiles
        How the slices along the first axis were cut.
    seconds
        Of each stage.
    """

    stage1_logits: Slices
    logits: Slices
    tiles: list[Tile]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Sight:
    """One input along one axis, as the networks see it."""

    axis: str
    slices: Slices
    tiles: list[Tile]
    plan: MemoryPlan
    settings: PropagationSettings
    stage1_logits: Slices | None = None

    @property
    def steps(self) -> int:
        """Slices that are segmented, of all passes."""
        return segmented_in_all(self.slices.shape[0], self.settings)


def segmented_in_all(depth: int, settings: PropagationSettings) -> int:
    """Slices that a stage segments in a volume of `depth`, each counted as often as a pass goes through it."""
    ways = passes(depth, settings.propagation, settings.start_slice)
    return sum(len(segmented_slices(way.depth, settings.slice_stride)) for way in ways)


def settings_along(axis: str, settings: PropagationSettings, side_slice_stride: int) -> PropagationSettings:
    """Settings along an axis: those along Z, but that side views segment no more than one of so many slices."""
    if axis == "z":
        return settings
    return replace(
        settings, slice_stride=max(settings.slice_stride, check_stride(side_slice_stride, "side_slice_stride"))
    )


def scratch_bytes(
    formats: Sequence[LogitFormat],
    tile_voxels: int,
    tiling: Tiling,
    shape: tuple[int, int, int],
    settings: PropagationSettings = PropagationSettings(),
    axes: Sequence[str] = ("z",),
    inputs: int = 1,
    spread: bool = False,
    side_slice_stride: int = 1,
) -> int:
    """Bytes of scratch files that `TwoStage` has at most, before any network is built.

    Parameters
    ----------
    formats
        Of both stages.
    tile_voxels
        Side of the tiles that both stages are made for.
    tiling, settings, axes, spread, side_slice_stride
        As of `TwoStage`.
    shape
        (Z, Y, X) of the volume as the networks see it.
    inputs
        Of one tomogram.

    Raises
    ------
    ConfigError
        If there is no start slice of that number.
    """
    total = 0
    for number, axis in enumerate(check_axes(axes)):
        seen = turned_shape(shape, axis)
        tiles = tiling.plan(*seen[1:], tile_voxels, formats[0].tile_step)
        steps = segmented_in_all(seen[0], settings_along(axis, settings, side_slice_stride))
        kept = 2 if spread and settings.views > 1 else 1
        for form in formats:
            total += inputs * kept * math.prod(_store_shape(form, tiles, steps)) * np.dtype(form.dtype).itemsize
        results = 1 + spread + (number == 0)  # turned back: logits, their spread, and of stage 1 those of the first
        total += inputs * turned_bytes(shape, axis) + results * turned_bytes(seen, axis, _TURNED_DTYPE)
    return total


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
    axes
        Along which both stages go, each from stage 1 on; see `etsam.inference.axes.fused`.
    side_views
        Weight, floor and shift of `SideViews`; None: its own.
    spread
        Give the spread of logits, too: of views, directions, axes, inputs and both stages.
    side_slice_stride
        Along Y and X one of so many slices is segmented, if that is more than the settings' own stride: what is seen
        from the sides is added to what is seen along Z, and needs less detail.
    mean_of_stages
        The logits are the mean of those of both stages, each clamped to +-10; else those of stage 2, as published.

    Raises
    ------
    ConfigError
        If an axis is none, or a start slice is given for others than Z.
    """

    def __init__(
        self,
        stage1: Stage,
        stage2: Stage,
        tiling: Tiling | None = None,
        settings: PropagationSettings = PropagationSettings(),
        batching: Batching = Batching(),
        axes: Sequence[str] = ("z",),
        side_views: Sequence[float] | None = None,
        spread: bool = False,
        side_slice_stride: int = 1,
        mean_of_stages: bool = False,
    ) -> None:
        super().__init__()
        self.stages = (stage1, stage2)
        self.trackers = nn.ModuleList([stage1.tracker, stage2.tracker])  # so that they move to the device
        self.tiling = tiling if tiling is not None else Overlapping()
        self.settings, self.batching, self.spread = settings, batching, spread
        self.mean_of_stages = mean_of_stages
        self.axes, self.side_views = check_axes(axes), SideViews(*(side_views or ()))
        self.side_slice_stride = check_stride(side_slice_stride, "side_slice_stride")
        if settings.start_slice is not None and self.axes != ("z",):
            raise ConfigError(
                f"start_slice={settings.start_slice} counts slices along z, and axes=[{','.join(self.axes)}] has "
                "others; leave one of them out."
            )
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
            [conditioning_slices(stage.prompt, depth) for stage in self.stages],
        )

    def forward(
        self,
        *normalized: Slices,
        scratch_folder: Path | None = None,
        progress: Progress | None = None,
        start_slice: int | None = None,
    ) -> TwoStageOutput:
        """Segment a tomogram.

        Parameters
        ----------
        normalized
            Normalised tomogram (Z, Y, X) float32; several reconstructions of it are averaged, each one seen for itself.
        scratch_folder
            Where logits and turned volumes are kept; None: in memory, S/4 x S/4 float32 (or Y x X float16) a slice,
            tile, pass, axis and stage.
        progress
            Called slice by slice, stage 1 of everything before stage 2 of anything.
        start_slice
            As the networks see the volume; default: that of the settings.

        Raises
        ------
        ConfigError
            If there is no start slice of that number.
        """
        settings = self.settings if start_slice is None else replace(self.settings, start_slice=start_slice)
        sights = [self._sight(one, axis, scratch_folder, settings) for axis in self.axes for one in normalized]
        self._tell_plan(sights[0], normalized[0].shape[0], len(normalized))
        total = sum(one.steps for one in sights)
        seconds: dict[str, float] = {}
        stage1, stage2 = self.stages

        def run(name: str, stage: Stage, number: int, slices: Slices, mask: Slices | None) -> Slices:
            started, sight = time.perf_counter(), sights[number]
            before = sum(one.steps for one in sights[:number])
            logits = run_stage(
                stage,
                slices,
                sight.tiles,
                stage1_mask=mask,
                scratch_folder=scratch_folder,
                spread=self.spread,
                settings=sight.settings,
                batching=sight.plan,
                progress=None if progress is None else lambda done, _: progress(name, before + done, total),
            )
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
            return logits

        for number, sight in enumerate(sights):
            sight.stage1_logits = run("stage 1", stage1, number, sight.slices, None)
        found: dict[str, list[Slices]] = {axis: [] for axis in self.axes}
        first = sights[0].stage1_logits
        for number, sight in enumerate(sights):
            assert sight.stage1_logits is not None
            seen = stage2_input(sight.slices, sight.stage1_logits, sight.tiles, self.tiling, stage1.threshold)
            logits = run("stage 2", stage2, number, seen.slices, seen.stage1_mask)
            if self.mean_of_stages:
                logits = average_of([logits, sight.stage1_logits])
            elif self.spread:
                logits = with_spread_to(logits, sight.stage1_logits)
            found[sight.axis].append(logits)
        along = {axis: _turned_back(mean_of(found[axis]), axis, scratch_folder, self.spread) for axis in self.axes}
        assert first is not None
        of_stage1 = _turned_back(first, self.axes[0], scratch_folder, False)
        return TwoStageOutput(of_stage1, fused(along, self.side_views), sights[0].tiles, seconds)

    def _sight(self, slices: Slices, axis: str, folder: Path | None, settings: PropagationSettings) -> _Sight:
        depth, height, width = turned_shape(slices.shape, axis)
        passes(depth, settings.propagation, settings.start_slice)  # refuses a slice that there is not
        trackers = [stage.tracker for stage in self.stages]
        tiles = self.tiling.plan(height, width, min(one.tile_voxels for one in trackers), trackers[0].tile_step)
        settings = settings_along(axis, settings, self.side_slice_stride)
        return _Sight(axis, turned(slices, axis, folder), tiles, self.plan(len(tiles), depth), settings)

    def _tell_plan(self, first: _Sight, depth: int, inputs: int) -> None:
        segmented, tiles, plan = len(segmented_slices(depth, first.settings.slice_stride)), len(first.tiles), first.plan
        log.info(
            "needs about %.1f GB (%s): %s%d tile%s a slice%s, %d together%s%s%s",
            plan.gigabytes,
            plan.device,
            "" if segmented == depth else f"{segmented} of {depth} slices are segmented; ",
            tiles,
            "" if tiles == 1 else "s",
            "" if first.settings.views == 1 else f" in {first.settings.views} views",
            plan.tile_batch_size,
            "" if plan.tile_workers == 1 else f" on each of {plan.tile_workers} cores",
            "" if self.axes == ("z",) else f"; along {', '.join(self.axes)}",
            "" if inputs == 1 else f"; mean of {inputs} inputs",
        )


def _turned_back(logits: Slices, axis: str, folder: Path | None, spread: bool) -> Slices:
    """Logits of a turned volume along Z again, clamped as for a mean."""
    if axis == "z":
        return logits
    limited = LazySlices.of(logits).map(lambda plane: np.clip(plane, -BLEND_LIMIT, BLEND_LIMIT))
    differ = spread_of(logits) if spread else None
    return Averaged(
        turned(limited, axis, folder, _TURNED_DTYPE),
        None if differ is None else turned(differ, axis, folder, _TURNED_DTYPE),
    )
