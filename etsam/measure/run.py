"""Masks on disk -> tables, meshes, labels, points, page and picture on disk."""

import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from etsam.errors import ConfigError, InputError, OutputError
from etsam.measure.deposition import write_sff
from etsam.measure.label_volume import label_volume
from etsam.measure.measure import TOO_SMALL, Measurement, MeasureSettings, Progress, measure, why_no_surface
from etsam.measure.mesh_files import FORMATS, check_formats, write_mesh, write_scene
from etsam.measure.page import page, png, sentence
from etsam.measure.picture import render
from etsam.measure.points import oriented_points, plain_table, relion4_table, relion5_table
from etsam.paths import make_folder
from etsam.postprocess.components import foreground
from etsam.prediction.record import environment, read_record, write_record
from etsam.prediction.star import StarTomogram
from etsam.threads import worker_count
from etsam.volume import Location, Volume, atomic_folder, atomic_path, locate, read_volume, strip_suffix, volume_writer
from etsam.volume.atomic import refuse_existing
from etsam.volume.location import absolute, display_name, exists, fingerprint_of

log = logging.getLogger(__name__)

COMBINED = "membranes_of_all.csv"
"""Table of all masks of one call, in the output folder."""

_MASK_NAME = re.compile(
    r"_etsam_predicted(_split_processing)?(_at_-?[\d.e+-]+)?(_post_processed)?_mask$|_(post_processed_mask|mask|membrane|seg)$"
)
_PLAIN_MASK = re.compile(r"_etsam_predicted(_post_processed)?_mask$")
_SIDES_ANGSTROM = (1.0, 100.0)
_SAME_SIDES = 0.01
_FULL_MASK = 0.5  # share of the volume: no membranes fill so much


