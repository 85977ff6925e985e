"""Severs short misconnections between membranes in one slice.

Two membranes that run side by side are sometimes joined by short bridges in the mask. In the mask's skeleton a bridge
is a short segment between two junctions. It is cut out at its full width: every membrane pixel that is nearer to the
bridge than to any other part of the skeleton goes.
"""

import math

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.morphology import skeletonize

_NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


def sever_misconnections(mask: np.ndarray, max_bridge_len: int, max_spur_len: int = 0) -> np.ndarray:
    """Cut short bridges, and optionally short dead ends, out of one slice of a mask.

    The skeleton is that of `skimage.morphology.skeletonize` (Zhang and Suen 1984). A skeleton pixel with three or more
    of its eight neighbours in the skeleton belongs to a junction; what lies between junctions are segments. Removed is

    - a *bridge*: a segment of at most `max_bridge_len` pixels that touches two different junctions or more;
    - a *spur*: a segment of at most `max_spur_len` pixels that touches one junction and has a free end.

    With each goes the membrane around it: the pixels whose nearest skeleton pixel (Euclidean) lies in that segment. Of
    equally near skeleton pixels, the choice of `scipy.ndimage.distance_transform_edt` counts.

    Parameters
    ----------
    mask
        Shape (Y, X), bool.
    max_bridge_len
        Longest bridge to cut, in skeleton pixels; 0 cuts none.
    max_spur_len
        Longest spur to cut, in skeleton pixels; 0 cuts none.

    Returns
    -------
    np.ndarray
        Shape (Y, X), bool: a new array, `mask` without what was cut.
    """
    kept = mask.copy()
    if not mask.any():
        return kept
    skeleton = skeletonize(mask)
    cut, segment = _segments_to_cut(skeleton, max_bridge_len, max_spur_len)
    if not len(cut):
        return kept

    on_cut = np.zeros(mask.shape, bool)
    on_cut.ravel()[cut] = True
    for outer, inner in _windows(mask, skeleton, cut, segment):
        nearest = distance_transform_edt(~skeleton[outer], return_distances=False, return_indices=True)
        owned = on_cut[outer][tuple(nearest)]  # (Y, X) of the window
        within = tuple(slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
        kept[inner] &= ~owned[within]
    return kept


def _segments_to_cut(skeleton: np.ndarray, max_bridge_len: int, max_spur_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions of the skeleton pixels to cut, (n,), and the segment that each belongs to, (n,)."""
    n_rows, width = skeleton.shape
    pixels = np.flatnonzero(skeleton)  # (n,)
    node = np.full((n_rows + 2, width + 2), -1, np.int32)  # number of the skeleton pixel, -1 beside the skeleton
    inside = pixels + 2 * (pixels // width) + width + 3  # the same pixels with a border of one
    node.ravel()[inside] = np.arange(len(pixels))
    steps = np.array([dy * (width + 2) + dx for dy, dx in _NEIGHBOURS])
    neighbour = node.ravel()[inside[:, None] + steps]  # (n, 8)
    exists = neighbour >= 0
    degree = exists.sum(axis=1)
    is_junction = degree >= 3
    pixel, side = np.nonzero(exists)
    other = neighbour[pixel, side]  # (edges,): `pixel` and `other` are neighbours

    same = is_junction[pixel] == is_junction[other]
    edges = coo_matrix((np.ones(same.sum(), np.uint8), (pixel[same], other[same])), shape=(len(pixels),) * 2)
    n_parts, part = connected_components(edges, directed=False)  # part (n,): its segment, or its junction

    touches = ~is_junction[pixel] & is_junction[other]
    pairs = np.unique(part[pixel[touches]].astype(np.int64) * n_parts + part[other[touches]])
    n_junctions = np.bincount(pairs // n_parts, minlength=n_parts)  # (parts,): junctions that a segment touches
    length = np.bincount(part, minlength=n_parts)
    has_free_end = np.bincount(part[degree == 1], minlength=n_parts) > 0
    bridge = (n_junctions >= 2) & (length <= max_bridge_len)
    spur = (n_junctions == 1) & (length <= max_spur_len) & has_free_end
    chosen = (bridge | spur)[part]
    return pixels[chosen], part[chosen]


def _windows(
    mask: np.ndarray, skeleton: np.ndarray, cut: np.ndarray, segment: np.ndarray
) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Parts of the slice that are enough to find what belongs to the segments to cut.

    If no membrane pixel is further than r from the skeleton, then all pixels that belong to a segment lie within r of
    it (the inner window), and everything that decides about them within 2 r (the outer window): the result is that of
    the whole slice. Ties are kept too, since scipy's choice among equally near pixels does not depend on the others.

    Returns
    -------
    list
        (outer, inner) windows as slices in Y and X, one pair per segment; or the whole slice where that is less work.
    """
    whole = (slice(0, mask.shape[0]), slice(0, mask.shape[1]))
    order = np.argsort(segment, kind="stable")
    starts = np.flatnonzero(np.diff(segment[order], prepend=-1))
    reach = _reach(mask, skeleton)
    bounds = []  # per axis: first and last pixel of each segment
    for positions in np.divmod(cut[order], mask.shape[1]):
        bounds.append((np.minimum.reduceat(positions, starts), np.maximum.reduceat(positions, starts)))

    def padded(margin: int) -> list[tuple[slice, slice]]:
        spans = [
            [slice(max(a - margin, 0), min(b + margin + 1, size)) for a, b in zip(low, high, strict=True)]
            for (low, high), size in zip(bounds, mask.shape, strict=True)
        ]
        return list(zip(*spans, strict=True))

    outer = padded(2 * reach)
    if sum((y.stop - y.start) * (x.stop - x.start) for y, x in outer) >= mask.size:
        return [(whole, whole)]
    return list(zip(outer, padded(reach), strict=True))


def _reach(mask: np.ndarray, skeleton: np.ndarray) -> int:
    """Distance in pixels that no mask pixel's distance to the skeleton exceeds; an upper bound, not the least."""
    square, covered = 0, skeleton  # `covered`: within `square` of the skeleton in both Y and X
    while (mask > covered).any() and square < max(mask.shape):
        step = 2 * square + 1  # the furthest that leaves no gaps between the shifted squares
        rows = covered.copy()  # never the transpose: its rows are far apart in memory, which takes ten times as long
        rows[step:] |= covered[:-step]
        rows[:-step] |= covered[step:]
        covered = rows.copy()
        covered[:, step:] |= rows[:, :-step]
        covered[:, :-step] |= rows[:, step:]
        square = square + step
    return math.ceil(square * math.sqrt(2))
