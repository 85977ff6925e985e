"""Scores against one condition at a time: simulate, predict and score as an evaluation does, then put into curves."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from etsam.app import check_values
from etsam.errors import ConfigError
from etsam.evaluation.benchmark import named
from etsam.evaluation.compare.statistics import mean_interval
from etsam.evaluation.compare.tables import scores_of_results
from etsam.evaluation.data import OWN_METHOD
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.robustness.report import CSV_CURVES, CSV_TOMOGRAMS, JSON, PAGE, PNG, write_report
from etsam.evaluation.run import check_predictions, evaluation_settings, raise_failures, result_store, score
from etsam.sources.simulation.paired import BASELINE, PairedSimulator, plain_conditions, simulate_paired, tomogram_name
from etsam.volume.atomic import refuse_existing
from etsam.weights.store import with_automatic_weights

log = logging.getLogger(__name__)

METRICS = ("dice", "surface_dice")
"""Scores that curves are made of, as far as they were computed."""


def configs(settings: Sequence[str], methods: Sequence[str] = ()) -> dict[str, DictConfig]:
    """Compose configs/robustness.yaml for each method.

    Parameters
    ----------
    settings
        Overrides of all.
    methods
        `NAME=SETTINGS` each: further overrides. None: there is one method.

    Raises
    ------
    hydra.errors.HydraException
        If an override does not fit.
    ConfigError
        If a method is written otherwise or named twice.
    """
    from etsam.app import compose_config

    if not methods:
        cfg = compose_config("robustness", with_automatic_weights(settings))
        return {cfg.name or OWN_METHOD: cfg}
    found: dict[str, DictConfig] = {}
    for name, more in map(named, methods):
        if name in found:
            raise ConfigError(f"there are two methods called {name}; give each --method a name of its own.")
        found[name] = compose_config("robustness", with_automatic_weights([*settings, *more]))
        found[name].name = name
    return found


def run(by_method: Mapping[str, DictConfig], progress: Callable[[int, int], None] | None = None) -> Path:
    """Simulate what is missing, score every method, write tables and figures.

    Parameters
    ----------
    by_method
        As `configs` gives them.
    progress
        Called with (tomograms simulated, tomograms in all).

    Returns
    -------
    Path
        The page.

    Raises
    ------
    EtsamError
        If settings, files or weights do not fit, and at the end if a tomogram failed.
    """
    from hydra.utils import instantiate

    from etsam.weights.store import ensure_weights

    cfg = next(iter(by_method.values()))
    for own in by_method.values():
        check_values(own, "robustness")
        if (own.trainer.devices, own.trainer.num_nodes) != (1, 1):
            raise ConfigError(f"trainer.devices={own.trainer.devices} does not fit; this command uses one device.")
        ensure_weights(own.weights)
    if len(by_method) > 1 and (cfg.write_predictions or cfg.predictions is not None):
        raise ConfigError("write_predictions and predictions are for one method; leave them out, or --method.")
    paired: PairedSimulator = instantiate(cfg.paired)
    settings = {name: evaluation_settings(own) for name, own in by_method.items()}  # reads the weights
    folder, replaced = Path(cfg.output_dir), cfg.overwrite or cfg.resume
    for name in (PAGE, PNG, JSON, CSV_CURVES, CSV_TOMOGRAMS):
        refuse_existing(folder / name, replaced)
    simulate_paired(paired, folder / "simulated", resume=cfg.resume, overwrite=cfg.overwrite, progress=progress)
    results: list[TomogramResult] = []
    for own in by_method.values():
        data, store = instantiate(own.data), result_store(own)
        data.leave_out_complete(store)
        check_predictions(own, data)
        score(own, data, instantiate(own.scores), store)
        results += [store.load(job.method, job.name) for job in data.jobs]
    tomograms = tomogram_table(paired, results)
    curves = curve_table(paired, tomograms)
    told: dict[str, Any] = plain_conditions(paired) | {"methods": settings, "simulator": asdict(paired.simulator)}
    page = write_report(curves, tomograms, told, folder, overwrite=replaced)
    log.info("%d results -> %s", len(results), page)
    raise_failures(results, "the curves are those of the others")
    return page


def tomogram_table(paired: PairedSimulator, results: Sequence[TomogramResult]) -> pd.DataFrame:
    """A row for each method and tomogram: point, specimen, the five conditions, and the scores."""
    rows = [
        {"tomogram": tomogram_name(point, number), "point": point, "specimen": number} | asdict(conditions)
        for point, conditions in paired.points.items()
        for number in range(paired.tomograms)
    ]
    scores = scores_of_results(results)
    return (
        scores[["method", "tomogram"]]
        .merge(pd.DataFrame(rows), on="tomogram", validate="many_to_one")
        .merge(scores, on=["method", "tomogram"], validate="one_to_one")
    )


def curve_table(paired: PairedSimulator, tomograms: pd.DataFrame) -> pd.DataFrame:
    """A row for each factor, value, method and metric.

    Parameters
    ----------
    paired
        Which points make a curve.
    tomograms
        As `tomogram_table` gives it.

    Returns
    -------
    DataFrame
        factor, value, is_baseline, method, metric, n (specimens with a score), mean, low, high (95 % interval over
        specimens, as `mean_interval`), and of the differences to the same specimens at the baseline n_pairs,
        difference, difference_low, difference_high.
    """
    scores = {
        (method, metric): own.pivot(index="specimen", columns="point", values=metric)
        for method, own in tomograms.groupby("method", sort=False)
        for metric in METRICS
        if metric in own
    }
    rows: list[dict[str, Any]] = []
    for factor, points in paired.curves.items():
        for (method, metric), found in scores.items():
            for value, point in points.items():
                row = {
                    "factor": factor,
                    "value": value if isinstance(value, str) else float(value),
                    "is_baseline": point == BASELINE,
                }
                row |= {"method": method, "metric": metric}
                rows.append(row | _row(found[point].to_numpy(), found[BASELINE].to_numpy()))
    return pd.DataFrame(rows)


def _row(scores: np.ndarray, usual: np.ndarray) -> dict[str, float]:
    known = scores[np.isfinite(scores)]
    pairs = (scores - usual)[np.isfinite(scores) & np.isfinite(usual)]
    low, high = mean_interval(known)
    below, above = mean_interval(pairs)
    return {
        "n": known.size,
        "mean": float(known.mean()) if known.size else math.nan,
        "low": low,
        "high": high,
        "n_pairs": pairs.size,
        "difference": float(pairs.mean()) if pairs.size else math.nan,
        "difference_low": below,
        "difference_high": above,
    }
