"""Commands beside predict, train and export: each module adds its parser, and does its work when it is called.

A module has `add(commands)`, which describes its command and names its `run` by `set_defaults(run=...)`, and
`run(args)`, which raises `EtsamError`s. At import it takes nothing but the standard library, so that `etsam --help`
answers at once. `args.settings` holds the KEY=VALUE arguments of commands that take some.
"""

from typing import Any

from etsam.commands import (
    benchmark,
    collect,
    compare,
    data_check,
    data_copick_store,
    data_manifest,
    inspect_,
    points,
    polnet,
    robustness,
    simulate,
    weights,
)

DATA_COMMANDS: tuple[Any, ...] = (collect, simulate, polnet, data_manifest, data_check, data_copick_store)
"""Modules of `etsam data ...`."""

OTHER_COMMANDS: tuple[Any, ...] = (inspect_, weights, compare, points, benchmark, robustness)
"""Modules of further commands of `etsam`."""
