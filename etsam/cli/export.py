"""`etsam export`: a checkpoint of a training run -> weights to predict with."""

import argparse
from pathlib import Path
from typing import Any

from etsam.cli import add_command


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(commands, "export", run=run, help="checkpoint of a training run -> small weights file")
    parser.add_argument("checkpoint", type=Path, help="a .ckpt of a run, or any other checkpoint")
    parser.add_argument("weights", type=Path, help="where the weights go, a .safetensors file")
    parser.add_argument("--half", action="store_true", help="store 16 bits a number: half the size, slightly rounded")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def run(args: argparse.Namespace) -> None:
    """Write the weights; raises `EtsamError` if the checkpoint is none, or the output exists."""
    from etsam.network.checkpoint import export_weights

    export_weights(args.checkpoint, args.weights, half=args.half, overwrite=args.overwrite)
