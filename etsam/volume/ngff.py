"""OME-NGFF metadata (https://ngff.openmicroscopy.org) of a multiscale image, read (0.4, 0.5) and written (0.4).

Plain dictionaries in and out; nothing here needs the zarr package.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etsam._version import __version__
from etsam.errors import InputError
from etsam.volume.mrc_header import VOXEL_SIZES_ANGSTROM

Triple = tuple[float, float, float]

ANGSTROM_PER_UNIT = {
    # UDUNITS-2 names, which OME-NGFF recommends
    "angstrom": 1.0,
    "picometer": 1e-2,
    "nanometer": 10.0,
    "micrometer": 1e4,
    "millimeter": 1e7,
    "meter": 1e10,
    # what people write as well
    "ångström": 1.0,
    "angstroms": 1.0,
    "å": 1.0,
    "pm": 1e-2,
    "nm": 10.0,
    "nanometers": 10.0,
    "um": 1e4,
    "\u00b5m": 1e4,  # micro sign
    "\u03bcm": 1e4,  # Greek mu
    "micron": 1e4,
    "mm": 1e7,
    "m": 1e10,
}
"""Length of units of space in Å, by name in lower case. `A` is not among them: it is the ampere."""

_LEADING: tuple[list[str], ...] = (["t", "c"], ["t"], ["c"], [])  # of length 1, before z, y, x


@dataclass(frozen=True)
class Level:
    """One scale level of an image.

    Attributes
    ----------
    path
        Of its array, relative to the group.
    leading
        Number of axes (time, channel) before z, y, x.
    voxel_size_angstrom
        (z, y, x); None if unknown.
    origin_angstrom
        (z, y, x), the centre of the first voxel; 0 if the voxel size is unknown.
    remarks
        What is odd, for the log.
    """

    path: str
    leading: int
    voxel_size_angstrom: Triple | None
    origin_angstrom: Triple
    remarks: tuple[str, ...]


def multiscale_of(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find the first image of a group's attributes, in version 0.4 or, under `ome`, 0.5; None without one."""
    ome = attributes.get("ome")
    multiscales = (ome if isinstance(ome, Mapping) else attributes).get("multiscales")
    if not isinstance(multiscales, Sequence) or not multiscales or not isinstance(multiscales[0], Mapping):
        return None
    return multiscales[0]


def read_level(multiscale: Mapping[str, Any], wanted: str | None, where: str) -> Level:
    """Level of an image, as its metadata say.

    Units are converted to Å. A unit that nobody knows gives no voxel size, and a remark. A missing unit is a gap in the
    metadata: the number is taken as Å if it can be a tomogram's (0.1 to 1000, and not 1 at full resolution, which is
    what programs write that do not know it), else there is no voxel size; both with a remark.

    Parameters
    ----------
    multiscale
        As of `multiscale_of`.
    wanted
        Path of a dataset, or its number; None: the first, which is the full resolution.
    where
        What messages begin with.

    Raises
    ------
    InputError
        If the axes are not z, y, x (after time and channel), there is no such level, or something is malformed.
    """
    names, units = _axes(multiscale, where)
    datasets = multiscale.get("datasets")
    if not isinstance(datasets, Sequence) or not datasets or not all(isinstance(one, Mapping) for one in datasets):
        raise InputError(f"{where}: the OME metadata list no datasets; write the file again with a program that does")
    paths = [str(dataset.get("path", "")).strip("/") for dataset in datasets]
    number = 0
    if wanted is not None:
        if wanted not in paths and not (wanted.isdecimal() and int(wanted) < len(paths)):
            raise InputError(f"{where}: there is no level {wanted}; there are {', '.join(paths)}")
        number = paths.index(wanted) if wanted in paths else int(wanted)
    if not paths[number]:
        raise InputError(f"{where}: the OME metadata name no path of level {number}; write the file again")
    scale, shift = _transformed(datasets[number], multiscale, len(names), where)
    full, _ = _transformed(datasets[0], multiscale, len(names), where)
    factors, remarks = _factors(units[-3:], scale[-3:], full[-3:])
    if factors is None:
        return Level(paths[number], len(names) - 3, None, (0.0, 0.0, 0.0), remarks)
    size = [length * factor for length, factor in zip(scale[-3:], factors, strict=True)]
    origin = [length * factor for length, factor in zip(shift[-3:], factors, strict=True)]
    return Level(paths[number], len(names) - 3, _triple(size), _triple(origin), remarks)


