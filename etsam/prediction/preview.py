"""A picture to judge a mask by: three slices and two side views with the mask's outline."""

from pathlib import Path

import numpy as np

from etsam.volume import atomic_path

_OUTLINE = "#ffb000"  # colour-blind safe on grey (IBM palette)
_CLIP_PERCENT = (1.0, 99.0)


class Sections:
    """The planes of a volume that the picture shows, kept while the slices pass by: three XY, one XZ and one YZ.

    Parameters
    ----------
    shape
        (Z, Y, X).

    Attributes
    ----------
    z, y, x
        Where they lie.
    xy
        Slice index -> (Y, X) float32.
    xz, yz
        (Z, X) and (Z, Y) float32.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        depth, height, width = shape
        self.z = sorted({depth // 4, depth // 2, (3 * depth) // 4})
        self.y, self.x = height // 2, width // 2
        self.xy: dict[int, np.ndarray] = {}
        self.xz, self.yz = np.zeros((depth, width), np.float32), np.zeros((depth, height), np.float32)

    def add(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of slice `z`, (Y, X)."""
        self.xz[z], self.yz[z] = plane[self.y], plane[:, self.x]
        if z in self.z:
            self.xy[z] = np.array(plane, dtype=np.float32)


def write_preview(path: Path, grey: Sections, mask: Sections, title: str, overwrite: bool = False) -> None:
    """Draw grey values and the outline of the mask, both of the same volume, into a PNG, whole or not at all."""
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    views = [(f"slice z = {z}", grey.xy[z], mask.xy[z] > 0, "x", "y") for z in grey.z]
    views.append((f"side view y = {grey.y}", grey.xz, mask.xz > 0, "x", "z"))
    views.append((f"side view x = {grey.x}", grey.yz, mask.yz > 0, "y", "z"))
    heights = [max(view[1].shape[0] / view[1].shape[1], 0.15) for view in views]
    columns = len(grey.z)
    figure = Figure(figsize=(4 * columns, 4 * (heights[0] + max(heights[-2:])) + 1.2), layout="constrained")
    grid = figure.add_gridspec(2, 2 * columns * 3, height_ratios=[heights[0], max(heights[-2:])])
    width = 2 * 3
    cells = [grid[0, i * width : (i + 1) * width] for i in range(columns)]
    half = columns * width // 2
    cells += [grid[1, :half], grid[1, half:]]
    for cell, (name, image, outlined, horizontal, vertical) in zip(cells, views, strict=True):
        axes = figure.add_subplot(cell)
        finite = image[np.isfinite(image)]
        low, high = np.percentile(finite, _CLIP_PERCENT) if finite.size else (0.0, 1.0)
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest", origin="lower")
        if outlined.any() and not outlined.all() and min(outlined.shape) > 1:
            axes.contour(outlined, levels=[0.5], colors=[_OUTLINE], linewidths=0.8)
        axes.set(title=f"{name}, {100 * outlined.mean():.1f} % membrane", xlabel=horizontal, ylabel=vertical)
        axes.tick_params(labelsize=7)
    figure.suptitle(title, wrap=True)
    with atomic_path(path, overwrite) as part:
        figure.savefig(part, format="png", dpi=110)
