"""Curves of scores against conditions as tables, one picture, and one HTML page that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from etsam.evaluation.compare.compare import format_score
from etsam.evaluation.compare.tables import METRIC_NAMES
from etsam.evaluation.report.figures import STYLE, Figures, png_bytes, short
from etsam.evaluation.report.page import Part, Plots, Sentences, Table, document, plot, settings_tables
from etsam.evaluation.report.report import texts, versions
from etsam.evaluation.report.tables import failures, format_difference, format_interval, write_csv, write_plain_json
from etsam.paths import make_folder
from etsam.prediction.record import environment
from etsam.volume import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE, PNG, JSON = "robustness.html", "robustness.png", "robustness.json"
CSV_CURVES, CSV_TOMOGRAMS = "curves.csv", "tomograms.csv"

TITLE = "Membrane segmentation: robustness on simulated tomograms"
FACTOR_NAMES = {
    "snr": "Signal-to-noise ratio of the tilt images",
    "max_tilt_degrees": "Largest tilt (± degrees)",
    "voxel_size_angstrom": "Voxel size (Å)",
    "thickness_angstrom": "Membrane thickness (Å)",
    "contrast": "Membranes",
}
_METRIC_LINES = {"dice": "-", "surface_dice": "--"}
_COLUMNS = 2  # of panels in the picture
_PANEL_INCHES = (4.0, 2.6)
NOTES = (
    "The same specimens are seen at every value of every factor, while all else stays at the baseline (dotted line);"
    " what is drawn for the acquisition of a specimen is the same, too, its noise where images have the same size and"
    " number.",
    "Bands and bars: 95 % intervals of the mean over specimens (of two to nine t intervals, of more by bootstrap). They"
    " hold the differences between specimens, too; the table has intervals of the paired differences.",
    "The signal-to-noise ratio is that at the tomogram's own voxel size, and masks are at least 2.5 voxels thick. A"
    " smaller largest tilt means fewer images, since their step stays.",
    "These are simulated tomograms: curves tell how scores change with a condition, not what they are on real data.",
)


def write_report(
    curves: pd.DataFrame,
    tomograms: pd.DataFrame,
    told: Mapping[str, Any],
    output_dir: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write `curves.csv`, `tomograms.csv`, `robustness.json`, `robustness.png`, and last `robustness.html`.

    Parameters
    ----------
    curves, tomograms
        As `etsam.evaluation.robustness.run` makes them.
    told
        Baseline and settings.
    output_dir
        Made if need be.
    overwrite
        Replace files that are there.

    Returns
    -------
    Path
        The page.
    """
    make_folder(output_dir)
    write_csv(output_dir / CSV_CURVES, curves, overwrite)
    write_csv(output_dir / CSV_TOMOGRAMS, tomograms, overwrite)
    records = {"curves": curves.to_dict(orient="records"), "tomograms": tomograms.to_dict(orient="records")}
    write_plain_json(output_dir / JSON, {"settings": told, **records, "environment": environment()}, overwrite)
    with atomic_path(output_dir / PNG, overwrite) as part:
        part.write_bytes(png_bytes(curve_figure(curves, list(dict.fromkeys(curves["factor"])))))
    with atomic_path(output_dir / PAGE, overwrite) as part:
        part.write_text(_page(curves, tomograms, told), encoding="utf-8")
    return output_dir / PAGE


def curve_figure(curves: pd.DataFrame, factors: Sequence[str]) -> "Figure":
    """One panel a factor, all of the same scale: lines are means, bands intervals, the dotted line is the baseline.

    Parameters
    ----------
    curves
        As `etsam.evaluation.robustness.run.curve_table` gives it.
    factors
        Which panels.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(factors))
    rows = -(-len(factors) // columns)
    entries = curves[["method", "metric"]].drop_duplicates()
    height = _PANEL_INCHES[1] * rows + 0.2 + 0.19 * len(entries)
    with rc_context(STYLE):
        figure = Figure(figsize=(_PANEL_INCHES[0] * columns, height), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, factor in zip(panels, factors, strict=False):
            _draw(panel, curves, factor)
        for panel in panels[len(factors) :]:
            panel.remove()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left")
    return figure


def _draw(axes: "Axes", curves: pd.DataFrame, factor: str) -> None:
    look = Figures(list(dict.fromkeys(curves["method"]))).look
    own = curves[curves["factor"] == factor]
    words = list(dict.fromkeys(own["value"])) if factor == "contrast" else []
    for (method, metric), line in own.groupby(["method", "metric"], sort=False):
        at = [words.index(value) for value in line["value"]] if words else line["value"].astype(float)
        style = look[method] | {"linestyle": "" if words else _METRIC_LINES[metric], "markersize": 5}
        filled = style["color"] if metric == "dice" else "white"
        label = f"{short(method, 30)}: {METRIC_NAMES[metric]}"
        axes.plot(at, line["mean"], **style, markerfacecolor=filled, label=label)
        if words:  # kinds, nothing lies between them
            axes.vlines(at, line["low"], line["high"], color=style["color"], alpha=0.4, linewidth=4)
        elif line["low"].notna().any():
            axes.fill_between(at, line["low"], line["high"], color=style["color"], alpha=0.13, linewidth=0)
        usual = next((place for place, here in zip(at, line["is_baseline"], strict=True) if here))
        axes.axvline(usual, color="#555555", linestyle=":", linewidth=1)
    if factor == "snr":
        _logarithmic(axes, sorted(set(own["value"].astype(float))))
    elif words:
        axes.set_xticks(range(len(words)), words)
        axes.set_xlim(-0.4, len(words) - 0.6)
    axes.set(xlabel=FACTOR_NAMES[factor], ylabel="Score", ylim=(-0.02, 1.02))


def _logarithmic(axes: "Axes", ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _page(curves: pd.DataFrame, tomograms: pd.DataFrame, told: Mapping[str, Any]) -> str:
    factors = list(dict.fromkeys(curves["factor"]))
    figures = [
        plot(curve_figure(curves, [factor]), f"Scores by {FACTOR_NAMES[factor][0].lower()}{FACTOR_NAMES[factor][1:]}")
        for factor in factors
    ]
    baseline = ", ".join(f"{name} {value}" for name, value in told["baseline"].items())
    sentences = [f"Baseline: {baseline}; {told['tomograms']} specimens.", *NOTES]
    sentences += failures(tomograms)
    sections = {
        "Curves": [Plots(figures), Sentences(sentences)],
        "Values": [_table(curves)],
        "Settings and versions": settings_tables(texts(told), versions()),
    }
    return document(TITLE, sections)


def _table(curves: pd.DataFrame) -> Part:
    heads = ["Factor", "Value", "Method", "Metric", "n", "Mean", "95 % interval", "Against baseline", "95 % interval"]
    rows = []
    for row in curves.itertuples():
        value = row.value if isinstance(row.value, str) else f"{row.value:g}"
        cells = [row.factor, value + (" (baseline)" if row.is_baseline else ""), row.method]
        cells += [
            METRIC_NAMES[row.metric],
            str(row.n),
            format_score(row.mean),
            format_interval(row.low, row.high) or "–",
        ]
        paired = format_interval(row.difference_low, row.difference_high) or "–"
        rows.append([*cells, format_difference(row.metric, row.difference), "–" if row.is_baseline else paired])
    caption = "Mean over specimens, and mean difference to the same specimens at the baseline"
    return Table(heads, rows, caption, sortable=True)
