"""`etsam postprocess`: a mask -> a cleaned mask."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam.cli import add_command
from etsam.cli.flags import add_region_flags
from etsam.cli.overrides import run_config
from etsam.cli.postprocess_flags import add_postprocess_flags, postprocess_overrides

if TYPE_CHECKING:
    from omegaconf import DictConfig


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "postprocess",
        help="mask -> cleaned mask",
        description="Clean a mask. Any further KEY=VALUE sets what configs/postprocess.yaml lists, such as workers=2.",
    )
    parser.add_argument("input_mask", help="mask, MRC or OME-Zarr")
    parser.add_argument("output_mask", type=Path, help="where the cleaned mask goes: .mrc, .mrc.gz or .zarr")
    add_postprocess_flags(parser)
    add_region_flags(parser)
    parser.add_argument("--tomogram", metavar="FILE", help="of the mask, for --lamella and --exclude")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")

    parser.set_defaults(prepare=prepare, takes_settings=True)


def prepare(args: argparse.Namespace, settings: Sequence[str]) -> Callable[[], None]:
    """The run; raises ValueError if flags contradict each other."""
    alone = "none" if args.lamella or args.exclude else "all"  # leaving out, if no other step is asked for
    default = None if any(item.startswith("postprocess=") for item in settings) else alone
    overrides = [*postprocess_overrides(args, default), *settings, f"debug={str(args.debug).lower()}"]
    return partial(run_config, "postprocess", overrides, partial(_postprocess, args))


def _postprocess(args: argparse.Namespace, cfg: "DictConfig") -> None:
    from hydra.utils import instantiate

    from etsam.app import check_values
    from etsam.errors import ConfigError
    from etsam.postprocess.regions import RegionSettings, regions_of_file
    from etsam.postprocess.steps import postprocess_file
    from etsam.volume import locate
    from etsam.volume.writers import refuse_unknown_suffix

    check_values(cfg, "postprocess")
    refuse_unknown_suffix(args.output_mask)
    steps = list(instantiate(cfg.postprocess, _convert_="all").values())
    regions = RegionSettings("slab" if args.lamella else "all", tuple(args.exclude or ()))
    if regions.wanted != (args.tomogram is not None):
        raise ConfigError("--tomogram FILE goes with --lamella or --exclude, which look at the tomogram.")
    if regions.wanted:
        steps.insert(0, regions_of_file(locate(args.tomogram), regions))
    source = locate(args.input_mask)
    postprocess_file(source, args.output_mask, steps, overwrite=args.overwrite, workers=cfg.workers)
