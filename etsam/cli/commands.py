"""Commands beside predict, train and export: each module adds its parser, and does its work when it is called.

A module has `add(commands)`, which describes its command and names its `run` by `set_defaults(run=...)`, and
`run(args)`, which raises `EtsamError`s. At import it takes nothing but the standard library, so that `etsam --help`
answers at once. `args.settings` holds the KEY=VALUE arguments of commands that take some.
"""

from typing import Any

from etsam.cli import (
    benchmark,
    check,
    collect,
    compare,
    copick_store,
    inspect,
    manifest,
    points,
    robustness,
    simulate,
    simulate_polnet,
    weights,
)

DATA_COMMANDS: tuple[Any, ...] = (collect, simulate, simulate_polnet, manifest, check, copick_store)
"""Modules of `etsam data ...`."""

OTHER_COMMANDS: tuple[Any, ...] = (inspect, weights, compare, points, benchmark, robustness)
"""Modules of further commands of `etsam`."""
