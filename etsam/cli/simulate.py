"""`etsam data simulate`: tomograms with exact masks, out of nothing."""

import argparse
import re
from pathlib import Path
from typing import Any

from etsam.cli import add_command
from etsam.errors import ConfigError


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "simulate",
        run,
        help="make tomograms with exact masks",
        description="Simulate tomograms: membranes of many shapes, proteins, filaments, gold, a tilt series with its "
        "missing wedge, noise and reconstruction. Writes tomograms, masks, numbered membranes and manifest.csv. "
        "KEY=VALUE sets what configs/simulate.yaml lists under `simulator`, such as acquisition.snr=[0.1,0.1].",
    )
    parser.add_argument("--n", type=int, default=1, metavar="N", help="how many tomograms (1)")
    parser.add_argument("--shape", metavar="Z,Y,X", help="voxels (128,256,256)")
    parser.add_argument("--voxel-size", metavar="A", help="in Angstrom; LOW,HIGH draws one for each tomogram (10)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same tomograms (0)")
    parser.add_argument("--val-fraction", type=float, default=0.2, metavar="F", help="share of the split val (0.2)")
    parser.add_argument("-o", "--output-dir", type=Path, required=True, metavar="DIR", help="where they go")
    parser.add_argument("--overwrite", action="store_true", help="replace tomograms that exist")
    parser.add_argument("--resume", action="store_true", help="keep tomograms that are complete")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="further settings")
    parser.set_defaults(takes_settings=True)


def run(args: argparse.Namespace) -> None:
    """Compose the settings, then make tomogram after tomogram."""
    from hydra.utils import instantiate

    from etsam.app import check_values, compose_config, config_error
    from etsam.cli.console import print_line, progress_bar
    from etsam.sources.simulation.files import simulate_files

    with config_error():
        cfg = compose_config("simulate", overrides(args))
        check_values(cfg, "simulate")
        simulator = instantiate(cfg.simulator)
    with progress_bar("simulating", args.n) as progress:
        manifest = simulate_files(
            simulator,
            args.n,
            args.output_dir,
            val_fraction=args.val_fraction,
            resume=args.resume,
            overwrite=args.overwrite,
            progress=progress,
        )
    print_line(f"{args.n} tomograms in {args.output_dir}, listed in {manifest}")


def overrides(args: argparse.Namespace) -> list[str]:
    """Flags and settings as overrides of configs/simulate.yaml; raises `ConfigError` if a flag makes no sense."""
    found = []
    if args.shape is not None:
        if not re.fullmatch(r"\d+(,\d+){2}", args.shape):
            raise ConfigError(f"--shape {args.shape} is not three whole numbers Z,Y,X such as 128,256,256.")
        found.append(f"simulator.shape=[{args.shape}]")
    if args.voxel_size is not None:
        if not re.fullmatch(r"\d+(\.\d+)?(,\d+(\.\d+)?)?", args.voxel_size):
            raise ConfigError(f"--voxel-size {args.voxel_size} is no number of Angstrom, or two: LOW,HIGH.")
        low, _, high = args.voxel_size.partition(",")
        found.append(f"simulator.voxel_size_angstrom=[{low},{high or low}]")
    if args.seed is not None:
        found.append(f"simulator.seed={args.seed}")
    return found + [f"simulator.{setting.removeprefix('simulator.')}" for setting in args.settings]
