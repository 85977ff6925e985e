"""The one drawing of slices: contrast, membrane as a translucent fill, scale bar, and panels on a sheet.

Arrays in, images out. The preview, the page beside a mask, the report, `inspect` and Weights & Biases all draw with it.
Y (in side views Z) points up, as in IMOD: the first row of an image is the last of the slice.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from etsam.errors import ConfigError

MEMBRANE = "#56B4E9"
"""Sky blue of Okabe & Ito 2008: told apart from grey with every kind of colour vision."""

DOUBT = "#E69F00"
"""Orange of Okabe & Ito 2008, far from the blue of membrane."""

FOUND, WRONG, MISSED = "#009E73", "#D55E00", "#56B4E9"
"""Of a prediction beside its truth: what both say is membrane, only the prediction, only the truth (Okabe & Ito)."""

COMPARED_OPACITY = 0.6
"""Of the fill where a prediction stands beside its truth."""

AVERAGED_ANGSTROM = 100.0
"""Thickness of what is averaged: noise goes, a membrane (4 to 8 nm, seldom steep to the slice) stays."""

_AVERAGED_UNKNOWN = 5  # slices, where the voxel size is not known
_CLIP_PERCENT = (0.5, 99.5)
_PADDING = 0.02  # of the voxels; more that are exactly the value of a corner are padding, and take no part in contrast
_OPACITY = 0.5
_BAR_SHARE = 0.3  # of the width, at most
_INK, _SOFT, _GAP = "#1a1a1a", "#555555", 10
_CAPTION_PIXELS, _LINE_PIXELS, _TITLE_PIXELS = 14, 20, 20
_BADGE = ("#FFB000", "#000000")  # amber with black: seen, and no red that says failure


def averaged_slices(step_angstrom: float | None, depth: int) -> int:
    """Number of slices whose mean is shown, odd so that one is in the middle: about 10 nm, at most all.

    Parameters
    ----------
    step_angstrom
        From one slice to the next; None if unknown.
    depth
        Slices there are.
    """
    wanted = AVERAGED_ANGSTROM / step_angstrom if step_angstrom else _AVERAGED_UNKNOWN
    number = min(2 * max(0, round((wanted - 1) / 2)) + 1, depth)
    return number if number % 2 else number - 1


def stretched(plane: np.ndarray) -> np.ndarray:
    """Grey values for the eye, (A, B) uint8: 0.5 % and 99.5 % become black and white; NaN and infinity are mid-grey.

    Padding (many voxels that are exactly the value of a corner) takes no part in the percentiles.
    """
    values = np.asarray(plane, np.float32)
    finite = np.isfinite(values)
    inside = values[finite]
    for corner in {float(values[row, column]) for row in (0, -1) for column in (0, -1)}:
        same = inside == corner
        if _PADDING * inside.size < np.count_nonzero(same) < inside.size:
            inside = inside[~same]
    for known in (inside, values[finite]):
        low, high = np.percentile(known[:: max(1, known.size // 200_000)], _CLIP_PERCENT) if known.size else (0, 0)
        if high > low:
            break
    else:
        low, high = (float(known.min()), float(known.max())) if known.size else (0, 0)
    if not high > low:
        return np.full(values.shape, 128, np.uint8)
    scaled = (np.where(finite, values, (low + high) / 2) - low) * (255 / (high - low))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def tinted(grey: np.ndarray, share: np.ndarray, colour: str = MEMBRANE, opacity: float = _OPACITY) -> np.ndarray:
    """Slice with a translucent fill.

    Parameters
    ----------
    grey
        (A, B) or (A, B, 3) uint8.
    share
        (A, B): True or 1 where there is membrane, between 0 and 1 at an edge that was resized.
    colour, opacity
        Of the fill.

    Returns
    -------
    np.ndarray
        (A, B, 3) uint8.
    """
    image = np.array(grey) if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=-1)
    paint = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
    painted = share > 0
    alpha = opacity * share[painted].astype(np.float32)[:, None]
    image[painted] = np.rint(image[painted] + alpha * (paint - image[painted]))
    return image


def compared(grey: np.ndarray, found: np.ndarray, wrong: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Slice with a prediction beside its truth, in the colours `FOUND`, `WRONG` and `MISSED`.

    Parameters
    ----------
    grey
        (A, B) or (A, B, 3) uint8.
    found, wrong, missed
        (A, B) bool, disjoint.

    Returns
    -------
    np.ndarray
        (A, B, 3) uint8.
    """
    for mask, colour in ((found, FOUND), (wrong, WRONG), (missed, MISSED)):
        grey = tinted(grey, mask, colour, COMPARED_OPACITY)
    return grey


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Image of another size, (height, width[, 3]) uint8: averaged when smaller, smooth when larger."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    smaller = width * height < picture.width * picture.height
    way = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    return np.asarray(picture.resize((max(1, width), max(1, height)), way))


