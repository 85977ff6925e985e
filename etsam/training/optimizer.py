"""Parameters sorted into groups for AdamW: encoder apart from the rest, lower layers slower, no decay on norms."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from etsam.errors import ConfigError

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
    """Take the image encoder out of training."""
    for parameter in network.get_submodule("image_encoder").parameters():
        parameter.requires_grad_(False)


_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, and
_ITERATIONS = 5  # how often it is repeated: both of Jordan et al.
_RMS = 0.2  # of a step of AdamW, measured by Liu et al.
_LEAST_SIDE = 16  # smaller matrices are lists of tokens


class MuonAdamW(torch.optim.Optimizer):
    """Muon on weight matrices of at least 16 x 16, AdamW on biases, norms, tokens, position encodings and convolutions.

    Parameters
    ----------
    groups
        As for AdamW: `params`, `lr`, `weight_decay`.
    factor
        Learning rate of matrices against that of the rest.
    momentum
        Of matrices, Nesterov's.
    betas, eps
        Of AdamW.

    Raises
    ------
    ConfigError
        If `factor` is not above 0.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        factor: float = 1.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not factor > 0:
            raise ConfigError(f"optimizer.muon={factor} has to be above 0, or null for AdamW alone.")
        parts = []
        for group in groups:
            matrices = [parameter for parameter in group["params"] if is_matrix(parameter)]
            others = [parameter for parameter in group["params"] if not is_matrix(parameter)]
            if matrices:
                parts.append({**group, "params": matrices, "muon": True, "lr": factor * group["lr"]})
            if others:
                parts.append({**group, "params": others, "muon": False})
        super().__init__(parts, {"momentum": momentum, "betas": betas, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step; `closure` computes loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if trained:
                torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
                (self._muon if group["muon"] else self._adam)(trained, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [_gradient(parameter) for parameter in parameters]
        averages = [self._kept(parameter, "momentum") for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for pair in zip(parameters, ahead, strict=True):
            by_shape.setdefault(pair[0].shape, []).append(pair)
        for shape, matrices in by_shape.items():  # those of a shape together
            directions = orthogonalized(torch.stack([average for _, average in matrices]))
            length = group["lr"] * _RMS * math.sqrt(max(shape))
            torch._foreach_add_([parameter for parameter, _ in matrices], list(directions.unbind()), alpha=-length)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        by_age: dict[int, list[Tensor]] = {}  # what a clip did not use is not stepped
        for parameter in parameters:
            state = self.state[parameter]
            state["step"] = int(state.get("step", 0)) + 1
            by_age.setdefault(state["step"], []).append(parameter)
        first, second = group["betas"]
        for age, members in by_age.items():
            gradients = [_gradient(parameter) for parameter in members]
            means, squares = ([self._kept(parameter, name) for parameter in members] for name in ("mean", "square"))
            torch._foreach_lerp_(means, gradients, 1 - first)
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
            scales = torch._foreach_div(squares, 1 - second**age)
            torch._foreach_sqrt_(scales)
            torch._foreach_add_(scales, group["eps"])
            torch._foreach_addcdiv_(members, means, scales, -group["lr"] / (1 - first**age))

    def _kept(self, parameter: Tensor, name: str) -> Tensor:
        """What is remembered of a parameter under a name, zeros at first."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        kept: Tensor = state[name]
        return kept


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is trained by Muon."""
    return parameter.ndim == 2 and min(parameter.shape) >= _LEAST_SIDE


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest matrices with singular values of about 1 (0.7 to 1.2), by five Newton-Schulz iterations in bfloat16.

    Parameters
    ----------
    matrices
        (B, M, N).

    Returns
    -------
    Tensor
        (B, M, N) float32.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()
