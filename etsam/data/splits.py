"""Tomograms -> splits: by chance from a seed, whole tomograms, and copies of one tomogram together."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from etsam.data.manifest import Sample
from etsam.data.measured import fingerprint
from etsam.errors import ConfigError, InputError
from etsam.io import read_volume

SPLITS = ("train", "val", "test")


def parse_shares(text: str) -> tuple[float, float, float]:
    """`0.8,0.1,0.1` -> shares of train, val and test; the third may be left out.

    Raises
    ------
    ConfigError
        If these are not two or three numbers from 0 to 1 with the sum 1.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    valid = len(shares) in (2, 3) and all(0 <= share <= 1 for share in shares) and abs(sum(shares) - 1) < 1e-3
    if not valid:
        raise ConfigError(
            f"--split {text} is not two or three shares of train, val, test with the sum 1, like 0.8,0.1,0.1"
        )
    return (*shares, 0.0)[:3]  # type: ignore[return-value]


def assign_splits(samples: Sequence[Sample], shares: tuple[float, float, float], seed: int = 0) -> list[Sample]:
    """Give each sample a split; the order stays.

    Parameters
    ----------
    samples
        With readable tomograms; their `split` is replaced.
    shares
        Of train, val and test; each that is not 0 gets at least one tomogram.
    seed
        Of the drawing; the same samples and seed give the same splits.

    Raises
    ------
    InputError
        If there are fewer tomograms of different content than splits, or a tomogram cannot be read.
    """
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        with read_volume(sample.tomogram, warn=False) as volume:
            groups.setdefault(fingerprint(volume), []).append(index)
    wanted = [split for split, share in zip(SPLITS, shares, strict=True) if share > 0]
    if len(groups) < len(wanted):
        raise InputError(
            f"{len(groups)} tomograms of different content cannot fill the splits {', '.join(wanted)}; add tomograms, "
            "or set a share to 0, as in --split 0.8,0.2,0"
        )
    counts = _counts(len(groups), shares)
    order = np.random.default_rng(seed).permutation(len(groups))
    names = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    members = list(groups.values())
    split_of = {index: name for group, name in zip(order, names, strict=True) for index in members[group]}
    return [replace(sample, split=split_of[index]) for index, sample in enumerate(samples)]


def _counts(total: int, shares: Sequence[float]) -> list[int]:
    """Numbers near total * share with the sum `total`, at least 1 where the share is not 0 (largest remainders)."""
    exact = [total * share for share in shares]
    counts = [max(math.floor(number + 1e-9), 1) if number > 0 else 0 for number in exact]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        able = [i for i, count in enumerate(counts) if exact[i] > 0 and (step > 0 or count > 1)]
        counts[max(able, key=lambda i: step * (exact[i] - counts[i]))] += step
    return counts
