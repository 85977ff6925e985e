"""Wholeness of membranes: centre lines of their cuts (clDice), and numbers of parts, tunnels and cavities."""

from collections.abc import Callable, Iterator

import numpy as np
from skimage.morphology import skeletonize

from etsam.postprocess.components import StreamedComponents
from etsam.threads import in_order
from etsam.volume import Slices
from etsam.volume.slices import LazySlices


def _annotated(mask: Slices, annotated: Slices | None) -> Slices:
    """A mask without the voxels that nobody annotated, which count as background in both masks."""
    return mask if annotated is None else LazySlices(tuple(mask.shape), lambda z: mask[z] & annotated[z]).keep_last()


def _background(mask: Slices) -> Slices:
    """The background of a mask, with one layer of it all around."""
    shape = tuple(side + 2 for side in mask.shape)

    def plane(z: int) -> np.ndarray:
        out = np.ones(shape[1:], bool)
        if 0 < z < shape[0] - 1:
            out[1:-1, 1:-1] = ~mask[z - 1]
        return out

    return LazySlices(shape, plane).keep_last()


def cl_dice(
    truth: Slices,
    prediction: Slices,
    annotated: Slices | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> float:
    """Centre-line Dice (Shit et al., CVPR 2021, arXiv 2003.07311), of the XY slices.

    The harmonic mean of the share of the prediction's skeleton that lies in the truth and of the share of the truth's
    skeleton that lies in the prediction. A membrane is a sheet, and the 3D thinning of a sheet shrinks it to a few
    lines; its cut by a slice is a line, whose 2D skeleton (scikit-image, Zhang and Suen 1984) follows it. So skeletons
    are made slice by slice, with one slice in memory, and their pixels counted over the whole volume. A membrane that
    lies flat in a slice is an area there, and its skeleton says little.

    Parameters
    ----------
    truth, prediction
        (Z, Y, X) bool.
    annotated
        (Z, Y, X) bool; None: everywhere. Other voxels are background in both masks.
    progress
        Called with (slices done, slices in all).
    workers
        Threads, as of `etsam.threads.worker_count`.

    Returns
    -------
    float
        0 to 1; 1 if both masks are empty, 0 if one is.
    """
    truth, prediction = _annotated(truth, annotated), _annotated(prediction, annotated)
    depth = truth.shape[0]
    planes = ((truth[z], prediction[z]) for z in range(depth))
    counts = np.zeros((2, 2), np.int64)  # truth, prediction: pixels of the skeleton, those in the other mask
    for z, found in enumerate(in_order(_skeleton_counts, planes, workers)):
        counts += found
        if progress is not None:
            progress(z + 1, depth)
    if not counts[:, 0].any():
        return 1.0
    if not counts[:, 0].all() or not counts[:, 1].any():
        return 0.0
    sensitivity, precision = counts[:, 1] / counts[:, 0]
    return float(2 * sensitivity * precision / (sensitivity + precision))


def _skeleton_counts(planes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Pixels of the skeleton of each of two slices (Y, X), and how many of them lie in the other slice, (2, 2)."""
    counts = np.zeros((2, 2), np.int64)
    for row, (own, other) in enumerate((planes, planes[::-1])):
        if own.any():
            skeleton = skeletonize(own)
            counts[row] = np.count_nonzero(skeleton), np.count_nonzero(skeleton & other)
    return counts


def euler_characteristic(mask: Slices) -> int:
    """Parts minus tunnels plus cavities, of a mask whose voxels touch by faces, edges and corners (26).

    A voxel is a closed cube, so the number is that of corners minus edges plus faces minus cubes (scikit-image's
    `euler_number` counts the same by its table of neighbourhoods). What lies in the plane between two slices are the
    corners, edges and faces of the pixels of both; what lies within a slice stands on its pixels and counts the other
    way round. So the number is the sum of the planes' numbers minus that of the slices' numbers, all in 2D.

    Parameters
    ----------
    mask
        (Z, Y, X) bool.
    """
    total = 0
    below = np.zeros(mask.shape[1:], bool)
    for z in range(mask.shape[0]):
        plane = mask[z]
        total += _plane_euler(below | plane) - _plane_euler(plane)
        below = plane
    return total + _plane_euler(below)


def _plane_euler(plane: np.ndarray) -> int:
    """Corners minus edges plus faces of the closed pixels of a slice (Y, X) bool."""
    if not plane.any():
        return 0
    faces = np.zeros((plane.shape[0] + 2, plane.shape[1] + 2), bool)
    faces[1:-1, 1:-1] = plane
    along_x = faces[1:] | faces[:-1]
    along_y = faces[:, 1:] | faces[:, :-1]
    corners = along_x[:, 1:] | along_x[:, :-1]
    corner_count, edge_count = np.count_nonzero(corners), np.count_nonzero(along_x) + np.count_nonzero(along_y)
    return int(corner_count - edge_count + np.count_nonzero(plane))


def betti_numbers(mask: Slices, annotated: Slices | None = None) -> tuple[int, int, int]:
    """Connected parts, tunnels and cavities of a mask.

    Membrane voxels touch by faces, edges and corners (26), background by faces (6), and outside the volume there is
    background, so that a vesicle cut by a face is no cavity. b0 and b2 are counted as connected components (cc3d,
    slice by slice), b1 follows from the Euler number: b1 = b0 + b2 - (b0 - b1 + b2).

    Parameters
    ----------
    mask
        (Z, Y, X) bool.
    annotated
        (Z, Y, X) bool; None: everywhere. Other voxels are background.

    Returns
    -------
    tuple
        (b0, b1, b2).
    """
    known = _annotated(mask, annotated)
    parts = StreamedComponents(known, 26).count
    cavities = StreamedComponents(_background(known), 6).count - 1
    return parts, parts + cavities - euler_characteristic(known), cavities


def betti_errors(truth: Slices, prediction: Slices, annotated: Slices | None = None) -> Iterator[tuple[str, float]]:
    """Betti-number errors, |b(prediction) - b(truth)| over the whole volume, as (`betti0_error`, value) and so on."""
    pairs = zip(betti_numbers(truth, annotated), betti_numbers(prediction, annotated), strict=True)
    for dimension, (of_truth, of_prediction) in enumerate(pairs):
        yield f"betti{dimension}_error", float(abs(of_prediction - of_truth))
