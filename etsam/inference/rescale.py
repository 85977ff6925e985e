"""Slices of a volume at another voxel size, computed as they are asked for, so that membranes have a known scale."""

import math
from collections.abc import Sequence

import numpy as np

from etsam.errors import ConfigError
from etsam.volume.slices import LazySlices, Slices

_LEAST_VOXELS = 8  # a side; less is no tomogram


def rescaled_shape(
    shape: tuple[int, ...], voxel_size_angstrom: tuple[float, float, float], target_angstrom: float
) -> tuple[int, int, int]:
    """(Z, Y, X) of a volume at another voxel size, each side rounded.

    Parameters
    ----------
    shape
        (Z, Y, X).
    voxel_size_angstrom
        (z, y, x), Å.
    target_angstrom
        Side of a cubic voxel, Å.

    Raises
    ------
    ConfigError
        If a side would have fewer than 8 voxels.
    """
    depth, height, width = (
        round(side * size / target_angstrom) for side, size in zip(shape, voxel_size_angstrom, strict=True)
    )
    if min(depth, height, width) < _LEAST_VOXELS:
        raise ConfigError(
            f"target_voxel_size={target_angstrom:g} would leave {depth} x {height} x {width} voxels of this tomogram; "
            "choose a smaller one."
        )
    return depth, height, width


def scale_advice(
    voxel_size_angstrom: tuple[float, float, float] | None,
    trained_angstrom: Sequence[float] | None,
    target_angstrom: float | None = None,
) -> str:
    """Sentence for a tomogram that is seen at smaller or larger voxels than any that the weights were trained on.

    Also for one that fits as it is and is seen at smaller ones: of the inside of a real lysosome at 24.6 Å, without
    membrane, 0.1 % was marked, and 3.8 % when it was seen at 15 Å (benchmarks/2026-11-scale_matching.md).

    Parameters
    ----------
    voxel_size_angstrom
        (z, y, x), Å; None: unknown.
    trained_angstrom
        Smallest and largest, Å; None: unknown.
    target_angstrom
        Side of the voxels that the networks see; None: the tomogram's own.

    Returns
    -------
    str
        Empty if nothing is to be said.
    """
    if voxel_size_angstrom is None or trained_angstrom is None:
        return ""
    smallest, largest = trained_angstrom
    own, lowest, highest = voxel_size_angstrom[2], smallest * 0.95, largest * 1.05  # headers are seldom exact
    seen = own if target_angstrom is None else target_angstrom
    if not lowest <= seen <= highest:
        advice = f"try target_voxel_size={smallest:g}" if seen < smallest else "membranes may not be resolved"
        return f"voxels of {seen:.3g} Å, and the weights were trained on {smallest:g} to {largest:g} Å; {advice}"
    if own <= highest and seen < 0.95 * own:
        return (
            f"voxels of {own:.3g} Å suit the weights; seen at {seen:.3g} Å, noise may be taken for membrane, so "
            "compare with the mask without target_voxel_size"
        )
    return ""


def interpolation_shift(ratio: float, shifts: Sequence[float] | None) -> float:
    """Number to add to the logits of a tomogram that was interpolated to finer voxels.

    What is interpolated is smoother than any tomogram that the weights were trained on, and its logits are lower. With
    this added, one threshold serves for all.

    Parameters
    ----------
    ratio
        Side of the tomogram's voxels over that of those which the networks saw.
    shifts
        At a ratio of 2 and of 4, found on simulated tomograms (benchmarks/scale_matching.py); linear in the logarithm
        between them, and no more beyond 4. None: not known, and 0.

    Raises
    ------
    ConfigError
        If there are not two numbers.
    """
    if shifts is None:
        return 0.0
    if len(shifts) != 2 or not all(map(math.isfinite, shifts)):
        raise ConfigError(
            f"weights.finer_shift={list(shifts)} has to be two numbers, for voxels half and a quarter as large."
        )
    return float(np.interp(math.log2(ratio), [0.0, 1.0, 2.0], [0.0, *shifts]))


class _Rescaler:
    """`plane` of rescaled slices, with the few source slices that neighbours share kept at their new size."""

    def __init__(self, slices: Slices, shape: tuple[int, ...]) -> None:
        self._slices, self._shape = slices, shape
        self._ratio = slices.shape[0] / shape[0]
        self._resized: dict[int, np.ndarray] = {}

    def __call__(self, z: int) -> np.ndarray:
        support = max(self._ratio, 1.0)
        centre = (z + 0.5) * self._ratio
        last = self._slices.shape[0] - 1
        first, end = max(0, math.ceil(centre - support - 0.5)), min(last, math.floor(centre + support - 0.5))
        weights = {i: 1 - abs(i + 0.5 - centre) / support for i in range(first, end + 1)}
        weights = {i: weight for i, weight in weights.items() if weight > 1e-6}
        self._resized = {i: plane for i, plane in self._resized.items() if i in weights}
        out = np.zeros(self._shape[1:], np.float32)
        total = np.float32(sum(weights.values()))
        for i, weight in weights.items():
            if i not in self._resized:
                self._resized[i] = self._resize(self._slices[i])
            out += np.float32(weight / total) * self._resized[i]
        return out

    def _resize(self, plane: np.ndarray) -> np.ndarray:
        import torch  # late: voxel sizes are also judged where no network runs

        image = torch.from_numpy(np.ascontiguousarray(plane, dtype=np.float32))[None, None]
        resized = torch.nn.functional.interpolate(
            image, self._shape[1:], mode="bilinear", align_corners=False, antialias=True
        )
        return np.asarray(resized[0, 0].numpy())


def rescaled(slices: Slices, shape: tuple[int, ...]) -> LazySlices:
    """Slices of the same field with other numbers of voxels: linear interpolation, means where it becomes coarser.

    Parameters
    ----------
    slices
        (Z, Y, X) of any real dtype.
    shape
        (Z, Y, X) of the result.

    Returns
    -------
    LazySlices
        float32. In order, each source slice is read once; as many as one slice is made of are kept.
    """
    return LazySlices(shape, _Rescaler(slices, shape))
