"""Segment tomograms.

    python predict.py input=tomogram.mrc
    python predict.py input='data/*.mrc' output_dir=masks weights=etsam_v1 write_logits=true

Every setting is in configs/predict.yaml; `python predict.py --help` lists them.
"""

import logging

import hydra
from omegaconf import DictConfig

from etsam.entry import check_values, guarded, is_first_process, launch, require
from etsam.inference.settings import settings_of

log = logging.getLogger("etsam.predict")


def run(cfg: DictConfig) -> None:
    """Compose -> instantiate -> predict. Raises `EtsamError`s; what is written is in `output_dir`."""
    require(cfg, "input", "FILE, FOLDER, 'PATTERN' or LIST.txt")
    check_values(cfg, "predict")
    from hydra.utils import instantiate

    from etsam.weights_store import provide

    inputs = instantiate(cfg.inputs)
    writer = instantiate(cfg.writer)
    provide(cfg.weights)
    writer.settings = settings_of(cfg)
    if is_first_process():  # before the networks are built, and once for all processes
        writer.check(inputs.check())

    from etsam.inference.progress import SliceProgress

    segmenter = instantiate(cfg.segmenter)
    if is_first_process() and None in (cfg.weights.stage1, cfg.weights.stage2):
        log.warning(
            "the weights are RANDOM, so the mask MEANS NOTHING; it shows that the program runs. For real masks: "
            "weights=nano, weights=etsam_v1, or weights.stage1=FILE weights.stage2=FILE"
        )
    if is_first_process() and cfg.weights.name == "nano":
        log.info(
            "the nano weights were trained on simulated tomograms only; the published ones: `etsam weights download "
            "etsam_v1`, then weights=etsam_v1"
        )
    trainer = instantiate(cfg.trainer, callbacks=[writer, SliceProgress()])
    trainer.predict(segmenter, datamodule=inputs, return_predictions=False)
    segmenter.raise_failures()


@hydra.main(version_base="1.3", config_path="configs", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Command line."""
    guarded(run, cfg)


if __name__ == "__main__":
    launch(main)
