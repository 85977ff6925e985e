"""Ranges that a simulated specimen is drawn from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from etsam.errors import ConfigError

Range = tuple[float, float]
Shape = tuple[int, int, int]

KINDS = ("vesicle", "tube", "sheet", "double", "stack", "network")


def between(bounds: Range, rng: np.random.Generator) -> float:
    """Draw from a range, uniformly."""
    return float(rng.uniform(bounds[0], bounds[1]))


def between_log(bounds: Range, rng: np.random.Generator) -> float:
    """Draw from a range of positive numbers, uniformly in the logarithm."""
    drawn = np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1])))
    return float(np.clip(drawn, bounds[0], bounds[1]))  # rounding


def check_weights(key: str, weights: Mapping[str, float], allowed: tuple[str, ...]) -> None:
    """Raise `ConfigError` if these are no relative frequencies of the allowed names, 0 or above, one above 0."""
    if not isinstance(weights, Mapping):  # braces that a shell took away
        raise ConfigError(f"{key}={weights} is no list of weights such as '{key}={{{allowed[0]}:1}}'; mind the quotes.")
    unknown = set(weights) - set(allowed)
    if unknown or not any(weight > 0 for weight in weights.values()) or any(weight < 0 for weight in weights.values()):
        raise ConfigError(
            f"{key} has {', '.join(map(str, weights)) or 'nothing'}; allowed are weights for {', '.join(allowed)}, "
            "at least one above 0, none below."
        )


@dataclass(frozen=True)
class SpecimenSettings:
    """Ranges that a specimen is drawn from; probabilities are of a tomogram, unless they say otherwise.

    Attributes
    ----------
    membranes
        How many are tried.
    kinds
        Relative frequency of each of `KINDS`: closed vesicles, tubes, sheets, double membranes, stacks, networks.
    radius_angstrom
        Of vesicles, the largest semi-axis.
    tube_radius_angstrom
        To the middle of a tube's membrane. Tubes of the endoplasmic reticulum are 380 Å wide in yeast (West et al.
        2011), wider elsewhere; from tubes of 112 Å, a microtubule's radius, a network would learn to mark microtubules.
    thickness_angstrom, leaflet_sigma_angstrom, contrast, core
        Of the bilayer (`Bilayer`).
    room_angstrom
        Thickness that every membrane is given room for; None: its own. The same room leaves membranes in their places
        when their thickness is another.
    gap_angstrom
        Between the middles of apposed membranes.
    undulation
        Amplitude as a fraction of the radius.
    open_probability, filled_probability, coat_probability
        Of a vesicle.
    membrane_proteins_per_1000_voxels
        Of membrane.
    species
        Kinds of cytosolic particles.
    particle_radius_angstrom
        Of each kind.
    crowding
        Share of the volume that particles are asked to fill.
    protein_density
        Against the head groups of membranes.
    actin, microtubules
        Number of filaments, in tomograms that have them.
    filament_probability, gold_probability, carbon_probability, ice_probability, empty_probability
        `empty`: no membrane at all.
    gold_beads, gold_radius_angstrom
        Number and size.
    filled_depth
        Share of the depth that holds anything.
    """

    membranes: tuple[int, int] = (3, 14)
    kinds: Mapping[str, float] = field(
        default_factory=lambda: {"vesicle": 5, "tube": 1, "sheet": 1, "double": 1.5, "stack": 0.5, "network": 0.5}
    )
    radius_angstrom: Range = (150.0, 1100.0)
    tube_radius_angstrom: Range = (160.0, 450.0)
    thickness_angstrom: Range = (25.0, 42.0)
    room_angstrom: float | None = None
    leaflet_sigma_angstrom: Range = (3.0, 9.0)
    contrast: Range = (0.5, 1.2)
    core: Range = (0.0, 0.4)
    gap_angstrom: Range = (80.0, 260.0)
    undulation: Range = (0.0, 0.12)
    open_probability: float = 0.1
    filled_probability: float = 0.35
    coat_probability: float = 0.2
    membrane_proteins_per_1000_voxels: Range = (0.0, 6.0)
    species: tuple[int, int] = (1, 7)
    particle_radius_angstrom: Range = (30.0, 140.0)
    crowding: Range = (0.0, 0.12)
    protein_density: Range = (0.4, 1.1)
    actin: tuple[int, int] = (1, 12)
    microtubules: tuple[int, int] = (1, 5)
    filament_probability: float = 0.35
    gold_probability: float = 0.35
    gold_beads: tuple[int, int] = (1, 12)
    gold_radius_angstrom: Range = (25.0, 80.0)
    carbon_probability: float = 0.1
    ice_probability: float = 0.2
    empty_probability: float = 0.05
    filled_depth: Range = (0.6, 1.0)

    def __post_init__(self) -> None:
        check_weights("specimen.kinds", self.kinds, KINDS)
