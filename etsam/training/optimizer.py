"""Parameter groups (encoder apart, lower layers slower, no decay on norms), and Muon beside AdamW."""

import re
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from etsam.errors import CheckpointError, ConfigError

_TRUNK = "image_encoder.trunk."
_POSITION = re.compile(r"pos_embed")  # position embeddings keep the full encoder rate, as SAM2's recipe has it


def parameter_groups(
    network: nn.Module, *, lr: float, encoder_lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser, biggest learning rate first; frozen parameters are left out.

    Parameters
    ----------
    network
        A SAM2 network.
    lr
        Of everything but the image encoder.
    encoder_lr
        Of the image encoder.
    layer_decay
        Block number i of n of SAM2's trunk has `encoder_lr * layer_decay ** (n - i)`: 1 switches that off, 0.9 is
        SAM2's. A trunk at voxel resolution ends where it began, and has one rate.
    weight_decay
        Of everything but biases and weights of LayerNorm and GroupNorm.

    Returns
    -------
    list of dict
        With `params`, `lr`, `weight_decay` and `names` (for tests and logs).

    Raises
    ------
    ConfigError
        If a rate is negative, `layer_decay` is not above 0 and at most 1, or nothing is left to train.
    """
    if min(lr, encoder_lr, weight_decay) < 0 or not 0 < layer_decay <= 1:
        raise ConfigError(
            f"lr={lr}, encoder_lr={encoder_lr}, weight_decay={weight_decay} have to be at least 0 and "
            f"layer_decay={layer_decay} above 0 and at most 1."
        )
    norms = {
        f"{name}.{part}"
        for name, module in network.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for part, _ in module.named_parameters(recurse=False)
    }
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = _rate(network, name, lr, encoder_lr, layer_decay)
        decay = 0.0 if name.endswith("bias") or name in norms else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "names": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ConfigError("every parameter is frozen: there is nothing to train.")
    return [groups[key] for key in sorted(groups, reverse=True)]


def _rate(network: nn.Module, name: str, lr: float, encoder_lr: float, layer_decay: float) -> float:
    if not name.startswith("image_encoder."):
        return lr
    trunk: Any = network.get_submodule("image_encoder.trunk")
    if not name.startswith(_TRUNK) or _POSITION.search(name) or not hasattr(trunk, "get_layer_id"):
        return encoder_lr
    depth = trunk.get_num_layers() + 1
    return encoder_lr * layer_decay ** (depth - trunk.get_layer_id(name[len(_TRUNK) :]))


def freeze_encoder(network: nn.Module) -> None:
    """Take the image encoder out of training; of one at voxel resolution its trunk, which is trained alone first."""
    part = "image_encoder.trunk" if getattr(network, "tile_step", None) else "image_encoder"
    for parameter in network.get_submodule(part).parameters():
        parameter.requires_grad_(False)


_LEAST_SIDE = 16  # smaller matrices are lists of tokens


class MuonAdamW(torch.optim.Optimizer):
    """Muon on weight matrices of at least 16 x 16, AdamW on biases, norms, tokens, position encodings and convolutions.

    Two optimisers of torch behind the door of one, which is what Lightning's automatic optimisation takes.

    Parameters
    ----------
    groups
        As for AdamW: `params`, `lr`, `weight_decay`.
    factor
        Learning rate of matrices relative to that of the rest; their steps have the length of AdamW's (Liu et al. 2025,
        "Muon is scalable for LLM training").

    Raises
    ------
    ConfigError
        If `factor` is not above 0.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, factor: float = 1.0) -> None:
        if not factor > 0:
            raise ConfigError(f"optimizer.muon={factor} has to be above 0, or null for AdamW alone.")
        groups = list(groups)
        matrices = [{**group, "lr": factor * group["lr"], "params": _only(group, is_matrix)} for group in groups]
        others = [{**group, "params": _only(group, lambda parameter: not is_matrix(parameter))} for group in groups]
        matrices, others = ([group for group in part if group["params"]] for part in (matrices, others))
        super().__init__([*matrices, *others], {})
        self._parts: dict[str, torch.optim.Optimizer] = {}
        if matrices:
            self._parts["muon"] = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")
        if others:
            self._parts["adamw"] = torch.optim.AdamW(others)
        self._share_groups()

    def _share_groups(self) -> None:
        """Make the groups of both parts those of the whole, so that a schedule reaches them."""
        self.param_groups = [group for part in self._parts.values() for group in part.param_groups]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step; `closure` computes loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of both parts, by name."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; raises `CheckpointError` if it is that of another optimiser."""
        if state_dict.keys() != self._parts.keys():
            raise CheckpointError(
                "the checkpoint is of a run with another optimizer (optimizer.muon), or of an older version of this "
                "program; start=CHECKPOINT takes its weights."
            )
        for name, part in self._parts.items():
            part.load_state_dict(state_dict[name])
        self._share_groups()


def _only(group: dict[str, Any], wanted: Callable[[Tensor], bool]) -> list[Tensor]:
    return [parameter for parameter in group["params"] if wanted(parameter)]


def is_matrix(parameter: Tensor) -> bool:
    """True for parameters that Muon trains."""
    return parameter.ndim == 2 and min(parameter.shape) >= _LEAST_SIDE
