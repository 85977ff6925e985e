"""A training run of one stage from its config."""

import logging
from contextlib import nullcontext

from omegaconf import DictConfig

from etsam.app import check_values, is_first_process, require

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Compose -> instantiate -> fit. Raises `EtsamError`s; what is written is in `output_dir`."""
    require(cfg, "name", "NAME_OF_THE_RUN")
    check_values(cfg, "train")
    import lightning
    from hydra.utils import instantiate
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from etsam.network.fast import heap
    from etsam.training.run_folder import (
        begin,
        check_memory,
        check_net,
        check_strategy,
        checkpoint_to_resume,
        claim_folder,
        description,
        plugins,
        prepare_stage1_logits,
    )
    from etsam.training.stopping import stopped_by

    logging.getLogger("etsam.normalize").setLevel(logging.WARNING)  # else it tells the contrast at every validation
    check_net(cfg)
    check_strategy(cfg)
    ckpt_path = checkpoint_to_resume(cfg)
    if is_first_process():
        claim_folder(cfg)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    if is_first_process():  # before anything heavy, and once for all processes
        data.prepare_data()
        prepare_stage1_logits(cfg, data)
    if cfg.prepare_only:
        return
    stage = instantiate(cfg.stage, _convert_="all")
    if is_first_process():
        check_memory(cfg, stage)
    callbacks = list(instantiate(cfg.callbacks).values())
    loggers = list(instantiate(cfg.logger).values())
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers, plugins=plugins())
    if is_first_process():
        begin(cfg)
    for logger in loggers:
        logger.log_hyperparams(description(cfg))
    try:
        on_cpu = trainer.strategy.root_device.type == "cpu"
        with heap.retain_freed_memory() if on_cpu and cfg.kernels == "fast" else nullcontext():
            trainer.fit(stage, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    except SIGTERMException:
        if is_first_process():
            log.warning("the state is saved in %s/checkpoints/last.ckpt; go on with ckpt_path=last", cfg.output_dir)
        raise SystemExit(128 + stopped_by(callbacks)) from None
