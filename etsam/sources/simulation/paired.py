"""The same simulated specimens under different conditions, of which one is varied at a time.

A specimen is drawn once on a fine grid, and brought to each voxel size from there; membranes of every thickness have
the same room and so the same places; what is drawn for an acquisition follows from the specimen's number. What differs
between two points of a curve is the varied condition alone, and the noise where images differ in size or number.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from etsam.data.manifest import Sample, write_manifest
from etsam.errors import ConfigError
from etsam.sources.simulation.files import claim, finished, plain_settings, sample, save
from etsam.sources.simulation.simulator import SimulatedTomogram, Simulator
from etsam.sources.simulation.specimen import Specimen, resample

FACTORS = ("snr", "max_tilt_degrees", "voxel_size_angstrom", "thickness_angstrom", "contrast")
"""Conditions that can be varied: the fields of `Conditions`."""

CONTRASTS = ("dark", "bright")
BASELINE = "baseline"
"""Name of the point where all curves meet."""

DATASET = "robustness"

Value = float | str


@dataclass(frozen=True)
class Conditions:
    """One point: how a specimen is seen.

    Attributes
    ----------
    snr
        Of the tilt images, at the voxel size of the tomogram (`AcquisitionSettings`).
    max_tilt_degrees
        The series runs from minus to plus this angle.
    voxel_size_angstrom
        Of the tomogram; the field of view stays.
    thickness_angstrom
        Of membranes, from leaflet to leaflet.
    contrast
        `dark` or `bright` membranes.

    Raises
    ------
    ConfigError
        If a value makes no sense.
    """

    snr: float
    max_tilt_degrees: float
    voxel_size_angstrom: float
    thickness_angstrom: float
    contrast: str

    def __post_init__(self) -> None:
        if self.contrast not in CONTRASTS:
            raise ConfigError(f"contrast={self.contrast} is unknown; allowed: {', '.join(CONTRASTS)}.")
        for name in FACTORS[:-1]:
            value, most = getattr(self, name), 90 if name == "max_tilt_degrees" else math.inf
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not 0 < value <= most:
                raise ConfigError(
                    f"{name}={value} does not fit; allowed: numbers above 0{' up to 90' if most == 90 else ''}."
                )


@dataclass(frozen=True)
class PairedSimulator:
    """Makes tomograms of the same specimens at every point of the curves.

    Attributes
    ----------
    simulator
        Everything that is not varied; its shape is that at the baseline's voxel size.
    baseline
        What the other conditions are while one is varied. It is a point of every curve.
    vary
        Factor -> values; factors that are not there, or without values, are not varied.
    tomograms
        Number of specimens.

    Raises
    ------
    ConfigError
        If a factor is unknown, a value makes no sense, or nothing is varied.
    """

    simulator: Simulator
    baseline: Conditions
    vary: Mapping[str, Sequence[Value]]
    tomograms: int = 3
    curves: dict[str, dict[Value, str]] = field(init=False)
    """Factor -> value -> name of the point, in the order in which they are shown."""
    points: dict[str, Conditions] = field(init=False)
    """Name -> conditions; the baseline is the first."""

    def __post_init__(self) -> None:
        if self.tomograms < 1:
            raise ConfigError(f"tomograms={self.tomograms} has to be at least 1.")
        curves, points = _plan(self.baseline, self.vary)
        object.__setattr__(self, "curves", curves)
        object.__setattr__(self, "points", points)
        smallest = min(self._shape(point) for point in points.values())
        if min(smallest) < 8:
            raise ConfigError(
                f"simulator.shape={list(self.simulator.shape)}, meant for {self.baseline.voxel_size_angstrom:g} Å, has "
                f"{list(smallest)} voxels at the coarsest voxel size; at least 8 are needed, so raise it."
            )

    @property
    def grid_angstrom(self) -> float:
        """Voxel size that specimens are drawn at: the finest of all points."""
        return min(point.voxel_size_angstrom for point in self.points.values())

    def settings(self, point: str) -> dict[str, Any]:
        """Settings that decide the tomograms of a point, plain values."""
        found = plain_settings(self.simulator_of(self.points[point]))
        return found | {"drawn_at_angstrom": self.grid_angstrom}

    def simulator_of(self, conditions: Conditions) -> Simulator:
        """The simulator with conditions in the place of its ranges."""
        room = max(point.thickness_angstrom for point in self.points.values())
        size, thickness = conditions.voxel_size_angstrom, conditions.thickness_angstrom
        snr, tilt = conditions.snr, conditions.max_tilt_degrees
        settings = self.simulator
        return replace(
            settings,
            shape=self._shape(conditions),
            voxel_size_angstrom=(size, size),
            bright_probability=float(conditions.contrast == "bright"),
            specimen=replace(settings.specimen, thickness_angstrom=(thickness, thickness), room_angstrom=room),
            acquisition=replace(settings.acquisition, snr=(snr, snr), max_tilt_degrees=(tilt, tilt)),
        )

    def specimen(self, conditions: Conditions, number: int) -> Specimen:
        """Specimen `number` on the grid it is drawn on; of the conditions only the thickness of membranes matters."""
        fine = replace(conditions, voxel_size_angstrom=self.grid_angstrom)
        return self.simulator_of(fine).draw(number)

    def tomogram(self, point: str, number: int, drawn: Specimen | None = None) -> SimulatedTomogram:
        """Specimen `number` as it is seen at a point; `drawn`: what `specimen` gives, if it is there already."""
        conditions = self.points[point]
        specimen = self.specimen(conditions, number) if drawn is None else drawn
        seen = resample(specimen, self._shape(conditions), conditions.voxel_size_angstrom)
        return self.simulator_of(conditions).image(seen, number)

    def _shape(self, conditions: Conditions) -> tuple[int, int, int]:
        """The baseline's field of view at a voxel size."""
        ratio = self.baseline.voxel_size_angstrom / conditions.voxel_size_angstrom
        z, y, x = (round(side * ratio) for side in self.simulator.shape)
        return z, y, x


