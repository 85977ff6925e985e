"""`etsam data polnet`: PolNet simulations as training data, made here or read from PolNet's output."""

import argparse
import logging
from pathlib import Path
from typing import Any

from etsam.cli import add_command

log = logging.getLogger(__name__)


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "polnet",
        run,
        help="simulate tomograms with PolNet, or read its output -> masks and manifest",
        description="Write masks and manifest.csv for tomograms that PolNet 1.1 has simulated (--from), or let PolNet "
        "simulate them first. Started again after an interruption, it goes on where it stopped.",
    )
    parser.add_argument("--from", dest="source", metavar="DIR", help="output of PolNet: folder with TomoNNN in it")
    parser.add_argument(
        "--config",
        nargs="+",
        metavar="FILE",
        help="PolNet settings to simulate with: YAML files, or trial, polnet_data_1, polnet_data_2 (default: the last "
        "two, the published settings)",
    )
    parser.add_argument("-o", "--output-dir", required=True, metavar="DIR", help="where masks and manifest.csv go")
    parser.add_argument("--split", default="0.8,0.2", metavar="SHARES", help="train,val or train,val,test (0.8,0.2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split and the simulations (0)")
    parser.add_argument("--skip-empty", action="store_true", help="leave out tomograms without membrane")
    parser.add_argument("--overwrite", action="store_true", help="replace masks and manifest.csv, never tomograms")
    group = parser.add_argument_group("simulation")
    group.add_argument("--n", type=int, metavar="N", help="tomograms in all (default: as many as the settings say)")
    group.add_argument("--jobs", type=int, metavar="N", help="simulated at once (default: what cores and memory allow)")
    group.add_argument("--polnet-python", metavar="PROGRAM", help="the Python that PolNet is installed in (this one)")
    group.add_argument("--polnet-data", type=Path, metavar="DIR", help="PolNet's models: `data` of its repository")
    group.add_argument(
        "--acquisition",
        choices=["etsam", "imod"],
        default="etsam",
        help="who projects and reconstructs: etsam, with a seed, or PolNet by IMOD, whose noise has none (etsam)",
    )
    group.add_argument("--device", metavar="NAME", help="of etsam's acquisition: cpu, cuda (a GPU if there is one)")


def run(args: argparse.Namespace) -> None:
    """Simulate, unless `--from` is given; then write masks and manifest.

    Raises
    ------
    EtsamError
        If arguments contradict each other, and whatever the two steps raise.
    """
    from etsam.errors import ConfigError
    from etsam.sources.files.splits import check_split, parse_split
    from etsam.sources.polnet.importer import import_tree

    split = check_split(parse_split(args.split))
    output_dir = Path(args.output_dir).expanduser()
    for flag, value, least in (("--n", args.n, 1), ("--jobs", args.jobs, 1), ("--seed", args.seed, 0)):
        if value is not None and value < least:
            raise ConfigError(f"{flag} {value}: a whole number from {least} is needed")
    if args.source is not None and (args.config or args.n):
        raise ConfigError("--from reads tomograms, --config and --n make some; give one or the other")
    if args.source is None and not _simulate(args, output_dir):
        return
    found = import_tree(
        output_dir if args.source is None else args.source,
        output_dir,
        split=split,
        seed=args.seed,
        skip_empty=args.skip_empty,
        overwrite=args.overwrite,
    )
    log.info("%s: written", found)


def _simulate(args: argparse.Namespace, output_dir: Path) -> bool:
    """Make what is missing; False if nothing is, not even the manifest."""
    import time

    from etsam.errors import OutputError
    from etsam.screen import readable_seconds
    from etsam.sources.polnet.config import PUBLISHED, check_configs, find_config, read_config
    from etsam.sources.polnet.importer import MANIFEST_NAME
    from etsam.sources.polnet.install import find_polnet
    from etsam.sources.polnet.plan import only_run, pending, plan, workers_that_fit
    from etsam.sources.polnet.run import find_device, generate

    device = find_device(args.device)
    configs = [read_config(find_config(name)) for name in args.config or PUBLISHED]
    check_configs(configs)
    polnet = find_polnet(args.polnet_python)
    jobs = plan(configs, args.n, output_dir, args.seed, polnet, args.polnet_data, imod=args.acquisition == "imod")
    manifest = output_dir / MANIFEST_NAME
    with only_run(output_dir):
        left = pending(jobs)
        if manifest.exists() and not args.overwrite:
            if left:
                raise OutputError(f"{manifest}: exists already, without {left[0].name}; --overwrite replaces it")
            log.info("%s: nothing to do, all %d tomograms are there", manifest, len(jobs))
            return False
        workers = args.jobs or workers_that_fit(left)
        started = time.monotonic()

        def progress(done: int, total: int, name: str) -> None:
            rest = (time.monotonic() - started) / done * (total - done)
            log.info("%s: done; %d of %d, about %s left", name, done, total, readable_seconds(rest))

        if left:
            log.info("PolNet %s: tomograms to make %d, at once %d", polnet.version, len(left), min(workers, len(left)))
            generate(left, polnet, output_dir / "logs", workers=workers, device=device, progress=progress)
    return True
