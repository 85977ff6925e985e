"""What samples have to do with each other: leaks between splits, duplicates, masks of other tomograms, odd contrast."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from etsam.data.findings import Examined, Finding, fault, warning
from etsam.data.manifest import Sample
from etsam.io import Location

_ONE_SPLIT = "a tomogram must be in one split only"


def compare(examined: Sequence[Examined]) -> Iterator[Finding]:
    """Findings about several samples; what could not be read is left out where its content would be needed.

    Parameters
    ----------
    examined
        Of all splits and sources together.
    """
    yield from _leaks(examined)
    yield from _listed_twice(examined)
    yield from _names(examined)
    yield from _masks(examined)
    yield from _contrasts(examined)


def _grouped(items: Sequence[Examined], key: Callable[[Examined], str | None]) -> list[list[Examined]]:
    """Groups of at least two with the same key, in order."""
    groups: dict[str, list[Examined]] = {}
    for item in items:
        if (found := key(item)) is not None:
            groups.setdefault(found, []).append(item)
    return [group for group in groups.values() if len(group) > 1]


def _file(place: Location) -> str:
    return str(place.resolve() if isinstance(place, Path) else place)


def _leaks(examined: Sequence[Examined]) -> Iterator[Finding]:
    readable = [item for item in examined if item.fingerprint is not None]
    for same in _grouped(readable, lambda item: _file(item.sample.tomogram)):
        yield from _across_splits([item.sample for item in same], "the same file")
    once = list({_file(item.sample.tomogram): item for item in reversed(readable)}.values())[::-1]
    for same in _grouped(once, lambda item: item.fingerprint):
        yield from _across_splits([item.sample for item in same], "the same content")


def _across_splits(same: Sequence[Sample], what: str) -> Iterator[Finding]:
    first_of_split: dict[str, Sample] = {}
    for sample in same:
        first_of_split.setdefault(sample.split, sample)
    for one, other in itertools.combinations(first_of_split.values(), 2):
        yield fault(
            "",
            f"{one.name} ({one.split}) and {other.name} ({other.split}) are {what}: {_ONE_SPLIT} "
            f"({one.tomogram}, {other.tomogram})",
            "take one of them out of the manifest",
        )


def _listed_twice(examined: Sequence[Examined]) -> Iterator[Finding]:
    """The same tomogram more than once in a split: allowed, it then counts more."""
    for same in _grouped(examined, lambda item: item.fingerprint):
        for split, count in Counter(item.sample.split for item in same).items():
            if count > 1:
                names = [item.sample for item in same if item.sample.split == split]
                yield warning(
                    "",
                    f"{' and '.join(sample.name for sample in names)} ({split}) are the same tomogram "
                    f"({', '.join(dict.fromkeys(str(sample.tomogram) for sample in names))})",
                    f"it counts {count} times; take it out unless that is meant",
                )


def _names(examined: Sequence[Examined]) -> Iterator[Finding]:
    for same in _grouped(examined, lambda item: item.sample.name):
        files = list(dict.fromkeys(_file(item.sample.tomogram) for item in same))
        if len(files) > 1:
            yield fault(
                "",
                f"{same[0].sample.name} is the name of {len(files)} tomograms ({', '.join(files)})",
                "give each its own run_id; what is computed for a tomogram is kept under its name",
            )


def _masks(examined: Sequence[Examined]) -> Iterator[Finding]:
    for item in examined:
        if _file(item.sample.tomogram) == _file(item.sample.target_mask):
            yield fault(
                item.sample.name,
                f"one file is both tomogram and mask ({item.sample.tomogram})",
                "correct the manifest",
            )
    by_file = _grouped(examined, lambda item: _file(item.sample.target_mask))
    by_content = _grouped(
        list({_file(item.sample.target_mask): item for item in examined}.values()),
        lambda item: item.pair.mask_digest if item.pair is not None and item.pair.membrane else None,
    )
    for groups, what in ((by_file, "the same mask file"), (by_content, "masks of the same content")):
        for same in groups:
            # of one tomogram that is listed twice, or missing, nothing is said here
            tomograms = {item.fingerprint for item in same if item.fingerprint is not None}
            if len(tomograms) > 1:
                yield fault(
                    "",
                    f"{' and '.join(item.sample.name for item in same)} are different tomograms with {what} "
                    f"({', '.join(dict.fromkeys(str(item.sample.target_mask) for item in same))})",
                    "give each tomogram its own mask",
                )


def _contrasts(examined: Sequence[Examined]) -> Iterator[Finding]:
    """Membranes bright in some tomograms and dark in others; within one data set somebody inverted a few."""
    signs = {
        index: item.pair.membranes
        for index, item in enumerate(examined)
        if item.pair is not None and item.pair.membranes is not None
    }
    told = False
    for dataset in dict.fromkeys(item.sample.dataset_id for item in examined):
        own = {index: sign for index, sign in signs.items() if examined[index].sample.dataset_id == dataset}
        count = Counter(own.values())
        if len(count) < 2:
            continue
        (usual, many), (odd, few) = count.most_common()
        told = told or many > few
        for index in (index for index, sign in own.items() if sign == odd):
            sample, pair = examined[index].sample, examined[index].pair
            assert pair is not None
            what = (
                f"membranes are {odd} (contrast {pair.contrast:+.2f}), in {many} other tomograms of {dataset} {usual} "
                f"({sample.tomogram})"
            )
            advice = "multiply the tomogram by -1; if it is meant, give it a dataset_id of its own"
            yield fault(sample.name, what, advice) if many > few else warning(sample.name, what, advice)
    count = Counter(signs.values())
    if len(count) == 2 and not told:
        yield warning(
            "",
            f"membranes are dark in {count['dark']} and bright in {count['bright']} of the tomograms",
            "only normalize=robust brings both to one contrast",
        )
