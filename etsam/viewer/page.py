"""`NAME.html` beside each mask: slices to scroll, with a threshold to move; one file that loads nothing."""

import base64
import io
import json
import shlex
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from etsam.inference.uncertainty import MOST
from etsam.pictures import DOUBT, MEMBRANE
from etsam.postprocess.regions import Regions
from etsam.prediction.preview import richest, rim
from etsam.prediction.record import OutputNames
from etsam.prediction.samples import Samples, evenly, reduced
from etsam.viewer.facts import demo_note, facts_of, headline, warnings_of
from etsam.volume import atomic_path
from etsam.volume.location import absolute

if TYPE_CHECKING:
    from etsam.prediction.result import Prediction

_CLIP_PERCENT = (0.5, 99.5)
_JPEG_QUALITY = 70
_COMPRESSION = 6
_DOUBT_LEVELS = 15  # of uncertainty, besides 0
_LEFT_OUT = {
    "slab": "void around the sample",
    "gold": "gold beads",
    "carbon": "carbon film",
    "border": "incomplete rims",
}


def stops_around(threshold: float) -> list[float]:
    """Thresholds that the page's slider offers: tenths within 1 of the run's threshold, halves within 4, and itself.

    They are decimal numbers that `etsam threshold --at` takes as they are written. No more than 255, so that how many
    of them a logit exceeds fits into 8 bits.

    Examples
    --------
    >>> len(stops_around(-0.25)), stops_around(-0.25)[:2], -0.25 in stops_around(-0.25)
    (35, [-4.0, -3.5], True)
    """
    tenths = [number / 10 for number in range(ceil(10 * (threshold - 1)), floor(10 * (threshold + 1)) + 1)]
    halves = [number / 2 for number in range(ceil(2 * (threshold - 4)), floor(2 * (threshold + 4)) + 1)]
    return sorted({float(threshold), *tenths, *halves})


def quantised(logits: np.ndarray, stops: Sequence[float]) -> np.ndarray:
    """Number of stops that each logit lies strictly above, uint8: above stop `k` is where the number exceeds `k`."""
    return np.searchsorted(np.asarray(stops, np.float32), logits, side="left").astype(np.uint8)


def packed(plane: np.ndarray) -> bytes:
    """Differences of each row (uint8) to the row before, by zlib: what `unpack` of slices.js takes back."""
    return zlib.compress(np.diff(plane, axis=0, prepend=np.uint8(0)).tobytes(), _COMPRESSION)


@dataclass(frozen=True)
class SlicePage:
    """The page of a mask.

    Parameters
    ----------
    enabled
        Whether it is written.
    limit_mb
        Largest size of the file, 10^6 bytes; of a large tomogram so many slices are shown as fit.
    """

    enabled: bool = True
    limit_mb: float = 10.0

    def path(self, names: OutputNames) -> Path:
        """`NAME_etsam_predicted.html`."""
        return names.view(".html")

    def begin(self, prediction: "Prediction", names: OutputNames, post_processed: bool) -> "PageInMaking":
        """Page of one prediction, which takes what it needs while the slices are written."""
        assert prediction.samples is not None, "a page needs Segmenter(samples=True)"
        return PageInMaking(self, prediction.samples, prediction.threshold, names, post_processed, prediction.regions)


