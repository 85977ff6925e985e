"""`etsam data copick-store`: predicted masks -> segmentations of a copick project."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "copick-store",
        help="predicted masks -> copick project",
        description="Store masks of `etsam predict` as segmentations of a copick project. All are checked before the "
        "first is written; a segmentation that exists is never replaced.",
    )
    parser.add_argument("masks", nargs="+", metavar="MASK", help="RUN_etsam_predicted_mask.mrc, one or several")
    parser.add_argument("--copick", required=True, metavar="CONFIG.json", help="configuration of the project")
    parser.add_argument("--name", default="membrane", help="object of the project (membrane)")
    parser.add_argument("--user", default="etsam", help="user_id of the segmentation (etsam)")
    parser.add_argument("--session", default="0", help="session_id of the segmentation (0: made by a tool)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Store the masks and name each; raises `EtsamError`s."""
    from rich.console import Console
    from rich.progress import Progress

    from etsam.sources.files.copick import store_masks

    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("storing", total=len(args.masks))
        lines = store_masks(
            args.copick,
            [Path(mask).expanduser() for mask in args.masks],
            name=args.name,
            user_id=args.user,
            session_id=args.session,
            progress=lambda name, done, total: bar.update(task, completed=done, total=total, description=name),
        )
    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False)
