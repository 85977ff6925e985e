"""Parameters sorted into groups for AdamW: encoder apart from the rest, lower layers slower, no decay on norms."""

import re
from typing import Any

from torch import nn

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
        The trunk's block number i of n has `encoder_lr * layer_decay ** (n - i)`: 1 switches that off, 0.9 is SAM2's.
    weight_decay
        Of everything but biases and LayerNorm weights.

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
        if isinstance(module, nn.LayerNorm)
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
    if not name.startswith(_TRUNK) or _POSITION.search(name):
        return encoder_lr
    trunk: Any = network.get_submodule("image_encoder.trunk")
    depth = trunk.get_num_layers() + 1
    return encoder_lr * layer_decay ** (depth - trunk.get_layer_id(name[len(_TRUNK) :]))


def freeze_encoder(network: nn.Module) -> None:
    """Take the image encoder out of training."""
    for parameter in network.get_submodule("image_encoder").parameters():
        parameter.requires_grad_(False)
