"""Whether a mask would fit its tomogram better if it were shifted, mirrored, or had its axes in another order.

Membranes differ in grey value from what is around them, so a mask that fits correlates with the tomogram, be they
dark or bright, and one that does not fit correlates where it would. Looked for by cross-correlation of both volumes
after slow changes of grey value are taken away.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter

# Our choices. Measured on the eleven PolNet tomograms, in standard deviations of the correlation: masks that fit peak
# at no shift with 35 to 82, masks of other tomograms anywhere with at most 14 (a sphere finds a sphere).
_SURE_DEVIATIONS = 20.0
_BETTER = 1.5  # how much higher the correlation elsewhere has to be than where the mask lies
_TURNED = 1.1  # and that of a turned mask than that of a shifted one, the simpler explanation
_DETAIL_SIGMA = 4.0  # coarse voxels: what changes more slowly is background
_LEAST_SIDE = 8  # coarse voxels; of thinner volumes nothing is said
_AXIS_NAMES = "ZYX"


@dataclass(frozen=True)
class Placement:
    """How to turn and move a mask so that it fits its tomogram.

    Attributes
    ----------
    axes
        The mask's axes in the order in which they should be: (0, 2, 1) means that Y and X are exchanged.
    mirrored
        Axes (after that) along which the mask is mirrored.
    shift_voxels
        (z, y, x) by which the mask has to be moved (after that); known to `step_voxels`.
    step_voxels
        Resolution of the shift.
    """

    axes: tuple[int, int, int]
    mirrored: tuple[int, ...]
    shift_voxels: tuple[int, int, int]
    step_voxels: int

    @property
    def what(self) -> str:
        """What is wrong, for a message."""
        parts = []
        if self.axes != (0, 1, 2):
            parts.append(f"its axes {axis_exchange(self.axes)}")
        if self.mirrored:
            parts.append(f"mirrored along {' and '.join(_AXIS_NAMES[axis] for axis in self.mirrored)}")
        if any(self.shift_voxels):
            about = "about " if self.step_voxels > 1 else ""
            parts.append(f"moved by {about}{self.shift_voxels} voxels (Z, Y, X)")
        return ", ".join(parts)


def axis_exchange(axes: tuple[int, ...]) -> str:
    """`Y and X exchanged`, or for a cyclic order `in the order Y, X, Z`.

    Examples
    --------
    >>> axis_exchange((0, 2, 1))
    'Y and X exchanged'
    """
    moved = [_AXIS_NAMES[place] for place, axis in enumerate(axes) if axis != place]
    return (
        f"{' and '.join(moved)} exchanged"
        if len(moved) == 2
        else f"in the order {', '.join(_AXIS_NAMES[axis] for axis in axes)}"
    )


def matching_axes(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Order of the axes in which a volume of `shape` would have the shape `wanted`; None if there is none.

    Examples
    --------
    >>> matching_axes((200, 100, 180), (100, 200, 180))
    (1, 0, 2)
    """
    exchanges_first = sorted(itertools.permutations(range(3)), key=lambda axes: sum(a != i for i, a in enumerate(axes)))
    return next((axes for axes in exchanges_first if tuple(shape[axis] for axis in axes) == tuple(wanted)), None)  # type: ignore[return-value]


def find_placement(grey: np.ndarray, mask: np.ndarray, step_voxels: int = 1) -> Placement | None:
    """Look for a better place of a mask.

    Parameters
    ----------
    grey, mask
        (Z, Y, X) float32 of equal shape: grey values, and share of membrane; means of blocks of `step_voxels` voxels.
    step_voxels
        Side of these blocks.

    Returns
    -------
    Placement or None
        None if the mask fits where it lies, or nothing correlates clearly enough.
    """
    if min(grey.shape) < _LEAST_SIDE or not mask.any():
        return None
    detail = _detail(grey)
    spectrum = fft.rfftn(detail)
    here = _correlate(spectrum, _detail(mask))
    identity = _near_zero(here)
    best_shift, best = _peak(here)
    if identity * _BETTER >= best and identity >= _SURE_DEVIATIONS * here.std():
        return None
    axes: tuple[int, int, int] = (0, 1, 2)
    mirrored: tuple[int, ...] = ()
    shift, height, deviation = best_shift, best, here.std()
    for order, flips in _orientations(grey.shape):
        correlation = _correlate(spectrum, _detail(np.flip(mask.transpose(order), flips)))
        place, peak = _peak(correlation)
        if peak > _TURNED * height:
            axes, mirrored, shift, height, deviation = order, flips, place, peak, correlation.std()
    if height < _SURE_DEVIATIONS * deviation or height < _BETTER * identity:
        return None
    z, y, x = (int(step) * step_voxels if abs(step) > 1 else 0 for step in shift)
    if axes == (0, 1, 2) and not mirrored and not any((z, y, x)):
        return None
    return Placement(axes, mirrored, (z, y, x), step_voxels)


def _orientations(shape: tuple[int, ...]) -> list[tuple[tuple[int, int, int], tuple[int, ...]]]:
    """Orders of axes that keep the shape, each with all mirrorings, without the one that changes nothing."""
    orders = [axes for axes in itertools.permutations(range(3)) if tuple(shape[axis] for axis in axes) == shape]
    mirrorings = [tuple(axis for axis in range(3) if bits >> axis & 1) for bits in range(8)]
    return [(axes, mirrored) for axes in orders for mirrored in mirrorings if mirrored or axes != (0, 1, 2)]  # type: ignore[misc]


def _detail(volume: np.ndarray) -> np.ndarray:
    detail: np.ndarray = volume - gaussian_filter(volume, _DETAIL_SIGMA)
    return detail / max(float(np.linalg.norm(detail)), 1e-30)


def _correlate(spectrum: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Correlation for every shift of the mask, the sign left away."""
    correlation: np.ndarray = np.abs(fft.irfftn(spectrum * np.conj(fft.rfftn(mask)), s=mask.shape))
    return correlation


def _near_zero(correlation: np.ndarray) -> float:
    """Highest value within one coarse voxel of no shift."""
    return float(max(correlation[shift] for shift in itertools.product((-1, 0, 1), repeat=3)))


def _peak(correlation: np.ndarray) -> tuple[tuple[int, ...], float]:
    """Shift of the highest value, at most a quarter of each side; negative ones wrapped around."""
    allowed = correlation.copy()
    for axis, side in enumerate(correlation.shape):
        np.moveaxis(allowed, axis, 0)[side // 4 + 1 : side - side // 4] = 0
    place = np.unravel_index(int(np.argmax(allowed)), allowed.shape)
    shift = tuple(int(p) if p <= side // 2 else int(p) - side for p, side in zip(place, allowed.shape, strict=True))
    return shift, float(allowed[place])