def averaging(number: int, voxel_size_angstrom: Sequence[float] | None) -> str:
    """Words for a mean of slices, such as `Mean of 9 slices (9 nm)`; the voxel size is (z, y, x), None if unknown."""
    if number == 1:
        return "One slice"
    thickness = "" if voxel_size_angstrom is None else f" ({number * voxel_size_angstrom[0] / 10:.0f} nm)"
    return f"Mean of {number} slices{thickness}"


def extent(shape: Sequence[int], voxel_size_angstrom: Sequence[float] | None) -> str:
    """Voxel size, number of voxels and size of a volume in words; shape and voxel size are (z, y, x)."""
    sides = " x ".join(str(side) for side in shape[::-1])
    if voxel_size_angstrom is None:
        return f"voxel size unknown, {sides} voxels (x, y, z)"
    sizes = voxel_size_angstrom[::-1]
    same = max(sizes) - min(sizes) <= 0.001 * max(sizes)
    voxel = f"{sizes[0] / 10:.3g}" if same else " x ".join(f"{size / 10:.3g}" for size in sizes)
    lengths = " x ".join(f"{side * size / 10:.0f}" for side, size in zip(shape[::-1], sizes, strict=True))
    return f"{voxel} nm per voxel, {sides} voxels, {lengths} nm (x, y, z)"


@dataclass(frozen=True)
class ScaleBar:
    """Length of a scale bar.

    Attributes
    ----------
    voxels
        In voxels along the width of the image.
    label
        `100 nm`, `2 µm`; `50 voxels` where the voxel size is not known.
    """

    voxels: float
    label: str


def scale_bar(width_voxels: float, voxel_size_angstrom: float | None) -> ScaleBar:
    """Longest round bar (1, 2 or 5 times a power of ten) of at most three tenths of the width.

    Parameters
    ----------
    width_voxels
        Width of the image.
    voxel_size_angstrom
        Along it; None if unknown.

    Examples
    --------
    >>> scale_bar(200, 10.0)
    ScaleBar(voxels=50.0, label='50 nm')
    """
    unit = 1.0 if voxel_size_angstrom is None else voxel_size_angstrom / 10  # nm
    longest = _BAR_SHARE * width_voxels * unit
    power = 10.0 ** math.floor(math.log10(longest))
    length = max(factor * power for factor in (1, 2, 5) if factor * power <= longest * (1 + 1e-9))
    if voxel_size_angstrom is None:
        return ScaleBar(length, f"{length:g} voxels")
    label = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    return ScaleBar(length / unit, label)


def short_left(name: str, length: int) -> str:
    """A name of at most `length` letters; what is left out is its beginning, for ends differ.

    Examples
    --------
    >>> short_left("TS_037_denoised_corrected_rec.mrc", 18)
    '…corrected_rec.mrc'
    """
    name = " ".join(name.split())
    return name if len(name) <= length else "…" + name[len(name) - length + 1 :]


def drawn(
    grey: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    zoom: tuple[float, float] = (1.0, 1.0),
    bar: ScaleBar | None = None,
    frame: tuple[int, int, int, int] | None = None,
    colour: str = MEMBRANE,
) -> np.ndarray:
    """Slice as it is shown.

    Parameters
    ----------
    grey
        (A, B) or (A, B, 3) uint8, as of `stretched`.
    mask
        (A, B) bool, membrane, or uint8, of which 255 is filled as membrane is, and less with less; None: as it is.
    zoom
        Pixels for a voxel, (vertical, horizontal).
    bar
        Drawn into the lower left corner.
    frame
        (first row, end, first column, end) in voxels: a region to point at.
    colour
        Of the mask.

    Returns
    -------
    np.ndarray
        (height, width, 3) uint8, the last row of the slice first.
    """
    height, width = (max(1, round(side * factor)) for side, factor in zip(grey.shape[:2], zoom, strict=True))
    image = resized(grey[::-1], height, width)
    if mask is None:
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
    else:
        share = mask.astype(np.uint8) * 255 if mask.dtype == bool else mask
        image = tinted(image, resized(share[::-1], height, width) / np.float32(255), colour)
    if frame is not None:
        top, bottom = (round((grey.shape[0] - row) * zoom[0]) for row in (frame[1], frame[0]))
        left, right = (round(column * zoom[1]) for column in frame[2:])
        picture = Image.fromarray(image)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((left, top, right - 1, bottom - 1), outline="black", width=4)
        draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="white", width=2)
        image = np.asarray(picture)
    return image if bar is None else with_scale_bar(image, bar, zoom[1])


