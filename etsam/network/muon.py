"""Muon for matrices, AdamW for all else: fewer steps from random weights than AdamW alone.

Muon (K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) takes the momentum of a weight matrix and
makes its singular values about equal before it steps. With the scale of J. Liu et al. (2025, arXiv:2502.16982) a step
is as long as one of AdamW in the root mean square, so that both take one learning rate. torch.optim.Muon (torch 2.9)
knows matrices only and Lightning steps one optimiser by itself, hence this class.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from etsam.errors import ConfigError

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
            for parameter in trained:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            (self._muon if group["muon"] else self._adam)(trained, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
            ahead = gradient.lerp(average, group["momentum"])
            by_shape.setdefault(ahead.shape, []).append((parameter, ahead))
        for shape, matrices in by_shape.items():  # those of a shape together
            directions = orthogonalized(torch.stack([ahead for _, ahead in matrices]))
            length = group["lr"] * _RMS * math.sqrt(max(shape))
            for (parameter, _), direction in zip(matrices, directions, strict=True):
                parameter.add_(direction, alpha=-length)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        for parameter in parameters:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
            steps = float(state["step"])
            state["mean"].lerp_(gradient, 1 - first)
            state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
            scale = (state["square"] / (1 - second**steps)).sqrt_().add_(group["eps"])
            parameter.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - first**steps))


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
