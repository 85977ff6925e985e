"""Membranes in three dimensions, drawn without screen or graphics card: triangles as points, the nearest in front."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import median_filter

from etsam.measure.colours import colour_of
from etsam.measure.mesh import Mesh

_FINE = 2  # pixels drawn for one of the picture, along each side
_TURN_DEGREES, _TILT_DEGREES = 30.0, 60.0  # around the beam, then towards the reader
_MOST_PIXELS, _PIXELS_PER_VOXEL = 900, 8  # at most, along the width
_AMBIENT = 0.35
_CHUNK = 2_000_000  # points at a time


def render(meshes: Sequence[Mesh], numbers: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
    """Draw membranes seen from above and in front, and the tomogram's box.

    Parameters
    ----------
    meshes, numbers
        What, and the numbers of `colour_of`.
    shape
        (Z, Y, X) of the tomogram.

    Returns
    -------
    np.ndarray
        (H, W, 3) uint8.
    """
    view = _view()
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1.0)
    middle = (np.array(shape) - 1.0) / 2
    seen = (corners - middle) @ view.T
    low, high = seen[:, :2].min(axis=0), seen[:, :2].max(axis=0)
    width_pixels = min(_MOST_PIXELS, int(_PIXELS_PER_VOXEL * (high[0] - low[0])))
    scale = _FINE * width_pixels * 0.96 / (high[0] - low[0])
    size = np.ceil((high - low) * scale / 0.96).astype(int)  # right, down
    shift = size / 2 - (low + high) / 2 * scale
    image = np.full((size[1], size[0], 3), 255, np.float32)
    depth = np.full(image.shape[:2], -np.inf, np.float32)
    for mesh, number in zip(meshes, numbers, strict=True):
        colour = np.array(colour_of(number), np.float32)
        normals = mesh.normals @ view.T
        light = np.array([-0.4, -0.5, 0.77])
        bright = _AMBIENT + (1 - _AMBIENT) * np.abs(normals @ light)
        places = (mesh.vertices - middle) @ view.T
        fine = int(np.ceil(1.1 * mesh.edge_voxels * scale)) + 1
        grid = np.array([(a, b) for a in range(fine + 1) for b in range(fine + 1 - a)]) / fine
        weights = np.column_stack([grid, 1 - grid.sum(axis=1)])
        step = max(_CHUNK // len(weights), 1)
        for first in range(0, len(mesh.faces), step):
            faces = mesh.faces[first : first + step]
            points = np.einsum("wc,fcd->fwd", weights, places[faces]).reshape(-1, 3)
            shade = np.einsum("wc,fc->fw", weights, bright[faces]).reshape(-1, 1)
            _draw(image, depth, points, (shade * colour).astype(np.float32), scale, shift)
    # single pixels that no point fell on
    image, depth = median_filter(image, (3, 3, 1)), median_filter(depth, 3)
    for start in range(8):  # edges of the box
        for axis in range(3):
            if not np.unravel_index(start, (2, 2, 2))[axis]:
                end = start + (4, 2, 1)[axis]
                line = np.linspace(seen[start], seen[end], 4 * size.max())
                _draw(image, depth, line, np.full((len(line), 3), 170, np.float32), scale, shift)
    image = image[: size[1] // _FINE * _FINE, : size[0] // _FINE * _FINE]
    small = image.reshape(size[1] // _FINE, _FINE, size[0] // _FINE, _FINE, 3).mean(axis=(1, 3))
    return np.clip(small, 0, 255).astype(np.uint8)


def _view() -> np.ndarray:
    """Rotation (3, 3): (z, y, x) of a volume -> right, down, towards the reader."""
    turn, tilt = np.radians(_TURN_DEGREES), np.radians(_TILT_DEGREES)
    around = np.array([[1, 0, 0], [0, np.cos(turn), np.sin(turn)], [0, -np.sin(turn), np.cos(turn)]])
    plain = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])  # right = x, down = y, towards = z
    lean = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    view: np.ndarray = lean @ plain @ around
    return view


def _draw(
    image: np.ndarray, depth: np.ndarray, points: np.ndarray, colours: np.ndarray, scale: float, shift: np.ndarray
) -> None:
    """Put points (n, 3) into a picture where none is nearer."""
    at = np.rint(points[:, :2] * scale + shift).astype(np.int64)
    inside = ((at >= 0) & (at < np.array(image.shape[1::-1]))).all(axis=1)
    flat = at[inside, 1] * image.shape[1] + at[inside, 0]
    near, colours = points[inside, 2].astype(np.float32), colours[inside]
    order = np.flatnonzero(near > depth.ravel()[flat])
    order = order[np.argsort(near[order])]  # of several on one pixel the nearest is put in last, and stays
    depth.ravel()[flat[order]] = near[order]
    image.reshape(-1, 3)[flat[order]] = colours[order]
