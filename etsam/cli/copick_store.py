"""`etsam data copick-store`: predicted masks -> segmentations of a copick project."""

import argparse
from pathlib import Path
from typing import Any

from etsam.cli import add_command


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "copick-store",
        run,
        help="predicted masks -> copick project",
        description="Store masks of `etsam predict` as segmentations of a copick project. All are checked before the "
        "first is written; a segmentation that exists is never replaced.",
    )
    parser.add_argument("masks", nargs="+", metavar="MASK", help="RUN_etsam_predicted_mask.mrc, one or several")
    parser.add_argument("--copick", required=True, metavar="CONFIG.json", help="configuration of the project")
    parser.add_argument("--name", default="membrane", help="object of the project (membrane)")
    parser.add_argument("--user", default="etsam", help="user_id of the segmentation (etsam)")
    parser.add_argument("--session", default="0", help="session_id of the segmentation (0: made by a tool)")


def run(args: argparse.Namespace) -> None:
    """Store the masks and name each; raises `EtsamError`s."""
    from etsam.cli.console import print_line, progress_bar
    from etsam.sources.files.copick import store_masks

    with progress_bar("storing", len(args.masks)) as progress:
        lines = store_masks(
            args.copick,
            [Path(mask).expanduser() for mask in args.masks],
            name=args.name,
            user_id=args.user,
            session_id=args.session,
            progress=progress,
        )
    for line in lines:
        print_line(line)
