"""Console command `etsam`: the flags of the published tool become Hydra overrides of the same run functions.

Start-up imports nothing but the standard library; Hydra, torch and the rest come with the command that needs them.
"""

import argparse
import os
import re
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from etsam._version import __version__
from etsam.cli import (
    add_command,
    benchmark,
    check,
    compare,
    copick_store,
    demo,
    doctor,
    download,
    finetune,
    inspect,
    manifest,
    points,
    robustness,
    simulate,
    simulate_polnet,
    threshold,
    train,
)
from etsam.cli.postprocess_flags import add_postprocess_flags, postprocess_overrides

if TYPE_CHECKING:
    from omegaconf import DictConfig

_DATA_COMMANDS = (
    demo.add,
    download.add_collect,
    simulate.add,
    simulate_polnet.add,
    manifest.add,
    check.add,
    copick_store.add,
)
_COMMANDS = (
    threshold.add,
    inspect.add,
    finetune.add,
    download.add_weights,
    compare.add,
    points.add,
    benchmark.add,
    robustness.add,
    doctor.add,
)
_OVERRIDE = re.compile(r"^[+~]{0,2}[A-Za-z_][\w./@]*=")
_PROMPTS = {"zero": "zero", "grid": "grid", "grid_zero": "grid_zero", "etsam_stage1_partial": "stage1_mask"}
_NORMALIZE = {"min_max_positive_values": "min_max_positive", "softplus_minmax": "softplus_minmax", "robust": "robust"}


def quote(text: str) -> str:
    """Write a value so that Hydra's override grammar takes it literally, whatever characters it has."""
    text = re.sub(r"(\\*)\$\{", lambda m: m.group(1) * 2 + r"\${", text)  # else OmegaConf would resolve it
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m.group(1) * 2 + r"\'" * bool(m.group(2)), text) + "'"


def predict_overrides(args: argparse.Namespace, rest: Sequence[str] = ()) -> list[str]:
    """Hydra overrides for the flags and arguments of `etsam predict`; `rest` are arguments between and after flags."""
    inputs: list[str] = []
    extra: list[str] = []
    for item in [*args.inputs, *rest]:
        if not item:
            raise ValueError("a tomogram's name is empty (a variable of your shell or script that is not set?)")
        is_override = not os.path.exists(item) and _OVERRIDE.match(item)
        (extra if is_override else inputs).append(item)
    overrides = []
    if inputs:
        overrides.append("input=[" + ",".join(quote(item) for item in inputs) + "]")
    if args.output_dir is not None:
        overrides.append(f"output_dir={quote(args.output_dir)}")
    # groups first: what follows overrides their values
    if args.weights is not None:
        overrides.append(f"weights={args.weights}")
    if args.normalize_method is not None:
        overrides.append(f"normalize={_NORMALIZE[args.normalize_method]}")
    for stage in ("stage1", "stage2"):
        prompt = getattr(args, f"{stage}_prompt")
        if prompt is not None:
            overrides.append(f"prompt@{stage}.prompt={_PROMPTS[prompt]}")
    if args.split_processing:
        overrides.append("tiles=split2x2")
    overrides += postprocess_overrides(args)
    if args.logit_threshold is not None:
        overrides.append(f"stage2.threshold={args.logit_threshold}")
    for flag, key in (
        ("store_logits", "write_logits"),
        ("overwrite", "overwrite"),
        ("resume", "resume"),
        ("debug", "debug"),
    ):
        if getattr(args, flag):
            overrides.append(f"{key}=true")
    return overrides + extra


