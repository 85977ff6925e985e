"""One membrane from another: points of the mid-surface that continue each other belong together.

Neighbouring points are linked where their normals agree and neither lies off the other's plane. What touches is told
apart by position, because mid-surfaces stay apart; where two membranes have merged into one thick patch, or cross, the
points in between are left out and each surface is continued across. So are gaps, such as the missing wedge leaves, if
both edges face each other. What continues a surface where the mask has none is marked as joined.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import KDTree

from etsam.measure.midsurface import MidSurface
from etsam.postprocess.components import StreamedComponents
from etsam.volume.slices import LazySlices

_SAME_NORMAL = 0.7  # least cosine between linked normals: 45 degrees, which neighbours on a radius of 3 voxels reach
_OFF_PLANE = (0.35, 0.5)  # voxels, and share of the distance, that a neighbour may lie off the plane
_THICK = (1.4, 1.0)  # times the median width, and voxels more, at which a mask holds two membranes
_CRUMB = 30  # points that make no membrane yet
_BESIDE = 4.0  # voxels from a membrane within which a few points are of its mask's rim and no piece that is left out
_RIM = 0.45  # voxels by which the neighbours of a point at an edge lie to one side
_AHEAD = (1.9, 1.3)  # voxels beyond an edge, and around there, in which there is no other point
_FACING = 0.8  # least cosine between the way across a gap and the way out of the surface on either side
_TURN = 0.4  # least cosine between the normals on either side
_BACK = (5.0, 10.0)  # voxels behind an edge between which its direction and bending are found
_LEVEL = (0.5, 0.2)  # voxels, and share of the way across, by which the surface may miss the other side
_MISSED = 1.5  # voxels missed that double the cost of a way across
_OWN = 0.3  # of the cost, where the other side is the same sheet: a hole is closed before two sheets are joined
_SHEET = 10  # points, at least, of a sheet with edges
_LEAST_PAIRS = (4, 0.15)  # that join two pieces: so many, and so large a share of the shorter edge
_BATCH = 300_000  # points of small connected parts at a time
_PIECE = 400_000  # of one large part, in the order of their slices
_EDGE_POINTS = 20_000  # at a time
_SPACING = 0.7  # voxels between joined points
_FACE_MARGIN = 1.5  # voxels from the tomogram's end in which an edge is none of the membrane's


@dataclass(frozen=True)
class Membranes:
    """Points of the mid-surface, each with the number of its membrane.

    Attributes
    ----------
    surface
        All points. Normals of one membrane point to one side of it.
    numbers
        (N,) int32: 1 is the membrane with the most points; 0: of none, being too small or where two have merged.
    joined
        Points that continue a membrane across a gap; their voxels are -1 and their widths NaN.
    joined_numbers
        (M,) int32: the membranes of `joined`.
    left_out
        Number of pieces apart from all membranes that were too small, with their points in all.
    continued
        (P, 2) int32: pairs of numbers, the lower first, of given labels whose edges continue each other across a gap,
        as pieces of one membrane do. Without labels there is none: these are one membrane.
    """

    surface: MidSurface
    numbers: np.ndarray
    joined: MidSurface
    joined_numbers: np.ndarray
    left_out: tuple[int, int]
    continued: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int32))

    @property
    def count(self) -> int:
        """Of membranes."""
        return int(self.numbers.max(initial=0))

    def parts(self) -> Iterator[tuple[MidSurface, MidSurface]]:
        """Points and joined points of each membrane, by number."""
        order, bounds = _groups(self.numbers, self.count)
        joined_order, joined_bounds = _groups(self.joined_numbers, self.count)
        for number in range(self.count):
            own = order[bounds[number] : bounds[number + 1]]
            added = joined_order[joined_bounds[number] : joined_bounds[number + 1]]
            yield self.surface.select(own), self.joined.select(added)


def _groups(numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices sorted by number, and where each number from 1 to `count` begins and the last ends."""
    order = np.argsort(numbers, kind="stable")
    return order, np.searchsorted(numbers[order], np.arange(1, count + 2))


