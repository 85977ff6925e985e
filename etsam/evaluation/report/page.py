"""The page of a report: one HTML document that loads nothing, rendered from `templates/page.html`."""

import base64
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from etsam.evaluation.compare.compare import format_score
from etsam.evaluation.compare.statistics import INTERVALS, MIN_INTERVAL
from etsam.evaluation.compare.tables import METRIC_NAMES
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.organisms import organisms
from etsam.evaluation.report.colours import LEGEND
from etsam.evaluation.report.figures import Figures, points_of, svg_text
from etsam.evaluation.report.headline import badge, directions, facts, findings
from etsam.evaluation.report.pictures import IGNORED_NOTE, SliceView, encoder, slice_views
from etsam.evaluation.report.tables import (
    ReportTables,
    cells_of_means,
    cells_of_other_means,
    cells_of_pairs,
    cells_of_scores,
    failures,
    format_value,
    inclination_by_method,
)

_BESIDE = 6  # methods that have a column each
PICTURE_BUDGET_BYTES = 3_200_000  # of the page's 5 MB; curves and tables of 20 tomograms need about one
METHOD_LINES = (
    INTERVALS,
    "Differences: first method minus second on the same tomograms; d is their mean over their standard deviation.",
    "Tests: two-sided; paired t-test and Wilcoxon signed rank (differences of zero left out), each corrected by Holm"
    " for all pairs of the same metric. Shapiro-Wilk tests what the t-test assumes: that the differences are normal.",
)
LICENCE_LINES = (
    "Made with etsam (MIT). The network is Meta's SAM 2 (Apache-2.0).",
    "Method and published weights: Selvaraj and Cheng, ETSAM, bioRxiv, doi:10.1101/2025.11.23.689996.",
)
_NAME_HEADS = (  # columns of words; all others hold numbers
    "Tomogram", "Organism", "Method", "Methods", "Metric", "Setting", "Value", "Choice", "Plane", "Package", "Version",
    "Factor"
)  # fmt: skip


class Part:
    """A piece of a section; the template has a macro for each kind."""

    @property
    def kind(self) -> str:
        """Name of the macro."""
        return type(self).__name__


