"""New masks from stored logits: another threshold or other post-processing, without another prediction."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from etsam.errors import ConfigError, EtsamError, InputError
from etsam.inference.false_marks import ThresholdChoice
from etsam.postprocess.coarse import Coarse
from etsam.postprocess.regions import Regions, RegionSettings
from etsam.postprocess.steps import Step
from etsam.prediction.companions import Companion
from etsam.prediction.preview import Sections
from etsam.prediction.record import OutputNames, read_record
from etsam.prediction.result import Prediction
from etsam.prediction.samples import Samples
from etsam.prediction.writer import PredictionWriter
from etsam.volume import Volume, locate, read_volume, strip_suffix
from etsam.volume.content import NO_MEMBRANE
from etsam.volume.location import Location, absolute, display_name, fingerprint_of, is_zarr
from etsam.volume.slices import Progress

log = logging.getLogger(__name__)

_PREDICTED, _LOGITS = "_etsam_predicted", "_logits"


def names_of_logits(logits: Location, output_dir: Path | None = None) -> OutputNames:
    """Names of the outputs of the run that stored these logits; of any other file, names made from its own.

    Examples
    --------
    >>> names_of_logits(Path("out/TS_1_etsam_predicted_split_processing_logits.mrc")).record.name
    'TS_1_etsam_predicted_split_processing_record.json'
    """
    stem, predicted, infix = strip_suffix(logits).removesuffix(_LOGITS).partition(_PREDICTED)
    folder = output_dir or (logits.parent if isinstance(logits, Path) else Path())
    return OutputNames(folder, stem, infix if predicted else "", ".zarr" if is_zarr(logits) else ".mrc")


def threshold_logits(
    logits: Location,
    thresholds: Sequence[float | Literal["auto"]],
    *,
    postprocess: Mapping[str, Step] | None = None,
    postprocess_settings: Any = None,
    output_dir: Path | None = None,
    preview: bool = True,
    companions: Mapping[str, Companion] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    regions: RegionSettings | None = None,
    false_rate: float | None = None,
) -> list[OutputNames]:
    """Masks of several thresholds, each with its record and picture, as a prediction with that threshold writes them.

    They are named `NAME_etsam_predicted_at_T_mask.mrc`, T being the threshold. What is known of the run is taken from
    the record beside the logits; the tomogram it names is read once, for the picture. Without it the picture shows the
    logits.

    Parameters
    ----------
    logits
        (Z, Y, X) of real numbers, as a run with `write_logits=true` stores them.
    thresholds
        Logits strictly above are membrane; `auto` is chosen from what a run with `threshold=auto` left in its record.
    postprocess, postprocess_settings
        Steps by name, as of `PredictionWriter`, and their plain settings for the record.
    output_dir
        None: where the logits lie.
    preview
        Draw the picture.
    companions
        Further files beside each mask, as of `PredictionWriter`.
    overwrite, workers, progress
        As of `PredictionWriter`.
    regions
        Where nothing is to be marked; what the run left out already stays so.
    false_rate
        Of `auto`: share of what is marked that may be false; None: that of the run.

    Returns
    -------
    list
        Names of the outputs, one entry a threshold.

    Raises
    ------
    ConfigError
        If no threshold is given, one twice, or one that is no finite number.
    InputError
        If the file cannot be read or holds no logits; or its record does not hold what `auto`, or its folder not the
        tomogram that `regions` asks for.
    OutputError
        If an output exists and `overwrite` is not set, or cannot be written.
    """
    if false_rate is not None and "auto" not in thresholds:
        raise ConfigError(f"--false-rate {false_rate} is what --at auto goes by; add that, or leave it out.")
    names = names_of_logits(logits, output_dir)
    record = {} if "auto" not in thresholds else read_record(names_of_logits(logits).record) or {}
    choice = _choice(record, logits, false_rate) if "auto" in thresholds else None
    numbers = [choice.threshold if choice and threshold == "auto" else float(threshold) for threshold in thresholds]
    labels = [f"{threshold:g}" for threshold in numbers]
    if not labels or len(set(labels)) < len(labels) or not np.isfinite(numbers).all():
        raise ConfigError(f"--at {' '.join(labels)}: give one threshold or several different ones, such as --at -0.5 0")
    volume = read_volume(logits, warn=False)
    if volume.dtype.kind != "f":
        raise InputError(
            f"{logits} holds {volume.dtype}, so it is no logits but perhaps a mask; `etsam predict --store-logits` "
            "writes logits"
        )
    record = record or read_record(names_of_logits(logits).record) or {}
    if not record:
        log.warning("%s: no record of a run beside it; taken for logits as it is", display_name(logits))
    tomogram = _tomogram(record, volume)
    fingerprint = fingerprint_of(logits)
    made_from = {"logits": absolute(logits), "fingerprint": fingerprint}
    if tomogram is not volume:
        fingerprint = record["input"].get("fingerprint", {})
    regions = regions or RegionSettings()
    if regions.wanted and tomogram is volume:
        raise InputError(f"{logits}: sample=slab and exclude=... need the tomogram, which its record does not lead to.")
    writers = []
    for threshold, label in zip(numbers, labels, strict=True):
        settings = dict(record.get("settings", {}))
        settings["stage2"] = settings.get("stage2", {}) | {"threshold": float(threshold)}
        settings |= {"postprocess": postprocess_settings, "made_from": made_from}
        if regions.wanted:
            settings |= {"sample": regions.sample, "exclude": list(regions.exclude)}
        writer = PredictionWriter(
            names.folder,
            stem=names.stem,
            infix=f"{names.infix}_at_{label}",
            write_preview=preview,
            companions=companions,
            output_format="zarr" if names.volume_suffix == ".zarr" else "mrc",
            postprocess=postprocess,
            overwrite=overwrite,
            workers=workers,
            settings=settings,
            progress=progress,
        )
        writer.check({tomogram.path or logits: int(np.prod(volume.shape))})
        writers.append(writer)
    grey, samples = Sections(volume.shape, tomogram.voxel_size_angstrom), Samples(volume.shape)
    looked_at = preview or any(one.enabled for one in (companions or {}).values())
    coarse = Coarse(volume.shape, tomogram.voxel_size_angstrom) if regions.wanted else None
    if looked_at or coarse is not None:
        for z in range(volume.shape[0]):
            plane = tomogram[z]
            grey.add(z, plane)
            samples.add(z, plane)
            if coarse is not None:
                coarse.add(z, plane)
    found: Regions | None = None if coarse is None else regions.find(coarse)
    kept = volume if found is None else found.fill(volume, NO_MEMBRANE)
    return [
        writer.write(
            Prediction(
                volume=tomogram,
                stage1_logits=kept,
                logits=kept,
                threshold=threshold,
                tiles=record.get("tiles", 1),
                seconds={},
                grey=grey,
                fingerprint=fingerprint,
                samples=samples if looked_at else None,
                choice=choice if given == "auto" else None,
                regions=found,
            )
        )
        for writer, threshold, given in zip(writers, numbers, thresholds, strict=True)
    ]


def _choice(record: Mapping[str, Any], logits: Location, false_rate: float | None) -> ThresholdChoice:
    """Choice of a threshold from what a run with threshold=auto left in its record."""
    if "threshold_choice" not in record:
        raise InputError(
            f"{display_name(logits)}: --at auto needs what a run with threshold=auto notes in its record, beside the "
            "logits; run `etsam predict --threshold auto --store-logits`."
        )
    if false_rate is not None and not 0 < false_rate < 1:
        raise ConfigError(f"--false-rate {false_rate} is no share between 0 and 1, such as 0.2.")
    return ThresholdChoice.from_facts(record["threshold_choice"], false_rate)


def _tomogram(record: Mapping[str, Any], logits: Volume) -> Volume:
    """Tomogram that a record names, if it is still the same; else the logits themselves, with a warning."""
    known = record.get("input", {})
    if not known.get("path"):
        return logits
    path = locate(known["path"])
    try:
        tomogram = read_volume(path, warn=False)
        if tomogram.shape != logits.shape or known.get("fingerprint", fingerprint_of(path)) != fingerprint_of(path):
            raise InputError(f"{path}: has changed since the logits were made")
        size = known.get("voxel_size_angstrom_zyx")  # the run may have been told another than the header's
        return tomogram if size is None else tomogram.at_voxel_size(tuple(size))
    except EtsamError as error:
        log.warning("%s; the picture shows the logits instead of the tomogram", error)
        return logits
