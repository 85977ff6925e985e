"""Triangles in the middle of one membrane, from the points of its mid-surface.

The points and their normals give a distance to one side or the other on a lattice around them; marching cubes make its
zero into triangles. Each vertex is then moved to the middle between both faces of the mask along its normal. What is
smoothed is that shift and never the shape, so a small vesicle does not shrink. Triangles beyond the mask are left out:
what is open stays open.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

from etsam.measure.midsurface import POINTS_PER_VOXEL2, MidSurface

_EDGE = 0.89  # mean edge of marching cubes' triangles in lattice constants, after relaxing
_REACH = 2  # lattice constants around a point in which it has a say
_BLUR = (0.75, 1.3)  # width of its say: lattice constants, and at least voxels
_SLAB_NODES = 1 << 24  # of the lattice at a time
_NEAR_POINT = 1.2  # voxels from a point of the mid-surface at which a triangle stays where the mask has a hole
_NEAR_JOINED = 1.8
_STEP = 0.25  # voxels between samples of the mask
_RAYS = 1 << 15  # vertices at a time
_SMALL_BODY = 0.03  # of the area of the largest body: less is a crumb of the lattice
_LEAST_ACROSS = 12  # edges along the square root of a membrane's area; where there would be fewer they are shorter
_DISTURBED = 3  # triangles from an open edge
_RELAXED, _SHIFT_STEPS, _BEND_STEPS = 4, 12, 8


@dataclass(frozen=True)
class Mesh:
    """Triangles of one membrane.

    Attributes
    ----------
    vertices
        (V, 3) float64, (z, y, x) in voxels.
    faces
        (F, 3) int32. (b - a) x (c - a), taken in (z, y, x), points out of a closed membrane, and to the side that an
        open one bulges to.
    normals
        (V, 3) float64 unit vectors, the same way.
    mean_curvature, gaussian_curvature
        (V,) float64: 1 / voxels, positive where it bulges along the normal, and 1 / voxels².
    joined
        (V,) bool: across a gap of the mask.
    inner
        (V,) bool: some triangles away from an open edge, where curvature is not disturbed by it.
    edge_voxels
        Asked-for length of the triangles' edges.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    mean_curvature: np.ndarray
    gaussian_curvature: np.ndarray
    joined: np.ndarray
    inner: np.ndarray
    edge_voxels: float

    @property
    def face_areas(self) -> np.ndarray:
        """(F,) voxels²."""
        return np.linalg.norm(_crosses(self.vertices, self.faces), axis=1) / 2

    @property
    def vertex_areas(self) -> np.ndarray:
        """(V,) voxels²: a third of the triangles around each."""
        thirds = np.repeat(self.face_areas / 3, 3)
        return np.bincount(self.faces.ravel(), thirds, minlength=len(self.vertices))

    @property
    def rim(self) -> np.ndarray:
        """Edges (E, 2) of one triangle only: where the membrane is open."""
        return _rim(self.faces)

    @property
    def closed(self) -> bool:
        """True if no edge is open."""
        return len(self.faces) > 0 and len(self.rim) == 0

    @property
    def volume(self) -> float:
        """Enclosed volume in voxels³, of a closed mesh."""
        return _signed_volume(self.vertices, self.faces)


