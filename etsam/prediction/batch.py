"""Outcome of a list of tomograms: a table of those that got no mask, and why."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from etsam.volume import Location, locate
from etsam.volume.location import display_name

Kind = Literal["not usable", "passed over", "left"]


_WORDS: dict[Kind, str] = {
    "not usable": "not usable",
    "passed over": "passed over",
    "left": "left to another process",
}


class Missing(NamedTuple):
    """A file that got no mask.

    Attributes
    ----------
    name
        Of the file.
    kind
        `not usable`: that is an error; `passed over`: nothing was to be segmented in it; `left`: another process is at
        work on it.
    why
        One line.
    """

    name: str
    kind: Kind
    why: str

    @classmethod
    def of(cls, path: Location | str, kind: Kind, why: object) -> "Missing":
        """Entry of the file at `path`, whose name need not be said twice."""
        name = display_name(locate(path))
        text = " ".join(str(why).split())
        return cls(name, kind, text.removeprefix(f"{path}: "))


def table(missing: Sequence[Missing], segmented: int, complete: int = 0) -> Iterator[str]:
    """Lines of a table for a person; none where every file got a mask.

    Parameters
    ----------
    missing
        Files without a mask.
    segmented, complete
        Tomograms that were segmented in this run, and that were complete before their turn.
    """
    if not missing:
        return
    kinds = Counter(entry.kind for entry in missing)
    counts = [f"{segmented} segmented"]
    counts += [f"{complete} complete before"] * bool(complete)
    counts += [f"{kinds[kind]} {words}" for kind, words in _WORDS.items() if kinds[kind]]
    yield f"{segmented + complete + len(missing)} files: {', '.join(counts)}"
    width = max(len(entry.name) for entry in missing)
    for entry in sorted(missing, key=lambda entry: (entry.kind, entry.name)):
        yield f"  {entry.kind:<11}  {entry.name:<{width}}  {entry.why}"
