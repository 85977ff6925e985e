"""Console command `etsam`: the flags of the published tool become Hydra overrides of the same run functions.

Start-up imports nothing but the standard library; Hydra, torch and the rest come with the command that needs them.
"""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

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
    measure,
    points,
    robustness,
    simulate,
    simulate_polnet,
    threshold,
    train,
)
from etsam.cli.flags import (
    add_region_flags,
    add_running_flags,
    add_segmentation_flags,
    add_settings_flag,
    running_overrides,
    segmentation_overrides,
    threshold_value,
)
from etsam.cli.postprocess_flags import add_postprocess_flags, postprocess_overrides
from etsam.cli.wording import InFlags, did_you_mean, flags_of, unknown_word
from etsam.paths import read_names_as_utf8
from etsam.published_names import NORMALIZATIONS, PROMPTS

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
    measure.add,
    points.add,
    benchmark.add,
    robustness.add,
    doctor.add,
)
_GROUPS = {
    "segment": ("predict", "threshold", "postprocess", "measure", "inspect", "weights", "doctor"),
    "train": ("train", "finetune", "export"),
    "judge": ("evaluate", "compare", "points", "robustness", "benchmark"),
    "data": ("data",),
}
"""Commands as the help groups them; one that is in none comes last."""

_WITH_CONFIG = ("predict", "train", "evaluate")  # commands whose settings `--settings` shows
_OFFLINE = "ETSAM_OFFLINE"  # read by etsam/download.py
_OVERRIDE = re.compile(r"^[+~]{0,2}[A-Za-z_][\w./@]*=")


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
    if args.also:
        overrides.append("also=[" + ",".join(quote(item) for item in args.also) + "]")
    overrides += _names(args)
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


def _names(args: argparse.Namespace) -> list[str]:
    """Overrides of the flags that name something; groups first, since what follows overrides their values."""
    overrides = [] if args.output_dir is None else [f"output_dir={quote(args.output_dir)}"]
    return overrides + ([] if args.weights is None else [f"weights={args.weights}"])


def evaluate_overrides(args: argparse.Namespace, items: Sequence[str]) -> list[str]:
    """Hydra overrides for the flags and arguments of `etsam evaluate`; an argument without `=` is the manifest."""
    settings = [item for item in items if _OVERRIDE.match(item) and not os.path.exists(item)]
    manifests = [item for item in items if item not in settings]
    if len(manifests) > 1:
        raise ValueError(f"{manifests[1]} is one manifest too many; predictions are named by --predictions")
    overrides = [f"data.manifest={quote(manifest)}" for manifest in manifests] + _names(args)
    if args.predictions is not None:
        overrides.append(f"predictions={quote(args.predictions)}")
    if args.threshold is not None:
        stored = args.predictions is not None or any(item.startswith("predictions=") for item in settings)
        key = "prediction_threshold" if stored else "threshold" if args.threshold == "auto" else "stage2.threshold"
        overrides.append(f"{key}={args.threshold}")
    return overrides + running_overrides(args) + settings


class _Parser(argparse.ArgumentParser):
    """Ends with status 1 and one line, as every error of the program does."""

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split())
        self.exit(1, f"etsam: error: {text}{' See' if text.endswith('?') else '; see'} `{self.prog} --help`.\n")

    def _check_value(self, action: argparse.Action, value: str) -> None:
        if action.choices is None or value in action.choices:
            return
        meant = did_you_mean(value, list(action.choices))
        allowed = f"did you mean {meant}?" if meant else f"allowed: {', '.join(map(str, action.choices))}"
        what = f"no command {value}" if action.option_strings == [] else f"no {action.option_strings[0]} {value}"
        self.error(f"there is {what}; {allowed}")


class _Program(_Parser):
    """The parser of all commands, which shows them in groups."""

    def format_help(self) -> str:
        """Groups of commands with what each is for."""
        listed = {action.dest: str(action.help) for action in _commands(self)._choices_actions}
        others = {"other": tuple(name for name in listed if not any(name in names for names in _GROUPS.values()))}
        lines = [
            f"{self.description}\n",
            "  etsam predict tomogram.mrc      the mask, a picture and a record in results/",
        ]
        for group, names in (_GROUPS | others).items():
            shown = {name: listed[name] for name in names if name in listed}
            if group == "data" and "data" in shown:
                parts = _commands(_commands(self).choices["data"])._choices_actions
                shown = {f"data {part.dest}": str(part.help) for part in parts}
            lines += [f"\n{group}:"] * bool(shown) + [f"  {name:<22} {purpose}" for name, purpose in shown.items()]
        lines.append("\n`etsam COMMAND --help` shows the flags of one; `etsam --version`.\n")
        return "\n".join(lines)


