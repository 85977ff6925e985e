"""An evaluation as a run of Weights & Biases: its tables, curves and slices."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from etsam.errors import ConfigError
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.report.colours import LEGEND, NAMES
from etsam.evaluation.report.figures import Figures, png_bytes, points_of
from etsam.evaluation.report.pictures import images_with_bars, slice_views
from etsam.evaluation.report.tables import ReportTables, build_tables, inclination_by_method

MAX_SLICES = 60  # of all tomograms; each is one picture for each method


def log_to_wandb(
    results: Sequence[TomogramResult],
    settings: Mapping[str, Any],
    *,
    project: str = "etsam",
    name: str | None = None,
    offline: bool = False,
    save_dir: Path | str = ".",
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
) -> str:
    """Write one run with everything `write_report` shows.

    Parameters
    ----------
    results, settings, metrics, baseline
        As for `write_report`; the settings become the run's config.
    project, name
        Where the run goes, and what it is called (None: chosen by W&B).
    offline
        Write to `save_dir/wandb` only; `wandb sync` sends it later.
    save_dir
        Folder of the run's files; must exist.

    Returns
    -------
    str
        Folder of the run's files.

    Raises
    ------
    ConfigError
        If W&B is not installed, there are no results, or the run cannot be started (no account, no network).
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("logger=wandb needs the package wandb; pip install wandb.") from error
    if not results:
        raise ConfigError("there are no results to log; evaluate at least one tomogram.")
    tables = build_tables(results, metrics=metrics, baseline=baseline)
    try:
        run = wandb.init(
            project=project,
            name=name,
            dir=str(save_dir),
            job_type="evaluation",
            config=json.loads(json.dumps(dict(settings), default=str)),  # plain values only
            mode="offline" if offline else None,  # None: as WANDB_MODE says
        )
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"W&B cannot start a run ({text}); log in with `wandb login`, or log offline.") from error
    folder = str(run.dir)
    try:
        _log(run, wandb, tables, results)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    return folder


def _log(run: Any, wandb: Any, tables: ReportTables, results: Sequence[TomogramResult]) -> None:
    for row in tables.comparison.means.itertuples():
        run.summary[f"{row.method}/{row.metric}"] = row.mean
        run.summary[f"{row.method}/{row.metric}_low"], run.summary[f"{row.method}/{row.metric}_high"] = (
            row.low,
            row.high,
        )
        run.summary[f"{row.method}/{row.metric}_tomograms"] = row.n
    content = {
        f"tables/{name}": wandb.Table(dataframe=_plain(table)) for name, table in tables.frames.items() if len(table)
    }
    content |= {f"curves/{name}": _picture(wandb, png, name) for name, png in _curves(tables, results).items()}
    legend = "; ".join(f"{NAMES[colour]} {text}" for colour, text in LEGEND)
    for view in slice_views(results)[:MAX_SLICES]:
        images = [wandb.Image(image, caption=f"{title}. {legend}") for title, image in images_with_bars(view)]
        content[f"slices/{view.tomogram}/{view.axis}{view.index}"] = images
    run.log(content)


def _curves(tables: ReportTables, results: Sequence[TomogramResult]) -> dict[str, bytes]:
    figures = Figures(tables.comparison.methods)
    found = {}
    for metric in tables.comparison.metrics:
        if tables.frames["scores"][metric].notna().any():
            found[f"scores_{metric}"] = figures.scores(tables.frames["scores"], metric)
    pooled = {sweep.method: sweep.counts.sum(0) for sweep in tables.sweeps}
    if pooled or points_of(results):
        found["precision_recall"] = figures.precision_recall(pooled, points_of(results))
    for sweep in tables.sweeps:
        found[f"threshold_{sweep.method}"] = figures.sweep(sweep)
    if len(tables.frames["inclination"]):
        inclination = inclination_by_method(tables.frames["inclination"])
        found |= {
            f"inclination_{metric}": figures.inclination(inclination, metric) for metric in ("recall", "precision")
        }
    return {name: png_bytes(figure) for name, figure in found.items()}


def _picture(wandb: Any, png: bytes, name: str) -> Any:
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(png)), caption=name)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Texts as plain Python texts, which every version of W&B takes."""
    return table.astype(
        {column: object for column in table.columns if not pd.api.types.is_numeric_dtype(table[column])}
    )
