"""`etsam benchmark`: seconds and memory of this program with several settings, and of other programs."""

import argparse
from pathlib import Path
from typing import Any

from etsam.cli import add_command

_EXAMPLES = """\
examples:
  etsam benchmark tomogram.mrc --settings 'nano=net=nano' --settings 'whole=net=nano tiles=whole'
  etsam benchmark *.mrc --settings 'v1=weights=etsam_v1' --peer 'other=other_tool segment {input} --out {output}'
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "benchmark",
        run,
        help="seconds and peak memory of settings, and of other programs",
        description="Predict each tomogram with each of several settings, and with other programs, each in a process of"
        " its own, and write a table of seconds and of peak memory. What fails is a row marked failed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="TOMOGRAM", help="files, folders or 'patterns'")
    given: Any = {"action": "append", "default": [], "metavar": "NAME=..."}
    parser.add_argument("--settings", dest="own", help="what `etsam predict` is told, such as 'a=net=nano'", **given)
    parser.add_argument("--peer", dest="peers", help="command of another program, with {input} and {output}", **given)
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("benchmark"), metavar="DIR", help="(benchmark)")
    parser.add_argument("--limit-seconds", type=float, metavar="S", help="a run that takes longer has failed")
    parser.add_argument("--keep", action="store_true", help="keep what the runs write")
    parser.add_argument("--overwrite", action="store_true", help="replace a table that is there")


def run(args: argparse.Namespace) -> None:
    """Run everything, then show where the table is."""
    from etsam.evaluation.benchmark import own_runs, peer_runs, run_all
    from etsam.prediction.finding import find_tomograms

    runs = [*own_runs(args.own), *peer_runs(args.peers)]
    run_all(
        runs,
        find_tomograms(args.inputs),
        args.output_dir,
        limit_seconds=args.limit_seconds,
        keep=args.keep,
        overwrite=args.overwrite,
    )
