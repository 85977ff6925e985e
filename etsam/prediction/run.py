"""A prediction from its config: tomograms in, files out."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from etsam.app import check_values, is_first_process, require

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> list[Path]:
    """Segment the tomograms of a config `predict`.

    Parameters
    ----------
    cfg
        configs/predict.yaml, composed.

    Returns
    -------
    list
        Masks that this process wrote, in order.

    Raises
    ------
    EtsamError
        If settings, inputs or outputs cannot be used; at the end, if a tomogram could not be segmented.
    """
    require(cfg, "input", "FILE, FOLDER, 'PATTERN' or LIST.txt")
    check_values(cfg, "predict")
    from hydra.utils import instantiate

    from etsam.prediction.record import settings_of
    from etsam.weights.store import ensure_weights

    inputs = instantiate(cfg.inputs)
    writer = instantiate(cfg.writer)
    ensure_weights(cfg.weights)
    writer.settings = settings_of(cfg)
    if is_first_process():  # before the networks are built, and once for all processes
        writer.check(inputs.check())

    from etsam.prediction.progress import SliceProgress

    segmenter = instantiate(cfg.segmenter)
    if is_first_process():
        _tell_weights(cfg)
    trainer = instantiate(cfg.trainer, callbacks=[writer, SliceProgress()])
    trainer.predict(segmenter, datamodule=inputs, return_predictions=False)
    segmenter.raise_failures()
    return writer.written


def _tell_weights(cfg: DictConfig) -> None:
    if None in (cfg.weights.stage1, cfg.weights.stage2):
        log.warning(
            "the weights are RANDOM, so the mask MEANS NOTHING; it shows that the program runs. For real masks: "
            "weights=nano, weights=etsam_v1, or weights.stage1=FILE weights.stage2=FILE"
        )
    if cfg.weights.name == "nano":
        log.info(
            "the nano weights were trained on simulated tomograms only; the published ones: `etsam weights download "
            "etsam_v1`, then weights=etsam_v1"
        )