def make_mesh(mask: np.ndarray, points: MidSurface, joined: MidSurface, edge_voxels: float = 2.0) -> Mesh | None:
    """Make the mesh of one membrane.

    Parameters
    ----------
    mask
        (Z, Y, X) uint8: all membranes.
    points, joined
        Of the membrane, with normals to one side, as `Membranes.parts` gives them.
    edge_voxels
        Mean length of the triangles' edges; shorter on small membranes, so that their shape is kept.

    Returns
    -------
    Mesh or None
        None if there is not a single triangle.
    """
    edge_voxels = min(edge_voxels, np.sqrt(len(points) / POINTS_PER_VOXEL2) / _LEAST_ACROSS)
    lattice = edge_voxels / _EDGE
    vertices, faces = _zero_level(
        np.concatenate([points.points, joined.points]).astype(np.float64),
        np.concatenate([points.normals, joined.normals]).astype(np.float64),
        lattice,
    )
    tree = KDTree(points.points)
    bridge = KDTree(joined.points) if len(joined) else None
    faces = faces[_supported(mask, vertices[faces].mean(axis=1), tree, bridge)]
    vertices, faces = _main_bodies(vertices, faces)
    if not len(faces):
        return None
    width = float(np.nanmedian(points.widths)) if np.isfinite(points.widths).any() else 3.0
    around = _averages(faces, len(vertices))
    for _ in range(2):
        vertices = _relaxed(vertices, faces, around)
        vertices = _centred(mask, vertices, faces, around, width)
    vertices = _relaxed(vertices, faces, around)
    mean, gaussian, normals = _curvatures(vertices, faces, around)
    # flat triangles lie inside the surface through their corners, on average by e² H / 8 (a sphere, equal edges e);
    # so much farther out, they have its area and volume
    vertices = vertices + (_mean_square_edge(vertices, faces) / 8 * mean)[:, None] * normals
    joined_vertices, inner = _near_gap(vertices, tree, bridge), _inner(faces, around)
    mesh = Mesh(vertices, faces, normals, mean, gaussian, joined_vertices, inner, edge_voxels)
    inside_out = mesh.volume < 0 if mesh.closed else float(mean @ mesh.vertex_areas) < 0
    return _flipped(mesh) if inside_out else mesh


def _flipped(mesh: Mesh) -> Mesh:
    faces = np.ascontiguousarray(mesh.faces[:, ::-1])
    return replace(mesh, faces=faces, normals=-mesh.normals, mean_curvature=-mesh.mean_curvature)


def _zero_level(points: np.ndarray, normals: np.ndarray, lattice: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) in voxels and faces (F, 3) of the surface through oriented points."""
    points, normals = _thinned(points, normals, lattice / 2)
    nodes = np.rint(points / lattice).astype(np.int64)
    low, high = nodes.min(axis=0) - _REACH - 1, nodes.max(axis=0) + _REACH + 2
    order = np.argsort(nodes[:, 0], kind="stable")
    points, normals, nodes = points[order], normals[order], nodes[order]
    _, height, width = (int(side) for side in high - low)
    depth = max(_SLAB_NODES // (height * width), 2 * _REACH + 2)
    found_vertices, found_faces, count = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    for start in range(int(low[0]), int(high[0]) - 1, depth):
        stop = min(start + depth + 1, int(high[0]))  # the last layer is the first of the next slab
        own = slice(*np.searchsorted(nodes[:, 0], [start - _REACH, stop + _REACH]))
        corner = np.array([start, low[1], low[2]])
        parts = _cubes(points[own], normals[own], nodes[own], corner, (stop - start, height, width), lattice)
        found_vertices.append((parts[0] + corner) * lattice)
        found_faces.append(parts[1] + count)
        count += len(parts[0])
    return _welded(np.concatenate(found_vertices), np.concatenate(found_faces), lattice)


def _thinned(points: np.ndarray, normals: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Means of the points and normals in each cell of a grid; those of the two sides of a fold stay apart."""
    cells = np.floor(points / cell).astype(np.int32)
    cells -= cells.min(axis=0)
    sides = [int(side) + 1 for side in cells.max(axis=0)]
    octant = (normals > 0) @ np.array([1, 2, 4])
    # one number each: rows of four would take gigabytes to sort in a large membrane
    key = np.ravel_multi_index((*cells.T, octant), (*sides, 8))
    _, inverse = np.unique(key, return_inverse=True)
    count = np.bincount(inverse)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(inverse, column) for column in values.T], axis=1) / count[:, None]

    directions = mean(normals)
    return mean(points), directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)


