"""The page of a report: one HTML document that loads nothing, made of escaped text, tables and embedded pictures."""

import base64
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from etsam.evaluation.compare.compare import format_score
from etsam.evaluation.compare.tables import METRIC_NAMES
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.report.figures import Figures, points_of, svg_text
from etsam.evaluation.report.pictures import IGNORED_NOTE, LEGEND, SliceView, encoder, slice_views
from etsam.evaluation.report.style import CSS, JAVASCRIPT
from etsam.evaluation.report.summary import LICENCE_LINES, METHOD_LINES, failures
from etsam.evaluation.report.tables import (
    ReportTables,
    cells_of_means,
    cells_of_pairs,
    cells_of_scores,
    theta_by_method,
)

PICTURE_BUDGET_BYTES = 3_200_000  # of the page's 5 MB; curves and tables of 20 tomograms need about one
_BAD = ' class="bad"'
_SHORT = 24  # names up to here stay on one line
_FEW_ROWS = 16  # a table up to here is not torn apart on paper
_NAME_HEADS = ("Tomogram", "Method", "Methods", "Metric", "Setting", "Value", "Choice", "Plane", "Package", "Factor")


def page(
    title: str,
    tables: ReportTables,
    results: Sequence[TomogramResult],
    sentences: Sequence[str],
    settings: Mapping[str, str],
    versions: Mapping[str, str],
) -> str:
    """Write the document.

    Parameters
    ----------
    title
        Heading.
    tables, results
        What to show.
    sentences
        The summary.
    settings, versions
        Flat: name -> text.
    """
    sections = [
        ("Summary", _summary(sentences, tables)),
        ("Scores", _scores(tables)),
        ("Methods against each other", _pairs(tables)),
        ("Threshold", _threshold(tables)),
        ("Precision and recall", _precision_recall(tables, results)),
        ("Where it fails", _where(tables)),
        ("Slices", _tomograms(results)),
        ("Settings and versions", settings_tables(settings, versions)),
    ]
    return document(title, sections)


def document(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """An HTML document that loads nothing.

    Parameters
    ----------
    title
        Heading.
    sections
        Heading and HTML of each; those without HTML are left out.
    """
    shown = [(name, f"part-{i}", body) for i, (name, body) in enumerate(sections) if body]
    links = "".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for name, anchor, _ in shown)
    parts = "".join(f'<section id="{anchor}"><h2>{escape(name)}</h2>{body}</section>\n' for name, anchor, body in shown)
    footer = "".join(f"<p>{escape(line)}</p>" for line in LICENCE_LINES)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # says to the browser, too, that nothing is to be loaded
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<header><h1>{escape(title)}</h1></header>\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n{parts}</main>\n'
        f'<footer class="soft">{footer}</footer>\n<script>{JAVASCRIPT}</script>\n</body>\n</html>\n'
    )


def _summary(sentences: Sequence[str], tables: ReportTables) -> str:
    failed = failures(tables.frames["scores"])
    heads, rows = cells_of_means(tables.comparison)
    notes = tables.comparison.notes
    table = html_table(heads, rows, "Mean and 95 % interval over tomograms")
    return html_list(sentences, failed) + table + (f"<h3>To keep in mind</h3>{html_list(notes)}" if notes else "")


def _scores(tables: ReportTables) -> str:
    heads, rows = cells_of_scores(tables)
    scores = tables.frames["scores"]
    figures = Figures(tables.comparison.methods)
    shown = [name for name in tables.comparison.metrics if scores[name].notna().any()][:2]
    plots = [
        plot(figures.scores(scores, name), f"{METRIC_NAMES.get(name, name)} of each tomogram and method")
        for name in shown
    ]
    return plot_grid(plots, "tall") + html_table(heads, rows, "Press a heading to sort.", sortable=True)


def _pairs(tables: ReportTables) -> str:
    if not len(tables.comparison.pairs):
        return ""
    heads, rows = cells_of_pairs(tables.comparison)
    table = html_table(heads, rows, "Paired comparison", sortable=True, dense=True)
    return table + "".join(f'<p class="soft">{escape(line)}</p>' for line in METHOD_LINES)


