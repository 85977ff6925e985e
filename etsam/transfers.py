"""Copies between the CPU and a GPU that neither waits for."""

from collections.abc import Callable

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; the copy takes its turn among what the GPU has to do, and the CPU goes on.

    From ordinary memory the CPU would wait until the GPU has done all it was asked to before.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def download(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy a tensor to the CPU; what is returned waits for the copy and gives it."""
    if tensor.device.type != "cuda":
        return tensor.cpu
    host = tensor.to("cpu", non_blocking=True)  # torch takes page-locked memory for it
    done = torch.cuda.Event()
    done.record()

    def copied() -> Tensor:
        done.synchronize()
        return host

    return copied
