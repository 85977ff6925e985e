"""`etsam evaluate`: predictions and masks -> scores."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from etsam.cli import add_command
from etsam.cli.flags import (
    add_running_flags,
    add_settings_flag,
    running_overrides,
    take_negative_numbers,
    threshold_value,
)
from etsam.cli.overrides import is_setting, named_overrides, quote, run_config


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "evaluate",
        help="predictions and masks -> scores and a report",
        usage="etsam evaluate MANIFEST [flags] [KEY=VALUE ...]",
        description="Score predictions against masks. Any further KEY=VALUE sets what `etsam evaluate --settings` "
        "lists.",
    )
    parser.add_argument(
        "settings", nargs="*", metavar="MANIFEST", help="CSV of tomograms and masks; KEY=VALUE settings may follow"
    )
    parser.add_argument("--predictions", metavar="DIR", help="masks or logits that are there; without: predict now")
    parser.add_argument("--threshold", type=threshold_value, metavar="T", help="logits above are membrane; or auto")
    take_negative_numbers(parser)
    add_running_flags(parser, "evaluation")
    add_settings_flag(parser)

    parser.set_defaults(prepare=prepare, takes_settings=True, takes_files=True)


def prepare(args: argparse.Namespace, items: Sequence[str]) -> Callable[[], None]:
    """The run; `items` are manifest and settings. Raises ValueError if something of them is none."""
    return partial(run_config, "evaluate", evaluate_overrides(args, items))


def evaluate_overrides(args: argparse.Namespace, items: Sequence[str]) -> list[str]:
    """Hydra overrides for the flags and arguments of `etsam evaluate`; an argument without `=` is the manifest."""
    settings = [item for item in items if is_setting(item)]
    manifests = [item for item in items if item not in settings]
    if len(manifests) > 1:
        raise ValueError(f"{manifests[1]} is one manifest too many; predictions are named by --predictions")
    overrides = [f"data.manifest={quote(manifest)}" for manifest in manifests] + named_overrides(args)
    if args.predictions is not None:
        overrides.append(f"predictions={quote(args.predictions)}")
    stored = args.predictions is not None or any(item.startswith("predictions=") for item in settings)
    if stored and args.weights is not None:
        raise ValueError(f"--weights {args.weights} is to predict with, and predictions are there; leave one out")
    if args.threshold is not None:
        key = "prediction_threshold" if stored else "threshold" if args.threshold == "auto" else "stage2.threshold"
        overrides.append(f"{key}={args.threshold}")
    return overrides + running_overrides(args) + settings
