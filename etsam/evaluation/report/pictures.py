"""Slices of a report: grey values, truth, a method's prediction with its errors, in colours everyone can tell apart."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from etsam.evaluation.metrics.results import SlicePicture, TomogramResult

# Okabe & Ito 2008
FOUND, WRONG, MISSED, TRUTH = "#009E73", "#D55E00", "#56B4E9", "#F0E442"
LEGEND = (
    (TRUTH, "truth: membrane as annotated"),
    (FOUND, "found: prediction and truth agree"),
    (WRONG, "wrong: predicted, but not membrane"),
    (MISSED, "missed: membrane that was not predicted"),
)
IGNORED_NOTE = "Stripes: not annotated, not counted."
_ALPHA = 0.7
_IGNORE = 255
_STRIPE_PIXELS = 8
# longest side in pixels and JPEG quality, tried from the left until all pictures fit
_SIZES = ((640, 80), (480, 78), (400, 75), (320, 72), (256, 70), (200, 65))
_MIN_SIDE = 200  # smaller slices are enlarged, each voxel a square


@dataclass(frozen=True)
class SliceView:
    """One slice of one tomogram, as all methods that show it see it.

    Attributes
    ----------
    tomogram, axis, index
        Which slice.
    images
        (title, alternative text, RGB image (A, B, 3) uint8): the slice, its truth, a prediction for each method. The
        first row of an image is the last of the slice, so that Y (or Z) points up.
    """

    tomogram: str
    axis: str
    index: int
    images: tuple[tuple[str, str, np.ndarray], ...]


def slice_views(results: Sequence[TomogramResult]) -> list[SliceView]:
    """Gather the pictures of all methods by tomogram and slice, in the order of the results."""
    groups: dict[tuple[str, str, int], list[tuple[str, SlicePicture]]] = {}
    for result in results:
        for picture in result.pictures:
            groups.setdefault((result.tomogram, picture.axis, picture.index), []).append((result.method, picture))
    views = []
    for (tomogram, axis, index), shown in groups.items():
        first = shown[0][1]
        where = f"{tomogram}, {axis} = {index}"
        images = [
            ("Tomogram", f"{where}: grey values", _rgb(first.grey)),
            ("Truth", f"{where}: annotated membrane, {int((first.truth == 1).sum())} pixels", truth_image(first)),
        ]
        for method, picture in shown:
            found, wrong, missed = (int(mask.sum()) for mask in _agreement(picture))
            text = f"{where}, {method}: {found} pixels found, {wrong} wrong, {missed} missed"
            images.append((method, text, errors_image(picture)))
        views.append(
            SliceView(tomogram, axis, index, tuple((title, text, image[::-1]) for title, text, image in images))
        )
    return views


def errors_image(picture: SlicePicture) -> np.ndarray:
    """(A, B, 3) uint8: grey values, coloured where found, wrong, missed; striped where not annotated."""
    image = _rgb(picture.grey)
    for mask, colour in zip(_agreement(picture), (FOUND, WRONG, MISSED), strict=True):
        _paint(image, mask, colour)
    return _striped(image, picture.truth == _IGNORE)


def truth_image(picture: SlicePicture) -> np.ndarray:
    """(A, B, 3) uint8: grey values and annotated membrane; striped where not annotated."""
    image = _rgb(picture.grey)
    _paint(image, picture.truth == 1, TRUTH)
    return _striped(image, picture.truth == _IGNORE)


def _agreement(picture: SlicePicture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth, predicted = picture.truth == 1, np.asarray(picture.prediction, bool)
    counted = picture.truth != _IGNORE
    return truth & predicted, ~truth & predicted & counted, truth & ~predicted


def _rgb(grey: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(np.asarray(grey, np.float32)).clip(0, 1) * 255
    return np.repeat(values.round().astype(np.uint8)[..., None], 3, axis=-1)


def _paint(image: np.ndarray, mask: np.ndarray, colour: str) -> None:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
    image[mask] = (_ALPHA * rgb + (1 - _ALPHA) * image[mask]).round().astype(np.uint8)


def _striped(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(mask.shape)
    stripes = mask & ((rows + columns) % _STRIPE_PIXELS < 2)
    image[stripes] = 255 - (255 - image[stripes]) // 2
    return image


def encoder(views: Sequence[SliceView], budget_bytes: int) -> tuple[Callable[[np.ndarray], str], int]:
    """Choose the largest size at which all pictures together stay within a budget.

    Parameters
    ----------
    views
        All slices of the page.
    budget_bytes
        Of the encoded text of all pictures.

    Returns
    -------
    encode, slices
        `encode(image)` gives a data URI; `slices` is how many of the views fit even at the smallest size.
    """
    images = [image for view in views for _, _, image in view.images]
    for side, quality in _SIZES:
        # a sample is enough: slices of a data set are alike
        sample = images[:: max(1, len(images) // 24)]
        mean = sum(len(jpeg_uri(image, side, quality)) for image in sample) / max(1, len(sample))
        if mean * len(images) <= budget_bytes:
            return partial(jpeg_uri, longest_side=side, quality=quality), len(views)
    # the smallest size is still too large
    each = mean * len(images) / len(views)
    return partial(jpeg_uri, longest_side=side, quality=quality), int(budget_bytes // each)


def jpeg_uri(image: np.ndarray, longest_side: int, quality: int) -> str:
    """Data URI of a JPEG picture; colours at full resolution, for membranes are thin."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    longest = max(picture.size)
    if longest > longest_side:
        size = (max(1, round(length * longest_side / longest)) for length in picture.size)
        picture = picture.resize(tuple(size), Image.Resampling.BOX)  # type: ignore[arg-type]
    elif longest < _MIN_SIDE:
        factor = -(-_MIN_SIDE // longest)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)  # `optimize` fails on noisy slices
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
