"""Schedules of the learning rate: factors of it, by optimiser step."""

import numpy as np


class CosineToFraction:
    """Factor of the learning rate: linear warm-up, then half a cosine from 1 to `fraction` at step `total`."""

    def __init__(self, total: int, fraction: float, warmup: int = 0) -> None:
        self.total, self.fraction, self.warmup = max(total, 1), fraction, warmup

    def __call__(self, step: int) -> float:
        """Factor at optimiser step `step`."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return float(self.fraction + (1 - self.fraction) * 0.5 * (1 + np.cos(np.pi * done)))


class RangeTest:
    """Factor of the learning rate that rises exponentially from 0.001 to 10 at step `total` (Smith 2017, CLR)."""

    def __init__(self, total: int) -> None:
        self.total = max(total, 1)

    def __call__(self, step: int) -> float:
        """Factor at optimiser step `step`."""
        return float(1e-3 * 1e4 ** (step / self.total))
