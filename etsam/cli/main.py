"""Console command `etsam`: its commands, and what is said of a command line that fits none of them.

Start-up imports nothing but the standard library; Hydra, torch and the rest come with the command that needs them.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from etsam._version import __version__
from etsam.cli import (
    benchmark,
    check,
    compare,
    copick_store,
    demo,
    doctor,
    download,
    evaluate,
    export,
    finetune,
    inspect,
    manifest,
    measure,
    points,
    postprocess,
    predict,
    robustness,
    simulate,
    simulate_polnet,
    threshold,
    train,
)
from etsam.cli.overrides import DELETION, SETTING
from etsam.cli.wording import InFlags, did_you_mean, flags_of, unknown_word
from etsam.paths import read_names_as_utf8

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
    predict.add,
    postprocess.add,
    train.add,
    evaluate.add,
    export.add,
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


class _Parser(argparse.ArgumentParser):
    """Ends with status 1 and one line, as every error of the program does."""

    def error(self, message: str) -> NoReturn:
        text = _in_words(" ".join(message.split()))
        self.exit(1, f"etsam: error: {text}{' See' if text.endswith('?') else '; see'} `{self.prog} --help`.\n")

    def _check_value(self, action: argparse.Action, value: str) -> None:
        if action.choices is None or value in action.choices:
            return
        meant = did_you_mean(value, list(action.choices))
        allowed = f"did you mean {meant}?" if meant else f"allowed: {', '.join(map(str, action.choices))}"
        what = f"no command {value}" if action.option_strings == [] else f"no {action.option_strings[0]} {value}"
        self.error(f"there is {what}; {allowed}")


def _in_words(message: str) -> str:
    """Message of argparse about a value, for people: the flag by its long name, numbers as what they are."""
    flag, colon, said = message.partition(": ")
    if not (colon and flag.startswith("argument ")):
        return message
    names = flag.removeprefix("argument ").split("/")
    name = next((one for one in names if one.startswith("--")), names[0])
    if found := re.fullmatch(r"invalid (int|float) value: '(.*)'", said):
        allowed = "a whole number, such as 4" if found[1] == "int" else "such as 13.5, without unit or comma"
        return f"{name} {found[2]} is no number; write {allowed}"
    return f"{name}: {said}"


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
    takes_settings, takes_files = (getattr(args, name, False) for name in ("takes_settings", "takes_files"))
    takes_away = args.command in ("train", "finetune")
    unknown = [
        item
        for item in items
        if item.startswith("-") or not (takes_files or SETTING.match(item) or (takes_away and DELETION.match(item)))
    ]
    if unknown or (rest and not takes_settings):
        word = [*unknown, *rest][0]
        after = next((item for item in given[given.index(word) + 1 :] if not item.startswith("-")), "")
        command.error(unknown_word(word, command, _settings_of(args.command), after))
    args.settings = items
    try:
        run = args.prepare(args, items) if hasattr(args, "prepare") else partial(_command, args)
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


def _command(args: argparse.Namespace) -> None:
    """Run a command of `etsam.cli` under the guard."""
    from omegaconf import OmegaConf

    from etsam.app import reporting_errors

    stop_at_once = getattr(args, "stop_at_once", True)
    reporting_errors(lambda cfg: args.run(args), OmegaConf.create({"debug": args.debug}), stop_at_once=stop_at_once)
