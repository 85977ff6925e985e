"""The headline of a report: what was evaluated, what is found and what is lost, in a few sentences."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

import pandas as pd

from etsam.evaluation.compare.tables import METRIC_NAMES
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.report.tables import ReportTables, format_value, inclination_by_method
from etsam.weights.registry import names_of, weights_warning

_GOOD, _POOR = 0.7, 0.5  # recall from which membranes are found, and below which they are lost; our choice


def facts(results: Sequence[TomogramResult], settings: Mapping[str, str], versions: Mapping[str, str]) -> list[str]:
    """Tomograms, voxels, weights, threshold, date and program, as far as they are known; settings are flat."""
    names = dict.fromkeys(result.tomogram for result in results)
    found = [f"{len(names)} tomogram{'s' * (len(names) != 1)}"]
    voxels = sum({result.tomogram: result.voxels for result in results}.values())
    if voxels:
        found[0] += f" of {voxels / 1e6:.3g} million voxels" + (" together" if len(names) > 1 else "")
    weights = _weights(settings)
    if weights:
        found.append(f"weights {names_of(weights)}")
    thresholds = {f"{result.threshold:g}" for result in results if math.isfinite(result.threshold)}
    if len(thresholds) == 1:
        found.append(f"threshold {thresholds.pop()}")
    if "Written" in versions:
        written = datetime.fromisoformat(versions["Written"])
        found.append(f"{written.day} {written:%b %Y}")
    return [*found, *([f"etsam {versions['etsam']}"] if "etsam" in versions else [])]


def badge(settings: Mapping[str, str]) -> str:
    """Warning about the weights; empty if there is nothing to warn of."""
    return weights_warning(_weights(settings))


def findings(tables: ReportTables) -> list[tuple[str, str]]:
    """(method, sentences) in the order of the methods: first metric, what is found by direction, precision.

    Means are over the tomograms that all methods have, where they have different ones, and say so. Upright and flat are
    the outer ranges of the angle between a membrane's normal and Z.
    """
    means = tables.comparison.means
    inclination = (
        inclination_by_method(tables.frames["inclination"]) if len(tables.frames["inclination"]) else pd.DataFrame()
    )
    found = []
    for method in tables.comparison.methods:
        own = means[(means["method"] == method) & means["mean"].notna()].set_index("metric")
        sentences = [_mean(own.loc[name], name in tables.comparison.unequal) for name in own.index[:1]]
        if len(inclination):
            sentences += _by_direction(inclination[inclination["method"] == method].sort_values("lower_degrees"))
        if "precision" in own.index[1:]:
            sentences.append(_mean(own.loc["precision"], "precision" in tables.comparison.unequal))
        found.append((method, " ".join(sentences) or "No scores."))
    return found


def _mean(row: pd.Series, unequal: bool) -> str:
    """Mean of a metric, its name on the row; if unequal over the tomograms that all methods have."""
    name, number = METRIC_NAMES.get(str(row.name), row.name), row["n_shared"]
    if not unequal:
        return f"{name} {format_value(str(row.name), row['mean'])}."
    if not number:
        return f"{name} {format_value(str(row.name), row['mean'])} on tomograms that not all methods have."
    of = f"the {number} tomograms" if number > 1 else "the one tomogram"
    return f"{name} {format_value(str(row.name), row['mean_shared'])} on {of} of all methods."


def directions(tables: ReportTables) -> str:
    """Sentence that says what upright and flat mean; empty if nothing is known by direction."""
    inclination = tables.frames["inclination"]
    if not len(inclination):
        return ""
    flat, upright = inclination["upper_degrees"].min(), inclination["lower_degrees"].max()
    return (
        f"Upright: the membrane's normal is {upright:g} to 90 degrees from Z, the beam. Flat: at most {flat:g} degrees;"
        " that is where the missing wedge hides most."
    )


def _by_direction(own: pd.DataFrame) -> list[str]:
    if len(own) < 2:
        return []
    flat, upright = (float(own["recall"].iloc[i]) for i in (0, -1))
    if not (math.isfinite(flat) and math.isfinite(upright)):
        return []
    if upright >= _GOOD and flat >= _GOOD:
        return [f"Finds upright ({upright:.2f} of them) and flat membranes ({flat:.2f})."]
    if upright >= _GOOD and flat < _POOR:
        return [f"Finds upright membranes ({upright:.2f} of them), loses flat ones ({flat:.2f})."]
    if upright < _POOR and flat < _POOR:
        return [f"Loses most membranes, upright ({upright:.2f} found) and flat ({flat:.2f})."]
    return [f"Finds {upright:.2f} of upright membranes and {flat:.2f} of flat ones."]


def _weights(settings: Mapping[str, str]) -> list[str]:
    """Files whose logits the masks are cut from, as in `etsam.prediction.record.weights_of`; settings are flat."""
    stages = ("stage1", "stage2") if settings.get("prediction.mean_of_stages") else ("stage2",)
    found = [settings.get(f"prediction.weights.{stage}.name", "") for stage in stages]
    return [name for name in found if name]