def _commands(parser: argparse.ArgumentParser) -> Any:
    """The commands of a parser, as argparse keeps them."""
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line of `etsam`."""
    parser = _Program("etsam", description="Segment cell membranes in cryo-electron tomograms.")
    parser.add_argument("--version", action="version", version=f"etsam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    predict = add_command(
        commands,
        "predict",
        help="tomogram -> mask",
        usage="etsam predict TOMOGRAM ... [flags] [KEY=VALUE ...]",
        description="Segment tomograms. Any further KEY=VALUE sets what `etsam predict --settings` lists.",
    )
    predict.add_argument(
        "inputs",
        nargs="+",
        metavar="TOMOGRAM",
        help="files, folders, 'patterns', text lists, URLs: MRC or OME-Zarr; KEY=VALUE settings may follow",
    )
    # a threshold may be -1e-3; argparse alone would take that for a flag
    predict._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
    add_segmentation_flags(predict)
    add_running_flags(predict, "results")
    add_settings_flag(predict)
    published = predict.add_argument_group("as the published tool")
    published.add_argument(
        "--split-processing",
        action="store_true",
        help="segment each quarter of a slice on its own: separates membranes that lie close together (slower)",
    )
    published.add_argument("--stage1-prompt", choices=[name for name in PROMPTS if name != "etsam_stage1_partial"])
    published.add_argument("--stage2-prompt", choices=list(PROMPTS))
    published.add_argument("--normalize-method", choices=list(NORMALIZATIONS))
    add_postprocess_flags(predict)
    predict.add_argument("--measure", action="store_true", help="then measure the membranes, as `etsam measure`")

    post = add_command(
        commands,
        "postprocess",
        help="mask -> cleaned mask",
        description="Clean a mask. Any further KEY=VALUE sets what configs/postprocess.yaml lists, such as workers=2.",
    )
    post.add_argument("input_mask", help="mask, MRC or OME-Zarr")
    post.add_argument("output_mask", type=Path, help="where the cleaned mask goes")
    add_postprocess_flags(post)
    add_region_flags(post)
    post.add_argument("--tomogram", metavar="FILE", help="of the mask, for --lamella and --exclude")
    post.add_argument("--overwrite", action="store_true", help="replace the output if it exists")

    train.add(commands)

    evaluate = add_command(
        commands,
        "evaluate",
        help="predictions and masks -> scores and a report",
        usage="etsam evaluate MANIFEST [flags] [KEY=VALUE ...]",
        description="Score predictions against masks. Any further KEY=VALUE sets what `etsam evaluate --settings` "
        "lists.",
    )
    evaluate.add_argument(
        "settings", nargs="*", metavar="MANIFEST", help="CSV of tomograms and masks; KEY=VALUE settings may follow"
    )
    evaluate.add_argument("--predictions", metavar="DIR", help="masks or logits that are there; without: predict now")
    evaluate.add_argument("--threshold", type=threshold_value, metavar="T", help="logits above are membrane; or auto")
    evaluate._negative_number_matcher = predict._negative_number_matcher
    add_running_flags(evaluate, "evaluation")
    add_settings_flag(evaluate)

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
    if argv is None:
        read_names_as_utf8()
    parser = build_parser()
    given = list(sys.argv[1:] if argv is None else argv)
    shown = _parser_named(parser, given)
    if not given or (shown is not None and given in (["data"], ["weights"])):
        (shown or parser).print_help()
        parser.exit(0)
    if given[0] in _WITH_CONFIG and any(item.partition("=")[0] == "--settings" for item in given):
        _show_settings(given)
        return
    args, rest = parser.parse_known_args(given)
    command = shown or parser
    items = [*rest, *getattr(args, "settings", [])]
    only_settings = args.command not in ("predict", "evaluate")
    with_settings = ("predict", "postprocess", "train", "evaluate")
    takes_settings = args.command in with_settings or getattr(args, "takes_settings", False)
    unknown = [item for item in items if item.startswith("-") or (only_settings and not _OVERRIDE.match(item))]
    if unknown or (rest and not takes_settings):
        word = [*unknown, *rest][0]
        after = next((item for item in given[given.index(word) + 1 :] if not item.startswith("-")), "")
        command.error(unknown_word(word, command, _settings_of(args.command), after))
    args.settings = items
    try:
        if args.command == "predict":
            overrides = predict_overrides(args, rest)
            _refuse_if_nothing_is_there(args, rest)
            run = partial(_run_config, "predict", overrides, _predict_and_measure if args.measure else None)
        elif args.command == "postprocess":
            alone = "none" if args.lamella or args.exclude else "all"  # leaving out, if no other step is asked for
            default = None if any(item.startswith("postprocess=") for item in rest) else alone
            run = partial(_postprocess, args, postprocess_overrides(args, default) + rest)
        elif args.command == "train":
            if not items and args.list is None:
                raise ValueError("no settings; such as experiment=nano_stage1 (`etsam train --list` shows all)")
            run = partial(train.run, args, items)
        elif args.command == "evaluate":
            run = partial(_run_config, "evaluate", evaluate_overrides(args, items))
        else:
            run = partial(_command, args)
    except ValueError as error:
        command.error(str(error))
    idle = _begin(args.command, command, [*items, *getattr(args, "inputs", [])])
    before = os.environ.get(_OFFLINE)
    if getattr(args, "offline", False):
        os.environ[_OFFLINE] = "1"
    try:
        run()
    except KeyboardInterrupt:  # before the run, which has its own way, while libraries are imported
        idle()
        parser.exit(130, "etsam: error: interrupted before anything was written.\n")
    finally:
        idle()
        os.environ.pop(_OFFLINE, None) if before is None else os.environ.update({_OFFLINE: before})


def _parser_named(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.ArgumentParser | None:
    """The parser of the command that is typed, `data collect` included; None if there is none."""
    found = None
    for word in given:
        try:
            found = _commands(found or parser).choices[word]
        except (StopIteration, KeyError):
            return found
    return found


def _begin(command: str, parser: argparse.ArgumentParser, typed: Sequence[str]) -> Callable[[], None]:
    """Give a sign of life before the slow imports, and let messages speak in the words that were typed.

    What is returned takes the sign away.
    """
    from etsam import screen

    screen.speak(InFlags(flags_of(parser), typed))
    if command in ("predict", "evaluate", "train", "finetune", "robustness"):
        screen.working("loading the program ...")
    return screen.idle


def _show_settings(given: Sequence[str]) -> None:
    """`--settings [WORD]`, wherever it stands."""
    from etsam.app import exit_with_error
    from etsam.cli.settings_list import print_settings
    from etsam.errors import ConfigError

    place = next(at for at, item in enumerate(given) if item.partition("=")[0] == "--settings")
    word = given[place].partition("=")[2] or next((item for item in given[place + 1 :] if item[0] != "-"), "")
    try:
        print_settings(given[0], word)
    except ConfigError as error:
        exit_with_error(str(error))


def _settings_of(command: str) -> list[str]:
    """Keys of the settings of a command, to know one that was typed as a flag."""
    if command not in _WITH_CONFIG:
        return []
    from etsam.cli.settings_list import settings_of_config
    from etsam.paths import resource_path

    return [setting.key for setting in settings_of_config(resource_path("configs"), command)]


def _refuse_if_nothing_is_there(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """End at once if none of the files that were typed is there, before seconds of imports."""
    typed = [item for item in [*args.inputs, *rest] if os.path.exists(item) or not _OVERRIDE.match(item)]
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


def _run_config(
    config: str,
    overrides: Sequence[str],
    run: "Callable[[DictConfig], object] | None" = None,
) -> None:
    """Compose a config with overrides and run it under the guard, as its script does."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from etsam.app import compose_config, exit_with_error, explain, reporting_errors
    from etsam.weights.store import with_automatic_weights

    try:
        cfg = compose_config(
            config, with_automatic_weights(overrides) if config in ("predict", "evaluate") else overrides
        )
    except (HydraException, OmegaConfBaseException) as error:
        if "debug=true" in overrides:
            traceback.print_exc()
        exit_with_error(explain(error, overrides))
    if run is None:
        room = {"predict": "prediction", "evaluate": "evaluation"}[config]
        run = import_module(f"etsam.{room}.run").run
    reporting_errors(run, cfg)


def _predict_and_measure(cfg: "DictConfig") -> None:
    measure.require_extra()  # before the hours of a prediction
    import_module("etsam.prediction.run").run(cfg)
    measure.after_prediction(cfg)


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
        from etsam.errors import ConfigError
        from etsam.postprocess.regions import RegionSettings, regions_of_file
        from etsam.postprocess.steps import postprocess_file
        from etsam.volume import locate

        check_values(cfg, "postprocess")
        steps = list(instantiate(cfg.postprocess, _convert_="all").values())
        regions = RegionSettings("slab" if args.lamella else "all", tuple(args.exclude or ()))
        if regions.wanted != (args.tomogram is not None):
            raise ConfigError("--tomogram FILE goes with --lamella or --exclude, which look at the tomogram.")
        if regions.wanted:
            steps.insert(0, regions_of_file(locate(args.tomogram), regions))
        source = locate(args.input_mask)
        postprocess_file(source, args.output_mask, steps, overwrite=args.overwrite, workers=cfg.workers)

    _run_config("postprocess", [*overrides, f"debug={str(args.debug).lower()}"], run)