def find_membranes(surface: MidSurface, *, least_points: int = 60, gap_voxels: float = 20.0) -> Membranes:
    """Tell the membranes of a mid-surface apart.

    Parameters
    ----------
    surface
        As `find_midsurface` gives it.
    least_points
        Of a membrane, about its area in square voxels; what is smaller is left out.
    gap_voxels
        Widest gap that a membrane is joined across; 0 joins nothing.
    """
    if not len(surface):
        nobody = np.zeros(0, np.int32)
        return Membranes(surface, nobody, surface, nobody, (0, 0))
    surface, piece, joined, owner = _continued(surface, gap_voxels)
    numbers = _number(piece, least_points)
    left_out = _left_out(surface.points, piece, numbers)
    belongs = numbers[owner] > 0
    return Membranes(surface, numbers, joined.select(belongs), numbers[owner[belongs]], left_out)


def membranes_of_labels(parts: "list[MidSurface]", *, least_points: int = 60, gap_voxels: float = 20.0) -> Membranes:
    """Membranes that somebody has told apart already: the mid-surface of each label is one, its gaps are joined.

    Parameters
    ----------
    parts
        Mid-surface of each label, of volumes of one shape.
    least_points, gap_voxels
        As for `find_membranes`.

    Raises
    ------
    ValueError
        If there is not a point in all of them.
    """
    done, numbers, bridges, owners = [], [], [], []
    for number, part in enumerate(parts):
        if len(part):
            surface, _, joined, _ = _continued(part, gap_voxels, one_label=True)
            done.append(surface)
            bridges.append(joined)
            numbers.append(np.full(len(surface), number))
            owners.append(np.full(len(joined), number))
    if not done:
        raise ValueError("no label has a mid-surface")
    piece = np.concatenate(numbers)
    found = _number(piece, least_points)
    table = np.zeros(len(parts), np.int32)
    table[piece] = found
    surface = _together(done)
    left_out = _left_out(surface.points, piece, found)
    continued = _continued_labels(surface, found, gap_voxels)
    return Membranes(surface, found, _together(bridges), table[np.concatenate(owners)], left_out, continued)


def _continued_labels(surface: MidSurface, numbers: np.ndarray, gap_voxels: float) -> np.ndarray:
    """Pairs of numbers (P, 2), the lower first, that would be one membrane if nobody had told them apart."""
    if gap_voxels <= 0:
        return np.zeros((0, 2), np.int32)
    rims = []
    for number in range(1, int(numbers.max(initial=0)) + 1):
        own = np.flatnonzero(numbers == number)
        part = surface.select(own)
        links = _Links(part)
        found = _rims(part, links, np.ones(len(part), bool), _parts(links))
        rims += [replace(rim, index=own[rim.index]) for rim in found]
    pairs, _ = _pairs(rims, numbers, gap_voxels, least_voxels=0)  # labels may touch
    ends = np.sort(numbers[pairs], axis=1)
    return np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)


def _together(parts: "list[MidSurface]") -> MidSurface:
    voxels, points, normals, widths = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("voxels", "points", "normals", "widths")
    )
    return MidSurface(voxels, points, normals, widths, parts[0].shape)


@dataclass(frozen=True)
class _Rims:
    """Points at edges of sheets.

    Attributes
    ----------
    index
        (R,) of the point.
    points, out
        (R, 3): where, and which way is out of the sheet.
    start, normals, bend
        Of the surface a few voxels behind, as `_behind` gives them.
    """

    index: np.ndarray
    points: np.ndarray
    out: np.ndarray
    start: np.ndarray
    normals: np.ndarray
    bend: np.ndarray


def _continued(
    surface: MidSurface, gap_voxels: float, one_label: bool = False
) -> tuple[MidSurface, np.ndarray, MidSurface, np.ndarray]:
    """Pieces of a surface, joined where they continue each other.

    Connected parts are looked at one after another, or many small ones together, and large ones a few slices at a time,
    which bounds the memory; only their edges are compared with each other.

    Parameters
    ----------
    surface
        Not empty.
    gap_voxels
        Widest gap.
    one_label
        Whether all of it is one membrane, so that no patch lies between two.

    Returns
    -------
    tuple
        The surface with normals of each piece to one side; (N,) int32 the piece of each point, -1 for points of none;
        joined points; (M,) a point of the piece that each of them belongs to.
    """
    sheets, normals, count = np.full(len(surface), -1, np.int32), surface.normals.copy(), 0
    rims: list[_Rims] = []
    for own in _batches(surface):
        part = surface.select(own)
        links = _Links(part)
        kept = np.ones(len(part), bool) if one_label else _without_merged(part.widths, links)
        sheet = _parts(links, _both(kept), part.normals)
        normals[own] = part.normals
        sheets[own] = np.where(kept, sheet + np.int32(count), np.int32(-1))
        count += int(sheet.max()) + 1
        if gap_voxels > 0:
            rims += [replace(rim, index=own[rim.index]) for rim in _rims(part, links, kept, sheet)]
    surface = replace(surface, normals=normals)
    pairs, directions = _pairs(rims, sheets, gap_voxels)
    ends = sheets[pairs]
    _, group = connected_components(_graph(ends, count), directed=False)
    signs = _sheet_signs(ends, _agreement(normals, pairs), group)
    normals *= np.append(signs, 1).astype(np.float32)[sheets, None]  # the last one: of points of no sheet
    joined, owner = _bridges(surface, pairs, directions)
    return surface, np.append(group, -1).astype(np.int32)[sheets], joined, owner


