"""Membranes of many shapes on a grid: where they are, which is which, and their density.

Every shape is a field of signed distances from the middle of the bilayer, in voxels, on a box of the grid. From it
follow the mask, the leaflets and layers beside the membrane. Fields are first-order distances (a function divided by
the length of its gradient), exact near the surface, where alone they are used.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from etsam.sources.simulation.truth import MembraneTruth, measured_truth

Box = tuple[slice, slice, slice]
Field = np.ndarray
"""Signed distance (z, y, x) float32 on a box, voxels; negative inside."""

VOXEL_SIGMA = 0.35
"""Blur by a voxel, in voxels: 0.29 is its own standard deviation; the rest avoids aliasing."""

FAR = 1.0e3
"""Distance that stands for "nowhere near", in voxels."""


@dataclass(frozen=True)
class Bilayer:
    """Thickness and density of a membrane.

    Attributes
    ----------
    thickness_angstrom
        Distance between the middles of the two leaflets' head groups.
    leaflet_sigma_angstrom
        Of the Gaussian profile of a leaflet.
    contrast
        Density of the head groups above the solvent's.
    core
        Density of the tails below the solvent's, as a share of `contrast`.
    """

    thickness_angstrom: float = 32.0
    leaflet_sigma_angstrom: float = 6.0
    contrast: float = 1.0
    core: float = 0.2

    def density(self, distance: Field, voxel_size_angstrom: float) -> Field:
        """Density at distances in voxels, averaged over a voxel (approximately, as a wider Gaussian of equal area)."""
        half = self.thickness_angstrom / 2 / voxel_size_angstrom
        sharp = self.leaflet_sigma_angstrom / voxel_size_angstrom
        sigma = np.hypot(sharp, VOXEL_SIGMA)
        height = self.contrast * sharp / sigma
        leaflets = np.exp(-0.5 * ((np.abs(distance) - half) / sigma) ** 2)
        tails = np.exp(-0.5 * (distance / max(0.5 * half, 0.35)) ** 2)
        return (height * leaflets - self.core * height * tails).astype(np.float32)

    def half_mask_voxels(self, voxel_size_angstrom: float) -> float:
        """Half the thickness of the mask: to the middle of the leaflets, but at least 1.25 voxels.

        PolNet's masks end there, too. 2.5 voxels are about the least that stays connected on a grid.
        """
        return max(self.thickness_angstrom / 2 / voxel_size_angstrom, 1.25)


def smooth_noise(shape: tuple[int, ...], wavelength_voxels: float, rng: np.random.Generator) -> Field:
    """Random field of mean about 0 and standard deviation about 1 that varies over `wavelength_voxels`."""
    spacing = max(wavelength_voxels / 2, 1.0)
    coarse = tuple(int(np.ceil((side - 1) / spacing)) + 3 for side in shape)
    field = _enlarge(rng.normal(size=coarse), spacing, shape)
    return field / max(float(field.std()), 1e-6)


def _enlarge(coarse: np.ndarray, spacing: float, shape: tuple[int, ...]) -> Field:
    """Quadratic B-spline with its coefficients `spacing` voxels apart, at the voxels of `shape`; smooth to first order.

    Coefficient i lies on voxel i * spacing.
    """
    found = torch.from_numpy(np.ascontiguousarray(coarse, dtype=np.float32))
    for axis, side in enumerate(shape):
        position = torch.arange(side, dtype=torch.float32) / spacing
        middle = position.round().long().clamp(0, found.shape[axis] - 1)
        t = (position - middle).reshape([-1 if other == axis else 1 for other in range(3)])
        weights = {-1: 0.5 * (0.5 - t) ** 2, 0: 0.75 - t**2, 1: 0.5 * (0.5 + t) ** 2}
        last = found.shape[axis] - 1
        parts = [found.index_select(axis, (middle + step).clamp(0, last)) * w for step, w in weights.items()]
        found = parts[0] + parts[1] + parts[2]
    return found.numpy()


def random_rotation(rng: np.random.Generator, count: int | None = None) -> np.ndarray:
    """Rotation matrices drawn uniformly, (3, 3) or (count, 3, 3) float64 (QR of Gaussians, Mezzadri 2007)."""
    gaussian = rng.normal(size=(count or 1, 3, 3))
    q, r = np.linalg.qr(gaussian)
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]
    q[np.linalg.det(q) < 0, :, 0] *= -1
    return q if count is not None else q[0]


def box_around(centre: np.ndarray, radius: float, shape: tuple[int, int, int]) -> Box | None:
    """Part of the grid within `radius` voxels of `centre`; None if there is none."""
    low = np.maximum(np.floor(centre - radius).astype(int), 0)
    high = np.minimum(np.ceil(centre + radius).astype(int) + 1, shape)
    if (high <= low).any():
        return None
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x


def _offsets(box: Box, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, y and x from the centre, broadcastable to the box, float32."""
    axes = [np.arange(side.start, side.stop, dtype=np.float32) - c for side, c in zip(box, centre, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    return z.astype(np.float32), y.astype(np.float32), x.astype(np.float32)


def ellipsoid(box: Box, centre: np.ndarray, semi_axes: np.ndarray, rotation: np.ndarray) -> Field:
    """Distance from an ellipsoid; a sphere if its semi-axes (voxels) are equal."""
    z, y, x = _offsets(box, centre)
    first, second = np.float32(0), np.float32(0)
    for row, axis in zip(rotation.astype(np.float32), semi_axes.astype(np.float32), strict=True):
        along = row[0] * z + row[1] * y + row[2] * x
        first = first + (along / axis) ** 2
        second = second + (along / axis**2) ** 2
    length = np.sqrt(first)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (length - 1) * length / np.sqrt(second)
    return np.where(length > 0, distance, -float(semi_axes.min())).astype(np.float32)  # the centre has no gradient


def sheet(box: Box, centre: np.ndarray, normal: np.ndarray) -> Field:
    """Distance from a plane through `centre`."""
    z, y, x = _offsets(box, centre)
    a, b, c = (np.float32(part) for part in normal / np.linalg.norm(normal))
    return (a * z + b * y + c * x).astype(np.float32)


def tube(box: Box, path: np.ndarray, radius: float) -> Field:
    """Distance from a tube around a path (N, 3) of points in voxels, found on a grid twice as coarse."""
    shape = tuple(side.stop - side.start for side in box)
    origin = np.array([side.start for side in box])
    coarse = tuple(-(-side // 2) for side in shape)
    at = np.round((path - origin) / 2).astype(int)  # coarse voxel i lies on fine voxel 2 i
    at = at[((at >= 0) & (at < coarse)).all(axis=1)]
    if not len(at):
        return np.full(shape, FAR, dtype=np.float32)
    away = np.ones(coarse, dtype=bool)
    away[tuple(at.T)] = False
    distance = 2 * distance_transform_edt(away).astype(np.float32)
    return _enlarge(distance, 2, shape) - np.float32(radius)


def level_set(shape: tuple[int, int, int], wavelength_voxels: float, level: float, rng: np.random.Generator) -> Field:
    """Distance from where a smooth random field crosses `level`: sponges and networks of tubes."""
    field = smooth_noise(shape, wavelength_voxels, rng) - np.float32(level)
    slope = np.sqrt(sum(part**2 for part in np.gradient(field)))
    return (field / np.maximum(slope, 0.02 * float(slope.max()))).astype(np.float32)


def undulate(distance: Field, amplitude_voxels: float, wavelength_voxels: float, rng: np.random.Generator) -> Field:
    """Move the surface in and out by a smooth random field."""
    if amplitude_voxels <= 0:
        return distance
    return distance + np.float32(amplitude_voxels) * smooth_noise(distance.shape, wavelength_voxels, rng)


class Membranes:
    """The membranes of one phantom as they are put in, none crossing another.

    Parameters
    ----------
    shape
        (Z, Y, X).
    voxel_size_angstrom
        Of the grid.
    room_angstrom
        Thickness that every membrane has room for; None: its own. With the same room, membranes of any thickness up to
        that lie in the same places.

    Attributes
    ----------
    density
        (Z, Y, X) float32.
    instances
        (Z, Y, X) uint16: 0, or the number of the membrane whose mask covers the voxel.
    nearest
        (Z, Y, X) float32: distance to the nearest middle of a membrane, voxels; `FAR` where no box reached.
    inside
        (Z, Y, X) int8: how many closed membranes lie around.
    room_voxels
        Voxels of membranes with their room; without `room_angstrom` those of the mask.
    truths
        Measures of each membrane, by number.
    """

    def __init__(
        self, shape: tuple[int, int, int], voxel_size_angstrom: float, room_angstrom: float | None = None
    ) -> None:
        self.shape, self.voxel_size_angstrom = shape, voxel_size_angstrom
        self._room = Bilayer(room_angstrom or 0.0)
        self.room_voxels = 0
        self.density = np.zeros(shape, dtype=np.float32)
        self.instances = np.zeros(shape, dtype=np.uint16)
        self.nearest = np.full(shape, FAR, dtype=np.float32)
        self.inside = np.zeros(shape, dtype=np.int8)
        self.count = 0
        self.truths: list[MembraneTruth] = []
        self._middles: list[np.ndarray] = []  # points on each

    def half_room(self, bilayer: Bilayer) -> float:
        """Half the thickness that a membrane is given room for, voxels; at least that of its mask."""
        return max(membrane.half_mask_voxels(self.voxel_size_angstrom) for membrane in (bilayer, self._room))

    def add(
        self,
        box: Box,
        distance: Field,
        bilayer: Bilayer,
        *,
        clearance_voxels: float = 1.0,
        closed: bool = False,
        layers: Callable[[Field], Field] | None = None,
        present: np.ndarray | None = None,
    ) -> bool:
        """Put a membrane in, unless it would come too close to one that is there.

        Parameters
        ----------
        box, distance
            The shape.
        bilayer
            Its profile.
        clearance_voxels
            Least distance between the rooms of two membranes.
        closed
            Whether negative distances are the inside of something.
        layers
            Further density as a function of the distance: coats, contents.
        present
            (z, y, x) bool: where the membrane is; None: everywhere. For open ones.

        Returns
        -------
        bool
            Whether it was put in.
        """
        half = self.half_room(bilayer)
        there = np.abs(distance) if present is None else np.where(present, np.abs(distance), np.float32(FAR))
        room = there <= half
        if np.count_nonzero(room) < 20:  # a corner of something
            return False
        if (self.nearest[box][room] < 2 * half + clearance_voxels).any():
            return False
        self.count += 1
        self.room_voxels += int(np.count_nonzero(room))
        self.truths.append(self._truth(box, distance, there, room, bilayer, closed))
        self.instances[box][there <= bilayer.half_mask_voxels(self.voxel_size_angstrom)] = self.count
        self.nearest[box] = np.minimum(self.nearest[box], there)
        added = bilayer.density(distance, self.voxel_size_angstrom)
        if layers is not None:
            added = added + layers(distance)
        self.density[box] += added if present is None else np.where(present, added, np.float32(0))
        if closed:
            self.inside[box] += distance < 0
        return True

    def _truth(
        self, box: Box, distance: Field, there: Field, room: np.ndarray, bilayer: Bilayer, closed: bool
    ) -> MembraneTruth:
        faces = zip(box, self.shape, strict=True)
        at_border = any(
            (side.start == 0 and room.take(0, axis).any()) or (side.stop == end and room.take(-1, axis).any())
            for axis, (side, end) in enumerate(faces)
        )
        truth, middle = measured_truth(
            self.count,
            distance,
            there < FAR,
            at_border,
            closed,
            np.concatenate([np.zeros((0, 3), np.float32), *self._middles]),
            np.array([side.start for side in box]),
            bilayer.thickness_angstrom,
            self.voxel_size_angstrom,
        )
        self._middles.append(middle)
        return truth
