"""`python evaluate.py benchmark=true`: the speed of both stages on the first tomogram of a manifest."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from etsam.evaluation.speed import SpeedSettings, compare_speed, slices_for_speed, summary
from etsam.inference.fusion import fuse
from etsam.network.build import build_tracker, input_slices
from etsam.normalize import normalize
from etsam.volume import read_volume

log = logging.getLogger(__name__)


def benchmark_stages(cfg: DictConfig, tomogram: str) -> None:
    """Time both stages beside SAM2's predictor, each on its own input; tables go to `output_dir/speed/stage1` and 2.

    Raises
    ------
    ConfigError
        As `compare_speed`.
    """
    net: Any = OmegaConf.to_container(cfg.net, resolve=True)
    volume = read_volume(tomogram)
    normalized = slices_for_speed(normalize(volume, instantiate(cfg.normalize)), cfg.benchmark_slices)
    peer = input_slices(net) == 1
    if not peer:
        log.warning("SAM2's predictor sees one slice at a time, so that this network is timed alone")
    device = "cuda" if instantiate(cfg.trainer).strategy.root_device.type == "cuda" else "cpu"
    image = normalized
    with tempfile.TemporaryDirectory() as folder:
        for stage in ("stage1", "stage2"):
            settings = SpeedSettings(
                net=net,
                checkpoint=_weights(cfg, stage, net, Path(folder)),
                repeats=cfg.benchmark_repeats,
                device=device,
                precision=cfg.trainer.precision,
                peer=peer,
                encode_batch_size=cfg.encode_batch_size,
                prompt={"stage1": "grid_zero", "stage2": "zero"}[stage],
            )
            found = compare_speed(settings, image, Path(cfg.output_dir) / "speed" / stage, overwrite=cfg.overwrite)
            for line in summary(found):
                log.info("%s: %s", stage, line)
            if stage == "stage1":
                assert found.logits is not None
                fused = fuse(normalized, found.logits)
                image = np.stack([fused[z] for z in range(len(normalized))])


def _weights(cfg: DictConfig, stage: str, net: Any, folder: Path) -> str:
    """File of a stage's weights; random ones are written to one."""
    given = cfg[stage].tracker
    if given.checkpoint is not None:
        return str(given.checkpoint)
    path = folder / f"{stage}.safetensors"
    safetensors.torch.save_model(build_tracker(net, None, given.seed).network, str(path))
    return str(path)
