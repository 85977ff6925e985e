"""Score predictions against masks.

    python evaluate.py data.manifest=manifest.csv weights=etsam_v1
    python evaluate.py data.manifest=manifest.csv 'predictions={etsam: masks, other: other_masks}'

Every setting is in configs/evaluate.yaml; `python evaluate.py --help` lists them.
"""

import logging

import hydra
from omegaconf import DictConfig

from etsam.app import check_values, guarded, is_first_process, launch

log = logging.getLogger("etsam.evaluate")


def run(cfg: DictConfig) -> None:
    """Compose -> instantiate -> test. Raises `EtsamError`s; what is written is in `output_dir`."""
    check_values(cfg, "evaluate")
    from hydra.utils import instantiate

    from etsam.evaluation.run import check_outputs, finish, result_store, score
    from etsam.weights.store import ensure_weights

    ensure_weights(cfg.weights)
    data, metrics, store = instantiate(cfg.data), instantiate(cfg.scores), result_store(cfg)
    data.leave_out_complete(store)
    if is_first_process():  # before the networks are built, and once for all processes
        check_outputs(cfg, data)
    score(cfg, data, metrics, store)
    if is_first_process():
        finish(cfg, data, store)


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Command line."""
    guarded(run, cfg)


if __name__ == "__main__":
    launch(main)
