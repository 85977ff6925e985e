"""Arithmetic of a network, and how fast a machine does arithmetic."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from etsam.network.tracker import SliceTracker


def slice_flops(tracker: SliceTracker) -> float:
    """Floating-point operations of one slice with a full memory bank, as SAM2 computes it (products count as two).

    Parameters
    ----------
    tracker
        On the CPU; it runs once.
    """
    side = tracker.side
    image = torch.zeros(1, tracker.mean.shape[1], side, side)
    # attention on a CPU has an operator of its own, which torch's counter does not know
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    learns = [parameter for parameter in tracker.parameters() if parameter.requires_grad]
    tracker.requires_grad_(False)  # what the counter's hooks would trip over
    trunk = tracker.network.image_encoder.trunk
    ours = vars(trunk).pop("forward", None)  # network/window_order.py, which computes less
    try:
        return _count(tracker, image, attention)
    finally:
        if ours is not None:
            trunk.forward = ours
        for parameter in learns:
            parameter.requires_grad_(True)


def _count(tracker: SliceTracker, image: torch.Tensor, attention: dict[Any, Any]) -> float:
    network, side = tracker.network, tracker.side
    with torch.no_grad():
        reach = network.max_obj_ptrs_in_encoder
        state = tracker.prompt(0, tracker.encode(image), torch.zeros(1, 1, side, side), tracker.new_memory(reach + 2))
        others = dict.fromkeys(range(1, reach + 1), state)
        with FlopCounterMode(display=False, custom_mapping=attention) as counter:
            features = tracker.encode(image)
            tracker.segment(reach + 1, features, {0: state}, others, reach + 2, remember=True)
    return float(counter.get_total_flops())


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *args: object, out_shape: object = None, **kwargs: object
) -> int:
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[-2] * (width + value[-1])


def matmul_rate(device: str, precision: str = "32-true", threads: int = 0, side: int = 4096) -> float:
    """Floating-point operations per second of the fastest of some large matrix products.

    Parameters
    ----------
    device
        `cpu` or `cuda`.
    precision
        `bf16-mixed`: of 16-bit numbers.
    threads
        On a CPU; 0: torch's choice.
    side
        Of the matrices.
    """
    from etsam.network.fast.cpu_kernels import available

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    a = torch.randn(side, side, device=device, dtype=dtype)
    products: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [torch.mm]
    if device == "cpu" and dtype == torch.float32 and available():
        products.append(lambda x, y: torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], ""))
    seconds = []
    for product in products:
        for _ in range(4):
            started = time.perf_counter()
            product(a, a)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    torch.set_num_threads(before)
    return 2 * side**3 / min(seconds)
