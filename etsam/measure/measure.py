"""Everything about the membranes of one mask, arrays in and tables out."""

import logging
import operator
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import find_objects

from etsam.errors import ConfigError, InputError
from etsam.measure.membranes import Membranes, find_membranes, membranes_of_labels
from etsam.measure.mesh import Mesh, make_mesh
from etsam.measure.midsurface import POINTS_PER_VOXEL2, MidSurface, find_midsurface, mask_width
from etsam.measure.shape import VertexValues, distances_between, shape_row, vertex_values
from etsam.measure.thickness import COLUMNS as THICKNESS_COLUMNS
from etsam.measure.thickness import Thickness, measure_thickness
from etsam.threads import worker_count
from etsam.volume.slices import Slices

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None, str], None]
"""Called with what is done, of how much, and the name of what is at work."""

TOO_SMALL = "too small to be measured"
"""End of a reason why something was left out."""
_FILLED_VOXELS = 4  # mean width: of a ball two thirds of its radius; our choice
_CRUMB_POINTS = 30  # of the mid-surface: below, no mesh is tried
_CONDITION = re.compile(r"^\s*([A-Za-z_]\w*)\s*(<=|>=|==|<|>)\s*(-?\d+(?:\.\d+)?)\s*$")
_COMPARE = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True)
class MeasureSettings:
    """Choice of the measures, and how they are taken.

    Attributes
    ----------
    triangle_nm
        Mean edge of the triangles; None: 2 voxels. Shorter on small membranes.
    join_gap_nm
        Widest gap across which a membrane is joined; 0: none.
    min_area_nm2
        Smaller pieces are left out.
    contact_nm
        Membranes nearer than this have a contact.
    keep, drop
        Which membranes to keep or leave out: numbers such as `1,3-5`, or conditions such as `area_nm2>1000`, with
        `and` between several of them.
    """

    triangle_nm: float | None = None
    join_gap_nm: float = 20.0
    min_area_nm2: float = 300.0
    contact_nm: float = 30.0
    keep: str | None = None
    drop: str | None = None

    def __post_init__(self) -> None:
        for name in ("join_gap_nm", "min_area_nm2", "contact_nm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{_flag(name)} {getattr(self, name)} is none: allowed are numbers of at least 0.")
        if self.triangle_nm is not None and not 0 < self.triangle_nm < float("inf"):
            raise ConfigError(f"{_flag('triangle_nm')} {self.triangle_nm} is none: allowed are numbers above 0.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Measurement:
    """The membranes of one mask.

    Attributes
    ----------
    membranes
        Points of the mid-surface with the numbers of the table.
    numbers
        Of the membranes kept, in order.
    meshes, values, thickness
        Of these membranes; `thickness` has no entry where no tomogram was given.
    table
        A row for each; `COLUMNS` of `etsam.measure.columns` says what each column is.
    contacts
        A row for each pair of membranes nearer than `contact_nm`.
    left_out
        What is in the mask and not in the table, for people.
    closest_nm
        Least distance between two of the membranes kept, between their middles; NaN if there is one only.
    """

    membranes: Membranes
    numbers: tuple[int, ...]
    meshes: list[Mesh]
    values: list[VertexValues]
    thickness: list[Thickness]
    table: pd.DataFrame
    contacts: pd.DataFrame
    left_out: tuple[str, ...]
    closest_nm: float


def measure(
    mask: np.ndarray,
    voxel_nm: float,
    tomogram: Slices | None = None,
    settings: MeasureSettings | None = None,
    *,
    labels: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measure all membranes of a mask.

    Parameters
    ----------
    mask
        (Z, Y, X) uint8, 1 is membrane; with `labels` uint8 or uint16, a number for each membrane.
    voxel_nm
        Side of a voxel.
    tomogram
        (Z, Y, X), for the thickness; None: none is measured.
    settings
        None: the defaults.
    labels
        Whether the mask says already which membrane is which.
    workers
        Threads, as of `etsam.threads.worker_count`.
    progress
        Told how far it is.

    Raises
    ------
    ConfigError
        If `keep` or `drop` make no sense.
    InputError
        If no label has a middle, or a number of `keep` or `drop` is of no membrane.
    """
    settings = settings or MeasureSettings()
    workers = worker_count(workers)
    tell = progress or (lambda done, total, name: None)
    chosen = [_rule(name, getattr(settings, name)) for name in ("keep", "drop")]
    gap = settings.join_gap_nm / voxel_nm
    given = mask if labels else None
    if labels:
        parts = _label_surfaces(mask, workers)
        if not any(len(part) for part in parts):
            raise InputError(f"none of the labels is a membrane: {why_no_surface(mask)}.")
        found = membranes_of_labels(parts, least_points=_CRUMB_POINTS, gap_voxels=gap)
        mask = (mask > 0).astype(np.uint8)
    else:
        surface = find_midsurface(mask, workers=workers, progress=lambda done, total: tell(done, total, "mid-surface"))
        tell(0, None, "membranes")
        found = find_membranes(surface, least_points=_CRUMB_POINTS, gap_voxels=gap)
    meshes, found, left_out = _meshes(mask, found, settings, voxel_nm, tell)
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    names = None if given is None else _labels_of(given, found)
    for name in ("keep", "drop"):
        _refuse_missing(name, getattr(settings, name), len(meshes), names)
    tell(0, None, "distances")
    between = distances_between(meshes, settings.contact_nm / voxel_nm, workers)
    values = [
        vertex_values(mesh, distance, nearest, voxel_nm)
        for mesh, distance, nearest in zip(meshes, between.nearest, between.numbers, strict=True)
    ]
    rows = [
        {"membrane": number}
        | ({} if names is None else {"label": int(names[number])})
        | shape_row(mesh, value, voxel_nm, shape)
        | _of_mask(part, voxel_nm)
        for number, (mesh, value, (part, _)) in enumerate(zip(meshes, values, found.parts(), strict=True), 1)
    ]
    thickness: list[Thickness] = []
    if tomogram is not None and meshes:
        thickness = measure_thickness(tomogram, meshes, voxel_nm, progress=tell)
        rows = [row | result.row() for row, result in zip(rows, thickness, strict=True)]
    table = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["membrane", *THICKNESS_COLUMNS])
    kept = np.ones(len(table), bool)
    for rule, wanted in zip(chosen, (True, False), strict=True):
        if rule is not None:
            kept &= rule(table) == wanted
    if not kept.all():
        dropped = int((~kept).sum())
        left_out.append(f"{dropped} membrane{'s' * (dropped != 1)}, by --keep or --drop")
    numbers = tuple(int(number) for number in table["membrane"][kept])
    closest = table["nearest_min_nm"].min() if len(table) else np.nan
    if not kept.all():  # what is nearest in the table may be left out
        own = distances_between([meshes[number - 1] for number in numbers], 0.0, workers).nearest
        least = min((float(distance.min()) for distance in own), default=np.inf)
        closest = least * voxel_nm if np.isfinite(least) else np.nan
    pieces = {(int(one), int(other)) for one, other in found.continued}
    named = [f"{one} and {other}" for one, other in sorted(pieces) if one in numbers and other in numbers]
    if named:
        left_out.append(f"contacts of {', '.join(named)}, whose edges continue each other as in one membrane")
    return Measurement(
        membranes=found,
        numbers=numbers,
        meshes=[meshes[number - 1] for number in numbers],
        values=[values[number - 1] for number in numbers],
        thickness=[thickness[number - 1] for number in numbers] if thickness else [],
        table=table[kept].reset_index(drop=True),
        contacts=_contact_table(between.contacts, numbers, pieces, voxel_nm),
        left_out=tuple(left_out),
        closest_nm=float(closest),
    )


def why_no_surface(mask: np.ndarray) -> str:
    """Reason why nothing at all was found in a mask (Z, Y, X)."""
    found = "what is there has no surface"
    if mask_width((mask > 0).astype(np.uint8)) < _FILLED_VOXELS:
        return found
    return f"{found}, for it is filled; a mask of the membrane around it is needed, its shell"


def _label_surfaces(labels: np.ndarray, workers: int) -> list[MidSurface]:
    """Mid-surface of each label, in its own box."""
    found = []
    for number, box in enumerate(find_objects(labels), 1):
        if box is None:
            continue
        # a voxel around it: a flat label would fill its box, which has no inside and outside then
        sides = zip(box, labels.shape, strict=True)
        box = tuple(slice(max(side.start - 1, 0), min(side.stop + 1, length)) for side, length in sides)
        low = np.array([side.start for side in box])
        part = find_midsurface((labels[box] == number).astype(np.uint8), workers=workers)
        whole = part.points + low.astype(np.float32)
        voxels = np.stack(np.unravel_index(part.voxels, part.shape), axis=1) + low
        shape = (labels.shape[0], labels.shape[1], labels.shape[2])
        flat = np.ravel_multi_index(tuple(voxels.T), shape)
        found.append(MidSurface(flat, whole, part.normals, part.widths, shape))
    return found


def _labels_of(labels: np.ndarray, found: Membranes) -> np.ndarray:
    """Label (count + 1,) of each membrane; entry 0 is 0."""
    table = np.zeros(found.count + 1, np.int64)
    table[found.numbers] = labels.ravel()[found.surface.voxels]
    table[0] = 0
    return table


def _meshes(
    mask: np.ndarray, found: Membranes, settings: MeasureSettings, voxel_nm: float, tell: Progress
) -> tuple[list[Mesh], Membranes, list[str]]:
    """Meshes from the largest to the smallest, the membranes renumbered like them, and what was left out."""
    edge = 2.0 if settings.triangle_nm is None else settings.triangle_nm / voxel_nm
    made: list[tuple[float, int, Mesh]] = []
    small, small_area = found.left_out[0], found.left_out[1] / POINTS_PER_VOXEL2 * voxel_nm**2
    for number, (points, joined) in enumerate(found.parts(), 1):
        mesh = make_mesh(mask, points, joined, edge)
        area = float(mesh.face_areas.sum()) * voxel_nm**2 if mesh is not None else 0.0
        if mesh is not None and area >= settings.min_area_nm2:
            made.append((area, number, mesh))
        else:
            small, small_area = small + 1, small_area + area
        tell(number, found.count, "meshes")
    made.sort(key=lambda item: (-item[0], item[1]))
    table = np.zeros(found.count + 1, np.int32)
    table[[number for _, number, _ in made]] = np.arange(1, len(made) + 1)
    joined_numbers = table[found.joined_numbers]
    belongs = joined_numbers > 0
    found = replace(
        found,
        numbers=table[found.numbers],
        joined=found.joined.select(belongs),
        joined_numbers=joined_numbers[belongs],
        continued=_kept_pairs(np.sort(table[found.continued], axis=1)),
    )
    left_out = []
    if small:
        pieces = f"{small} piece{'s' * (small != 1)} of less than {settings.min_area_nm2:g} nm²"
        left_out.append(f"{pieces} (together about {small_area:.0f} nm²), {TOO_SMALL}")
    return [mesh for _, _, mesh in made], found, left_out


def _kept_pairs(pairs: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) without those of which one is 0, in order."""
    return np.unique(pairs[(pairs > 0).all(axis=1)], axis=0)


def _of_mask(part: MidSurface, voxel_nm: float) -> dict[str, float]:
    known = part.widths[np.isfinite(part.widths)]
    return {"mask_width_nm": float(np.median(known)) * voxel_nm if len(known) else np.nan}


def _contact_table(
    contacts: Sequence[tuple[int, int, float, float, float]],
    numbers: Sequence[int],
    pieces: Container[tuple[int, int]],
    voxel_nm: float,
) -> pd.DataFrame:
    """A row for each pair that is not of pieces of one membrane; the area is the mean of both sides."""
    sides = {(one, other): rest for one, other, *rest in contacts}
    rows: list[dict[str, Any]] = []
    for one, other in sorted({(min(pair), max(pair)) for pair in sides}):
        if one in numbers and other in numbers and (one, other) not in pieces:
            both = np.array([sides[pair] for pair in ((one, other), (other, one)) if pair in sides])
            area, mean, least = both[:, 0], both[:, 1], both[:, 2]
            rows.append(
                {
                    "membrane": one,
                    "other": other,
                    "area_nm2": float(area.sum()) / 2 * voxel_nm**2,
                    "distance_mean_nm": float(np.average(mean, weights=area)) * voxel_nm,
                    "distance_min_nm": float(least.min()) * voxel_nm,
                }
            )
    return pd.DataFrame(rows, columns=["membrane", "other", "area_nm2", "distance_mean_nm", "distance_min_nm"])


_NUMBERS = re.compile(r"\s*\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*\s*")


def _spans(text: str) -> list[range]:
    """Numbers of a rule such as `1,3-5`."""
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return [range(own[0], own[-1] + 1) for own in ends]


def _refuse_missing(name: str, text: str | None, count: int, labels: np.ndarray | None) -> None:
    """Refuse numbers of a rule that none of the membranes has, of `count` in all; of a span, if none has any of it."""
    if text is None or not count or not _NUMBERS.fullmatch(text):
        return
    missing = [span for span in _spans(text) if max(span.start, 1) >= min(span.stop, count + 1)]
    if missing:
        shown = ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in missing if len(span))
        hint = "" if labels is None else f"; for numbers of the mask given: --{name} 'label=={labels[1]}'"
        numbered = f"they are numbered by size, 1 to {count}"
        raise InputError(f"--{name} {text}: no membrane has the number {shown or text}; {numbered}{hint}.")


def _rule(name: str, text: str | None) -> Callable[[pd.DataFrame], np.ndarray] | None:
    """Function that says which rows of the table a rule is true for."""
    if text is None:
        return None
    if _NUMBERS.fullmatch(text):
        return lambda table: np.isin(table["membrane"], [number for span in _spans(text) for number in span])
    conditions = [_CONDITION.match(part) for part in re.split(r"\s+and\s+", text)]
    if not all(conditions):
        raise ConfigError(
            f"--{name} {text} makes no sense; allowed are numbers such as 1,3-5, and conditions such as "
            "'area_nm2>1000 and nearest_min_nm<30' with columns of the table."
        )

    def matches(table: pd.DataFrame) -> np.ndarray:
        found = np.ones(len(table), bool)
        for condition in conditions:
            assert condition is not None
            column, sign, value = condition.groups()
            if column not in table or not pd.api.types.is_numeric_dtype(table[column]):
                numeric = ", ".join(table.select_dtypes("number").columns)
                raise ConfigError(f"--{name} {text}: {column} is no column of numbers; there are {numeric}.")
            found &= _COMPARE[sign](table[column].to_numpy(), float(value))
        return found

    return matches
