"""Sharing tomograms out over train, val and test: by chance from a seed, copies of one tomogram together."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from etsam.data.manifest import SPLITS, Sample
from etsam.data.measured import fingerprint
from etsam.errors import ConfigError, InputError
from etsam.volume import read_volume

log = logging.getLogger(__name__)


def parse_split(text: str) -> tuple[float, ...]:
    """Numbers of a text such as "0.8,0.2".

    Raises
    ------
    ConfigError
        If it holds something else than numbers.
    """
    try:
        return tuple(float(fraction) for fraction in text.split(","))
    except ValueError as error:
        raise ConfigError(f"split {text}: numbers with commas between them are needed, such as 0.8,0.2") from error


def check_split(split: Sequence[float]) -> tuple[float, ...]:
    """Shares of train, val (and test) as they are.

    Raises
    ------
    ConfigError
        If they are not two or three numbers from 0 to 1 that sum to 1.
    """
    fits = len(split) in (2, 3) and all(0 <= fraction <= 1 for fraction in split)
    if not fits or not math.isclose(sum(split), 1, abs_tol=1e-6):
        text = ",".join(f"{fraction:g}" for fraction in split)
        raise ConfigError(
            f"split {text}: two or three fractions from 0 to 1 that sum to 1, such as 0.8,0.2 (train, val)"
        )
    return tuple(split)


def draw_splits(count: int, fractions: Sequence[float], seed: int) -> list[str]:
    """Draw a split for each of `count` tomograms; one whose fraction is not 0 gets at least one if it can.

    Parameters
    ----------
    count
        Tomograms.
    fractions
        Of train, val (and test), which sum to 1.
    seed
        Of the draw.
    """
    numbers = share_out(count, fractions)
    wanting = [i for i, fraction in enumerate(fractions) if fraction > 0 and numbers[i] == 0]
    spare = count - sum(number > 0 for number in numbers)
    for i in wanting[:spare]:
        numbers[numbers.index(max(numbers))] -= 1
        numbers[i] += 1
    missing = [
        name for name, fraction, number in zip(SPLITS, fractions, numbers, strict=False) if fraction > 0 and not number
    ]
    if missing:
        log.warning("too few tomograms (%d) for a split %s", count, " and ".join(missing))
    names = [name for name, number in zip(SPLITS, numbers, strict=False) for _ in range(number)]
    order = np.random.default_rng(seed).permutation(count)
    return [names[i] for i in order]


def share_out(count: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to `fractions` that sum to `count`, by the largest remainder.

    Examples
    --------
    >>> share_out(28, [10, 18])
    [10, 18]
    >>> share_out(4, [10, 18])
    [1, 3]
    """
    exact = [count * fraction / sum(fractions) for fraction in fractions]
    numbers = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(fractions)), key=lambda i: numbers[i] - exact[i])
    for i in by_remainder[: count - sum(numbers)]:
        numbers[i] += 1
    return numbers


def assign_splits(samples: Sequence[Sample], fractions: Sequence[float], seed: int = 0) -> list[Sample]:
    """Give each sample a split; the order stays.

    Parameters
    ----------
    samples
        With readable tomograms; their `split` is replaced.
    fractions
        Of train, val (and test); each that is not 0 gets at least one tomogram.
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
    wanted = [split for split, fraction in zip(SPLITS, fractions, strict=False) if fraction > 0]
    if len(groups) < len(wanted):
        raise InputError(
            f"{len(groups)} tomograms of different content cannot fill the splits {', '.join(wanted)}; add tomograms, "
            "or set a fraction to 0, as in --split 0.8,0.2,0"
        )
    names = draw_splits(len(groups), fractions, seed)
    split_of = {index: name for name, group in zip(names, groups.values(), strict=True) for index in group}
    return [replace(sample, split=split_of[index]) for index, sample in enumerate(samples)]
