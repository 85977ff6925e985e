"""The tables of a report as data frames, and as CSV, JSON and Markdown files."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from etsam.evaluation.compare.compare import Comparison, compare, format_p, format_score
from etsam.evaluation.compare.tables import METRIC_NAMES, scores_of_results
from etsam.evaluation.metrics.curves import Sweep, precision_recall, sweeps
from etsam.evaluation.metrics.results import InclinationRow, TomogramResult
from etsam.evaluation.organisms import organisms
from etsam.evaluation.result_store import without_nan
from etsam.labels import overlap_scores
from etsam.volume import atomic_path

THETA_COLUMNS = ("method", "tomogram", *InclinationRow._fields)


@dataclass(frozen=True)
class ReportTables:
    """Everything of a report that is numbers.

    Attributes
    ----------
    comparison
        Means, paired tests, what is missing.
    sweeps
        Methods with a sweep of the threshold.
    frames
        File name without suffix -> table: scores, means, pairs, missing, thresholds, best_thresholds, pooled (all
        voxels of a method together), planes, inclination.
    """

    comparison: Comparison
    sweeps: tuple[Sweep, ...]
    frames: dict[str, pd.DataFrame]


def build_tables(
    results: Sequence[TomogramResult],
    *,
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
) -> ReportTables:
    """Put the results of an evaluation into tables.

    Parameters
    ----------
    results
        One for each method and tomogram.
    metrics, baseline
        Of the comparison; see `compare`.
    """
    scores = scores_of_results(results)
    comparison = compare(scores, metrics, baseline=baseline)
    found = tuple(sweeps(results))
    return ReportTables(
        comparison,
        found,
        {
            "scores": scores,
            "means": comparison.means,
            "pairs": comparison.pairs,
            "missing": comparison.missing,
            "thresholds": _thresholds(results),
            "best_thresholds": _best_thresholds(found),
            "pooled": pd.DataFrame(
                [(sweep.method, len(sweep.tomograms), sweep.pooled_area) for sweep in found],
                columns=["method", "tomograms", "auprc"],
            ),
            "planes": _planes(results),
            "inclination": _inclination(results),
        },
    )


def _thresholds(results: Sequence[TomogramResult]) -> pd.DataFrame:
    columns = ["method", "tomogram", "threshold", "true_positives", "false_positives", "false_negatives"]
    parts = []
    for result in results:
        if not len(result.thresholds) or result.error:
            continue
        counts = np.asarray(result.counts)
        part = pd.DataFrame(counts, columns=columns[3:]).astype("int64")
        part.insert(0, "threshold", np.round(np.asarray(result.thresholds, np.float64), 6))
        part.insert(0, "tomogram", result.tomogram)
        part.insert(0, "method", result.method)
        part["dice"] = overlap_scores(counts).dice
        part["precision"], part["recall"] = precision_recall(counts)
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _best_thresholds(found: Sequence[Sweep]) -> pd.DataFrame:
    """Choice, threshold and Dice; tomogram is empty for what concerns all."""
    rows: list[tuple[Any, ...]] = []
    for sweep in found:
        if math.isfinite(sweep.threshold):
            rows.append((sweep.method, "default", "", sweep.threshold, sweep.at(sweep.threshold)))
        rows.append((sweep.method, "best fixed", "", *sweep.best_fixed))
        rows.append((sweep.method, "oracle", "", math.nan, sweep.oracle_mean))
        rows += [
            (sweep.method, "oracle", name, *best) for name, best in zip(sweep.tomograms, sweep.oracle, strict=True)
        ]
    return pd.DataFrame(rows, columns=["method", "choice", "tomogram", "threshold", "dice"])


def _planes(results: Sequence[TomogramResult]) -> pd.DataFrame:
    rows = [
        {"method": result.method, "tomogram": result.tomogram, "plane": plane} | dict(values)
        for result in results
        for plane, values in result.planes.items()
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["method", "tomogram", "plane"])


def _inclination(results: Sequence[TomogramResult]) -> pd.DataFrame:
    rows = [(result.method, result.tomogram, *row) for result in results for row in result.inclination]
    return pd.DataFrame(rows, columns=list(THETA_COLUMNS))


def inclination_by_method(inclination: pd.DataFrame) -> pd.DataFrame:
    """Recall and precision of each method and range of angles, over the surfaces of all tomograms taken together.

    Recall is weighted by the truth's surface voxels, precision by the predicted ones: what is predicted where the truth
    has no surface is all false, and counts.
    """
    weights = {"recall": "truth_voxels", "precision": "predicted_voxels"}
    table = inclination.assign(
        **{name: (inclination[name] * inclination[weight]).fillna(0) for name, weight in weights.items()}
    )
    keys = ["method", "lower_degrees", "upper_degrees"]
    pooled = table.groupby(keys, sort=False)[[*weights, *weights.values()]].sum().reset_index()
    for name, weight in weights.items():
        pooled[name] = (pooled[name] / pooled[weight]).where(pooled[weight] > 0)
    return pooled


def write_csv(path: Path, table: pd.DataFrame, overwrite: bool = False) -> None:
    """Write a table with all digits; what has no value is empty."""
    with atomic_path(path, overwrite) as part:
        table.to_csv(part, index=False, lineterminator="\n")


def write_json(
    path: Path,
    tables: ReportTables,
    words: Mapping[str, object],
    settings: Mapping[str, object],
    overwrite: bool = False,
) -> None:
    """Write tables, summary and settings; what has no value is null."""
    content = {
        **words,
        "notes": list(tables.comparison.notes),
        "settings": settings,
        **{name: table.to_dict(orient="records") for name, table in tables.frames.items()},
    }
    write_plain_json(path, content, overwrite)


def write_plain_json(path: Path, content: Mapping[str, object], overwrite: bool = False) -> None:
    """Write nested values of any kind; what is not finite is null, what JSON does not know is its text."""
    text = json.dumps(without_nan(content), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(path, overwrite) as part:
        part.write_text(text + "\n", encoding="utf-8")


def format_value(metric: str, value: float) -> str:
    """A score with the digits that mean something: distances to 1 Å (below 10 Å to 0.1 Å), counts whole, others 3."""
    if not math.isfinite(value):
        return "–"
    if metric.endswith("_angstrom"):
        return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"
    if metric.endswith("_error"):
        return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
    return format_score(value)


def format_difference(metric: str, value: float) -> str:
    """A difference of scores with its sign and the digits of `format_value`."""
    text = format_value(metric, value)
    return f"+{text}" if value >= 0 and math.isfinite(value) else text


def failures(scores: pd.DataFrame) -> list[str]:
    """A sentence for each tomogram without scores."""
    failed = scores[scores["error"] != ""]
    return [f"{row.method} failed on {row.tomogram}: {row.error.rstrip(' .')}." for row in failed.itertuples()]


def cells_of_scores(tables: ReportTables) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table of scores, methods of one together; where one failed, the reason."""
    scores = tables.frames["scores"]
    order = {name: number for number, name in enumerate(dict.fromkeys(scores["tomogram"]))}
    scores = scores.sort_values("tomogram", key=lambda names: names.map(order), kind="stable")
    metrics = [column for column in scores.columns if column not in ("method", "tomogram", "error", "seconds")]
    timed = bool(scores["seconds"].notna().any())
    heads = ["Tomogram", "Method", *(METRIC_NAMES.get(name, name) for name in metrics), *(["Seconds"] if timed else [])]
    rows = []
    for row in scores.to_dict(orient="records"):
        cells = [row["tomogram"], row["method"], *(format_value(name, row[name]) for name in metrics)]
        if timed:
            cells.append(f"{row['seconds']:.1f}" if math.isfinite(row["seconds"]) else "–")
        if row["error"]:
            cells[2:] = [f"failed: {row['error']}"]
        rows.append(cells)
    known = [organisms().get(row[0], "") for row in rows]
    if any(known):
        heads.insert(1, "Organism")
        for cells, organism in zip(rows, known, strict=True):
            cells.insert(1, organism or "–")
    return heads, rows


