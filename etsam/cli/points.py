"""`etsam points`: a mask against annotated points on membranes."""

import argparse
import math
from pathlib import Path
from typing import Any

from etsam.cli import add_command
from etsam.cli.flags import take_negative_numbers


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "points",
        run,
        help="mask and points on membranes -> how well they agree",
        description="Where nobody has drawn a mask, positions on membranes (found by picking or averaging) can judge a "
        "prediction: how many of them it covers, and how much of it lies away from all of them.",
    )
    parser.add_argument("mask", type=Path, help="mask, or logits, which are cut where their record says")
    parser.add_argument(
        "points", type=Path, help="CSV file with the columns z_voxel, y_voxel, x_voxel or z, y, x, in voxels"
    )
    parser.add_argument(
        "--near", type=_distance, default=1.5, metavar="V", help="a point is covered within V voxels (1.5)"
    )
    parser.add_argument("--far", type=_distance, default=3.0, metavar="V", help="mask is away beyond V voxels (3)")
    take_negative_numbers(parser)


def _distance(text: str) -> float:
    """A finite number from 0 up; raises ArgumentTypeError."""
    try:
        distance = float(text)
    except ValueError:
        distance = math.nan
    if not 0 <= distance < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no distance; write a number of voxels from 0 up, such as 1.5")
    return distance


def run(args: argparse.Namespace) -> None:
    """Print two shares; raises `InputError` if a file cannot be used."""
    from etsam.cli.console import print_line
    from etsam.evaluation.metrics.points import read_points, score_points
    from etsam.evaluation.stored import StoredPrediction

    points = read_points(args.points)
    scores = StoredPrediction(args.mask).score(
        lambda scored: score_points(scored.as_mask(), points, args.near, args.far)
    )
    if scores.outside:
        found = f"{scores.outside} of {scores.points} points lie outside of it"
        print_line(f"{found}: are they in voxels, and those of this tomogram?")
    print_line(f"{scores.recall:.3f} of {scores.points} points have mask within {args.near:g} voxels")
    if scores.mask_voxels:
        print_line(
            f"{scores.far:.3f} of {scores.mask_voxels} mask voxels lie farther than {args.far:g} voxels from any point"
        )
    else:
        print_line("the mask is empty")
