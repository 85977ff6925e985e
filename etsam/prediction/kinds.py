"""Kinds of files that are met before segmentation: a tomogram, or something else that lies beside tomograms."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from etsam.errors import InputError
from etsam.normalize import Statistics
from etsam.volume import Location, Slices, Volume
from etsam.volume.location import suffix_of

_LABEL_VALUES = 1000  # different whole numbers up to which a volume may hold labels
_SAME_NEIGHBOUR = 0.7  # of neighbours that are both labelled, how many have the same label; of noise a third at most
_LABEL_SLICES = 9  # that are looked at for it
_TILT_IMAGES, _DETECTOR_SIDE, _DETECTOR_PIXEL_ANGSTROM = 150, 2800, 4.0  # tilt series: few large images, unbinned
_TILT_SERIES_SUFFIXES, _STACK_SUFFIXES = (".st", ".ali"), (".mrcs",)  # of IMOD; of RELION
_OUTPUT_MARK = "_etsam_predicted"
OUTPUT = "output of etsam"
# AreTomo, Warp and cryoCARE; RELION
_HALVES = re.compile(r"(?<![A-Za-z0-9])(EVN|ODD|evn|odd|even|Even|Odd|EVEN|half[_-]?[12])(?![A-Za-z0-9])")
_OTHER_HALF = {"evn": ("odd",), "even": ("odd",), "odd": ("evn", "even"), "1": ("2",), "2": ("1",)}
_MUCH_SHORTER = 1.5  # the shorter of the other sides / Y, from which on Y is taken for the height; our choice


class NoTomogramError(InputError):
    """A file that holds something else than a tomogram, such as a mask."""


def kind_by_name(path: Location) -> str | None:
    """`tilt series`, `stack of images`, `half map` or `output of etsam`; None if the name says nothing of the kind.

    A half map is one whose other half lies beside it (or in the folder `even` or `odd` beside its own).
    """
    if _OUTPUT_MARK in path.name:
        return OUTPUT
    suffix = suffix_of(path.name)
    if suffix.startswith(_TILT_SERIES_SUFFIXES):
        return "tilt series"
    if suffix.startswith(_STACK_SUFFIXES):
        return "stack of images"
    if isinstance(path, Path) and any(os.path.exists(other) for other in _other_halves(path)):
        return "half map"
    return None


def _other_halves(path: Path) -> Iterator[Path]:
    for found in _HALVES.finditer(path.name):
        for text in _opposites(found.group()):
            yield path.with_name(path.name[: found.start()] + text + path.name[found.end() :])
    if _HALVES.fullmatch(path.parent.name):
        for text in _opposites(path.parent.name):
            yield path.parent.with_name(text) / path.name


def _opposites(half: str) -> Iterator[str]:
    head, key = (half[:-1], half[-1]) if half[-1].isdigit() else ("", half.lower())
    for other in _OTHER_HALF[key]:
        yield head + (other.upper() if half.isupper() else other.title() if half.istitle() else other)


def kind_of(volume: Volume, statistics: Statistics) -> str:
    """`tomogram`, `mask`, `label volume`, `tilt series`, `stack of images` or `constant volume`.

    Parameters
    ----------
    volume
        The file; up to nine slices are read if its values may be labels.
    statistics
        Of all its voxels, padding included (`etsam.normalize.survey`).
    """
    if not statistics.maximum > statistics.minimum:
        return "constant volume"
    values, counts = np.unique(statistics.sample, return_counts=True)
    extremes = np.array([statistics.minimum, statistics.maximum])
    if (values == np.round(values)).all() and (extremes == np.round(extremes)).all():
        every = set(values.tolist()) | set(extremes.tolist())
        if len(every) == 2 or every <= {-1.0, 0.0, 1.0, 255.0}:
            return "mask"
        if values.size <= _LABEL_VALUES and _piecewise_constant(volume, float(values[counts.argmax()])):
            return "label volume"
    named = None if volume.path is None else kind_by_name(volume.path)
    if named in ("tilt series", "stack of images"):
        return named
    depth, height, width = volume.shape
    size = volume.voxel_size_angstrom
    large = depth <= _TILT_IMAGES and min(height, width) >= _DETECTOR_SIDE
    if large and size is not None and size[2] < _DETECTOR_PIXEL_ANGSTROM:
        return "tilt series"
    return "tomogram"


def _piecewise_constant(volume: Slices, background: float) -> bool:
    """True if neighbours that are both no background mostly have the same value."""
    pairs = same = 0
    for z in np.unique(np.linspace(0, volume.shape[0] - 1, _LABEL_SLICES).round().astype(int)):
        plane = volume[int(z)]
        left, right = plane[:, :-1], plane[:, 1:]
        both = (left != background) & (right != background)
        pairs += int(np.count_nonzero(both))
        same += int(np.count_nonzero(both & (left == right)))
    return pairs > 0 and same > _SAME_NEIGHBOUR * pairs


def refuse_other_kinds(volume: Volume, statistics: Statistics) -> None:
    """Raise `NoTomogramError` for a file of masks or labels; arguments as of `kind_of`."""
    kind = kind_of(volume, statistics)
    if volume.path is not None and kind in ("mask", "label volume"):
        raise NoTomogramError(f"{volume.path}: {no_tomogram(kind)}")


def no_tomogram(kind: str) -> str:
    """Sentence about a file of another kind."""
    meant = {
        "tilt series": "etsam needs the reconstruction",
        "stack of images": "etsam needs a reconstructed volume",
        "half map": "use the tomogram of both halves",
        OUTPUT: "its input is what can be segmented",
    }.get(kind, "there is nothing to segment in it")
    return f"looks like {'an' if kind[0] == 'o' else 'a'} {kind}; {meant}, or set force=true if it is a tomogram"


def orientation_remark(volume: Volume) -> str | None:
    """Sentence for a volume whose axes are probably in another order; None for others.

    IMOD's `tilt` writes slices of XZ and says so in a label of the header; what turns them leaves a later label.
    """
    depth, height, width = volume.shape
    labels = () if volume.header is None else volume.header.labels
    unturned = bool(labels) and labels[-1].startswith("TILT: Tomographic reconstruction")
    if min(depth, width) > (1 if unturned else _MUCH_SHORTER) * height:
        told = " and its header says that IMOD's tilt wrote it last" if unturned else ""
        return (
            f"Y is {'' if unturned else 'by far '}the shortest side ({depth} x {height} x {width}, Z x Y x X){told}, "
            "so slices look like XZ: is it not rotated yet? Use IMOD's `trimvol -rx` or `clip rotx`"
        )
    middle = sorted(volume.shape)[1]
    if depth == max(volume.shape) and depth > _MUCH_SHORTER * middle:
        return "Z is by far the longest side: are the axes in the order that you think?"
    return None
