"""`etsam predict`: tomograms -> masks."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from etsam.cli import add_command, measure
from etsam.cli.flags import (
    add_running_flags,
    add_segmentation_flags,
    add_settings_flag,
    running_overrides,
    segmentation_overrides,
    take_negative_numbers,
)
from etsam.cli.overrides import is_setting, named_overrides, quote, run_config
from etsam.cli.postprocess_flags import add_postprocess_flags, postprocess_overrides
from etsam.published_names import NORMALIZATIONS, PROMPTS

if TYPE_CHECKING:
    from omegaconf import DictConfig


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "predict",
        help="tomogram -> mask",
        usage="etsam predict TOMOGRAM ... [flags] [KEY=VALUE ...]",
        description="Segment tomograms. Any further KEY=VALUE sets what `etsam predict --settings` lists.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="TOMOGRAM",
        help="files, folders, 'patterns', text lists, URLs: MRC or OME-Zarr; KEY=VALUE settings may follow",
    )
    take_negative_numbers(parser)
    add_segmentation_flags(parser)
    add_running_flags(parser, "results")
    add_settings_flag(parser)
    published = parser.add_argument_group("as the published tool")
    published.add_argument(
        "--split-processing",
        action="store_true",
        help="segment each quarter of a slice on its own: separates membranes that lie close together (slower)",
    )
    published.add_argument("--stage1-prompt", choices=[name for name in PROMPTS if name != "etsam_stage1_partial"])
    published.add_argument("--stage2-prompt", choices=list(PROMPTS))
    published.add_argument("--normalize-method", choices=list(NORMALIZATIONS))
    add_postprocess_flags(parser)
    parser.add_argument("--measure", action="store_true", help="then measure the membranes, as `etsam measure`")

    parser.set_defaults(prepare=prepare, takes_settings=True, takes_files=True)


def prepare(args: argparse.Namespace, rest: Sequence[str]) -> Callable[[], None]:
    """The run; `rest` are arguments between and after flags. Raises ValueError if a flag's value is none."""
    overrides = predict_overrides(args, rest)
    _refuse_if_nothing_is_there(args, rest)
    return partial(run_config, "predict", overrides, _predict_and_measure if args.measure else None)


def predict_overrides(args: argparse.Namespace, rest: Sequence[str] = ()) -> list[str]:
    """Hydra overrides for the flags and arguments of `etsam predict`; `rest` are arguments between and after flags."""
    inputs: list[str] = []
    extra: list[str] = []
    for item in [*args.inputs, *rest]:
        if not item:
            raise ValueError("a tomogram's name is empty (a variable of your shell or script that is not set?)")
        (extra if is_setting(item) else inputs).append(item)
    overrides = []
    if inputs:
        overrides.append("input=[" + ",".join(quote(item) for item in inputs) + "]")
    if args.also:
        overrides.append("also=[" + ",".join(quote(item) for item in args.also) + "]")
    overrides += named_overrides(args)
    if args.normalize_method is not None:
        overrides.append(f"normalize={NORMALIZATIONS[args.normalize_method]}")
    for stage in ("stage1", "stage2"):
        prompt = getattr(args, f"{stage}_prompt")
        if prompt is not None:
            overrides.append(f"prompt@{stage}.prompt={PROMPTS[prompt]}")
    if args.split_processing:
        overrides.append("tiles=split2x2")
    overrides += postprocess_overrides(args)
    if args.logit_threshold is not None:
        key = "threshold" if args.logit_threshold == "auto" else "stage2.threshold"
        overrides.append(f"{key}={args.logit_threshold}")
    overrides += segmentation_overrides(args) + running_overrides(args)
    return overrides + extra


def _refuse_if_nothing_is_there(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """End at once if none of the files that were typed is there, before seconds of imports."""
    typed = [item for item in [*args.inputs, *rest] if not is_setting(item)]
    plain = [item for item in typed if not re.search(r"[*?\[]|://", item)]
    if args.debug or len(plain) < len(typed) or any(os.path.lexists(os.path.expanduser(item)) for item in plain):
        return
    from etsam.app import exit_with_error, explain
    from etsam.errors import InputError
    from etsam.volume import read_volume

    faults = []
    for item in plain:
        try:
            read_volume(item, warn=False)
        except InputError as error:
            faults.append(error)
    if faults and len(faults) == len(plain):
        exit_with_error(explain(faults[0] if len(faults) == 1 else InputError.of("nothing to segment", faults)))


def _predict_and_measure(cfg: "DictConfig") -> None:
    measure.require_extra()  # before the hours of a prediction
    import_module("etsam.prediction.run").run(cfg)
    measure.after_prediction(cfg)
