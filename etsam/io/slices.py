"""What the whole pipeline hands around: a volume that gives out one Z slice at a time."""

from typing import Protocol

import numpy as np


class Slices(Protocol):
    """Z slices by index, nothing resident.

    A NumPy array of shape (Z, Y, X) is one; so are a `Volume` on disk, a normalised view of it, and a mask that is
    filtered while it is read. `slices[z]` costs one slice of memory, whatever the number of slices.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""
        ...

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Slice `z`, shape (Y, X). The caller may keep the array but must not write into it."""
        ...
