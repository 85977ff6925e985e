"""Tables of scores, of this program and of others: one row a method and tomogram, one column a metric."""

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from etsam.data.manifest import column_separator
from etsam.errors import InputError
from etsam.evaluation.metrics.results import TomogramResult
from etsam.paths import resource_path

METRICS = ("dice", "iou", "precision", "recall")
"""Metrics that every table is searched for; all lie in 0..1 and higher is better."""

METRIC_NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "auprc": "AUPRC",
    "surface_dice": "Surface Dice",
    "assd_angstrom": "Mean surface distance (Å)",
    "hausdorff95_angstrom": "95 % Hausdorff, larger direction (Å)",
    "hausdorff95_pooled_angstrom": "95 % Hausdorff, pooled (Å)",
    "cldice": "clDice of XY slices",
    "betti0_error": "Betti-0 error",
    "betti1_error": "Betti-1 error",
    "betti2_error": "Betti-2 error",
}
"""Words for them that people read."""

PUBLISHED = ("ETSAM stage 2", "ETSAM stage 1", "MemBrain-seg", "TARDIS")
"""Methods of `published_scores`."""

_ALIASES = {
    "dice": ("dice_score", "dice_coefficient", "f1", "f1_score"),
    "iou": ("mean_iou_score", "iou_score", "mean_iou", "jaccard"),
    "precision": ("precision_score",),
    "recall": ("recall_score", "sensitivity"),
}
_KNOWN = {alias: metric for metric, aliases in _ALIASES.items() for alias in aliases}
_TOMOGRAM_COLUMNS = ("tomogram", "dataset_id", "run_id")
_NOT_METRICS = (*_TOMOGRAM_COLUMNS, "method", "error", "seconds")
_PLACE = "{metric}"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A table to read.

    Attributes
    ----------
    path
        CSV file.
    name
        Name of the method; empty: the table has a column `method`.
    pattern
        How its columns are called, `{metric}` standing for dice, iou, ...; empty: by their usual names.
    """

    path: Path
    name: str = ""
    pattern: str = ""


def parse_source(text: str) -> Source:
    """Understand `NAME=TABLE.csv`, `NAME=TABLE.csv:PATTERN` or `TABLE.csv`.

    Raises
    ------
    InputError
        If the name or the file is left out.
    """
    if Path(text).is_file():
        return Source(Path(text))
    name, equals, rest = text.partition("=")
    if not equals:
        name, rest = "", text
    path, pattern = rest, ""
    if _PLACE in rest and ":" in rest:
        path, _, pattern = rest.rpartition(":")
    if not path or (equals and not name.strip()):
        raise InputError(f"{text!r} is no table; write NAME=TABLE.csv or NAME=TABLE.csv:PATTERN.")
    return Source(Path(path), name.strip(), pattern)


def read_scores(source: Source) -> pd.DataFrame:
    """Read a table of scores.

    The tomogram is the column `tomogram`, or `dataset_id` and `run_id` joined by a slash. Columns `dice`, `iou`,
    `precision`, `recall` are also found by other usual names (`dice_score`, `mean_iou_score`, ...); with a pattern only
    the columns that fit it are taken. Further columns of numbers are further metrics. An empty cell is a missing value;
    so is an infinite one, which other programs write as the distance to an empty mask, with a warning.

    Returns
    -------
    DataFrame
        Columns method, tomogram, error, and the metrics (float64).

    Raises
    ------
    InputError
        If the file is no such table, a tomogram is there twice, or a score is outside 0..1.
    """
    path = source.path
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = column_separator(file.readline())
        raw = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        hint = f"; a pattern of columns has to contain {_PLACE}" if ":" in path.name else ""
        raise InputError(f"{path}: no such file{hint}.") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path} cannot be read as a CSV table ({' '.join(str(error).split())}).") from error
    raw.columns = [str(column).strip() for column in raw.columns]
    table = pd.DataFrame({"method": _methods(raw, source), "tomogram": _tomograms(raw, path)})
    table["error"] = raw["error"].str.strip() if "error" in raw else ""
    for metric, column in _metric_columns(list(raw.columns), source).items():
        texts = raw[column].str.replace(",", ".") if separator == ";" else raw[column]  # decimal commas of such tables
        values = _numbers(texts, required=metric in METRICS or bool(source.pattern), place=f"{path}: {column}")
        if values is not None:
            table[metric] = values
    if source.name and "method" in raw:
        table = table[table["method"] == source.name]
    for metric in set(METRICS) & set(table.columns):
        outside = table[(table[metric] < 0) | (table[metric] > 1)]
        if len(outside):
            value, tomogram = outside[metric].iloc[0], outside["tomogram"].iloc[0]
            raise InputError(f"{path}: {metric} of {tomogram} is {value:g}; allowed: 0 to 1 (percent? divide by 100).")
    for metric in metric_columns(table):
        infinite = table[metric].isin([math.inf, -math.inf])
        if infinite.any():
            log.warning("%s: %s of %s is infinite: no value", path, metric, ", ".join(table.loc[infinite, "tomogram"]))
            table[metric] = table[metric].mask(infinite)
    _refuse_twice(table, str(path))
    return table.reset_index(drop=True)


def _methods(raw: pd.DataFrame, source: Source) -> pd.Series | str:
    if "method" not in raw:
        if not source.name:
            raise InputError(f"{source.path} has no column method; write NAME={source.path}.")
        return pd.Series([source.name] * len(raw), dtype=object)
    names = list(dict.fromkeys(raw["method"]))
    if source.name and source.name not in names:
        if len(names) > 1:
            raise InputError(
                f"{source.path} holds the methods {', '.join(names)}, none called {source.name}; give one of these"
                f" names, or the file alone for all."
            )
        raw["method"] = source.name  # one method, called otherwise
    return raw["method"]


def _tomograms(raw: pd.DataFrame, path: Path) -> pd.Series:
    if "tomogram" in raw:
        names = raw["tomogram"].str.strip()
    elif "dataset_id" in raw and "run_id" in raw:
        names = raw["dataset_id"].str.strip() + "/" + raw["run_id"].str.strip()
    else:
        found = ", ".join(raw.columns[:6])
        raise InputError(
            f"{path} names no tomograms: it has the columns {found}; needed: tomogram, or dataset_id, run_id."
        )
    if not len(names) or (names == "").any():
        raise InputError(f"{path}: {'no rows' if not len(names) else 'a row without a tomogram'}; give each a name.")
    return names


def _metric_columns(columns: list[str], source: Source) -> dict[str, str]:
    """Metric -> column."""
    found: dict[str, str] = {}
    if source.pattern:
        before, after = source.pattern.split(_PLACE, 1)
        expression = re.compile(f"{re.escape(before)}([A-Za-z]\\w*){re.escape(after)}")
        candidates = [(match.group(1), column) for column in columns if (match := expression.fullmatch(column))]
    else:
        candidates = [(column, column) for column in columns if column not in _NOT_METRICS]
    for written, column in candidates:
        metric = _KNOWN.get(written.lower(), written.lower() if written.lower() in METRICS else written)
        if metric in found:
            raise InputError(f"{source.path}: both {found[metric]} and {column} would be {metric}; remove one of them.")
        found[metric] = column
    if not set(found) & set(METRICS):
        like = next((column for column in columns if "dice" in column.lower()), "my_dice_x")
        hint = re.sub("dice", _PLACE, like, count=1, flags=re.IGNORECASE)
        asked = f" like {source.pattern}" if source.pattern else f" {', '.join(METRICS)}"
        raise InputError(f"{source.path} has no column{asked}; say how they are called: 'NAME={source.path}:{hint}'.")
    return {metric: found[metric] for metric in sorted(found, key=_rank)}


def _rank(metric: str) -> int:
    return METRICS.index(metric) if metric in METRICS else len(METRICS)


def _numbers(column: pd.Series, *, required: bool, place: str) -> pd.Series | None:
    text = column.str.strip()
    text = text.mask(text.str.lower().isin(["", "nan", "na", "none", "null", "-", "–"]))
    values = pd.to_numeric(text, errors="coerce").astype("float64")
    wrong = text[values.isna() & text.notna()]
    if not len(wrong):
        return values
    if required:
        raise InputError(f"{place} holds {wrong.iloc[0]!r}; allowed: numbers, or nothing where there is no value.")
    return None  # a column of words is no metric


def _refuse_twice(table: pd.DataFrame, place: str) -> None:
    twice = table[table.duplicated(["method", "tomogram"])]
    if len(twice):
        raise InputError(
            f"{place}: {twice['tomogram'].iloc[0]} is there twice for {twice['method'].iloc[0]}; keep one row for each."
        )


def join_scores(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Put tables below each other; a method and tomogram may be there once.

    Raises
    ------
    InputError
        If two tables hold the same method and tomogram.
    """
    joined = pd.concat(list(tables), ignore_index=True)
    _refuse_twice(joined, "the tables together")
    metrics = [column for column in joined.columns if column not in _NOT_METRICS]
    return joined[["method", "tomogram", "error", *sorted(metrics, key=_rank)]]


