"""The same network as CUDA graphs, for inference on a GPU; nothing here changes what is computed.

A slice of base-plus at 1024 takes some two thousand kernels, many of them shorter than it takes to start one from
Python. A CUDA graph starts all kernels of a part at once, with the same arguments each time. Hence the parts of the
network whose inputs have the same shapes slice after slice are recorded once and replayed: the image encoder, attention
to the memory bank (once it is full), mask decoder and memory encoder. Inputs are copied to where the recording read
them, outputs from where it left them. Weights that autocast would round to bfloat16 slice after slice are rounded once.

`torch.compile`, which would join what follows each matrix product into one kernel, is not used: it takes most of a
minute for each stage, which is more than it saves in a thousand slices.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from etsam.network.build import known_layers
from etsam.network.fast.gpu_attention import SplitAttention
from etsam.network.fast.patching import Replacement, constants, is_memory_attention, patched, wants_reference

log = logging.getLogger(__name__)

_CALLS_BEFORE = 2  # with the same shapes, as usual: libraries choose and initialise their kernels in these
_ROUNDED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)  # whose weights autocast rounds

Function = Callable[..., Any]
Record = Callable[[Callable[[], Any], torch.device], Callable[[], None]]
"""Takes what to record and where it runs; gives back its replay."""


@contextmanager
def graphed(network: nn.Module) -> Iterator[None]:
    """Let SAM2's networks run as CUDA graphs while in this context; their weights must not change meanwhile.

    Nothing happens on a CPU. Calls with gradients, clicks or shapes that do not come again go the usual way.

    Parameters
    ----------
    network
        Any module.
    """
    device = next((parameter.device for parameter in network.parameters()), None)
    if wants_reference(network) or device is None or device.type != "cuda":
        yield
        return
    with ExitStack() as undo:
        undo.enter_context(torch.cuda.device(device))  # graphs are recorded on the current one
        if torch.is_autocast_enabled("cuda"):
            _round_weights(network, torch.get_autocast_dtype("cuda"), undo)
        pool = torch.cuda.graph_pool_handle()
        undo.enter_context(patched(network, partial(_replacements, partial(_record, pool))))
        yield
        torch.cuda.synchronize(device)  # no replay may outlive its memory


def _replacements(record: Record, module: Any) -> Iterator[Replacement]:
    if is_memory_attention(module):
        yield module, "forward", SplitAttention(module)
    elif isinstance(module, known_layers().network):
        yield module, "forward_image", _Encoder(module, record)
        yield module.memory_attention, "forward", Graphed(module.memory_attention.forward, record)
        for name in ("_forward_sam_heads", "_encode_new_memory"):
            yield module, name, Graphed(getattr(module, name), record)
    else:
        yield from constants(module)


def _round_weights(network: nn.Module, dtype: torch.dtype, undo: ExitStack) -> None:
    """Weights as autocast would round them at each use."""
    for module in network.modules():
        if type(module) in _ROUNDED:
            for name, parameter in list(module.named_parameters(recurse=False)):
                module._parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                undo.callback(module._parameters.__setitem__, name, parameter)


class _Encoder:
    """`forward_image` whose feature maps come from a recording; position encodings are the same each time."""

    def __init__(self, network: Any, record: Record) -> None:
        known: dict[torch.Size, list[Tensor]] = {}  # not of self, which would keep the memory of its recordings

        def levels(images: Tensor) -> list[Tensor]:
            encoded = type(network).forward_image(network, images)
            known.setdefault(images.shape, encoded["vision_pos_enc"])
            return list(encoded["backbone_fpn"])

        self._positions, self._levels = known, Graphed(levels, record)

    def __call__(self, images: Tensor) -> dict[str, Any]:
        levels = self._levels(images)
        positions = self._positions[images.shape]
        return {"vision_features": levels[-1], "vision_pos_enc": positions, "backbone_fpn": levels}


class Graphed:
    """A function of tensors, recorded for each combination of shapes that comes again.

    Parameters
    ----------
    function
        Takes and gives tensors in any nest of lists, tuples and dicts; without side effects.
    record
        See `Record`.
    """

    def __init__(self, function: Function, record: Record) -> None:
        self._function, self._record = function, record
        self._calls: dict[Any, int] = {}
        self._recordings: dict[Any, _Recording | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return self._function(*args, **kwargs)
        tensors: list[Tensor] = []
        key = (_taken_apart((args, kwargs), tensors), torch.is_autocast_enabled("cuda"))
        if not tensors:
            return self._function(*args, **kwargs)
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] > _CALLS_BEFORE and key not in self._recordings:
            self._recordings[key] = self._recorded((args, kwargs))
        recording = self._recordings.get(key)
        return self._function(*args, **kwargs) if recording is None else recording(tensors)

    def _recorded(self, arguments: Any) -> "_Recording | None":
        try:
            return _Recording(self._function, arguments, self._record)
        except RuntimeError as error:  # memory that did not suffice, or what cannot be recorded
            log.warning("%s: no CUDA graph: %s", getattr(self._function, "__name__", "a part"), error)
            return None


def _taken_apart(nest: Any, tensors: list[Tensor]) -> Any:
    """Append the tensors in lists, tuples and dicts; gives back what has to be the same for a recording to be the same.

    The same as of torch's pytrees, in a fifth of their time, which a GPU that has done its work would wait.
    """
    if isinstance(nest, Tensor):
        tensors.append(nest)
        return nest.shape, nest.stride(), nest.dtype
    if isinstance(nest, list | tuple):
        return type(nest), tuple([_taken_apart(item, tensors) for item in nest])
    if isinstance(nest, dict):
        return tuple([(name, _taken_apart(item, tensors)) for name, item in nest.items()])
    return nest


def _cloned(nest: Any, clones: list[Tensor]) -> Any:
    """The same nest with clones of its tensors, which are appended in the order of `_taken_apart`."""
    if isinstance(nest, Tensor):
        clones.append(nest.clone())
        return clones[-1]
    if isinstance(nest, list | tuple):
        return type(nest)([_cloned(item, clones) for item in nest])
    if isinstance(nest, dict):
        return {name: _cloned(item, clones) for name, item in nest.items()}
    return nest


class _Recording:
    def __init__(self, function: Function, arguments: Any, record: Record) -> None:
        self._inputs: list[Tensor] = []
        args, kwargs = _cloned(arguments, self._inputs)
        found: list[Any] = []  # not of self, which would keep the memory of its recording

        def run() -> None:
            found[:] = [function(*args, **kwargs)]

        self._found = found
        self._replay = record(run, self._inputs[0].device)

    def __call__(self, tensors: list[Tensor]) -> Any:
        torch._foreach_copy_(self._inputs, tensors, non_blocking=True)
        self._replay()
        return _cloned(self._found[0], [])


def _record(pool: Any, run: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """`run` as a CUDA graph; it runs once before, so that what is compiled or allocated at first is there."""
    lower, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    # rounded weights that autocast keeps would be gone with its context, and a graph reads them later
    with torch.autocast("cuda", dtype, enabled=lower, cache_enabled=False):
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run()
    return graph.replay
