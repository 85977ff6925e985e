"""Train one stage.

    python train.py experiment=nano_stage1 name=first data.sources.own.manifest=manifest.csv
    python train.py experiment=nano_stage1 name=first data.sources.own.manifest=manifest.csv ckpt_path=last

Every setting is in configs/train.yaml; `python train.py --help` lists them.
"""

import hydra
from omegaconf import DictConfig

from etsam.app import launch, reporting_errors
from etsam.training.run import run


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Command line; gives the score of the best state, for sweepers that search."""
    return reporting_errors(run, cfg, stop_at_once=False).best_score


if __name__ == "__main__":
    launch(main)
