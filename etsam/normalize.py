"""Grey values of a tomogram -> network input, slice by slice, never in place.

A method is chosen once (`MinMaxPositive`, `SoftplusMinMax`, `Robust`), fitted to the whole volume's `Statistics` (one
streaming pass), and then applied to each slice as it is needed: nothing of the size of the volume is held. What the
volume is padded with (`etsam.volume.content`) counts in none of them, and costs a pass more where there is some.

The first two are those of the published ETSAM; its command line and its training data use `MinMaxPositive`, its
evaluation script `SoftplusMinMax`. Both keep the grey-value scale's sign, hence see what is negative differently.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from etsam.errors import ConfigError, InputError
from etsam.volume.content import Content, ContentSearch, padded_voxels
from etsam.volume.slices import LazySlices, Slices

log = logging.getLogger(__name__)

SliceTransform = Callable[[np.ndarray], np.ndarray]
"""(Y, X) grey values of any real dtype -> (Y, X) float32, a new array."""

_SAMPLE_VOXELS = 2_000_000  # percentiles from so many voxels have a standard error below 0.02 % of rank at the 1 % tail
BLOCK = 4  # side in voxels of the block means whose skewness tells the contrast; noise averages out, membranes stay
_UNCLEAR_SKEWNESS = 0.05  # our choice; measured: -0.9 to -2.1 on PolNet tomograms, +0.4 on the HIV particles


@dataclass(frozen=True)
class Statistics:
    """Grey-value statistics of a volume, from one streaming pass, without what it is padded with.

    Attributes
    ----------
    minimum, maximum, mean
        Of the finite voxels, grey values.
    voxels, nonfinite
        Number of voxels in all, and of those that are NaN or infinite.
    sample
        About two million finite voxels on a regular grid, sorted, float32, shape (N,).
    skewness
        Of 4 x 4 block means within slices: below 0 where the minority (membranes, proteins) is dark; NaN where the
        block means do not vary.
    content
        Part of the volume that all of these are of; None: all of it.
    padding
        Grey value of areas within it that hold no image, and that are left out, too; None: there are none.
    padded
        Number of their voxels.
    """

    minimum: float
    maximum: float
    mean: float
    voxels: int
    nonfinite: int
    sample: np.ndarray
    skewness: float
    content: Content | None = None
    padding: float | None = None
    padded: int = 0

    @property
    def contrast(self) -> Literal["dark", "bright", "unknown"]:
        """Contrast of the minority, by the sign of `skewness`: the guess of `Robust` with `membranes="auto"`."""
        if self.skewness == 0 or math.isnan(self.skewness):
            return "unknown"
        return "bright" if self.skewness > 0 else "dark"

    @property
    def contrast_is_clear(self) -> bool:
        """True if `skewness` is further from 0 than chance makes it, and than tomograms without membranes have."""
        by_chance = math.sqrt(6 * BLOCK**2 / self.voxels)  # deviation of the skewness of so many normal values
        return abs(self.skewness) >= max(_UNCLEAR_SKEWNESS, 3 * by_chance)  # NaN is unclear, too

    def percentile(self, percent: float) -> float:
        """Grey value below which `percent` per cent of the sampled voxels lie."""
        return float(np.percentile(self.sample, percent))


def measure(
    slices: Slices,
    progress: Callable[[int, int], None] | None = None,
    seen: Callable[[int, np.ndarray], None] | None = None,
) -> Statistics:
    """Statistics of the image in a volume; every slice is read once, and again if there is padding.

    Parameters
    ----------
    slices
        Volume (Z, Y, X) of any real dtype.
    progress
        Called with (slices read, slices in all).
    seen
        Called with each slice as it is read first, (z, (Y, X)), for what else is taken from the same pass.

    Raises
    ------
    InputError
        If no voxel is finite.
    """
    return without_padding(slices, *survey(slices, progress, seen), progress)


def without_padding(
    slices: Slices,
    statistics: Statistics,
    search: ContentSearch,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Statistics of the image in a volume, from its `survey`, which they are if there is no padding; as `measure`."""
    content = Content.whole(tuple(slices.shape))
    while not search.content.is_whole:  # within a rim there may be another, of another value
        content = content.narrowed(search.content)
        statistics, search = survey(content.of(slices), progress)
    if search.padding is not None:
        within, _ = survey(content.of(slices), progress, padding=search.padding)
        if within.maximum > within.minimum:  # else it is a drawing of two values, and none is padding
            statistics = within
    return statistics if content.is_whole else replace(statistics, content=content)


def survey(
    slices: Slices,
    progress: Callable[[int, int], None] | None = None,
    seen: Callable[[int, np.ndarray], None] | None = None,
    padding: float | None = None,
) -> tuple[Statistics, ContentSearch]:
    """Statistics of all voxels but those of areas of the value `padding`, and where the image is; see `measure`."""
    depth, height, width = slices.shape
    step = max(1, round((depth * height * width / _SAMPLE_VOXELS) ** 0.5))
    low, high, total, nonfinite, padded = np.inf, -np.inf, 0.0, 0, 0
    sample, moments, search = [], Moments(), ContentSearch(tuple(slices.shape))
    for z in range(depth):
        grey = slices[z]
        if seen is not None:
            seen(z, grey)
        search.add(z, grey)
        plane = grey.astype(np.float32)
        finite = counted = np.isfinite(plane)
        bad = plane.size - int(np.count_nonzero(finite))
        blank = None
        if padding is not None:
            blank = padded_voxels(grey, padding)
            counted = finite & ~blank
            padded += int(np.count_nonzero(blank))
        values = plane if blank is None and not bad else plane[counted]
        if bad:
            nonfinite += bad
            plane = np.where(finite, plane, np.float32(values.mean(dtype=np.float64) if values.size else 0))
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            total += float(values.sum(dtype=np.float64))
        grid = np.s_[z % step :: step, (3 * z) % step :: step]  # moves with z, so columns are not sampled twice
        sample.append(plane[grid][counted[grid]])
        if values.size:
            means = _block_means(plane)
            if blank is not None:
                means = means[_block_means(blank) == 0]
            if means.size:
                moments = moments.merged(Moments.of(means))
        if progress is not None:
            progress(z + 1, depth)
    voxels = depth * height * width
    if nonfinite == voxels:
        raise InputError(f"none of the {voxels} voxels is a finite number; the file holds no image.")
    found = Statistics(
        minimum=low,
        maximum=high,
        mean=total / max(1, voxels - nonfinite - padded),
        voxels=voxels,
        nonfinite=nonfinite,
        sample=np.sort(np.concatenate(sample)),
        skewness=moments.skewness,
        padding=padding,
        padded=padded,
    )
    return found, search


