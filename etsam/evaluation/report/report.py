"""The report of an evaluation: one HTML page that needs no network, and its tables as CSV, JSON and Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etsam.errors import ConfigError
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.report.headline import findings
from etsam.evaluation.report.page import LICENCE_LINES, METHOD_LINES, page
from etsam.evaluation.report.tables import (
    ReportTables,
    build_tables,
    cells_of_means,
    cells_of_other_means,
    cells_of_pairs,
    cells_of_scores,
    failures,
    markdown_table,
    plain_markdown,
    write_csv,
    write_json,
)
from etsam.paths import make_folder
from etsam.prediction.record import environment
from etsam.settings import flat
from etsam.volume import atomic_path
from etsam.volume.atomic import refuse_existing

PAGE, MARKDOWN, JSON = "report.html", "report.md", "report.json"
"""Names of the files; each table is a CSV file with its name."""

DEFAULT_TITLE = "Membrane segmentation: evaluation"


def write_report(
    results: Sequence[TomogramResult],
    output_dir: Path,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
    title: str = DEFAULT_TITLE,
) -> Path:
    """Write what an evaluation found.

    Parameters
    ----------
    results
        One for each method and tomogram; a failed one has its `error`.
    output_dir
        Made if it is not there. Gets `report.html` (written last), `report.md`, `report.json`, and, as far as there is
        something in them, `scores.csv`, `means.csv`, `pairs.csv`, `missing.csv`, `thresholds.csv`,
        `best_thresholds.csv`, `pooled.csv`, `planes.csv`, `inclination.csv`.
    settings
        Shown and stored; values may be nested.
    overwrite
        Replace a report that is there.
    metrics, baseline
        Of the paired comparison; see `compare`.
    title
        Heading of the page.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    OutputError
        If a file exists and `overwrite` is not set, or cannot be written.
    ConfigError
        If there are no results, or `metrics` or `baseline` name what is not there.
    """
    if not results:
        raise ConfigError("there are no results to report; evaluate at least one tomogram.")
    tables = build_tables(results, metrics=metrics, baseline=baseline)
    output_dir = Path(output_dir)
    files = [output_dir / name for name in (PAGE, MARKDOWN, JSON)]
    files += [output_dir / f"{name}.csv" for name in tables.frames]
    for file in files:
        refuse_existing(file, overwrite)
    made_with = versions()
    text = page(title, tables, results, texts(settings), made_with)

    make_folder(output_dir)
    for name, table in tables.frames.items():
        file = output_dir / f"{name}.csv"
        if len(table):
            write_csv(file, table, overwrite)
        elif overwrite:
            file.unlink(missing_ok=True)  # of the report that is replaced
    words = {"title": title, "metrics": tables.comparison.metrics, "versions": made_with}
    write_json(output_dir / JSON, tables, words, settings, overwrite)
    for file, content in ((output_dir / MARKDOWN, markdown(title, tables)), (output_dir / PAGE, text)):
        with atomic_path(file, overwrite) as part:
            part.write_text(content, encoding="utf-8")
    return output_dir / PAGE


def markdown(title: str, tables: ReportTables) -> str:
    """The tables of scores, for a repository or a lab book."""
    found = [f"- {plain_markdown(f'{method}: {sentences}')}" for method, sentences in findings(tables)]
    blocks = [f"# {plain_markdown(title)}", "\n".join(found)]
    blocks += ["## Means", markdown_table(*cells_of_means(tables.comparison))]
    others = cells_of_other_means(tables.comparison, tables.frames["scores"]["tomogram"].nunique())
    if others[1]:
        blocks.append(markdown_table(*others))
    lines = [*failures(tables.frames["scores"]), *tables.comparison.notes]
    if lines:
        blocks.append("\n".join(f"- {plain_markdown(line)}" for line in lines))
    blocks += ["## Scores", markdown_table(*cells_of_scores(tables))]
    if len(tables.comparison.pairs):
        blocks += ["## Methods against each other", markdown_table(*cells_of_pairs(tables.comparison))]
        blocks.append("\n".join(METHOD_LINES))
    blocks.append("\n".join(LICENCE_LINES))
    return "\n\n".join(blocks) + "\n"


def texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as `a.b.c` -> text."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in flat(settings).items()
    }


def versions() -> dict[str, str]:
    """Program, packages and computer, as the page shows them."""
    found = environment()
    return {
        "etsam": found["etsam"],
        **found["packages"],
        "Python": found["python"],
        "Computer": found["platform"],
        "Written": found["finished"],
    }
