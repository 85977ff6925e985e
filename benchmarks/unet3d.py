"""A plain 3D U-Net of MONAI, trained for a given time on the data that nano sees: the bar for nano.

    python benchmarks/unet3d.py train --manifest manifest.csv=1.0 --minutes 30 --threads 2 --output-dir runs/unet
    python benchmarks/unet3d.py predict --weights runs/unet/unet.safetensors --output-dir masks/unet tomogram.mrc

What can be equal is: manifests and weights, checks of the files, normalisation, augmentation and the share of crops
around membrane are those of `experiment=nano_stage1`, and masks are written and scored as all others.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from omegaconf import OmegaConf

from etsam.app import exit_with_error, reporting_errors  # sets how threads wait, so it comes before torch

# Channels of the five levels and of the last block: BasicUNet's own six numbers, chosen so that it has 4.33 M
# parameters (a nano stage has 3.61 M) and few of them where voxels are many.
FEATURES = (16, 32, 64, 96, 240, 16)
CROP = (48, 96, 96)


def train(args: argparse.Namespace) -> None:
    """Train for the given time."""
    from unet3d_training import train

    train(args)


def predict(args: argparse.Namespace) -> None:
    """Write masks."""
    from unet3d_network import predict

    predict(args)


class _Parser(argparse.ArgumentParser):
    """Refuses in one line with status 1, as the other programs do."""

    def error(self, message: str) -> NoReturn:
        exit_with_error(f"{message}; `{self.prog} --help` lists what is allowed.")


def _weighted(text: str) -> tuple[Path, float]:
    path, _, weight = text.rpartition("=")
    try:
        return Path(path or text), float(weight) if path else 1.0
    except ValueError:
        raise argparse.ArgumentTypeError(f"{weight!r} is no number; write FILE.csv=WEIGHT") from None


def _numbers(count: int) -> Callable[[str], tuple[int, ...]]:
    def parse(text: str) -> tuple[int, ...]:
        try:
            numbers = tuple(int(number) for number in text.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != count:
            raise argparse.ArgumentTypeError(f"{text!r} is not {count} whole numbers with commas")
        return numbers

    return parse


def build_parser() -> argparse.ArgumentParser:
    """Describe the two commands."""
    parser = _Parser(description="A plain 3D U-Net, the bar for nano: see benchmarks/README.md.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    training = commands.add_parser("train", help="train for a given time")
    add = training.add_argument
    add("--manifest", type=_weighted, action="append", required=True, metavar="CSV=WEIGHT", help="may be repeated")
    add("--minutes", type=float, required=True, help="wall-clock time of all, reading the files included")
    add("--bf16", action="store_true", help="bfloat16 where torch's autocast allows: twice the steps on CPUs with it")
    add("--seed", type=int, default=0)
    add("--lr", type=float, default=1e-3, help="largest learning rate (0.001)")
    add("--batch-size", type=int, default=1, metavar="N", help="crops a step (1)")
    add("--crop", type=_numbers(3), default=CROP, metavar="Z,Y,X", help="voxels (48,96,96)")
    add("--features", type=_numbers(6), default=FEATURES, metavar="N,N,...", help="of BasicUNet (16,32,64,96,240,16)")
    add("--cache-folder", type=Path, metavar="DIR", help="where what was measured in files is kept for later runs")
    training.set_defaults(run=train)
    predicting = commands.add_parser("predict", help="write masks")
    add = predicting.add_argument
    add("files", nargs="+", metavar="FILE", help="tomograms, folders, 'patterns', or text lists")
    add("--weights", type=Path, required=True, metavar="FILE", help="unet.safetensors of a training")
    add("--threshold", type=float, default=0.5, metavar="P", help="probabilities above are membrane (0.5)")
    add("--overlap", type=float, default=0.5, metavar="SHARE", help="of neighbouring windows (0.5)")
    add("--store-logits", action="store_true", help="also write NAME_etsam_predicted_logits.mrc")
    predicting.set_defaults(run=predict)
    for command in (training, predicting):
        command.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
        command.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (1)")
        command.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    started = time.monotonic()  # the time that training is given includes the import of torch
    args = build_parser().parse_args(argv)
    args.started = started
    reporting_errors(lambda cfg: args.run(args), OmegaConf.create({"debug": args.debug}))


if __name__ == "__main__":
    main()
