"""The page and the picture of one measurement: one HTML file that loads nothing."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from etsam.measure.colours import colour_of
from etsam.measure.columns import COLUMNS, CONTACT_COLUMNS
from etsam.measure.measure import Measurement

_SHOWN = (
    "membrane", "label",
    "closed", "area_nm2", "diameter_nm", "volume_nm3", "mean_curvature_per_nm", "mean_curvature_sd_per_nm",
    "thickness_nm", "thickness_method", "thickness_reliable", "nearest_membrane", "nearest_min_nm", "nearest_mean_nm",
    "inclination_degrees", "open_edge_at_border_share", "joined_share",
)  # fmt: skip
_MOST_ROWS, _MOST_KEYS = 400, 60
_BARS = ("#1f77b4", "#c5d9ea")  # of what may be relied on, and the same blue, pale


@dataclass(frozen=True)
class _Cell:
    text: str
    sort: str
    css: str


_ALIKE = 2.0  # times the smallest diameter, up to which a mean of all is a size that some have; our choice
_TOUCHING_NM = 2.0  # between middles; a bilayer is 3 to 5 nm thick, so what is nearer lies in the same place


def sentence(found: Measurement) -> str:
    """The measurement in a sentence: "9 membranes, of them 6 closed and 2 shells with gaps, mean diameter 115 nm"."""
    table = found.table
    if not len(table):
        return "No membranes were measured."
    parts = [f"{len(table)} membrane{'s' if len(table) > 1 else ''}"]
    shells = table[table["diameter_nm"].notna()]
    if len(shells):
        closed = int((shells["closed"] == "closed").sum())
        gaps = len(shells) - closed
        kinds = [f"{closed} closed"] * (closed > 0)
        kinds += [f"{gaps} shell{'s' if gaps > 1 else ''} with gaps"] * (gaps > 0)
        sizes = shells["diameter_nm"]
        alike = sizes.max() < _ALIKE * sizes.min()
        size = (
            f"mean diameter {sizes.mean():.0f} nm" if alike else f"diameters {sizes.min():.0f} to {sizes.max():.0f} nm"
        )
        parts += [f"of them {' and '.join(kinds)}", size]
    parts.append(f"together {table['area_nm2'].sum():,.0f} nm²")
    if "thickness_nm" in table:
        sure = table[table["thickness_reliable"] == "yes"]
        if len(sure):
            parts.append(f"{sure['thickness_nm'].mean():.1f} nm thick ({len(sure)} of {len(table)} measured reliably)")
        else:
            parts.append("thickness not measured reliably")
    near = found.closest_nm
    if np.isfinite(near):
        apart = f"the closest two {near:.1f} nm apart"
        parts.append(apart if near >= _TOUCHING_NM else "the closest two touch, so perhaps they are one")
    return ", ".join(parts) + "."


def page(
    title: str, found: Measurement, picture: np.ndarray, facts: Mapping[str, str], warnings: Sequence[str] = ()
) -> str:
    """HTML document of a measurement.

    Parameters
    ----------
    title
        Heading.
    found
        What to show.
    picture
        (H, W, 3) uint8.
    facts
        Files and settings: name -> text.
    warnings
        What the reader has to know first.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    shown = [name for name in _SHOWN if name in found.table]
    note = "Press a heading to sort. All columns are in the CSV file."
    if len(found.table) > _MOST_ROWS:
        note += f" The {_MOST_ROWS} largest of {len(found.table)} are shown."
    tables = [_table("Membranes", found.table[shown].head(_MOST_ROWS), COLUMNS, note)] if len(found.table) else []
    if len(found.contacts):
        contacts = found.contacts.head(_MOST_ROWS)
        tables.append(_table("Contacts", contacts, CONTACT_COLUMNS, "Pairs of membranes within the contact distance."))
    key = [
        (number, "rgb({},{},{})".format(*colour_of(number)), _short(row))
        for number, (_, row) in zip(found.numbers, found.table.iterrows(), strict=True)
    ][:_MOST_KEYS]
    words: dict[str, Any] = {
        "title": title,
        "sentence": sentence(found),
        "warnings": warnings,
        "picture": "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii"),
        "key": key,
        "plots": _plots(found),
        "tables": tables,
        "left_out": found.left_out,
        "meanings": [(name, text) for name, text in COLUMNS.items() if name in found.table],
        "facts": list(facts.items()),
    }
    return environment.get_template("measure.html").render(words)


