"""Tomograms that are evaluated, and their predictions."""

import logging
import os
from collections.abc import Mapping
from typing import NamedTuple

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from etsam.data.manifest import Sample, read_manifest
from etsam.errors import ConfigError, InputError
from etsam.evaluation.result_store import ResultStore
from etsam.evaluation.stored import find_predictions, folder_and_pattern

log = logging.getLogger(__name__)

OWN_METHOD = "etsam"
"""Name of the predictions that are made in the run."""


class Job(NamedTuple):
    """One prediction to be scored.

    Attributes
    ----------
    method
        Name of the result set.
    name
        `dataset_id/run_id`.
    tomogram, target_mask
        Files.
    prediction
        File; empty if the prediction is made in this run.
    voxel_size_angstrom
        Of the manifest; 0 if it does not say.
    fault
        Why there is no prediction; else empty.
    without_membrane
        The manifest says that there is none.
    """

    method: str
    name: str
    tomogram: str
    target_mask: str
    prediction: str = ""
    voxel_size_angstrom: float = 0.0
    fault: str = ""
    without_membrane: bool = False

    @property
    def inputs(self) -> list[str]:
        """Files that the scores depend on."""
        return [self.target_mask, self.prediction or self.tomogram]


class EvaluationData(LightningDataModule):
    """Tomograms with their masks from a manifest; several processes share them out.

    Parameters
    ----------
    manifest
        CSV, see `etsam.data.manifest`.
    split
        Which rows; None: `test`, or `val` if there is no `test`.
    predictions
        None: predictions are made in this run. A folder, or a pattern of files in one, or names of methods with one of
        these each: those are scored.
    name
        Of the method, unless `predictions` names them; None: `etsam`, or the folder's name.
    root
        Folder that relative file names start from; None: the manifest's.

    Raises
    ------
    InputError
        If the manifest cannot be used, has no such split or a tomogram twice, or a folder cannot be read.
    ConfigError
        If `predictions` is none of those.
    """

    def __init__(
        self,
        manifest: str | os.PathLike[str],
        split: str | None = None,
        predictions: str | os.PathLike[str] | Mapping[str, str] | None = None,
        name: str | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer tomograms than processes
        self.samples = _of_split(read_manifest(manifest, root), split, str(manifest))
        self.folders = _folders(predictions, name)
        self.methods = list(self.folders) or [name or OWN_METHOD]
        self.jobs = [] if self.folders else [_job(self.methods[0], sample) for sample in self.samples]
        for method, folder in self.folders.items():
            found = find_predictions(folder, self.samples)
            for sample in self.samples:
                file = found[sample.name]
                job = _job(method, sample)
                fault = isinstance(file, str)
                self.jobs.append(job._replace(fault=str(file)) if fault else job._replace(prediction=str(file)))
        self.open_jobs = self.jobs

    def leave_out_complete(self, store: ResultStore) -> None:
        """Take out what is complete.

        Raises
        ------
        OutputError
            If a result is there that may be neither kept nor replaced.
        """
        self.open_jobs = [job for job in self.jobs if not store.complete(job.method, job.name, job.inputs)]
        if len(self.open_jobs) < len(self.jobs):
            log.info("%d of %d results are complete", len(self.jobs) - len(self.open_jobs), len(self.jobs))

    def test_dataloader(self) -> DataLoader:
        """A job a batch, to each process its share."""
        assert self.trainer is not None
        mine = self.open_jobs[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]


def _job(method: str, sample: Sample) -> Job:
    return Job(
        method=method,
        name=sample.name,
        tomogram=str(sample.tomogram),
        target_mask=str(sample.target_mask),
        voxel_size_angstrom=sample.voxel_size_angstrom or 0.0,
        without_membrane=sample.without_membrane,
    )


def _of_split(samples: list[Sample], split: str | None, manifest: str) -> list[Sample]:
    present = sorted({sample.split for sample in samples})
    wanted = split if split is not None else next((name for name in ("test", "val") if name in present), "test")
    chosen = [sample for sample in samples if sample.split == wanted]
    if not chosen:
        raise InputError(
            f"{manifest} has no tomogram of the split {wanted}; it has {', '.join(present)}; set data.split=NAME."
        )
    names = [sample.name for sample in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{manifest} lists {', '.join(twice)} more than once in the split {wanted}; rename one.")
    return chosen


def _folders(predictions: str | os.PathLike[str] | Mapping[str, str] | None, name: str | None) -> dict[str, str]:
    if predictions is None:
        return {}
    if isinstance(predictions, Mapping):
        given = {str(method): folder for method, folder in predictions.items()}
    elif isinstance(predictions, str | os.PathLike):
        given = {name or folder_and_pattern(predictions)[0].absolute().name: os.fspath(predictions)}
    else:
        given = {}
    if not given or not all(isinstance(folder, str) and folder for folder in given.values()):
        raise ConfigError(
            f"predictions={predictions} does not fit; allowed are a folder, a pattern of files in it, or names with "
            "one each: 'predictions={mine: DIR, other: DIR2}'."
        )
    for method, place in given.items():
        folder, _ = folder_and_pattern(place)
        if not folder.is_dir():
            raise InputError(f"the predictions of {method} are to be in {folder}, which is no folder; check the path.")
    return given
