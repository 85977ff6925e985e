"""`etsam threshold`: masks of other thresholds from stored logits."""

import argparse
from pathlib import Path
from typing import Any

from etsam.cli import add_command, refuse_missing
from etsam.cli.flags import (
    add_false_rate_flag,
    add_page_flag,
    add_region_flags,
    page_overrides,
    take_negative_numbers,
    threshold_value,
)
from etsam.cli.postprocess_flags import add_postprocess_flags, postprocess_overrides


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "threshold",
        run,
        help="stored logits -> masks of other thresholds",
        description="New masks from logits that `etsam predict --store-logits` wrote: another threshold, or other "
        "post-processing, in seconds. Lower thresholds give more membrane. Beside each mask lies what `etsam predict` "
        "writes: record, picture, page and script.",
    )
    take_negative_numbers(parser)
    parser.add_argument("logits", nargs="+", metavar="LOGITS", help="NAME_etsam_predicted_logits.mrc, one or several")
    parser.add_argument(
        "--at",
        "--threshold",
        dest="at",
        nargs="+",
        type=threshold_value,
        required=True,
        metavar="T",
        help="thresholds; logits above are membrane; auto: chosen for the tomogram, after `predict --threshold auto`",
    )
    add_false_rate_flag(parser, "--at auto")
    add_region_flags(parser)
    parser.add_argument("-o", "--output-dir", type=Path, metavar="DIR", help="where masks go (beside the logits)")
    parser.add_argument("--no-preview", action="store_true", help="no picture; with --no-page the tomogram is not read")
    add_page_flag(parser)
    add_postprocess_flags(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace masks that exist")


def run(args: argparse.Namespace) -> None:
    """Write the masks; raises `EtsamError` if logits cannot be used or a mask exists."""
    refuse_missing(args.logits)
    from hydra.utils import instantiate

    from etsam.app import compose_config, config_error
    from etsam.cli.console import print_line, progress_bar
    from etsam.errors import ConfigError
    from etsam.postprocess.regions import RegionSettings
    from etsam.prediction.record import plain_settings
    from etsam.prediction.threshold import threshold_logits
    from etsam.volume import locate

    try:
        overrides = postprocess_overrides(args, default="none") + page_overrides(args)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with config_error():
        cfg = compose_config("predict", overrides)  # so that a person's own defaults count here, too
        steps = instantiate(cfg.postprocess, _convert_="all") or {}
        companions = instantiate(cfg.writer.companions, _convert_="all")
    for given in args.logits:
        with progress_bar(given) as bar:

            def update(part: str, done: int, total: int, bar: Any = bar) -> None:
                bar(done, total + 1, part)  # never all: the bar would go after the first of several passes

            written = threshold_logits(
                locate(given),
                args.at,
                postprocess=steps,
                postprocess_settings=plain_settings(cfg.postprocess),
                output_dir=args.output_dir,
                preview=not args.no_preview,
                companions=companions,
                overwrite=args.overwrite,
                workers=cfg.workers,
                progress=update,
                regions=RegionSettings("slab" if args.lamella else "all", tuple(args.exclude or ())),
                false_rate=args.false_rate,
            )
        for names in written:
            print_line(str(names.post_processed_mask if steps else names.mask))
