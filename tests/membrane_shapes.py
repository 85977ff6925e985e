"""Masks and fields of shapes whose measures are known, for tests of `etsam.measure`."""

import numpy as np


def field(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, y and x of each voxel, broadcastable, float32."""
    z, y, x = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in shape), indexing="ij", sparse=True)
    return z, y, x


def sphere(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """Signed distance from a sphere, voxels."""
    z, y, x = field(shape)
    return np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) - radius


def cylinder(shape: tuple[int, int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    """Signed distance from a cylinder along Z."""
    _, y, x = field(shape)
    return np.broadcast_to(np.hypot(y - centre[0], x - centre[1]) - radius, shape)


def torus(shape: tuple[int, int, int], centre: tuple[float, float, float], large: float, small: float) -> np.ndarray:
    """Signed distance from a torus around Z."""
    z, y, x = field(shape)
    return np.hypot(np.hypot(y - centre[1], x - centre[2]) - large, z - centre[0]) - small


def shell(distance: np.ndarray, half: float = 1.5) -> np.ndarray:
    """Mask (Z, Y, X) uint8 of what lies within `half` voxels of a surface."""
    return (np.abs(distance) <= half).astype(np.uint8)
