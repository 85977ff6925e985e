"""`etsam data collect` and `etsam weights list | download | verify`: what comes by network, with its progress."""

import argparse
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from etsam.cli import add_command

if TYPE_CHECKING:
    from etsam.download import Progress
    from etsam.sources.collection.plan import Wanted

T = TypeVar("T")

log = logging.getLogger("etsam.download")

_LOG_INTERVAL_SECONDS = 30.0
_MOST_BARS = 6  # files shown at the same time
_WIDE_COLUMNS = 110  # of a table with folders


def add_collect(commands: Any) -> None:
    """Describe `etsam data collect`."""
    parser = add_command(
        commands,
        "collect",
        run_collect,
        help="download the published data set",
        description="Download published tomograms (CryoET Data Portal, Harvard Dataverse) and masks (Dataverse), "
        "verify them, and write a manifest of what is complete. The same command again completes what is missing.",
    )
    parser.add_argument("--csv", default="dataset", metavar="LIST", help="dataset, testset, robustness, or a file")
    parser.add_argument(
        "-o", "--output-dir", type=Path, default=Path("data/collection"), metavar="DIR", help="(data/collection)"
    )
    parser.add_argument("--what", default="tomograms,masks", metavar="KINDS", help="tomograms, masks, or both")
    parser.add_argument("--format", choices=["mrc", "zarr"], default="mrc", help="of the portal's tomograms (mrc)")
    parser.add_argument(
        "--if-several",
        choices=["error", "default", "first"],
        default="error",
        help="when voxel size and shape leave several tomograms of a run: refuse, the portal's default, its first",
    )
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="downloads at the same time (4)")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be downloaded, with sizes")


def add_weights(commands: Any) -> None:
    """Describe `etsam weights`."""
    parser = commands.add_parser("weights", help="named weights: list, download, verify")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, purpose, names in (
        ("list", run_list, "which weights have a name, and where their files lie", "*"),
        ("download", run_download, "download weights once; later they are found by name", "+"),
        ("verify", run_verify, "compare files with the checksums recorded when they were downloaded", "*"),
    ):
        action = add_command(actions, name, run, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        action.add_argument("names", nargs=names, metavar="NAME", help="such as etsam_v1 or sam2.1_hiera_base_plus")
        if name == "download":
            action.add_argument("--offline", action="store_true", help="ask no server: fail if something is missing")
            action.add_argument("--mirror", action="append", default=[], metavar="URL", help="folder to try first")


def run_collect(args: argparse.Namespace) -> None:
    """Plan, download, write the manifest; raise if anything failed."""
    from etsam.errors import ConfigError
    from etsam.sources.collection.collect import collect
    from etsam.sources.collection.lists import find_list, read_list
    from etsam.sources.collection.plan import KINDS, plan

    kinds = [kind.strip() for kind in args.what.split(",") if kind.strip()]
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise ConfigError(f"--what {args.what} does not fit; allowed: {', '.join(KINDS)}, or both with a comma.")
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs} does not fit; allowed: whole numbers of at least 1.")
    rows = read_list(find_list(args.csv))
    wanted = plan(
        rows,
        args.output_dir,
        kinds=kinds,
        tomogram_format=args.format,
        if_several=args.if_several,
        threads=args.jobs,
    )
    if args.dry_run:
        _show(wanted)
        _raise([f"{one.name}: {one.fault}" for one in wanted if one.fault], f"of {len(wanted)} files cannot be had")
        return
    faults = with_bars(
        lambda progress: collect(wanted, args.output_dir, threads=args.jobs, progress=progress),
        sum(one.size or 0 for one in wanted) or None,
    )
    without = [row.name for row in rows if not row.has_mask]
    if without:
        log.info("without published mask, so not in the manifest: %s", ", ".join(without))
    _raise(
        faults,
        f"of {len(wanted)} files are not there or do not fit, the others are; the same command again tries only these",
    )
    log.info("all %d files are there: %s", len(wanted), args.output_dir)


def _show(wanted: "list[Wanted]") -> None:
    from etsam.cli.console import print_table, readable_bytes
    from etsam.download import missing_bytes

    rows = []
    for one in wanted:
        state = "not available" if one.fault else "there" if one.is_there else "to download"
        rows.append((one.row.name, one.kind.removesuffix("s"), one.source, readable_bytes(one.size), state))
    available = [one for one in wanted if not one.fault]
    unknown = sum(one.size is None for one in available)
    note = f", {unknown} of unknown size" if unknown else ""
    to_come = readable_bytes(missing_bytes(job for one in available for job in one.jobs))
    total = readable_bytes(sum(one.size or 0 for one in available))
    rows.append((f"all {len(available)} files", "", "", total, f"{to_come} to download{note}"))
    print_table(("tomogram", "what", "from", "size", "state"), rows)


def _raise(faults: list[str], what: str) -> None:
    from etsam.errors import DownloadError

    if faults:
        raise DownloadError.of(f"{len(faults)} {what}", faults)


