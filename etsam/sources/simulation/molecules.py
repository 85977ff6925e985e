"""Proteins, filaments and beads of a phantom, as clouds of points that are spread on the grid and blurred together.

Positions are (z, y, x) in voxels unless a name says Å. Nothing here is a structure from a data bank: sizes and shapes
are those of what fills a cell, which is what a network has to learn to leave alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from etsam.sources.simulation.phantom import Membranes, random_rotation

_PROTEIN_ANGSTROM3_PER_POINT = 20.0**3  # a point stands for a ball of about 25 Å across: a domain of 10 kDa
_BUILDING_BLOCK_ANGSTROM = 22.0


@dataclass(frozen=True)
class Species:
    """One kind of particle.

    Attributes
    ----------
    points_angstrom
        (N, 3) from the centre.
    radius_angstrom
        Within which all points lie.
    """

    points_angstrom: np.ndarray
    radius_angstrom: float


def random_species(radius_angstrom: float, rng: np.random.Generator) -> Species:
    """A particle of a few lobes: compact, oblong, ring- or barrel-like by chance."""
    lobes = int(rng.integers(1, 6))
    stretch = rng.uniform(0.5, 1.0, size=3)
    centres = rng.normal(size=(lobes, 3)) * stretch
    centres *= 0.6 * radius_angstrom / max(float(np.linalg.norm(centres, axis=1).max()), 1e-6) if lobes > 1 else 0
    count = max(4, round(0.35 * 4.19 * radius_angstrom**3 / _PROTEIN_ANGSTROM3_PER_POINT))
    spread = radius_angstrom * (0.28 if lobes > 1 else 0.45)
    points = centres[rng.integers(lobes, size=count)] + rng.normal(size=(count, 3)) * spread * stretch
    if rng.random() < 0.25:  # a hollow barrel, as chaperones and proteasomes are
        points[:, 1:] *= (radius_angstrom * 0.6 / np.maximum(np.linalg.norm(points[:, 1:], axis=1), 1e-6))[:, None]
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return Species(points * np.minimum(1, radius_angstrom / np.maximum(length, 1e-6)), radius_angstrom)


def placed(species: Species, centres: np.ndarray, voxel_size_angstrom: float, rng: np.random.Generator) -> np.ndarray:
    """Points of copies at `centres` (M, 3), each turned at random, (M * N, 3) voxels."""
    turned = np.einsum("mij,nj->mni", random_rotation(rng, len(centres)), species.points_angstrom / voxel_size_angstrom)
    return (centres[:, None] + turned).reshape(-1, 3)


def free_positions(
    membranes: Membranes,
    radius_voxels: float,
    count: int,
    rng: np.random.Generator,
    taken: Sequence[tuple[np.ndarray, float]] = (),
    z_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Up to `count` positions (M, 3) that keep clear of membranes, of `taken` (centres, radius) and of each other."""
    low, high = np.zeros(3), np.array(membranes.shape, dtype=float)
    if z_range is not None:
        low[0], high[0] = z_range
    drawn = rng.uniform(low, high, size=(2 * count, 3))
    at = tuple(np.minimum(drawn.astype(int), np.array(membranes.shape) - 1).T)
    drawn = drawn[membranes.nearest[at] > radius_voxels + 1]
    for centres, radius in taken:
        if len(centres) and len(drawn):
            distance, _ = cKDTree(centres).query(drawn)
            drawn = drawn[distance > 0.85 * (radius + radius_voxels)]
    if len(drawn) > 1:
        pairs = cKDTree(drawn).query_pairs(1.7 * radius_voxels, output_type="ndarray")
        keep = np.ones(len(drawn), dtype=bool)
        for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]:
            if keep[first]:
                keep[second] = False
        drawn = drawn[keep]
    return drawn[:count]