def _axes(multiscale: Mapping[str, Any], where: str) -> tuple[list[str], list[str | None]]:
    """Names and units of all axes."""
    axes = multiscale.get("axes")
    if not isinstance(axes, Sequence) or not all(isinstance(axis, Mapping) for axis in axes):
        raise InputError(
            f"{where}: the OME metadata do not describe the axes, as OME-NGFF before 0.4; convert it to version 0.4"
        )
    names = [str(axis.get("name", "")).lower() for axis in axes]
    if names[-3:] != ["z", "y", "x"] or names[:-3] not in _LEADING:
        raise InputError(
            f"{where}: axes {', '.join(names) or 'none'}; a tomogram has z, y, x in this order, after t and c or not"
        )
    return names, [None if axis.get("unit") in (None, "") else str(axis["unit"]) for axis in axes]


def _transformed(
    dataset: Mapping[str, Any], multiscale: Mapping[str, Any], ndim: int, where: str
) -> tuple[list[float], list[float]]:
    """Scale and translation of a dataset, those of the whole image applied after its own."""
    scale, shift = [1.0] * ndim, [0.0] * ndim
    try:
        for owner in (dataset, multiscale):
            for step in owner.get("coordinateTransformations") or []:
                values = [float(value) for value in step.get(step["type"], [])]
                if step["type"] not in ("scale", "translation") or len(values) != ndim:
                    raise ValueError(f"a {step['type']} of {len(values)} numbers for {ndim} axes")
                if step["type"] == "scale":
                    scale = [a * b for a, b in zip(scale, values, strict=True)]
                    shift = [a * b for a, b in zip(shift, values, strict=True)]
                else:
                    shift = [a + b for a, b in zip(shift, values, strict=True)]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: the coordinateTransformations cannot be understood ({error}); allowed are scale and translation"
        ) from error
    if not all(math.isfinite(value) for value in shift):
        raise InputError(f"{where}: a translation that is no number in the OME metadata; correct it")
    return scale, shift


def _factors(
    units: Sequence[str | None], scale: Sequence[float], full: Sequence[float]
) -> tuple[list[float] | None, tuple[str, ...]]:
    """Å per unit along z, y, x, or None if that is unknown, and remarks; `full` is the scale at full resolution."""
    shown = " x ".join(f"{value:g}" for value in scale)
    if not all(0 < value < math.inf for value in scale):
        return None, (f"scale {shown} is no voxel size, so that it is unknown",)
    strange = sorted({unit for unit in units if unit is not None and unit.lower() not in ANGSTROM_PER_UNIT})
    if strange:
        return None, (f"unknown unit {', '.join(strange)} of the axes, so that the voxel size is unknown",)
    remarks: tuple[str, ...] = ()
    if None in units:
        low, high = VOXEL_SIZES_ANGSTROM
        bare = [value for unit, value in zip(units, full, strict=True) if unit is None]
        if all(value == 1 for value in bare) or not all(low <= value <= high for value in bare):
            return None, (f"the axes have no unit and scale {shown}, so that the voxel size is unknown",)
        remarks = (f"the axes have no unit; scale {shown} is taken as Å",)
    return [1.0 if unit is None else ANGSTROM_PER_UNIT[unit.lower()] for unit in units], remarks


def _triple(values: Sequence[float]) -> Triple:
    z, y, x = values
    return z, y, x


def new_attributes(
    name: str, levels: int, voxel_size_angstrom: Triple | None, origin_angstrom: Triple, labels: bool
) -> dict[str, Any]:
    """Attributes of a group whose arrays `0`, `1`, ... are an image halved again and again, as OME-NGFF 0.4 wants them.

    Parameters
    ----------
    name
        Of the image.
    levels
        Number of arrays.
    voxel_size_angstrom, origin_angstrom
        (z, y, x) of level 0. Unknown: axes without unit and scale 1, which `read_level` understands as unknown.
    labels
        A mask or instances: each voxel of a level is one voxel of the level before, at the same place. Otherwise it is
        the mean of two voxels along each axis, and the centre of the first one lies half a voxel further in.
    """
    size = voxel_size_angstrom or (1.0, 1.0, 1.0)
    origin = origin_angstrom if voxel_size_angstrom is not None else (0.0, 0.0, 0.0)
    unit = {} if voxel_size_angstrom is None else {"unit": "angstrom"}
    datasets = []
    for level in range(levels):
        factor = 2**level
        inwards = 0.0 if labels else (factor - 1) / 2  # in voxels of level 0
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [length * factor for length in size]},
                    {
                        "type": "translation",
                        "translation": [a + inwards * length for a, length in zip(origin, size, strict=True)],
                    },
                ],
            }
        )
    multiscale = {
        "version": "0.4",
        "name": name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
        "datasets": datasets,
        "type": "nearest" if labels else "mean",
        "metadata": {"program": f"etsam {__version__}"},
    }
    return {"multiscales": [multiscale]} | ({"image-label": {"version": "0.4"}} if labels else {})