@dataclass(frozen=True)
class Table(Part):
    """Heads and rows of text; a row that is too short ends in why it has no numbers."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    sortable: bool = False
    dense: bool = False


@dataclass(frozen=True)
class Sentences(Part):
    """A list; lines in `bad` are marked."""

    lines: Sequence[str]
    bad: Container[str] = ()


@dataclass(frozen=True)
class Paragraph(Part):
    """A line of text, or with the tag `h3` a heading."""

    text: str
    tag: str = "p"
    soft: bool = False


@dataclass(frozen=True)
class Picture:
    """An embedded picture with its caption and the text for those who do not see it."""

    title: str
    text: str
    uri: str


@dataclass(frozen=True)
class Plots(Part):
    """Figures side by side, as many as there is room for; `layout` is a class of page.css."""

    images: Sequence[Picture]
    layout: str = ""


@dataclass(frozen=True)
class Slice:
    """Pictures of one slice, with the length of the scale bar as a share of their width."""

    where: str
    images: Sequence[Picture]
    bar_label: str
    bar_share: float


@dataclass(frozen=True)
class Slices(Part):
    """Slices of each tomogram: name -> (what is known of it, slices)."""

    tomograms: Mapping[str, tuple[str, Sequence[Slice]]]
    legend: Sequence[tuple[str, str]] = LEGEND
    note: str = IGNORED_NOTE


@dataclass(frozen=True)
class Headline(Part):
    """The box at the top: facts in one line, a warning, (method, finding) one a line, and how to read them."""

    facts: Sequence[str]
    badge: str
    findings: Sequence[tuple[str, str]]
    note: str


@dataclass(frozen=True)
class Folded(Part):
    """Tables that open when somebody asks for them."""

    title: str
    tables: Sequence[Table]


def document(title: str, sections: Mapping[str, Sequence[Part]]) -> str:
    """HTML document that loads nothing, every text in it escaped.

    Parameters
    ----------
    title
        Heading.
    sections
        Heading -> parts; sections without parts are left out.
    """
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    shown = {name: parts for name, parts in sections.items() if parts}
    words = {"title": title, "sections": shown, "licence": LICENCE_LINES, "name_heads": _NAME_HEADS}
    return environment.get_template("page.html").render(words)


def page(
    title: str,
    tables: ReportTables,
    results: Sequence[TomogramResult],
    settings: Mapping[str, str],
    versions: Mapping[str, str],
) -> str:
    """HTML document of an evaluation.

    Parameters
    ----------
    title
        Heading.
    tables, results
        What to show.
    settings, versions
        Flat: name -> text.
    """
    return document(
        title,
        {
            "Summary": _summary(tables, results, settings, versions),
            "Slices": _slices(tables, results),
            "Where it fails": _where(tables),
            "Threshold": _threshold(tables, results),
            "Precision and recall": _precision_recall(tables, results),
            "Scores": _scores(tables),
            "Methods against each other": _pairs(tables),
            "Settings and versions": settings_tables(settings, versions),
        },
    )


def _summary(
    tables: ReportTables,
    results: Sequence[TomogramResult],
    settings: Mapping[str, str],
    versions: Mapping[str, str],
) -> list[Part]:
    failed, notes = failures(tables.frames["scores"]), tables.comparison.notes
    box = Headline(facts(results, settings, versions), badge(settings), findings(tables), directions(tables))
    parts: list[Part] = [box, *([Sentences(failed, failed)] if failed else [])]
    parts.append(Table(*cells_of_means(tables.comparison), _caption_of_means(tables)))
    heads, rows = cells_of_other_means(tables.comparison, tables.frames["scores"]["tomogram"].nunique())
    if rows:
        caption = (
            "Other means (in brackets: of how many tomograms; there is no distance where truth or prediction is empty)"
        )
        parts.append(Table(heads, rows, caption))
    return [*parts, Paragraph("To keep in mind", "h3"), Sentences(notes)] if notes else parts


def _caption_of_means(tables: ReportTables) -> str:
    """Says what stands in brackets, or why nothing does."""
    means = tables.comparison.means
    if means["low"].notna().any():
        return "Mean over tomograms (95 % interval)"
    return f"Mean over tomograms; an interval needs {MIN_INTERVAL} or more"


def _scores(tables: ReportTables) -> list[Part]:
    scores, figures = tables.frames["scores"], Figures(tables.comparison.methods)
    shown = [name for name in tables.comparison.metrics if scores[name].notna().any()][:2]
    plots = [
        plot(figures.scores(scores, name), f"{METRIC_NAMES.get(name, name)} of each tomogram and method")
        for name in shown
    ]
    return [*_some(plots, "tall"), Table(*cells_of_scores(tables), "Press a heading to sort.", sortable=True)]


def _pairs(tables: ReportTables) -> list[Part]:
    if not len(tables.comparison.pairs):
        return []
    table = Table(*cells_of_pairs(tables.comparison), "Paired comparison", sortable=True, dense=True)
    return [table, *(Paragraph(line, soft=True) for line in METHOD_LINES)]


def _threshold(tables: ReportTables, results: Sequence[TomogramResult]) -> list[Part]:
    swept = {sweep.method for sweep in tables.sweeps}
    scored = [result for result in results if result.voxels and not result.error]  # not those of a table of scores
    without = [method for method in dict.fromkeys(result.method for result in scored) if method not in swept]
    missing: list[Part] = [Paragraph(_no_curve(without, scored), soft=bool(swept))] if without else []
    if not swept:
        return missing
    figures = Figures(tables.comparison.methods)
    plots = [plot(figures.sweep(sweep), f"{sweep.method}: Dice against the threshold") for sweep in tables.sweeps]
    best = tables.frames["best_thresholds"]
    words = {"default": "as set", "best fixed": "best single", "oracle": "each tomogram's own best"}
    rows = [
        [
            row.method,
            words[row.choice],
            f"{row.threshold:.2f}" if np.isfinite(row.threshold) else "–",
            format_score(row.dice),
        ]
        for row in best[best["tomogram"] == ""].itertuples()
    ]
    caption = "The best ones were chosen knowing the truth of these tomograms: they say what is possible at most."
    return [Plots(plots), *missing, Table(["Method", "Choice", "Threshold", "Mean Dice"], rows, caption)]


def _no_curve(methods: Sequence[str], scored: Sequence[TomogramResult]) -> str:
    """Sentence about methods without Dice against the threshold: why there is none, and what makes it."""
    if not any("auprc" in result.metrics for result in scored):  # which comes with `curve`, NaN for masks
        return "Dice against the threshold was not asked for: add curve to metrics=[...], and evaluate again."
    return (
        f"Dice against the threshold needs logits; masks only: {', '.join(methods)}. "
        "Predict with --store-logits (write_logits=true), and evaluate the same folder again."
    )


def _precision_recall(tables: ReportTables, results: Sequence[TomogramResult]) -> list[Part]:
    figures = Figures(tables.comparison.methods)
    pooled = {sweep.method: sweep.counts.sum(0) for sweep in tables.sweeps}
    points = points_of(results)
    if not (pooled or points):
        return []
    plots = [plot(figures.precision_recall(pooled, points), "All tomograms")]
    text = "Marks: the masks, their means in the figure of all tomograms. "
    if pooled:
        text += "Lines: all thresholds, in the figure of all tomograms their voxels taken together."
    for tomogram in dict.fromkeys(result.tomogram for result in results):
        own = [result for result in results if result.tomogram == tomogram and not result.error]
        curves = {result.method: result.counts for result in own if len(result.thresholds)}
        if curves:
            plots.append(plot(figures.precision_recall(curves, points_of(own)), _with_organism(tomogram)))
    return [Paragraph(text), Plots(plots, "many")]


def _where(tables: ReportTables) -> list[Part]:
    inclination, planes, methods = tables.frames["inclination"], tables.frames["planes"], tables.comparison.methods
    parts: list[Part] = []
    if len(inclination):
        figures, pooled = Figures(tables.comparison.methods), inclination_by_method(inclination)
        plots = [
            plot(
                figures.inclination(pooled, name),
                f"{METRIC_NAMES[name]} by the angle between the membrane's normal and Z",
            )
            for name in ("recall", "precision")
        ]
        text = (
            "0 degrees: the membrane lies flat in the slice; 90 degrees: it stands upright. The surfaces of all"
            " tomograms together: recall of the truth's, precision of the predicted ones."
        )
        parts += [Paragraph("By direction", "h3"), Paragraph(text), Plots(plots)]
    if len(planes):
        caption = "Mean over the slices of each orientation that hold membrane, then over tomograms"
        parts += [Paragraph("By plane", "h3"), Table(*_by_plane(planes, methods), caption, sortable=True)]
    scores, metric = tables.frames["scores"], tables.comparison.metrics[0]
    if scores["tomogram"].nunique() > 1 and scores[metric].notna().any():
        name = METRIC_NAMES.get(metric, metric)
        caption = f"{name}, hardest tomogram first"
        parts += [
            Paragraph("By tomogram", "h3"),
            Table(*_by_tomogram(scores, metric, methods), caption, sortable=True),
        ]
    return parts


def _by_plane(planes: pd.DataFrame, methods: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: methods beside each other; of one, or of more than there is room for, metrics."""
    metrics = [column for column in planes.columns if column not in ("method", "tomogram", "plane")]
    means = planes.groupby(["method", "plane"], sort=False)[metrics].mean()
    if 1 < len(methods) <= _BESIDE:
        rows = [
            [plane.upper(), METRIC_NAMES.get(name, name)]
            + [format_value(name, means[name].get((method, plane), np.nan)) for method in methods]
            for name in metrics
            for plane in planes["plane"].unique()
        ]
        return ["Plane", "Metric", *methods], rows
    rows = [
        [method, plane.upper(), *map(format_value, metrics, values)] for (method, plane), *values in means.itertuples()
    ]
    return ["Method", "Plane", *(METRIC_NAMES.get(name, name) for name in metrics)], rows


