"""One membrane in numbers: size, curvature, openness; and which others are how far from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from etsam.measure.mesh import Mesh

_AT_FACE = 1.5  # voxels from the tomogram's end within which an open edge is not the membrane's own
_ROUND, _COVERED = 0.15, 0.2  # of the radius; of the sphere: an open membrane that is a shell all the same
_TRUSTED = 0.1  # of the area, at least, over which curvature is averaged
_BESIDE = 0.75  # edges beside the nearest vertex within which the plane there is what a point is near to
_LARGE, _CELL = 20_000, 8.0  # vertices from which on the others are thinned to one a cell, voxels, for a first bound


@dataclass(frozen=True)
class VertexValues:
    """Values at the vertices of one mesh, for files and histograms.

    Attributes
    ----------
    area_nm2
        (V,) that each vertex stands for.
    mean_curvature_per_nm, gaussian_curvature_per_nm2, shape_index
        (V,); the shape index is -1 (cup) to 1 (cap), 0.5 a ridge, 0 a saddle (Koenderink & van Doorn 1992).
    inclination_degrees
        (V,) between the normal and the beam, 0 to 90: 0 lies flat in the slices, 90 stands upright.
    distance_nm
        (V,) to the nearest other membrane; infinite if there is none.
    nearest
        (V,) int32: its number, 0 if there is none.
    """

    area_nm2: np.ndarray
    mean_curvature_per_nm: np.ndarray
    gaussian_curvature_per_nm2: np.ndarray
    shape_index: np.ndarray
    inclination_degrees: np.ndarray
    distance_nm: np.ndarray
    nearest: np.ndarray


def vertex_values(mesh: Mesh, distances: np.ndarray, nearest: np.ndarray, voxel_nm: float) -> VertexValues:
    """Values of a mesh; `distances` (V,) in voxels and `nearest` (V,) as `distances_between` gives them."""
    mean, gaussian = mesh.mean_curvature, mesh.gaussian_curvature
    return VertexValues(
        area_nm2=mesh.vertex_areas * voxel_nm**2,
        mean_curvature_per_nm=mean / voxel_nm,
        gaussian_curvature_per_nm2=gaussian / voxel_nm**2,
        shape_index=2 / np.pi * np.arctan2(mean, np.sqrt(np.maximum(mean**2 - gaussian, 1e-12))),
        inclination_degrees=np.degrees(np.arccos(np.clip(np.abs(mesh.normals[:, 0]), 0, 1))),
        distance_nm=distances * voxel_nm,
        nearest=nearest,
    )


def shape_row(mesh: Mesh, values: VertexValues, voxel_nm: float, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Columns of `NAME_membranes.csv` that the mesh alone decides; `COLUMNS` says what each is.

    Parameters
    ----------
    mesh, values
        Of one membrane.
    voxel_nm
        Side of a voxel.
    shape
        (Z, Y, X) of the tomogram.
    """
    area = values.area_nm2
    total = float(area.sum())
    _, radius, deviation = fitted_sphere(mesh.vertices, mesh.vertex_areas)
    closed = mesh.closed
    volume = mesh.volume * voxel_nm**3 if closed else np.nan
    # curvature where no edge disturbs it, if there is enough of that
    trusted = area * mesh.inner if (area * mesh.inner).sum() >= _TRUSTED * total else area
    mean = float(np.average(values.mean_curvature_per_nm, weights=trusted))
    spread = float(np.sqrt(np.average((values.mean_curvature_per_nm - mean) ** 2, weights=trusted)))
    rim, at_border = _rim_lengths(mesh, shape)
    middle = np.average(mesh.vertices, axis=0, weights=mesh.vertex_areas)
    axes = principal_axes(mesh)
    # most of a sphere says how large it is; a flat patch does not
    is_shell = deviation <= _ROUND * radius and total >= _COVERED * 4 * np.pi * (radius * voxel_nm) ** 2
    row = {
        "closed": "closed" if closed else "open",
        "area_nm2": total,
        "volume_nm3": volume,
        "diameter_nm": (6 * volume / np.pi) ** (1 / 3) if closed else 2 * radius * voxel_nm if is_shell else np.nan,
        "diameter_from": "volume" if closed else "sphere fit" if is_shell else "none",
        "sphere_radius_nm": radius * voxel_nm,
        "sphere_rms_nm": deviation * voxel_nm,
        **{f"axis_{number}_nm": float(axis) * voxel_nm for number, axis in enumerate(axes, 1)},
        "mean_curvature_per_nm": mean,
        "mean_curvature_sd_per_nm": spread,
        "gaussian_curvature_per_nm2": float(np.average(values.gaussian_curvature_per_nm2, weights=trusted)),
        "inclination_degrees": float(np.average(values.inclination_degrees, weights=area)),
        "open_edge_nm": rim * voxel_nm,
        "open_edge_at_border_share": at_border / rim if rim else 0.0,
        "joined_share": float(area[mesh.joined].sum()) / total,
        **{f"centre_{axis}_voxel": float(middle[index]) for index, axis in enumerate("zyx")},
    }
    known = np.isfinite(values.distance_nm)
    row["nearest_membrane"] = int(values.nearest[np.argmin(values.distance_nm)]) if known.any() else 0
    row["nearest_min_nm"] = float(values.distance_nm.min()) if known.any() else np.nan
    row["nearest_mean_nm"] = float(np.average(values.distance_nm, weights=area)) if known.all() else np.nan
    return row


