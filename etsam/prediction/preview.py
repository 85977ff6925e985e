"""A picture to judge a mask by: three slices and two side views with the mask's outline."""

from pathlib import Path

import numpy as np

from etsam.volume import Volume, atomic_path

_OUTLINE = "#ffb000"  # colour-blind safe on grey (IBM palette)
_CLIP_PERCENT = (1.0, 99.0)


class PreviewPlanes:
    """Collects, while the slices pass by, what the picture needs: three XY planes, one XZ and one YZ.

    Parameters
    ----------
    volume
        The tomogram.
    """

    def __init__(self, volume: Volume) -> None:
        depth, height, width = volume.shape
        self.z = sorted({depth // 4, depth // 2, (3 * depth) // 4})
        self.y, self.x = height // 2, width // 2
        self.shape = volume.shape
        self.grey_xz, self.grey_yz = np.zeros((depth, width), np.float32), np.zeros((depth, height), np.float32)
        self.mask_xz, self.mask_yz = np.zeros((depth, width), bool), np.zeros((depth, height), bool)
        self.xy: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, z: int, grey: np.ndarray, mask: np.ndarray) -> None:
        """Take what is needed of slice `z`; `grey` and `mask` are (Y, X)."""
        self.grey_xz[z], self.grey_yz[z] = grey[self.y], grey[:, self.x]
        self.mask_xz[z], self.mask_yz[z] = mask[self.y] > 0, mask[:, self.x] > 0
        if z in self.z:
            self.xy[z] = (np.array(grey, dtype=np.float32), np.array(mask > 0))


def write_preview(path: Path, planes: PreviewPlanes, title: str, overwrite: bool = False) -> None:
    """Draw the planes into a PNG, whole or not at all."""
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    views = [(f"slice z = {z}", *planes.xy[z], "x", "y") for z in planes.z]
    views.append((f"side view y = {planes.y}", planes.grey_xz, planes.mask_xz, "x", "z"))
    views.append((f"side view x = {planes.x}", planes.grey_yz, planes.mask_yz, "y", "z"))
    heights = [max(view[1].shape[0] / view[1].shape[1], 0.15) for view in views]
    columns = len(planes.z)
    figure = Figure(figsize=(4 * columns, 4 * (heights[0] + max(heights[-2:])) + 1.2), layout="constrained")
    grid = figure.add_gridspec(2, 2 * columns * 3, height_ratios=[heights[0], max(heights[-2:])])
    width = 2 * 3
    cells = [grid[0, i * width : (i + 1) * width] for i in range(columns)]
    half = columns * width // 2
    cells += [grid[1, :half], grid[1, half:]]
    for cell, (name, grey, mask, horizontal, vertical) in zip(cells, views, strict=True):
        axes = figure.add_subplot(cell)
        finite = grey[np.isfinite(grey)]
        low, high = np.percentile(finite, _CLIP_PERCENT) if finite.size else (0.0, 1.0)
        axes.imshow(grey, cmap="gray", vmin=low, vmax=high, interpolation="nearest", origin="lower")
        if mask.any() and not mask.all() and min(mask.shape) > 1:
            axes.contour(mask, levels=[0.5], colors=[_OUTLINE], linewidths=0.8)
        axes.set(title=f"{name}, {100 * mask.mean():.1f} % membrane", xlabel=horizontal, ylabel=vertical)
        axes.tick_params(labelsize=7)
    figure.suptitle(title, wrap=True)
    with atomic_path(path, overwrite) as part:
        figure.savefig(part, format="png", dpi=110)
