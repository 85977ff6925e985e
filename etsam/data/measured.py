"""Measurements for which a whole file has to be read, once: grey-value statistics of a tomogram, contents of a mask."""

import hashlib
import math
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from etsam.labels import IGNORE
from etsam.normalize import Statistics, measure
from etsam.volume import Location, Slices, atomic_path, read_volume
from etsam.volume.content import Content
from etsam.volume.location import display_name, state_of

_FINGERPRINT_SLICES = 8
_Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class MaskSummary:
    """Contents of one mask.

    Attributes
    ----------
    membrane
        Voxels of value 1 in each slice, shape (Z,), int64.
    ignored
        Voxels of value 255 (or -1), in all.
    odd
        Voxels of any other value but 0, in all; a good mask has none.
    odd_value
        The first of those values; NaN if there is none.
    """

    membrane: np.ndarray
    ignored: int
    odd: int
    odd_value: float


def labels(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the values of a mask.

    Parameters
    ----------
    plane
        Mask values, any shape and real dtype.

    Returns
    -------
    tuple
        Labels 0, 1 and 255 (uint8), and where the value is none of 0, 1, 255 and -1 (bool; such voxels get 255).
    """
    membrane, ignored = plane == 1, (plane == IGNORE) | (plane == -1)
    odd = (plane != 0) & ~membrane & ~ignored
    found = membrane.astype(np.uint8)
    found[ignored | odd] = IGNORE
    return found, odd


def summarize(mask: Slices) -> MaskSummary:
    """Read every slice of a mask (Z, Y, X) once."""
    membrane = np.zeros(mask.shape[0], dtype=np.int64)
    ignored, odd, odd_value = 0, 0, float("nan")
    for z in range(mask.shape[0]):
        plane = mask[z]
        found, wrong = labels(plane)
        membrane[z] = np.count_nonzero(found == 1)
        count = int(np.count_nonzero(wrong))
        ignored += int(np.count_nonzero(found == IGNORE)) - count
        if count and not odd:
            odd_value = float(plane[wrong][0])
        odd += count
    return MaskSummary(membrane, ignored, odd, odd_value)


_summaries: dict[tuple[str, int, int], MaskSummary] = {}


def mask_summary(path: Location, cache_folder: Path | None = None) -> MaskSummary:
    """`summarize` of a mask file, remembered by path, time of change and size.

    Parameters
    ----------
    path
        Mask file, Zarr folder or URL.
    cache_folder
        Where results are kept over processes; None: for this process only.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    key = state_of(path)
    if key not in _summaries:

        def compute() -> _Arrays:
            with read_volume(path, warn=False) as mask:
                return _as_arrays(summarize(mask))

        found = _remembered("mask", path, cache_folder, compute)
        _summaries[key] = MaskSummary(
            found["membrane"], int(found["ignored"]), int(found["odd"]), float(found["odd_value"])
        )
    return _summaries[key]


def statistics(path: Location, volume: Slices, cache_folder: Path | None = None) -> Statistics:
    """`etsam.normalize.measure` of a tomogram, kept in `cache_folder` (about 8 MB a tomogram) if one is given.

    Parameters
    ----------
    path
        The file, which names the cached result together with its time of change and size.
    volume
        Its slices (Z, Y, X).
    cache_folder
        Made if need be; None: nothing is kept, not even in memory, where 8 MB a tomogram would add up.
    """
    found = _remembered("grey_values", path, cache_folder, lambda: _statistics_arrays(measure(volume)))
    return Statistics(
        minimum=float(found["minimum"]),
        maximum=float(found["maximum"]),
        mean=float(found["mean"]),
        voxels=int(found["voxels"]),
        nonfinite=int(found["nonfinite"]),
        sample=found["sample"],
        skewness=float(found["skewness"]),
        content=_content(found, tuple(volume.shape)),
        padding=None if math.isnan(float(found["padding"])) else float(found["padding"]),
        padded=int(found["padded"]),
    )


def _statistics_arrays(record: Statistics) -> _Arrays:
    found = {name: value for name, value in vars(record).items() if name != "content"}
    if record.padding is None:
        found["padding"] = math.nan
    if record.content is not None:
        found |= {name: getattr(record.content, name) for name in ("kept", "rows", "columns")}
    return {name: np.asarray(value) for name, value in found.items()}


def _content(found: _Arrays, shape: tuple[int, ...]) -> Content | None:
    if "kept" not in found:
        return None
    rows, columns = ((int(found[name][0]), int(found[name][1])) for name in ("rows", "columns"))
    return Content(shape, tuple(int(z) for z in found["kept"]), rows, columns)


def fingerprint(volume: Slices) -> str:
    """SHA-256 of eight slices as float32: equal for copies, whatever their names, headers, dtypes and compression.

    Parameters
    ----------
    volume
        (Z, Y, X).
    """
    depth = volume.shape[0]
    digest = hashlib.sha256(repr(tuple(volume.shape)).encode())
    # spread over the whole: slices at the ends can be empty, the same in many tomograms
    for z in np.unique(np.linspace(0, depth - 1, _FINGERPRINT_SLICES).round().astype(int)):
        digest.update(np.ascontiguousarray(volume[int(z)], dtype=np.float32).tobytes())
    return digest.hexdigest()


def _as_arrays(record: MaskSummary) -> _Arrays:
    return {name: np.asarray(value) for name, value in asdict(record).items()}


def _remembered(kind: str, path: Location, cache_folder: Path | None, compute: Callable[[], _Arrays]) -> _Arrays:
    if cache_folder is None:
        return compute()
    key = hashlib.sha256(repr(state_of(path)).encode()).hexdigest()[:16]
    stored = cache_folder / f"{display_name(path).replace('/', '_')[:80]}.{key}.{kind}.npz"
    try:
        # opened here: NumPy leaves a damaged file open
        with stored.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        pass  # not there, or damaged: measured (again) below
    arrays = compute()
    cache_folder.mkdir(parents=True, exist_ok=True)
    # processes may write the same file at once: each replaces it by the same content
    with atomic_path(stored, overwrite=True) as part, part.open("wb") as new:
        np.savez(new, **arrays)  # type: ignore[arg-type]
    return arrays
