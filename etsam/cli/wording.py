"""Words of the command line: what was probably meant, and messages in the flags that people type."""

import argparse
import difflib
import re
from collections.abc import Collection, Iterable, Sequence

# what people of other programs type -> what it is called here
_KNOWN_ELSEWHERE = {
    "--device": "--gpu", "--cuda": "--gpu", "--gpus": "--gpu", "--devices": "--gpu", "--cpu": "--gpu cpu",
    "--out": "-o", "--output": "-o", "--out-folder": "-o", "--out-dir": "-o", "--outdir": "-o",
    "--model": "--weights", "--ckpt": "--weights", "--checkpoint": "--weights",
    "--apix": "--voxel-size", "--angpix": "--voxel-size", "--pixel-size": "--voxel-size",
    "--tta": "--better", "--fast": "--quick", "--save-logits": "--store-logits", "--labels": "--instances",
    "--invert": "--membranes bright", "--contrast": "--membranes",
    "segment": "predict", "run": "predict", "infer": "predict", "info": "inspect", "header": "inspect",
    "eval": "evaluate", "score": "evaluate", "test": "evaluate", "download": "weights download",
    "get": "download", "fetch": "download", "fit": "train",
    **{name: f"data {name}" for name in ("demo", "simulate", "collect", "manifest", "check")},
}  # fmt: skip

# setting -> flag that takes its value; a value of None: any
_FLAGS: tuple[tuple[str, str | None, str], ...] = (
    *((key, "true", "--" + key) for key in ("overwrite", "resume", "strict", "force", "debug")),
    ("write_instances", "true", "--instances"),
    ("write_logits", "true", "--store-logits"),
    ("write_uncertainty", "true", "--uncertainty"),
    ("write_page", "false", "--no-page"),
    ("output_dir", None, "--output-dir"),
    ("name", None, "--name"),
    ("threshold", "auto", "--threshold auto"),
    ("false_rate", None, "--false-rate"),
    ("sample", "slab", "--lamella"),
    ("exclude", None, "--exclude"),
    ("stage2.threshold", None, "--at"),
    ("stage2.threshold", None, "--threshold"),
    ("normalize.membranes", None, "--membranes"),
    ("voxel_size", None, "--voxel-size"),
    ("memory_budget_gb", None, "--memory"),
    ("trainer", "cpu", "--gpu cpu"),
    ("weights", None, "--weights"),
    ("slice_stride", "2", "--quick"),
    ("axes", "[z,y,x]", "--better"),
    ("also", None, "--also"),
    ("postprocess", "all", "--post-process"),
    ("tiles", "split2x2", "--split-processing"),
    ("normalize", "softplus_minmax", "--normalize-method softplus_minmax"),
    ("normalize", "robust", "--normalize-method robust"),
)


def did_you_mean(word: str, known: Collection[str]) -> str | None:
    """Entry of `known` that was probably meant by `word`; None if there is none like it."""
    meant = _KNOWN_ELSEWHERE.get(word.lower(), "")
    if meant and any(meant == name or meant.startswith(f"{name} ") for name in known):
        return meant
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """Long flags of a command."""
    return [flag for flag in parser._option_string_actions if flag.startswith("--")]


class InFlags:
    """Messages about settings -> messages about the flags of a command.

    Parameters
    ----------
    flags
        Those that the command has.
    typed
        Settings that were typed as KEY=VALUE; messages keep them.

    Examples
    --------
    >>> InFlags(["--resume"])("set overwrite=true or resume=true")
    'set overwrite=true or --resume'
    """

    def __init__(self, flags: Collection[str], typed: Iterable[str] = ()) -> None:
        kept = {item.partition("=")[0].lstrip("+~") for item in typed}
        self._rules: list[tuple[re.Pattern[str], str]] = []
        if "--memory" in flags and "memory_budget_gb" not in kept:  # people type a unit
            self._rules.append((re.compile(r"memory_budget_gb=([\d.e+-]*\d)"), r"--memory \1GB"))
        for key, value, flag in _FLAGS:
            if flag.partition(" ")[0] not in flags or key in kept:
                continue
            before = rf"(?<![\w.@/-]){re.escape(key)}"
            if value is not None:
                self._rules.append((re.compile(rf"{before}={re.escape(value)}(?!\w|\.\w)"), flag))
            else:
                self._rules.append((re.compile(rf"{before}=(?=[^\s,;)])"), f"{flag} "))
                if "_" in key:  # no English word
                    self._rules.append((re.compile(rf"{before}(?![\w=/-]|\.\w)"), flag))

    def __call__(self, message: str) -> str:
        for pattern, flag in self._rules:
            message = pattern.sub(flag, message)
        return re.sub(r"\bset (?=--\w)", "add ", re.sub(r"\bSet (?=--\w)", "Add ", message))


def unknown_word(word: str, parser: argparse.ArgumentParser, settings: Sequence[str] = (), after: str = "") -> str:
    """Answer to an argument that a command does not know.

    Parameters
    ----------
    word
        As it was typed.
    parser
        Of the command.
    settings
        Keys that the command takes as KEY=VALUE.
    after
        What was typed next.
    """
    name, equals, value = word.partition("=")
    meant = did_you_mean(name, flags_of(parser)) if name.startswith("-") else None
    if meant is None and (key := name.lstrip("-").replace("-", "_")) in settings:
        return f"unknown argument {word}; a setting is written {key}={value or after or 'VALUE'}"
    hint = f"; did you mean {meant}{equals if ' ' not in meant else ''}{value}?" if meant else ""
    return f"unknown argument {word}{hint}"
