"""Masks in memory at one bit a voxel, so that metrics that read a prediction several times compute it once."""

import numpy as np

from etsam.volume import Slices


class PackedMask:
    """A mask (Z, Y, X), Z * Y * X / 8 bytes: 56 MB for 500 x 928 x 960.

    Parameters
    ----------
    shape
        (Z, Y, X).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)
        self._area = int(np.prod(self.shape[1:]))
        self._bits = np.zeros((self.shape[0], -(-self._area // 8)), np.uint8)

    @classmethod
    def of(cls, mask: Slices) -> "PackedMask":
        """Pack everything above 0."""
        packed = cls(mask.shape)
        for z in range(mask.shape[0]):
            packed[z] = mask[z] > 0
        return packed

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Slice `z`, (Y, X) bool."""
        return np.unpackbits(self._bits[z], count=self._area).view(bool).reshape(self.shape[1:])

    def __setitem__(self, z: int, plane: np.ndarray, /) -> None:
        self._bits[z] = np.packbits(plane)
