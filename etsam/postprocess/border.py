"""Rim of a tomogram in which the reconstruction is incomplete."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from etsam.postprocess.coarse import ROBUST, Coarse


@dataclass(frozen=True)
class Border:
    """Rim in which the reconstruction is incomplete.

    Attributes
    ----------
    first, last
        (z, y, x): the first voxel that is kept, and the one after the last.
    shape
        (Z, Y, X) of the tomogram.
    """

    first: tuple[int, int, int]
    last: tuple[int, int, int]
    shape: tuple[int, ...]

    def outside(self, z: int) -> np.ndarray:
        """(Y, X) bool of slice `z`: in the rim."""
        out = np.ones(self.shape[1:], bool)
        if self.first[0] <= z < self.last[0]:
            out[self.first[1] : self.last[1], self.first[2] : self.last[2]] = False
        return out

    def facts(self) -> dict[str, Any]:
        """Facts for the record."""
        ends = (side - last for side, last in zip(self.shape, self.last, strict=True))
        return {f"{axis}_voxels": [first, end] for axis, first, end in zip("zyx", self.first, ends, strict=True)}

    def words(self) -> str:
        """Sentence for the person."""
        y, x = list(self.facts().values())[1:]
        if not any((*y, *x)):
            return "no incomplete rim is to be seen"
        return f"rims of {y[0]} and {y[1]} (y) and {x[0]} and {x[1]} (x) voxels left out"


_RIM_PARTS = 8  # a rim is an eighth of a side at most
_RIM_SCATTERS = 6.0  # robust standard deviations of a layer's mean or log scatter from the inner ones


def find_border(coarse: Coarse) -> Border:
    """Rim of layers, parallel to a face, whose grey values differ from those of the layers within.

    Where tilt images do not cover the volume, fewer of them are summed: the scatter of a layer falls, and at the end of
    an image its mean jumps. Layers of blocks count from each face inward, along Y and X, as long as mean or logarithm
    of the scatter is far from those of the inner layers, at most an eighth of a side.

    Parameters
    ----------
    coarse
        The tomogram.
    """
    first, last = [0, 0, 0], list(coarse.shape)
    values = coarse.values.astype(np.float64)
    for axis in (1, 2):
        side = values.shape[axis]
        most = side // _RIM_PARTS
        if most < 1 or side < 12:
            continue
        others = tuple(other for other in range(3) if other != axis)
        layers = np.stack([values.mean(axis=others), np.log(np.maximum(values.std(axis=others), 1e-12))])
        inner = layers[:, most : side - most]
        middle = np.median(inner, axis=1, keepdims=True)
        scatter = ROBUST * np.median(np.abs(inner - middle), axis=1, keepdims=True)
        odd = (np.abs(layers - middle) > _RIM_SCATTERS * np.maximum(scatter, 1e-9)).any(axis=0)
        step = coarse.steps[axis]
        for ends, line in ((first, odd), (last, odd[::-1])):
            if not line[0]:
                continue
            layer_count = int(np.argmin(line)) if not line[:most].all() else most
            width = layer_count * step
            if ends is last:
                width += coarse.shape[axis] - side * step  # what no block holds
            ends[axis] = width if ends is first else coarse.shape[axis] - width
    return Border((first[0], first[1], first[2]), (last[0], last[1], last[2]), coarse.shape)