def _by_tomogram(scores: pd.DataFrame, metric: str, methods: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells: methods beside each other; of more than there is room for, their mean, lowest and highest."""
    means = scores.groupby("tomogram", sort=False)[metric].agg(["mean", "min", "max"]).sort_values("mean")
    name = METRIC_NAMES.get(metric, metric)
    heads, values = ["Mean of all methods", f"Lowest {name}", f"Highest {name}"], means
    if len(methods) <= _BESIDE:
        heads = [name] if len(methods) == 1 else list(methods)
        values = scores.pivot(index="tomogram", columns="method", values=metric).reindex(means.index, columns=methods)
    rows = [
        [_with_organism(tomogram), *(format_value(metric, value) for value in row)]
        for tomogram, row in zip(values.index, values.to_numpy(), strict=True)
    ]
    return ["Tomogram", *heads], rows


def _with_organism(tomogram: str) -> str:
    organism = organisms().get(tomogram, "")
    return f"{tomogram} ({organism})" if organism else tomogram


def _slices(tables: ReportTables, results: Sequence[TomogramResult]) -> list[Part]:
    """Slices of each tomogram, that with the lowest score first."""
    metric = tables.comparison.metrics[0]
    scores, methods = tables.frames["scores"], tables.comparison.methods
    means = scores.groupby("tomogram", sort=False)[metric].mean().sort_values(kind="stable")
    order = {name: number for number, name in enumerate(means.index)}
    views = sorted(slice_views(results), key=lambda view: order[view.tomogram])
    if not views:
        return []
    encode, fitting = encoder(views, PICTURE_BUDGET_BYTES)
    kept = _spread(views, fitting)
    tomograms: dict[str, tuple[str, list[Slice]]] = {}
    for view in kept:
        where = f"{ {'z': 'XY', 'y': 'XZ', 'x': 'YZ'}[view.axis] } slice at {view.axis} = {view.index}"
        where += f", {view.shows}" if view.shows else ""
        where += f"; mean of {view.averaged} slices" if view.averaged > 1 else ""
        images = [Picture(title, text, encode(image)) for title, text, image in view.images]
        organism, score = organisms().get(view.tomogram, ""), f" {format_value(metric, means[view.tomogram])}"
        if 1 < len(methods) <= _BESIDE:
            own = scores[scores["tomogram"] == view.tomogram].set_index("method")[metric]
            score = ": " + ", ".join(f"{method} {format_value(metric, value)}" for method, value in own.items())
        known = f"{organism + ', ' if organism else ''}{METRIC_NAMES.get(metric, metric)}{score}"
        tomograms.setdefault(view.tomogram, (known, []))[1].append(Slice(where, images, view.bar.label, view.bar_share))
    if not kept:
        return []
    left_out = f"{len(views) - len(kept)} of {len(views)} slices are left out to keep this page small."
    return [Slices(tomograms), *([Paragraph(left_out)] if len(kept) < len(views) else [])]


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


def settings_tables(settings: Mapping[str, str], versions: Mapping[str, str]) -> list[Part]:
    """Two tables of names and texts, folded away."""
    of_settings = Table(["Setting", "Value"], list(settings.items()), "Settings of this evaluation")
    of_versions = Table(["Package", "Version"], list(versions.items()), "Versions")
    tables = [table for table in (of_versions, of_settings) if table.rows]
    return [Folded(f"{len(settings)} settings, {len(versions)} versions", tables)] if tables else []


def plot(figure: Any, text: str) -> Picture:
    """A figure of matplotlib, embedded, with a caption."""
    data = base64.b64encode(svg_text(figure).encode("utf-8")).decode("ascii")
    return Picture(text, f"{text} (figure)", f"data:image/svg+xml;base64,{data}")


def _some(plots: Sequence[Picture], layout: str = "") -> list[Part]:
    return [Plots(plots, layout)] if plots else []