def _both(kept: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Function that gives the mask of the pairs of which both points are kept."""
    return lambda one, other: kept[one] & kept[other]


def _agreement(normals: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """1 for pairs (P, 2) of points whose normals point to one side, else -1."""
    return np.where(np.einsum("pi,pi->p", normals[pairs[:, 0]], normals[pairs[:, 1]]) < 0, -1.0, 1.0)


def _batches(surface: MidSurface) -> Iterator[np.ndarray]:
    """Sorted indices of the points of whole connected parts, about `_BATCH` at a time or one part."""
    part = _mask_parts(surface)
    order = np.argsort(part, kind="stable").astype(np.int32)
    ends = np.cumsum(np.bincount(part))
    del part  # of a large tomogram
    start = 0
    for end in ends:
        if end - start >= _BATCH or (end == ends[-1] and end > start):
            yield np.sort(order[start:end])
            start = int(end)


def _mask_parts(surface: MidSurface) -> np.ndarray:
    """Connected part (N,) int32 of the voxels of all points."""
    depth, height, width = surface.shape
    rows = np.searchsorted(surface.voxels, np.arange(depth + 1) * (height * width))

    def flat(index: int) -> np.ndarray:
        return surface.voxels[rows[index] : rows[index + 1]] - index * height * width

    def plane(index: int) -> np.ndarray:
        found = np.zeros(height * width, bool)
        found[flat(index)] = True
        return found.reshape(height, width)

    components = StreamedComponents(LazySlices(surface.shape, plane))
    part = np.zeros(len(surface), np.int32)
    for index in np.flatnonzero(np.diff(rows)).tolist():
        part[rows[index] : rows[index + 1]] = components.labels(index).ravel()[flat(index)]
    return part


def _sheet_signs(ends: np.ndarray, agree: np.ndarray, group: np.ndarray) -> np.ndarray:
    """1 or -1 for each sheet (S,), so that normals of joined sheets point to one side.

    `ends` (P, 2) are pairs of sheets, `agree` (P,) is 1 where normals agree and -1 where they do not; most pairs of the
    same sheets decide.
    """
    count = len(group)
    one, other = ends.T
    votes = coo_array((agree, (one, other)), shape=(count, count)).tocsr()
    votes = (votes + votes.T).tocsr()
    roots = np.unique(group, return_index=True)[1]
    before = _parents(ends, roots, count)
    inner = before < count
    sign = np.ones(count + 1)
    nodes = np.flatnonzero(inner)
    if len(nodes):
        sign[nodes] = np.where(np.asarray(votes[nodes, before[nodes]]).ravel() < 0, -1, 1)
    return _along(sign, np.append(before, count))[:count]


def _number(piece: np.ndarray, least_points: int) -> np.ndarray:
    """Numbers of pieces by decreasing number of points, equal ones by their first; -1 is no piece."""
    counts = np.bincount(piece + 1)[1:]
    first = np.zeros(len(counts) + 1, np.int32)
    first[piece[::-1]] = np.arange(len(piece) - 1, -1, -1, dtype=np.int32)  # the last one written stays
    order = np.lexsort((first[:-1], -counts))
    large = order[counts[order] >= max(least_points, 1)]
    number = np.zeros(len(counts) + 1, np.int32)
    number[large] = np.arange(1, len(large) + 1)
    return number[piece]


def _left_out(points: np.ndarray, piece: np.ndarray, numbers: np.ndarray) -> tuple[int, int]:
    """Number of the pieces without a number that lie apart from all that have one, and of their points."""
    small = np.flatnonzero((numbers == 0) & (piece >= 0))
    if not len(small):
        return 0, 0
    _, group, counts = np.unique(piece[small], return_inverse=True, return_counts=True)
    nearest = np.full(len(counts), np.inf)
    # a tree of all points would take the most memory of all
    close = points[(numbers > 0) & may_be_within(_BESIDE, points, points[small])]
    if len(close):
        np.minimum.at(nearest, group, KDTree(close).query(points[small])[0])
    apart = nearest > _BESIDE
    return int(apart.sum()), int(counts[apart].sum())


def may_be_within(reach_voxels: float, points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mask (N,) of points (N, 3) in cells of that side that hold one of the others (M, 3), or lie beside such a cell.

    All that are nearer to one of the others than the reach are among them. No position may lie below -`reach_voxels`.
    """

    def cells(places: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple((np.floor(places / reach_voxels).astype(np.int32) + 1).T)

    found = np.zeros(len(points), bool)
    if not len(points) or not len(others):
        return found
    asked = cells(others)
    sides = np.maximum(np.max(asked, axis=1), np.floor(points.max(axis=0) / reach_voxels).astype(int) + 1)
    grid = np.zeros(sides + 1, bool)
    grid[asked] = True
    grid = binary_dilation(grid, np.ones((3, 3, 3)))
    for first in range(0, len(points), _PIECE):
        found[first : first + _PIECE] = grid[cells(points[first : first + _PIECE])]
    return found


def _graph(links: np.ndarray, count: int) -> csr_array:
    return coo_array((np.ones(len(links), np.float32), (links[:, 0], links[:, 1])), shape=(count, count)).tocsr()


class _Links:
    """Pairs of neighbouring points that continue each other.

    All of them would take the most memory of all. So a bit for each of the 13 neighbours that come later in the order
    of voxels is kept, and pairs are made of them for some points at a time.

    Parameters
    ----------
    surface
        Its normals may have any sign.
    """

    def __init__(self, surface: MidSurface) -> None:
        self._voxels, self._shape = surface.voxels, surface.shape
        self.count = len(surface)
        starts = range(0, self.count, _PIECE)
        self.spans = [slice(start, min(start + _PIECE, self.count)) for start in starts]
        self._bits = np.full(self.count, (1 << 13) - 1, np.uint16)
        for span in self.spans:
            for bit, (one, other) in enumerate(self._neighbours(span)):
                self._bits[span] &= np.uint16(~(1 << bit) & 0xFFFF)
                agree = _agree(surface, one, other)
                self._bits[one[agree]] |= np.uint16(1 << bit)

    def pairs(self, span: slice) -> np.ndarray:
        """(2, L) int32, of the points of a span with later ones, which may lie beyond the span."""
        return np.concatenate([np.array(found, np.int32) for found in self._neighbours(span)], axis=1)

    def within(self, span: slice, kept: np.ndarray) -> np.ndarray:
        """(2, L) of points of a span with each other, counted from its first, where both of them are kept."""
        one, other = pairs = self.pairs(span)
        return pairs[:, (other < span.stop) & kept[one] & kept[other]] - np.int32(span.start)

    def slices_around(self, points: slice, slices: int) -> slice:
        """All points in the slices of some points, and so many slices before and after."""
        plane = self._shape[1] * self._shape[2]
        first, last = (int(self._voxels[at]) // plane for at in (points.start, points.stop - 1))
        bounds = np.searchsorted(self._voxels, [(first - slices) * plane, (last + 1 + slices) * plane])
        return slice(int(bounds[0]), int(bounds[1]))

    def _neighbours(self, span: slice) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Points of a span and their neighbours, for each bit that is set."""
        end = self.slices_around(span, 1).stop
        z, y, x = np.unravel_index(self._voxels[span.start : end], self._shape)
        rows, columns = self._shape[1] + 2, self._shape[2] + 2  # a voxel around it, so that no row runs into the next
        keys = np.append(((z + 1) * rows + y + 1) * columns + x + 1, -1)
        bits = self._bits[span]
        for row, step in enumerate((0, columns, (rows - 1) * columns, rows * columns, (rows + 1) * columns)):
            one = np.flatnonzero(bits & (0b1 if row == 0 else 0b111 << (3 * row - 2)))
            wanted = keys[one] + step + (1 if row == 0 else -1)
            other = one + 1 if row == 0 else np.searchsorted(keys[:-1], wanted)
            for bit in range(max(3 * row - 2, 0), 3 * row + 1):
                there = keys[other] == wanted
                used = there & (bits[one] & (1 << bit) > 0)
                yield one[used] + span.start, other[used] + span.start
                other, wanted = other + there, wanted + 1  # the next voxel of the row is the next point, if it is one


def _agree(surface: MidSurface, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mask (P,) of pairs whose normals agree, up to their sign, and whose points lie in each other's plane."""
    first, second = surface.normals[one], surface.normals[other]
    cosine = np.einsum("ij,ij->i", first, second)
    mean = first + np.where(cosine < 0, -1, 1)[:, None] * second
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)
    step = surface.points[other] - surface.points[one]
    off = np.abs(np.einsum("ij,ij->i", step, mean))
    length = np.linalg.norm(step, axis=1)
    agree: np.ndarray = (np.abs(cosine) >= _SAME_NORMAL) & (off <= _OFF_PLANE[0] + _OFF_PLANE[1] * length)
    return agree


def _parts(
    links: _Links, used: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None, normals: np.ndarray | None = None
) -> np.ndarray:
    """Connected part of each point (N,) int32, numbered from 0 in the order of their first points.

    Parameters
    ----------
    links
        Looked at span by span; what is connected across the ends of spans is made one afterwards.
    used
        Mask of the pairs (L,) and (L,) that connect; None: all.
    normals
        (N, 3) float32, turned in place so that those of each part point to the side of its first.
    """
    found, count = np.zeros(links.count, np.int32), 0
    across = [np.zeros((0, 2), np.int32)]
    for span in links.spans:
        pairs = links.pairs(span)
        if used is not None:
            pairs = pairs[:, used(*pairs)]
        beyond = pairs[1] >= span.stop
        across.append(pairs[:, beyond].T)
        inner = pairs[:, ~beyond].T - np.int32(span.start)
        size = span.stop - span.start
        number, part = connected_components(_graph(inner, size), directed=False)
        if normals is not None:
            normals[span] = _oriented(normals[span], inner, part)
        found[span] = part + count
        count += int(number)
    if len(links.spans) < 2:
        return found
    pairs = np.concatenate(across)
    ends = found[pairs]
    _, group = connected_components(_graph(ends, count), directed=False)
    if normals is not None:
        normals *= _sheet_signs(ends, _agreement(normals, pairs), group).astype(np.float32)[found, None]
    return group.astype(np.int32)[found]


def _without_merged(widths: np.ndarray, links: _Links) -> np.ndarray:
    """Mask (N,) of points that belong to one membrane: not in a patch that is twice as wide and lies between two."""
    kept = np.ones(len(widths), bool)
    piece = _parts(links)
    usual = _medians(widths, piece)
    thick = np.zeros(len(widths), bool)
    for span in links.spans:
        wide, own = widths[span], usual[piece[span]]
        with np.errstate(invalid="ignore"):
            thick[span] = (wide > _THICK[0] * own) & (wide > own + _THICK[1])
    if not thick.any():
        return kept
    group = _parts(links, lambda one, other: thick[one] == thick[other])
    size = np.bincount(group)
    touching = [np.zeros((0, 2), np.int32)]  # (thick group, thin group)
    for span in links.spans:
        one, other = links.pairs(span)
        unlike = thick[one] != thick[other]
        pairs = np.stack([one[unlike], other[unlike]], axis=1)
        ends = group[pairs]
        touching.append(np.unique(np.where(thick[pairs[:, :1]], ends, ends[:, ::-1]), axis=0))
    touches = np.unique(np.concatenate(touching), axis=0)
    # a thick membrane is none between crumbs
    touches = touches[size[touches[:, 1]] >= np.maximum(size[touches[:, 0]], _CRUMB)]
    between = np.bincount(touches[:, 0], minlength=len(size)) >= 2
    kept[between[group] & thick] = False
    return kept


def _medians(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Median of the values (N,) float32 >= 0 of each group, NaN left out."""
    known = np.isfinite(values)
    count = int(groups.max()) + 1
    # sorted by group, then by value: the bits of floats that are not negative are in the order of the floats
    keys = groups[known].astype(np.int64) << 32 | values[known].astype(np.float32).view(np.int32)
    keys.sort()
    sorted_values = (keys & 0xFFFFFFFF).astype(np.int32).view(np.float32)
    numbers = np.bincount(groups[known], minlength=count)
    middle = np.cumsum(numbers) - numbers + numbers // 2
    found = np.full(count, np.inf)
    found[numbers > 0] = sorted_values[middle[numbers > 0]]
    return found


def _outward(points: np.ndarray, normals: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Vector (N, 3) from the mean of the points around each to itself, along the surface: long at an edge only."""
    graph = _graph(links.T, len(points))
    graph = graph + graph.T
    linked = graph.sum(axis=1)
    degree = np.maximum(linked, 1)[:, None]
    points = points.astype(np.float64)
    near = (graph @ points) / degree
    near = (graph @ near) / degree  # of two steps: four times as many points
    out = points - near
    out[linked == 0] = 0
    return out - np.einsum("ij,ij->i", out, normals)[:, None] * normals


def _rims(surface: MidSurface, links: _Links, kept: np.ndarray, sheet: np.ndarray) -> Iterator[_Rims]:
    """Points at the edges of sheets (N,), of one span of points after another."""
    points, normals = surface.points, surface.normals
    large = np.bincount(sheet) >= _SHEET
    top = np.array(surface.shape) - 1 - _FACE_MARGIN
    for span in links.spans:
        window = links.slices_around(span, 2)  # two steps
        own = slice(span.start - window.start, span.stop - window.start)
        out = _outward(points[window], normals[window], links.within(window, kept))[own]
        length = np.linalg.norm(out, axis=1)
        inside = ((points[span] > _FACE_MARGIN) & (points[span] < top)).all(axis=1)
        rim = np.flatnonzero((length > _RIM) & kept[span] & inside & large[sheet[span]])
        out = out[rim] / length[rim, None]
        rim += span.start
        if len(rim):
            at = points[rim] + _AHEAD[0] * out
            near_rim = _around(points, links.slices_around(span, 5), at, _AHEAD[0] + 0.1)  # with the rim itself
            # 8: of all sheets; a merged patch has two or three of them on top of each other
            ahead, near = KDTree(points[near_rim]).query(at, k=8)
            beyond = sheet[near_rim][np.minimum(near, len(near_rim) - 1)] == sheet[rim][:, None]
            edge = ~(beyond & (ahead <= _AHEAD[1])).any(axis=1)
            rim, out = rim[edge], out[edge]
        if len(rim):
            behind = _behind(surface, links, kept, sheet, rim, out)
            yield _Rims(rim, points[rim].astype(np.float64), out, *behind)


def _around(points: np.ndarray, window: slice, at: np.ndarray, reach: float) -> np.ndarray:
    """Indices of the points of a window that may be nearer to one of the positions (n, 3) than the reach, voxels."""
    return window.start + np.flatnonzero(may_be_within(reach, points[window], at))


def _pairs(
    parts: list[_Rims], sheets: np.ndarray, gap_voxels: float, least_voxels: float = 1.5
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of points (P, 2) on either side of gaps that one surface continues across, and normals there (P, 2, 3).

    A way across has to leave and arrive along the surface, bent as the surface is bent on either side: so a sphere that
    touches another is closed by its own other side and not by the straight way into the other.
    """
    nothing = np.zeros((0, 2), np.int64), np.zeros((0, 2, 3))
    if sum(len(part.index) for part in parts) < 2:
        return nothing
    names = ("index", "points", "out", "start", "normals", "bend")
    rim, points, out, start, normals, bend = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    sheet = sheets[rim]
    found = list(_facing(points, out, normals, least_voxels, gap_voxels))
    one, other, gap, straight = (np.concatenate(column) for column in zip(*found, strict=True))
    way = start[other] - start[one]
    span = np.linalg.norm(way, axis=1)
    off = [
        np.abs(sign * np.einsum("ij,ij->i", way, normals[end]) + bend[end] * span**2 / 2)
        for sign, end in ((1, one), (-1, other))
    ]
    missed = np.maximum(*off)
    cost = gap * (1 + (missed / _MISSED) ** 2) / straight**2
    cost *= np.where(sheet[one] == sheet[other], _OWN, 1.0)
    level = missed <= _LEVEL[0] + _LEVEL[1] * span
    one, other, cost = one[level], other[level], cost[level]
    best = np.full(len(rim), np.inf)
    for end in (one, other):
        np.minimum.at(best, end, cost)
    chosen = (cost <= best[one]) | (cost <= best[other])
    one, other = one[chosen], other[chosen]
    if not len(one):
        return nothing
    # at the edge itself the mask's end has turned the normals: they are continued from behind
    normals = normals + (bend * np.linalg.norm(points - start, axis=1))[:, None] * out
    enough = _supported(np.stack([rim[one], rim[other]], axis=1), sheets, rim)
    one, other = one[enough], other[enough]
    return np.stack([rim[one], rim[other]], axis=1), np.stack([normals[one], normals[other]], axis=1)


def _facing(
    points: np.ndarray, out: np.ndarray, normals: np.ndarray, least_voxels: float, gap_voxels: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of edge points that look at each other: one, other, gap in voxels, straightness of the way at both ends.

    Layer by layer along Z, so that memory is that of the pairs of a layer.
    """
    order = np.argsort(points[:, 0], kind="stable")
    heights = points[order, 0]
    for first in range(0, len(order), _EDGE_POINTS):
        last = min(first + _EDGE_POINTS, len(order))
        reach = int(np.searchsorted(heights, heights[last - 1] + gap_voxels, side="right"))
        here = order[first:reach]
        pairs = KDTree(points[here]).query_pairs(gap_voxels, output_type="ndarray")
        pairs = here[pairs[pairs.min(axis=1) < last - first]]  # the others are the next layer's
        one, other = np.sort(pairs, axis=1).T
        step = points[other] - points[one]
        gap = np.maximum(np.linalg.norm(step, axis=1), 1e-6)
        leaving = np.einsum("ij,ij->i", step, out[one]) / gap
        arriving = -np.einsum("ij,ij->i", step, out[other]) / gap
        good = (leaving >= _FACING) & (arriving >= _FACING) & (gap > least_voxels)
        good &= np.abs(np.einsum("ij,ij->i", normals[one], normals[other])) >= _TURN
        yield one[good], other[good], gap[good], (leaving * arriving)[good]


def _behind(
    surface: MidSurface, links: _Links, kept: np.ndarray, sheet: np.ndarray, rim: np.ndarray, out: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surface a few voxels behind each point of an edge, where the edge does not disturb it.

    Returns
    -------
    tuple
        (R, 3) points, (R, 3) smoothed normals, and (R,) curvature towards the edge, 1 / voxels, positive where the
        surface bends away from its normal.
    """
    points, rims = surface.points, slice(int(rim[0]), int(rim[-1]) + 1)
    found = []
    for back in _BACK:
        at = points[rim] - back * out
        # what is nearest to a position is no farther away than the edge that it was reached from
        some = _around(points, links.slices_around(rims, int(2 * back) + 2), at, back)
        found.append(some[KDTree(points[some]).query(at)[1]])
    same = (sheet[found[0]] == sheet[rim]) & (sheet[found[1]] == sheet[rim])
    near, far = (np.where(same, nearest, rim) for nearest in found)
    distance = np.linalg.norm(points[near] - points[far], axis=1)
    at_near, at_far = _smoothed_normals(surface, links, kept, near, far)
    at_far *= np.where(np.einsum("ij,ij->i", at_near, at_far) < 0, -1, 1)[:, None]
    turned = np.einsum("ij,ij->i", at_near - at_far, out)
    return points[near].astype(np.float64), at_near, turned / np.maximum(distance, 1.0)


def _smoothed_normals(
    surface: MidSurface, links: _Links, kept: np.ndarray, near: np.ndarray, far: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means (n, 3) of the normals around points `near` and around points `far`, of two steps along links."""
    wanted = np.concatenate([near, far])
    asked = slice(int(wanted.min()), int(wanted.max()) + 1)
    # two steps are two voxels, and a point lies within a voxel of its own
    some = _around(surface.points, links.slices_around(asked, 2), surface.points[wanted], 4.0)
    part = surface.select(some)
    pairs = _Links(part).within(slice(0, len(part)), kept[some]).T
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    # turned to one side here: where three sheets meet at an edge, not all normals of a membrane can agree
    agreement = _agreement(part.normals, pairs)
    around = coo_array((agreement, tuple(pairs.T)), shape=(len(part),) * 2).tocsr()
    normals = part.normals.astype(np.float64)
    for _ in range(2):
        normals = normals + around @ normals
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    at = np.searchsorted(some, wanted)
    return normals[at[: len(near)]], normals[at[len(near) :]]


def _supported(pairs: np.ndarray, sheet: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """Mask (P,) of pairs that join two sheets, or a sheet with itself, by enough of their edges."""
    ends = np.sort(sheet[pairs], axis=1)
    _, group, counts = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    edge = np.bincount(sheet[rim], minlength=int(sheet.max()) + 1)
    shorter = edge[ends].min(axis=1)
    enough = np.maximum(_LEAST_PAIRS[0], _LEAST_PAIRS[1] * shorter)
    own = ends[:, 0] == ends[:, 1]  # a hole in a sheet
    return counts[group] >= np.where(own, _LEAST_PAIRS[0], enough)


def _oriented(normals: np.ndarray, links: np.ndarray, sheet: np.ndarray) -> np.ndarray:
    """Normals (N, 3) turned so that those of each sheet (N,) point to the same side."""
    count = len(normals)
    before = _parents(links, np.unique(sheet, return_index=True)[1], count)
    extended = np.concatenate([normals, np.zeros((1, 3), np.float32)])
    sign = np.where(np.einsum("ij,ij->i", normals, extended[before]) < 0, -1, 1)
    return normals * _along(np.append(sign, 1), np.append(before, count))[:count, None].astype(np.float32)


def _parents(links: np.ndarray, roots: np.ndarray, count: int) -> np.ndarray:
    """Point before each (N,) on the way from the root of its part; `count` for the roots."""
    top = np.full(len(roots), count)  # one more point that is linked to the root of each part
    graph = _graph(np.concatenate([links, np.stack([top, roots], axis=1).astype(links.dtype)]), count + 1)
    _, before = breadth_first_order(graph, count, directed=False)
    found: np.ndarray = np.where(before < 0, count, before).astype(np.int64)[:count]
    return found


def _along(sign: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Product of the signs (N,) from each point to its root, which is before itself; by ever longer steps."""
    for _ in range(int(np.ceil(np.log2(len(sign) + 1))) + 1):
        sign = sign * sign[before]
        before = before[before]
        if (before == before[-1]).all():
            break
    return sign


def _bridges(surface: MidSurface, pairs: np.ndarray, directions: np.ndarray) -> tuple[MidSurface, np.ndarray]:
    """Points along smooth curves from one side of each gap to the other, and the point each belongs to.

    `directions` (P, 2, 3): normals of the surface at both ends, of any sign and length.
    """
    start, end = (surface.points[pairs[:, column]].astype(np.float64) for column in (0, 1))
    side = np.where(np.einsum("pij,pij->pi", directions, surface.normals[pairs]) < 0, -1, 1)
    directions = directions * side[:, :, None]
    directions = directions / np.maximum(np.linalg.norm(directions, axis=2, keepdims=True), 1e-6)
    normals = [directions[:, 0], directions[:, 1]]
    step = end - start
    gap = np.linalg.norm(step, axis=1, keepdims=True)
    slopes = []
    for normal in normals:  # the way across, bent into the surface at its end
        slope = step - np.einsum("ij,ij->i", step, normal)[:, None] * normal
        slopes.append(slope * gap / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-6))
    steps = np.maximum(np.ceil(gap[:, 0] / _SPACING).astype(int), 2)
    pair = np.repeat(np.arange(len(pairs)), steps - 1)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(steps - 1) - (steps - 1), steps - 1) + 1
    t = (within / steps[pair])[:, None]
    points = (
        (2 * t**3 - 3 * t**2 + 1) * start[pair]
        + (t**3 - 2 * t**2 + t) * slopes[0][pair]
        + (3 * t**2 - 2 * t**3) * end[pair]
        + (t**3 - t**2) * slopes[1][pair]
    )
    mean = (1 - t) * normals[0][pair] + t * normals[1][pair]
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)
    count = len(pair)
    joined = MidSurface(
        np.full(count, -1, np.int64),
        points.astype(np.float32),
        mean.astype(np.float32),
        np.full(count, np.nan, np.float32),
        surface.shape,
    )
    return joined, pairs[pair, 0] if count else np.zeros(0, np.int64)
