"""Everything that can be wrong with the tomograms and masks of a manifest, in one place.

`examine` looks and gives structured findings; `check_samples` is what training asks before its first step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from etsam.data.check_together import compare
from etsam.data.findings import Examined, Finding, fault, warning
from etsam.data.manifest import Sample
from etsam.data.measured import MaskSummary, fingerprint, mask_summary
from etsam.data.pair import SUSPICIOUS_SHARE, PairMeasurement, measure_pair
from etsam.data.placement import axis_exchange, matching_axes
from etsam.errors import InputError
from etsam.io import Volume, read_volume

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
        Also read every tomogram, for NaN, constant volumes, contrast, and masks that are shifted or turned.
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
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Find everything that is wrong with a list of samples, before any work starts.

    Parameters
    ----------
    samples, clip_slices, axes, cache_folder, progress
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
    _, findings = examine(samples, clip_slices=clip_slices, axes=axes, cache_folder=cache_folder, progress=progress)
    findings = [*missing_splits(samples, splits), *findings]
    faults = [finding.text for finding in findings if finding.severity == "fault"]
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise InputError(f"{count} in the training data: {' | '.join(faults)}")


def missing_splits(
    samples: Sequence[Sample], splits: Sequence[str], severity: Literal["fault", "warning"] = "fault"
) -> Iterator[Finding]:
    """Findings for splits that have no sample."""
    present = sorted({sample.split for sample in samples})
    for split in splits:
        if split not in present:
            what = f"no {split} split (splits found: {', '.join(present) or 'none'})"
            yield Finding("", severity, what, "training needs one" if severity == "warning" else "")


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
            f"0 (not), 255 or -1 (not annotated) ({path})",
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
        yield fault(
            sample.name,
            f"mask empty: no voxel is 1{note} ({path})",
            "leave this tomogram out, or annotate it; if there is none to mark: column without_membrane, value yes",
        )
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
    if pair.placement is not None:
        yield fault(
            sample.name,
            f"the mask does not lie where the membranes are; it would fit {pair.placement.what} ({sample.target_mask})",
            "write the mask again in that place",
        )
    elif pair.membranes is None and pair.contrast is not None and not pair.crowded:
        yield warning(
            sample.name,
            f"membranes hardly differ from what is around them (contrast {pair.contrast:+.2f}) ({sample.target_mask})",
            "look whether the mask lies on the membranes of this tomogram",
        )
    elif pair.membranes not in (None, found.contrast):
        yield warning(
            sample.name,
            f"membranes are {pair.membranes} under the mask (contrast {pair.contrast:+.2f}), but normalize=robust "
            f"would take them for {found.contrast} (skewness {found.skewness:+.2f}) ({sample.tomogram})",
            f"set normalize.membranes={pair.membranes}",
        )
