"""A picture to judge a mask by: the slices with most membrane, plain above, with the mask as a translucent fill below.

What it shows is gathered in passes that a prediction makes anyway, before anybody knows where the membrane is: means of
about 10 nm of slices at places spread over the volume, as bytes, and the mask at the same places. Memory is bounded for
any volume: measured at 500 x 928 x 960 voxels, 71 MB, and 109 MB while it is drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from etsam.inference.uncertainty import MOST
from etsam.pictures import (
    DOUBT,
    MEMBRANE,
    Panel,
    averaged_slices,
    averaging,
    drawn,
    extent,
    scale_bar,
    sheet,
    stretched,
)
from etsam.weights.registry import names_of, weights_warning

_SLICE_BYTES, _SIDE_BYTES = (
    32_000_000,
    12_000_000,
)  # of the places where slices, and side views of one direction, are kept
_PANEL_PIXELS, _SIDE_PIXELS, _MOST_ZOOM = 480, 800, 8
_CROPPED_FROM = 640  # voxels; larger slices are shown whole and small, and their richest region large
_CROP_ZOOM = 2
_APART = 3  # means, about 30 nm, at least, between the two slices shown


class Sections:
    """Means of slices of a tomogram at places spread over it, kept while its slices pass by in order.

    Parameters
    ----------
    shape
        (Z, Y, X).
    voxel_size_angstrom
        (z, y, x); None if unknown.
    middle_only
        One place an axis, the middle.

    Attributes
    ----------
    averaged
        Axis -> number of slices in a mean.
    places
        Axis -> middles of these, increasing.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        voxel_size_angstrom: tuple[float, float, float] | None = None,
        middle_only: bool = False,
    ) -> None:
        self.shape, self.voxel_size_angstrom = tuple(shape), voxel_size_angstrom
        depth, height, width = shape
        steps = dict(zip("zyx", voxel_size_angstrom or (None,) * 3, strict=True))
        sides = dict(zip("zyx", shape, strict=True))
        self.averaged = {axis: averaged_slices(steps[axis], side) for axis, side in sides.items()}
        budgets = {
            "z": max(3, _SLICE_BYTES // (height * width)),
            "y": max(1, _SIDE_BYTES // (4 * depth * width)),
            "x": max(1, _SIDE_BYTES // (4 * depth * height)),
        }
        if middle_only:
            budgets = dict.fromkeys("zyx", 1)
        self.places = {axis: _spread(side, self.averaged[axis], int(budgets[axis])) for axis, side in sides.items()}
        self._slices: dict[int, np.ndarray] = {}
        self._sum, self._summed = np.zeros((height, width), np.float32), 0
        self._sides = {
            "y": np.zeros((len(self.places["y"]), depth, width), np.float32),
            "x": np.zeros((len(self.places["x"]), depth, height), np.float32),
        }
        self._bands = {
            axis: self.places[axis][:, None] + np.arange(self.averaged[axis]) - self.averaged[axis] // 2
            for axis in "yx"
        }

    def add(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of slice `z`, (Y, X)."""
        plane = np.asarray(plane, np.float32)
        finite = np.isfinite(plane)
        if not finite.all():
            plane = np.where(finite, plane, plane[finite].mean() if finite.any() else 0)
        self._sides["y"][:, z] = plane[self._bands["y"]].mean(axis=1)
        self._sides["x"][:, z] = plane[:, self._bands["x"]].mean(axis=2).T
        half = self.averaged["z"] // 2
        nearest = int(self.places["z"][np.abs(self.places["z"] - z).argmin()])
        if abs(nearest - z) > half:
            return
        if z == nearest - half:
            self._sum, self._summed = np.zeros_like(plane), 0
        self._sum += plane
        self._summed += 1
        if z == nearest + half:
            self._slices[nearest] = stretched(self._sum / self._summed)

    def image(self, axis: str, place: int) -> np.ndarray:
        """Mean around a place, uint8: (Y, X), (Z, X) or (Z, Y) across `z`, `y` or `x`."""
        if axis == "z":
            missing = np.full(self.shape[1:], 128, np.uint8)
            return self._slices.get(place, missing)
        return stretched(self._sides[axis][int(np.searchsorted(self.places[axis], place))])


class MaskSections:
    """A mask at the places where `Sections` keeps the tomogram, taken while its slices pass by.

    Parameters
    ----------
    of
        Places.

    Attributes
    ----------
    voxels
        Membrane in all slices so far.
    outside
        Gives (Y, X) bool of a slice: where nothing is to be marked, which is shown darker; None: nowhere.
    """

    outside: Callable[[int], np.ndarray] | None = None

    def __init__(self, of: Sections) -> None:
        self.places, self.averaged, self.shape, self.voxels = of.places, of.averaged, of.shape, 0
        depth, height, width = of.shape
        self._slices = {int(place): np.zeros(0, np.uint8) for place in of.places["z"]}
        self._sides = {
            "y": np.zeros((len(of.places["y"]), depth, width), bool),
            "x": np.zeros((len(of.places["x"]), depth, height), bool),
        }

    def add(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of slice `z`, (Y, X); membrane is above 0."""
        membrane = np.asarray(plane) > 0
        self.voxels += int(np.count_nonzero(membrane))
        self._sides["y"][:, z] = membrane[self.places["y"]]
        self._sides["x"][:, z] = membrane[:, self.places["x"]].T
        if z in self._slices:
            self._slices[z] = np.packbits(membrane)

    def mask(self, axis: str, place: int) -> np.ndarray:
        """Mask at a place, bool, shaped as the image there."""
        if axis != "z":
            return self._sides[axis][int(np.searchsorted(self.places[axis], place))]
        bits, shape = self._slices[place], self.shape[1:]
        if not bits.size:
            return np.zeros(shape, bool)
        return np.unpackbits(bits, count=shape[0] * shape[1]).view(bool).reshape(shape)

    def dimmed(self, image: np.ndarray, axis: str, place: int) -> np.ndarray:
        """Image at a place, uint8, darker where nothing is to be marked."""
        if self.outside is None:
            return image
        if axis == "z":
            outside = self.outside(place)
        else:
            outside = np.stack(
                [self.outside(z)[(place,) if axis == "y" else np.s_[:, place]] for z in range(self.shape[0])]
            )
        return np.where(outside if image.ndim == 2 else outside[..., None], image // 2, image)

    def richest(self, axis: str, number: int = 1) -> list[int]:
        """Places with most membrane, the richest first, apart from each other; from the middle if there is none."""
        places, length = self.places[axis], self.shape["zyx".index(axis)]
        rims = [rim(self.mask(axis, int(place))) for place in places]
        return richest(places, rims, length, number, min(_APART * self.averaged[axis], length // 3))


class UncertaintySections:
    """Uncertainty at the places where `Sections` keeps the tomogram, taken while its slices pass by, as bytes.

    Parameters
    ----------
    of
        Places.
    """

    def __init__(self, of: Sections) -> None:
        self._places, (depth, height, width) = of.places, of.shape
        self._slices = {int(place): np.zeros((height, width), np.uint8) for place in of.places["z"]}
        self._sides = {
            "y": np.zeros((len(of.places["y"]), depth, width), np.uint8),
            "x": np.zeros((len(of.places["x"]), depth, height), np.uint8),
        }
        self._total, self._voxels = 0.0, 0

    def add(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of slice `z`, (Y, X), 0 to 0.5."""
        self._total, self._voxels = self._total + float(plane.sum(dtype=np.float64)), self._voxels + plane.size
        levels = np.rint(plane * (255 / MOST)).astype(np.uint8)
        self._sides["y"][:, z] = levels[self._places["y"]]
        self._sides["x"][:, z] = levels[:, self._places["x"]].T
        if z in self._slices:
            self._slices[z] = levels

    @property
    def mean(self) -> float:
        """Mean of all slices so far: the share of voxels that are expected to be wrong."""
        return self._total / max(1, self._voxels)

    def image(self, axis: str, place: int) -> np.ndarray:
        """Uncertainty at a place, uint8, 255 for 0.5, shaped as the image there."""
        if axis == "z":
            return self._slices[place]
        return self._sides[axis][int(np.searchsorted(self._places[axis], place))]


@dataclass(frozen=True)
class Caption:
    """Heading of a preview.

    Attributes
    ----------
    name
        Of the tomogram.
    threshold
        Logits above it are membrane.
    pieces
        Connected pieces of the mask.
    weights
        Name of the weights' file; empty if unknown.
    cleaned
        True if the mask is the post-processed one.
    """

    name: str
    threshold: float
    pieces: int
    weights: tuple[str, ...] = ()
    cleaned: bool = False

    @property
    def badge(self) -> str:
        """Warning about the weights; empty if there is nothing to warn of."""
        return weights_warning(self.weights)


def preview(grey: Sections, mask: MaskSections, caption: Caption, doubt: UncertaintySections | None = None) -> bytes:
    """PNG file: slices and side views with most membrane, each plain, below it with the mask, and the uncertainty."""
    depth, height, width = grey.shape
    z_size, y_size, x_size = grey.voxel_size_angstrom or (1.0, 1.0, 1.0)
    slices = mask.richest("z", 2)
    views: list[tuple[_View, ...]] = []  # one a column
    deep = depth  # of side views
    if max(height, width) > _CROPPED_FROM:
        pixels = _CROP_ZOOM / x_size  # for an angstrom
        side = round(_PANEL_PIXELS / _CROP_ZOOM)
        deep = min(depth, side)  # taller ones would leave the sheet empty beside them
        first = _richest_region(mask.mask("z", slices[0]), (side, side))
        small = _PANEL_PIXELS / max(height * y_size, width * x_size)
        views.append((_View("z", slices[0], small, frame=first, note="whole slice"),))
        taken: tuple[int, int, int, int] | None = None
        for place in slices:
            region = _richest_region(mask.mask("z", place), (side, side), apart_from=taken)
            taken = taken or region
            views.append((_View("z", place, pixels, region=region),))
    else:
        most = min(_MOST_ZOOM / x_size, _SIDE_PIXELS / (depth * z_size))
        pixels, side = min(_PANEL_PIXELS / max(height * y_size, width * x_size), most), max(height, width)
        views += [(_View("z", place, pixels),) for place in slices]
    sides = []
    for axis in "yx":
        (place,) = mask.richest(axis)
        region = _richest_region(mask.mask(axis, place), (deep, side))
        sides.append(_View(axis, place, pixels, region=region))
    thin = 2 * deep * z_size <= 1.2 * min(height, side) * y_size
    views += [tuple(sides)] if thin else [(view,) for view in sides]
    columns = [
        [
            panel
            for view in cell
            for panel in (
                view.panel(grey, mask, False),
                view.panel(grey, mask, True),
                *([] if doubt is None else [view.doubt(grey, doubt)]),
            )
        ]
        for cell in views
    ]
    lines = _lines(grey, mask, caption)
    if doubt is not None:
        lines.append(
            f"Orange: where the mask may be wrong, strongest where it is as likely wrong as right. About "
            f"{100 * doubt.mean:.1f} % of all voxels are."
        )
    return sheet(caption.name, lines, columns, caption.badge)


@dataclass(frozen=True)
class _View:
    """A slice or side view, whole or a region of it, at a number of pixels for an angstrom."""

    axis: str
    place: int
    pixels: float
    region: tuple[int, int, int, int] | None = None
    frame: tuple[int, int, int, int] | None = None
    note: str = ""

    def panel(self, grey: Sections, mask: MaskSections, filled: bool) -> Panel:
        membrane = self._cut(mask.mask(self.axis, self.place))
        image = grey.image(self.axis, self.place)
        if filled:
            image = mask.dimmed(image, self.axis, self.place)
        shown = self._drawn(image, grey, membrane if filled else None)
        return Panel(shown, self._caption(membrane) if filled else self._where(grey))

    def doubt(self, grey: Sections, doubt: UncertaintySections) -> Panel:
        chance = self._cut(doubt.image(self.axis, self.place))
        expected = 100 * MOST * float(chance.mean()) / 255
        image = grey.image(self.axis, self.place)
        return Panel(self._drawn(image, grey, chance, DOUBT), f"{expected:.1f} % expected wrong")

    def _cut(self, image: np.ndarray) -> np.ndarray:
        first, last, left, right = self.region or (0, image.shape[0], 0, image.shape[1])
        return image[first:last, left:right]

    def _drawn(self, image: np.ndarray, grey: Sections, mask: np.ndarray | None, colour: str = MEMBRANE) -> np.ndarray:
        image = self._cut(image)
        sizes = grey.voxel_size_angstrom or (1.0, 1.0, 1.0)
        down, across = {"z": (1, 2), "y": (0, 2), "x": (0, 1)}[self.axis]
        zoom = self.pixels * sizes[down], self.pixels * sizes[across]
        bar = scale_bar(image.shape[1], None if grey.voxel_size_angstrom is None else sizes[across])
        return drawn(image, mask, zoom=zoom, bar=bar, frame=self.frame, colour=colour)

    def _where(self, grey: Sections) -> str:
        plane = {"z": "slice z", "y": "side view y", "x": "side view x"}[self.axis]
        words = [f"{plane} = {self.place}"]
        if self.note:
            words.append(self.note)
        elif self.region is not None and self.axis == "z":
            words.append(f"x {self.region[2]} to {self.region[3] - 1}, y {self.region[0]} to {self.region[1] - 1}")
        elif self.region is not None and self.region[3] - self.region[2] < grey.shape[2 if self.axis == "y" else 1]:
            words.append(f"{'x' if self.axis == 'y' else 'y'} {self.region[2]} to {self.region[3] - 1}")
            if self.region[1] - self.region[0] < grey.shape[0]:
                words.append(f"z {self.region[0]} to {self.region[1] - 1}")
        return ", ".join(words)

    @staticmethod
    def _caption(membrane: np.ndarray) -> str:
        return f"{100 * membrane.mean():.1f} % membrane"


def _lines(grey: Sections, mask: MaskSections, caption: Caption) -> list[str]:
    share = 100 * mask.voxels / float(np.prod(grey.shape))
    pieces = "1 piece" if caption.pieces == 1 else f"{caption.pieces} pieces"
    facts = [f"{share:.2f} % membrane in {pieces}" + (" after clean-up" if caption.cleaned else "")]
    facts.append(f"threshold {caption.threshold:g}")
    facts.append(extent(grey.shape, grey.voxel_size_angstrom))
    if caption.weights:
        facts.append(f"weights {names_of(caption.weights)}")
    mean = averaging(grey.averaged["z"], grey.voxel_size_angstrom)
    return [" · ".join(facts), f"{mean}; below each, the same with the mask in blue. Shown is where the mask has most."]


def _spread(side: int, averaged: int, most: int) -> np.ndarray:
    """Middles of means that do not overlap: side by side if there may be so many, else evenly spread."""
    fitting = max(1, side // averaged)
    number = min(fitting, most)
    starts = np.linspace(0, side - averaged, number) if number > 1 else np.array([(side - averaged) / 2])
    return np.unique(np.floor(starts).astype(int)) + averaged // 2


def richest(
    places: Sequence[int] | np.ndarray, rims: Sequence[int], length: int, number: int = 1, apart: int = 0
) -> list[int]:
    """Places with most membrane, the richest first; of equals, and without any, the one in the middle.

    Parameters
    ----------
    places
        Where planes lie along an axis.
    rims
        Of the mask in each, as of `rim`.
    length
        Of the axis.
    number
        Of places, at most.
    apart
        Of each other, at least.
    """
    at = np.asarray(places)
    content = np.asarray(rims, np.float64) + 1e-3 / (1 + np.abs(at - length / 2))
    found: list[int] = []
    while len(found) < number and len(found) < len(at):
        open_places = np.array([all(abs(place - other) >= apart for other in found) for place in at])
        if not open_places.any():
            break
        found.append(int(at[np.where(open_places, content, -1).argmax()]))
    return found


def rim(mask: np.ndarray) -> int:
    """Number of pixels of a mask (rows, columns) that have one outside beside them, or lie at the border.

    The measure of how much membrane a plane shows: cut flat, a membrane fills a disc, which shows nothing.
    """
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return int(np.count_nonzero(mask)) - int(np.count_nonzero(inner))


def _richest_region(
    mask: np.ndarray, size: tuple[int, int], apart_from: tuple[int, int, int, int] | None = None
) -> tuple[int, int, int, int]:
    """(first row, end, first column, end) of the window with most membrane, in steps of an eighth of it.

    If a third or more lies outside `apart_from`, only that counts. Without membrane it is the window in the middle.
    """
    height, width = (min(one, side) for one, side in zip(size, mask.shape, strict=True))
    if apart_from is not None:
        rest = mask.copy()
        rest[apart_from[0] : apart_from[1], apart_from[2] : apart_from[3]] = False
        if 3 * np.count_nonzero(rest) >= np.count_nonzero(mask):
            mask = rest
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    sums[1:, 1:] = mask.cumsum(0, dtype=np.int64).cumsum(1)
    rows, columns = (
        np.unique(np.append(np.arange(0, side - one + 1, max(1, one // 8)), [side - one, (side - one) // 2]))
        for side, one in zip(mask.shape, (height, width), strict=True)
    )
    top, left = rows[:, None], columns[None]
    content = sums[top + height, left + width] - sums[top, left + width] - sums[top + height, left] + sums[top, left]
    middle = abs(top - (mask.shape[0] - height) / 2) + abs(left - (mask.shape[1] - width) / 2)
    row, column = np.unravel_index(np.argmax(content - middle / (1 + middle.max())), content.shape)
    first, second = int(rows[row]), int(columns[column])
    return first, first + height, second, second + width
