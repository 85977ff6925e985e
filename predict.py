"""Segment tomograms.

    python predict.py input=tomogram.mrc
    python predict.py input='data/*.mrc' output_dir=masks weights=etsam_v1 write_logits=true

Every setting is in configs/predict.yaml; `python predict.py --help` lists them.
"""

import sys

import hydra
from omegaconf import DictConfig

from etsam.app import launch, reporting_errors
from etsam.prediction.run import run
from etsam.weights.store import with_automatic_weights


@hydra.main(version_base="1.3", config_path="configs", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Command line."""
    reporting_errors(run, cfg)


if __name__ == "__main__":
    sys.argv[1:] = with_automatic_weights(sys.argv[1:])
    launch(main)
