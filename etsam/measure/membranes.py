"""One membrane from another: points of the mid-surface that continue each other belong together.

Neighbouring points are linked where their normals agree and neither lies off the other's plane. What touches is told
apart by position, because mid-surfaces stay apart; where two membranes have merged into one thick patch, or cross, the
points in between are left out and each surface is continued across. So are gaps, such as the missing wedge leaves, if
both edges face each other. What continues a surface where the mask has none is marked as joined.
"""

from collections.abc import Iterator
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
_LEAST_PAIRS = (4, 0.15)  # that join two pieces: so many, and so large a share of the shorter edge
_BATCH = 300_000  # points at a time
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
        links = _links(part)
        _, sheet = connected_components(_graph(links, len(part)), directed=False)
        rims.append(_rims(part, links, np.ones(len(part), bool), sheet, own))
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

    Connected parts are looked at one after another, or many small ones together, which bounds the memory; only their
    edges are compared with each other.

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
        The surface with normals of each piece to one side; (N,) the piece of each point, -1 for points of none; joined
        points; (M,) a point of the piece that each of them belongs to.
    """
    sheets, normals, count = np.full(len(surface), -1, np.int64), surface.normals.copy(), 0
    rims: list[_Rims] = []
    for own in _batches(surface):
        part = surface.select(own)
        links = _links(part)
        kept = np.ones(len(part), bool) if one_label else _without_merged(part, links)
        links = links[kept[links].all(axis=1)]
        number, sheet = connected_components(_graph(links, len(part)), directed=False)
        part = replace(part, normals=_oriented(part.normals, links, sheet))
        normals[own] = part.normals
        sheets[own] = np.where(kept, sheet + count, -1)
        count += int(number)
        if gap_voxels > 0:
            rims.append(_rims(part, links, kept, sheet, own))
    surface = replace(surface, normals=normals)
    pairs, directions = _pairs(rims, sheets, gap_voxels)
    ends = sheets[pairs]
    _, group = connected_components(_graph(ends, count), directed=False)
    agree = np.where(np.einsum("pi,pi->p", normals[pairs[:, 0]], normals[pairs[:, 1]]) < 0, -1.0, 1.0)
    signs = _sheet_signs(ends, agree, group)
    inside = sheets >= 0
    normals[inside] *= signs[sheets[inside], None]
    joined, owner = _bridges(surface, pairs, directions)
    return surface, np.where(inside, group[np.maximum(sheets, 0)], -1), joined, owner


def _batches(surface: MidSurface) -> Iterator[np.ndarray]:
    """Sorted indices of the points of whole connected parts, about `_BATCH` at a time or one part."""
    _, height, width = surface.shape
    z, flat = np.divmod(surface.voxels, height * width)
    rows = np.searchsorted(z, np.arange(surface.shape[0] + 1))

    def plane(index: int) -> np.ndarray:
        found = np.zeros(height * width, bool)
        found[flat[rows[index] : rows[index + 1]]] = True
        return found.reshape(height, width)

    components = StreamedComponents(LazySlices(surface.shape, plane))
    part = np.zeros(len(surface), np.int64)
    for index in range(surface.shape[0]):
        own = slice(rows[index], rows[index + 1])
        if own.start < own.stop:
            part[own] = components.labels(index).ravel()[flat[own]]
    order = np.argsort(part, kind="stable")
    ends = np.cumsum(np.bincount(part))
    start = 0
    for end in ends:
        if end - start >= _BATCH or (end == ends[-1] and end > start):
            yield np.sort(order[start:end])
            start = int(end)


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
    names, first, inverse, counts = np.unique(piece, return_index=True, return_inverse=True, return_counts=True)
    counts = np.where(names < 0, 0, counts)
    order = np.lexsort((first, -counts))
    large = order[counts[order] >= max(least_points, 1)]
    number = np.zeros(len(names), np.int32)
    number[large] = np.arange(1, len(large) + 1)
    return number[inverse]


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
    cells, asked = (np.floor(places / reach_voxels).astype(np.int32) + 1 for places in (points, others))
    grid = np.zeros(np.maximum(cells.max(axis=0), asked.max(axis=0)) + 1, bool)
    grid[tuple(asked.T)] = True
    found: np.ndarray = binary_dilation(grid, np.ones((3, 3, 3)))[tuple(cells.T)]
    return found


def _graph(links: np.ndarray, count: int) -> csr_array:
    return coo_array((np.ones(len(links), np.float32), (links[:, 0], links[:, 1])), shape=(count, count)).tocsr()


def _links(surface: MidSurface) -> np.ndarray:
    """Pairs of neighbouring points (L, 2) int32 that continue each other; in a large part the most memory of all."""
    _, height, width = surface.shape
    z, y, x = np.unravel_index(surface.voxels, surface.shape)
    rows, columns = height + 2, width + 2  # a voxel around it, so that no row runs into the next
    keys = ((z.astype(np.int64) + 1) * rows + y + 1) * columns + x + 1
    found = [np.zeros((0, 2), np.int32)]
    for dz, dy, dx in np.ndindex(3, 3, 3):
        step = ((dz - 1) * rows + dy - 1) * columns + dx - 1
        if step <= 0:
            continue
        wanted = keys + step
        other = np.searchsorted(keys, wanted)
        one = np.flatnonzero(keys[np.minimum(other, len(keys) - 1)] == wanted)
        found.append(_agreeing(surface, np.stack([one, other[one]], axis=1).astype(np.int32)))
    return np.concatenate(found)


def _agreeing(surface: MidSurface, pairs: np.ndarray) -> np.ndarray:
    """Those pairs whose normals agree, up to their sign, and whose points lie in each other's plane."""
    one, other = pairs.T
    first, second = surface.normals[one], surface.normals[other]
    cosine = np.einsum("ij,ij->i", first, second)
    mean = first + np.where(cosine < 0, -1, 1)[:, None] * second
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)
    step = surface.points[other] - surface.points[one]
    off = np.abs(np.einsum("ij,ij->i", step, mean))
    length = np.linalg.norm(step, axis=1)
    return pairs[(np.abs(cosine) >= _SAME_NORMAL) & (off <= _OFF_PLANE[0] + _OFF_PLANE[1] * length)]


