"""Estimate, before the first step, of the memory that a training step needs, and a clear error if it cannot fit.

What autograd keeps is measured on this very network: one image through the encoder, and one slice tracked from a full
memory, both on the CPU and at the network's own side. The rest is arithmetic.
"""

import logging
from dataclasses import dataclass

import psutil
import torch

from etsam.errors import ConfigError
from etsam.network.tracker import SliceTracker

log = logging.getLogger(__name__)

_STATE_COPIES = 4  # float32 weights, gradients, and AdamW's two moments
_AUTOCAST = 0.6  # of what is kept in float32: 0.56 and 0.58 with nano's slices and clips (measured), on a CPU 0.73
_CERTAIN = 1.5  # an estimate so far above what is free is no accident
_HEADROOM = 1.15  # buffers of kernels and fragmentation; our choice


@dataclass(frozen=True)
class Footprint:
    """Bytes of one training step on one device.

    Attributes
    ----------
    state
        Weights, gradients, optimiser, moving average.
    encoder
        What the image encoder keeps for the backward pass.
    tracking
        What memory attention, decoder and memory encoder keep.
    """

    state: int
    encoder: int
    tracking: int

    @property
    def total(self) -> int:
        """With headroom."""
        return int(_HEADROOM * (self.state + self.encoder + self.tracking))


class _Saved:
    """Counts the bytes that autograd saves inside the block, each storage once, those of the weights not at all."""

    def __init__(self, tracker: SliceTracker) -> None:
        self.bytes = 0
        weights = (*tracker.parameters(), *tracker.buffers())
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in weights}

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> "_Saved":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)


def estimate(
    tracker: SliceTracker,
    *,
    num_slices: int,
    batch_size: int,
    checkpoint_encoder: bool = False,
    encode_batch_size: int | None = None,
    crop: tuple[int, int] | None = None,
    half: bool = False,
    averaged: bool = False,
) -> Footprint:
    """Measure one slice and extrapolate; costs a forward pass or two on the CPU.

    Parameters
    ----------
    tracker
        On the CPU.
    num_slices, batch_size
        Slices of a clip, with those at its ends that are only seen beside others, and clips of a batch.
    checkpoint_encoder, encode_batch_size
        As in `forward_clip`; with checkpointing the encoder keeps one group of images at a time.
    crop
        (Y, X) voxels of a clip, for a network that takes any size; None: the largest.
    half
        Whether the step is computed in bfloat16, by autocast.
    averaged
        Whether a moving average of the weights is kept.
    """
    training = tracker.training
    # without dropout: with it, attention on the CPU keeps whole matrices, which the kernels of a GPU never do
    tracker.eval()
    trained = num_slices - (tracker.input_slices - 1)
    memory = tracker.new_memory(trained)
    size = tracker.image_shape(crop or (tracker.tile_voxels, tracker.tile_voxels))
    image = torch.zeros(1, tracker.mean.shape[1], *size)
    with _Saved(tracker) as encoder:
        features = tracker.encode(image)
    with torch.no_grad():
        empty = torch.zeros(1, 1, *size)
        state = tracker.prompt(0, features, empty, memory)
    reach = min(trained - 1, tracker.memory_slices)
    others = {z: state for z in range(1, 1 + reach)}
    with _Saved(tracker) as tracking:
        tracker.segment(1 + reach, features, {0: state}, others, trained, remember=True)
    tracker.train(training)
    images = trained * batch_size
    kept = min(images, encode_batch_size or images) if checkpoint_encoder else images
    share = _AUTOCAST if half else 1.0
    return Footprint(
        state=tracker.weight_bytes * (_STATE_COPIES + averaged),
        encoder=int(encoder.bytes * kept * share),
        tracking=int(tracking.bytes * images * share),
    )


def require_room(footprint: Footprint, accelerated: bool) -> None:
    """Log the estimate; warn if it is more than the device has free.

    Raises
    ------
    ConfigError
        If it is more than 1.5 times that, beyond the error of the estimate; names the settings that help.
    """
    free = torch.cuda.mem_get_info()[0] if accelerated else psutil.virtual_memory().available
    need, place = footprint.total / 1e9, "the GPU" if accelerated else "this machine"
    parts = ", ".join(f"{name} {getattr(footprint, name) / 1e9:.2f}" for name in ("state", "encoder", "tracking"))
    level = logging.WARNING if footprint.total > free else logging.INFO
    log.log(level, "a step needs about %.2f GB (%s); %s has %.1f GB free", need, parts, place, free / 1e9)
    if footprint.total > _CERTAIN * free:
        raise ConfigError(
            f"a training step needs about {need:.1f} GB ({parts}), and {place} has {free / 1e9:.1f} GB free; use a "
            "smaller data.batch_size or data.num_slices, checkpoint_encoder=true encode_batch_size=4, or a smaller net."
        )
