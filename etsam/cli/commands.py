"""Commands beside predict, train and export: each module adds its parser, and does its work when it is called.

A module has `add(commands)`, which describes its command and names its `run` by `set_defaults(run=...)`, and
`run(args)`, which raises `EtsamError`s. At import it takes nothing but the standard library, so that `etsam --help`
answers at once. `args.settings` holds the KEY=VALUE arguments of commands that take some.
"""

from typing import Any

from etsam.cli import (
    benchmark,
    check,
    compare,
    copick_store,
    download,
    finetune,
    inspect,
    manifest,
    points,
    robustness,
    simulate,
    simulate_polnet,
)

DATA_COMMANDS: tuple[Any, ...] = (
    download.add_collect,
    simulate.add,
    simulate_polnet.add,
    manifest.add,
    check.add,
    copick_store.add,
)
"""What adds the parsers of `etsam data ...`."""

OTHER_COMMANDS: tuple[Any, ...] = (
    inspect.add,
    finetune.add,
    download.add_weights,
    compare.add,
    points.add,
    benchmark.add,
    robustness.add,
)
"""What adds those of further commands of `etsam`."""
