"""Manifests: CSV files that list tomograms with their masks and splits, and everything that can be wrong with them."""

import csv
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from etsam.data.measured import fingerprint, mask_summary
from etsam.errors import InputError
from etsam.io import Location, Volume, atomic_path, locate, read_volume
from etsam.io.location import is_zarr

REQUIRED_COLUMNS = ("dataset_id", "run_id", "split", "tomogram", "target_mask")
_OPTIONAL_COLUMNS = ("voxel_size", "shape")
_VOXEL_SIZE_TOLERANCE = 0.01  # relative; above rounding in headers, below any real difference in sampling


@dataclass(frozen=True)
class Sample:
    """One tomogram with its mask: one row of a manifest.

    Attributes
    ----------
    dataset_id, run_id
        Names; together they say which tomogram this is.
    split
        `train`, `val`, `test`, or any other word that no part of the program uses.
    tomogram, target_mask
        Files, Zarr folders or URLs, of equal shape. In the mask 1 is membrane, 0 is not, 255 (in int8 files -1) was
        not annotated.
    voxel_size_angstrom
        As the manifest says; None if it does not.
    shape
        (Z, Y, X) as the manifest says; None if it does not.
    extra
        Further columns as (name, text) pairs, in the manifest's order.
    """

    dataset_id: str
    run_id: str
    split: str
    tomogram: Location
    target_mask: Location
    voxel_size_angstrom: float | None = None
    shape: tuple[int, int, int] | None = None
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """`dataset_id/run_id`, as messages call it."""
        return f"{self.dataset_id}/{self.run_id}"


def read_manifest(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> list[Sample]:
    """Read a manifest; the files it names are not looked at.

    Parameters
    ----------
    path
        CSV with a header line and at least the columns `dataset_id, run_id, split, tomogram, target_mask`; optional
        are `voxel_size` (Å) and `shape` (`"(Z, Y, X)"`). Further columns are kept.
    root
        Folder that relative file names start from; default: the manifest's.

    Raises
    ------
    InputError
        If it cannot be read, lacks columns, has no row, or a row has an empty or malformed value; all are named.
    """
    manifest = Path(path).expanduser()
    folder = manifest.parent if root is None else Path(root).expanduser()
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a byte order mark first
            reader = csv.DictReader(file, restkey=None, restval="")
            columns = [column.strip() for column in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{manifest}: is no manifest: not CSV text in UTF-8 ({error})") from error
    except OSError as error:
        raise InputError(f"{manifest}: the manifest cannot be read: {error.strerror or error}") from error
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if missing:
        raise InputError(
            f"{manifest}: the manifest lacks the columns {', '.join(missing)}; it has {', '.join(columns) or 'none'}; "
            f"needed are {', '.join(REQUIRED_COLUMNS)}"
        )
    if not rows:
        raise InputError(f"{manifest}: the manifest lists no tomogram; write one row a tomogram")
    samples, faults = [], []
    for line, row in rows:
        try:
            samples.append(_sample({key: (text or "").strip() for key, text in row.items() if key}, folder))
        except ValueError as error:
            faults.append(f"line {line}: {error}")
    if faults:
        raise InputError(f"{manifest}: {' | '.join(faults)}")
    return samples


def _sample(row: dict[str, str], folder: Path) -> Sample:
    empty = [column for column in REQUIRED_COLUMNS if not row[column]]
    if empty:
        raise ValueError(f"no value for {', '.join(empty)}")
    return Sample(
        dataset_id=row["dataset_id"],
        run_id=row["run_id"],
        split=row["split"],
        tomogram=locate(row["tomogram"], folder),  # absolute ones stay as they are
        target_mask=locate(row["target_mask"], folder),
        voxel_size_angstrom=parse_voxel_size(row.get("voxel_size", "")),
        shape=parse_shape(row.get("shape", "")),
        extra=tuple(item for item in row.items() if item[0] not in (*REQUIRED_COLUMNS, *_OPTIONAL_COLUMNS)),
    )


def parse_voxel_size(text: str) -> float | None:
    """Read a voxel size in Å; None if the text is empty. Raises ValueError if it is no positive number."""
    if not text:
        return None
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise ValueError(f"voxel_size {text!r} is no positive number (Å)")
    return size


def parse_shape(text: str) -> tuple[int, int, int] | None:
    """Read a shape such as `(100, 200, 200)`, Z first; None if the text is empty. Raises ValueError if it is none."""
    if not text:
        return None
    match = re.fullmatch(r"\(?\s*(\d+)\s*[,x ]\s*(\d+)\s*[,x ]\s*(\d+)\s*\)?", text)
    if match is None:
        raise ValueError(f"shape {text!r} is not three numbers like (100, 200, 200) in the order Z, Y, X")
    z, y, x = (int(side) for side in match.groups())
    return z, y, x


def write_manifest(path: str | os.PathLike[str], samples: Iterable[Sample], overwrite: bool = False) -> None:
    """Write samples as CSV that `read_manifest` reads; files below the manifest's folder are named relative to it.

    Raises
    ------
    OutputError
        If `path` exists and `overwrite` is not set, or cannot be written.
    """
    manifest = Path(path).expanduser()
    samples = list(samples)
    extra = list(dict.fromkeys(name for sample in samples for name, _ in sample.extra))
    with atomic_path(manifest, overwrite) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*REQUIRED_COLUMNS, *_OPTIONAL_COLUMNS, *extra], lineterminator="\n")
        writer.writeheader()
        for sample in samples:
            size = sample.voxel_size_angstrom
            writer.writerow(
                {
                    "dataset_id": sample.dataset_id,
                    "run_id": sample.run_id,
                    "split": sample.split,
                    "tomogram": _relative(sample.tomogram, manifest.parent),
                    "target_mask": _relative(sample.target_mask, manifest.parent),
                    "voxel_size": "" if size is None else repr(size),
                    "shape": "" if sample.shape is None else str(sample.shape),
                    **dict(sample.extra),
                }
            )