class _Parser(argparse.ArgumentParser):
    """Ends with status 1 and one line, as every error of the program does."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"etsam: error: {' '.join(message.split())}; see `{self.prog} --help`.\n")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line of `etsam`."""
    parser = _Parser("etsam", description="Segment cell membranes in cryo-electron tomograms.")
    parser.add_argument("--version", action="version", version=f"etsam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predict = add_command(
        commands,
        "predict",
        help="tomogram -> mask",
        description="Segment tomograms. Any further KEY=VALUE sets what configs/predict.yaml and segmenter.yaml list.",
    )
    predict.add_argument(
        "inputs",
        nargs="+",
        metavar="TOMOGRAM",
        help="files, folders, 'patterns', text lists, URLs: MRC or OME-Zarr; KEY=VALUE settings may follow",
    )
    # a threshold may be -1e-3; argparse alone would take that for a flag
    predict._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
    predict.add_argument("--output-dir", metavar="DIR", help="where outputs go (results)")
    predict.add_argument("--weights", metavar="NAME", help="nano (default), etsam_v1 or files")
    predict.add_argument(
        "--logit-threshold", type=float, metavar="T", help="logits above are membrane (nano 0.5, etsam_v1 -0.25)"
    )
    predict.add_argument("--store-logits", action="store_true", help="also write the logits")
    predict.add_argument(
        "--split-processing", action="store_true", help="four quadrants for themselves, for closely apposed membranes"
    )
    predict.add_argument("--stage1-prompt", choices=[name for name in _PROMPTS if name != "etsam_stage1_partial"])
    predict.add_argument("--stage2-prompt", choices=list(_PROMPTS))
    predict.add_argument("--normalize-method", choices=list(_NORMALIZE))
    add_postprocess_flags(predict)
    predict.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    predict.add_argument("--resume", action="store_true", help="skip tomograms that are complete")

    post = add_command(
        commands,
        "postprocess",
        help="mask -> cleaned mask",
        description="Clean a mask. Any further KEY=VALUE sets what configs/postprocess.yaml lists, such as workers=2.",
    )
    post.add_argument("input_mask", help="mask, MRC or OME-Zarr")
    post.add_argument("output_mask", type=Path, help="where the cleaned mask goes")
    add_postprocess_flags(post)
    post.add_argument("--overwrite", action="store_true", help="replace the output if it exists")

    train.add(commands)

    evaluate = commands.add_parser(
        "evaluate",
        help="predictions and masks -> scores",
        description="Score predictions against masks. KEY=VALUE sets what configs/evaluate.yaml lists.",
    )
    evaluate.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="such as data.manifest=manifest.csv")

    export = add_command(commands, "export", run=_export, help="checkpoint of a training run -> small weights file")
    export.add_argument("checkpoint", type=Path, help="a .ckpt of a run, or any other checkpoint")
    export.add_argument("weights", type=Path, help="where the weights go, a .safetensors file")
    export.add_argument("--half", action="store_true", help="store 16 bits a number: half the size, slightly rounded")
    export.add_argument("--overwrite", action="store_true", help="replace the output if it exists")

    data = commands.add_parser("data", help="tomograms and masks: download, simulate, list, check")
    data_commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    for add in _DATA_COMMANDS:
        add(data_commands)
    for add in _COMMANDS:
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    items = [*rest, *getattr(args, "settings", [])]
    only_settings = args.command != "predict"
    with_settings = ("predict", "postprocess", "train", "evaluate")
    takes_settings = args.command in with_settings or getattr(args, "takes_settings", False)
    unknown = [item for item in items if item.startswith("-") or (only_settings and not _OVERRIDE.match(item))]
    if unknown or (rest and not takes_settings):
        parser.error(f"unknown argument {[*unknown, *rest][0]}")
    args.settings = items
    try:
        if args.command == "predict":
            run = partial(_run_config, "predict", predict_overrides(args, rest))
        elif args.command == "postprocess":
            default = None if any(item.startswith("postprocess=") for item in rest) else "all"
            run = partial(_postprocess, args, postprocess_overrides(args, default) + rest)
        elif args.command == "train":
            if not items and args.list is None:
                raise ValueError("no settings; such as experiment=nano_stage1 (`etsam train --list` shows all)")
            run = partial(train.run, args, items)
        elif args.command == "evaluate":
            run = partial(_run_config, "evaluate", items)
        else:
            run = partial(_command, args)
    except ValueError as error:
        parser.error(str(error))
    try:
        run()
    except KeyboardInterrupt:  # before the run, which has its own way, while libraries are imported
        parser.exit(130, "etsam: error: interrupted before anything was written.\n")


def _run_config(
    config: str,
    overrides: Sequence[str],
    run: "Callable[[DictConfig], object] | None" = None,
) -> None:
    """Compose a config with overrides and run it under the guard, as its script does."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from etsam.app import compose_config, exit_with_error, explain, reporting_errors

    try:
        cfg = compose_config(config, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        if "debug=true" in overrides:
            traceback.print_exc()
        exit_with_error(explain(error, overrides))
    if run is None:
        room = {"predict": "prediction", "evaluate": "evaluation"}[config]
        run = import_module(f"etsam.{room}.run").run
    reporting_errors(run, cfg)


def _command(args: argparse.Namespace) -> None:
    """Run a command of `etsam.cli` under the guard."""
    from omegaconf import OmegaConf

    from etsam.app import reporting_errors

    stop_at_once = getattr(args, "stop_at_once", True)
    reporting_errors(lambda cfg: args.run(args), OmegaConf.create({"debug": args.debug}), stop_at_once=stop_at_once)


def _export(args: argparse.Namespace) -> None:
    from etsam.network.checkpoint import export_weights

    export_weights(args.checkpoint, args.weights, half=args.half, overwrite=args.overwrite)


def _postprocess(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    def run(cfg: "DictConfig") -> None:
        from hydra.utils import instantiate

        from etsam.app import check_values
        from etsam.postprocess.steps import postprocess_file
        from etsam.volume import locate

        check_values(cfg, "postprocess")
        steps = list(instantiate(cfg.postprocess, _convert_="all").values())
        source = locate(args.input_mask)
        postprocess_file(source, args.output_mask, steps, overwrite=args.overwrite, workers=cfg.workers)

    _run_config("postprocess", [*overrides, f"debug={str(args.debug).lower()}"], run)