def with_scale_bar(image: np.ndarray, bar: ScaleBar, pixels_per_voxel: float = 1.0) -> np.ndarray:
    """Image (A, B, 3) uint8 with a bar in its lower left corner, white with a black edge to be seen on any grey."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    if picture.width < 60 or picture.height < 30:  # no room for letters
        return np.asarray(picture)
    size = int(min(18, max(11, picture.width / 26)))
    thick, margin, length = max(4, size // 3), max(5, size // 2), round(bar.voxels * pixels_per_voxel)
    draw, font = ImageDraw.Draw(picture), _font(size)
    bottom = picture.height - margin
    draw.rectangle((margin - 1, bottom - thick - 1, margin + length, bottom), fill="black")
    draw.rectangle((margin, bottom - thick, margin + length - 1, bottom - 1), fill="white")
    place = margin, bottom - thick - 4
    draw.text(place, bar.label, "white", font, anchor="ls", stroke_width=2, stroke_fill="black")
    return np.asarray(picture)


@dataclass(frozen=True)
class Panel:
    """An image (A, B, 3) uint8 with a line above it."""

    image: np.ndarray
    caption: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, the line included."""
        return self.image.shape[0] + _LINE_PIXELS * bool(self.caption), self.image.shape[1]


def sheet(title: str, lines: Sequence[str], columns: Sequence[Sequence[Panel]], badge: str = "") -> bytes:
    """PNG file of panels in columns below a heading.

    Parameters
    ----------
    title
        First line, large; shortened at the left to fit.
    lines
        Further ones; broken where they are too long.
    columns
        Panels, one below the other.
    badge
        A warning in a coloured box beside the title.

    Raises
    ------
    ConfigError
        If there are no panels.
    """
    if not any(columns):
        raise ConfigError("there is nothing to draw: no panels.")
    font = _font(_CAPTION_PIXELS)
    widths = [max(max(p.size[1], math.ceil(min(font.getlength(p.caption), 260))) for p in panels) for panels in columns]
    width = max(sum(widths) + _GAP * (len(widths) + 1), 420)
    broken = [piece for line in lines for piece in _broken(line, width - 2 * _GAP)]
    top = 2 * _GAP + _TITLE_PIXELS + _LINE_PIXELS * len(broken) + _GAP
    height = max(sum(panel.size[0] + _GAP for panel in panels) for panels in columns)
    picture = Image.new("RGB", (width, top + height), "white")
    draw = ImageDraw.Draw(picture)
    _heading(draw, title, badge, width)
    for number, line in enumerate(broken):
        draw.text((_GAP, 2 * _GAP + _TITLE_PIXELS + _LINE_PIXELS * number), line, _INK, font)
    left = _GAP
    for panels, column in zip(columns, widths, strict=True):
        y = top
        for panel in panels:
            draw.text((left, y), panel.caption, _SOFT, font)
            offset = panel.size[0] - panel.image.shape[0]
            picture.paste(Image.fromarray(np.ascontiguousarray(panel.image)), (left, y + offset))
            y += panel.size[0] + _GAP
        left += column + _GAP
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)  # of noisy slices no larger than 6, and twice as fast
    return buffer.getvalue()


def _heading(draw: ImageDraw.ImageDraw, title: str, badge: str, width: int) -> None:
    font, room, bold = _font(_TITLE_PIXELS, bold=True), width - 2 * _GAP, _font(_CAPTION_PIXELS, bold=True)
    if badge:
        room -= math.ceil(bold.getlength(badge)) + 3 * _GAP
    shown = next((text for n in range(len(title), 1, -1) if font.getlength(text := short_left(title, n)) <= room), "…")
    draw.text((_GAP, _GAP), shown, _INK, font)
    if badge:
        left = _GAP + math.ceil(font.getlength(shown)) + 2 * _GAP
        right = left + math.ceil(bold.getlength(badge)) + _GAP
        draw.rectangle((left, _GAP, right, _GAP + _TITLE_PIXELS + 4), fill=_BADGE[0])
        middle = (left + right) // 2, _GAP + (_TITLE_PIXELS + 4) // 2
        draw.text(middle, badge, _BADGE[1], bold, anchor="mm")


def _broken(line: str, room: float) -> list[str]:
    """A line in pieces that fit, broken between words."""
    font, pieces = _font(_CAPTION_PIXELS), [""]
    for word in line.split(" "):
        longer = f"{pieces[-1]} {word}".strip()
        if pieces[-1] and font.getlength(longer) > room:
            pieces.append(word)
        else:
            pieces[-1] = longer
    return pieces


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # its DejaVu has the letters of most names; Pillow's own font has Latin ones only

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
