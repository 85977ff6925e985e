"""Gold beads: dense balls of 5 to 20 nm."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from etsam.errors import InputError
from etsam.postprocess.coarse import ROBUST, Coarse


@dataclass(frozen=True)
class Bead:
    """A gold bead.

    Attributes
    ----------
    centre
        (z, y, x), voxels.
    semi_axes
        (z, y, x), voxels: of the ellipsoid that is left out, margin included; along Z the missing wedge draws it out.
    diameter_nm
        In the plane, without margin.
    """

    centre: tuple[float, float, float]
    semi_axes: tuple[float, float, float]
    diameter_nm: float


@dataclass(frozen=True)
class Beads:
    """Gold beads of a tomogram.

    Attributes
    ----------
    beads
        In order of Z.
    shape
        (Z, Y, X) of the tomogram.
    """

    beads: tuple[Bead, ...]
    shape: tuple[int, ...]

    def outside(self, z: int) -> np.ndarray:
        """(Y, X) bool of slice `z`: in a bead or its margin."""
        out = np.zeros(self.shape[1:], bool)
        for bead in self.beads:
            (cz, cy, cx), (az, ay, ax) = bead.centre, bead.semi_axes
            rest = 1 - ((z - cz) / az) ** 2
            if rest <= 0:
                continue
            y0, y1 = max(0, int(cy - ay)), min(self.shape[1], int(cy + ay) + 2)
            x0, x1 = max(0, int(cx - ax)), min(self.shape[2], int(cx + ax) + 2)
            y, x = np.arange(y0, y1)[:, None], np.arange(x0, x1)[None]
            out[y0:y1, x0:x1] |= ((y - cy) / ay) ** 2 + ((x - cx) / ax) ** 2 <= rest
        return out

    def facts(self) -> dict[str, Any]:
        """Facts for the record."""
        diameters = [bead.diameter_nm for bead in self.beads]
        found: dict[str, Any] = {"beads": len(self.beads)}
        if diameters:
            found["median_diameter_nm"] = round(float(np.median(diameters)), 1)
        return found

    def words(self) -> str:
        """Sentence for the person."""
        if not self.beads:
            return "no gold bead is to be seen"
        return f"{len(self.beads)} gold bead{'' if len(self.beads) == 1 else 's'} left out"


_BEAD_ANGSTROM = (40.0, 260.0)  # diameters; fiducials have 5 to 20 nm, and a coarse copy blurs their edges
_BEAD_CONTRAST = 8.0  # robust standard deviations of the blocks by which a bead's middle differs from their median
_BEAD_GAP = 1.3  # lowest height of beads over the highest of all other peaks, at least
_MOST_BEADS = 500  # peaks that are looked at, the highest
_BEAD_MARGIN_ANGSTROM = 50.0  # around it, for its rim and the ringing of transfer function and filters
_LONGEST_BEAD = 4.0  # extent along Z over that in the plane, by the missing wedge
_LEAST_FILL = 0.35  # of the bounding box; a ball fills 0.52


def find_gold(coarse: Coarse) -> Beads:
    """Gold beads: compact blobs far darker or brighter than anything else, of the size of fiducials.

    Parameters
    ----------
    coarse
        The tomogram.

    Raises
    ------
    InputError
        If the voxel size is unknown.
    """
    if coarse.voxel_size_angstrom is None:
        raise InputError("gold beads are known by their size, and the voxel size is unknown; set voxel_size=NUMBER.")
    known = ~coarse.flat
    if not known.any():
        return Beads((), coarse.shape)
    values = coarse.values - np.median(coarse.values[known])
    scatter = ROBUST * float(np.median(np.abs(values[known]))) or 1.0
    beads: list[Bead] = []
    for sign in (-1, 1):  # dark ones as a rule; what then is bright within their margins is their ringing
        for bead in _prominent(np.where(known, sign * values, 0), scatter, coarse):
            if not any(_holds(other, bead.centre) for other in beads):
                beads.append(bead)
    return Beads(tuple(sorted(beads, key=lambda bead: bead.centre)), coarse.shape)


def _holds(bead: Bead, place: tuple[float, float, float]) -> bool:
    return sum(((a - b) / half) ** 2 for a, b, half in zip(place, bead.centre, bead.semi_axes, strict=True)) <= 1


def _prominent(height: np.ndarray, scatter: float, coarse: Coarse) -> list[Bead]:
    """Beads of one sign: the peaks above the widest gap in the sorted heights of all, if it is wide enough.

    Fiducials of a tomogram are alike and denser than anything else, so their heights stand together, apart from those
    of proteins and membranes; no level in standard deviations parts them in every tomogram.
    """
    level = _BEAD_CONTRAST * scatter
    tops = np.argwhere((height > level) & (ndimage.maximum_filter(height, 5) == height))
    order = np.argsort(-height[tuple(tops.T)], kind="stable")[:_MOST_BEADS]
    tops = tops[order]
    heights = np.append(height[tuple(tops.T)], level)
    if not len(tops):
        return []
    ratios = heights[:-1] / heights[1:]
    last = int(np.argmax(ratios))
    if ratios[last] < _BEAD_GAP:
        return []
    found = (_bead(height, tuple(top), coarse) for top in tops[: last + 1])
    return [bead for bead in found if bead is not None]


def _bead(height: np.ndarray, top: tuple[int, ...], coarse: Coarse) -> Bead | None:
    """Bead around a peak, as far as half of its height; None if that is no compact blob of a fiducial's size."""
    reach = np.ceil(_BEAD_ANGSTROM[1] / coarse.angstrom).astype(int)
    grown = tuple(
        slice(max(0, at - int(far)), min(side, at + int(far) + 1))
        for at, far, side in zip(top, reach, height.shape, strict=True)
    )
    near = height[grown]
    labels, _ = ndimage.label(near > 0.5 * height[top])
    blob = labels == labels[tuple(at - part.start for at, part in zip(top, grown, strict=True))]
    blob = _without_holes(blob)
    places = np.argwhere(blob)
    extents = (places.max(axis=0) - places.min(axis=0) + 1) * coarse.angstrom
    across = extents[1:]
    if across.max() > _BEAD_ANGSTROM[1] or extents[0] > _LONGEST_BEAD * _BEAD_ANGSTROM[1]:
        return None
    if across.max() > 2 * across.min() + coarse.angstrom[1:].max() or extents[0] > _LONGEST_BEAD * across.max():
        return None
    if len(places) < _LEAST_FILL * np.prod(places.max(axis=0) - places.min(axis=0) + 1):
        return None
    if across.max() < _BEAD_ANGSTROM[0] and coarse.angstrom[1:].max() < _BEAD_ANGSTROM[0] / 2:
        return None  # a hot pixel
    weights = near[blob][:, None]
    centre = (places * weights).sum(axis=0) / weights.sum() + [part.start for part in grown]
    steps = np.array(coarse.steps)
    sizes = np.array(coarse.voxel_size_angstrom)
    # as long along Z as it is seen to be, as wide as the wider of the two others
    half = np.array([max(extents[0], across.max()), across.max(), across.max()]) / 2 + _BEAD_MARGIN_ANGSTROM
    z, y, x = (float(value) for value in (centre + 0.5) * steps - 0.5)
    dz, dy, dx = (float(value) for value in half / sizes)
    return Bead((z, y, x), (dz, dy, dx), float(across.max()) / 10)


def _without_holes(blob: np.ndarray) -> np.ndarray:
    """Blob (Z, Y, X) bool filled within each plane: of a large bead the reconstruction leaves a shell, open along Z."""
    filled = blob.copy()
    for axis in range(3):
        for plane, whole in zip(np.moveaxis(blob, axis, 0), np.moveaxis(filled, axis, 0), strict=True):
            whole |= ndimage.binary_fill_holes(plane)
    return filled
