"""Plan of the memory of a prediction: how many slices and tiles can go through a network together."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from etsam.errors import ConfigError
from etsam.network.tracker import SliceTracker

log = logging.getLogger(__name__)

# Peaks of live tensors, counted while nano, tiny and base-plus ran on a CPU in float32, as float32 planes at a quarter
# of the side: of the trunk's first blocks per channel, and, where no faster kernel is known (a GPU), of the neck
_BLOCKS = 11.0
_EMBEDDED, _MODELED = 1.875, 3.73
# float32 copies of (memory tokens, d_model) while a slice is tracked, the one in oneDNN's order included
_TRACKED = 8.0
# The same of a network at voxel resolution, as planes of its finest level: 5.9 counted, the rest is freed and kept
# (two tiles of 512 at a time: 1.70 GB in all, measured)
_VOXEL_BLOCKS = 9.0
_GPU_ENCODE_BATCH = 4  # slices a GPU encodes together unless it is told; our choice
_LARGEST_BATCH = 16  # beyond it nothing is gained; our choice
_SIDE_BY_SIDE_BYTES = 1e9  # that tiles at the same time may take together unless there is a budget; our choice
_RECORDED = 1.2  # on a GPU: inputs and outputs of CUDA graphs are kept (base-plus on an H100: 1.79 GB, measured)
_MARGIN = 1.15  # buffers inside of kernels, fragmentation; our choice


@dataclass(frozen=True)
class Batching:
    """Batch sizes: tiles and slices that go through a network together. They decide time and memory, not the result.

    Attributes
    ----------
    tile_batch_size
        Tiles tracked together, each view of one counted.
    encode_batch_size
        Slices of these tiles encoded together; None: 1 on a CPU (more are not faster there), 4 on a GPU.
    tile_workers
        Such batches of tiles at the same time, each by one core of a CPU; None: as `plan_memory` chooses. Large tiles
        of a network at voxel resolution are work enough for all cores, where there are more cores than tiles.
    memory_budget_gb
        Memory from which the sizes above follow, 10^9 bytes: RAM on a CPU, its own on a GPU; None: they are taken as
        they are.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    tile_batch_size: int = 1
    encode_batch_size: int | None = None
    tile_workers: int | None = None
    memory_budget_gb: float | None = None

    def __post_init__(self) -> None:
        for name in ("tile_batch_size", "encode_batch_size", "tile_workers"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ConfigError(f"{name}={size} has to be at least 1.")
        if self.memory_budget_gb is not None and self.memory_budget_gb <= 0:
            raise ConfigError(f"memory_budget_gb={self.memory_budget_gb:g} has to be above 0.")


@dataclass(frozen=True)
class MemoryPlan(Batching):
    """Batch sizes that were decided, and the memory that they are expected to take.

    Attributes
    ----------
    gigabytes
        Expected peak on the device that computes: of the process (CPU), or of tensors (GPU); 10^9 bytes.
    device
        In words.
    """

    gigabytes: float = 0.0
    device: str = ""


def plan_memory(
    trackers: Sequence[SliceTracker],
    num_tiles: int,
    batching: Batching = Batching(),
    conditioning: Sequence[int] | None = None,
) -> MemoryPlan:
    """Batch sizes that were asked for; with a budget, the largest that fit it, tiles before slices.

    Parameters
    ----------
    trackers
        Both stages, on their device.
    num_tiles
        Tiles of a slice.
    batching
        As asked for.
    conditioning
        Number of conditioning slices of each stage, all of which every slice attends to; default: one.

    Raises
    ------
    ConfigError
        If even one tile at a time needs more than the budget.
    """
    device = trackers[0].mean.device
    budget_gb, encode_batch_size = batching.memory_budget_gb, batching.encode_batch_size
    on_gpu = device.type == "cuda"
    if on_gpu:  # weights of both stages, and those of one again in 16 bits
        weights = [tracker.weight_bytes for tracker in trackers]
        resident = sum(weights) + max(weights) // 2
    else:
        resident = psutil.Process().memory_info().rss
    together = encode_batch_size or (_GPU_ENCODE_BATCH if on_gpu else 1)
    name = torch.cuda.get_device_name(device) if on_gpu else device.type.upper()
    prompts = [1] * len(trackers) if conditioning is None else conditioning

    def plan(tiles: int, slices: int) -> MemoryPlan:
        margin = _MARGIN * (_RECORDED if on_gpu else 1)
        working = (working_bytes(one, tiles, slices, count) for one, count in zip(trackers, prompts, strict=True))
        need = margin * max(working)
        room = _SIDE_BY_SIDE_BYTES if budget_gb is None else 1e9 * budget_gb - resident
        cores, batches = torch.get_num_threads(), -(-num_tiles // tiles)
        at_most = 1 if device.type != "cpu" or (trackers[0].tile_step and batches < cores) else min(cores, batches)
        workers = batching.tile_workers or max(1, min(at_most, int(room / need)))
        return MemoryPlan(tiles, slices, workers, budget_gb, (resident + workers * need) / 1e9, name)

    if budget_gb is None:
        return plan(min(batching.tile_batch_size, num_tiles), together)
    most = min(num_tiles, _LARGEST_BATCH)
    choices = [plan(tiles, 1) for tiles in range(most, 0, -1)]
    if on_gpu or encode_batch_size:
        most_slices = encode_batch_size or _LARGEST_BATCH
        choices = [plan(most, slices) for slices in range(most_slices, 1, -1)] + choices
    for choice in choices:
        if choice.gigabytes <= budget_gb:
            return choice
    raise ConfigError(
        f"memory_budget_gb={budget_gb:g} is too little: one tile at a time needs about {choices[-1].gigabytes:.2f} GB "
        f"(weights and program {resident / 1e9:.2f}); allow so much, or use a smaller network (net=)."
    )


def working_bytes(tracker: SliceTracker, tiles: int, slices: int, conditioning: int = 1) -> int:
    """Expected peak of tensors, weights not counted, bytes.

    Parameters
    ----------
    tracker
        The stage.
    tiles, slices
        So many tiles of so many slices together.
    conditioning
        Conditioning slices of the volume.
    """
    if tracker.tile_step:
        return _voxel_bytes(tracker, tiles, slices, conditioning)
    network, quarter = tracker.network, tracker.side // 4
    most = network.max_cond_frames_in_attn
    attended = conditioning if most == -1 else min(conditioning, most)
    wide, narrow = network.hidden_dim, network.image_encoder.trunk.patch_embed.proj.out_channels
    planes = max(_BLOCKS * narrow, _EMBEDDED * narrow + _MODELED * wide)
    encoding = 4 * quarter**2 * planes * tiles * slices
    tokens = (quarter // 4) ** 2
    pointers = (network.max_obj_ptrs_in_encoder - 1 + attended) * max(1, wide // network.mem_dim)
    tracking = 4 * _TRACKED * ((tracker.memory_slices + attended) * tokens + pointers) * wide * tiles
    # features of slices that wait for the tracker: an eighth and a quarter of the channels at the finer levels
    waiting = 4 * quarter**2 * wide * (1 / 8 + 1 / 16 + 1 / 16) * tiles * slices
    bank = (network.num_maskmem + 1 + conditioning) * tokens * network.mem_dim * 2 * tiles
    bank += 4 * quarter**2 * conditioning * tiles  # their masks
    return int(max(encoding, tracking) + waiting + bank)


def _voxel_bytes(tracker: SliceTracker, tiles: int, slices: int, conditioning: int) -> int:
    """As `working_bytes`, of a network at voxel resolution whose tiles are as large as they can be."""
    network, voxels = tracker.network, tracker.side**2
    widths = network.image_encoder.trunk.channel_list
    encoding = 4 * voxels * _VOXEL_BLOCKS * widths[0] * tiles * slices
    waiting = 4 * voxels * (1 + sum(network.sam_mask_decoder.widths)) * tiles * slices  # coarser levels are smaller
    return int(encoding + waiting + 4 * voxels * conditioning * tiles)  # masks of conditioning slices