def _threshold(tables: ReportTables) -> str:
    if not tables.sweeps:
        return ""
    figures = Figures(tables.comparison.methods)
    plots = [plot(figures.sweep(sweep), f"{sweep.method}: Dice against the threshold") for sweep in tables.sweeps]
    best = tables.frames["best_thresholds"]
    words = {"default": "as set", "best fixed": "best single", "oracle": "each tomogram's own best"}
    rows = [
        [
            row.method,
            words[row.choice],
            f"{row.threshold:g}" if np.isfinite(row.threshold) else "–",
            format_score(row.dice),
        ]
        for row in best[best["tomogram"] == ""].itertuples()
    ]
    caption = "The best ones were chosen knowing the truth of these tomograms: they say what is possible at most."
    return plot_grid(plots) + html_table(["Method", "Choice", "Threshold", "Mean Dice"], rows, caption)


def _precision_recall(tables: ReportTables, results: Sequence[TomogramResult]) -> str:
    figures = Figures(tables.comparison.methods)
    pooled = {sweep.method: sweep.counts.sum(0) for sweep in tables.sweeps}
    points = points_of(results)
    if not (pooled or points):
        return ""
    plots = [plot(figures.precision_recall(pooled, points), "All tomograms")]
    text = "Marks: the masks, their means in the figure of all tomograms. "
    if pooled:
        text += "Lines: all thresholds, in the figure of all tomograms their voxels taken together."
    for tomogram in dict.fromkeys(result.tomogram for result in results):
        own = [result for result in results if result.tomogram == tomogram and not result.error]
        curves = {result.method: result.counts for result in own if len(result.thresholds)}
        if curves:
            plots.append(plot(figures.precision_recall(curves, points_of(own)), tomogram))
    return f"<p>{text}</p>" + plot_grid(plots, "many")


def _where(tables: ReportTables) -> str:
    theta, planes = tables.frames["theta"], tables.frames["planes"]
    parts = []
    if len(theta):
        figures, pooled = Figures(tables.comparison.methods), theta_by_method(theta)
        plots = [
            plot(figures.theta(pooled, name), f"{METRIC_NAMES[name]} by the angle between the membrane's normal and Z")
            for name in ("recall", "precision")
        ]
        parts.append(
            "<h3>By direction</h3><p>0 degrees: the membrane lies flat in the slice; 90 degrees: it stands upright."
            " All tomograms together, weighted by their membrane voxels.</p>" + plot_grid(plots)
        )
    if len(planes):
        metrics = [column for column in planes.columns if column not in ("method", "tomogram", "plane")]
        means = planes.groupby(["method", "plane"], sort=False)[metrics].mean().reset_index()
        rows = [
            [r["method"], r["plane"].upper(), *(format_score(r[name]) for name in metrics)] for r in _records(means)
        ]
        heads = ["Method", "Plane", *(METRIC_NAMES.get(name, name) for name in metrics)]
        caption = "Mean over the slices of each orientation that hold membrane, then over tomograms"
        parts.append("<h3>By plane</h3>" + html_table(heads, rows, caption, sortable=True))
    scores, metric = tables.frames["scores"], tables.comparison.metrics[0]
    if scores["tomogram"].nunique() > 1 and scores[metric].notna().any():
        means = scores.groupby("tomogram", sort=False)[metric].agg(["mean", "min", "max"]).sort_values("mean")
        rows = [[name, *(format_score(value) for value in row)] for name, *row in means.itertuples()]
        heads = ["Tomogram", *(f"{word} {METRIC_NAMES.get(metric, metric)}" for word in ("Mean", "Lowest", "Highest"))]
        parts.append("<h3>By tomogram</h3>" + html_table(heads, rows, "All methods, hardest first", sortable=True))
    return "".join(parts)


def _tomograms(results: Sequence[TomogramResult]) -> str:
    views = slice_views(results)
    encode, fitting = encoder(views, PICTURE_BUDGET_BYTES) if views else (lambda image: "", 0)
    kept = _spread(views, fitting)
    parts = []
    for i, tomogram in enumerate(dict.fromkeys(result.tomogram for result in results)):
        body = "".join(_slice(view, encode) for view in kept if view.tomogram == tomogram)
        if body:
            parts.append(f'<section id="tomogram-{i}"><h3>{escape(tomogram)}</h3>{body}</section>')
    if not parts:
        return ""
    legend = _legend()
    if len(kept) < len(views):
        legend += f"<p>{len(views) - len(kept)} of {len(views)} slices are left out to keep this page small.</p>"
    return legend + "".join(parts)


