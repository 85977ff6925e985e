"""Overview of a folder of masks: `index.html`, one row a tomogram, worst first, as far as records tell."""

import base64
import io
import logging
import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import quote

from PIL import Image

from etsam.errors import OutputError
from etsam.prediction.record import read_record
from etsam.screen import readable_seconds
from etsam.viewer.chimerax import write_folder_script
from etsam.viewer.facts import share_text, warnings_of
from etsam.viewer.page import environment
from etsam.volume import atomic_path
from etsam.volume.location import is_plain_mrc

log = logging.getLogger(__name__)

INDEX = "index.html"
_MARK = '<meta name="generator" content="etsam">'  # an index.html without it is somebody else's
_RECORD = "_record.json"
_PICTURE_PIXELS = 560  # width of the preview in the montage; 40 KB a tomogram
_UNUSUAL = 4  # times as much or as little membrane as the folder's median


@dataclass(frozen=True)
class Row:
    """One tomogram of the folder.

    Attributes
    ----------
    name
        Of the outputs, without what is common to all.
    share
        Of membrane, 0 to 1; None if there is no mask.
    warnings
        Reasons to doubt the mask.
    seconds
        Computing time; None if unknown.
    picture
        JPEG, base64; empty without a preview.
    page
        Address of the page of slices, relative to the folder; empty without one.
    """

    name: str
    share: float | None
    warnings: tuple[str, ...]
    seconds: float | None
    picture: str = ""
    page: str = ""

    @property
    def share_text(self) -> str:
        """For people."""
        return "–" if self.share is None else share_text(self.share)

    @property
    def time_text(self) -> str:
        """For people."""
        return "–" if self.seconds is None else readable_seconds(self.seconds)


def rows_of(folder: Path, failures: Sequence[str] = ()) -> list[Row]:
    """Rows of all records in a folder and of tomograms that failed, worst first.

    First what failed, then masks with warnings, then those with the most unusual share of membrane, measured by its
    ratio to the median of the folder.

    Parameters
    ----------
    folder
        Of outputs.
    failures
        `NAME: why` of tomograms that were not segmented.
    """
    rows = []
    for path in sorted(folder.glob(f"*_etsam_predicted*{_RECORD}")):
        try:
            record = read_record(path)
        except OutputError as error:
            rows.append(Row(path.name, None, (str(error),), None))
            continue
        if record is None or "membrane_share" not in record:
            continue
        start = path.name.removesuffix(_RECORD)
        page, preview = folder / f"{start}.html", folder / f"{start}_preview.png"
        rows.append(
            Row(
                start.replace("_etsam_predicted", "", 1),
                record["membrane_share"],
                tuple(warnings_of(record)),
                sum(record["seconds"].values()),
                _picture(preview),
                quote(page.name) if page.exists() else "",
            )
        )
    usual = median(row.share for row in rows if row.share) if any(row.share for row in rows) else 0.0
    rows = [_compared(row, usual, len(rows)) for row in rows]
    rows.sort(key=lambda row: (not row.warnings, -_distance(row, usual), row.name))
    failed = [
        Row(name, None, (f"Not segmented: {why}",), None) for name, _, why in (f.partition(": ") for f in failures)
    ]
    return [*failed, *rows]


def _distance(row: Row, usual: float) -> float:
    if not row.share or not usual:
        return float("inf")
    return abs(math.log(row.share / usual))


def _compared(row: Row, usual: float, count: int) -> Row:
    """The row, with a warning if its share is unusual among three or more."""
    if count < 3 or row.share is None or row.warnings or _distance(row, usual) <= math.log(_UNUSUAL):
        return row
    word = "more" if row.share > usual else "less"
    text = f"Over {_UNUSUAL} times {word} membrane than usual in this folder (median {share_text(usual)})."
    return Row(row.name, row.share, (text,), row.seconds, row.picture, row.page)


def _picture(preview: Path) -> str:
    try:
        with Image.open(preview) as picture:
            small = picture.convert("RGB")
    except OSError:  # none, or damaged
        return ""
    small.thumbnail((_PICTURE_PIXELS, 10 * _PICTURE_PIXELS))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=75)
    return base64.b64encode(out.getvalue()).decode()


def write_overview(folder: Path, failures: Sequence[str] = (), *, page: bool = True, script: bool = True) -> list[str]:
    """Write what shows a folder as a whole, anew: `index.html`, and a script for ChimeraX.

    Nothing is written for fewer than two tomograms, nor in the place of a file of another program.

    Parameters
    ----------
    folder, failures
        As of `rows_of`.
    page, script
        Which of the two.

    Returns
    -------
    list
        What was written, a line each for the person.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    rows, told = rows_of(folder, failures), []
    if len(rows) < 2:
        return []
    if page and (path := _write_index(folder, rows)):
        told.append(f"all tomograms of the folder, those that need a look first: {path}")
    masks = {start: found for start, found in _masks(folder).items() if is_plain_mrc(found[0])} if script else {}
    if masks and (path := write_folder_script(folder, masks)):
        told.append(f"all masks side by side in ChimeraX: chimerax {shlex.quote(str(path))}")
    return told


def _write_index(folder: Path, rows: Sequence[Row]) -> Path | None:
    path = folder / INDEX
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        log.warning("%s is not of etsam and stays; the overview of this folder is not written", path)
        return None
    text = environment().get_template("index.html").render(rows=rows, folder=folder.absolute().name)
    with atomic_path(path, overwrite=True) as part:
        part.write_text(text, encoding="utf-8")
    return path


def _masks(folder: Path) -> dict[str, tuple[Path, int]]:
    """Final mask of each record in a folder, and its voxels."""
    masks = {}
    for path in sorted(folder.glob(f"*_etsam_predicted*{_RECORD}")):
        with suppress(OutputError):
            record, start = read_record(path) or {}, path.name.removesuffix(_RECORD)
            found = [name for name in record.get("outputs", []) if name.startswith(start) and "mask." in name]
            final = sorted(found, key=lambda name: "post_processed" in name)[-1:]
            if final and (folder / final[0]).exists():
                masks[start] = (folder / final[0], math.prod(record["input"]["shape_zyx"]))
    return masks
