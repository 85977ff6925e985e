"""Checkpoint files -> weights of a network: safely, and completely or not at all.

Accepted: `.pt` as SAM2 and ETSAM publish them (`{"model": {name: tensor}}`, or the plain dictionary), Lightning
`.ckpt` (`{"state_dict": {prefix + name: tensor}}`), and `.safetensors`. Pickles are read with `weights_only=True`:
code in them is refused, never run.
"""

import logging
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from etsam.errors import CheckpointError
from etsam.volume.atomic import atomic_path

log = logging.getLogger(__name__)

_ANCHOR = "maskmem_tpos_enc"  # a parameter at the root of every SAM2 network; tells the prefix that Lightning adds
# channels of the first convolution of SAM2's trunk -> config; the first generation of nano has 32
_HIERA = {32: "nano_v1", 96: "sam2.1_hiera_t or _s", 112: "sam2.1_hiera_b+", 144: "sam2.1_hiera_l"}
_SHOWN = 1  # names of each kind in an error message


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, on the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, unreadable, damaged, not a checkpoint, or holds anything but plain tensors.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"the weights {path} cannot be read: {error.strerror}.") from error
    _refuse_text(path, start)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _tensors(path, _read_pickle(path))


def _refuse_text(path: Path, start: bytes) -> None:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not weights: the download went wrong; download it again.")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not weights; run `git lfs pull`.")
    if not start:
        raise CheckpointError(f"{path} is empty, not weights; download or copy it again.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise _damaged(path, error) from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which need not interest anybody
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        # torch 2.5 to 2.15: "Unsupported global: GLOBAL a.b was not ...", "Trying to load unsupported GLOBAL a.b whose
        # module a is blocked", "Trying to call reduce for unrecognized function", "Can only build Tensor, ..."
        if re.search(
            r"\bGLOBAL\b|Unsupported (global|class)|reduce for unrecogni|Can only (build|create)", text
        ) or _calls(path):
            found = re.search(r"GLOBAL ([\w.]+)", text)
            raise CheckpointError(
                f"{path} holds more than tensors{f' ({found.group(1)})' if found else ''}, possibly code; it was "
                "refused and nothing in it was run. Where you trust its origin, export its weights as .safetensors."
            ) from error
        raise _damaged(path, None) from error  # torch's text is about its settings, not about the file
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, AttributeError) as error:
        raise _damaged(path, error) from error
    except (IndexError, TypeError, AssertionError, struct.error, OverflowError, ImportError) as error:
        raise _damaged(path, error) from error  # met when bytes of a good checkpoint were changed


def _calls(path: Path) -> bool:
    """True if a whole plain pickle names functions or classes; read, not executed."""
    try:
        with open(path, "rb") as file:
            names = {operation.name for operation, _, _ in pickletools.genops(file)}
    except Exception:  # whatever it is, it is no whole pickle
        return False
    return bool(names & {"GLOBAL", "STACK_GLOBAL", "INST", "REDUCE"})


def _damaged(path: Path, error: Exception | None) -> CheckpointError:
    reason = "" if error is None else " ".join(str(error).split()).partition(". ")[0][:120]
    return CheckpointError(
        f"{path} is damaged, cut off or no checkpoint at all; download or copy it again."
        + (f" The library that reads it says: {reason}." if reason else "")
    )


def _tensors(path: Path, loaded: Any) -> dict[str, Tensor]:
    """Take the dictionary of tensors out of what a pickle held, without the prefix that a Lightning module gives."""
    if isinstance(loaded, dict):
        for key in ("model", "state_dict"):
            if isinstance(loaded.get(key), dict):
                loaded = loaded[key]
                break
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(
            f"{path} holds no weights; expected a dictionary of tensors, or one under the key `model` (SAM2, ETSAM) or "
            "`state_dict` (Lightning)."
        )
    prefixes = {name[: -len(_ANCHOR)] for name in loaded if name.endswith(_ANCHOR)}
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{path} holds {len(prefixes)} networks ({', '.join(sorted(prefixes))}); export the one you want."
        )
    prefix = prefixes.pop() if prefixes else ""
    return {name[len(prefix) :]: value for name, value in loaded.items() if name.startswith(prefix)}


def load_weights(
    network: nn.Module, path: Path, *, adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
) -> None:
    """Copy a checkpoint into a network: first the names are compared, then the shapes, and only then values copied.

    Parameters
    ----------
    network
        Its parameters and buffers are overwritten, in their own dtype and on their own device.
    path
        Checkpoint file.
    adapt
        Makes what the file holds fit this network.

    Raises
    ------
    CheckpointError
        As `read_state_dict`; or if names are missing or unexpected, shapes differ, or values are not finite. The
        network is unchanged then.
    """
    state, expected = read_state_dict(path), network.state_dict()
    if adapt is not None:
        state = adapt(state)
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or unexpected or misshapen:
        faults = [
            _listing(kind, names)
            for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
            if names
        ]
        raise CheckpointError(
            f"{path} holds weights of another architecture than the chosen network: {'; '.join(faults)}. Choose the "
            f"net it was trained with (net={_net_of(state)})."
        )
    _refuse_nonfinite(path, state)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(state[name])


def _net_of(state: dict[str, Tensor]) -> str:
    """Name in the config group `net` of the network that weights look like; `...` if of none."""
    if "image_encoder.trunk.down.0.0.weight" in state:
        return "nano"
    channels = state.get("image_encoder.trunk.patch_embed.proj.bias", torch.empty(0)).numel()
    return _HIERA.get(channels, "...")


def _refuse_nonfinite(path: Path, state: Mapping[str, Tensor]) -> None:
    broken = nonfinite_tensors(state)
    if broken:
        raise CheckpointError(f"{path} holds values that are not finite: {_listing('tensors', broken)}.")


def nonfinite_tensors(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinite values."""
    floating = {name: value for name, value in state.items() if value.is_floating_point()}
    if not floating:
        return []
    finite = torch.stack([value.isfinite().all() for value in floating.values()]).tolist()  # one wait for a GPU
    return [name for name, good in zip(floating, finite, strict=True) if not good]


def export_weights(source: Path, target: Path, *, half: bool = False, overwrite: bool = False) -> None:
    """Write the weights of a checkpoint alone, as safetensors: small, and nothing in it can be run.

    Parameters
    ----------
    source
        Any checkpoint that `read_state_dict` reads; of a training run with moving average, the averaged weights.
    target
        A `.safetensors` file.
    half
        Store float16 instead of float32.
    overwrite
        Replace an existing file.

    Raises
    ------
    CheckpointError
        If the source holds no network or values that are not finite, or the target has another suffix.
    OutputError
        If the target exists or cannot be written.
    """
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target} has to end in .safetensors.")
    state = read_state_dict(source)
    if _ANCHOR not in state:
        raise CheckpointError(f"{source} holds no SAM2 network: there is no {_ANCHOR} in it.")
    tensors = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous().clone()
        for name, value in state.items()
    }
    _refuse_nonfinite(source, tensors)
    with atomic_path(target, overwrite) as part:
        part.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    log.info("%d tensors, %.1f MB -> %s", len(tensors), target.stat().st_size / 1e6, target)


def _listing(kind: str, names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{more})"
