"""Overrides of a shipped config from what was typed, and the run of that config."""

import argparse
import os
import re
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

SETTING = re.compile(r"^[+~]{0,2}[A-Za-z_][\w./@]*=")
"""Start of an argument that is a KEY=VALUE."""

DELETION = re.compile(r"^~[A-Za-z_][\w./@]*$")
"""Argument that takes a setting away."""


def is_setting(item: str) -> bool:
    """True for KEY=VALUE, unless a file is called so."""
    return bool(SETTING.match(item)) and not os.path.exists(item)


def quote(text: str) -> str:
    """Write a value so that Hydra's override grammar takes it literally, whatever characters it has."""
    text = re.sub(r"(\\*)\$\{", lambda m: m.group(1) * 2 + r"\${", text)  # else OmegaConf would resolve it
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m.group(1) * 2 + r"\'" * bool(m.group(2)), text) + "'"


def named_overrides(args: argparse.Namespace) -> list[str]:
    """Overrides of the flags that name something; groups first, since what follows overrides their values."""
    overrides = [] if args.output_dir is None else [f"output_dir={quote(args.output_dir)}"]
    return overrides + ([] if args.weights is None else [f"weights={args.weights}"])


def run_config(
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
