"""The curves of a report, drawn with matplotlib as vector pictures of a phone's width."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from etsam.evaluation.compare.tables import METRIC_NAMES, METRICS
from etsam.evaluation.metrics.curves import Sweep, precision_recall
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.organisms import organisms, short_species
from etsam.evaluation.report.colours import METHODS
from etsam.pictures import short_left

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")
_WIDTH_INCHES = 4.0  # 384 CSS pixels: text of 10 points stays readable when a phone shows it at 360
STYLE: Any = {  # of matplotlib, for every figure
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "etsam",  # the same curves give the same file
    "text.parse_math": False,  # a name with two dollar signs is no formula
}


class Figures:
    """Draws the figures of one report; each method keeps its colour, marker and line in all of them.

    Parameters
    ----------
    methods
        Names in order.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self.look: Mapping[str, dict[str, Any]] = {
            method: {
                "color": METHODS[i % len(METHODS)],
                "marker": _MARKERS[i % len(_MARKERS)],
                "linestyle": _DASHES[(i // len(METHODS) + i) % len(_DASHES)],
            }
            for i, method in enumerate(methods)
        }

    def scores(self, scores: pd.DataFrame, metric: str) -> "Figure":
        """One row a tomogram, one mark a method; vertical lines are means."""
        tomograms = list(dict.fromkeys(scores["tomogram"]))
        figure, axes = _figure(_legend_height(self.look) + 0.9 + 0.27 * len(tomograms))
        for method, look in self.look.items():
            own = scores[scores["method"] == method].dropna(subset=[metric])
            rows = [tomograms.index(name) for name in own["tomogram"]]
            axes.plot(own[metric], rows, **look | {"linestyle": ""}, label=short(method, 40), alpha=0.9)
            if len(own):
                line = {"color": look["color"], "linestyle": look["linestyle"]}
                axes.axvline(own[metric].mean(), **line, linewidth=1.2, alpha=0.8)
        axes.set_yticks(range(len(tomograms)), [short_left(name, 24) for name in labels(tomograms)], fontsize=9)
        axes.set_ylim(len(tomograms) - 0.5, -0.5)
        axes.set_xlabel(f"{METRIC_NAMES.get(metric, metric)}; vertical lines: means")
        if metric in METRICS:
            axes.set_xlim(-0.02, 1.02)
        _legend(figure, axes)
        return figure

    def precision_recall(self, curves: Mapping[str, np.ndarray], points: Mapping[str, tuple[float, float]]) -> "Figure":
        """Precision against recall.

        Parameters
        ----------
        curves
            Method -> (N, 3) counts at increasing thresholds.
        points
            Method -> (recall, precision) of its mask.
        """
        named = [name for name in self.look if name in curves or name in points]
        figure, axes = _figure(3.2 + _legend_height(named))
        for method in named:
            look = self.look[method]
            label = short(method, 40)
            if method in curves:
                precision, recall = precision_recall(curves[method])
                line = {"color": look["color"], "linestyle": look["linestyle"]}
                axes.plot(recall, precision, **line, label=None if method in points else label)
            if method in points:
                shown = look if method in curves else look | {"linestyle": ""}
                axes.plot(*([value] for value in points[method]), **shown, markersize=7, label=label)
        axes.set(xlabel="Recall", ylabel="Precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        _legend(figure, axes)
        return figure

    def sweep(self, sweep: Sweep) -> "Figure":
        """Dice against the threshold: tomograms thin, mean bold, the choices of a threshold marked."""
        figure, axes = _figure(3.2 + _legend_height("12345"))
        colour = self.look[sweep.method]["color"]
        for i, values in enumerate(sweep.dice):
            axes.plot(sweep.thresholds, values, color="#999999", linewidth=0.7, label="" if i else "one tomogram each")
        axes.plot(sweep.thresholds, sweep.mean_dice, color=colour, linewidth=2.2, label="mean")
        oracle = sweep.oracle
        mean = sweep.oracle_mean
        axes.plot(oracle[:, 0], oracle[:, 1], "k.", markersize=5, label=f"own best of each (mean {mean:.3f})")
        best, value = sweep.best_fixed
        axes.axvline(best, color="#000000", linestyle="--", label=f"best single: {best:.2f} (mean {value:.3f})")
        if np.isfinite(sweep.threshold):
            label = f"as set: {sweep.threshold:g} (mean {sweep.at(sweep.threshold):.3f})"
            axes.axvline(sweep.threshold, color="#000000", linestyle=":", label=label)
        axes.set(xlabel="Threshold of the logits", ylabel="Dice", xlim=useful_range(sweep), ylim=(-0.02, 1.02))
        _legend(figure, axes)
        return figure

    def inclination(self, inclination: pd.DataFrame, name: str) -> "Figure":
        """Recall or precision by the angle between normal and Z; `inclination` as `inclination_by_method` gives it."""
        figure, axes = _figure(3.0 + _legend_height(self.look))
        for method, look in self.look.items():
            own = inclination[inclination["method"] == method]
            if len(own):
                middle = (own["lower_degrees"] + own["upper_degrees"]) / 2
                axes.plot(middle, own[name], **look, label=short(method, 40))
        axes.set(xlabel="Angle of the normal to Z (degrees)", ylabel=METRIC_NAMES[name])
        axes.set(xlim=(0, inclination["upper_degrees"].max()), ylim=(-0.02, 1.02))
        _legend(figure, axes)
        return figure


def useful_range(sweep: Sweep) -> tuple[float, float]:
    """Thresholds worth a look: where mean Dice is half of the best or more, and those marked, with a margin."""
    mean = sweep.mean_dice
    good = sweep.thresholds[mean >= mean.max() / 2]
    marked = [*sweep.oracle[:, 0], *([sweep.threshold] if np.isfinite(sweep.threshold) else [])]
    low, high = min(good.min(), *marked), max(good.max(), *marked)
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def labels(tomograms: Sequence[str]) -> list[str]:
    """Names of tomograms: organism where it is known, and no data set as far as that leaves them different."""
    runs = [name.rpartition("/")[2] for name in tomograms]
    plain = runs if len(set(runs)) == len(runs) else list(tomograms)
    known = [short_species(organisms().get(name, "")) for name in tomograms]
    return [f"{species} {name}".strip() for species, name in zip(known, plain, strict=True)]


def points_of(results: Sequence[TomogramResult]) -> dict[str, tuple[float, float]]:
    """Method -> mean (recall, precision) of its masks."""
    found: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        point = result.metrics.get("recall", math.nan), result.metrics.get("precision", math.nan)
        if not result.error and all(math.isfinite(value) for value in point):
            found.setdefault(result.method, []).append(point)
    return {method: tuple(np.mean(points, axis=0).tolist()) for method, points in found.items()}


def svg_text(figure: "Figure") -> str:
    """The figure as an SVG document; letters are outlines, so that no font has to be there."""
    return _saved(figure, "svg").decode("utf-8")


def png_bytes(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    return _saved(figure, "png")


def _saved(figure: "Figure", kind: str) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _figure(height_inches: float) -> "tuple[Figure, Axes]":
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        return figure, figure.add_subplot()


def _legend(figure: "Figure", axes: "Axes") -> None:
    """Below the axes, one entry a line: nothing is covered, and long names have room."""
    from matplotlib import rc_context

    handles, labels = axes.get_legend_handles_labels()
    with rc_context(STYLE):
        figure.legend(handles, labels, loc="outside lower left")


def _legend_height(entries: "Sequence[str] | Mapping[str, object]") -> float:
    return 0.1 + 0.19 * len(entries)


def short(name: str, length: int) -> str:
    """A name, or its beginning and end: what differs is often the end."""
    name = " ".join(name.split())
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