def _without_merged(surface: MidSurface, links: np.ndarray) -> np.ndarray:
    """Mask (N,) of points that belong to one membrane: not in a patch that is twice as wide and lies between two."""
    kept = np.ones(len(surface), bool)
    _, piece = connected_components(_graph(links, len(surface)), directed=False)
    usual = _medians(surface.widths, piece)[piece]
    with np.errstate(invalid="ignore"):
        thick = (surface.widths > _THICK[0] * usual) & (surface.widths > usual + _THICK[1])
    if not thick.any():
        return kept
    same = thick[links[:, 0]] == thick[links[:, 1]]
    _, group = connected_components(_graph(links[same], len(surface)), directed=False)
    size = np.bincount(group)
    across = group[links[~same]]
    is_thick = thick[links[~same]]
    touching = np.unique(np.where(is_thick[:, :1], across, across[:, ::-1]), axis=0)  # (thick group, thin group)
    # a thick membrane is none between crumbs
    touching = touching[size[touching[:, 1]] >= np.maximum(size[touching[:, 0]], _CRUMB)]
    patch, neighbours = np.unique(touching[:, 0], return_counts=True)
    kept[np.isin(group, patch[neighbours >= 2]) & thick] = False
    return kept


def _medians(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Median of the values of each group, NaN left out."""
    known = np.isfinite(values)
    count = int(groups.max()) + 1
    order = np.lexsort((values[known], groups[known]))
    sorted_values = values[known][order]
    numbers = np.bincount(groups[known], minlength=count)
    middle = np.cumsum(numbers) - numbers + numbers // 2
    found = np.full(count, np.inf)
    found[numbers > 0] = sorted_values[middle[numbers > 0]]
    return found


def _outward(surface: MidSurface, links: np.ndarray) -> np.ndarray:
    """Vector (N, 3) from the mean of the points around each to itself, along the surface: long at an edge only."""
    graph = _graph(links, len(surface))
    graph = graph + graph.T
    degree = np.maximum(graph.sum(axis=1), 1)[:, None]
    points = surface.points.astype(np.float64)
    near = (graph @ points) / degree
    near = (graph @ near) / degree  # of two steps: four times as many points
    out = points - near
    out[graph.sum(axis=1) == 0] = 0
    return out - np.einsum("ij,ij->i", out, surface.normals)[:, None] * surface.normals


def _rims(surface: MidSurface, links: np.ndarray, kept: np.ndarray, sheet: np.ndarray, own: np.ndarray) -> _Rims:
    """Points at the edges of sheets; `own` (N,) are the names of the points in what follows."""
    out = _outward(surface, links)
    length = np.linalg.norm(out, axis=1)
    inside = (surface.points > _FACE_MARGIN) & (surface.points < np.array(surface.shape) - 1 - _FACE_MARGIN)
    rim = np.flatnonzero((length > _RIM) & kept & inside.all(axis=1) & (np.bincount(sheet)[sheet] >= 10))
    out = out[rim] / length[rim, None]
    if len(rim):
        # 8: of all sheets; a merged patch has two or three of them on top of each other
        ahead, near = KDTree(surface.points).query(surface.points[rim] + _AHEAD[0] * out, k=8)
        beyond = sheet[np.minimum(near, len(sheet) - 1)] == sheet[rim][:, None]
        edge = ~(beyond & (ahead <= _AHEAD[1])).any(axis=1)
        rim, out = rim[edge], out[edge]
    return _Rims(own[rim], surface.points[rim].astype(np.float64), out, *_behind(surface, links, sheet, rim, out))


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
    surface: MidSurface, links: np.ndarray, sheet: np.ndarray, rim: np.ndarray, out: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surface a few voxels behind each point of an edge, where the edge does not disturb it.

    Returns
    -------
    tuple
        (R, 3) points, (R, 3) smoothed normals, and (R,) curvature towards the edge, 1 / voxels, positive where the
        surface bends away from its normal.
    """
    normals = surface.normals.astype(np.float64)
    graph = _graph(links, len(surface))
    graph = graph + graph.T
    for _ in range(2):
        normals = normals + graph @ normals
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    tree = KDTree(surface.points)
    near, far = (tree.query(surface.points[rim] - back * out)[1] for back in _BACK)
    same = (sheet[near] == sheet[rim]) & (sheet[far] == sheet[rim])
    near, far = np.where(same, near, rim), np.where(same, far, rim)
    distance = np.linalg.norm(surface.points[near] - surface.points[far], axis=1)
    turned = np.einsum("ij,ij->i", normals[near] - normals[far], out)
    return surface.points[near].astype(np.float64), normals[near], turned / np.maximum(distance, 1.0)


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
