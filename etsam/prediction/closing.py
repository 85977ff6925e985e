"""Closing lines of a tomogram: where everything is, what is in it, and what to do next."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from etsam.screen import BLUE, console, readable_seconds
from etsam.volume import Location
from etsam.volume.location import display_name, is_plain_mrc, strip_suffix


@dataclass(frozen=True)
class OutputFile:
    """One file that a tomogram got.

    Attributes
    ----------
    what
        In a word, such as `mask`.
    path
        Where it is.
    note
        What a log file says of it: what is in it; may be empty.
    """

    what: str
    path: Path
    note: str = ""


@dataclass(frozen=True)
class Closing:
    """Facts that are told of a tomogram that is done.

    Attributes
    ----------
    tomogram
        Its place.
    found, found_in_all
        What is in the mask, such as `2.06 % membrane, 12 pieces`; and in all masks.
    seconds
        That it took.
    memory
        Such as `1.1 GB ram`.
    files
        The mask first.
    hints
        What may be typed next.
    notes
        Sentences about how the mask came about.
    """

    tomogram: Location
    found: str
    found_in_all: str
    seconds: float
    memory: str
    files: Sequence[OutputFile]
    hints: Sequence[str] = ()
    notes: Sequence[str] = ()

    def line(self) -> str:
        """One line, for a log file; beside each file what is in it."""
        mask, *others = self.files
        more = "".join(f"; {file.note} -> {file.path}" for file in others if file.note)
        return (
            f"{display_name(self.tomogram)}: {self.found}, {self.seconds:.1f} s, at most {self.memory} -> {mask.path}"
            + more
            + "".join(f"; {note}" for note in self.notes)
        )

    def block(self) -> Text:
        """Some lines, for a terminal."""
        text, tick = Text(), "✓" if console().encoding.startswith("utf") else "*"
        text.append(f"{tick} ", style="bold green")
        text.append(display_name(self.tomogram), style="bold")
        text.append(f"   {self.found_in_all}   {readable_seconds(self.seconds)}\n")
        width = max(len(file.what) for file in self.files)
        for file in self.files:
            text.append(f"  {file.what:<{width}}  {file.path}\n")
        for note in self.notes:
            text.append(f"  {note}\n")
        for hint in self.hints:
            text.append(f"  {hint}\n", style=BLUE)
        return text


def viewing_hints(
    tomogram: Location, mask: Path, *, script: Path | None = None, logits: Path | None = None
) -> list[str]:
    """Commands that may be typed next: to look at a mask over its tomogram, and to move its threshold.

    Parameters
    ----------
    tomogram, mask
        Their places. Of a mask that ChimeraX does not open the first hint writes one that it does.
    script
        For ChimeraX; shows both.
    logits
        That were kept.
    """
    shown = [str(tomogram)] if isinstance(tomogram, Path) and is_plain_mrc(tomogram) else []
    hints = []
    if is_plain_mrc(mask):
        hints.append(f"look at it:  chimerax {shlex.join([*shown, str(mask)] if script is None else [str(script)])}")
    elif script is not None:  # which opens the tomogram alone
        plain = mask.with_name(f"{strip_suffix(mask)}.mrc")
        written = shlex.join(["etsam", "postprocess", str(mask), str(plain), "postprocess=none"])
        hints.append(f"ChimeraX opens MRC only (output_format=mrc):  {written}")
        hints.append(f"and then look at it:  chimerax {shlex.join([*shown, str(plain)])}")
    if logits is not None:
        hints.append(f"another threshold:  etsam threshold {shlex.quote(str(logits))} --at 0")
    return hints
