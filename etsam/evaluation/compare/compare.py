"""Comparison of methods on the same tomograms: means with intervals, paired tests, and what is missing."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from etsam.errors import ConfigError
from etsam.evaluation.compare.statistics import (
    FEW,
    MIN_INTERVAL,
    MIN_TOMOGRAMS,
    NORMAL_ALPHA,
    WILCOXON_MIN,
    holm,
    mean_interval,
    paired_tests,
)
from etsam.evaluation.compare.tables import METRIC_NAMES, METRICS, metric_columns

MEAN_COLUMNS = ("method", "metric", "n", "mean", "low", "high", "sd", "median", "n_shared", "mean_shared")
PAIR_COLUMNS = (
    "metric", "first", "second", "n", "mean_first", "mean_second", "difference", "low", "high", "effect_size", "t",
    "t_p", "t_p_holm", "wilcoxon_p", "wilcoxon_p_holm", "shapiro_p", "higher", "equal", "lower",
)  # fmt: skip
MISSING_COLUMNS = ("method", "metric", "tomogram", "reason")
_TESTS = ("t_p", "wilcoxon_p")
_NO_VALUE, _NOT_LISTED = "no value", "not in the table"  # reasons, beside the errors of failed tomograms


@dataclass(frozen=True)
class Comparison:
    """Comparison of methods; tables as pandas data frames.

    Attributes
    ----------
    metrics
        Compared metrics.
    methods
        Names in the order of the table.
    means
        `MEAN_COLUMNS`: mean, 95 % interval, standard deviation (n - 1) and median of a method over the n tomograms for
        which it has a value, and the mean over the n_shared for which every method has one. Methods without any value
        of a metric do not count there, and have n_shared 0.
    pairs
        `PAIR_COLUMNS`: first minus second, as `PairedTests` explains. Corrected p: for all pairs of the same metric.
    missing
        `MISSING_COLUMNS`: tomograms that some method has and this one has not, with the reason.
    notes
        Sentences a reader has to know, beside `failures` of the scores.
    """

    metrics: tuple[str, ...]
    methods: tuple[str, ...]
    means: pd.DataFrame
    pairs: pd.DataFrame
    missing: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def unequal(self) -> tuple[str, ...]:
        """Metrics of which the methods have values for different tomograms: their means cannot be ranked."""
        own = self.means[self.means["n"] > 0]
        return tuple(dict.fromkeys(own.loc[own["n"] != own["n_shared"], "metric"]))


def compare(
    scores: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    *,
    baseline: str | None = None,
) -> Comparison:
    """Compare every method with every other, or all with one.

    Parameters
    ----------
    scores
        Columns method, tomogram, error (may be left out), and metrics.
    metrics
        Which to compare, in capitals or not; None: those of dice, iou, precision and recall that are there.
    baseline
        Name of a method: each other one minus this one. None: all pairs, the earlier named minus the later.

    Raises
    ------
    ConfigError
        If there is no such metric or method.
    """
    available = metric_columns(scores)
    written = {name.lower(): name for name in available} | {name: name for name in available}
    named = [written.get(name, written.get(name.lower(), name)) for name in metrics or ()]
    chosen = tuple(dict.fromkeys(named)) if metrics else tuple(name for name in METRICS if name in available)
    methods = tuple(dict.fromkeys(scores["method"]))
    if unknown := [name for name in chosen if name not in available] or ([] if chosen else ["one of dice, iou"]):
        raise ConfigError(f"no table has the metric {unknown[0]}; there are {', '.join(available) or 'none'}.")
    if baseline is not None and baseline not in methods:
        raise ConfigError(f"there is no method {baseline} to compare with; there are {', '.join(methods)}.")
    means: list[dict[str, object]] = []
    pairs: list[dict[str, object]] = []
    missing: list[tuple[str, ...]] = []
    others = [] if metrics else [name for name in METRIC_NAMES if name in available and name not in chosen]
    for metric in (*chosen, *others):
        # (tomogram, method)
        values = scores.pivot(index="tomogram", columns="method", values=metric)
        values = values.reindex(index=list(dict.fromkeys(scores["tomogram"])), columns=list(methods))
        means += _means(values, metric)
        if metric in chosen:  # of others the means only: a test for each would find something by chance
            pairs += _pairs(values, metric, baseline)
            missing += _missing(values, metric, scores)
    found = Comparison(
        metrics=chosen,
        methods=methods,
        means=pd.DataFrame(means, columns=list(MEAN_COLUMNS)),
        pairs=pd.DataFrame(pairs, columns=list(PAIR_COLUMNS)),
        missing=pd.DataFrame(missing, columns=list(MISSING_COLUMNS)),
        notes=(),
    )
    return replace(found, notes=(*_notes(found), *_strangers(found, scores)))


def _means(values: pd.DataFrame, metric: str) -> list[dict[str, object]]:
    shared = values[[method for method in values.columns if values[method].notna().any()]].dropna()
    rows: list[dict[str, object]] = []
    for method in values.columns:
        own = values[method].dropna().to_numpy()
        low, high = mean_interval(own)
        row: dict[str, object] = {"method": method, "metric": metric, "n": own.size, "low": low, "high": high}
        row["mean"], row["median"] = (own.mean(), np.median(own)) if own.size else (np.nan, np.nan)
        row["sd"] = own.std(ddof=1) if own.size > 1 else np.nan
        row["n_shared"], row["mean_shared"] = (len(shared), shared[method].mean()) if own.size else (0, np.nan)
        rows.append(row)
    return rows


def _pairs(values: pd.DataFrame, metric: str, baseline: str | None) -> list[dict[str, object]]:
    methods = list(values.columns)
    named = list(itertools.combinations(methods, 2))
    if baseline is not None:
        named = [(method, baseline) for method in methods if method != baseline]
    rows: list[dict[str, object]] = []
    for first, second in named:
        both = values[[first, second]].dropna()
        tests = asdict(paired_tests(both[first].to_numpy(), both[second].to_numpy()))
        tests |= {"mean_first": tests.pop("mean_a"), "mean_second": tests.pop("mean_b")}
        rows.append({"metric": metric, "first": first, "second": second} | tests)
    for test in _TESTS:
        p = [float(row[test]) for row in rows]  # type: ignore[arg-type]
        for row, corrected in zip(rows, holm(p), strict=True):
            row[f"{test}_holm"] = corrected
    return rows


def _missing(values: pd.DataFrame, metric: str, scores: pd.DataFrame) -> list[tuple[str, ...]]:
    listed = set(zip(scores["method"], scores["tomogram"], strict=True))
    errors: dict[tuple[str, str], str] = {}
    if "error" in scores:
        errors = {(m, t): e for m, t, e in scores[["method", "tomogram", "error"]].itertuples(index=False) if e}
    rows: list[tuple[str, ...]] = []
    for method in values.columns:
        for tomogram in values.index[values[method].isna()]:
            key = (method, tomogram)
            reason = errors.get(key, _NO_VALUE if key in listed else _NOT_LISTED)
            rows.append((method, metric, tomogram, reason))
    return rows


def _notes(found: Comparison) -> list[str]:
    notes = []
    told = found.missing[found.missing["reason"].isin([_NO_VALUE, _NOT_LISTED])]  # `failures` tells the others
    for (method, reason), rows in told.groupby(["method", "reason"], sort=False):
        for tomograms, group in _same_tomograms(rows):
            which = "" if len(group) == len(found.metrics) else f" ({', '.join(METRIC_NAMES.get(m, m) for m in group)})"
            notes.append(f"{method} has no value for {', '.join(tomograms)}{which}: {reason}.")
    if len(found.missing) and len(found.methods) > 1:
        notes.append("Pairs use the tomograms that both methods have; means use all that a method has.")
    notes += _shared_notes(found)
    sizes = sorted(set(found.pairs["n"]))
    if sizes and sizes[0] < MIN_TOMOGRAMS:
        notes.append(
            f"A pair with fewer than {MIN_TOMOGRAMS} common tomograms has no test; of one there is no interval."
        )
    elif sizes and sizes[0] < WILCOXON_MIN:
        notes.append(
            f"With fewer than {WILCOXON_MIN} tomograms the Wilcoxon test cannot give p < 0.05, whatever the difference."
        )
    sizes += found.means.loc[found.means["metric"].isin(found.metrics), "n"].tolist()
    if any(MIN_INTERVAL <= size < FEW for size in sizes):
        notes.append(
            f"With fewer than {FEW} tomograms intervals are t intervals, as wide as so few require: they take values"
            f" for normal, and may reach beyond 0 and 1."
        )
    odd = found.pairs[found.pairs["shapiro_p"] < NORMAL_ALPHA]
    for (first, second), rows in odd.groupby(["first", "second"], sort=False):
        named = [f"{METRIC_NAMES.get(r.metric, r.metric)} (p = {format_p(r.shapiro_p)})" for r in rows.itertuples()]
        notes.append(
            f"{first} - {second}: differences of {', '.join(named)} do not look normal by the Shapiro-Wilk test;"
            f" trust the Wilcoxon test more than the t-test there."
        )
    return notes


def _shared_notes(found: Comparison) -> list[str]:
    """Sentences that say what means marked shared are, and which methods they leave out."""
    means = found.means[found.means["metric"].isin(found.unequal)]
    common = means[means["n_shared"] > 0]
    if not len(means):
        return []
    if not len(common):
        return ["No tomogram has a value of every method: means of different methods cannot be ranked."]
    notes = ["Means marked shared are over the tomograms for which every method has a value: rank methods by these."]
    metrics = list(dict.fromkeys(common["metric"]))
    without = means[means["metric"].isin(metrics) & (means["n"] == 0)]
    words = []
    for method, rows in without.groupby("method", sort=False):
        names = ", ".join(METRIC_NAMES.get(metric, metric) for metric in rows["metric"])
        words.append(f"{method}" if len(rows) == len(metrics) else f"{method} ({names})")
    return [*notes, *([f"Left out of the shared means, being without any value: {', '.join(words)}."] if words else [])]


def _strangers(found: Comparison, scores: pd.DataFrame) -> list[str]:
    """A line with one tomogram of each of the methods that share no name: often names are only written otherwise."""
    names = {method: list(own) for method, own in scores.groupby("method", sort=False)["tomogram"]}
    pairs = dict.fromkeys(zip(found.pairs["first"], found.pairs["second"], strict=True))
    apart = [(first, second) for first, second in pairs if not set(names[first]) & set(names[second])]
    if not apart:
        return []
    one = ", ".join(f"{names[method][0]} ({method})" for method in dict.fromkeys(itertools.chain(*apart)))
    return [f"No common tomogram name: {', '.join(' - '.join(pair) for pair in apart)}. One name of each: {one}."]


def _same_tomograms(rows: pd.DataFrame) -> list[tuple[tuple[str, ...], list[str]]]:
    """(tomograms, metrics) with the metrics that lack the same tomograms taken together."""
    by_metric = {metric: tuple(group["tomogram"]) for metric, group in rows.groupby("metric", sort=False)}
    together: dict[tuple[str, ...], list[str]] = {}
    for metric, tomograms in by_metric.items():
        together.setdefault(tomograms, []).append(metric)
    return list(together.items())


def format_p(p: float) -> str:
    """Two digits from 0.001 up, below one digit and the power of ten; a dash for no test."""
    if not np.isfinite(p):
        return "–"
    if p >= 0.001:
        return f"{p:.2g}"
    mantissa, _, exponent = f"{p:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if p else "0"


def format_score(value: float) -> str:
    """Three decimals; a dash for no value."""
    return f"{value:.3f}" if np.isfinite(value) else "–"
