"""Means with intervals and paired tests, for scores of methods on the same tomograms."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999  # the default of scipy.stats.bootstrap
MIN_TOMOGRAMS = 3  # with fewer there is no test
MIN_INTERVAL = 2  # with fewer there is no interval
WILCOXON_MIN = 6  # the smallest two-sided p of n pairs is 2 / 2**n, above 0.05 for n < 6
FEW = 10  # below, the bootstrap is far too narrow (`mean_interval`) and the normality check rough
NORMAL_ALPHA = 0.05  # Shapiro-Wilk below: differences are not taken for normal
_SAME = 1e-12  # spread of values that differ by rounding only

INTERVALS = (
    f"Intervals: 95 %; of fewer than {FEW} tomograms the t interval (of one: none), from {FEW} on by bootstrap of the"
    f" tomograms (BCa, {RESAMPLES} resamples, fixed seed)."
)
"""Says for people what `mean_interval` gives."""


@dataclass(frozen=True)
class PairedTests:
    """Statistics of the differences a - b of paired scores.

    Attributes
    ----------
    n
        Number of pairs.
    mean_a, mean_b, difference
        Means over these pairs and their difference; NaN without pairs.
    low, high
        95 % interval of the mean difference (`mean_interval`); of b - a exactly the mirrored one.
    t, t_p
        Paired t-test, two-sided. NaN if all differences are equal.
    wilcoxon_p
        Wilcoxon signed rank, two-sided, differences of zero left out; exact null distribution for up to 50 pairs
        without ties, otherwise as `scipy.stats.wilcoxon(method="auto")` chooses.
    shapiro_p
        Shapiro-Wilk test that the differences are normal, which the t-test assumes.
    effect_size
        Cohen's d of paired samples (d_z): mean difference / its standard deviation (n - 1).
    higher, equal, lower
        On how many tomograms a is higher than, equal to, lower than b.
    """

    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    t: float
    t_p: float
    wilcoxon_p: float
    shapiro_p: float
    effect_size: float
    higher: int
    equal: int
    lower: int


def mean_interval(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of the mean: of fewer than `FEW` values the t interval, from there on by bootstrap.

    The bootstrap is bias-corrected and accelerated (BCa, Efron 1987), and seeded. Of few normal values it is too
    narrow: with 3 it holds the mean in 73 % of cases, with 5 in 86 %, with 10 in 90 %. The t interval does in 95 %.

    Parameters
    ----------
    values
        (n,) finite. Their order does not matter, and the interval of -values is exactly the mirrored one.
    seed
        The same seed and values give the same interval.
    resamples
        Bootstrap samples.

    Returns
    -------
    low, high
        NaN for fewer than 2 values; the value itself if all are equal; the percentile interval where BCa has no answer.
    """
    values = np.sort(np.asarray(values, dtype=np.float64))
    if values.size < MIN_INTERVAL:
        return float("nan"), float("nan")
    if np.ptp(values) <= _SAME:
        return float(values.mean()), float(values.mean())
    mirrored = -values[::-1]
    if values.tolist() < mirrored.tolist():  # of the two signs always the same one is computed
        low, high = mean_interval(mirrored, seed=seed, resamples=resamples)
        return 0.0 - high, 0.0 - low  # no -0.0
    low, high = _t_interval(values) if values.size < FEW else _bootstrap_interval(values, seed, resamples)
    if np.array_equal(values, mirrored):
        low, high = (low - high) / 2, (high - low) / 2
    return low, high


def _t_interval(values: np.ndarray) -> tuple[float, float]:
    low, high = stats.t.interval(CONFIDENCE, values.size - 1, loc=values.mean(), scale=stats.sem(values))
    return float(low), float(high)


def _bootstrap_interval(values: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    for method in ("BCa", "percentile"):
        interval = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=resamples,
            confidence_level=CONFIDENCE,
            method=method,
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        if np.isfinite(interval.low) and np.isfinite(interval.high):
            break
    return float(interval.low), float(interval.high)


def paired_tests(a: np.ndarray, b: np.ndarray) -> PairedTests:
    """Compare two methods on the same tomograms.

    Parameters
    ----------
    a, b
        (n,) finite scores; the same index is the same tomogram.

    Raises
    ------
    ValueError
        If the lengths differ or a value is not finite.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"paired scores need equal lengths and finite values, not shapes {a.shape} and {b.shape}")
    d = a - b
    d[np.abs(d) <= _SAME] = 0.0
    n = int(d.size)
    nan = float("nan")
    t = t_p = wilcoxon_p = shapiro_p = effect = nan
    if n >= MIN_TOMOGRAMS:
        if np.ptp(d) > _SAME:
            test = stats.ttest_1samp(d, 0.0)  # of the differences: the paired t-test
            t, t_p = float(test.statistic), float(test.pvalue)
            shapiro_p = float(stats.shapiro(d).pvalue)
            effect = float(d.mean() / d.std(ddof=1))
        # without a difference nothing speaks against equality
        wilcoxon_p = float(stats.wilcoxon(d).pvalue) if d.any() else 1.0
    low, high = mean_interval(d)
    return PairedTests(
        n=n,
        mean_a=float(a.mean()) if n else nan,
        mean_b=float(b.mean()) if n else nan,
        difference=float(d.mean()) if n else nan,
        low=low,
        high=high,
        t=t,
        t_p=t_p,
        wilcoxon_p=wilcoxon_p,
        shapiro_p=shapiro_p,
        effect_size=effect,
        higher=int((d > 0).sum()),
        equal=int((d == 0).sum()),
        lower=int((d < 0).sum()),
    )


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction (1979) of p for the number of tests made (those that are not NaN), at most 1."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    factors = np.arange(order.size, 0, -1)  # number of tests, that less one, ..., 1
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted
