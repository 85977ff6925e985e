"""`etsam data demo`: the demonstration tomogram that comes with the program."""

import argparse
import shutil
from pathlib import Path
from typing import Any

from etsam.cli import add_command

FILES = ("hiv_vlps.mrc", "hiv_vlps_surface_points.csv", "README.md")
"""Of `data/demo`: tomogram, positions on its membranes, credit."""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "demo",
        run,
        help="a small real tomogram that comes with the program",
        description="Copy the demonstration tomogram, positions on its membranes and their credit into a folder.",
    )
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("demo"), metavar="DIR", help="(demo)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def run(args: argparse.Namespace) -> None:
    """Copy the files; raises `OutputError` if one exists."""
    from etsam.cli.console import print_line
    from etsam.paths import make_folder, resource_path
    from etsam.volume.atomic import atomic_path, refuse_existing

    targets = {name: args.output_dir / name for name in FILES}
    for target in targets.values():
        refuse_existing(target, args.overwrite)
    make_folder(args.output_dir)
    for name, target in targets.items():
        with atomic_path(target, args.overwrite) as part:
            shutil.copyfile(resource_path("data", "demo", name), part)
    print_line(f"{targets[FILES[0]]}: now `etsam predict {targets[FILES[0]]} --output-dir results`")
