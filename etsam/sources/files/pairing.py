"""Files of tomograms and of masks -> pairs, by their names alone; what is not certain is an error that lists it."""

import glob
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from etsam.data.manifest import Sample
from etsam.errors import InputError
from etsam.volume import read_volume, strip_suffix

_SHOWN = 20  # names in an error
_WILDCARDS = re.compile(r"\*\*/|\*+|\?|\[[^\]]+\]")


@dataclass(frozen=True)
class Pair:
    """A tomogram with its mask.

    Attributes
    ----------
    name
        What both names have in common; the run's name.
    tomogram, mask
        Files.
    guessed
        Whether the names have only their beginning in common.
    """

    name: str
    tomogram: Path
    mask: Path
    guessed: bool = False


def expand(patterns: Iterable[str]) -> dict[Path, str]:
    """Files that match patterns, each with its key: what the wildcards of the pattern stand for.

    Parameters
    ----------
    patterns
        Such as `data/*.mrc` or `*/tomo.mrc`, or files; the key of a file that is named itself is its name without
        the suffix of a tomogram.

    Raises
    ------
    InputError
        If a pattern matches nothing.
    """
    found: dict[Path, str] = {}
    for given in patterns:
        pattern = os.path.expanduser(given)
        if os.path.exists(pattern):
            found.setdefault(Path(pattern), strip_suffix(pattern))
            continue
        matches = [match for match in sorted(glob.glob(pattern, recursive=True)) if not _is_plain_folder(match)]
        if not matches:
            raise InputError(f"no file matches {given}; check the folder, and put patterns in quotes")
        shape = _with_groups(pattern)
        for match in matches:
            fitting = shape.fullmatch(match)
            groups = [group.strip("/") for group in fitting.groups() if group] if fitting else []
            found.setdefault(Path(match), "/".join(groups) or strip_suffix(match))
    return found


def _is_plain_folder(path: str) -> bool:
    return os.path.isdir(path) and not path.rstrip("/").endswith(".zarr")


def _with_groups(pattern: str) -> re.Pattern[str]:
    """The pattern as an expression with a group for each wildcard."""
    meanings = {"**/": "((?:.*/)?)", "?": "([^/])"}
    parts, end = [], 0
    for wildcard in _WILDCARDS.finditer(pattern):
        text = wildcard.group()
        parts.append(re.escape(pattern[end : wildcard.start()]))
        if text.startswith("["):
            parts.append(f"({text.replace('[!', '[^')})")
        else:
            parts.append(meanings.get(text, "([^/]*)"))
        end = wildcard.end()
    return re.compile("".join(parts) + re.escape(pattern[end:]), re.DOTALL)


def pair(tomograms: Mapping[Path, str], masks: Mapping[Path, str]) -> list[Pair]:
    """Find the mask of each tomogram.

    A mask belongs to the tomogram with the same key. Where there is none, it belongs to the one with which it shares
    the longest beginning, counted in words and numbers (`TS_1` is not the beginning of `TS_10`), if there is only one
    such tomogram, it has no other mask, and the two do not go on with different numbers.

    Parameters
    ----------
    tomograms, masks
        File -> key, from `expand`; tomograms that are masks, too, are left out.

    Returns
    -------
    list
        Sorted by tomogram.

    Raises
    ------
    InputError
        If a name is there twice, a file has no partner or several; all are listed.
    """
    tomograms = {path: key for path, key in tomograms.items() if path not in masks}
    if not tomograms:
        raise InputError("the patterns of tomograms match nothing but masks; give a pattern that names tomograms")
    faults = [*_doubles(tomograms, "tomograms"), *_doubles(masks, "masks")]
    if faults:
        raise InputError.of("some names are there twice; rename them, or give patterns that tell them apart", faults)
    by_key = {key: path for path, key in tomograms.items()}
    # a key of one may be the whole name of the other: `*.mrc` gives a, a file given by name a, `*_mask.mrc` a
    by_stem = {strip_suffix(path): path for path in reversed(list(tomograms))}
    pairs: dict[Path, Pair] = {}
    left: dict[Path, str] = {}
    for mask, key in masks.items():
        tomogram = by_key.get(key, by_stem.get(key))
        if tomogram is None or tomogram in pairs:
            left[mask] = key
        else:
            pairs[tomogram] = Pair(tomograms[tomogram], tomogram, mask)
    free = {path: key for path, key in tomograms.items() if path not in pairs}
    for tomogram, mask, name in _by_beginning(free, left):
        pairs[tomogram] = Pair(name, tomogram, mask, guessed=True)
    matched = {found.mask for found in pairs.values()}
    faults = [f"tomogram without a mask: {path}" for path in tomograms if path not in pairs]
    faults += [f"mask without a tomogram: {path}" for path in masks if path not in matched]
    if faults:
        advice = "rename them so that both begin alike, or give patterns that match only what belongs together"
        raise InputError.of(f"some tomograms and masks do not pair; {advice}", faults)
    return [pairs[tomogram] for tomogram in sorted(pairs)]


