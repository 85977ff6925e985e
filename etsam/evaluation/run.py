"""An evaluation from its config: predictions made or opened, scored, and reported."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import LightningModule
from omegaconf import DictConfig, OmegaConf

from etsam.app import check_values, is_first_process, require
from etsam.errors import ConfigError, InputError
from etsam.evaluation.data import EvaluationData, Job
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.metrics.scores import Metrics
from etsam.evaluation.report.report import JSON, MARKDOWN, PAGE, write_report
from etsam.evaluation.report.wandb import log_to_wandb
from etsam.evaluation.result_store import ResultStore
from etsam.evaluation.scorer import Scorer
from etsam.evaluation.stored import StoredPredictions
from etsam.paths import make_folder
from etsam.prediction.record import settings_of
from etsam.prediction.run import tell_weights
from etsam.prediction.writer import PredictionWriter
from etsam.volume.atomic import refuse_existing
from etsam.volume.location import locate
from etsam.volume.slices import Progress

log = logging.getLogger(__name__)

SCORES = "scores.csv"
"""The table of the report with a row for each tomogram."""


def run(cfg: DictConfig) -> None:
    """Score the tomograms of a config `evaluate`, and write the report into `output_dir`.

    The report is of all tomograms, those of an earlier run that were kept included.

    Parameters
    ----------
    cfg
        configs/evaluate.yaml, composed.

    Raises
    ------
    EtsamError
        If settings, inputs or outputs cannot be used; at the end, if a tomogram could not be scored.
    """
    require(cfg, "data.manifest", "MANIFEST.csv")
    check_values(cfg, "evaluate")
    if cfg.predictions is None and cfg.prediction_threshold is not None:
        raise ConfigError(
            f"prediction_threshold={cfg.prediction_threshold} is of stored predictions, and none are named; add "
            "predictions=FOLDER, or set stage2.threshold for those made now."
        )

    from etsam.weights.store import ensure_weights

    ensure_weights(cfg.weights)
    data, metrics, store = instantiate(cfg.data), instantiate(cfg.scores), result_store(cfg)
    data.leave_out_complete(store)
    if is_first_process():  # before the networks are built, and once for all processes
        _check_outputs(cfg, data)
    score(cfg, data, metrics, store)
    if is_first_process():
        _report(cfg, data, store)


def evaluation_settings(cfg: DictConfig) -> dict[str, Any]:
    """Settings that decide the scores, plain values: kept with each result and compared by `resume`."""
    keys = ("metrics", "surface_tolerance_angstrom", "ignore_border_voxels")
    settings = {key: OmegaConf.to_container(cfg[key]) if OmegaConf.is_config(cfg[key]) else cfg[key] for key in keys}
    settings["prediction"] = settings_of(cfg) if cfg.predictions is None else "stored"
    if cfg.predictions is not None:
        settings["threshold"] = cfg.prediction_threshold
        settings["postprocess"] = OmegaConf.to_container(cfg.postprocess, resolve=True)
    return settings


def result_store(cfg: DictConfig) -> ResultStore:
    """Store of the results of single tomograms: `output_dir/tomograms`."""
    return ResultStore(Path(cfg.output_dir) / "tomograms", evaluation_settings(cfg), cfg.overwrite, cfg.resume)


def _check_outputs(cfg: DictConfig, data: EvaluationData) -> None:
    """Make the folder, and refuse to touch what is there, before anything is computed."""
    folder = Path(cfg.output_dir)
    make_folder(folder)
    for name in (PAGE, MARKDOWN, JSON, SCORES):
        refuse_existing(folder / name, cfg.overwrite or cfg.resume)
    check_predictions(cfg, data)


def check_predictions(cfg: DictConfig, data: EvaluationData) -> None:
    """Make the folders of predictions that are to be kept, and refuse to replace any unasked.

    Raises
    ------
    OutputError
        If one exists that may not be replaced, or there is no room.
    """
    writer = _writer_of(cfg)
    if writer is not None:
        for job in data.open_jobs:
            writer(job).check({locate(job.tomogram): 0})


def _writer_of(cfg: DictConfig, progress: Progress | None = None) -> Callable[[Job], PredictionWriter] | None:
    """Writer of a job's prediction, in a folder for each dataset, named after the run; None if none is kept."""
    if not cfg.write_predictions or cfg.predictions is not None:
        return None

    make: partial[PredictionWriter] = instantiate(cfg.writer)
    steps = instantiate(cfg.postprocess, _convert_="all")

    def writer(job: Job) -> PredictionWriter:
        name = Path(job.name)
        folder = Path(cfg.output_dir) / "predictions" / name.parent
        return make(folder, stem=name.name, postprocess=steps, settings=settings_of(cfg), progress=progress)

    return writer


def score(cfg: DictConfig, data: EvaluationData, metrics: Metrics, store: ResultStore) -> None:
    """Predict, or open predictions, and score what is open; results are in the store."""
    if not data.open_jobs:
        return

    from etsam.prediction.progress import SliceProgress

    bars = SliceProgress()
    predictor: LightningModule
    if cfg.predictions is not None:
        predictor = StoredPredictions(cfg.prediction_threshold)
    else:
        if None in (cfg.weights.stage1, cfg.weights.stage2):
            log.warning("the weights are RANDOM, so the scores mean nothing; see weights=etsam_v1 or weights=files")
        elif is_first_process():
            tell_weights(cfg)
        predictor = instantiate(cfg.segmenter, _partial_=True)(progress=bars.update)
    steps = instantiate(cfg.postprocess, _convert_="all")
    scorer = Scorer(metrics, store, steps, _writer_of(cfg, bars.update), bars.update)
    trainer = instantiate(cfg.trainer, callbacks=[scorer, bars])
    trainer.test(predictor, datamodule=data, verbose=False)
    trainer.strategy.barrier()


def _report(cfg: DictConfig, data: EvaluationData, store: ResultStore) -> None:
    results = tuple(store.load(job.method, job.name) for job in data.jobs)
    folder = Path(cfg.output_dir)
    page = write_report(results, folder, store.settings, overwrite=cfg.overwrite or cfg.resume)
    log.info("%d results -> %s", len(results), page)
    if cfg.wandb.project is not None:
        wandb = OmegaConf.to_container(cfg.wandb)
        log.info("W&B run: %s", log_to_wandb(results, store.settings, save_dir=folder, **wandb))  # type: ignore[arg-type]
    raise_failures(results, f"the scores of the others are in {folder / SCORES}")


def raise_failures(results: tuple[TomogramResult, ...] | list[TomogramResult], rest: str) -> None:
    """Raise `InputError` if a tomogram failed, naming each and why; `rest` says where the others are."""
    failed = [f"{result.method}, {result.tomogram}: {result.error}" for result in results if result.error]
    if failed:
        head = f"{len(failed)} of {len(results)} tomograms failed; {rest}; go on with resume=true"
        raise InputError.of(head, failed)
