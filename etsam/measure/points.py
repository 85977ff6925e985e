"""Oriented points on membranes, evenly spread, for picking: tables for RELION 5, RELION 4 and everything else.

RELION turns a position p in unbinned pixels, counted from 0, into Å from the tomogram's centre: (p - size / 2) times
the pixel size, with the exact half of odd sizes (`ParticleSet::getParticleCoordDecenteredPixel`). Its angles rot and
tilt bring the reference's Z axis onto (sin tilt cos rot, sin tilt sin rot, cos tilt): here, onto the membrane's normal.
Psi, the turn around the normal, is unknown and 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from etsam.measure.mesh import Mesh

_CANDIDATES = 12  # for each point that fits
_SEED = 0


@dataclass(frozen=True)
class OrientedPoints:
    """Points beside or on membranes.

    Attributes
    ----------
    positions
        (N, 3) float64, (z, y, x) in voxels.
    normals
        (N, 3) float64 unit vectors (z, y, x): out of closed membranes.
    membranes
        (N,) int: their numbers.
    closed
        (N,) bool: whether that membrane has an inside.
    """

    positions: np.ndarray
    normals: np.ndarray
    membranes: np.ndarray
    closed: np.ndarray

    @property
    def angles(self) -> np.ndarray:
        """(N, 3) degrees: rot, tilt, psi."""
        z, y, x = self.normals.T
        rot = np.degrees(np.arctan2(y, x))
        return np.stack([rot, np.degrees(np.arccos(np.clip(z, -1, 1))), np.zeros(len(z))], axis=1)

    def within(self, shape: tuple[int, int, int]) -> "OrientedPoints":
        """Those of the points that lie in a tomogram of `shape` (Z, Y, X), half a voxel around its voxels' centres."""
        inside = ((self.positions >= -0.5) & (self.positions <= np.array(shape) - 0.5)).all(axis=1)
        return OrientedPoints(self.positions[inside], self.normals[inside], self.membranes[inside], self.closed[inside])


def oriented_points(
    meshes: Sequence[Mesh], numbers: Sequence[int], spacing_voxels: float, offset_voxels: float = 0.0
) -> OrientedPoints:
    """Spread points over membranes, none nearer than the spacing to another of the same membrane.

    Where a membrane was joined across a gap of the mask, and at its very edge, there are none.

    Parameters
    ----------
    meshes, numbers
        The membranes and their numbers.
    spacing_voxels
        Least distance.
    offset_voxels
        Along the normal; out of closed membranes if positive.
    """
    parts = [_spread(mesh, spacing_voxels) for mesh in meshes]
    counts = [len(points) for points, _ in parts]
    nothing = np.zeros((0, 3))
    positions = np.concatenate([nothing, *(points for points, _ in parts)])
    normals = np.concatenate([nothing, *(normal for _, normal in parts)])
    return OrientedPoints(
        positions + offset_voxels * normals,
        normals,
        np.repeat(np.array(numbers, dtype=int), counts),
        np.repeat([mesh.closed for mesh in meshes], counts).astype(bool),
    )


def _spread(mesh: Mesh, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 3) at random on the triangles, taken one by one if they keep the distance, and normals."""
    left_out = mesh.joined.copy()
    left_out[mesh.rim] = True  # triangles at an edge reach a little beyond the mask
    faces = mesh.faces[~left_out[mesh.faces].any(axis=1)]
    if not len(faces):
        return np.zeros((0, 3)), np.zeros((0, 3))
    corners = mesh.vertices[faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    rng = np.random.default_rng(_SEED)
    count = max(int(_CANDIDATES * areas.sum() / spacing**2), _CANDIDATES)
    chosen = rng.choice(len(faces), size=count, p=areas / areas.sum())
    weights = rng.dirichlet((1, 1, 1), size=count)
    points = np.einsum("nc,ncd->nd", weights, corners[chosen])
    normals = np.einsum("nc,ncd->nd", weights, mesh.normals[faces[chosen]])
    pairs = KDTree(points).query_pairs(spacing, output_type="ndarray")
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    starts = np.searchsorted(pairs[:, 0], np.arange(count + 1))
    free, kept = np.ones(count, bool), np.zeros(count, bool)
    for index in range(count):
        if free[index]:
            kept[index] = True
            free[pairs[starts[index] : starts[index + 1], 1]] = False
    normals = normals[kept]
    return points[kept], normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def plain_table(points: OrientedPoints, voxel_angstrom: float, origin_angstrom: Sequence[float]) -> pd.DataFrame:
    """Positions in voxels and in Å from the tomogram's first voxel (z, y, x), normals and angles."""
    columns: dict[str, np.ndarray] = {"membrane": points.membranes}
    for axis, index in (("x", 2), ("y", 1), ("z", 0)):
        columns[f"{axis}_voxel"] = points.positions[:, index]
    for axis, index in (("x", 2), ("y", 1), ("z", 0)):
        columns[f"{axis}_angstrom"] = points.positions[:, index] * voxel_angstrom + origin_angstrom[index]
    for axis, index in (("x", 2), ("y", 1), ("z", 0)):
        columns[f"normal_{axis}"] = points.normals[:, index]
    columns["rot"], columns["tilt"], columns["psi"] = points.angles.T
    columns["normal_points"] = np.where(points.closed, "out", "either")
    return pd.DataFrame(columns)


def relion5_table(
    points: OrientedPoints, tomogram: str, voxel_angstrom: float, shape: tuple[int, int, int]
) -> pd.DataFrame:
    """Particles for RELION 5: Å from the centre of a tomogram of `shape` (Z, Y, X)."""
    columns: dict[str, object] = {"rlnTomoName": [tomogram] * len(points.positions)}
    for axis, index in (("X", 2), ("Y", 1), ("Z", 0)):
        centred = (points.positions[:, index] - shape[index] / 2) * voxel_angstrom
        columns[f"rlnCenteredCoordinate{axis}Angst"] = centred
    return pd.DataFrame(columns | _angles(points))


def relion4_table(points: OrientedPoints, tomogram: str, voxel_angstrom: float, pixel_angstrom: float) -> pd.DataFrame:
    """Particles for RELION 4: unbinned pixels of `pixel_angstrom`, counted from 0."""
    columns: dict[str, object] = {"rlnTomoName": [tomogram] * len(points.positions)}
    for axis, index in (("X", 2), ("Y", 1), ("Z", 0)):
        columns[f"rlnCoordinate{axis}"] = points.positions[:, index] * (voxel_angstrom / pixel_angstrom)
    return pd.DataFrame(columns | _angles(points))


def _angles(points: OrientedPoints) -> dict[str, object]:
    rot, tilt, psi = points.angles.T
    return {"rlnAngleRot": rot, "rlnAngleTilt": tilt, "rlnAnglePsi": psi, "rlnAngleTiltPrior": tilt}