def on_membranes(membranes: Membranes, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` positions (M, 3) in the middle of membranes, fewer if there is little."""
    where = np.flatnonzero((membranes.nearest < 0.7) & (membranes.instances > 0))
    chosen = rng.choice(where, size=min(count, len(where)), replace=False)
    return np.stack(np.unravel_index(chosen, membranes.shape), axis=1) + rng.uniform(-0.5, 0.5, size=(len(chosen), 3))


def worm_like_chain(
    shape: tuple[int, ...], step_voxels: float, persistence_steps: float, rng: np.random.Generator
) -> np.ndarray:
    """A path (N, 3) through the whole grid that bends: a chain with so many steps of persistence length."""
    position = rng.uniform(0, shape)
    paths = []
    direction = rng.normal(size=3) * (0.35, 1.0, 1.0)  # cells are flat: filaments run mostly along the slices
    direction /= np.linalg.norm(direction)
    for sign in (1.0, -1.0):
        here, along, path = position.copy(), sign * direction, []
        for _ in range(int(3 * max(shape) / step_voxels)):
            along = along + rng.normal(size=3) / np.sqrt(max(persistence_steps, 1.0))
            along /= np.linalg.norm(along)
            here = here + along * step_voxels
            if (here < -10).any() or (here > np.array(shape) + 10).any():
                break
            path.append(here.copy())
        paths.append(path)
    return np.array(paths[1][::-1] + [position] + paths[0])


def filament(path: np.ndarray, offset_voxels: float, twist_degrees: float) -> np.ndarray:
    """Two strands wound around a path (N, 3), as in actin; (2 N, 3)."""
    first, second = _frame(path)
    phase = np.deg2rad(twist_degrees) * np.arange(len(path))[:, None]
    offset = offset_voxels * (np.cos(phase) * first + np.sin(phase) * second)
    return np.concatenate([path + offset, path - offset])


def microtubule(path: np.ndarray, radius_voxels: float, protofilaments: int = 13) -> np.ndarray:
    """Rings of subunits around a path (N, 3), (N * protofilaments, 3)."""
    first, second = _frame(path)
    phase = 2 * np.pi * np.arange(protofilaments) / protofilaments
    rings = np.cos(phase)[None, :, None] * first[:, None] + np.sin(phase)[None, :, None] * second[:, None]
    return (path[:, None] + radius_voxels * rings).reshape(-1, 3)


def _frame(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors across a path at each of its points."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    helper = np.where(np.abs(tangent[:, :1]) < 0.9, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    first = np.cross(tangent, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return first, np.cross(tangent, first)


def away_from_membranes(points: np.ndarray, membranes: Membranes, clearance_voxels: float) -> np.ndarray:
    """Those of `points` (N, 3) that are on the grid and keep the distance."""
    cells = np.floor(points).astype(int)
    inside = ((cells >= 0) & (cells < membranes.shape)).all(axis=1)
    points, cells = points[inside], cells[inside]
    return points[membranes.nearest[tuple(cells.T)] > clearance_voxels] if len(points) else points


def spread(points: np.ndarray, shape: tuple[int, int, int], weight: float = 1.0) -> np.ndarray:
    """Points (N, 3) as trilinear weights on the grid, (Z, Y, X) float32; what lies outside is left out."""
    low = np.floor(points).astype(int)
    fraction = points - low
    total = np.zeros(int(np.prod(shape)), dtype=np.float64)
    for corner in np.ndindex(2, 2, 2):
        cell = low + corner
        inside = ((cell >= 0) & (cell < shape)).all(axis=1)
        weights = np.prod(np.where(corner, fraction, 1 - fraction), axis=1)[inside]
        total += np.bincount(np.ravel_multi_index(tuple(cell[inside].T), shape), weights, minlength=total.size)
    return (weight * total.reshape(shape)).astype(np.float32)


def blob_height(voxel_size_angstrom: float, density: float) -> float:
    """Weight of a point so that points one building block apart make up `density`."""
    return density * (_BUILDING_BLOCK_ANGSTROM / voxel_size_angstrom) ** 3


def blob_sigma_voxels(voxel_size_angstrom: float) -> float:
    """Width of the blur of all points, so that a building block's points merge."""
    return float(np.hypot(0.42 * _BUILDING_BLOCK_ANGSTROM / voxel_size_angstrom, 0.3))


def beads(centres: np.ndarray, radius_voxels: float, shape: tuple[int, int, int]) -> np.ndarray:
    """Solid balls at centres (N, 3), with soft edges, (Z, Y, X) float32 in 0..1."""
    found = np.zeros(shape, dtype=np.float32)
    reach = int(np.ceil(radius_voxels + 1))
    for centre in centres:
        low = np.maximum(np.floor(centre).astype(int) - reach, 0)
        high = np.minimum(np.floor(centre).astype(int) + reach + 2, shape)
        if (high <= low).any():
            continue
        axes = [np.arange(a, b) - c for a, b, c in zip(low, high, centre, strict=True)]
        distance = np.sqrt(sum(part**2 for part in np.meshgrid(*axes, indexing="ij")))
        part = found[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        np.maximum(part, np.clip(radius_voxels + 0.5 - distance, 0, 1), out=part)
    return found
