"""Portrait of a file: kind, oddities, settings that suit it; from its header and one pass over its slices."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from etsam.errors import InputError
from etsam.inference.rescale import scale_advice
from etsam.inference.tiles import Overlapping
from etsam.normalize import Statistics, survey, without_padding
from etsam.prediction.kinds import kind_of, orientation_remark
from etsam.prediction.preview import Sections
from etsam.volume import Location, Volume, locate, read_volume
from etsam.volume.location import Url, state_of
from etsam.weights.registry import REGISTRY

PERCENTS = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
TYPICAL_VOXEL_ANGSTROM = (4.0, 50.0)
"""Range of tomograms that are segmented; outside it is worth a second look."""

_HISTOGRAM_BINS = 100


@dataclass(frozen=True)
class Inspection:
    """Facts of a file; everything of three parts is ordered (z, y, x).

    Attributes
    ----------
    path, bytes_on_disk
        The file, and its size there (compressed, if it is); None for a URL.
    shape, dtype, mode
        (Z, Y, X), dtype of a voxel, MRC mode (None for other formats).
    voxel_size_angstrom, voxel_size_note
        Å, None if unknown; and whether to believe it.
    origin_angstrom, start_voxels
        As the header says.
    labels, header_warnings
        Lines of history in the header; what is odd about it.
    minimum, maximum, mean, percentiles, nonfinite_voxels
        Of the grey values; percentiles by their per cent.
    skewness, contrast, contrast_is_clear
        Of block means; what `normalize=robust` takes membranes for, `dark` or `bright`; whether by more than chance.
    looks_like
        `tomogram`, `mask`, `label volume`, `tilt series`, `stack of images` or `constant volume`.
    remarks
        Further observations, in sentences.
    suggestions
        What to set, in sentences.
    histogram
        (edges, counts) of the finite voxels between the outer percentiles, from a sample.
    """

    path: Location
    bytes_on_disk: int | None
    shape: tuple[int, int, int]
    dtype: str
    mode: int | None
    voxel_size_angstrom: tuple[float, float, float] | None
    voxel_size_note: str
    origin_angstrom: tuple[float, float, float]
    start_voxels: tuple[int, int, int]
    labels: tuple[str, ...]
    header_warnings: tuple[str, ...]
    minimum: float
    maximum: float
    mean: float
    percentiles: dict[str, float]
    nonfinite_voxels: int
    skewness: float
    contrast: str
    contrast_is_clear: bool
    looks_like: str
    remarks: tuple[str, ...]
    suggestions: tuple[str, ...]
    histogram: tuple[np.ndarray, np.ndarray] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything as values that JSON knows."""
        found = asdict(self)
        found["path"] = str(self.path)
        edges, counts = self.histogram
        found["histogram"] = {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]}
        return found


class Planes:
    """Keeps of slices that pass what a picture of three orthogonal planes needs.

    Attributes
    ----------
    sections
        Planes through the middle.
    constant_slices
        Slices in which all voxels are equal.
    """

    def __init__(self, volume: Volume) -> None:
        self.shape = volume.shape
        self.sections = Sections(volume.shape, volume.voxel_size_angstrom, middle_only=True)
        self.constant_slices = 0

    def add(self, z: int, plane: np.ndarray) -> None:
        """Look at slice `z`, (Y, X)."""
        self.sections.add(z, plane)
        self.constant_slices += bool((plane == plane[0, 0]).all())


