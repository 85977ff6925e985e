"""Scores of one prediction against its truth, with memory for a few slices and one bit a voxel for each mask.

Truth and prediction are read once, slice by slice. What each score means stands where it is computed:

| name in `metrics` | gives | where |
|---|---|---|
| always | `dice`, `iou`, `precision`, `recall` over all annotated voxels | `etsam.labels` |
| `curve` | counts at 1000 thresholds, and `auprc`; of logits only | `thresholds`, `curves` |
| `planes` | the four scores of XY, XZ and YZ slices | `planes` |
| `surface` | `surface_dice`, `hausdorff95_angstrom` and `_pooled_`, `assd_angstrom` | `surface` |
| `inclination` | recall and precision of surfaces by the angle of their normal to Z | `normals` |
| `cldice` | `cldice` | `topology` |
| `betti` | `betti0_error`, `betti1_error`, `betti2_error` | `topology` |

Voxels marked 255 (or -1), and those within `ignore_border_voxels` of a face, are in neither mask and count nowhere.
Both masks empty: overlap scores, surface Dice and clDice are 1, Betti errors 0. One of them empty: those scores are 0.
A surface Dice is NaN where both masks fill all that is annotated. Distances are NaN if either mask is empty; `auprc` if
the truth is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from etsam.data.measured import IGNORE, labels
from etsam.errors import ConfigError, InputError
from etsam.evaluation.metrics.curves import area_under_curve
from etsam.evaluation.metrics.normals import angles_to_z, inclination_counts, inclination_table
from etsam.evaluation.metrics.planes import PlaneCounter, Shown
from etsam.evaluation.metrics.results import InclinationRow
from etsam.evaluation.metrics.surface import (
    average_distance,
    hausdorff95,
    nearest_distances,
    pooled_hausdorff95,
    surface_dice,
    surface_voxels,
    within,
)
from etsam.evaluation.metrics.thresholds import ThresholdCounter, threshold_grid
from etsam.evaluation.metrics.topology import betti_errors, cl_dice
from etsam.inference.two_stage import membrane_mask
from etsam.labels import MARKED_255_ADVICE, odd_value_advice, overlap_scores
from etsam.threads import worker_count
from etsam.volume import Slices, Volume
from etsam.volume.slices import Progress

METRICS = ("curve", "planes", "surface", "inclination", "cldice", "betti")
"""Scores that can be asked for beside those of overlap, which are always computed."""

DEFAULT_TOLERANCE_VOXELS = 2.0
"""Tolerance of surface Dice without a setting, in units of the largest voxel side."""


class PackedMask:
    """A mask (Z, Y, X), Z * Y * X / 8 bytes: 56 MB for 500 x 928 x 960.

    Parameters
    ----------
    shape
        (Z, Y, X).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(shape)
        self._area = int(np.prod(self.shape[1:]))
        self._bits = np.zeros((self.shape[0], -(-self._area // 8)), np.uint8)

    @classmethod
    def of(cls, mask: Slices) -> "PackedMask":
        """Pack everything above 0."""
        packed = cls(mask.shape)
        for z in range(mask.shape[0]):
            packed[z] = mask[z] > 0
        return packed

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Slice `z`, (Y, X) bool."""
        return np.unpackbits(self._bits[z], count=self._area).view(bool).reshape(self.shape[1:])

    def __setitem__(self, z: int, plane: np.ndarray, /) -> None:
        self._bits[z] = np.packbits(plane)

    def any(self) -> bool:
        """True if anything is in it."""
        return bool(self._bits.any())


@dataclass(frozen=True)
class Scored:
    """Something to be scored.

    Attributes
    ----------
    logits
        (Z, Y, X) float32, more is more likely membrane; None if there is only a mask.
    threshold
        Logits strictly above it are membrane.
    mask
        (Z, Y, X), membrane is above 0; None: from the logits. With both, the curve is that of the logits.
    seconds
        It took to predict; NaN if unknown.
    file
        That it was read from, for what its header says; None: it was made in this run.
    """

    logits: Slices | None = None
    threshold: float = 0.0
    mask: Slices | None = None
    seconds: float = math.nan
    file: Volume | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""
        slices = self.mask if self.logits is None else self.logits
        assert slices is not None
        return tuple(slices.shape)

    def as_mask(self) -> Slices:
        """Mask (Z, Y, X), 0 where there is no membrane: the one given, or from the logits."""
        if self.mask is not None:
            return self.mask
        assert self.logits is not None
        return membrane_mask(self.logits, self.threshold)


@dataclass(frozen=True)
class Scores:
    """Scores that `Metrics` finds; fields that it shares are those of `TomogramResult`, names those of the module.

    Attributes
    ----------
    shown
        Slices to look at.
    masks
        Truth and prediction where they are known (elsewhere False) and where that is (None: everywhere).
    doubt
        Why the curve says little, in a line; empty if it is good.
    """

    metrics: dict[str, float]
    thresholds: np.ndarray
    counts: np.ndarray
    planes: dict[str, dict[str, float]]
    inclination: tuple[InclinationRow, ...]
    shown: tuple[Shown, ...]
    masks: tuple[PackedMask, PackedMask, PackedMask | None]
    doubt: str = ""


@dataclass(frozen=True)
class Metrics:
    """Choice of the scores, and how they are computed.

    Attributes
    ----------
    metrics
        Names of `METRICS`.
    surface_tolerance_angstrom
        Of surface Dice and of `inclination`; None: twice the largest voxel side.
    ignore_border_voxels
        So many layers of voxels at each face count as not annotated.
    workers
        Threads, as of `etsam.threads.worker_count`; the scores are the same with any number.

    Raises
    ------
    ConfigError
        If a name is unknown or a number makes no sense.
    """

    metrics: Sequence[str] = field(default=METRICS)
    surface_tolerance_angstrom: float | None = None
    ignore_border_voxels: int = 0
    workers: int | None = None

    def __post_init__(self) -> None:
        names = self.metrics
        unknown = [name for name in names if name not in METRICS] if not isinstance(names, str) else [names]
        if unknown:
            raise ConfigError(
                f"metrics={names} does not fit: {', '.join(map(str, unknown))}; allowed is a list of "
                f"{', '.join(METRICS)}, such as 'metrics=[curve,planes]'."
            )
        tolerance = self.surface_tolerance_angstrom
        if tolerance is not None and not (isinstance(tolerance, int | float) and 0 <= tolerance < math.inf):
            raise ConfigError(f"surface_tolerance_angstrom={tolerance} has to be a number of Å from 0 up, or null.")
        if self.ignore_border_voxels < 0:
            raise ConfigError(f"ignore_border_voxels={self.ignore_border_voxels} has to be 0 or more.")
        worker_count(self.workers)

    def __call__(
        self,
        truth: Slices,
        scored: Scored,
        voxel_size_angstrom: tuple[float, float, float] | None = None,
        progress: Progress | None = None,
        without_membrane: bool = False,
    ) -> Scores:
        """Compare a prediction with its truth.

        Parameters
        ----------
        truth
            (Z, Y, X): 1 is membrane, 0 is not, 255 or -1 was not annotated.
        scored
            The prediction.
        voxel_size_angstrom
            (z, y, x) in Å; None if unknown: then distances and tolerances in Å make NaN, but surface Dice with the
            default tolerance is computed in voxels taken as cubes.
        progress
            Called slice by slice.
        without_membrane
            True where the truth is known to hold no membrane, so that 255 surely means not annotated.

        Raises
        ------
        InputError
            If the shapes differ, the truth holds other values, nothing is annotated or nothing but 255 (or -1) is
            marked, or logits are not finite.
        """
        if tuple(truth.shape) != scored.shape:
            raise InputError(f"the prediction has shape {scored.shape}, the mask of the truth {tuple(truth.shape)}.")
        counter = ThresholdCounter(threshold_grid(scored.threshold)) if scored.logits is not None else None
        if "curve" not in self.metrics:
            counter = None
        planes = PlaneCounter(truth.shape)
        masks = self._read(truth, scored, counter, planes, progress, without_membrane)
        metrics = overlap_scores(planes.counts["xy"].sum(axis=0))._asdict()
        thresholds, counts = np.empty(0, np.float32), np.empty((0, 3), np.int64)
        if "curve" in self.metrics:
            if counter is not None:
                thresholds, counts = counter.thresholds, counter.counts
            metrics["auprc"] = area_under_curve(counts)
        inclination: tuple[InclinationRow, ...] = ()
        if {"surface", "inclination"} & set(self.metrics):
            of_surface, inclination = self._surface(masks, voxel_size_angstrom, progress)
            metrics |= of_surface
        if "cldice" in self.metrics:
            report = None if progress is None else lambda done, total: progress("clDice", done, total)
            metrics["cldice"] = cl_dice(*masks, progress=report, workers=self.workers)
        if "betti" in self.metrics:
            _tell(progress, "Betti numbers", truth.shape[0])
            metrics |= dict(betti_errors(*masks))
        return Scores(
            metrics=metrics,
            thresholds=thresholds,
            counts=counts,
            planes=planes.scores() if "planes" in self.metrics else {},
            inclination=inclination,
            shown=planes.shown(),
            masks=masks,
            doubt="" if counter is None else counter.doubt,
        )

    def _read(
        self,
        truth: Slices,
        scored: Scored,
        counter: ThresholdCounter | None,
        planes: PlaneCounter,
        progress: Progress | None,
        without_membrane: bool,
    ) -> tuple[PackedMask, PackedMask, PackedMask | None]:
        """Read both once: the masks packed."""
        depth = truth.shape[0]
        of_truth, of_prediction, of_known = PackedMask(truth.shape), PackedMask(truth.shape), None
        annotated = ignored = marked = 0
        for z in range(depth):
            target, odd = labels(truth[z])
            ignored += int(np.count_nonzero(target == IGNORE))
            marked += int(np.count_nonzero(target == 1))
            if odd.any():
                raise InputError(
                    f"the mask of the truth is not binary: slice {z} holds {truth[z][odd][0]:g}; allowed are 1 "
                    f"(membrane), 0 (not), 255 or -1 (not annotated){odd_value_advice(float(truth[z][odd][0]))}."
                )
            target = self._without_border(target, z, depth)
            mask, logits = _mask_and_logits(scored, z)
            known, membrane = target != IGNORE, target == 1
            known_voxels = int(np.count_nonzero(known))
            unknown = known.size - known_voxels
            annotated += known_voxels
            if counter is not None:
                assert logits is not None
                counter.add(logits, membrane, known if unknown else None)
            mask &= known
            planes.add(z, mask, membrane)
            of_truth[z], of_prediction[z] = membrane, mask
            if unknown and of_known is None:  # a truth is annotated everywhere, most often
                of_known = PackedMask(truth.shape)
                for earlier in range(z):
                    of_known[earlier] = np.ones(known.shape, bool)
            if of_known is not None:
                of_known[z] = known
            _tell(progress, "comparing", depth, z + 1)
        if not annotated:
            border = f" and ignore_border_voxels={self.ignore_border_voxels}" if self.ignore_border_voxels else ""
            raise InputError(f"the mask of the truth has no annotated voxel (255 and -1 mean not annotated){border}.")
        if ignored and not marked and not without_membrane:
            raise InputError(
                f"the mask of the truth holds no membrane: no voxel is 1, and {ignored} are 255 or -1, which means not "
                f"annotated; {MARKED_255_ADVICE}; if there is none to mark: column without_membrane, value yes."
            )
        return of_truth, of_prediction, of_known

    def _without_border(self, target: np.ndarray, z: int, depth: int) -> np.ndarray:
        width = self.ignore_border_voxels
        if width == 0:
            return target
        out = np.full_like(target, IGNORE)
        if width <= z < depth - width:
            inside = tuple(slice(width, max(side - width, width)) for side in target.shape)
            out[inside] = target[inside]
        return out

    def _surface(
        self,
        masks: tuple[PackedMask, PackedMask, PackedMask | None],
        voxel_size_angstrom: tuple[float, float, float] | None,
        progress: Progress | None,
    ) -> tuple[dict[str, float], tuple[InclinationRow, ...]]:
        truth, prediction, known = masks
        size = voxel_size_angstrom or (1.0, 1.0, 1.0)
        tolerance = self.surface_tolerance_angstrom
        if tolerance is None:
            tolerance = DEFAULT_TOLERANCE_VOXELS * max(size)
        elif voxel_size_angstrom is None:
            tolerance = math.nan
        _tell(progress, "surfaces", truth.shape[0])
        surfaces = surface_voxels(truth, known), surface_voxels(prediction, known)
        distances = [nearest_distances(*pair, truth.shape, size, self.workers) for pair in (surfaces, surfaces[::-1])]
        hits = [within(distance, tolerance) for distance in distances]
        metrics: dict[str, float] = {}
        if "surface" in self.metrics:
            unit = 1.0 if voxel_size_angstrom is not None else math.nan
            metrics["surface_dice"] = math.nan if math.isnan(tolerance) else surface_dice(*hits)
            if not any(map(len, surfaces)):  # nothing, or all that is annotated, is marked in each
                marked = truth.any(), prediction.any()
                metrics["surface_dice"] = math.nan if all(marked) else float(not any(marked))
            metrics["assd_angstrom"] = unit * average_distance(*distances)
            metrics["hausdorff95_pooled_angstrom"] = unit * pooled_hausdorff95(*distances)
            metrics["hausdorff95_angstrom"] = unit * hausdorff95(*distances)  # last: it changes their order
        if "inclination" not in self.metrics or math.isnan(tolerance):
            return metrics, ()
        distances.clear()
        _tell(progress, "normals", truth.shape[0])
        counts = [
            inclination_counts(
                angles_to_z(surface, mask, size, known, self.workers), hit
            )  # one after the other: angles take 100 MB
            for surface, mask, hit in zip(surfaces, (truth, prediction), hits, strict=True)
        ]
        return metrics, inclination_table(*counts)


def _mask_and_logits(scored: Scored, z: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Slice `z` as a new (Y, X) bool, and its logits if there are any."""
    logits = None if scored.logits is None else np.asarray(scored.logits[z], np.float32)
    if logits is not None and not np.isfinite(logits).all():
        raise InputError(f"slice {z} of the predicted logits holds values that are not finite.")
    if scored.mask is not None:
        return np.asarray(scored.mask[z]) > 0, logits
    assert logits is not None
    return logits > scored.threshold, logits


def _tell(progress: Progress | None, part: str, total: int, done: int = 0) -> None:
    if progress is not None:
        progress(part, done, total)
