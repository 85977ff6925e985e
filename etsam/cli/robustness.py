"""`etsam robustness`: how scores change with noise, tilt range, voxel size, membrane thickness and contrast."""

import argparse
from typing import Any

from etsam.cli import add_command

_EXAMPLES = """\
examples:
  etsam robustness weights=etsam_v1 tomograms=10
  etsam robustness --method v1=weights=etsam_v1 --method 'mine=weights=files weights.stage1=a.pt weights.stage2=b.pt'
  etsam robustness 'vary.snr=[0.1,0.3,1]' 'vary.voxel_size_angstrom=[]' baseline.snr=0.5 output_dir=noise
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "robustness",
        run,
        help="scores against noise, tilt range, voxel size, thickness and contrast",
        description="Simulate the same specimens under conditions that are varied one at a time, segment them, and"
        " write curves of Dice and surface Dice: robustness.html and .png, curves.csv, tomograms.csv, robustness.json."
        " KEY=VALUE sets what configs/robustness.yaml lists; resume=true goes on where it stopped.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--method",
        dest="methods",
        action="append",
        default=[],
        metavar="NAME=SETTINGS",
        help="one of several methods on the same tomograms, such as 'a=net=nano'",
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="such as weights=etsam_v1")
    parser.set_defaults(takes_settings=True)


def run(args: argparse.Namespace) -> None:
    """Compose the settings, run everything, then show where the page is."""
    from etsam.app import config_error
    from etsam.cli.console import print_line, progress_bar
    from etsam.evaluation.robustness import run as robustness

    with config_error():
        by_method = robustness.configs(args.settings, args.methods)
    with progress_bar("simulating") as progress:
        page = robustness.run(by_method, progress)
    print_line(f"curves in {page}")
