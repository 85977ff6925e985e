"""Scripts for UCSF ChimeraX: a tomogram with its mask, or its measured membranes; or those of a folder side by side.

Checked against the documentation of ChimeraX 1 (`open`, `volume`, `tile`, `key`, `lighting`, `graphics`, `view`, and
`##name=` of its target specification) and against its reader of GLB, which takes colours of vertices as they are (it
reads no PLY); the program itself was not at hand. Models are named, because numbers may be taken where other models are
open. File names count from the folder of the script, which ChimeraX makes the current one meanwhile.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etsam.pictures import MEMBRANE
from etsam.prediction.record import OutputNames
from etsam.volume import Location, Url, Volume, atomic_path, read_volume
from etsam.volume.location import is_plain_mrc

if TYPE_CHECKING:
    from etsam.prediction.result import Prediction
    from etsam.prediction.samples import Samples

FOLDER_SCRIPT = "all_masks.cxc"
MEMBRANES_FOLDER_SCRIPT = "all_membranes.cxc"
_MARK = "# etsam: "
_CLIP_PERCENT = (1.0, 99.0)
_SAME = 1e-4  # of a voxel's side: what headers lose in 32 bits is less
_FULL_VOXELS = 100_000_000  # above it surfaces are drawn from every second voxel: memory of graphics cards
_LOOK = ["lighting soft", "graphics silhouettes true", "view"]


def _opened(file: Location, name: str, folder: Path, kind: str = "mrc") -> list[str]:
    """Open a file; a comment for what ChimeraX does not read: compressed files, OME-Zarr, addresses."""
    path = str(file) if isinstance(file, Url) else os.path.relpath(os.path.abspath(file), os.path.abspath(folder))
    if kind == "mrc" and not is_plain_mrc(file):
        return [f"# ChimeraX does not open {path}; unpack it, or write MRC (output_format=mrc)"]
    quote = "'" if '"' in path else '"'
    return [f"open {quote}{path.replace(os.sep, '/')}{quote} format {kind} name {name}"]


def _name(stem: str, kind: str) -> str:
    return re.sub(r"\W", "_", f"{stem}_{kind}")


def surface_commands(mask: Path, stem: str, voxels: int, folder: Path) -> list[str]:
    """Open a mask as a smooth surface in the blue of all pictures.

    Parameters
    ----------
    mask
        The file.
    stem
        Of the tomogram, from which its name in ChimeraX is made.
    voxels
        Of the mask; a large one is drawn from every second.
    folder
        Of the script.
    """
    name = _name(stem, "membranes")
    lines = _opened(mask, name, folder)
    if lines[0].startswith("open"):
        step = 1 if voxels <= _FULL_VOXELS else 2
        lines.append(f"volume ##name={name} style surface level 0.5 color {MEMBRANE} step {step}")
        lines.append(f"volume ##name={name} surfaceSmoothing true smoothingIterations 5 smoothingFactor 0.3")
    return lines


@dataclass(frozen=True)
class Place:
    """Place of a volume.

    Attributes
    ----------
    voxel_angstrom
        (z, y, x), sides of a voxel; None: unknown.
    origin_angstrom
        (z, y, x) of the first voxel.
    """

    voxel_angstrom: tuple[float, ...] | None
    origin_angstrom: tuple[float, ...]

    @classmethod
    def of(cls, volume: Volume) -> "Place":
        """Place of a volume, with the voxel size that it was given, if it was."""
        return cls(volume.voxel_size_angstrom, volume.first_voxel_angstrom)


def _placed(volume: Volume, name: str, place: Place) -> list[str]:
    """Commands for a volume whose file says another place than the one it is to have; none where it says the same.

    ChimeraX takes voxels of unknown size to have 1 Å. Its `voxelSize` moves the origin along, which stays at its voxel.
    """
    if place.voxel_angstrom is None:
        return []
    said, wanted = _said(volume), np.asarray(place.voxel_angstrom)
    lines = []
    if not np.allclose(said, wanted, rtol=_SAME, atol=0):
        lines.append(f"volume ##name={name} voxelSize {_xyz(wanted)}")
    at = (
        np.asarray(volume.origin_angstrom if any(volume.origin_angstrom) else np.multiply(volume.start, said))
        * wanted
        / said
    )
    origin = np.asarray(place.origin_angstrom)
    if not np.allclose(at, origin, rtol=0, atol=_SAME * wanted.min()):
        lines.append(f"volume ##name={name} origin {_xyz(origin)}")
    return lines


def _said(volume: Volume) -> np.ndarray:
    said = volume.voxel_size_angstrom if volume.header is None else volume.header.voxel_size_angstrom
    return np.array(said or (1.0, 1.0, 1.0))


def _xyz(values: np.ndarray) -> str:
    return ",".join(f"{value:.7g}" for value in values[::-1])


def tomogram_commands(
    tomogram: Volume, stem: str, levels: tuple[float, float] | None, folder: Path, place: Place | None = None
) -> list[str]:
    """Open a tomogram as three grey planes through its middle.

    Parameters
    ----------
    tomogram
        Opened from a file.
    stem, folder
        As of `surface_commands`.
    levels
        Grey values shown black and white; None: as ChimeraX chooses.
    place
        Where what lies over it takes it to be; None: as of the volume, which may have another voxel size than its file.
    """
    assert tomogram.path is not None
    name, (depth, height, width) = _name(stem, "tomogram"), tomogram.shape
    lines = _opened(tomogram.path, name, folder)
    if lines[0].startswith("open"):
        lines += _placed(tomogram, name, place or Place.of(tomogram))
        contrast = "" if levels is None else f" level {levels[0]:.6g},0 level {levels[1]:.6g},1 color white"
        lines.append(f"volume ##name={name} style image{contrast}")
        lines.append(
            f"volume ##name={name} step 1 orthoplanes xyz positionPlanes {width // 2},{height // 2},{depth // 2}"
        )
    return lines


def _script(what: str, lines: Iterable[str]) -> str:
    return "\n".join([f"{_MARK}{what}; open it in ChimeraX (File > Open), or type: chimerax FILE", *lines, *_LOOK, ""])


@dataclass(frozen=True)
class ChimeraXScript:
    """`NAME_etsam_predicted.cxc` beside a mask.

    Parameters
    ----------
    enabled
        Whether it is written.
    """

    enabled: bool = True

    def path(self, names: OutputNames) -> Path:
        """Place of the script of a tomogram."""
        return names.view(".cxc")

    def begin(self, prediction: "Prediction", names: OutputNames, post_processed: bool) -> "ScriptInMaking":
        """Script of one prediction."""
        mask = names.post_processed_mask if post_processed else names.mask
        return ScriptInMaking(self.path(names), names.stem, mask, prediction.volume, prediction.samples)


@dataclass(frozen=True)
class ScriptInMaking:
    """A script, which needs nothing of the slices that pass by."""

    target: Path
    stem: str
    mask: Path
    tomogram: Volume
    samples: "Samples | None"

    def add_logits(self, z: int, plane: np.ndarray) -> None:
        """Take nothing."""

    def add_uncertainty(self, z: int, plane: np.ndarray) -> None:
        """Take nothing."""

    def add_mask(self, z: int, plane: np.ndarray) -> None:
        """Take nothing."""

    def write(self, record: dict[str, Any], overwrite: bool) -> None:
        """Write the script, whole or not at all; raises `OutputError` if that cannot be."""
        folder = self.target.parent
        levels = None if self.samples is None else self.samples.levels(*_CLIP_PERCENT)
        lines = tomogram_commands(self.tomogram, self.stem, levels, folder)
        lines += surface_commands(self.mask, self.stem, int(np.prod(self.tomogram.shape)), folder)
        with atomic_path(self.target, overwrite) as part:
            part.write_text(_script("a tomogram and its membranes", lines), encoding="utf-8")


def write_membranes_script(
    path: Path,
    scene: Path,
    tomogram: Location | None,
    stem: str,
    key: Sequence[tuple[str, str]],
    place: Place | None = None,
) -> None:
    """Write a script that opens measured membranes in their colours over their tomogram, anew.

    Parameters
    ----------
    path
        Where it goes.
    scene
        GLB with a colour for each vertex.
    tomogram
        Opened as grey planes; None: the membranes alone.
    stem
        Of the tomogram, from which names in ChimeraX are made.
    key
        Colours and what they stand for.
    place
        That the membranes were measured with; None: as the tomogram's file says.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    lines = []
    if tomogram is not None:
        with read_volume(tomogram, warn=False) as volume:
            middle = np.asarray(volume[volume.shape[0] // 2], np.float32)
            values = middle[np.isfinite(middle)]
            low, high = np.percentile(values, _CLIP_PERCENT) if values.size else (0.0, 0.0)
            levels = (float(low), float(high)) if high > low else None
            lines = tomogram_commands(volume, stem, levels, path.parent, place)
    lines += _opened(scene, _name(stem, "membranes"), path.parent, "gltf") + _key(key)
    with atomic_path(path, overwrite=True) as part:
        part.write_text(_script("a tomogram and its measured membranes", lines), encoding="utf-8")


def _key(key: Sequence[tuple[str, str]]) -> list[str]:
    if not key:
        return []
    return ["key " + " ".join(f'"{colour}:{label}"' for colour, label in key) + " size 0.25,0.03 pos 0.05,0.06"]


def write_membranes_folder_script(folder: Path, scenes: Mapping[str, Path], key: Sequence[tuple[str, str]]) -> Path:
    """Write a script that opens the measured membranes of several tomograms side by side, anew; gives its path.

    Parameters
    ----------
    folder
        Where it goes, under the name `MEMBRANES_FOLDER_SCRIPT`.
    scenes
        Name of a tomogram -> its GLB.
    key
        Colours and what they stand for; none: no key.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = folder / MEMBRANES_FOLDER_SCRIPT
    lines = [line for stem, file in scenes.items() for line in _opened(file, _name(stem, "membranes"), folder, "gltf")]
    lines += [_tile(scenes), *_key(key)]
    with atomic_path(path, overwrite=True) as part:
        part.write_text(_script("the measured membranes of all tomograms of this folder", lines), encoding="utf-8")
    return path


def _tile(stems: Iterable[str]) -> str:
    return "tile " + " | ".join(f"##name={_name(stem, 'membranes')}" for stem in stems)  # none but these


def write_folder_script(folder: Path, masks: Mapping[str, tuple[Path, int]]) -> Path | None:
    """Write a script that opens the masks of a folder side by side, anew; None if a file of that name is another's.

    Parameters
    ----------
    folder
        Where it goes, under the name `FOLDER_SCRIPT`.
    masks
        Name of a tomogram -> its mask and the number of its voxels.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = folder / FOLDER_SCRIPT
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        return None
    lines = [line for stem, (mask, voxels) in masks.items() for line in surface_commands(mask, stem, voxels, folder)]
    lines.append(_tile(masks))
    with atomic_path(path, overwrite=True) as part:
        part.write_text(_script("the membranes of all tomograms of this folder", lines), encoding="utf-8")
    return path
