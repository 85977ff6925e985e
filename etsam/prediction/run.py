"""A prediction from its config: tomograms in, files out."""

import logging
import math
import time
import warnings
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from etsam.app import check_values, is_first_process, require
from etsam.errors import ConfigError
from etsam.screen import readable_seconds, working
from etsam.volume import Location
from etsam.weights.registry import PUBLISHED, StageWeights, is_embedded

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Segment the tomograms of a config `predict`.

    Parameters
    ----------
    cfg
        configs/predict.yaml, composed.

    Raises
    ------
    EtsamError
        If settings, inputs or outputs cannot be used; at the end, if a tomogram could not be segmented.
    """
    require(cfg, "input", "FILE, FOLDER, 'PATTERN' or LIST.txt")
    check_values(cfg, "predict")
    from hydra.utils import instantiate

    from etsam.prediction.batch import table
    from etsam.prediction.callback import BatchWriter
    from etsam.prediction.progress import SliceProgress
    from etsam.prediction.record import settings_of
    from etsam.weights.store import ensure_weights

    working("looking at the tomograms ...")
    inputs, bars = instantiate(cfg.inputs), SliceProgress()
    ensure_weights(cfg.weights)
    writer = instantiate(cfg.writer, _partial_=True)(settings=settings_of(cfg), progress=bars.update)
    writer.subfolders, batch = inputs.subfolders, BatchWriter(writer, single=not inputs.may_pass_over)
    todo: list[Location] = []
    if is_first_process():  # before the networks are built, and once for all processes
        shapes = inputs.check()
        batch.missing += inputs.missing
        batch.failures += inputs.faults
        voxels = {path: math.prod(shape or (0,)) for path, shape in shapes.items()}
        sizes = inputs.voxel_sizes
        scratch = {}
        for path, shape in shapes.items():
            try:
                scratch[path] = scratch_bytes(cfg, shape, sizes.get(path))
            except ConfigError as error:  # a setting that does not fit this tomogram, which is told in its turn
                if len(shapes) == 1:
                    raise ConfigError(f"{path}: {error}") from error
                scratch[path] = 0
        todo = writer.check(voxels, scratch)
        batch.complete = len(shapes) - len(todo)
        inputs.only(todo)
    working("loading the networks ...")
    segmenter = instantiate(cfg.segmenter, _partial_=True)(progress=bars.update, claim=writer.claim)
    if is_first_process():
        tell_weights(cfg)
    trainer = instantiate(cfg.trainer, callbacks=[batch, bars])
    started = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*across ranks is zero.*")  # all are complete
            trainer.predict(segmenter, datamodule=inputs, return_predictions=False)
    finally:
        writer.release()
    batch.gather(trainer)
    if trainer.is_global_zero:
        for line in instantiate(cfg.overview, _partial_=True)(Path(cfg.output_dir), batch.failures):
            log.info("%s", line)
        for line in [] if batch.single else table(batch.missing, batch.written_by_all, batch.complete):
            log.info("%s", line)
        if len(todo) > 1:
            took = readable_seconds(time.monotonic() - started)
            log.info("%d of %d tomograms segmented in %s -> %s", batch.written_by_all, len(todo), took, cfg.output_dir)
        batch.raise_failures()


def scratch_bytes(
    cfg: DictConfig,
    shape: tuple[int, int, int] | None,
    voxel_size_angstrom: tuple[float, float, float] | None = None,
) -> int:
    """Bytes of logits and turned volumes that wait on the output folder's disk while a tomogram is at work.

    Parameters
    ----------
    cfg
        configs/predict.yaml, composed; the networks need not have been built.
    shape
        (Z, Y, X); None, unknown: 0.
    voxel_size_angstrom
        (z, y, x), Å; None if unknown.

    Raises
    ------
    ConfigError
        If the settings of directions and axes are not allowed, or do not fit this tomogram.
    """
    from hydra.utils import instantiate

    from etsam.inference.directions import passes
    from etsam.inference.rescale import rescaled_shape
    from etsam.inference.two_stage import scratch_bytes
    from etsam.network.build import logit_format, tile_voxels

    if shape is None or cfg.segmenter.scratch_folder != cfg.output_dir:
        return 0
    nets = [cfg[stage].tracker.net for stage in ("stage1", "stage2")]
    size, target = (cfg.voxel_size,) * 3 if cfg.voxel_size else voxel_size_angstrom, cfg.target_voxel_size
    settings = instantiate(cfg.segmenter.two_stage.settings)
    passes(shape[0], start_slice=settings.start_slice)  # refuses it by the number that was typed
    if target is not None and size is not None:
        seen = rescaled_shape(shape, size, target)
        if settings.start_slice is not None:
            settings = replace(settings, start_slice=settings.start_slice * seen[0] // shape[0])
        shape = seen
    return scratch_bytes(
        [logit_format(net) for net in nets],
        min(tile_voxels(net) for net in nets),
        instantiate(cfg.tiles),
        shape,
        settings,
        axes=cfg.axes,
        inputs=1 + len(cfg.also),
        spread=cfg.write_uncertainty,
        side_slice_stride=cfg.side_slice_stride,
    )


def tell_weights(cfg: DictConfig) -> None:
    """Say which weights work, where that is not what the person named, or not what he should trust."""
    if None in (cfg.weights.stage1, cfg.weights.stage2):
        log.warning(
            "the weights are RANDOM, so the mask MEANS NOTHING; it shows that the program runs. For real masks: "
            "weights=nano, weights=etsam_v1, or weights.stage1=FILE weights.stage2=FILE"
        )
        return
    if is_embedded(StageWeights.resolve(cfg.weights.stage2).name):
        log.warning(
            "DEMO WEIGHTS: %s comes with the program to show what it does and was trained on simulations only; for "
            "real work get the published weights, once: `etsam weights download %s`",
            cfg.weights.name,
            PUBLISHED.name,
        )
    elif cfg.weights.get("asked") == "auto" and cfg.weights.name == PUBLISHED.name:
        log.info("using the published weights, %s, which are here", PUBLISHED.name)