class PageInMaking:
    """The page of one tomogram while its slices pass by.

    Memory: the quantised logits of the planes of `Samples`, compressed, and of the side views 1 byte a voxel.
    """

    def __init__(
        self,
        page: SlicePage,
        grey: Samples,
        threshold: float,
        names: OutputNames,
        post_processed: bool,
        regions: Regions | None = None,
    ) -> None:
        self.page, self.grey, self.threshold, self.names = page, grey, threshold, names
        self._regions, self._left_out = regions, set[str]()
        self.stops = stops_around(threshold)
        self._planes: dict[str, dict[int, dict[str, bytes]]] = {"z": {z: {} for z in grey.z}}
        self._rims: dict[int, int] = {}  # of the final mask in the XY planes
        self._post_processed = post_processed
        self._side: dict[str, dict[str, dict[int, np.ndarray]]] = {}

    def add_logits(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of the logits of slice `z`, (Y, X) float32."""
        self._add("logits", z, plane, lambda part: quantised(part, self.stops))

    def add_uncertainty(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of the uncertainty of slice `z`, (Y, X) float32, 0 to 0.5."""
        self._add("doubt", z, plane, lambda part: np.rint(part * (255 / MOST)).astype(np.uint8))

    def add_mask(self, z: int, plane: np.ndarray) -> None:
        """Take what is needed of slice `z` of the final mask, (Y, X); its voxels, if it is more than a threshold."""
        if z in self._planes["z"]:
            self._rims[z] = rim(np.asarray(plane) > 0)
        if self._post_processed:
            self._add("mask", z, plane, lambda part: (np.asarray(part) > 0).astype(np.uint8))
        for name, part in (self._regions.parts if self._regions is not None else {}).items():
            if part is not None and name not in self._left_out and part.outside(z).any():
                self._left_out.add(name)
        if self._regions is not None:
            self._add("left_out", z, self._regions.outside(z), lambda part: part.astype(np.uint8))

    def _add(self, kind: str, z: int, plane: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> None:
        depth, height, width = self.grey.shape
        side = self._side.setdefault(
            kind,
            {
                "y": {y: np.zeros((depth, width), np.uint8) for y in self.grey.y},
                "x": {x: np.zeros((depth, height), np.uint8) for x in self.grey.x},
            },
        )
        if z in self._planes["z"]:
            self._planes["z"][z][kind] = self._packed(kind, convert(plane))
        for y, kept in side["y"].items():
            kept[z] = convert(plane[y])
        for x, kept in side["x"].items():
            kept[z] = convert(plane[:, x])

    def _packed(self, kind: str, plane: np.ndarray) -> bytes:
        """Plane as the page holds it: uncertainty as coarse as the grey values, and in few levels."""
        if kind == "doubt":
            plane = np.rint(reduced(plane, self.grey.reduction) * (_DOUBT_LEVELS / 255)).astype(np.uint8)
        return packed(plane)

    def write(self, record: dict[str, Any], overwrite: bool) -> None:
        """Write the page, whole or not at all.

        Raises
        ------
        OutputError
            If it exists and may not be replaced, or cannot be written.
        """
        views, of_all = self._views()
        left_out = [words for name, words in _LEFT_OUT.items() if name in self._left_out]
        text = document(record, self.names, self.stops, self.threshold, views, of_all, self.grey.reduction, left_out)
        with atomic_path(self.page.path(self.names), overwrite) as part:
            part.write_text(text, encoding="utf-8")

    def _views(self) -> tuple[list[dict[str, Any]], int]:
        """Planes by direction, base64, and how many slices there are of which those of the first direction are."""
        low, high = self.grey.levels(*_CLIP_PERCENT)
        if not self._left_out:  # nothing to see
            self._side.pop("left_out", None)
            for plane in self._planes["z"].values():
                plane.pop("left_out", None)
        for axis in ("y", "x"):
            self._planes[axis] = {
                at: {kind: self._packed(kind, planes[axis][at]) for kind, planes in self._side.items()}
                for at in getattr(self.grey, axis)
            }
        for axis, planes in self._planes.items():
            for at, plane in planes.items():
                plane["grey"] = _jpeg(self.grey.plane(axis, at), low, high)
        size = {
            axis: sum(len(part) for plane in planes.values() for part in plane.values())
            for axis, planes in self._planes.items()
        }
        limit = self.page.limit_mb * 1e6 * 0.73 - size["y"] - size["x"]  # base64 makes 4 bytes of 3
        starts = self._starts()
        positions = list(self._planes["z"])
        count = max(3, min(len(positions), int(len(positions) * limit / size["z"])))
        kept = [positions[i] for i in evenly(len(positions), count)]
        if starts["z"] not in kept:
            kept = sorted({starts["z"], *(positions[i] for i in evenly(len(positions), count - 1))})
        self._planes["z"] = {at: self._planes["z"][at] for at in kept}
        depth, height, width = self.grey.shape
        sides = {"z": (height, width, "x", "y"), "y": (depth, width, "x", "z"), "x": (depth, height, "y", "z")}
        return [
            {
                "axis": axis,
                "height": sides[axis][0],
                "width": sides[axis][1],
                "across": sides[axis][2],
                "up": sides[axis][3],
                "start": list(planes).index(starts[axis]),
                "planes": [
                    {"at": at} | {kind: base64.b64encode(part).decode() for kind, part in plane.items()}
                    for at, plane in planes.items()
                ],
            }
            for axis, planes in self._planes.items()
        ], depth

    def _starts(self) -> dict[str, int]:
        """Axis -> place of the plane with most of the final mask, chosen as in the picture: there the page opens."""
        final = self._side["mask" if self._post_processed else "logits"]
        above = 0 if self._post_processed else self.stops.index(self.threshold)
        rims = {axis: [rim(plane > above) for plane in planes.values()] for axis, planes in final.items()}
        rims["z"] = [self._rims[z] for z in self._planes["z"]]
        lengths = dict(zip("zyx", self.grey.shape, strict=True))
        return {axis: richest(list(self._planes[axis]), found, lengths[axis])[0] for axis, found in rims.items()}


def _jpeg(plane: np.ndarray, low: float, high: float) -> bytes:
    scaled = np.nan_to_num((plane - low) / (high - low) * 255, nan=0.0, posinf=255.0, neginf=0.0)
    out = io.BytesIO()
    Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()


def environment() -> Environment:
    """Templates of this room, every text in them escaped; they know the colours of all pictures."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    found = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    found.globals |= {"membrane": MEMBRANE, "uncertain": DOUBT}
    return found


def document(
    record: Mapping[str, Any],
    names: OutputNames,
    stops: Sequence[float],
    threshold: float,
    views: Sequence[Mapping[str, Any]],
    depth: int,
    reduction: int,
    left_out: Sequence[str] = (),
) -> str:
    """HTML of the page of a mask.

    Parameters
    ----------
    record
        What `write_record` writes.
    names
        Of the outputs beside the page.
    stops, threshold
        Of the slider, and where it starts.
    views
        As `PageInMaking` packs them.
    depth
        Slices of the tomogram, of which the first view shows some.
    reduction
        Voxels along an axis that make one pixel of the grey values and of the uncertainty.
    left_out
        Parts of the tomogram where nothing is marked.
    """
    shown = len(views[0]["planes"])
    layers = views[0]["planes"][0]
    notes = []
    if shown < depth:
        notes.append(f"{shown} of {depth} slices are here; the mask on disk has all of them.")
    if reduction > 1:
        notes.append(f"Grey values are means of {reduction} × {reduction} voxels; the mask is shown voxel by voxel.")
    size = record["input"]["voxel_size_angstrom_zyx"]
    made_from = record["settings"].get("made_from")  # of `etsam threshold`
    logits = made_from["logits"] if made_from else absolute(names.logits)
    data = {
        "stops": list(stops),
        "start": list(stops).index(threshold),
        "voxel_nm": None if size is None else {axis: value / 10 for axis, value in zip("zyx", size, strict=True)},
        "views": views,
        "doubt": {"reduction": reduction, "levels": _DOUBT_LEVELS, "most": MOST} if "doubt" in layers else None,
        "post_processed": "mask" in layers,
        "command": shlex.join(["etsam", "threshold", logits, "--at"]),
    }
    words = {
        "title": Path(str(record["input"]["path"])).name,
        "headline": headline(record),
        "demo": demo_note(record),
        "warnings": warnings_of(record),
        "facts": facts_of(record, names),
        "record": json.dumps(record, indent=2, default=str),
        "notes": notes,
        "data": data,
        "threshold": f"{threshold:g}",
        "left_out": left_out,
        "has_logits": made_from is not None or names.logits.name in record["outputs"],
    }
    return environment().get_template("slices.html").render(words)
