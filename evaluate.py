"""Score predictions against masks.

    python evaluate.py data.manifest=manifest.csv weights=etsam_v1
    python evaluate.py data.manifest=manifest.csv 'predictions={etsam: masks, other: other_masks}'

Every setting is in configs/evaluate.yaml; `python evaluate.py --help` lists them.
"""

import sys

import hydra
from omegaconf import DictConfig

from etsam.app import launch, reporting_errors
from etsam.weights.store import with_automatic_weights


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Command line."""
    from etsam.evaluation.run import run  # pandas and Lightning: not for --help

    reporting_errors(run, cfg)


if __name__ == "__main__":
    sys.argv[1:] = with_automatic_weights(sys.argv[1:])
    launch(main)