def fitted_sphere(points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Centre (3,), radius and root mean square deviation of the sphere nearest to points (N, 3).

    Algebraic least squares, then Gauss-Newton steps to the least squares of distances. For a plane the radius is huge.
    """
    middle = np.average(points, axis=0, weights=weights)
    centred = points - middle
    root = np.sqrt(weights / weights.sum())[:, None]
    design = np.column_stack([2 * centred, np.ones(len(points))])
    found, *_ = np.linalg.lstsq(design * root, (centred**2).sum(axis=1) * root[:, 0], rcond=None)
    centre, radius = found[:3], float(np.sqrt(max(found[3] + found[:3] @ found[:3], 0)))
    for _ in range(10):
        away = centred - centre
        length = np.maximum(np.linalg.norm(away, axis=1), 1e-9)
        jacobian = np.column_stack([-away / length[:, None], -np.ones(len(points))])
        step, *_ = np.linalg.lstsq(jacobian * root, (radius - length) * root[:, 0], rcond=None)
        centre, radius = centre + step[:3], radius + float(step[3])
        if np.abs(step).max() < 1e-6 * max(radius, 1):
            break
    deviation = np.linalg.norm(centred - centre, axis=1) - radius
    return centre + middle, radius, float(np.sqrt(np.average(deviation**2, weights=weights)))


def principal_axes(mesh: Mesh) -> np.ndarray:
    """Full lengths (3,) of the ellipsoid with the same second moments, longest first, voxels.

    Of the enclosed volume where the mesh is closed; else of its surface, as if it were a thin shell.
    """
    if not mesh.closed:
        weights = mesh.vertex_areas
        centred = mesh.vertices - np.average(mesh.vertices, axis=0, weights=weights)
        moments = (centred * weights[:, None]).T @ centred / weights.sum()
        return 2 * np.sqrt(3 * np.maximum(np.linalg.eigvalsh(moments)[::-1], 0))
    corners = mesh.vertices - mesh.vertices.mean(axis=0)
    a, b, c = (corners[mesh.faces[:, index]] for index in range(3))
    volumes = np.einsum("ij,ij->i", a, np.cross(b, c)) / 6  # of tetrahedra with the centre
    total = a + b + c
    middle = (volumes[:, None] * total / 4).sum(axis=0) / volumes.sum()
    moments = sum((part * volumes[:, None]).T @ part for part in (a, b, c, total)) / 20
    moments = moments / volumes.sum() - np.outer(middle, middle)
    return 2 * np.sqrt(5 * np.maximum(np.linalg.eigvalsh(moments)[::-1], 0))


def _rim_lengths(mesh: Mesh, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Length of the open edges, and of those where the tomogram ends, voxels."""
    rim = mesh.rim
    if not len(rim):
        return 0.0, 0.0
    one, other = mesh.vertices[rim[:, 0]], mesh.vertices[rim[:, 1]]
    length, middle = np.linalg.norm(other - one, axis=1), (one + other) / 2
    reach = _AT_FACE + mesh.edge_voxels / 2
    at_face = ((middle < reach - 0.5) | (middle > np.array(shape) - 0.5 - reach)).any(axis=1)
    return float(length.sum()), float(length[at_face].sum())


@dataclass(frozen=True)
class Distances:
    """Distances of membranes from each other, voxels.

    Attributes
    ----------
    nearest
        For each mesh: (V,) distance to the nearest other mesh, infinite if there is none.
    numbers
        For each mesh: (V,) int32 number of that mesh, from 1; 0 if there is none.
    contacts
        (membrane, other, area, mean distance, least distance): the part of the first that is near the other.
    """

    nearest: list[np.ndarray]
    numbers: list[np.ndarray]
    contacts: list[tuple[int, int, float, float, float]]


def distances_between(meshes: Sequence[Mesh], contact_voxels: float, workers: int = 1) -> Distances:
    """Distances between meshes, from each vertex to the surface of the others.

    Parameters
    ----------
    meshes
        In the order of their numbers.
    contact_voxels
        What is nearer is a contact.
    workers
        Threads of the searches.
    """
    trees = [KDTree(mesh.vertices) for mesh in meshes]
    rims = [np.isin(np.arange(len(mesh.vertices)), mesh.rim) for mesh in meshes]
    lows = np.array([mesh.vertices.min(axis=0) for mesh in meshes]).reshape(-1, 3)
    highs = np.array([mesh.vertices.max(axis=0) for mesh in meshes]).reshape(-1, 3)
    found = Distances([], [], [])
    thin = [_one_per_cell(mesh.vertices) for mesh in meshes] if any(_is_large(mesh) for mesh in meshes) else []
    for index, mesh in enumerate(meshes):
        best = np.full(len(mesh.vertices), np.inf)
        bound = best
        if _is_large(mesh) and len(meshes) > 1:  # which would ask nearly every other one for all its vertices
            others = np.concatenate(thin[:index] + thin[index + 1 :])
            bound = KDTree(others).query(mesh.vertices, workers=workers)[0] * (1 + 1e-9)
        number = np.zeros(len(mesh.vertices), np.int32)
        areas = mesh.vertex_areas
        apart = np.linalg.norm(np.maximum(np.maximum(lows - highs[index], lows[index] - highs), 0), axis=1)
        for other in np.argsort(apart, kind="stable"):
            farthest = max(float(np.minimum(best, bound).max()), contact_voxels)
            if apart[other] > farthest:
                break
            if other == index:
                continue
            to_box = np.maximum(np.maximum(lows[other] - mesh.vertices, mesh.vertices - highs[other]), 0)
            asked = np.flatnonzero(np.linalg.norm(to_box, axis=1) < np.maximum(np.minimum(best, bound), contact_voxels))
            distance = _distance_to(mesh.vertices[asked], meshes[other], trees[other], rims[other], farthest, workers)
            nearer = distance < best[asked]
            best[asked[nearer]], number[asked[nearer]] = distance[nearer], other + 1
            near = distance < contact_voxels
            if near.any():
                weights = areas[asked[near]]
                mean = float(np.average(distance[near], weights=weights))
                found.contacts.append((index + 1, int(other) + 1, float(weights.sum()), mean, float(distance.min())))
        found.nearest.append(best)
        found.numbers.append(number)
    return found


def _is_large(mesh: Mesh) -> bool:
    return len(mesh.vertices) > _LARGE


def _one_per_cell(vertices: np.ndarray) -> np.ndarray:
    """A vertex of each cell of a grid that holds any."""
    _, first = np.unique(np.floor(vertices / _CELL).astype(np.int64), axis=0, return_index=True)
    return vertices[first]


def _distance_to(
    points: np.ndarray, mesh: Mesh, tree: KDTree, rim: np.ndarray, farthest: float, workers: int
) -> np.ndarray:
    """Distance (n,) from points to a mesh; infinite beyond `farthest`.

    To the plane at the nearest vertex, unless that lies at an open edge with the point beyond it.
    """
    limit = farthest * (1 + 1e-9) + mesh.edge_voxels
    distance, vertex = tree.query(points, distance_upper_bound=limit, workers=workers)
    near = np.flatnonzero(np.isfinite(distance))
    away = points[near] - mesh.vertices[vertex[near]]
    height = np.abs(np.einsum("ij,ij->i", away, mesh.normals[vertex[near]]))
    beside = np.sqrt(np.maximum(distance[near] ** 2 - height**2, 0))
    on_plane = (beside <= _BESIDE * mesh.edge_voxels) & ~(rim[vertex[near]] & (beside > 0.5 * mesh.edge_voxels))
    distance[near] = np.where(on_plane, height, distance[near])
    return distance