def _relative(file: Location, folder: Path) -> str:
    if not isinstance(file, Path):
        return str(file)
    absolute, base = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)


def check_samples(
    samples: Sequence[Sample],
    *,
    clip_slices: int | None = None,
    axes: Sequence[str] = ("z",),
    splits: Sequence[str] = ("train", "val"),
    cache_folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Find everything that is wrong with a list of samples, before any work starts.

    Every mask is read once, slice by slice; tomograms are opened, and of their content two megabytes are compared.

    Parameters
    ----------
    samples
        Of all splits, of all sources together.
    clip_slices
        Length of training clips, in slices; None: not checked.
    axes
        Axes that clips run along: `z`, `y`, `x`.
    splits
        Splits that must have at least one sample.
    cache_folder
        Where what was found in masks is kept, so that other processes need not read them; None: in memory.
    progress
        Called with (samples checked, samples in all).

    Raises
    ------
    InputError
        One line with all faults: files missing or unreadable, shapes that differ, masks empty or not binary, voxel
        sizes of tomogram and mask more than 1 % apart, clips longer than the tomogram, splits missing, a tomogram in
        two splits (the same file, or a copy of it).
    """
    faults: list[str] = []
    present = sorted({sample.split for sample in samples})
    for split in splits:
        if split not in present:
            faults.append(f"no {split} split (splits found: {', '.join(present) or 'none'})")
    for done, sample in enumerate(samples, 1):
        length = clip_slices if sample.split == "train" else None
        faults += [f"{sample.name}: {fault}" for fault in _sample_faults(sample, length, axes, cache_folder)]
        if progress is not None:
            progress(done, len(samples))
    faults += _leaks(samples)
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InputError(f"{count} in the training data: {' | '.join(faults)}")


def _sample_faults(
    sample: Sample, clip_slices: int | None, axes: Sequence[str], cache_folder: Path | None
) -> Iterator[str]:
    opened: dict[str, Volume] = {}
    for role, path in (("tomogram", sample.tomogram), ("mask", sample.target_mask)):
        try:
            opened[role] = read_volume(path, warn=False)
        except InputError as error:
            yield str(error)
    if len(opened) == 2:
        yield from _pair_faults(sample, opened["tomogram"], opened["mask"])
    if "tomogram" in opened:
        yield from _shape_faults(sample, opened["tomogram"].shape, clip_slices, axes)
    for volume in opened.values():
        volume.close()
    if "mask" in opened:
        yield from _mask_faults(sample.target_mask, cache_folder)


def _pair_faults(sample: Sample, tomogram: Volume, mask: Volume) -> Iterator[str]:
    if mask.shape != tomogram.shape:
        yield f"mask of shape {mask.shape}, tomogram of {tomogram.shape} ({sample.target_mask})"
    ours, theirs = tomogram.voxel_size_angstrom, mask.voxel_size_angstrom
    if ours is None or theirs is None:  # a header that does not say is no contradiction
        return
    if any(abs(a - b) > _VOXEL_SIZE_TOLERANCE * a for a, b in zip(ours, theirs, strict=True)):
        texts = [" x ".join(f"{side:g}" for side in size) for size in (ours, theirs)]
        yield f"voxel size {texts[0]} Å in the tomogram, {texts[1]} Å in the mask (Z x Y x X); more than 1 % apart"


def _shape_faults(
    sample: Sample, shape: tuple[int, int, int], clip_slices: int | None, axes: Sequence[str]
) -> Iterator[str]:
    if sample.shape is not None and sample.shape != shape:
        yield f"shape {shape}, but the manifest says {sample.shape}"
    if clip_slices is None:
        return
    for axis in axes:
        side = shape["zyx".index(axis)]
        if clip_slices > side:
            yield f"a clip of {clip_slices} slices is longer than the tomogram, which has {side} along {axis}"


def _mask_faults(path: Location, cache_folder: Path | None) -> Iterator[str]:
    try:
        summary = mask_summary(path, cache_folder)
    except InputError as error:
        yield str(error)
        return
    if summary.odd:
        yield (
            f"mask not binary: {summary.odd} voxels such as {summary.odd_value:g}; allowed are 1 (membrane), "
            f"0 (not), 255 or -1 (not annotated) ({path})"
        )
    elif not summary.membrane.any():
        note = f"; {summary.ignored} voxels are 255 or -1, which means not annotated" if summary.ignored else ""
        yield f"mask empty: no voxel is 1{note} ({path})"


def _leaks(samples: Sequence[Sample]) -> Iterator[str]:
    by_file: dict[str, list[Sample]] = {}
    by_content: dict[str, list[Sample]] = {}
    for sample in samples:
        place = sample.tomogram
        if isinstance(place, Path) and not (os.access(place, os.R_OK) and (place.is_file() or is_zarr(place))):
            continue
        by_file.setdefault(str(place.resolve() if isinstance(place, Path) else place), []).append(sample)
    for same in by_file.values():
        yield from _across_splits(same, "the same file")
        with suppress(InputError):  # a Zarr that cannot be read, which has been said
            by_content.setdefault(fingerprint(same[0].tomogram), []).append(same[0])
    for same in by_content.values():
        yield from _across_splits(same, "the same content")


def _across_splits(same: Sequence[Sample], what: str) -> Iterator[str]:
    first_of_split = {sample.split: sample for sample in reversed(same)}
    for one, other in itertools.combinations(first_of_split.values(), 2):
        yield (
            f"{one.name} ({one.split}) and {other.name} ({other.split}) are {what}: a tomogram must be in one split "
            f"only ({one.tomogram}, {other.tomogram})"
        )
