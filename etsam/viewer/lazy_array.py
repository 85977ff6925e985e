"""Arrays that napari can index without holding them: slices of a volume, and the mask of a threshold on them."""

from typing import Any

import numpy as np

from etsam.volume.slices import Slices


class LazyArray:
    """A volume (Z, Y, X) as an array of which only what is asked for is read.

    Parameters
    ----------
    slices
        The volume.
    dtype
        Of its slices.

    Attributes
    ----------
    shape, ndim, dtype
        As of an array.
    """

    def __init__(self, slices: Slices, dtype: Any) -> None:
        self._slices = slices
        self.shape = tuple(slices.shape)
        self.ndim = 3
        self.dtype = np.dtype(dtype)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def plane(self, z: int) -> np.ndarray:
        """Slice `z`, (Y, X)."""
        return np.asarray(self._slices[z], self.dtype)

    def __getitem__(self, key: Any) -> np.ndarray:
        """As of an array, for integers and slices."""
        key = key if isinstance(key, tuple) else (key,)
        if Ellipsis in key:
            at = key.index(Ellipsis)
            key = (*key[:at], *(slice(None),) * (4 - len(key)), *key[at + 1 :])
        first, rest = (key or (slice(None),))[0], key[1:]
        if not isinstance(first, slice):
            return self.plane(range(self.shape[0])[int(first)])[rest]
        planes = [self.plane(z)[rest] for z in range(*first.indices(self.shape[0]))]
        if planes:
            return np.stack(planes)
        return np.zeros((0, *np.zeros(self.shape[1:], self.dtype)[rest].shape), self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Everything, which needs all its memory at once."""
        return np.asarray(self[:], dtype)


class AboveThreshold(LazyArray):
    """Mask of what lies above a threshold, computed slice by slice; the last slice of logits is kept.

    Parameters
    ----------
    logits
        (Z, Y, X).
    threshold
        Logits strictly above are membrane; may be changed.
    """

    def __init__(self, logits: Slices, threshold: float) -> None:
        super().__init__(logits, np.uint8)
        self.threshold = threshold
        self._last: tuple[int, np.ndarray] | None = None

    def plane(self, z: int) -> np.ndarray:
        """Mask of slice `z`, (Y, X) uint8."""
        if self._last is None or self._last[0] != z:
            self._last = z, np.asarray(self._slices[z])
        return (self._last[1] > self.threshold).astype(np.uint8)
