"""A picture of a file: three planes through the middle, and the histogram of its grey values."""

from pathlib import Path

import numpy as np

from etsam.sources.files.inspect import Inspection, Planes
from etsam.volume import atomic_path

_CLIP_PERCENT = (1.0, 99.0)
_THINNEST = 0.25  # height of a side view, at least, as a fraction of its width


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
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    z, y, x = planes.middle
    views = [
        (f"slice z = {z}", planes.xy, "x", "y"),
        (f"side view x = {x}", planes.yz.T, "z", "y"),
        (f"side view y = {y}", planes.xz, "x", "z"),
    ]
    depth, height, width = found.shape
    side = max(depth, _THINNEST * width)
    scale = 7.0 / max(width + side, height + side)
    figure = Figure(figsize=((width + side) * scale + 1.6, (height + side) * scale + 1.8), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[width, side], height_ratios=[height, side])
    for cell, (name, plane, horizontal, vertical) in zip((grid[0, 0], grid[0, 1], grid[1, 0]), views, strict=True):
        axes = figure.add_subplot(cell)
        finite = plane[np.isfinite(plane)]
        low, high = np.percentile(finite, _CLIP_PERCENT) if finite.size else (0.0, 1.0)
        if found.looks_like in ("mask", "label volume"):
            low, high = found.minimum, found.maximum
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, origin="lower")
        axes.set_title(name, fontsize=9)
        axes.set(xlabel=horizontal, ylabel=vertical)
        axes.tick_params(labelsize=7)
    axes = figure.add_subplot(grid[1, 1])
    edges, counts = found.histogram
    axes.stairs(counts / max(int(counts.sum()), 1), edges, fill=True, color="0.5")
    axes.set_title("grey values", fontsize=9)
    axes.tick_params(labelsize=6)
    axes.set_yticks([])
    size = found.voxel_size_angstrom
    voxel = "voxel size unknown" if size is None else f"{size[2]:.4g} Å"
    shape = " x ".join(map(str, found.shape))
    figure.suptitle(
        f"{found.path.name}\n{shape} (Z, Y, X), {voxel}, {found.looks_like}".replace("$", r"\$"), fontsize=10
    )
    with atomic_path(path, overwrite) as part:
        figure.savefig(part, format="png", dpi=110)