def _cubes(
    points: np.ndarray,
    normals: np.ndarray,
    nodes: np.ndarray,
    corner: np.ndarray,
    shape: tuple[int, int, int],
    lattice: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes of one slab of the lattice: vertices in nodes from its corner, faces."""
    nothing = np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    blur = max(_BLUR[0] * lattice, _BLUR[1])
    weight, total = np.zeros(int(np.prod(shape)), np.float32), np.zeros(int(np.prod(shape)), np.float32)
    for step in np.ndindex((2 * _REACH + 1,) * 3):
        offset = np.array(step) - _REACH
        at = nodes + offset
        local = at - corner
        away = at * lattice - points
        distance = np.einsum("ij,ij->i", away, away)
        used = (distance <= (_REACH * lattice) ** 2) & (local[:, 0] >= 0) & (local[:, 0] < shape[0])
        if not used.any():
            continue
        flat = (local[used, 0] * shape[1] + local[used, 1]) * shape[2] + local[used, 2]
        share = np.exp(-distance[used] / (2 * blur**2)).astype(np.float32)
        np.add.at(weight, flat, share)
        np.add.at(total, flat, share * np.einsum("ij,ij->i", away[used], normals[used]).astype(np.float32))
    known = (weight > 0).reshape(shape)
    np.divide(total, weight, out=total, where=weight > 0)
    cells = np.ones(tuple(side - 1 for side in shape), bool)
    for z, y, x in np.ndindex(2, 2, 2):
        cells &= known[z : z + shape[0] - 1, y : y + shape[1] - 1, x : x + shape[2] - 1]
    if not cells.any():
        return nothing
    of_cells = np.zeros(shape, bool)
    of_cells[1:, 1:, 1:] = cells  # scikit-image looks at the last corner of a cube
    try:
        vertices, faces, _, _ = marching_cubes(total.reshape(shape), 0.0, mask=of_cells)
    except (RuntimeError, ValueError):  # no cube has the surface in it
        return nothing
    return vertices.astype(np.float64), faces.astype(np.int64)


def _welded(vertices: np.ndarray, faces: np.ndarray, lattice: float) -> tuple[np.ndarray, np.ndarray]:
    """The same mesh with vertices that lie on top of each other made one, and without triangles of no area."""
    _, first, inverse = np.unique(np.rint(vertices * (1e4 / lattice)), axis=0, return_index=True, return_inverse=True)
    faces = inverse[faces]
    a, b, c = faces.T
    return vertices[first], faces[(a != b) & (b != c) & (a != c)].astype(np.int32)


def _supported(mask: np.ndarray, centres: np.ndarray, tree: KDTree, bridge: KDTree | None) -> np.ndarray:
    """Mask (F,) of the triangles that lie in the tomogram, and in the mask or across a gap."""
    inside = ((centres >= -0.5) & (centres <= np.array(mask.shape) - 0.5)).all(axis=1)
    cells = np.clip(np.rint(centres), 0, np.array(mask.shape) - 1).astype(np.int64)
    found = inside & (mask[tuple(cells.T)] > 0)
    open_ones = np.flatnonzero(inside & ~found)
    near, _ = tree.query(centres[open_ones], distance_upper_bound=_NEAR_POINT)
    found[open_ones] = np.isfinite(near)
    if bridge is not None:
        open_ones = np.flatnonzero(inside & ~found)
        near, _ = bridge.query(centres[open_ones], distance_upper_bound=_NEAR_JOINED)
        found[open_ones] = np.isfinite(near)
    # in a mask that holds other membranes too, what is far from this one's points is theirs
    lost = np.flatnonzero(found)
    near, _ = tree.query(centres[lost], distance_upper_bound=2 * _NEAR_JOINED)
    ours = np.isfinite(near)
    if bridge is not None:
        near, _ = bridge.query(centres[lost], distance_upper_bound=_NEAR_JOINED)
        ours |= np.isfinite(near)
    found[lost] = ours
    return found


def _near_gap(vertices: np.ndarray, tree: KDTree, bridge: KDTree | None) -> np.ndarray:
    """Mask of the vertices that lie nearer to joined points than to the membrane's own."""
    if bridge is None:
        return np.zeros(len(vertices), bool)
    return bridge.query(vertices)[0] < tree.query(vertices)[0]


def _main_bodies(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh without crumbs and without vertices of no triangle."""
    if not len(faces):
        return vertices[:0], faces
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_array((np.ones(len(edges), np.uint8), (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2)
    _, body = connected_components(graph, directed=False)
    area = np.bincount(body[faces[:, 0]], np.linalg.norm(_crosses(vertices, faces), axis=1))
    faces = faces[area[body[faces[:, 0]]] >= _SMALL_BODY * area.max()]
    used, inverse = np.unique(faces, return_inverse=True)
    return vertices[used], inverse.reshape(faces.shape).astype(np.int32)


def _crosses(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    return np.cross(b - a, c - a)


def _signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    centred = vertices - vertices.mean(axis=0)
    a, b, c = (centred[faces[:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def _rim(faces: np.ndarray) -> np.ndarray:
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ordered = np.sort(edges, axis=1).astype(np.int64)
    keys = ordered[:, 0] * (int(ordered.max(initial=0)) + 1) + ordered[:, 1]
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    return edges[first[counts == 1]]


def _inner(faces: np.ndarray, around: csr_array) -> np.ndarray:
    """Mask (V,) of the vertices more than `_DISTURBED` triangles from an open edge."""
    near = np.zeros(around.shape[0])
    near[_rim(faces)] = 1
    for _ in range(_DISTURBED):
        near = around @ near
    return near == 0


def _mean_square_edge(vertices: np.ndarray, faces: np.ndarray) -> float:
    return float(np.mean((vertices[faces] - vertices[np.roll(faces, 1, axis=1)]) ** 2) * 3)


def _averages(faces: np.ndarray, count: int) -> csr_array:
    """Matrix that gives each vertex the mean of itself and its neighbours."""
    one, other = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).T
    rows, columns = np.concatenate([one, other, np.arange(count)]), np.concatenate([other, one, np.arange(count)])
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count)).tocsr()
    graph.data[:] = 1
    return (diags_array(1 / graph.sum(axis=1)) @ graph).tocsr()


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    crosses = _crosses(vertices, faces)
    flat = faces.ravel()
    total = np.stack([np.bincount(flat, np.repeat(part, 3), minlength=len(vertices)) for part in crosses.T], axis=1)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def _relaxed(vertices: np.ndarray, faces: np.ndarray, around: csr_array) -> np.ndarray:
    """Vertices moved along the surface to the middle of their neighbours, for even triangles; the rim stays."""
    inner = np.ones(len(vertices), bool)
    inner[_rim(faces)] = False
    for _ in range(_RELAXED):
        normals = _vertex_normals(vertices, faces)
        step = around @ vertices - vertices
        step -= np.einsum("ij,ij->i", step, normals)[:, None] * normals
        vertices = vertices + np.where(inner[:, None], step, 0)
    return vertices


def _centred(mask: np.ndarray, vertices: np.ndarray, faces: np.ndarray, around: csr_array, width: float) -> np.ndarray:
    """Vertices moved along their normals to the middle between both faces of a mask that is `width` voxels thick."""
    normals = _vertex_normals(vertices, faces)
    for _ in range(2):
        normals = around @ normals
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    shift = np.concatenate(
        [
            _middle_shift(mask, vertices[first : first + _RAYS], normals[first : first + _RAYS], width)
            for first in range(0, len(vertices), _RAYS)
        ]
    )
    known = np.isfinite(shift).astype(np.float64)
    shift = np.where(known > 0, shift, 0.0)
    for _ in range(_SHIFT_STEPS):
        shift, known = around @ shift, around @ known
    return vertices + np.where(known > 0.05, shift / np.maximum(known, 0.05), 0)[:, None] * normals


def _middle_shift(mask: np.ndarray, vertices: np.ndarray, normals: np.ndarray, width: float) -> np.ndarray:
    """Distance along the normal to the middle of the mask (n,), voxels; NaN where it is not clear."""
    reach = np.arange(0, 1.1 * width + 1.5, _STEP)
    half = width / 2
    ends, left = [], []
    for sign in (1.0, -1.0):
        at = vertices[:, None] + (sign * reach[:, None]) * normals[:, None]
        values = map_coordinates(mask, at.reshape(-1, 3).T, np.float32, order=1, mode="nearest").reshape(at.shape[:2])
        below = values < 0.5
        first = below.argmax(axis=1)
        row = np.arange(len(vertices))
        here, before = values[row, first], values[row, np.maximum(first - 1, 0)]
        end = reach[first] - _STEP * (0.5 - here) / np.maximum(before - here, 1e-6)
        last = at[row, first]
        left.append(((last < -0.5) | (last > np.array(mask.shape) - 0.5)).any(axis=1) | ~below.any(axis=1))
        ends.append(np.where(first > 0, end, np.nan))
        if sign > 0:
            outside = below[:, 0]
    (up, down), (up_left, down_left) = ends, left
    up, down = np.where(up_left, np.nan, up), np.where(down_left, np.nan, down)
    shift = (up - down) / 2
    shift = np.where(up_left & ~down_left & (down < width), half - down, shift)
    shift = np.where(down_left & ~up_left & (up < width), up - half, shift)
    shift = np.where(up + down > 1.5 * width + 1, np.nan, shift)  # two membranes
    return np.where(outside | (np.abs(shift) > width), np.nan, shift)


def _curvatures(
    vertices: np.ndarray, faces: np.ndarray, around: csr_array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and Gaussian curvature (V,) and smoothed normals (V, 3).

    The shape operator that best turns steps along the surface into changes of its normal, over a few triangles around.
    On a sphere and a cylinder that is exact for steps of any length.
    """
    normals = _vertex_normals(vertices, faces)
    for _ in range(2):
        normals = around @ normals
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    one, other = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).T
    step, turn = vertices[other] - vertices[one], normals[other] - normals[one]
    ends = np.concatenate([one, other])
    sums = []
    for first in (step, turn):  # the sums of step x step and of turn x step
        products = np.einsum("ij,ik->ijk", first, step).reshape(-1, 9)
        sums.append(
            np.stack([np.bincount(ends, np.tile(part, 2), minlength=len(vertices)) for part in products.T], axis=1)
        )
    for _ in range(_BEND_STEPS):
        sums = [around @ part for part in sums]
    steps, turns = (part.reshape(-1, 3, 3) for part in sums)
    helper = np.where(np.abs(normals[:, :1]) < 0.9, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    first = np.cross(normals, helper)
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)
    basis = np.stack([first, np.cross(normals, first)], axis=2)  # (V, 3, 2)
    flat_steps = np.einsum("via,vij,vjb->vab", basis, steps, basis)
    flat_turns = np.einsum("via,vij,vjb->vab", basis, turns, basis)
    (a, b), (c, d) = (flat_steps[:, row].T for row in (0, 1))
    determinant = np.maximum(a * d - b * c, 1e-12)
    inverse = np.stack([np.stack([d, -b], -1), np.stack([-c, a], -1)], axis=1) / determinant[:, None, None]
    operator = flat_turns @ inverse
    trace = operator[:, 0, 0] + operator[:, 1, 1]
    mixed = (operator[:, 0, 1] + operator[:, 1, 0]) / 2
    return trace / 2, operator[:, 0, 0] * operator[:, 1, 1] - mixed**2, normals