def cells_of_means(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: a row a method, its mean and interval in each metric.

    Where methods have values for different tomograms, further rows have the means over the shared ones.
    """
    heads = ["Method", "Tomograms", *(METRIC_NAMES.get(name, name) for name in comparison.metrics)]
    rows, shared = [], []
    for method in comparison.methods:
        own = comparison.means[comparison.means["method"] == method].set_index("metric").loc[list(comparison.metrics)]
        cells = [method, _range(own["n"])]
        for row in own.itertuples():
            cells.append(f"{format_value(row.Index, row.mean)} {format_interval(row.low, row.high, row.Index)}".strip())
        rows.append(cells)
        if own["n_shared"].any():
            means = (format_value(name, value) for name, value in own["mean_shared"].items())
            shared.append([method, f"{_range(own['n_shared'])} shared", *means])
    return heads, [*rows, *shared] if set(comparison.unequal) & set(comparison.metrics) else rows


def _range(numbers: pd.Series) -> str:
    low, high = numbers.min(), numbers.max()
    return str(low) if low == high else f"{low} to {high}"


def cells_of_other_means(comparison: Comparison, tomograms: int) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: a row a metric that is not compared, and how many tomograms its mean is of; no row if none is.

    Distances are not defined where truth or prediction is empty. Left out without a word, a method that finds nothing
    would improve by it. Where methods have values for different tomograms, a second row has the means over the shared
    ones.
    """
    names = [name for name in dict.fromkeys(comparison.means["metric"]) if name not in comparison.metrics]
    rows = []
    for name in names:
        own = comparison.means[comparison.means["metric"] == name].set_index("method").loc[list(comparison.methods)]
        cells = [f"{format_value(name, row.mean)} ({row.n} of {tomograms})" for row in own.itertuples()]
        rows.append([METRIC_NAMES.get(name, name), *cells])
        if name in comparison.unequal and own["n_shared"].any():
            cells = [f"{format_value(name, row.mean_shared)} ({row.n_shared} shared)" for row in own.itertuples()]
            rows.append([METRIC_NAMES.get(name, name), *cells])
    return ["Metric", *comparison.methods], rows


def format_interval(low: float, high: float, metric: str = "") -> str:
    """`(0.650 to 0.865)`; nothing if there is none."""
    known = math.isfinite(low) and math.isfinite(high)
    return f"({format_value(metric, low)} to {format_value(metric, high)})" if known else ""


def cells_of_pairs(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the paired comparison."""
    heads = ["Metric", "Methods", "n", "Difference", "95 % interval", "Higher / equal / lower", "Effect d", "t-test p"]
    heads += ["Holm", "Wilcoxon p", "Holm", "Shapiro-Wilk p"]
    rows = []
    for row in comparison.pairs.itertuples():
        p = (row.t_p, row.t_p_holm, row.wilcoxon_p, row.wilcoxon_p_holm)
        cells = [METRIC_NAMES.get(row.metric, row.metric), f"{row.first} - {row.second}", str(row.n)]
        cells.append(format_difference(row.metric, row.difference))
        bounds = (format_difference(row.metric, value) for value in (row.low, row.high))
        cells.append(" to ".join(bounds) if math.isfinite(row.low) else "–")
        cells += [f"{row.higher} / {row.equal} / {row.lower}"]
        cells.append(f"{row.effect_size:.2f}" if math.isfinite(row.effect_size) else "–")
        rows.append([*cells, *(format_p(value) for value in (*p, row.shapiro_p))])
    return heads, rows


def plain_markdown(text: str) -> str:
    """Text on one line in which a backslash or a tag is no more than it looks."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("<", "&lt;")


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that GitHub and pandoc show; bars in names are escaped, short rows filled up."""

    def line(cells: Sequence[str]) -> str:
        cells = [*cells, *[""] * (len(heads) - len(cells))]
        return "| " + " | ".join(plain_markdown(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *(line(row) for row in rows)])
