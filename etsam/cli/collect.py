"""`etsam data collect --csv LIST --output-dir DIR`: the published data set, downloaded and verified."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etsam.data.collection_plan import Wanted


def add(commands: Any) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "collect",
        help="download the published data set",
        description="Download published tomograms (CryoET Data Portal, Harvard Dataverse) and masks (Dataverse), "
        "verify them, and write a manifest of what is complete. The same command again completes what is missing.",
    )
    parser.add_argument("--csv", default="dataset", metavar="LIST", help="dataset, testset, robustness, or a file")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("data/collection"), metavar="DIR", help="(data/collection)"
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
    parser.add_argument("--dataverse-url", metavar="URL", help="another Dataverse server (also ETSAM_DATAVERSE_URL)")
    parser.add_argument("--portal-url", metavar="URL", help="another address of the portal (also ETSAM_PORTAL_URL)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Plan, download, write the manifest; raise if anything failed."""
    import logging

    from etsam.cli.download_bars import with_bars
    from etsam.data.collect import collect
    from etsam.data.collection_plan import KINDS, plan
    from etsam.data.published import find_list, read_list
    from etsam.errors import ConfigError
    from etsam.io.web import Web

    log = logging.getLogger("etsam.collect")
    kinds = [kind.strip() for kind in args.what.split(",") if kind.strip()]
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise ConfigError(f"--what {args.what} does not fit; allowed: {', '.join(KINDS)}, or both with a comma.")
    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs} does not fit; allowed: whole numbers of at least 1.")
    rows = read_list(find_list(args.csv))
    web = Web()
    wanted = plan(
        rows,
        args.output_dir,
        kinds=kinds,
        tomogram_format=args.format,
        if_several=args.if_several,
        server=args.dataverse_url,
        portal=args.portal_url,
        jobs=args.jobs,
        web=web,
    )
    if args.dry_run:
        _show(wanted)
        _raise([f"{one.name}: {one.fault}" for one in wanted if one.fault], f"of {len(wanted)} files cannot be had")
        return
    total = sum(one.size or 0 for one in wanted) or None
    faults = with_bars(
        lambda bars: collect(wanted, args.output_dir, jobs=args.jobs, web=web, progress=bars.progress), total
    )
    without = [row.name for row in rows if not row.has_mask]
    if without:
        log.info("without published mask, so not in the manifest: %s", ", ".join(without))
    what = (
        f"of {len(wanted)} files are not there or do not fit, the others are; the same command again tries only these"
    )
    _raise(faults, what)
    log.info("all %d files are there: %s", len(wanted), args.output_dir)


def _show(wanted: "list[Wanted]") -> None:
    from etsam.cli.console import print_table
    from etsam.cli.download_bars import readable_bytes
    from etsam.io.download import missing_bytes

    rows = []
    for one in wanted:
        state = "not available" if one.fault else "there" if one.is_there else "to download"
        rows.append((one.row.name, one.kind.removesuffix("s"), one.source, readable_bytes(one.size), state))
    available = [one for one in wanted if not one.fault]
    to_come = missing_bytes(item for one in available for item in one.downloads)
    unknown = sum(one.size is None for one in available)
    note = f", {unknown} of unknown size" if unknown else ""
    total = readable_bytes(sum(one.size or 0 for one in available))
    rows.append((f"all {len(available)} files", "", "", total, f"{readable_bytes(to_come)} to download{note}"))
    print_table(("tomogram", "what", "from", "size", "state"), rows)


def _raise(faults: list[str], what: str) -> None:
    from etsam.errors import DownloadError

    if faults:
        raise DownloadError(f"{len(faults)} {what}: {' | '.join(faults)}")
