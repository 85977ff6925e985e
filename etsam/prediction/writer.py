"""Predictions -> files: mask, logits, cleaned mask, instances, uncertainty, preview, record, whole or not at all."""

import glob
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from etsam.errors import ConfigError, InputError, OutputError
from etsam.paths import make_folder, refuse_unwritable
from etsam.postprocess.components import StreamedComponents
from etsam.postprocess.steps import InstanceLabels, Step, apply_steps, why_nothing_stays
from etsam.prediction.closing import Closing, OutputFile, viewing_hints
from etsam.prediction.companions import Companion
from etsam.prediction.doubts import Coverage, Mask, doubts
from etsam.prediction.preview import Caption, MaskSections, UncertaintySections, preview
from etsam.prediction.record import (
    FORMATS,
    OutputNames,
    as_json,
    environment,
    peak_memory_mb,
    read_record,
    weights_of,
    write_record,
)
from etsam.prediction.result import Prediction
from etsam.threads import worker_count
from etsam.volume import Location, VolumeWriter, locate, strip_suffix, volume_writer
from etsam.volume.atomic import atomic_path, claim, remove_abandoned
from etsam.volume.location import absolute, checksum_of, display_name, fingerprint_of
from etsam.volume.slices import Progress
from etsam.weights.registry import is_embedded

log = logging.getLogger(__name__)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3f} MB"


def _remove(output: Path) -> None:
    if output.is_dir() and not output.is_symlink():  # OME-Zarr
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


def _same_input(recorded: Mapping[str, Any], path: Location) -> bool:
    """True if the tomogram is the one of a record; records up to version 0.1 hold the SHA-256 of all of it."""
    if "fingerprint" in recorded:
        return bool(recorded["fingerprint"] == fingerprint_of(path))
    return bool(recorded.get("sha256") == checksum_of(path)[0])


class TakenError(InputError):
    """A tomogram that another process is at work on; or, `complete`, that one has segmented meanwhile."""

    def __init__(self, message: str, complete: bool = False) -> None:
        super().__init__(message)
        self.complete = complete