def _plan(
    baseline: Conditions, vary: Mapping[str, Sequence[Value]]
) -> tuple[dict[str, dict[Value, str]], dict[str, Conditions]]:
    """Curves and points: each value of each factor, and the baseline in all."""
    unknown = set(vary) - set(FACTORS)
    if unknown or not any(vary.values()):
        raise ConfigError(
            f"vary names {', '.join(sorted(unknown)) or 'no value'}; allowed are lists for {', '.join(FACTORS)}."
        )
    curves: dict[str, dict[Value, str]] = {}
    points = {BASELINE: baseline}
    for factor in (name for name in FACTORS if vary.get(name)):
        values = vary[factor]
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigError(f"vary.{factor}={values} is no list; write 'vary.{factor}=[{values}]'.")
        usual = getattr(baseline, factor)
        seen = {value: replace(baseline, **{factor: value}) for value in [*values, usual]}  # checks them
        order = [name for name in CONTRASTS if name in seen] if factor == "contrast" else sorted(seen)
        names = {value: BASELINE if value == usual else _name(factor, value) for value in order}
        curves[factor] = names
        points |= {name: seen[value] for value, name in names.items() if name != BASELINE}
    return curves, points


def _name(factor: str, value: Value) -> str:
    return f"{factor}_{value}" if isinstance(value, str) else f"{factor}_{value:g}"


def simulate_paired(
    paired: PairedSimulator,
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make the tomograms of all points as files, with masks.

    Parameters
    ----------
    paired
        What to make.
    output_dir
        Made if need be.
    resume
        Keep tomograms that are complete.
    overwrite
        Replace files that exist.
    progress
        Called with (tomograms done, tomograms in all).

    Returns
    -------
    Path
        `manifest.csv`, with the columns `point` and `specimen`; all are in the split `test`.

    Raises
    ------
    OutputError
        If files exist (unless `resume` or `overwrite`), or cannot be written, or were made with other settings.
    """
    remedy = "set overwrite=true to replace it, resume=true to keep what is complete, or choose another output_dir"
    manifest = claim(output_dir, resume or overwrite, remedy)
    samples: list[Sample] = []
    for point, number, draw in _in_turn(paired):
        stem = output_dir / f"{point}_{number:04d}"
        settings = paired.settings(point)
        record = finished(stem, settings, resume, overwrite)
        if record is None:
            made = paired.tomogram(point, number, draw())
            record = save(made, stem, settings, resume or overwrite)
        samples.append(sample(DATASET, "test", stem, record, point=point, specimen=str(number)))
        if progress is not None:
            progress(len(samples), len(paired.points) * paired.tomograms)
    write_manifest(manifest, samples, overwrite=resume or overwrite)
    return manifest


def _in_turn(paired: PairedSimulator) -> Iterator[tuple[str, int, Callable[[], Specimen]]]:
    """Each point and number, with what draws the specimen, once for those of one thickness."""
    by_thickness: dict[float, list[str]] = {}
    for name, conditions in paired.points.items():
        by_thickness.setdefault(conditions.thickness_angstrom, []).append(name)
    for number in range(paired.tomograms):
        for names in by_thickness.values():
            drawn: list[Specimen] = []

            def draw(first: str = names[0], number: int = number, drawn: list[Specimen] = drawn) -> Specimen:
                if not drawn:
                    drawn.append(paired.specimen(paired.points[first], number))
                return drawn[0]

            for name in names:
                yield name, number, draw


def tomogram_name(point: str, number: int) -> str:
    """`dataset_id/run_id` of a tomogram."""
    return f"{DATASET}/{point}_{number:04d}"


def plain_conditions(paired: PairedSimulator) -> dict[str, Any]:
    """Baseline and curves, plain values."""
    curves = {
        factor: [{"value": value, "point": name} for value, name in points.items()]
        for factor, points in paired.curves.items()
    }
    return {"baseline": asdict(paired.baseline), "curves": curves, "tomograms": paired.tomograms}
