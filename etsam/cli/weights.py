"""`etsam weights list | download NAME... | verify [NAME...]`."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser("weights", help="named weights: list, download, verify")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, purpose, names in (
        ("list", run_list, "which weights have a name, and where their files lie", "*"),
        ("download", run_download, "download weights once; later they are found by name", "+"),
        ("verify", run_verify, "compare files with the checksums recorded when they were downloaded", "*"),
    ):
        action = actions.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        action.add_argument("names", nargs=names, metavar="NAME", help="such as etsam_v1 or sam2.1_hiera_base_plus")
        if name == "download":
            action.add_argument("--offline", action="store_true", help="ask no server: fail if something is missing")
            action.add_argument("--mirror", action="append", default=[], metavar="URL", help="folder to try first")
        action.add_argument("--debug", action="store_true", help="show the traceback of an error")
        action.set_defaults(run=run)


def run_list(args: argparse.Namespace) -> None:
    """Print a table of names and files."""
    from etsam.cli.console import print_table
    from etsam.weights_store import list_weights

    print_table(
        ("name", "file", "where", "what"),
        [
            (entry.weights.name, entry.file_name, str(entry.path or "not there"), entry.weights.about)
            for entry in list_weights(args.names)
        ],
    )


def run_download(args: argparse.Namespace) -> None:
    """Download what is missing."""
    import logging

    from etsam.cli.download_bars import with_bars
    from etsam.weights_store import fetch_weights

    paths = with_bars(
        lambda bars: fetch_weights(args.names, mirrors=args.mirror, offline=args.offline, progress=bars.progress)
    )
    for path in paths:
        logging.getLogger("etsam.weights").info("%s", path)


def run_verify(args: argparse.Namespace) -> None:
    """Print a table of files and what is known of them; raise if one is not what was downloaded."""
    from etsam.cli.console import print_table
    from etsam.errors import CheckpointError
    from etsam.weights_store import verify_weights

    states = verify_weights(args.names)
    print_table(
        ("file", "state", "sha256", "where"),
        [(entry.file_name, entry.state, entry.sha256, str(entry.path or "")) for entry in states],
    )
    bad = [entry for entry in states if entry.state == "changed" or (args.names and entry.state == "missing")]
    if bad:
        named = ", ".join(f"{entry.path or entry.file_name} ({entry.state})" for entry in bad)
        raise CheckpointError(f"not as downloaded: {named}; remove what has changed and run `etsam weights download`.")
