"""Results -> tables: CSV, JSON and Markdown, a row for each tomogram, and what holds for all of them together."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etsam.errors import ConfigError
from etsam.evaluation.curve import area_under_curve, best_fixed_threshold, pooled_counts
from etsam.evaluation.results import TomogramResult
from etsam.evaluation.store import without_nan
from etsam.io import atomic_path
from etsam.overlap import overlap_scores

CSV, JSON, MARKDOWN = "tomograms.csv", "evaluation.json", "evaluation.md"


def require_pandas() -> Any:
    """Give pandas, or a `ConfigError` that says how to install it."""
    try:
        import pandas
    except ImportError as error:
        raise ConfigError("tables need pandas; install it with: pip install 'etsam[evaluation]'") from error
    return pandas


def rows(results: Sequence[TomogramResult]) -> list[dict[str, Any]]:
    """One row for each method and tomogram: status, scores, means by plane (`xy_dice`), seconds, error."""
    table = []
    for result in results:
        row: dict[str, Any] = {
            "method": result.method,
            "tomogram": result.tomogram,
            "status": "failed" if result.error else "ok",
            **result.metrics,
        }
        row |= {f"{plane}_{name}": value for plane, scores in result.planes.items() for name, value in scores.items()}
        table.append(row | {"seconds": result.seconds, "error": result.error})
    return table


def summary(results: Sequence[TomogramResult]) -> dict[str, dict[str, Any]]:
    """What holds for all tomograms of a method, failed ones left out.

    Returns
    -------
    dict
        Method -> `tomograms` and `failed` (numbers), `mean` and `median` (metric -> value over tomograms where it is
        defined), and of logits `pooled_auprc` (all voxels together), `best_threshold` with its mean Dice
        `best_threshold_dice` (one threshold for all tomograms) and `oracle_dice` (each with its own).
    """
    out: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(result.method for result in results):
        own = [result for result in results if result.method == method]
        scored = [result for result in own if not result.error]
        names = list(dict.fromkeys(name for result in scored for name in result.metrics))
        columns = {name: np.array([result.metrics.get(name, np.nan) for result in scored]) for name in names}
        defined = {name: column[~np.isnan(column)] for name, column in columns.items()}
        threshold, dice = best_fixed_threshold(scored)
        out[method] = {
            "tomograms": len(own),
            "failed": len(own) - len(scored),
            "mean": {name: float(values.mean()) if len(values) else np.nan for name, values in defined.items()},
            "median": {name: float(np.median(values)) if len(values) else np.nan for name, values in defined.items()},
            "pooled_auprc": area_under_curve(pooled_counts(scored)[1]),
            "best_threshold": threshold,
            "best_threshold_dice": dice,
        }
    return out


def write_tables(
    results: Sequence[TomogramResult], output_dir: Path, settings: dict[str, Any], overwrite: bool = False
) -> list[Path]:
    """Write `tomograms.csv`, `evaluation.json` and `evaluation.md`.

    Parameters
    ----------
    results
        Of all methods.
    output_dir
        An existing folder.
    settings
        Of the evaluation, kept in the JSON file.
    overwrite
        Replace files that exist.

    Raises
    ------
    OutputError
        If one exists or cannot be written.
    """
    pandas = require_pandas()
    table, together = rows(results), summary(results)
    frame = pandas.DataFrame(table)
    frame = frame[[*(name for name in frame.columns if name != "error"), "error"]]  # failed rows lack the scores
    files = [output_dir / name for name in (CSV, JSON, MARKDOWN)]
    whole = {"summary": together, "tomograms": table, "curves": _curves(results), "settings": settings}
    texts = (
        frame.to_csv(index=False, lineterminator="\n"),
        json.dumps(without_nan(whole), indent=2, default=str) + "\n",
        _markdown(frame, together),
    )
    for file, text in zip(files, texts, strict=True):
        with atomic_path(file, overwrite) as part:
            part.write_text(text, encoding="utf-8")
    return files


def _curves(results: Sequence[TomogramResult]) -> dict[str, Any]:
    """Method -> threshold, precision and recall of all its voxels together."""
    out = {}
    for method in dict.fromkeys(result.method for result in results):
        thresholds, counts = pooled_counts([result for result in results if result.method == method])
        if len(thresholds):
            scores = overlap_scores(counts)
            out[method] = {
                "threshold": thresholds.tolist(),
                "precision": scores.precision.tolist(),
                "recall": scores.recall.tolist(),
            }
    return out


def _markdown(frame: Any, together: dict[str, dict[str, Any]]) -> str:
    overall = []
    for method, found in together.items():
        row = {"method": method, "tomograms": found["tomograms"], "failed": found["failed"]}
        row |= {f"mean {name}": value for name, value in found["mean"].items()}
        names = ("pooled_auprc", "best_threshold", "best_threshold_dice")
        overall.append(row | {name.replace("_", " "): found[name] for name in names})
    parts = ["# Evaluation", "", "## Together", "", *_lines(overall), "", "## Tomograms", ""]
    return "\n".join([*parts, *_lines(frame.to_dict("records")), ""])


def _lines(table: list[dict[str, Any]]) -> list[str]:
    """A Markdown table, whose own columns are those of its rows in order."""
    columns = list(dict.fromkeys(name for row in table for name in row))
    body = [[_cell(row.get(name)) for name in columns] for row in table]
    header = [columns, ["---"] * len(columns)]
    return [f"| {' | '.join(cells)} |" for cells in [*header, *body]]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value).replace("|", "\\|")
