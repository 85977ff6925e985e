"""`--settings [WORD]`: every KEY=VALUE of a command with what it does, as its config files say."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ENTRY = re.compile(
    r"^(?P<indent> *)(?P<key>[\w.]+):(?: +(?P<value>(?:'[^']*'|\"[^\"]*\"|[^#])*?))?\s*(?: #(?P<comment>.*))?$"
)
_DEFAULT = re.compile(r"^ +- (?P<group>\w+)(?:@(?P<package>[\w.]+))?: (?P<choice>\S+)(?: +#(?P<comment>.*))?$")
_BASE = re.compile(r"^ +- (?P<base>\w+)(?: +#.*)?$")
_SHOWN_BY_NAME = ("net", "logger")  # groups whose settings nobody changes one by one


class Setting(NamedTuple):
    """One setting.

    Attributes
    ----------
    key, value
        As they are typed and as they are by default.
    about
        What it does.
    """

    key: str
    value: str
    about: str


def settings_of_config(configs: Path, name: str) -> list[Setting]:
    """Settings of configs/NAME.yaml, of what it builds on, and of the groups that it chooses from.

    Parameters
    ----------
    configs
        The folder of configs.
    name
        `predict`, `train` or `evaluate`.
    """
    found: dict[str, Setting] = {}
    for setting in _walk(configs, Path(f"{name}.yaml"), ""):
        found[setting.key] = setting if setting.about or setting.key not in found else found[setting.key]
    return list(found.values())


def _walk(configs: Path, file: Path, prefix: str) -> Iterator[Setting]:
    lines = (configs / file).read_text(encoding="utf-8").splitlines()
    if any(line.startswith("# @package _global_") for line in lines[:3]):
        prefix = ""
    groups: list[tuple[str, str, str, str]] = []
    own = list(_entries(lines, prefix))
    for line in lines:
        if found := _BASE.match(line):
            base = file.parent / f"{found['base']}.yaml"
            if (configs / base).is_file():
                yield from _walk(configs, base, prefix)
        elif (found := _DEFAULT.match(line)) and (configs / found["group"]).is_dir():
            groups.append((found["group"], found["package"] or "", found["choice"], (found["comment"] or "").strip()))
    yield from own
    for group, package, choice, comment in groups:
        choices = sorted(path.stem for path in (configs / group).glob("*.yaml") if not path.stem.startswith("_"))
        if group == "paths":
            yield from _walk(configs, Path(group) / f"{choice}.yaml", "")
            continue
        key = f"{group}@{package}" if package else group
        yield Setting(key, choice, f"{comment}{': ' if comment else ''}{', '.join(choices)}")
        if group not in _SHOWN_BY_NAME and (configs / group / f"{choice}.yaml").is_file():
            yield from _walk(configs, Path(group) / f"{choice}.yaml", f"{package or group}.")


def _entries(lines: list[str], prefix: str) -> Iterator[Setting]:
    """Keys with a plain value; what is written as `${...}` follows another setting."""
    path: list[tuple[int, str]] = []
    above = ""
    for line in lines:
        if line.lstrip().startswith("#"):
            above = line.lstrip(" #") if "@package" not in line else ""
            continue
        found = _ENTRY.match(line)
        if found is None:
            above = ""
            continue
        depth, value = len(found["indent"]), (found["value"] or "").strip()
        path = [(indent, key) for indent, key in path if indent < depth]
        about = (found["comment"] or "").strip()
        names = [*(key for _, key in path), found["key"]]
        path.append((depth, found["key"]))
        hidden = names[0] in ("hydra", "defaults") or names[-1].startswith("_") or value.startswith("${")
        if value and not hidden:
            yield Setting(prefix + ".".join(names), value, about or (above if depth else ""))
        above = ""


def print_settings(name: str, word: str = "") -> None:
    """Print a table of settings on standard output, of those that `word` is in, if it is given.

    Raises
    ------
    ConfigError
        If `word` is in none.
    """
    from etsam.cli.console import print_line, print_table
    from etsam.errors import ConfigError
    from etsam.paths import resource_path

    settings = settings_of_config(resource_path("configs"), name)
    shown = [setting for setting in settings if any(word.lower() in text.lower() for text in setting)]
    if not shown:
        raise ConfigError(f"--settings {word}: no setting of {name} has {word} in its name or description.")
    print_table(("KEY", "VALUE", "what it does"), shown)
    print_line(f"\nThey are written KEY=VALUE after the command, such as `etsam {name} ... {shown[0].key}=VALUE`.")