def _doubles(files: Mapping[Path, str], what: str) -> list[str]:
    by_key: dict[str, list[Path]] = {}
    for path, key in files.items():
        by_key.setdefault(key, []).append(path)
    return [
        f"{len(paths)} {what} are called {key}: {', '.join(map(str, paths))}"
        for key, paths in by_key.items()
        if len(paths) > 1
    ]


def _words(name: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+", name)


def _common(one: str, other: str) -> int:
    """Words and numbers at the beginning that two names share; 0 if they go on with different numbers."""
    ours, theirs = _words(one), _words(other)
    count = len(list(itertools.takewhile(lambda both: both[0] == both[1], zip(ours, theirs, strict=False))))
    rest = [words[count : count + 1] for words in (ours, theirs)]
    return 0 if all(words and words[0].isdigit() for words in rest) else count


def _by_beginning(tomograms: Mapping[Path, str], masks: Mapping[Path, str]) -> list[tuple[Path, Path, str]]:
    """Pairs that are each other's only best partner, with the beginning they share."""
    shared = {(tomogram, mask): _common(tomograms[tomogram], masks[mask]) for tomogram in tomograms for mask in masks}

    def only_best(candidates: Sequence[tuple[Path, Path]]) -> tuple[Path, Path] | None:
        most = max((shared[candidate] for candidate in candidates), default=0)
        best = [candidate for candidate in candidates if shared[candidate] == most]
        return best[0] if most and len(best) == 1 else None

    found = []
    for tomogram in tomograms:
        best = only_best([(tomogram, mask) for mask in masks])
        if best is not None and best == only_best([(other, best[1]) for other in tomograms]):
            found.append((*best, tomograms[tomogram]))
    return found


def list_samples(pairs: Sequence[Pair], dataset_id: str) -> list[Sample]:
    """Open the tomograms' headers.

    Parameters
    ----------
    pairs
        From `etsam.sources.files.pairing.pair`.
    dataset_id
        Of all of them.

    Returns
    -------
    list
        Samples without a split (`unassigned`); `voxel_size_angstrom` is that along X, None if the header does not say.

    Raises
    ------
    InputError
        Naming every tomogram that cannot be read, and names that are the same after `/` became `_`.
    """
    samples, faults = [], []
    names: dict[str, Pair] = {}
    for found in pairs:
        run_id = found.name.replace("/", "_")
        if (other := names.setdefault(run_id, found)) is not found:
            faults.append(f"{other.tomogram} and {found.tomogram} would both be called {run_id}; rename one")
        try:
            with read_volume(found.tomogram, warn=False) as volume:
                size = volume.voxel_size_angstrom
                samples.append(
                    Sample(
                        dataset_id=dataset_id,
                        run_id=run_id,
                        split="unassigned",
                        tomogram=found.tomogram,
                        target_mask=found.mask,
                        voxel_size_angstrom=None if size is None else round(size[2], 4),
                        shape=volume.shape,
                    )
                )
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError.of("some tomograms cannot be listed", faults)
    return samples
