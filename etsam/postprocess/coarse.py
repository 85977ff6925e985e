"""Coarse copy of a tomogram, taken while its slices pass by: means of blocks of about 2 nm."""

import numpy as np

from etsam.volume.slices import Slices

BLOCK_ANGSTROM = 20.0  # side of a block, about; half of a membrane's thickness, less than the smallest bead
ROBUST = 1.4826  # times the median deviation: the standard deviation of normal noise
_MOST_BLOCKS = 16_000_000  # 64 MB; of larger tomograms blocks are larger


class Coarse:
    """Means of blocks of a tomogram, taken while its slices pass by in order.

    Parameters
    ----------
    shape
        (Z, Y, X).
    voxel_size_angstrom
        (z, y, x), Å; None, unknown: blocks of 2 x 2 x 2 voxels.

    Attributes
    ----------
    steps
        (z, y, x): voxels along each side of a block.
    values
        (Z, Y, X) of whole blocks, float32; what is left over at the far ends is in none.
    """

    def __init__(self, shape: tuple[int, ...], voxel_size_angstrom: tuple[float, float, float] | None) -> None:
        self.shape, self.voxel_size_angstrom = tuple(shape), voxel_size_angstrom
        sizes = voxel_size_angstrom or (BLOCK_ANGSTROM / 2,) * 3
        side = BLOCK_ANGSTROM
        while True:
            self.steps = tuple(
                min(max(1, round(side / size)), length) for size, length in zip(sizes, shape, strict=True)
            )
            blocks = tuple(length // step for length, step in zip(shape, self.steps, strict=True))
            if np.prod(blocks) <= _MOST_BLOCKS:
                break
            side *= 1.25
        self.values = np.zeros(blocks, np.float32)

    def add(self, z: int, plane: np.ndarray) -> None:
        """Take slice `z`, (Y, X) of any real dtype; NaN and infinite voxels count as the mean of the others."""
        block = z // self.steps[0]
        if block >= len(self.values):
            return
        plane = np.asarray(plane, np.float32)
        finite = np.isfinite(plane)
        if not finite.all():
            plane = np.where(finite, plane, plane[finite].mean() if finite.any() else 0)
        _, dy, dx = self.steps
        _, height, width = self.values.shape
        cut = plane[: height * dy, : width * dx].reshape(height, dy, width, dx)
        self.values[block] += cut.mean(axis=(1, 3)) / np.float32(self.steps[0])

    @classmethod
    def of(cls, slices: Slices, voxel_size_angstrom: tuple[float, float, float] | None) -> "Coarse":
        """Blocks of a whole volume, which is read once."""
        found = cls(tuple(slices.shape), voxel_size_angstrom)
        for z in range(slices.shape[0]):
            found.add(z, slices[z])
        return found

    @property
    def angstrom(self) -> np.ndarray:
        """(z, y, x): sides of a block, Å; of voxels of unknown size, voxels."""
        return np.array(self.steps) * np.array(self.voxel_size_angstrom or (1.0, 1.0, 1.0))

    @property
    def flat(self) -> np.ndarray:
        """(Z, Y, X) bool: blocks whose neighbours all have their value, which are padding."""
        equal = np.ones(self.values.shape, bool)
        for axis in range(3):
            step = np.diff(self.values, axis=axis) == 0
            pad = [(0, 0)] * 3
            pad[axis] = (1, 0)
            before = np.pad(step, pad, constant_values=True)
            pad[axis] = (0, 1)
            equal &= before & np.pad(step, pad, constant_values=True)
        return equal
