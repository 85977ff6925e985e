"""Specimen of a simulated tomogram, drawn at random: membranes, what sits on them, and what is none."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import affine_transform, distance_transform_edt, gaussian_filter

from etsam.sources.simulation import molecules, phantom
from etsam.sources.simulation.membranes import MembraneBuilder
from etsam.sources.simulation.phantom import FAR, VOXEL_SIGMA, Bilayer, Membranes
from etsam.sources.simulation.settings import Range, Shape, SpecimenSettings, between, between_log
from etsam.sources.simulation.truth import MembraneTruth

_GOLD_DENSITY = 12.0  # of a gold bead against a membrane's head groups: enough to saturate and streak


@dataclass(frozen=True)
class Specimen:
    """A drawn specimen.

    Attributes
    ----------
    density
        (Z, Y, X) float32 above the solvent's; membrane head groups are about 1.
    strong
        (Z, Y, X) float32: what scatters so much that it must not count as signal (gold, carbon); None if there is none.
    instances
        (Z, Y, X) uint16: 0, or the number of the membrane.
    voxel_size_angstrom
        Of the grid.
    nearest
        (Z, Y, X) float32: distance to the nearest middle of a membrane, voxels; None if it is not known.
    thickness_angstrom
        Of all membranes, from leaflet to leaflet.
    truths
        Measures of each membrane on the grid it was drawn on.
    """

    density: np.ndarray
    strong: np.ndarray | None
    instances: np.ndarray
    voxel_size_angstrom: float = 10.0
    nearest: np.ndarray | None = None
    thickness_angstrom: float = Bilayer.thickness_angstrom
    truths: tuple[MembraneTruth, ...] = ()

    @property
    def mask(self) -> np.ndarray:
        """(Z, Y, X) int8: 1 is membrane."""
        return (self.instances > 0).astype(np.int8)


def draw_specimen(
    settings: SpecimenSettings, shape: Shape, voxel_size_angstrom: float, rng: np.random.Generator
) -> Specimen:
    """Draw a specimen of (Z, Y, X) voxels."""
    membranes = Membranes(shape, voxel_size_angstrom, settings.room_angstrom)
    thickness = Bilayer.thickness_angstrom
    filled = between(settings.filled_depth, rng) * shape[0]
    z_range = ((shape[0] - filled) / 2, (shape[0] + filled) / 2)
    if rng.random() >= settings.empty_probability:
        builder = MembraneBuilder(settings, membranes, z_range, rng)
        thickness = builder.bilayer.thickness_angstrom
        for _ in range(int(rng.integers(settings.membranes[0], settings.membranes[1], endpoint=True))):
            builder.add_one()
    density = membranes.density + _molecules(settings, membranes, z_range, rng)
    strong = _strong(settings, membranes, rng)
    truths = tuple(membranes.truths)
    return Specimen(density, strong, membranes.instances, voxel_size_angstrom, membranes.nearest, thickness, truths)


def resample(specimen: Specimen, shape: Shape, voxel_size_angstrom: float) -> Specimen:
    """The same specimen on a coarser grid of the same centre, averaged over its voxels.

    Masks follow the rule for membranes on any grid (`Bilayer.half_mask_voxels`), not those of the fine grid.

    Parameters
    ----------
    specimen
        With `nearest`.
    shape
        (Z, Y, X) of the coarser grid; where it reaches beyond the specimen, that is continued.
    voxel_size_angstrom
        Not below the specimen's.

    Raises
    ------
    ValueError
        If the grid is finer, or `nearest` is not known.
    """
    ratio = voxel_size_angstrom / specimen.voxel_size_angstrom
    if ratio < 1 or specimen.nearest is None:
        raise ValueError(f"a specimen of {specimen.voxel_size_angstrom:g} Å cannot be had at {voxel_size_angstrom:g} Å")
    fine = specimen.density.shape
    if ratio == 1 and shape == fine:
        return specimen
    offset = [(old - 1) / 2 - ratio * (new - 1) / 2 for old, new in zip(fine, shape, strict=True)]

    def sampled(values: np.ndarray, order: int) -> np.ndarray:
        grid = {"offset": offset, "output_shape": shape, "order": order, "mode": "nearest"}
        return affine_transform(values, np.full(3, ratio), **grid)

    def averaged(values: np.ndarray) -> np.ndarray:
        # from a voxel's own width on the fine grid to that on the coarse one
        return sampled(gaussian_filter(values, VOXEL_SIGMA * np.sqrt(ratio**2 - 1)), 3)

    half = Bilayer(specimen.thickness_angstrom).half_mask_voxels(voxel_size_angstrom)
    distance = sampled(np.minimum(specimen.nearest, np.float32(2 * (half + 2) * ratio)), 1) / np.float32(ratio)
    instances = np.zeros(shape, dtype=np.uint16)
    if specimen.instances.any():
        at = distance_transform_edt(specimen.instances == 0, return_distances=False, return_indices=True)
        instances = np.where(distance <= half, sampled(specimen.instances[tuple(at)], 0), 0).astype(np.uint16)
    return Specimen(
        density=averaged(specimen.density),
        strong=None if specimen.strong is None else averaged(specimen.strong),
        instances=instances,
        voxel_size_angstrom=voxel_size_angstrom,
        nearest=np.where(distance < half + 2, distance, np.float32(FAR)),
        thickness_angstrom=specimen.thickness_angstrom,
        truths=specimen.truths,
    )


def _molecules(
    settings: SpecimenSettings, membranes: Membranes, z_range: Range, rng: np.random.Generator
) -> np.ndarray:
    """Density of particles, membrane proteins and filaments."""
    voxel, shape = membranes.voxel_size_angstrom, membranes.shape
    clouds: list[np.ndarray] = []
    kinds = int(rng.integers(settings.species[0], settings.species[1], endpoint=True))
    crowding = between(settings.crowding, rng) / max(kinds, 1)
    taken: list[tuple[np.ndarray, float]] = []
    for _ in range(kinds):
        species = molecules.random_species(between_log(settings.particle_radius_angstrom, rng), rng)
        radius = species.radius_angstrom / voxel
        count = min(4000, int(crowding * np.prod(shape) / (4.19 * max(radius, 1.0) ** 3)))
        centres = molecules.free_positions(membranes, radius, count, rng, taken, z_range)
        taken.append((centres, radius))
        clouds.append(molecules.placed(species, centres, voxel, rng))
    number = between(settings.membrane_proteins_per_1000_voxels, rng) * membranes.room_voxels / 1000
    species = molecules.random_species(rng.uniform(25, 60), rng)
    clouds.append(molecules.placed(species, molecules.on_membranes(membranes, int(number), rng), voxel, rng))
    if rng.random() < settings.filament_probability:
        clouds += _filaments(settings, membranes, rng)
    points = np.concatenate([np.empty((0, 3)), *clouds])
    if not len(points):
        return np.zeros(shape, dtype=np.float32)
    weight = molecules.blob_height(voxel, between(settings.protein_density, rng))
    return gaussian_filter(molecules.spread(points, shape, weight), molecules.blob_sigma_voxels(voxel), truncate=3.0)


def _filaments(settings: SpecimenSettings, membranes: Membranes, rng: np.random.Generator) -> list[np.ndarray]:
    voxel, clouds = membranes.voxel_size_angstrom, []
    both = rng.integers(3)  # actin, microtubules, or both
    if both != 1:
        for _ in range(int(rng.integers(settings.actin[0], settings.actin[1], endpoint=True))):
            # rise 27.5 Å, twist -166.7 degrees, persistence length 10 µm (actin)
            path = molecules.worm_like_chain(membranes.shape, 27.5 / voxel, 100_000 / 27.5, rng)
            points = molecules.filament(path, 16.0 / voxel, -166.7)
            clouds.append(molecules.away_from_membranes(points, membranes, 40.0 / voxel + 1))
    if both != 0:
        for _ in range(int(rng.integers(settings.microtubules[0], settings.microtubules[1], endpoint=True))):
            # 13 protofilaments at a radius of 112 Å, a tubulin every 40 Å, straight over a field of view
            path = molecules.worm_like_chain(membranes.shape, 40.0 / voxel, 1_000_000 / 40.0, rng)
            points = molecules.microtubule(path, 112.0 / voxel)
            if len(molecules.away_from_membranes(path, membranes, 160.0 / voxel)) > 0.8 * len(path):
                clouds.append(np.concatenate([points, points + 0.5 * np.gradient(path, axis=0).repeat(13, axis=0)]))
    return clouds


def _strong(settings: SpecimenSettings, membranes: Membranes, rng: np.random.Generator) -> np.ndarray | None:
    """Gold beads, the carbon film's edge, lumps of ice."""
    voxel, shape = membranes.voxel_size_angstrom, membranes.shape
    parts = []
    if rng.random() < settings.gold_probability:
        radius = max(between(settings.gold_radius_angstrom, rng) / voxel, 0.8)
        count = int(rng.integers(settings.gold_beads[0], settings.gold_beads[1], endpoint=True))
        centres = molecules.free_positions(membranes, radius, count, rng)
        parts.append(_GOLD_DENSITY * molecules.beads(centres, radius, shape))
    if rng.random() < settings.ice_probability:
        radius = max(rng.uniform(100, 350) / voxel, 3.0)
        lumps = molecules.free_positions(membranes, radius, int(rng.integers(1, 5)), rng)
        lumps[:, 0] = np.where(rng.random(len(lumps)) < 0.5, 0, shape[0] - 1)  # on the surfaces
        parts.append(rng.uniform(0.5, 2.0) * molecules.beads(lumps, radius, shape))
    if rng.random() < settings.carbon_probability:
        z, y, x = (slice(0, side) for side in shape)
        edge = phantom.sheet((z, y, x), rng.uniform(0, shape), np.array([0.0, *rng.normal(size=2)]))
        middle, half = rng.uniform(0, shape[0]), rng.uniform(60, 150) / voxel
        film = np.abs(np.arange(shape[0]) - middle)[:, None, None] < half
        grain = 1 + 0.4 * phantom.smooth_noise(shape, max(2.0, 30 / voxel), rng)
        parts.append(np.where(film & (edge > 0), rng.uniform(0.4, 1.2) * grain, 0).astype(np.float32))
    return np.stack(parts).sum(axis=0, dtype=np.float32) if parts else None
