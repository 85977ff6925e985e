"""Console command `etsam`: one module for each command, with `add(commands)` and `run(args)`; `main` finds them.

`run` raises `EtsamError`s. Commands with a config have `prepare(args, items)` in its place, which gives the run, or
raises ValueError if what was typed contradicts itself. At import a module takes nothing but the standard library, so
that `etsam --help` answers at once. `args.settings` holds the KEY=VALUE arguments of commands that take some.
"""

import argparse
from collections.abc import Callable, Iterable
from typing import Any


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None] | None = None, **texts: Any
) -> argparse.ArgumentParser:
    """Parser of a command with what all of them share; `run` is what `main` calls, `texts` are argparse's."""
    parser: argparse.ArgumentParser = commands.add_parser(name, **texts)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def refuse_missing(given: Iterable[str]) -> None:
    """Refuse volumes that are not there, before anything heavy is imported or any of the others is worked at.

    Raises
    ------
    InputError
        If one is missing.
    """
    from etsam.volume import locate, read_volume
    from etsam.volume.location import exists

    for item in given:
        if not exists(locate(item)):
            read_volume(locate(item))  # says what is wrong