def _spread(views: Sequence[SliceView], number: int) -> list[SliceView]:
    """Not more than `number` views: first one of each tomogram, then the second, ..."""
    if len(views) <= number:
        return list(views)
    seen: dict[str, int] = {}
    turns = []
    for view in views:
        seen[view.tomogram] = turn = seen.get(view.tomogram, 0) + 1
        turns.append(turn)
    chosen = set(sorted(range(len(views)), key=lambda i: turns[i])[:number])
    return [view for i, view in enumerate(views) if i in chosen]


def _slice(view: SliceView, encode: Callable[[np.ndarray], str]) -> str:
    figures = "".join(
        f'<figure><img src="{encode(image)}" alt="{escape(text)}"><figcaption>{escape(title)}</figcaption></figure>'
        for title, text, image in view.images
    )
    plane = {"z": "XY", "y": "XZ", "x": "YZ"}.get(view.axis, "")
    where = f"{plane} slice at {view.axis} = {view.index}".strip()
    grid = f'<div class="slices" style="--columns: {min(len(view.images), 6)}">'
    return f'<div class="slice"><p class="soft">{escape(where)}</p>{grid}{figures}</div></div>'


def _legend() -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" fill="{colour}"/></svg>'
        f"{escape(text)}</li>"
        for colour, text in LEGEND
    )
    return f'<ul class="legend">{items}</ul><p class="soft">{escape(IGNORED_NOTE)}</p>'


def settings_tables(settings: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """Two tables of names and texts."""
    tables = []
    for heads, rows, caption in (
        (["Setting", "Value"], settings, "Settings of this evaluation"),
        (["Package", "Version"], versions, "Versions"),
    ):
        if rows:
            tables.append(html_table(heads, [[key, value] for key, value in rows.items()], caption))
    return "".join(tables)


def html_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str,
    *,
    sortable: bool = False,
    dense: bool = False,
) -> str:
    """A table in a frame that scrolls sideways; columns of numbers are aligned right."""
    rows = list(rows)
    names = [head in _NAME_HEADS or head == "Version" for head in heads]

    def cell(text: str, column: int) -> str:
        kind = "number" if not names[column] else "short name" if len(text) <= _SHORT else "name"
        return f'<td class="{kind}">{escape(text)}</td>'

    lines = []
    for row in rows:
        at = next((i for i, text in enumerate(row) if text.startswith("failed: ") and not names[i]), None)
        if at is None:
            lines.append("<tr>" + "".join(cell(text, i) for i, text in enumerate(row)) + "</tr>")
        else:  # one cell for the reason, as wide as the values that are not there
            start = "".join(cell(text, i) for i, text in enumerate(row[:at]))
            lines.append(f'<tr>{start}<td class="bad" colspan="{len(row) - at}">{escape(row[at])}</td></tr>')
    head = "".join(
        f'<th scope="col"{"" if name else " class=number"}>{escape(text)}</th>'
        for text, name in zip(heads, names, strict=True)
    )
    kind = ' class="sortable"' if sortable else ""
    frame = "scroll" + (" dense" if dense else "") + (" whole" if len(lines) <= _FEW_ROWS else "")
    return (
        f'<div class="{frame}" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table{kind}><caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def html_list(sentences: Sequence[str], bad: Container[str] = ()) -> str:
    """Sentences as a list, those in `bad` marked."""
    items = "".join(f"<li{_BAD if line in bad else ''}>{escape(line)}</li>" for line in sentences)
    return f"<ul>{items}</ul>"


def plot(figure: Any, text: str) -> str:
    """A figure of matplotlib, embedded, with a caption."""
    data = base64.b64encode(svg_text(figure).encode("utf-8")).decode("ascii")
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(text)} (figure)">'
    return f"<figure><figcaption>{escape(text)}</figcaption>{image}</figure>"


def plot_grid(figures: Sequence[str], more: str = "") -> str:
    """Embedded figures side by side, as many as there is room for."""
    return f'<div class="{f"plots {more}".strip()}">{"".join(figures)}</div>' if figures else ""


def _records(table: pd.DataFrame) -> list[dict[Any, Any]]:
    return list(table.to_dict(orient="records"))