def png(image: np.ndarray) -> bytes:
    """PNG of an image (H, W, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _short(row: pd.Series) -> str:
    if row["closed"] == "closed":
        return f"{row['diameter_nm']:.0f} nm across"
    return f"open, {row['area_nm2']:,.0f} nm²"


def _table(title: str, frame: pd.DataFrame, meaning: Mapping[str, str], note: str) -> dict[str, Any]:
    words = {name: not pd.api.types.is_numeric_dtype(frame[name]) for name in frame}
    doubtful = frame["thickness_reliable"] == "no" if "thickness_reliable" in frame else pd.Series(False, frame.index)
    rows = [
        [_cell(value, words[name], doubt and str(name).startswith("thickness")) for name, value in row.items()]
        for (_, row), doubt in zip(frame.iterrows(), doubtful, strict=True)
    ]
    heads = [(str(name), words[name]) for name in frame]
    return {"title": title, "note": note, "heads": heads, "rows": rows, "meaning": meaning}


def _cell(value: Any, word: bool, doubt: bool) -> _Cell:
    css = " ".join(name for name, used in (("word", word), ("doubt", doubt)) if used)
    if word:
        return _Cell(str(value), str(value), css)
    number = float(value)
    if not math.isfinite(number):
        return _Cell("–", "", css)
    text = f"{number:.0f}" if abs(number) >= 1000 or number == int(number) else f"{number:.3g}"
    return _Cell(text, repr(number), css)


def _plots(found: Measurement) -> list[dict[str, str]]:
    """Histograms by area."""
    if not found.meshes:
        return []
    areas = np.concatenate([values.area_nm2 for values in found.values])
    curvature = np.concatenate([values.mean_curvature_per_nm for values in found.values])
    distance = np.concatenate([values.distance_nm for values in found.values])
    made = [_histogram(curvature, areas, "Mean curvature (1/nm)", "Area by mean curvature; 0 is flat.")]
    if np.isfinite(distance).any():
        text = "Area by the distance to the nearest other membrane."
        made.append(_histogram(distance, areas, "Distance (nm)", text))
    if found.thickness:
        local = np.concatenate([thickness.local_nm for thickness in found.thickness])
        known = np.isfinite(local)
        if known.any():
            share = float(areas[known].sum() / areas.sum())
            text = f"Area by thickness from leaflet to leaflet, patch by patch, where both can be seen ({share:.0%})."
            sure = np.concatenate([np.full(len(one.local_nm), one.reliable) for one in found.thickness])
            if not sure[known].all():
                text += " Pale: of membranes whose thickness is not reliable; thickness_why says what is against it."
            made.append(_histogram(local, areas, "Thickness (nm)", text, sure))
    return made


def _histogram(
    values: np.ndarray, areas: np.ndarray, label: str, text: str, sure: np.ndarray | None = None
) -> dict[str, str]:
    """Embedded picture of `histogram`, and its caption."""
    buffer = io.BytesIO()
    histogram(values, areas, label, sure).savefig(buffer, format="svg", metadata={"Date": None})
    uri = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"uri": uri, "text": text}


def histogram(values: np.ndarray, areas: np.ndarray, label: str, sure: np.ndarray | None = None) -> Figure:
    """Area by a value, without the outermost half per cent on either side.

    Parameters
    ----------
    values, areas
        (V,); values that are not finite are left out.
    label
        Of the axis.
    sure
        (V,) bool, False for values not to rely on, which are pale and on top of the others; None: all may be.
    """
    known = np.isfinite(values)
    low, high = np.percentile(values[known], [0.5, 99.5])
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.add_subplot()
    parts = (
        {"": known} if sure is None or sure[known].all() else {"reliable": known & sure, "not reliable": known & ~sure}
    )
    axes.hist(
        [values[part].clip(low, high) for part in parts.values()],
        bins=50,
        range=(low, high),
        weights=[areas[part] for part in parts.values()],
        color=_BARS[: len(parts)],
        label=list(parts),
        stacked=True,
    )
    if len(parts) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel(label)
    axes.set_ylabel("Area (nm²)")
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
