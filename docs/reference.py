"""Text of the reference pages, made of help texts and configs, so that it cannot differ from the program."""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from etsam.cli.main import build_parser
from etsam.cli.settings_list import settings_of_config
from etsam.measure.columns import COLUMNS, CONTACT_COLUMNS
from etsam.paths import resource_path


def command_line() -> str:
    """Help text of every command, as Markdown."""
    os.environ["COLUMNS"] = "96"  # argparse asks for the terminal's width
    return "\n".join(_help_of(build_parser(), "##"))


def _help_of(parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    yield f"{heading} {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```\n"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _help_of(command, heading if heading == "###" else heading + "#")


_CONFIGS = {
    "predict": "etsam predict",
    "evaluate": "etsam evaluate, beside those of etsam predict",
    "train": "etsam train, etsam finetune",
    "simulate": "etsam data simulate",
    "robustness": "etsam robustness, beside those of etsam evaluate and etsam data simulate",
    "postprocess": "etsam postprocess",
}


def settings() -> str:
    """Every setting with its default and comment, as Markdown."""
    configs = resource_path("configs")
    told: set[str] = set()
    parts = []
    for name, commands in _CONFIGS.items():
        found = settings_of_config(configs, name)
        new = [one for one in found if f"{one.key}={one.value}" not in told]
        told |= {f"{one.key}={one.value}" for one in found}
        rows = [f"| `{one.key}` | `{one.value}` | {_cell(one.about)} |" for one in new]
        parts += [f"## {commands}\n", "| setting | default | what it does |", "|---|---|---|", *rows, ""]
    experiments = [
        f"| `{path.stem}` | {_cell(_first_comment(path))} |" for path in sorted((configs / "experiment").glob("*.yaml"))
    ]
    parts += ["## experiment= of etsam train\n", "| name | what it is |", "|---|---|", *experiments]
    return "\n".join(parts)


def measurements() -> str:
    """Columns of the tables of `etsam measure`, as Markdown."""
    parts = []
    for name, columns in (("NAME_membranes.csv", COLUMNS), ("NAME_contacts.csv", CONTACT_COLUMNS)):
        rows = [f"| `{column}` | {_cell(about)} |" for column, about in columns.items()]
        parts += [f"## {name}\n", "| column | what it is |", "|---|---|", *rows, ""]
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line.lstrip("# ") for line in lines if line.startswith("# ") and "@package" not in line)


TEXTS: dict[str, Callable[[], str]] = {"command-line": command_line, "settings": settings, "measurements": measurements}
"""Function for each `<!-- generated: NAME -->`."""
