"""Checks of tomograms and masks: facts about each sample, and findings with advice."""

import difflib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from etsam.data.manifest import SPLITS, Sample
from etsam.data.mask_fit import SUSPICIOUS_SHARE, PairMeasurement, axis_exchange, matching_axes, measure_pair
from etsam.data.measured import MaskSummary, fingerprint, mask_summary
from etsam.errors import InputError
from etsam.labels import MARKED_255_ADVICE, odd_value_advice
from etsam.volume import Location, Volume, read_volume


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be.

    Attributes
    ----------
    sample
        `dataset_id/run_id`; empty for what concerns the list.
    severity
        `fault`: cannot be used like this; `warning`: look at it.
    what
        What was found, with the file.
    advice
        What to do.
    """

    sample: str
    severity: Literal["fault", "warning"]
    what: str
    advice: str = ""

    @property
    def text(self) -> str:
        """One line."""
        return (f"{self.sample}: " if self.sample else "") + self.what + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Examined:
    """Facts about one sample; None where a file could not be read.

    Attributes
    ----------
    sample
        The row of the manifest.
    shape
        (Z, Y, X) of the tomogram.
    voxel_size_angstrom
        (z, y, x) of the tomogram's header.
    fingerprint
        Of the tomogram's content.
    summary
        Of the mask.
    pair
        Of both together, if grey values were asked for and the shapes are equal.
    """

    sample: Sample
    shape: tuple[int, int, int] | None = None
    voxel_size_angstrom: tuple[float, float, float] | None = None
    fingerprint: str | None = None
    summary: MaskSummary | None = None
    pair: PairMeasurement | None = None


def fault(sample: str, what: str, advice: str = "") -> Finding:
    """A finding that forbids use."""
    return Finding(sample, "fault", what, advice)


def warning(sample: str, what: str, advice: str = "") -> Finding:
    """A finding to look at."""
    return Finding(sample, "warning", what, advice)


_VOXEL_SIZE_TOLERANCE = 0.01  # relative; above rounding in headers, below any real difference in sampling


def examine(
    samples: Sequence[Sample],
    *,
    clip_slices: int | None = None,
    axes: Sequence[str] = ("z",),
    cache_folder: Path | None = None,
    grey_values: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Examined], list[Finding]]:
    """Look at all files of a list of samples, with memory for a few slices.

    Every mask is read once; tomograms are opened, and eight slices of each are compared with the others.

    Parameters
    ----------
    samples
        Of all splits, of all sources together.
    clip_slices
        Length of training clips, in slices; None: not checked.
    axes
        Axes that clips run along: `z`, `y`, `x`.
    cache_folder
        Where what was found in masks is kept, so that other processes need not read them; None: in memory.
    grey_values
        Also read every tomogram, for NaN, constant volumes and contrast.
    progress
        Called with (samples examined, samples in all).

    Returns
    -------
    tuple
        What is known of each sample, and all findings: those of single samples in their order, then those of several.
    """
    examined: list[Examined] = []
    findings: list[Finding] = []
    for done, sample in enumerate(samples, 1):
        length = clip_slices if sample.split == "train" else None
        facts = _examine(sample, findings, length, axes, cache_folder, grey_values)
        examined.append(facts)
        if sample.split in SPLITS and sample.written_split not in ("", sample.split):
            findings.append(warning(sample.name, f"split {sample.written_split}: taken as {sample.split}"))
        if sample.split not in SPLITS:
            near = difflib.get_close_matches(sample.split, SPLITS, n=1, cutoff=0.5)
            findings.append(
                warning(
                    sample.name,
                    f"split {sample.split}: used for nothing",
                    f"write {' or '.join(near or SPLITS)}, unless that is meant",
                )
            )
        if progress is not None:
            progress(done, len(samples))
    return examined, [*findings, *compare(examined)]


def check_samples(
    samples: Sequence[Sample],
    *,
    clip_slices: int | None = None,
    axes: Sequence[str] = ("z",),
    splits: Sequence[str] = ("train", "val"),
    cache_folder: Path | None = None,
) -> list[Examined]:
    """Find everything that is wrong with a list of samples, before any work starts; gives what is known of each.

    Parameters
    ----------
    samples, clip_slices, axes, cache_folder
        As for `examine`.
    splits
        Splits that must have at least one sample.

    Raises
    ------
    InputError
        One line with all faults: files missing or unreadable, shapes that differ, masks empty or not binary, voxel
        sizes of tomogram, mask and manifest more than 1 % apart, clips longer than the tomogram, splits missing, a
        tomogram in two splits (the same file, or a copy of it), one name or one mask for two tomograms.
    """
    examined, findings = examine(samples, clip_slices=clip_slices, axes=axes, cache_folder=cache_folder)
    findings = [*missing_splits(samples, splits), *findings]
    faults = [finding.text for finding in findings if finding.severity == "fault"]
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InputError.of(f"{count} in the training data", faults)
    return examined


def missing_splits(
    samples: Sequence[Sample], splits: Sequence[str], severity: Literal["fault", "warning"] = "fault"
) -> Iterator[Finding]:
    """Findings for splits that have no sample."""
    present = sorted({sample.split for sample in samples})
    for split in splits:
        if split not in present:
            what = f"no {split} split (splits found: {', '.join(present) or 'none'})"
            advice = f"training needs one: write {split} in the column split of a tomogram"
            yield Finding("", severity, what, advice)


def _examine(
    sample: Sample,
    findings: list[Finding],
    clip_slices: int | None,
    axes: Sequence[str],
    cache_folder: Path | None,
    grey_values: bool,
) -> Examined:
    """Look at one sample; what is wrong is added to `findings`."""
    opened: dict[str, Volume] = {}
    for role, path in (("tomogram", sample.tomogram), ("mask", sample.target_mask)):
        try:
            opened[role] = read_volume(path, warn=False)
        except InputError as error:
            findings.append(_from_error(sample, error))
    tomogram, mask = opened.get("tomogram"), opened.get("mask")
    summary, pair, mark = None, None, None
    try:
        if tomogram is not None and mask is not None:
            findings += _pair_faults(sample, tomogram, mask)
        if tomogram is not None:
            findings += _shape_faults(sample, tomogram, clip_slices, axes)
            mark = fingerprint(tomogram)
        if mask is not None:
            summary = mask_summary(sample.target_mask, cache_folder)
            findings += _mask_findings(sample, summary, mask.shape)
        if grey_values and tomogram is not None and mask is not None and tomogram.shape == mask.shape:
            pair = measure_pair(tomogram, mask)
            findings += _grey_findings(sample, pair)
    except InputError as error:
        findings.append(_from_error(sample, error))
    finally:
        for volume in opened.values():
            volume.close()
    if tomogram is None:
        return Examined(sample, summary=summary)
    return Examined(sample, tomogram.shape, tomogram.voxel_size_angstrom, mark, summary, pair)


def _from_error(sample: Sample, error: InputError) -> Finding:
    what, separator, advice = str(error).rpartition("; ")  # how messages are built: found; what to do
    if "\\" in f"{sample.tomogram}{sample.target_mask}":
        return fault(sample.name, str(error), "write / instead of \\ in the manifest")
    return fault(sample.name, what, advice) if separator else fault(sample.name, advice, "correct the manifest")


def _pair_faults(sample: Sample, tomogram: Volume, mask: Volume) -> Iterator[Finding]:
    if mask.shape != tomogram.shape:
        axes = matching_axes(mask.shape, tomogram.shape)
        yield fault(
            sample.name,
            f"mask of shape {mask.shape}, tomogram of {tomogram.shape} ({sample.target_mask})",
            "give the mask that was made for this tomogram"
            if axes is None
            else f"the mask looks transposed: it fits with its axes {axis_exchange(axes)}; write it in that order",
        )
    ours, theirs = tomogram.voxel_size_angstrom, mask.voxel_size_angstrom
    if ours is not None and theirs is not None and _apart(ours, theirs):
        yield fault(
            sample.name,
            f"voxel size {_size_text(ours)} Å in the tomogram, {_size_text(theirs)} Å in the mask (Z x Y x X); more "
            f"than 1 % apart ({sample.target_mask})",
            "correct the header that is wrong",
        )
    stated = sample.voxel_size_angstrom
    if ours is not None and stated is not None and _apart(ours, (stated,) * 3):
        yield fault(
            sample.name,
            f"voxel size {_size_text(ours)} Å in the tomogram's header, {stated:g} Å in the manifest; more than 1 % "
            f"apart ({sample.tomogram})",
            "correct the one that is wrong",
        )
    if ours is None and stated is None:
        yield warning(
            sample.name,
            f"voxel size unknown: neither the header nor the manifest says it ({sample.tomogram})",
            "add a column voxel_size (Å)",
        )


def _apart(one: Sequence[float], other: Sequence[float]) -> bool:
    return any(abs(a - b) > _VOXEL_SIZE_TOLERANCE * a for a, b in zip(one, other, strict=True))


def _size_text(size: Sequence[float]) -> str:
    return " x ".join(f"{side:g}" for side in size)


def _shape_faults(sample: Sample, tomogram: Volume, clip_slices: int | None, axes: Sequence[str]) -> Iterator[Finding]:
    shape = tomogram.shape
    if sample.shape is not None and sample.shape != shape:
        yield fault(
            sample.name,
            f"shape {shape}, but the manifest says {sample.shape} ({sample.tomogram})",
            "correct the manifest, unless it names the wrong file",
        )
    if clip_slices is None:
        return
    for axis in axes:
        side = shape["zyx".index(axis)]
        if clip_slices > side:
            yield fault(
                sample.name,
                f"a clip of {clip_slices} slices is longer than the tomogram, which has {side} along {axis}",
                "set a smaller data.num_slices",
            )


def _mask_findings(sample: Sample, summary: MaskSummary, shape: tuple[int, int, int]) -> Iterator[Finding]:
    path, membrane = sample.target_mask, int(summary.membrane.sum())
    annotated = math.prod(shape) - summary.ignored
    if summary.odd:
        yield fault(
            sample.name,
            f"mask not binary: {summary.odd} voxels such as {summary.odd_value:g}; allowed are 1 (membrane), "
            f"0 (not), 255 or -1 (not annotated) ({path}){odd_value_advice(summary.odd_value)}",
            "write 1 where there is membrane; are the columns tomogram and target_mask exchanged?",
        )
    elif membrane and sample.without_membrane:
        yield fault(
            sample.name,
            f"{membrane} voxels are membrane, but the manifest says without_membrane ({path})",
            "correct the one that is wrong",
        )
    elif not membrane and not sample.without_membrane:
        note = f"; {summary.ignored} voxels are 255 or -1, which means not annotated" if summary.ignored else ""
        advice = "leave this tomogram out, or annotate it; if there is none to mark: column without_membrane, value yes"
        if summary.ignored:
            advice = f"{MARKED_255_ADVICE}; else {advice}"
        yield fault(sample.name, f"mask empty: no voxel is 1{note} ({path})", advice)
    elif membrane > SUSPICIOUS_SHARE * annotated:
        yield warning(
            sample.name,
            f"{100 * membrane / annotated:.0f} % of the mask is membrane ({path})",
            "is it inverted, or does it fill cells instead of following membranes?",
        )


def _grey_findings(sample: Sample, pair: PairMeasurement) -> Iterator[Finding]:
    found = pair.statistics
    if found.nonfinite:
        yield fault(
            sample.name,
            f"{found.nonfinite} of {found.voxels} voxels are NaN or infinite ({sample.tomogram})",
            "repair the tomogram, or set nonfinite=mean to replace them by the mean of the others",
        )
    if not found.maximum > found.minimum:
        yield fault(
            sample.name,
            f"constant: every voxel has the value {found.minimum:g} ({sample.tomogram})",
            "copy or reconstruct the tomogram again",
        )
        return
    if pair.membranes is None and pair.contrast is not None and not pair.crowded:
        yield warning(
            sample.name,
            f"membranes hardly differ from what is around them (contrast {pair.contrast:+.2f}) ({sample.target_mask})",
            "look whether the mask lies on the membranes of this tomogram: is it shifted, mirrored, or of another one?",
        )
    elif pair.membranes not in (None, found.contrast):
        yield warning(
            sample.name,
            f"membranes are {pair.membranes} under the mask (contrast {pair.contrast:+.2f}), but normalize=robust "
            f"would take them for {found.contrast} (skewness {found.skewness:+.2f}) ({sample.tomogram})",
            f"set normalize.membranes={pair.membranes}",
        )


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