def _block_means(plane: np.ndarray) -> np.ndarray:
    """Block means of one slice (of a smaller one: its voxels), float64, shape (N,)."""
    height, width = (side - side % BLOCK for side in plane.shape)
    if not height or not width:
        return plane.ravel().astype(np.float64)
    blocks = plane[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return blocks.mean(axis=(1, 3), dtype=np.float64).ravel()


@dataclass(frozen=True)
class Moments:
    """Count, mean, and sums of squared and cubed deviations from it.

    Sums of plain powers would cancel where the mean is large against the spread. Moments of parts are merged by the
    formulas of Chan et al. (1979) for the second and Pebay (2008, SAND2008-6212) for the third.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    cubes: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """Moments of an array of finite numbers, any shape."""
        mean = float(values.mean(dtype=np.float64))
        off = values.astype(np.float64) - mean
        return cls(values.size, mean, float((off**2).sum()), float((off**3).sum()))

    def merged(self, other: "Moments") -> "Moments":
        """Moments of both sets together."""
        if not self.count or not other.count:
            return self if self.count else other
        ours, theirs, count = self.count, other.count, self.count + other.count
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * theirs / count,
            self.squares + other.squares + apart**2 * ours * theirs / count,
            self.cubes
            + other.cubes
            + apart**3 * ours * theirs * (ours - theirs) / count**2
            + 3 * apart * (ours * other.squares - theirs * self.squares) / count,
        )

    @property
    def skewness(self) -> float:
        """Third standardised moment; NaN where the values do not differ by more than rounding."""
        spread = math.sqrt(self.squares / self.count) if self.count else 0.0
        if spread <= 1e-12 * abs(self.mean):
            return math.nan
        return self.cubes / self.count / spread**3


class Normalization(Protocol):
    """A method: fit it to the statistics of a volume, get a function of slices."""

    def fit(self, statistics: Statistics) -> SliceTransform:
        """Transform of this volume's slices; raises `InputError` where the volume makes no sense for the method."""
        ...


def _refuse_constant(statistics: Statistics) -> None:
    if not statistics.maximum > statistics.minimum:
        raise InputError(
            f"every voxel has the value {statistics.minimum:g}: there is nothing to segment; check that this is the "
            "reconstruction and that it was written completely."
        )


@dataclass(frozen=True)
class MinMaxPositive:
    """Negative voxels to 0, then divide by the maximum: 0..1 (published `min_max_positive_values`, its default)."""

    def fit(self, statistics: Statistics) -> SliceTransform:
        """Raises `InputError` if no voxel is positive (the published code gives NaN and an empty mask)."""
        _refuse_constant(statistics)
        if statistics.maximum <= 0:
            raise InputError(
                f"no voxel is positive (largest value {statistics.maximum:g}), and min_max_positive keeps only what is "
                "positive; use normalize=robust or normalize=softplus_minmax, or add an offset to the tomogram."
            )
        maximum = np.float32(statistics.maximum)
        return lambda plane: np.maximum(plane.astype(np.float32), np.float32(0)) / maximum


@dataclass(frozen=True)
class SoftplusMinMax:
    """log(1 + exp(x)), linear above 20, then to 0..1 by minimum and maximum (published `softplus_minmax`)."""

    def fit(self, statistics: Statistics) -> SliceTransform:
        """Raises `InputError` if the volume is constant, also after softplus (all far below zero)."""
        _refuse_constant(statistics)
        ends = _softplus(np.array([statistics.minimum, statistics.maximum], dtype=np.float32))
        low, high = ends  # softplus is increasing, so these are its extremes over the volume
        if not high > low:
            raise InputError(
                f"all voxels lie between {statistics.minimum:g} and {statistics.maximum:g}, where softplus is flat; "
                "use normalize=robust, or scale the tomogram."
            )
        return lambda plane: (_softplus(plane.astype(np.float32)) - low) / (high - low)


def _softplus(values: np.ndarray) -> np.ndarray:
    import torch  # late: files are also looked at where no network runs

    return torch.nn.functional.softplus(torch.from_numpy(np.ascontiguousarray(values))).numpy()


@dataclass(frozen=True)
class Robust:
    """Between two percentiles to 0..1, clipped; membranes come out dark whatever their contrast in the file.

    Outliers (gold beads, X-ray hits, rim artefacts) and the file's grey-value scale have no influence. The nano
    weights use it.

    Attributes
    ----------
    low_percent, high_percent
        Percentiles that become 0 and 1.
    membranes
        Contrast in the file: `dark` (most tomograms), `bright` (inverted here), or `auto`: by the sign of the
        skewness of block means, which is the contrast of the minority. Measured: right on the eleven PolNet
        tomograms (dark) and on the experimental HIV particles of `data/demo` (bright).
    """

    low_percent: float = 0.5
    high_percent: float = 99.5
    membranes: Literal["dark", "bright", "auto"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.low_percent < self.high_percent <= 100:
            raise ConfigError(
                f"normalize percentiles {self.low_percent} and {self.high_percent} are not two increasing "
                "numbers between 0 and 100."
            )
        if self.membranes not in ("dark", "bright", "auto"):
            raise ConfigError(f"normalize.membranes={self.membranes} is unknown; allowed: dark, bright, auto.")

    def fit(self, statistics: Statistics) -> SliceTransform:
        """Raises `InputError` if the volume is constant between the percentiles and beyond."""
        _refuse_constant(statistics)
        low, high = statistics.percentile(self.low_percent), statistics.percentile(self.high_percent)
        if not high > low:  # more than 99 % of the voxels equal, such as a mask or a padded volume
            low, high = statistics.minimum, statistics.maximum
        contrast = statistics.contrast if self.membranes == "auto" else self.membranes
        if contrast == "unknown":
            log.warning(
                "whether membranes are dark or bright cannot be told from the grey values; taken as dark. If they are "
                "bright, set normalize.membranes=bright."
            )
        elif self.membranes == "auto":
            log.info("treating %s as membrane (skewness %.3f)", contrast, statistics.skewness)
        bright = contrast == "bright"
        offset, scale = np.float32(low), np.float32(1 / (high - low))

        def transform(plane: np.ndarray) -> np.ndarray:
            unit = np.clip((plane.astype(np.float32) - offset) * scale, 0, 1)
            return np.float32(1) - unit if bright else unit

        return transform


@dataclass(frozen=True)
class Fitted:
    """A method fitted to one volume.

    Attributes
    ----------
    transform
        From `Normalization.fit`.
    content
        Part of the volume that holds an image; None: all of it.
    padding
        Grey value of areas within it that hold none; None: there are none.
    mean
        Grey value that stands for padding, and for NaN and infinite voxels.
    replace_nonfinite
        True if there are any of these.
    """

    transform: SliceTransform
    content: Content | None = None
    padding: float | None = None
    mean: float = 0.0
    replace_nonfinite: bool = False

    def inner(self, slices: Slices) -> LazySlices:
        """Normalised slices of the content of the volume (Z, Y, X), float32, computed as they are asked for."""
        content = LazySlices.of(slices) if self.content is None else self.content.of(slices)
        return content.map(self._plane)

    def whole(self, slices: Slices) -> LazySlices:
        """Normalised slices (Z, Y, X) float32 of all of the volume, or of any cutting of it, rim included."""
        return LazySlices.of(slices).map(self._plane)

    def put_back(self, inner: Slices, volume: Slices, fill: float) -> Slices:
        """Slices (Z, Y, X) float32 of the whole volume from those of its content, `fill` where there is no image."""
        content, padding = self.content, self.padding
        if padding is not None:
            image, seen = inner, LazySlices.of(volume) if content is None else content.of(volume)

            def plane(z: int) -> np.ndarray:
                return np.where(padded_voxels(seen[z], padding), np.float32(fill), image[z])

            inner = LazySlices(tuple(image.shape), plane)
        return inner if content is None else content.around(inner, fill)

    def _plane(self, grey: np.ndarray) -> np.ndarray:
        if self.padding is not None:
            grey = np.where(padded_voxels(grey, self.padding), np.float32(self.mean), grey.astype(np.float32))
        if self.replace_nonfinite:
            grey = np.where(np.isfinite(grey), grey, np.float32(self.mean)).astype(np.float32)
        return self.transform(grey)


def fit_to(statistics: Statistics, method: Normalization, nonfinite: Literal["error", "mean"] = "error") -> Fitted:
    """Fit `method` to the statistics of a volume.

    Raises
    ------
    InputError
        If there are NaN or infinite voxels and `nonfinite` is `error`; `mean` puts the mean of the others there.
    """
    if nonfinite not in ("error", "mean"):
        raise ConfigError(f"nonfinite={nonfinite} is unknown; allowed: error, mean.")
    if statistics.nonfinite and nonfinite == "error":
        raise InputError(
            f"{statistics.nonfinite} of {statistics.voxels} voxels are NaN or infinite; repair the tomogram, or set "
            "nonfinite=mean to replace them by the mean of the others."
        )
    return Fitted(
        method.fit(statistics), statistics.content, statistics.padding, statistics.mean, bool(statistics.nonfinite)
    )


def normalize(slices: Slices, method: Normalization, *, nonfinite: Literal["error", "mean"] = "error") -> LazySlices:
    """Normalised slices (Z, Y, X) float32 of a volume, padding included; errors as of `fit_to`."""
    return fit_to(measure(slices), method, nonfinite).whole(slices)