class PredictionWriter:
    """Writes all files of a prediction.

    Parameters
    ----------
    output_dir
        Made if need be.
    infix
        In the names of outputs, such as `_split_processing`.
    stem
        Their start; None: the tomogram's file name without suffix.
    write_logits, write_instances, write_uncertainty, write_preview
        Further outputs.
    output_format
        Of masks, logits, uncertainty and instances: `mrc`, `mrc.gz`, or `zarr` for OME-Zarr with a pyramid
        (`etsam.volume.zarr_writer`).
    postprocess
        Steps in order, by name; with any, a post-processed mask is written beside the mask.
    overwrite
        Replace outputs that exist.
    resume
        Skip tomograms whose record says that they are complete, made with the same settings.
    workers
        Threads of post-processing, as of `etsam.threads.worker_count`.
    settings
        All that decides the result, plain values; compared by `resume` and written to the record.
    progress
        Called slice by slice; None: nobody asks.
    companions
        Further files beside each mask, by name, of which the enabled ones are written.

    Attributes
    ----------
    written
        Masks of the tomograms that are complete, in order.
    subfolders
        Tomogram -> where its outputs go within `output_dir`; empty: directly there.

    Raises
    ------
    ConfigError
        If both `overwrite` and `resume` are set, `infix` names a folder, or `output_format` or `workers` is another.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        infix: str = "",
        stem: str | None = None,
        write_logits: bool = False,
        write_instances: bool = False,
        write_uncertainty: bool = False,
        write_preview: bool = True,
        output_format: Literal["mrc", "mrc.gz", "zarr"] = "mrc",
        postprocess: Mapping[str, Step] | None = None,
        overwrite: bool = False,
        resume: bool = False,
        workers: int | None = None,
        settings: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        companions: Mapping[str, Companion] | None = None,
    ) -> None:
        if overwrite and resume:
            raise ConfigError("overwrite=true replaces what resume=true would keep; set one of them.")
        if os.path.basename(infix) != infix:
            raise ConfigError(f"output_infix={infix} is a part of file names, without /; for a folder use output_dir.")
        if output_format not in FORMATS:
            raise ConfigError(f"output_format={output_format} is unknown; allowed: {', '.join(FORMATS)}.")
        self.output_dir = Path(output_dir)
        self.output_format = output_format
        self.infix, self.stem = infix, stem
        self.write_logits, self.write_instances, self.write_preview = write_logits, write_instances, write_preview
        self.write_uncertainty = write_uncertainty
        self.steps = list((postprocess or {}).values())
        self.overwrite, self.resume, self.workers = overwrite, resume, worker_count(workers)
        self.settings, self.progress = dict(settings or {}), progress
        self.companions = [one for one in (companions or {}).values() if one.enabled]
        self.written: list[Path] = []
        self._claims, self._claimed, self._marked = ExitStack(), False, False
        self.subfolders: Mapping[Location, Path] = {}

    def names(self, path: Location) -> OutputNames:
        """Output files of the tomogram at `path`."""
        folder = self.output_dir / self.subfolders.get(path, Path())
        return OutputNames(folder, self.stem or strip_suffix(path), self.infix, f".{self.output_format}")

    def wanted(self, path: Location) -> list[Path]:
        """List the outputs that this run writes for a tomogram."""
        return [*self._needed(path), *(one.path(self.names(path)) for one in self.companions)]

    def _needed(self, path: Location) -> list[Path]:
        """Outputs without which a tomogram is not complete: all but companions, which runs of old did not write."""
        names = self.names(path)
        wanted = [names.mask, names.record]
        wanted += [names.logits] * self.write_logits + [names.instances] * self.write_instances
        wanted += [names.uncertainty] * self.write_uncertainty
        wanted += [names.preview] * self.write_preview + [names.post_processed_mask] * bool(self.steps)
        return wanted

    def check(
        self, voxels: Mapping[Location, int], scratch_bytes: Mapping[Location, int] | None = None
    ) -> list[Location]:
        """Make the folder, and refuse to touch what is there or to fill the disk, before anything is computed.

        Parameters
        ----------
        voxels
            Tomogram -> number of its voxels, 0 if unknown.
        scratch_bytes
            Tomogram -> bytes that wait in the output folder while it is at work.

        Returns
        -------
        list
            Tomograms that are still to be done, in order: all but those that `resume` keeps.

        Raises
        ------
        OutputError
            If the folder cannot be made or written, or an output exists and neither `overwrite` nor `resume` is set.
        """
        make_folder(self.output_dir)
        todo = [path for path in voxels if not (self.resume and self.complete(path))]
        for folder in sorted({self.output_dir, *(self.names(path).folder for path in todo)}):
            if folder.exists():
                refuse_unwritable(folder)
                remove_abandoned(folder, f".*_etsam_predicted*.{'?' * 12}.part")  # their room is needed
        voxel_bytes = 1 + bool(self.steps) + 4 * (self.write_logits + self.write_uncertainty) + 2 * self.write_instances
        if self.output_format == "zarr":
            voxel_bytes = (
                0  # compressed to nobody knows what: masks to a tenth or less, logits to nearly nothing or not
            )
        scratch = max((scratch_bytes[path] for path in todo), default=0) if scratch_bytes else 0
        needed = voxel_bytes * sum(voxels[path] for path in todo) + scratch
        free = shutil.disk_usage(self.output_dir).free
        if needed > free:
            raise OutputError(
                f"the outputs need {_size(needed)}{f', {_size(scratch)} of it meanwhile' if scratch else ''}, and "
                f"{self.output_dir} has {_size(free)} free; free some space or choose another output_dir."
            )
        for path in voxels.keys() - set(todo):
            log.info("%s: complete, skipped", display_name(path))
            remove_abandoned(self.names(path).folder, glob.escape(self.names(path).claim.name))
        self._refuse_existing(todo)
        return todo

    def _refuse_existing(self, todo: Iterable[Location]) -> None:
        if self.overwrite or self.resume:
            return
        existing = [file for path in todo for file in self.wanted(path) if file.exists()]
        if existing:
            more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
            raise OutputError(
                f"{existing[0]} exists already{more}; set overwrite=true to replace it, resume=true to keep what is "
                "complete, or choose another output_dir."
            )

    def claim(self, path: Location, again: bool = False) -> None:
        """Keep other processes from a tomogram until `release`.

        Parameters
        ----------
        path
            The tomogram.
        again
            It was left to another process before, so that `overwrite` keeps what that has made of it.

        Raises
        ------
        TakenError
            If another process makes the same outputs, or, `complete`, has made them meanwhile.
        OutputError
            If another process makes or has made other outputs of these names, or the folder cannot be written.
        InputError
            If the tomogram cannot be read.
        """
        self._take(path)
        if (again or not self.overwrite) and self.complete(path):
            raise TakenError(f"{display_name(path)}: complete, skipped", complete=True)
        self._refuse_existing([path])

    def _take(self, path: Location) -> None:
        names = self.names(path)
        make_folder(names.folder)
        begun = {
            "input": {"path": absolute(path), "fingerprint": fingerprint_of(path)},
            "outputs": [file.name for file in self.wanted(path)],
            "settings": self.settings,
        }
        self._marked = names.claim.exists()
        half_made = self._marked and self._unknown(names) is not None
        lock = claim(names.claim, as_json(begun), kept=lambda: half_made and self._unknown(names) is not None)
        self._claimed = self._claims.enter_context(lock)
        if not self._claimed:
            raise self._taken(path)

    def _taken(self, path: Location) -> TakenError | OutputError:
        """Reason why a tomogram cannot be claimed: another process makes the same of it, or something else."""
        names = self.names(path)
        needed, difference = {file.name for file in self._needed(path)}, ""
        for seconds in (0, 0.1, 0.4):  # who has just begun may not have said yet of what
            time.sleep(seconds)
            with suppress(OutputError):  # nothing said
                begun = read_record(names.claim)
                if begun is None:
                    break
                lacking = ", ".join(sorted(needed - set(begun["outputs"])))
                difference = self._difference(begun, path) or (f"without {lacking}" if lacking else "")
                if not difference:
                    break
        if difference:
            return OutputError(
                f"{path}: another process is making {names.mask} {difference}; choose another output_dir."
            )
        return TakenError(f"{path}: another process is segmenting it into {self.output_dir}")

    def release(self) -> None:
        """Give up what was claimed."""
        self._claims.close()
        self._claimed = False

    def complete(self, path: Location) -> bool:
        """True if all outputs of this tomogram are there as this run would make them.

        Raises
        ------
        OutputError
            If its outputs were made with other settings, or of another file or content of it, or are there without a
            record: then nobody knows whose they are.
        """
        names = self.names(path)
        record = read_record(names.record)
        if record is None:
            unknown = self._unknown(names)
            # with the lock of who was killed beside it, it is ours, half made
            if unknown is not None and not (self._marked if self._claimed else names.claim.exists()):
                raise OutputError(
                    f"{unknown} is there without the record of a complete run; is it another program's? Move it away, "
                    "choose another output_dir, or set overwrite=true to replace it."
                )
            return False
        difference = self._difference(record, path)
        if difference:
            raise OutputError(
                f"{names.mask} was made {difference}; choose another output_dir, or set overwrite=true to make it anew."
            )
        return all(file.exists() for file in self._needed(path))

    @staticmethod
    def _unknown(names: OutputNames) -> Path | None:
        """Output without a record."""
        if names.record.exists():
            return None
        return next((file for file in names.every() if os.path.lexists(file)), None)

    def _difference(self, record: Mapping[str, Any], path: Location) -> str:
        """Difference of the tomogram and settings of a record, or of a lock, to this run's; empty if there is none."""
        known = record["settings"]
        different = sorted(key for key in self.settings | known if self.settings.get(key) != known.get(key))
        if different:
            return f"with other settings ({', '.join(different)})"
        inputs = [(path, record["input"])]
        inputs += [(locate(one["path"]), one) for one in record["input"].get("also", [])]
        for used, recorded in inputs:
            if not _same_input(recorded, used):
                other = recorded.get("path", absolute(used))
                return (
                    f"from {used}, which has changed since" if other == absolute(used) else f"from {other}, not {used}"
                )
        return ""

    def write(self, prediction: Prediction) -> OutputNames:
        """Write all outputs of a prediction.

        Raises
        ------
        OutputError
            If an output cannot be written; none of this tomogram's is left then.
            What `overwrite` and `resume` had begun to replace is gone, too.
        TakenError
            If it is not claimed, and another process is at work on it.
        """
        path, unclaimed = prediction.volume.path, not self._claimed
        assert path is not None
        made: list[Path] = []
        try:
            if unclaimed:
                self._take(path)
            return self._write(prediction, made)
        except BaseException:
            for file in made:  # without their record they would be in the way of the next run
                _remove(file)
            raise
        finally:
            if unclaimed:
                self.release()

    def _write(self, prediction: Prediction, made: list[Path]) -> OutputNames:
        """Write all outputs; what has to go if this fails is in `made`."""
        volume, started, progress = prediction.volume, time.perf_counter(), self.progress
        assert volume.path is not None
        names = self.names(volume.path)
        replace = self.overwrite or self.resume  # what resume finds incomplete is made anew
        depth = volume.shape[0]
        sections, before = MaskSections(prediction.grey), Coverage(volume.shape)
        coverage = Coverage(volume.shape) if self.steps else before
        in_making = [one.begin(prediction, names, bool(self.steps)) for one in self.companions]

        def named(path: Path) -> None:
            # what is pushed before the writer runs after it: then the file has its name
            stack.push(lambda kind, *_: made.append(path) if kind is None else None)

        def writer(path: Path, dtype: type) -> VolumeWriter:
            named(path)
            return stack.enter_context(volume_writer(path, volume.shape, dtype, volume, replace))

        with ExitStack() as stack:  # all files get their names at the end, or none
            mask = writer(names.mask, bool)
            logits = writer(names.logits, np.float32) if self.write_logits else None
            unsure = prediction.uncertainty if self.write_uncertainty else None
            chances = None if unsure is None else writer(names.uncertainty, np.float32)
            doubt = None if unsure is None else UncertaintySections(prediction.grey)
            for z in range(depth):
                plane = prediction.logits[z]
                mask[z] = membrane = plane > prediction.threshold
                before.add(z, membrane)
                if logits is not None:
                    logits[z] = plane
                if unsure is not None and chances is not None and doubt is not None:
                    chances[z] = chance = unsure[z]
                    doubt.add(z, chance)
                    for one in in_making:
                        one.add_uncertainty(z, chance)
                for one in in_making:
                    one.add_logits(z, plane)
                if progress is not None:
                    progress("writing", z + 1, depth)
            final = mask
            if self.steps:
                final = writer(names.post_processed_mask, bool)
                cleaned = apply_steps(mask, self.steps, workers=self.workers)
                for z in range(depth):
                    final[z] = cleaned[z]
                    if progress is not None:
                        progress("post-processing", z + 1, depth)
            if self.write_instances:
                labels, instances = InstanceLabels()(final), writer(names.instances, np.uint16)
                pieces = 0  # the numbers are without gaps
                for z in range(depth):
                    instances[z] = plane = labels[z]
                    pieces = max(pieces, int(plane.max()))
            else:
                pieces = StreamedComponents(final, InstanceLabels.connectivity).count
            for z in range(depth):
                plane = final[z]
                if self.steps:
                    coverage.add(z, plane)
                sections.add(z, plane)
                for one in in_making:
                    one.add_mask(z, plane)
            fraction = coverage.share
            if self.write_preview:
                if prediction.regions is not None:
                    sections.outside = prediction.regions.outside
                caption = Caption(
                    display_name(volume.path),
                    prediction.threshold,
                    pieces,
                    weights=weights_of(self.settings),
                    cleaned=bool(self.steps),
                )
                named(names.preview)
                picture = stack.enter_context(atomic_path(names.preview, replace))
                picture.write_bytes(preview(prediction.grey, sections, caption, doubt))
            if replace:  # what is there was complete until now
                made += [*names.every(), names.record]
                names.record.unlink(missing_ok=True)
        seconds = prediction.seconds | {"write": time.perf_counter() - started}
        shares = {names.mask.name: before.share}
        if self.steps:
            shares[names.post_processed_mask.name] = coverage.share
        mask_found = Mask(
            coverage.share,
            before.share,
            coverage.only_at_border,
            prediction.contrast,
            prediction.contrast_is_guessed,
            prediction.threshold,
            why_nothing_stays(self.steps, depth),
        )
        warnings = list(doubts(mask_found))
        record = self._record(prediction, fraction, seconds) | {
            "membrane_share_of": shares,
            "pieces": pieces,
            "threshold": prediction.threshold,
            "demo_weights": any(map(is_embedded, weights_of(self.settings))),
            "warnings": warnings,
        }
        if doubt is not None:
            record["uncertainty"] = {"mean": doubt.mean, "calibration": prediction.calibration}
        if prediction.choice is not None:
            record["threshold_choice"] = prediction.choice.facts()
        if prediction.regions is not None:
            record["regions"] = prediction.regions.facts()
        record["notes"] = [found.words() for found in (prediction.choice, prediction.regions) if found is not None]
        for kind, one in zip(self.companions, in_making, strict=True):
            one.write(record, replace)
            made.append(kind.path(names))
        if in_making:
            record["seconds"]["companions"] = round(time.perf_counter() - started - seconds["write"], 3)
        if replace:
            self._remove_stale(volume.path)
        write_record(names.record, record, replace)
        made.clear()
        self.written.append(names.mask)
        for warning in warnings:
            log.warning("%s: %s", display_name(volume.path), warning)
        self._tell(volume.path, names, record)
        return names

    def _remove_stale(self, path: Location) -> None:
        """Remove what an earlier run left beside the mask and this one did not make: it belongs to another mask."""
        wanted = self.wanted(path)
        for file in self.names(path).every():
            if file not in wanted and os.path.lexists(file):
                _remove(file)
                log.info("removed %s, which was of an earlier mask", file)

    def _tell(self, path: Location, names: OutputNames, record: Mapping[str, Any]) -> None:
        """Closing block in a terminal, one line elsewhere; the number beside a file is that file's."""
        pieces = f"{record['pieces']} piece{'' if record['pieces'] == 1 else 's'}"  # of the last mask
        shares = [f"{100 * share:.2f} %" for share in record["membrane_share_of"].values()]
        found, cleaned = f"{shares[0]} membrane", f"after clean-up {shares[-1]}, {pieces}"
        files = [OutputFile("mask", names.mask)]
        if self.steps:
            files.append(OutputFile("cleaned mask", names.post_processed_mask, cleaned))
        else:
            found += f", {pieces}"
        if self.write_instances:
            files.append(OutputFile("instances", names.instances, f"{pieces} numbered"))
        if self.write_logits:
            files.append(OutputFile("logits", names.logits))
        if self.write_uncertainty:
            files.append(OutputFile("uncertainty", names.uncertainty))
        if self.write_preview:
            files.append(OutputFile("picture", names.preview))
        beside = [one.path(names) for one in self.companions]
        files += [OutputFile("script" if file.suffix == ".cxc" else "page", file) for file in beside]
        hints = viewing_hints(
            path,
            names.post_processed_mask if self.steps else names.mask,
            script=next((file for file in beside if file.suffix == ".cxc"), None),
            logits=names.logits if self.write_logits else None,
        )
        closing = Closing(
            path,
            found,
            f"{found}, {cleaned}" if self.steps else found,
            sum(record["seconds"].values()),
            ", ".join(f"{megabytes / 1e3:.1f} GB {kind}" for kind, megabytes in record["peak_memory_mb"].items()),
            files,
            hints,
            record["notes"],
        )
        log.info("%s", closing.line(), extra={"screen": closing.block()})

    def _record(self, prediction: Prediction, fraction: float, seconds: Mapping[str, float]) -> dict[str, Any]:
        volume = prediction.volume
        assert volume.path is not None
        also = [{"path": absolute(locate(path)), "fingerprint": one} for path, one in prediction.also.items()]
        return {
            "input": {
                "path": absolute(volume.path),
                "fingerprint": prediction.fingerprint,
                "shape_zyx": list(volume.shape),
                "dtype": str(volume.dtype),
                "voxel_size_angstrom_zyx": volume.voxel_size_angstrom,
            }
            | ({"also": also} if also else {}),
            "outputs": [path.name for path in self.wanted(volume.path)],
            "membrane_share": fraction,
            "tiles": prediction.tiles,
            "seconds": {part: round(value, 3) for part, value in seconds.items()},
            "peak_memory_mb": peak_memory_mb(),
            "settings": self.settings,
            "environment": environment(),
        }
