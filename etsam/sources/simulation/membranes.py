"""Draws membranes of every kind into a phantom, one after another, none crossing another."""

from collections.abc import Callable

import numpy as np

from etsam.sources.simulation import molecules, phantom
from etsam.sources.simulation.phantom import Bilayer, Box, Membranes
from etsam.sources.simulation.settings import Range, SpecimenSettings, between, between_log

_TRIES = 8  # places tried for a membrane that has to lie clear of the others


class MembraneBuilder:
    """Draws membranes one after another into a phantom."""

    def __init__(
        self, settings: SpecimenSettings, membranes: Membranes, z_range: Range, rng: np.random.Generator
    ) -> None:
        self.settings, self.membranes, self.z_range, self.rng = settings, membranes, z_range, rng
        self.voxel = membranes.voxel_size_angstrom
        # one chemistry a tomogram, with small differences between its membranes
        self.bilayer = Bilayer(
            between(settings.thickness_angstrom, rng),
            between(settings.leaflet_sigma_angstrom, rng),
            between(settings.contrast, rng),
            between(settings.core, rng),
        )
        names = list(settings.kinds)
        weights = np.array([float(settings.kinds[name]) for name in names])
        # a tomogram shows some kinds more than others
        weights = weights * rng.dirichlet(np.ones(len(names)))
        self.names, self.weights = names, weights / weights.sum()

    def add_one(self) -> None:
        kind = str(self.rng.choice(self.names, p=self.weights))
        for _ in range(_TRIES):
            if getattr(self, f"_{kind}")():
                return

    def _profile(self) -> Bilayer:
        factor = self.rng.uniform(0.8, 1.2)
        bilayer = self.bilayer
        return Bilayer(
            bilayer.thickness_angstrom, bilayer.leaflet_sigma_angstrom, factor * bilayer.contrast, bilayer.core
        )

    def _centre(self, margin_voxels: float = 0.0) -> np.ndarray:
        low = np.array([self.z_range[0], -margin_voxels, -margin_voxels])
        high = np.array([self.z_range[1], *(side + margin_voxels for side in self.membranes.shape[1:])])
        return self.rng.uniform(low, high)

    def _radius(self) -> float:
        """Voxels; so that the largest fit the field of view, and the smallest can be told from a particle."""
        low, high = self.settings.radius_angstrom
        high = max(1.2 * low, min(high, 0.5 * max(self.membranes.shape) * self.voxel))
        return max(between_log((low, high), self.rng) / self.voxel, 4.5)

    def _waves(self, distance: np.ndarray, radius: float) -> np.ndarray:
        amplitude = between(self.settings.undulation, self.rng) * radius
        return phantom.undulate(distance, amplitude, max(4.0, radius * self.rng.uniform(0.8, 2.0)), self.rng)

    def _whole(self) -> Box:
        z, y, x = (slice(0, side) for side in self.membranes.shape)
        return z, y, x

    def _vesicle(self) -> bool:
        rng, settings = self.rng, self.settings
        radius = self._radius()
        centre = self._centre(0.3 * radius)
        box = phantom.box_around(centre, 1.3 * radius + 8, self.membranes.shape)
        if box is None:
            return False
        axes = radius * np.array([1.0, *rng.uniform(0.6, 1.0, size=2)])
        distance = phantom.ellipsoid(box, centre, axes, phantom.random_rotation(rng))
        distance = self._waves(distance, radius)
        present = None
        if rng.random() < settings.open_probability:
            present = phantom.sheet(box, centre, rng.normal(size=3)) < radius * rng.uniform(-0.2, 0.8)
        layers = self._layers(distance.shape) if present is None else None
        closed = present is None
        return self.membranes.add(box, distance, self._profile(), closed=closed, layers=layers, present=present)

    def _layers(self, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray] | None:
        """Contents and coat of a vesicle of a box of `shape`, as a function of the distance; None: neither."""
        rng, settings = self.rng, self.settings
        contents = rng.uniform(-0.1, 0.5) * self.bilayer.contrast if rng.random() < settings.filled_probability else 0.0
        coated = rng.random() < settings.coat_probability
        if not contents and not coated:
            return None
        half = self.bilayer.half_mask_voxels(self.voxel)
        width = rng.uniform(40, 130) / self.voxel
        middle = float(rng.choice((-1, 1))) * (half + rng.uniform(20, 90) / self.voxel + width / 2)
        height = rng.uniform(0.3, 1.1) * self.bilayer.contrast
        grain = phantom.smooth_noise(shape, max(2.0, rng.uniform(60, 140) / self.voxel), rng)

        def density(distance: np.ndarray) -> np.ndarray:
            added = np.float32(contents) / (1 + np.exp(np.clip((distance + half + 1) / 0.7, -30, 30)))
            if coated:
                shell = np.exp(-0.5 * ((distance - middle) / (0.42 * width)) ** 2)
                added = added + np.float32(height) * shell * np.clip(0.8 + 0.5 * grain, 0, 2)
            return added.astype(np.float32)

        return density

    def _tube(self) -> bool:
        radius = max(between_log(self.settings.tube_radius_angstrom, self.rng) / self.voxel, 3.5)
        # the middle line bends over a few tens of radii
        path = molecules.worm_like_chain(self.membranes.shape, 1.0, self.rng.uniform(10, 60) * radius, self.rng)
        box = self._whole()
        distance = self._waves(phantom.tube(box, path, radius), radius)
        return self.membranes.add(box, distance, self._profile(), closed=True)

    def _sheets(self, count: int) -> bool:
        """Parallel membranes, flat or wavy."""
        rng = self.rng
        normal = rng.normal(size=3) * (0.5, 1.0, 1.0)  # what lies flat in the slices is hidden by the missing wedge
        box = self._whole()
        middle = phantom.sheet(box, self._centre(), normal)
        bend = rng.uniform(300, 1200) / self.voxel
        middle = phantom.undulate(middle, rng.uniform(0, 0.12) * bend, bend, rng)
        return self._stacked(box, middle, count)

    def _stacked(self, box: Box, middle: np.ndarray, count: int, closed: bool = False) -> bool:
        added = False
        gap = max(between(self.settings.gap_angstrom, self.rng) / self.voxel, self._least_gap())
        for number in range(count):
            added |= self.membranes.add(box, middle - np.float32(number * gap), self._profile(), closed=closed)
        return added

    def _least_gap(self) -> float:
        return 2 * self.membranes.half_room(self.bilayer) + 1.5

    def _sheet(self) -> bool:
        return self._sheets(1)

    def _stack(self) -> bool:
        return self._sheets(int(self.rng.integers(3, 8)))

    def _double(self) -> bool:
        """Two membranes one in the other, as around nuclei and in mitochondria, or a pair of sheets."""
        if self.rng.random() < 0.4:
            return self._sheets(2)
        radius = max(self._radius(), 8.0)
        centre = self._centre(0.3 * radius)
        box = phantom.box_around(centre, 1.3 * radius + 40, self.membranes.shape)
        if box is None:
            return False
        axes = radius * np.array([1.0, *self.rng.uniform(0.6, 1.0, size=2)])
        distance = phantom.ellipsoid(box, centre, axes, phantom.random_rotation(self.rng))
        return self._stacked(box, self._waves(distance, radius), 2, closed=True)

    def _network(self) -> bool:
        rng = self.rng
        wave = max(rng.uniform(500, 1600) / self.voxel, 14.0)
        distance = phantom.level_set(self.membranes.shape, wave, rng.uniform(-1.2, 1.2), rng)
        present = None
        if rng.random() < 0.6:  # in a part of the field of view only
            present = phantom.sheet(self._whole(), self._centre(), rng.normal(size=3)) < 0
        return self.membranes.add(self._whole(), distance, self._profile(), present=present)