def scores_of_results(results: Sequence[TomogramResult]) -> pd.DataFrame:
    """Table of an evaluation's metrics, the last column `seconds`; a failed tomogram has an error and no values."""
    metrics = sorted(dict.fromkeys(name for result in results for name in result.metrics), key=_rank)
    rows = [
        {"method": result.method, "tomogram": result.tomogram, "error": result.error}
        | {name: math.nan if result.error else float(result.metrics.get(name, math.nan)) for name in metrics}
        | {"seconds": result.seconds}
        for result in results
    ]
    table = pd.DataFrame(rows, columns=["method", "tomogram", "error", *metrics, "seconds"])
    _refuse_twice(table, "the results")
    return table.astype(dict.fromkeys([*metrics, "seconds"], "float64"))


def results_of_scores(table: pd.DataFrame) -> list[TomogramResult]:
    """The rows of a table of scores as results without curves and pictures, for a report."""
    metrics = metric_columns(table)
    return [
        TomogramResult(row["method"], row["tomogram"], row["error"], {name: row[name] for name in metrics})
        for row in table.to_dict(orient="records")
    ]


def metric_columns(table: pd.DataFrame) -> list[str]:
    """Names of the metrics of a table of scores."""
    return [column for column in table.columns if column not in _NOT_METRICS]


def published_scores() -> pd.DataFrame:
    """The published scores of ETSAM, MemBrain-seg and TARDIS on ten tomograms (data/reference_results)."""
    folder = resource_path("data", "reference_results")
    # -0.25: the published threshold of stage 2
    patterns = (f"etsam_stage2_{_PLACE}_-0.25", f"etsam_stage1_grid_zero_{_PLACE}", "", "")
    files = ("etsam.csv", "etsam.csv", "membrain_seg.csv", "tardis.csv")
    sources = [
        Source(folder / file, name, pattern) for file, name, pattern in zip(files, PUBLISHED, patterns, strict=True)
    ]
    return join_scores(read_scores(source) for source in sources)