def run_list(args: argparse.Namespace) -> None:
    """Print a table of weights, and which file goes where for those that are not here."""
    from etsam.cli.console import print_line, print_table, readable_bytes, table_columns
    from etsam.weights.registry import PUBLISHED, weights_folder
    from etsam.weights.store import list_weights, original_url

    files = list_weights(args.names)
    rows, missing = [], []
    for weights in dict.fromkeys(entry.weights for entry in files):
        entries = [entry for entry in files if entry.weights == weights]
        there = [entry.path for entry in entries if entry.path is not None]
        size = sum(path.stat().st_size for path in there) if len(there) == len(entries) else None
        about = readable_bytes(size) if size is not None else f"~{weights.megabytes} MB" if weights.megabytes else "?"
        state = "here" if len(there) == len(entries) else "a part" if there else "not here"
        voxels = "-" if weights.voxel_angstrom is None else "{:g}-{:g} Å".format(*weights.voxel_angstrom)
        folder = there[0].parent.absolute() if there else weights_folder()
        rows.append((weights.name, weights.about, about, voxels, state, str(folder)))
        missing += [entry for entry in entries if entry.path is None and weights.page]
    columns = ("name", "what for", "size", "voxel size", "state", "folder")
    if table_columns() < _WIDE_COLUMNS:  # folders would be folded into towers
        print_table(columns[:-1], [row[:-1] for row in rows], whole_names=True)
        for row in rows:
            if row[-2] != "not here":
                print_line(f"{row[0]} {'lies' if row[-2] == 'here' else 'lies in part'} in {row[-1]}")
    else:
        print_table(columns, rows, whole_names=True)
    if missing:
        print_line(f"\nWhat is not here comes by `etsam weights download NAME`, such as {PUBLISHED.name}.")
        print_line(f"Without network, fetch these on another machine and put them into {weights_folder()}:")
        for entry in missing:
            print_line(f"  {original_url(entry.weights, entry.file_name)}")
        print_line("Then `etsam weights verify`.")


def run_download(args: argparse.Namespace) -> None:
    """Download what is missing."""
    from etsam.weights.store import fetch_weights

    paths = with_bars(
        lambda progress: fetch_weights(args.names, mirrors=args.mirror, offline=args.offline, progress=progress)
    )
    for path in paths:
        log.info("%s", path)


def run_verify(args: argparse.Namespace) -> None:
    """Print a table of files and what is known of them; raise if one is not what was downloaded, or lacks its other."""
    from etsam.cli.console import print_line, print_table
    from etsam.errors import CheckpointError
    from etsam.weights.store import list_weights

    states = list_weights(args.names, verify=True)
    begun = {entry.weights.name for entry in states if entry.path is not None} | set(args.names)
    shown = [entry for entry in states if entry.weights.name in begun]
    print_table(
        ("file", "state", "sha256", "where"),
        [(entry.file_name, entry.state, entry.sha256, str(entry.path or "")) for entry in shown],
    )
    absent = dict.fromkeys(entry.weights.name for entry in states if entry.weights.name not in begun)
    if absent:
        print_line(f"not here: {', '.join(absent)}")
    bad = [entry for entry in shown if entry.state in ("changed", "missing")]
    if bad:
        raise CheckpointError.of(
            "not as downloaded; remove what has changed and run `etsam weights download`",
            [f"{entry.path or entry.file_name} ({entry.state})" for entry in bad],
        )
    if not shown:
        raise CheckpointError("there are no weights here to verify; `etsam weights list` says how they come.")


def with_bars(work: "Callable[[Progress], T]", total_bytes: int | None = None) -> T:
    """Do work that downloads: bars in a terminal, elsewhere a line every 30 s.

    Ctrl-C ends the program with a line about what is kept.

    Parameters
    ----------
    work
        Takes the callback that it has to tell its progress.
    total_bytes
        Of all files, where it is known beforehand.
    """
    from rich.progress import DownloadColumn, TaskID

    from etsam.app import exit_with_error
    from etsam.cli.console import progress_bars

    bars = progress_bars(in_bytes=True)
    all_files = bars.add_task("all files", total=total_bytes)
    lock, next_line = threading.Lock(), time.monotonic() + _LOG_INTERVAL_SECONDS
    there: dict[str, int] = {}
    announced: dict[str, int | None] = {}
    tasks: dict[str, TaskID] = {}

    def progress(name: str, done: int, total: int | None) -> None:
        nonlocal next_line
        with lock:
            there[name], announced[name] = done, total
            bars.update(
                all_files,
                completed=sum(there.values()),
                total=total_bytes or sum(size or 0 for size in announced.values()),
            )
            if name not in tasks and done != total and len(tasks) < _MOST_BARS:
                tasks[name] = bars.add_task("/".join(Path(name).parts[-2:])[-50:])
            if name in tasks:
                bars.update(tasks[name], completed=done, total=total)
                if done == total:
                    bars.remove_task(tasks.pop(name))
            if bars.disable and time.monotonic() >= next_line:
                next_line = time.monotonic() + _LOG_INTERVAL_SECONDS
                log.info("%s there", DownloadColumn().render(bars.tasks[0]))

    with bars:
        try:
            return work(progress)
        except KeyboardInterrupt:
            pass  # not from inside: the guard of commands would speak a second time
    exit_with_error(
        "interrupted; what came is kept in .part files, and the same command goes on from there.", status=130
    )
