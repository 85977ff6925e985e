"""The summary of an evaluation in plain words, for the page, the Markdown file and the terminal."""

import math

import pandas as pd

from etsam.evaluation.compare.compare import Comparison, format_difference, format_p, format_score
from etsam.evaluation.compare.tables import METRIC_NAMES
from etsam.evaluation.report.tables import ReportTables, format_interval

ALPHA = 0.05  # Holm-corrected p below: told as a difference
METHOD_LINES = (
    "Intervals: 95 %, bootstrap of the tomograms (BCa, 9999 resamples, fixed seed).",
    "Differences: first method minus second on the same tomograms; d is their mean over their standard deviation.",
    "Tests: two-sided; paired t-test and Wilcoxon signed rank (differences of zero left out), each corrected by Holm"
    " and by Bonferroni for all pairs of the same metric. Shapiro-Wilk tests what the t-test assumes: that the"
    " differences are normal.",
)
LICENCE_LINES = (
    "Made with etsam (MIT). The network is Meta's SAM 2 (Apache-2.0).",
    "Method and published weights: Selvaraj and Cheng, ETSAM, bioRxiv, doi:10.1101/2025.11.23.689996.",
)


def summary(tables: ReportTables) -> list[str]:
    """Sentences: each method's first metric, what failed, what the comparison says, which threshold would be best."""
    comparison = tables.comparison
    lines = [_method(tables, method) for method in comparison.methods]
    lines += failures(tables.frames["scores"])
    lines += [_pair(row, len(comparison.pairs)) for row in _main_pairs(comparison).itertuples()]
    lines += [_threshold(tables, sweep.method) for sweep in tables.sweeps]
    return [line for line in lines if line]


def failures(scores: pd.DataFrame) -> list[str]:
    """A sentence for each tomogram without scores."""
    failed = scores[scores["error"] != ""]
    return [f"{row.method} failed on {row.tomogram}: {row.error}." for row in failed.itertuples()]


def _method(tables: ReportTables, method: str) -> str:
    comparison, metric = tables.comparison, tables.comparison.metrics[0]
    row = comparison.means.query("method == @method and metric == @metric").iloc[0]
    own = tables.frames["scores"].query("method == @method")
    name, total = METRIC_NAMES.get(metric, metric), own["tomogram"].nunique()
    if not row["n"]:
        return f"{method}: no {name}; none of {_tomograms(total)} has scores."
    of = _tomograms(total) if row["n"] == total else f"{row['n']} of {_tomograms(total)}"
    interval = format_interval(row["low"], row["high"])
    text = f"{method}: mean {name} {format_score(row['mean'])}{' ' if interval else ''}{interval} on {of}"
    if row["n"] > 1:
        valid = own.dropna(subset=[metric])
        low, high = valid.loc[valid[metric].idxmin()], valid.loc[valid[metric].idxmax()]
        text += f"; lowest {format_score(low[metric])} ({low['tomogram']})"
        text += f", highest {format_score(high[metric])} ({high['tomogram']})"
    return text + "."


def _tomograms(number: int) -> str:
    return f"{number} tomogram{'' if number == 1 else 's'}"


def _main_pairs(comparison: Comparison) -> pd.DataFrame:
    return comparison.pairs[comparison.pairs["metric"] == comparison.metrics[0]]


def _pair(row: object, number: int) -> str:
    name = METRIC_NAMES.get(row.metric, row.metric)  # type: ignore[attr-defined]
    first, second, n = row.first, row.second, row.n  # type: ignore[attr-defined]
    difference, p = row.difference, (row.t_p, row.t_p_holm, row.wilcoxon_p, row.wilcoxon_p_holm)  # type: ignore[attr-defined]
    if not n:
        return f"{first} and {second} have no tomogram in common."
    text = f"{first} - {second}: {name} {format_difference(difference)} on {_tomograms(n)}"
    known = [value for value in p if math.isfinite(value)]
    if not known:
        return text + "; too few tomograms, or no differences, for a test."
    text += f" (t-test p = {format_p(p[0])}, Wilcoxon p = {format_p(p[2])}"
    text += f"; Holm {format_p(p[1])} and {format_p(p[3])})" if number > 1 else ")"
    corrected = [value for value in (p[1], p[3]) if math.isfinite(value)]
    if all(value < ALPHA for value in corrected):
        return text + "; chance alone hardly explains it."
    if all(value >= ALPHA for value in corrected):
        return text + "; these tomograms do not tell the two apart."
    return text + "; the two tests disagree, so take it with care."


def _threshold(tables: ReportTables, method: str) -> str:
    sweep = next(sweep for sweep in tables.sweeps if sweep.method == method)
    best, value = sweep.best_fixed
    if not math.isfinite(value):
        return ""
    text = f"{method}, threshold: "
    if math.isfinite(at := sweep.at(sweep.threshold)):
        text += f"{sweep.threshold:g} as set gives mean Dice {format_score(at)}; "
    text += f"the best single one, {best:g}, {format_score(value)}"
    return text + f"; each tomogram's own best, {format_score(sweep.oracle_mean)} (both were chosen knowing the truth)."
