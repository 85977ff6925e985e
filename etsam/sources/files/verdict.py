"""Verdict on a file in three lines: what it is, what to look at first, and the command to run."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from etsam.inference.rescale import scale_advice
from etsam.pictures import extent
from etsam.sources.files.inspect import Inspection
from etsam.weights.registry import REGISTRY


def verdict(found: Inspection, picture: Path | None = None) -> tuple[str, ...]:
    """Three lines for someone who wants to go on.

    Parameters
    ----------
    found
        From `inspect_file`.
    picture
        That is drawn of it; None: nobody asked for one.
    """
    kind = found.looks_like
    what = f"{kind[0].upper()}{kind[1:]}: {extent(found.shape, found.voxel_size_angstrom)}"
    if kind in ("mask", "label volume"):
        return what, "Nothing to segment: it says where membranes are, or something like that.", _judge(found)
    if kind != "tomogram":
        doubt = next(iter(found.remarks), "not what etsam segments")
        return what, f"Nothing to segment: {doubt}.", "Give the reconstructed tomogram."
    return (
        f"{what}; {_weights(found)}.",
        f"{_contrast(found, picture)}{_first_remark(found)}",
        f"Run: {_command(found)}",
    )


def _weights(found: Inspection) -> str:
    if found.voxel_size_angstrom is None:
        return "say the voxel size with --voxel-size"
    segmenters = {name: one.voxel_angstrom for name, one in REGISTRY.items() if one.voxel_angstrom is not None}
    fits = [name for name, trained in segmenters.items() if not scale_advice(found.voxel_size_angstrom, trained)]
    if fits:
        return f"the voxel size suits {' and '.join(fits)}"
    return next(f"{name}: {scale_advice(found.voxel_size_angstrom, trained)}" for name, trained in segmenters.items())


def _contrast(found: Inspection, picture: Path | None) -> str:
    look = f"look at the picture ({picture or '--preview'})"
    if not found.contrast_is_clear:
        return f"Whether membranes are DARK or BRIGHT is unclear: {look}."
    if found.contrast == "bright":
        return f"Membranes look BRIGHT (usual is dark): {look}."
    return "Membranes look dark, as usual."


def _first_remark(found: Inspection) -> str:
    return f" But: {'; '.join(found.remarks)}." if found.remarks else ""


def _command(found: Inspection) -> str:
    return " ".join(["etsam predict", shlex.quote(str(found.path)), *_flags(found)])


def _flags(found: Inspection) -> Iterator[str]:
    if not found.contrast_is_clear:
        yield "--membranes dark"
    if found.nonfinite_voxels:
        yield "nonfinite=mean"


def _judge(found: Inspection) -> str:
    return f"To compare it with a prediction: etsam data manifest --help; to clean it: {_clean(found)}"


def _clean(found: Inspection) -> str:
    return f"etsam postprocess {shlex.quote(str(found.path))} cleaned.mrc"
