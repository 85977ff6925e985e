"""Slices of a report: grey values, truth, a method's prediction with its errors, in colours everyone can tell apart."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from etsam.evaluation.metrics.results import SlicePicture, TomogramResult
from etsam.evaluation.report.colours import TRUTH
from etsam.pictures import COMPARED_OPACITY, ScaleBar, compared, resized, scale_bar, tinted, with_scale_bar

IGNORED_NOTE = "Stripes: not annotated, not counted."
_IGNORE = 255
_STRIPE_PIXELS = 8
# longest side in pixels and JPEG quality, tried from the left until all pictures fit
_SIZES = ((960, 82), (800, 80), (640, 80), (480, 78), (400, 75), (320, 72), (256, 70), (200, 65))
_MIN_SIDE = 400  # smaller slices are enlarged


@dataclass(frozen=True)
class SliceView:
    """One slice of one tomogram, as all methods that show it see it.

    Attributes
    ----------
    tomogram, axis, index
        Which slice.
    images
        (title, alternative text, RGB image (A, B, 3) uint8): the slice, its truth, a prediction for each method. The
        first row of an image is the last of the slice, so that Y (or Z) points up. A pixel is as high as it is wide.
    shows
        Why it is shown, such as `most membrane`; may be empty.
    averaged
        Number of slices whose mean the grey values are.
    bar
        Length of the scale bar.
    """

    tomogram: str
    axis: str
    index: int
    images: tuple[tuple[str, str, np.ndarray], ...]
    shows: str
    averaged: int
    bar: ScaleBar

    @property
    def bar_share(self) -> float:
        """Length of the scale bar as a share of the images' width."""
        return self.bar.voxels / self.images[0][2].shape[1]


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
        size = first.voxel_size_angstrom
        upright = tuple((title, text, _square(image[::-1], size)) for title, text, image in images)
        bar = scale_bar(first.grey.shape[1], None if size is None else size[1])
        views.append(SliceView(tomogram, axis, index, upright, first.shows, first.averaged, bar))
    return views


def _square(image: np.ndarray, size: tuple[float, float] | None) -> np.ndarray:
    """Image with rows as far apart as columns."""
    height = image.shape[0] if size is None else max(1, round(image.shape[0] * size[0] / size[1]))
    return image if height == image.shape[0] else resized(image, height, image.shape[1])


def images_with_bars(view: SliceView) -> list[tuple[str, np.ndarray]]:
    """(title, image) of a view, at least 400 pixels large, with the scale bar drawn into it."""
    found = []
    for title, _, image in view.images:
        factor = max(1.0, _MIN_SIDE / max(image.shape[:2]))
        larger = resized(image, round(image.shape[0] * factor), round(image.shape[1] * factor))
        found.append((title, with_scale_bar(larger, view.bar, factor)))
    return found


def errors_image(picture: SlicePicture) -> np.ndarray:
    """(A, B, 3) uint8: grey values, coloured where found, wrong, missed; striped where not annotated."""
    return _striped(compared(_rgb(picture.grey), *_agreement(picture)), picture.truth == _IGNORE)


def truth_image(picture: SlicePicture) -> np.ndarray:
    """(A, B, 3) uint8: grey values and annotated membrane; striped where not annotated."""
    return _striped(tinted(_rgb(picture.grey), picture.truth == 1, TRUTH, COMPARED_OPACITY), picture.truth == _IGNORE)


def _agreement(picture: SlicePicture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth, predicted = picture.truth == 1, np.asarray(picture.prediction, bool)
    counted = picture.truth != _IGNORE
    return truth & predicted, ~truth & predicted & counted, truth & ~predicted


def _rgb(grey: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(np.asarray(grey, np.float32)).clip(0, 1) * 255
    return np.repeat(values.round().astype(np.uint8)[..., None], 3, axis=-1)


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
    # a sample is enough: slices of a data set are alike
    sample = images[:: max(1, len(images) // 12)]
    longest = max(_MIN_SIDE, *(max(image.shape[:2]) for image in sample)) if sample else 0
    larger = [side for side, _ in _SIZES if side >= longest][:-1]  # all of them show such images as they are
    for side, quality in _SIZES[len(larger) :]:
        mean = sum(len(jpeg_uri(image, side, quality)) for image in sample) / max(1, len(sample))
        if mean * len(images) <= budget_bytes:
            return partial(jpeg_uri, longest_side=side, quality=quality), len(views)
    # the smallest size is still too large
    each = mean * len(images) / len(views)
    return partial(jpeg_uri, longest_side=side, quality=quality), int(budget_bytes // each)


def jpeg_uri(image: np.ndarray, longest_side: int, quality: int) -> str:
    """Data URI of a JPEG picture; colours at full resolution, for membranes are thin."""
    longest = max(image.shape[:2])
    factor = min(max(1.0, _MIN_SIDE / longest), longest_side / longest)
    if factor != 1:
        image = resized(image, round(image.shape[0] * factor), round(image.shape[1] * factor))
    picture, buffer = Image.fromarray(np.ascontiguousarray(image)), io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)  # `optimize` fails on noisy slices
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