@dataclass(frozen=True)
class OutputSettings:
    """Files that are written besides tables, labels, page and picture.

    Attributes
    ----------
    mesh_formats
        Of the mesh of each membrane, or `sff`: one file for deposition with all of them; none: no meshes.
    points_nm
        Spacing of oriented points; None: no points.
    points_offset_nm
        Along the normal, out of closed membranes if positive.
    unbinned_pixel_angstrom
        Of the tilt series, for RELION 4; None: that of the tomogram.
    tomogram_name
        In files of points; None: from the file's name.
    """

    mesh_formats: tuple[str, ...] = ("ply",)
    points_nm: float | None = None
    points_offset_nm: float = 0.0
    unbinned_pixel_angstrom: float | None = None
    tomogram_name: str | None = None

    def of_star(self, tomogram: StarTomogram) -> "OutputSettings":
        """These settings, with what a star file says of a tomogram where they say nothing."""
        return replace(
            self,
            tomogram_name=self.tomogram_name or tomogram.name,
            unbinned_pixel_angstrom=self.unbinned_pixel_angstrom or tomogram.pixel_angstrom,
        )

    def __post_init__(self) -> None:
        check_formats(self.mesh_formats)
        for flag, value in (("--points", self.points_nm), ("--unbinned-pixel-size", self.unbinned_pixel_angstrom)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{flag} {value} is none: allowed are numbers above 0.")


@dataclass(frozen=True)
class Names:
    """Outputs of one mask."""

    folder: Path
    stem: str

    def path(self, ending: str) -> Path:
        """File of that ending."""
        return self.folder / f"{self.stem}_{ending}"

    @property
    def record(self) -> Path:
        """JSON, written last; it says that all is complete."""
        return self.path("measure.json")

    @property
    def meshes(self) -> Path:
        """Folder."""
        return self.path("meshes")

    def files(self, output: OutputSettings) -> list[Path]:
        """All files that are written, the record last, without the folder of meshes."""
        endings = ["membrane_labels.mrc", "membranes.csv", "contacts.csv", "measure.html", "measure.png"]
        endings += ["membranes.glb", "membranes_values.glb"] if output.mesh_formats else []
        if output.points_nm is not None:
            endings += ["points.csv", "points_relion5.star", "points_relion4.star"]
        return [self.path(ending) for ending in endings] + [self.record]


@dataclass
class MeasureJob:
    """Measures of one mask, from file to files.

    Attributes
    ----------
    mask, tomogram
        Volumes; without a tomogram no thickness is measured.
    output_dir
        Made if need be.
    voxel_angstrom
        Side of a voxel; None: as the tomogram's header says, or the mask's.
    labels
        Whether the mask holds a number for each membrane.
    """

    mask: Location
    tomogram: Location | None
    output_dir: Path
    settings: MeasureSettings = field(default_factory=MeasureSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    voxel_angstrom: float | None = None
    labels: bool = False
    overwrite: bool = False
    resume: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        self.names = Names(self.output_dir, _MASK_NAME.sub("", strip_suffix(self.mask)))

    @property
    def _asked(self) -> dict[str, Any]:
        output = asdict(self.output) | {"mesh_formats": list(self.output.mesh_formats)}
        asked = {"measure": asdict(self.settings), "output": output, "labels": self.labels}
        return asked | {"voxel_angstrom": self.voxel_angstrom}

    @property
    def _inputs(self) -> dict[str, Any]:
        given = {"mask": self.mask, "tomogram": self.tomogram}
        return {name: fingerprint_of(path)["sha256"] for name, path in given.items() if path is not None}

    def check(self) -> bool:
        """Refuse to touch what is there, before anything is computed; False if `resume` finds it complete.

        Raises
        ------
        OutputError
            If outputs are there, or were made otherwise.
        """
        files = self.names.files(self.output)
        record = read_record(self.names.record) if self.resume else None
        if record is not None:
            if record["settings"] != self._asked or record.get("inputs") != self._inputs:
                raise OutputError(
                    f"{self.names.record}: was made with other settings or of other files; choose another "
                    "--output-dir, or --overwrite to make it anew."
                )
            if all(file.exists() for file in files) and self._has_meshes(record):
                return False
        for file in files:
            refuse_existing(file, self.overwrite or self.resume)
        if self.output.mesh_formats and self.names.meshes.exists() and not (self.overwrite or self.resume):
            raise OutputError(f"{self.names.meshes}: exists already; choose another --output-dir, or --overwrite.")
        return True

    def _has_meshes(self, record: dict[str, Any]) -> bool:
        """True if the meshes that a record tells of are there; of records of old, their folder."""
        names = record.get("meshes", [""]) if self.output.mesh_formats else []
        return all((self.names.meshes / name).exists() for name in names)

    def run(self, progress: Progress | None = None) -> str:
        """Measure and write everything; gives the measurement in a sentence.

        Raises
        ------
        InputError
            If the mask or the tomogram cannot be used.
        OutputError
            If an output cannot be written; none of this mask's is left then.
        """
        with read_volume(self.mask, warn=False) as volume:
            tomogram = None if self.tomogram is None else read_volume(self.tomogram)
            try:
                return self._run(volume, tomogram, progress)
            finally:
                if tomogram is not None:
                    tomogram.close()

    def _run(self, volume: Volume, tomogram: Volume | None, progress: Progress | None) -> str:
        if tomogram is not None and tomogram.shape != volume.shape:
            raise InputError(
                f"{self.mask}: has the shape {_sides(volume.shape)}, and {self.tomogram} has {_sides(tomogram.shape)} "
                "(Z x Y x X); give the tomogram that the mask was made of."
            )
        side, like, warnings = self._voxel_side(volume, tomogram)
        mask = _read_labels(volume, self.mask) if self.labels else read_mask(volume, self.mask)
        try:
            found = measure(
                mask, side / 10, tomogram, self.settings, labels=self.labels, workers=self.workers, progress=progress
            )
        except InputError as error:
            raise InputError(f"{self.mask}: {error}") from error
        if not found.numbers:
            gone = "; ".join(found.left_out) or why_no_surface(mask)
            hint = "; --min-area-nm2 keeps smaller ones" if TOO_SMALL in gone else ""
            raise InputError(f"{self.mask}: no membrane is left to measure: {gone}{hint}.")
        if self.labels and mask[mask > 0].min() == mask.max():
            warnings.append(
                "All of it has one number, so it was taken as one membrane; for a plain mask leave out --instances."
            )
        if tomogram is None:
            warnings.append("No tomogram was given (--tomogram), so no thickness was measured.")
        if self.output.points_nm is not None and self.output.unbinned_pixel_angstrom is None:
            warnings.append(
                f"The points for RELION 4 are counted in pixels of {side:g} Å, which is wrong for a binned tomogram: "
                "give --unbinned-pixel-size, or RELION's tomograms.star as --tomogram."
            )
        made: list[Path] = []
        try:
            self._write(found, mask, like, side, warnings, made)
        except BaseException:
            for file in made:
                with suppress(OSError):
                    file.unlink()
            raise
        for line in warnings:
            log.warning("%s: %s", self.names.stem, line)
        return sentence(found)

    def _voxel_side(self, volume: Volume, tomogram: Volume | None) -> tuple[float, Volume, list[str]]:
        """Side of a voxel in Å, the volume whose place all outputs get, and what has to be told about it."""
        if self.voxel_angstrom is not None:
            if not _SIDES_ANGSTROM[0] <= self.voxel_angstrom <= _SIDES_ANGSTROM[1]:
                raise ConfigError(f"--voxel-size {self.voxel_angstrom:g} is not between 1 and 100 Å.")
            like = volume if tomogram is None else tomogram
            return self.voxel_angstrom, like.at_voxel_size(self.voxel_angstrom), []
        of_mask = _believable_side(volume, self.mask)
        of_tomogram = None if tomogram is None else _believable_side(tomogram, self.tomogram)
        if of_mask and of_tomogram and abs(of_mask - of_tomogram) > _SAME_SIDES * of_tomogram:
            sides = f"voxels of {of_mask:.4g} Å by its header, and {self.tomogram} of {of_tomogram:.4g} Å"
            if _was_told(self.mask):
                return of_mask, volume, [f"The mask has {sides}; the mask's were taken, which its prediction was told."]
            raise InputError(f"{self.mask}: has {sides}; say which is right with --voxel-size.")
        if tomogram is not None and of_tomogram is not None:
            return of_tomogram, tomogram, []
        if of_mask is not None:
            return of_mask, volume, []
        raise InputError(
            f"{self.tomogram or self.mask}: the header has no believable voxel size; give --voxel-size in Å, such as "
            "10."
        )

    def _write(
        self, found: Measurement, mask: np.ndarray, like: Volume, side: float, warnings: list[str], made: list[Path]
    ) -> None:
        names, replace = self.names, self.overwrite or self.resume
        origin = like.first_voxel_angstrom
        if replace:
            names.record.unlink(missing_ok=True)

        def write(ending: str, content: str | bytes) -> None:
            path = names.path(ending)
            with atomic_path(path, replace) as part:
                part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            made.append(path)

        labels = mask if self.labels and found.numbers else None
        plain = (mask > 0).astype(np.uint8) if self.labels else mask
        volume = label_volume(plain, found.membranes, workers=worker_count(self.workers))
        kept = np.zeros(found.membranes.count + 1, np.uint16)
        kept[list(found.numbers)] = found.numbers
        of_label = None if labels is None else _of_labels(labels, found)
        with volume_writer(names.path("membrane_labels.mrc"), like.shape, np.uint16, like, replace) as writer:
            for z in range(like.shape[0]):
                writer[z] = kept[volume[z]] if of_label is None or labels is None else kept[of_label[labels[z]]]
        made.append(names.path("membrane_labels.mrc"))
        write("membranes.csv", found.table.to_csv(index=False, float_format="%.6g"))
        write("contacts.csv", found.contacts.to_csv(index=False, float_format="%.6g"))
        if self.output.points_nm is not None:
            self._write_points(found, like, side, warnings, write)
        known = any(np.isfinite(thickness.local_nm).any() for thickness in found.thickness)
        coloured_by = "thickness_nm" if known else "mean_curvature_per_nm"
        if self.output.mesh_formats:
            self._write_meshes(found, coloured_by, side, like.shape, origin, replace)
            made += [names.path("membranes.glb"), names.path("membranes_values.glb")]
        picture = render(found.meshes, found.numbers, like.shape)
        write("measure.png", png(picture))
        write("measure.html", page(f"Membranes of {names.stem}", found, picture, self._facts(side), warnings))
        record = {
            "settings": self._asked,
            "mask": absolute(self.mask),
            "tomogram": None if self.tomogram is None else absolute(self.tomogram),
            "inputs": self._inputs,
            "outputs": [file.name for file in names.files(self.output)],
            "meshes": sorted(file.name for file in names.meshes.iterdir()) if self.output.mesh_formats else [],
            "voxel_angstrom": side,
            "origin_angstrom_zyx": list(origin),
            "membranes": len(found.numbers),
            "coloured_by": coloured_by,
            "left_out": list(found.left_out),
            "environment": environment(),
        }
        write_record(names.record, record, replace)

    def _write_points(
        self,
        found: Measurement,
        like: Volume,
        side: float,
        warnings: list[str],
        write: Callable[[str, str | bytes], None],
    ) -> None:
        import starfile

        output = self.output
        assert output.points_nm is not None
        spread = oriented_points(
            found.meshes, found.numbers, output.points_nm * 10 / side, output.points_offset_nm * 10 / side
        )
        points = spread.within(like.shape)
        outside = len(spread.positions) - len(points.positions)
        if outside:
            warnings.append(f"{outside} of {len(spread.positions)} points lie outside the tomogram and were left out.")
        name = output.tomogram_name or (self.names.stem if self.tomogram is None else strip_suffix(self.tomogram))
        write(
            "points.csv", plain_table(points, side, like.first_voxel_angstrom).to_csv(index=False, float_format="%.6f")
        )
        tables = {
            "points_relion5.star": relion5_table(points, name, side, like.shape),
            "points_relion4.star": relion4_table(points, name, side, output.unbinned_pixel_angstrom or side),
        }
        for ending, table in tables.items():
            write(ending, starfile.to_string({"particles": table}, float_format="%.4f"))

    def _write_meshes(
        self,
        found: Measurement,
        coloured_by: str,
        side: float,
        shape: tuple[int, int, int],
        origin: tuple[float, float, float],
        replace: bool,
    ) -> None:
        def ours(folder: Path) -> bool:
            return all(re.fullmatch(r".*membrane(s|_\d+)\.\w+", entry.name) for entry in folder.iterdir())

        values = []
        for index, mesh in enumerate(found.meshes):
            own = {name: value for name, value in vars(found.values[index]).items() if name != "area_nm2"}
            own["joined"] = mesh.joined
            if found.thickness:
                own["thickness_nm"] = found.thickness[index].local_nm
            values.append(own)
        numbered = dict(zip(found.numbers, found.meshes, strict=True))
        with atomic_folder(self.names.meshes, replace, replaceable=ours) as part:
            for (number, mesh), own in zip(numbered.items(), values, strict=True):
                for kind in set(self.output.mesh_formats) & set(FORMATS):
                    path = part / f"{self.names.stem}_membrane_{number:03d}.{kind}"
                    write_mesh(path, kind, mesh, own, coloured_by, side, origin)
            if "sff" in self.output.mesh_formats:
                file, version = part / f"{self.names.stem}_membranes.hff", str(environment()["etsam"])
                write_sff(file, self.names.stem, found.meshes, found.numbers, shape, side, origin, version)
        for ending, by in (("membranes.glb", None), ("membranes_values.glb", coloured_by)):
            with atomic_path(self.names.path(ending), replace) as scene:
                write_scene(scene, numbered, values, by, side, origin)

    def _facts(self, side: float) -> dict[str, str]:
        facts = {"Mask": str(self.mask), "Tomogram": str(self.tomogram or "none"), "Voxel size": f"{side:g} Å"}
        facts |= {name: str(value) for name, value in asdict(self.settings).items() if value is not None}
        return facts | {"etsam": str(environment()["etsam"])}


def _of_labels(labels: np.ndarray, found: Measurement) -> np.ndarray:
    """Number of the membrane of each given label."""
    table = np.zeros(int(labels.max()) + 1, np.int64)
    surface = found.membranes.surface
    own = labels.ravel()[surface.voxels]
    table[own] = found.membranes.numbers
    return table


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)


def _believable_side(volume: Volume, name: Location | None) -> float | None:
    """Side of a voxel by the header, Å; None if there is none, or 1 Å exactly, which often means unknown."""
    sides = volume.voxel_size_angstrom
    if sides is None:
        return None
    if max(sides) > (1 + _SAME_SIDES) * min(sides):
        shown = " x ".join(f"{side:g}" for side in sides)
        raise InputError(f"{name}: voxels of {shown} Å (Z x Y x X) are not cubes; resample it.")
    return float(np.mean(sides)) if _SIDES_ANGSTROM[0] < min(sides) <= _SIDES_ANGSTROM[1] else None


def _was_told(mask: Location) -> bool:
    """True if the record of a predicted mask says that its voxel size was set in that run, against the header."""
    if not isinstance(mask, Path):
        return False
    name = strip_suffix(mask).removesuffix("_mask").removesuffix("_post_processed")
    record = read_record(mask.with_name(f"{name}_record.json"))
    return record is not None and "voxel_size" in record["settings"]


def read_mask(volume: Volume, name: Location) -> np.ndarray:
    """Mask (Z, Y, X) uint8 of 0 and 1.

    Raises
    ------
    InputError
        If it is empty, fills the volume, or holds more than two values.
    """
    mask = np.zeros(volume.shape, np.uint8)
    value: float | None = None
    for z in range(volume.shape[0]):
        plane = volume[z]
        try:
            mask[z] = foreground(plane[None], 0)
        except InputError as error:
            raise InputError(f"{name}: is no mask (a tomogram, or logits?): {error}") from error
        if mask[z].any():
            own = plane[mask[z] > 0]
            low, high = float(own.min()), float(own.max())
            value = low if value is None else value
            if low != value or high != value:
                raise InputError(
                    f"{name}: holds the values {min(low, value):g} and {max(high, value):g}; a mask has 0 and one "
                    "other. If they are the numbers of membranes, add --instances."
                )
    share = float(np.count_nonzero(mask)) / mask.size
    if not share:
        raise InputError(f"{name}: the mask is empty, there is no membrane to measure; is it the right file?")
    if share > _FULL_MASK:
        raise InputError(
            f"{name}: {100 * share:.0f} % of the volume is mask, which are no membranes; is it inverted, or filled?"
        )
    return mask


def _read_labels(volume: Volume, name: Location) -> np.ndarray:
    labels = np.zeros(volume.shape, np.uint16)
    for z in range(volume.shape[0]):
        plane = volume[z]
        if plane.min() < 0 or plane.max() > np.iinfo(np.uint16).max or (plane != np.rint(plane)).any():
            raise InputError(f"{name}: --instances needs whole numbers from 0 to 65535, a number for each membrane.")
        labels[z] = plane
    if not labels.any():
        raise InputError(f"{name}: the mask is empty, there is no membrane to measure; is it the right file?")
    return labels


def find_masks(given: Sequence[str | os.PathLike[str]]) -> list[Location]:
    """Masks that files and folders name; of a folder, the predicted mask of each tomogram.

    Of several of a tomogram that is the one of the run's own threshold and tiles, post-processed if there is such; a
    warning names it where there are masks of others.

    Raises
    ------
    InputError
        If something is missing, or a folder holds no predicted mask.
    """
    found: list[Location] = []
    for item in given:
        path = locate(item)
        if isinstance(path, Path) and path.is_dir() and path.suffix != ".zarr":
            masks: dict[str, list[Path]] = {}
            for entry in sorted(path.iterdir()):
                name = strip_suffix(entry)
                if "_etsam_predicted" in name and name.endswith("_mask"):
                    masks.setdefault(_MASK_NAME.sub("", name), []).append(entry)
            if not masks:
                raise InputError(f"{path}: holds no predicted mask (NAME_etsam_predicted_mask.mrc); name the files.")
            found += [_chosen(files) for files in masks.values()]
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def _chosen(masks: Sequence[Path]) -> Path:
    """The mask of a tomogram to measure, of all that there are."""

    def is_cleaned(mask: Path) -> bool:
        return "_post_processed_" in mask.name

    plain = [mask for mask in masks if _PLAIN_MASK.search(strip_suffix(mask))]
    chosen = sorted(plain or masks, key=lambda mask: not is_cleaned(mask))[0]
    others = [mask.name for mask in masks if mask not in (plain or [chosen])]
    if others:
        log.warning("%s is measured, and not %s; name the file to measure another", chosen.name, ", ".join(others))
    return chosen


def tomogram_of(mask: Location, tomograms: Sequence[Location], *, alone: bool = True) -> Location | None:
    """Tomogram of the same name as the mask, or the only one of the only mask; None if none was given.

    Parameters
    ----------
    mask, tomograms
        The mask, and all tomograms that were given.
    alone
        Whether it is the only mask.

    Raises
    ------
    InputError
        If none has the name, and there are several of either.
    """
    if not tomograms:
        return None
    stem = _MASK_NAME.sub("", strip_suffix(mask))
    named = [path for path in tomograms if strip_suffix(path) == stem]
    if named:
        return named[0]
    if len(tomograms) == 1 and alone:
        return tomograms[0]
    given = f"none of the {len(tomograms)} tomograms" if len(tomograms) > 1 else f"{tomograms[0]}, the tomogram"
    raise InputError(
        f"{mask}: {given} of --tomogram is{' not' * (len(tomograms) == 1)} called {stem}; name it alike, or measure "
        "this mask by itself."
    )


def run_jobs(jobs: Sequence[MeasureJob], progress: Callable[[str], Any] | None = None) -> list[str]:
    """Measure masks one after another; what fails does not stop the others.

    Parameters
    ----------
    jobs
        All into one folder.
    progress
        Gives the context of a progress bar for a name.

    Returns
    -------
    list
        A sentence for each that was measured.

    Raises
    ------
    EtsamError
        Of the only mask; of several, at the end, those that failed.
    """
    stems: dict[str, Location] = {}
    for job in jobs:
        other = stems.setdefault(job.names.stem, job.mask)
        if other != job.mask:
            raise InputError(f"{other} and {job.mask} would both write {job.names.stem}_*; use two --output-dir.")
        for path in (job.mask, job.tomogram):
            if path is not None and not exists(path):
                read_volume(path)  # says what is wrong
    folder = jobs[0].output_dir
    make_folder(folder)
    combined = folder / COMBINED
    if len(jobs) > 1:
        refuse_existing(combined, jobs[0].overwrite or jobs[0].resume)
    todo = [job.check() for job in jobs]
    lines, failed = [], []
    for job, needed in zip(jobs, todo, strict=True):
        if not needed:
            log.info("%s: complete, skipped", display_name(job.mask))
            continue
        try:
            if progress is None:
                text = job.run()
            else:
                with progress(display_name(job.mask)) as bar:
                    text = job.run(bar)
        except (InputError, OutputError) as error:
            if len(jobs) == 1:
                raise
            failed.append(str(error))
            log.error("%s", error)
            continue
        lines.append(f"{display_name(job.mask)}: {text}")
    if len(jobs) > 1:
        _combine(jobs, combined)
    if failed:
        raise InputError.of(f"{len(failed)} of {len(jobs)} masks could not be measured", failed)
    return lines


def _combine(jobs: Sequence[MeasureJob], path: Path) -> None:
    """One table of all masks, with the name of each in the first column."""
    tables = []
    for job in jobs:
        file = job.names.path("membranes.csv")
        if job.names.record.exists() and file.exists():
            table = pd.read_csv(file)
            table.insert(0, "tomogram", job.names.stem)
            tables.append(table)
    if tables:
        with atomic_path(path, jobs[0].overwrite or jobs[0].resume) as part:
            pd.concat(tables, ignore_index=True).to_csv(part, index=False)
