"""A picture of a file: three planes through the middle, and the histogram of its grey values."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from etsam.pictures import Panel, averaging, drawn, extent, scale_bar, sheet
from etsam.sources.files.inspect import Inspection, Planes
from etsam.volume import atomic_path

_PANEL_PIXELS, _MOST_ZOOM, _HISTOGRAM_HEIGHT, _HISTOGRAM_WIDTH = 480, 8, 140, 300
_BAR_GREY = (110, 110, 110)


def write_inspection(path: Path, found: Inspection, planes: Planes, overwrite: bool = False) -> None:
    """Draw a PNG, whole or not at all.

    Parameters
    ----------
    path
        Where it goes.
    found, planes
        From `inspect_file`.
    overwrite
        Replace an existing file.

    Raises
    ------
    OutputError
        If `path` exists or cannot be written.
    """
    sections, sizes = planes.sections, found.voxel_size_angstrom or (1.0, 1.0, 1.0)
    lengths = [side * size for side, size in zip(found.shape, sizes, strict=True)]
    pixels = min(_PANEL_PIXELS / max(lengths), _MOST_ZOOM / sizes[2])
    panels = {}
    for axis, (down, across) in {"z": (1, 2), "y": (0, 2), "x": (0, 1)}.items():
        (place,) = sections.places[axis]
        bar = scale_bar(found.shape[across], None if found.voxel_size_angstrom is None else sizes[across])
        image = drawn(sections.image(axis, int(place)), zoom=(pixels * sizes[down], pixels * sizes[across]), bar=bar)
        panels[axis] = Panel(image, f"{'slice' if axis == 'z' else 'side view'} {axis} = {place}")
    edges, _ = found.histogram
    grey = Panel(_histogram(found.histogram[1]), f"grey values, {edges[0]:.3g} to {edges[-1]:.3g}")
    lines = [
        f"looks like a {found.looks_like} · {extent(found.shape, found.voxel_size_angstrom)}",
        averaging(sections.averaged["z"], found.voxel_size_angstrom) + ", through the middle.",
    ]
    columns = [[panels["z"], grey], [panels["y"], panels["x"]]]
    content = sheet(found.path.name, lines, columns)
    with atomic_path(path, overwrite) as part:
        part.write_bytes(content)


def _histogram(counts: np.ndarray) -> np.ndarray:
    """Bars of the counts, the highest as high as the image, (height, width, 3) uint8."""
    picture = Image.new("RGB", (_HISTOGRAM_WIDTH, _HISTOGRAM_HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    edges = np.linspace(0, _HISTOGRAM_WIDTH, len(counts) + 1)
    tops = (1 - counts / max(int(counts.max()), 1)) * (_HISTOGRAM_HEIGHT - 2)
    for left, right, top in zip(edges, edges[1:], tops, strict=False):
        draw.rectangle((round(left), round(top), max(round(left), round(right) - 1), _HISTOGRAM_HEIGHT), _BAR_GREY)
    return np.asarray(picture)
