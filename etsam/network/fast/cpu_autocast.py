"""bfloat16 on CPUs, without what torch has no fast kernel for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Float32Attention(TorchFunctionMode):
    """While in this context, attention is computed in float32, also under a CPU's autocast, for which it is meant.

    The backward pass of attention in bfloat16 takes six times as long as that in float32 (torch 2.14, one core of an
    Intel Xeon with AMX, nano's training step: 0.65 s of 1.2 s; measured), more than bfloat16 saves elsewhere.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch."""
        given = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        with torch.autocast("cpu", enabled=False):
            wide = [
                value.float() if isinstance(value, Tensor) and value.is_floating_point() else value for value in args
            ]
            return func(*wide, **given)