def inspect_file(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> tuple[Inspection, Planes]:
    """Read a file once, slice by slice.

    Parameters
    ----------
    path
        A tomogram, mask, or anything else that `read_volume` opens.
    progress
        Called with (slices read, slices in all).

    Returns
    -------
    tuple
        What is known, and the planes for a picture.

    Raises
    ------
    InputError
        If it cannot be opened, or holds no finite number.
    """
    with read_volume(path, warn=False) as volume:
        planes = Planes(volume)
        try:
            raw, search = survey(volume, progress, planes.add)
            kind = kind_of(volume, raw)
            statistics = without_padding(volume, raw, search) if kind == "tomogram" else raw
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        size, note = volume.voxel_size_angstrom, _voxel_size_note(volume.voxel_size_angstrom)
        header = volume.header
        place = locate(path)
        return Inspection(
            path=place,
            bytes_on_disk=None if isinstance(place, Url) else state_of(place)[2],
            shape=volume.shape,
            dtype=str(volume.dtype),
            mode=None if header is None else header.mode,
            voxel_size_angstrom=size,
            voxel_size_note=note,
            origin_angstrom=volume.origin_angstrom,
            start_voxels=volume.start,
            labels=() if header is None else header.labels,
            header_warnings=() if header is None else header.header_warnings,
            minimum=statistics.minimum,
            maximum=statistics.maximum,
            mean=statistics.mean,
            percentiles={f"{percent:g}": statistics.percentile(percent) for percent in PERCENTS},
            nonfinite_voxels=raw.nonfinite,
            skewness=statistics.skewness,
            contrast=statistics.contrast,
            contrast_is_clear=statistics.contrast_is_clear,
            looks_like=kind,
            remarks=tuple(_remarks(volume, raw, statistics, planes.constant_slices, kind)),
            suggestions=tuple(suggestions(volume.shape, size, statistics, kind)),
            histogram=_histogram(statistics),
        ), planes


def _voxel_size_note(size: tuple[float, float, float] | None) -> str:
    if size is None:
        return "unknown: the header says 0 or something impossible"
    if all(abs(side - 1.0) < 1e-6 for side in size):
        return "exactly 1 Å, which programs write where they do not know it"
    if max(size) - min(size) > 0.01 * max(size):
        return "differs between axes by more than 1 %; taken as they are, unless target_voxel_size= makes them cubic"
    smallest, largest = TYPICAL_VOXEL_ANGSTROM
    if not smallest <= size[2] <= largest:
        return f"outside {smallest:g} to {largest:g} Å, where segmented tomograms usually lie; is it right?"
    return "believable"


def _remarks(volume: Volume, raw: Statistics, statistics: Statistics, constant_slices: int, kind: str) -> Iterator[str]:
    if raw.nonfinite:
        yield f"{raw.nonfinite} of {raw.voxels} voxels are NaN or infinite"
    if kind == "constant volume":
        yield f"every voxel has the value {statistics.minimum:g}: nothing can be segmented"
    if kind == "tilt series":
        yield "few large images: this looks like a tilt series or its alignment; etsam needs the reconstruction"
    if kind != "tomogram":
        return
    if constant_slices:
        yield f"{constant_slices} of {volume.shape[0]} slices hold one value only and are left out"
    image = statistics.voxels - statistics.padded
    if image < raw.voxels:
        yield f"{100 * (1 - image / raw.voxels):.0f} % of the voxels are padding of one value, and are left out"
    spread = statistics.percentile(99.5) - statistics.percentile(0.5)
    beyond = max(statistics.maximum - statistics.percentile(99.5), statistics.percentile(0.5) - statistics.minimum)
    if spread > 0 and beyond > 5 * spread:
        yield f"some voxels are extreme ({statistics.minimum:g} to {statistics.maximum:g}): gold, ice or X-ray hits"
    remark = orientation_remark(volume)
    if remark is not None:
        yield remark


def _histogram(statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
    low, high = statistics.percentile(0.1), statistics.percentile(99.9)
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        low, high = statistics.minimum, max(statistics.maximum, statistics.minimum + 1)
    counts, edges = np.histogram(statistics.sample, bins=_HISTOGRAM_BINS, range=(low, high))
    return edges, counts


NANO_SIDE, PUBLISHED_SIDE = 512, 1024  # tiles that the networks are made for, voxels (configs/net)

_MANY_NEGATIVE = 0.25  # our choice


def suggestions(
    shape: tuple[int, int, int], voxel_size: tuple[float, float, float] | None, statistics: Statistics, kind: str
) -> Iterator[str]:
    """Sentences that name the settings.

    Parameters
    ----------
    shape
        (Z, Y, X).
    voxel_size
        (z, y, x) in Å, None if unknown.
    statistics
        Of the grey values.
    kind
        As `Inspection.looks_like`.
    """
    if kind in ("mask", "label volume"):
        yield "as target_mask of a manifest (1 is membrane, 0 is not, 255 is not annotated); it is nothing to segment"
        return
    if kind != "tomogram":
        return
    yield from _normalization(statistics)
    yield from _network(voxel_size)
    yield from _tiles(shape)


def _normalization(statistics: Statistics) -> Iterator[str]:
    if statistics.nonfinite:
        yield "nonfinite=mean: put the mean of the others in the place of NaN and infinite voxels"
    if not statistics.contrast_is_clear:
        yield (
            f"normalize=robust would take membranes for {statistics.contrast}, but by little; look at the picture and "
            "set normalize.membranes=dark or bright"
        )
    else:
        other = "dark" if statistics.contrast == "bright" else "bright"
        yield (
            f"normalize=robust takes membranes for {statistics.contrast}; if the picture says otherwise, set "
            f"normalize.membranes={other}"
        )
    if statistics.maximum <= 0:
        yield "no voxel is positive: --weights etsam_v1 (normalize=min_max_positive) needs normalize=softplus_minmax"
        return
    negative = float(np.searchsorted(statistics.sample, 0) / statistics.sample.size)
    if negative > _MANY_NEGATIVE:
        yield (
            f"{100 * negative:.0f} % of the voxels are negative, and the normalisation of etsam_v1 (min_max_positive) "
            "makes them all 0, as the published tool does; compare with normalize=softplus_minmax"
        )


def _network(voxel_size: tuple[float, float, float] | None) -> Iterator[str]:
    if voxel_size is None:
        yield "the voxel size is unknown: say what it is with --voxel-size"
    elif advice := scale_advice(voxel_size, REGISTRY["nano"].voxel_angstrom):
        yield f"nano: {advice}"


def _tiles(shape: tuple[int, int, int]) -> Iterator[str]:
    _, height, width = shape
    for name, side in (("nano sees", NANO_SIDE), ("the published weights see", PUBLISHED_SIDE)):
        count = len(Overlapping().plan(height, width, side))
        if count == 1:
            yield f"a slice fits into the {side} x {side} voxels that {name}"
        else:
            yield f"{name} {side} x {side} voxels; tiles=auto covers a slice by {count} overlapping tiles"
