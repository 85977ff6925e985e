"""Organisms of the published tomograms, whose names are numbers of runs."""

from collections.abc import Mapping
from functools import cache

import pandas as pd

from etsam.paths import resource_paths


@cache
def organisms() -> Mapping[str, str]:
    """`dataset_id/run_id` -> organism, of the published training and test data."""
    found: dict[str, str] = {}
    for name in ("dataset.csv", "testset.csv"):
        for path in resource_paths("data", name)[:1]:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            names = table["dataset_id"] + "/" + table["run_id"]
            found |= dict(zip(names, table["organism_name"], strict=True))
    return found


def short_species(organism: str) -> str:
    """Species as figures have room for it.

    Examples
    --------
    >>> short_species("Schizosaccharomyces pombe"), short_species("Nostoc sp. PCC 7120")
    ('S. pombe', 'Nostoc sp.')
    """
    genus, _, rest = organism.partition(" ")
    species = rest.partition(" ")[0]
    if not species.islower():  # no species but a name, as viruses have
        return organism
    return f"{genus} {species}" if species.endswith(".") else f"{genus[0]}. {species}"
