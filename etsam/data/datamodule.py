"""Named sources of tomograms mixed by weight, shared out over processes, resumable in the middle of an epoch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from etsam.data.batch import collate
from etsam.data.checks import Examined, check_samples
from etsam.data.clips import ClipDataset
from etsam.data.manifest import Sample, read_manifest
from etsam.data.sampling import ClipLoader, ClipSampler, MixedClips, ValidationSampler
from etsam.errors import ConfigError, InputError
from etsam.inference.two_stage import Stage2Inputs
from etsam.normalize import Normalization
from etsam.volume import Location, Slices


@dataclass(frozen=True)
class Source:
    """One named source of tomograms.

    Attributes
    ----------
    manifest
        CSV file, see `etsam.data.manifest`.
    weight
        Share of the clips, relative to the other sources; 0: for validation only.
    root
        Folder that relative file names in the manifest start from; default: the manifest's own.
    """

    manifest: str | os.PathLike[str]
    weight: float = 1.0
    root: str | os.PathLike[str] | None = None


class ValidationItem(NamedTuple):
    """One tomogram to validate on or to test by.

    Attributes
    ----------
    number
        As `TomogramClips.normalized` takes it; -1 for a process that has run out of tomograms while others still work:
        nothing to do.
    source
        Name of the source.
    dataset_id, run_id, tomogram, target_mask
        As in `Sample`, which Lightning would refuse as a batch because it is frozen.
    """

    number: int
    source: str
    dataset_id: str
    run_id: str
    tomogram: Location
    target_mask: Location


class _Validation(Dataset[ValidationItem]):
    def __init__(self, items: Sequence[ValidationItem]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> ValidationItem:
        return self._items[index] if index >= 0 else ValidationItem(-1, "", "", "", Path(), Path())


class TomogramClips(LightningDataModule):
    """Training clips and validation tomograms of several sources.

    Parameters
    ----------
    sources
        Name -> `Source`, or its fields.
    normalization
        The method of prediction.
    num_slices, crop, clips_per_tomogram, axes, reverse_probability, foreground_probability, invert_probability,
    stage1_logits, nonfinite
        See `ClipDataset`.
    epoch_clips
        Clips in an epoch; default: `clips_per_tomogram` for every training tomogram of all sources.
    repeat_epoch
        Every epoch shows the same clips: whether a network can learn a few batches by heart.
    with_test
        Also read the tomograms of the split `test`, for `trainer.test`.
    val_tomograms
        Validation tomograms of each source, the first ones; None: all.
    batch_size
        Clips in a batch of one device. The global batch, which the learning rate belongs to, is this times the number
        of devices (times accumulated batches); a resumed or compared run should keep the product.
    num_workers
        Processes that cut clips, for each device.
    pin_memory
        Faster copies to a GPU.
    cache_folder
        Where statistics of the files are kept; with several devices this saves reading every file once for each.
    seed
        Of all random choices.

    Raises
    ------
    ConfigError, InputError
        If settings contradict each other, or a manifest cannot be read. The files are looked at in `check`.
    """

    def __init__(
        self,
        sources: Mapping[str, Source | Mapping[str, Any]],
        normalization: Normalization,
        *,
        num_slices: int = 8,
        context_slices: int = 0,
        crop: int | Sequence[int] | None = None,
        clips_per_tomogram: int = 1,
        epoch_clips: int | None = None,
        repeat_epoch: bool = False,
        val_tomograms: int | None = None,
        with_test: bool = False,
        axes: Sequence[str] = ("z",),
        reverse_probability: float = 0.0,
        foreground_probability: float = 0.0,
        invert_probability: float = 0.0,
        stage1_logits: Stage2Inputs | None = None,
        nonfinite: Literal["error", "mean"] = "error",
        batch_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        cache_folder: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sources = {name: _source(name, given) for name, given in sources.items()}
        if not any(source.weight > 0 for source in self.sources.values()):
            raise ConfigError(f"data.sources has no source with a weight above 0 (sources: {', '.join(sources)}).")
        counts = {"batch_size": batch_size, "epoch_clips": epoch_clips, "val_tomograms": val_tomograms}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ConfigError(f"data.{name}={count} has to be at least 1.")
        if num_workers < 0:
            raise ConfigError(f"data.num_workers={num_workers} has to be at least 0.")
        self.samples = {name: read_manifest(source.manifest, source.root) for name, source in self.sources.items()}
        self.batch_size, self.num_workers, self.pin_memory, self.seed = batch_size, num_workers, pin_memory, seed
        self.epoch_clips, self.val_tomograms = epoch_clips, val_tomograms
        self.repeat_epoch, self.with_test = repeat_epoch, with_test
        self.cache_folder = None if cache_folder is None else Path(cache_folder).expanduser()
        self._clip_settings: dict[str, Any] = {
            "normalization": normalization,
            "num_slices": num_slices,
            "context_slices": context_slices,
            "crop": crop,
            "clips_per_tomogram": clips_per_tomogram,
            "axes": tuple(axes),
            "reverse_probability": reverse_probability,
            "foreground_probability": foreground_probability,
            "invert_probability": invert_probability,
            "stage1_logits": stage1_logits,
            "nonfinite": nonfinite,
            "cache_folder": self.cache_folder,
        }
        ClipDataset([], **self._clip_settings)  # refuses settings that make no sense, before any file is looked at
        self._examined: list[Examined] = []
        self._datasets: tuple[list[ClipDataset], ClipDataset] | None = None
        self._mixed: MixedClips | None = None

    @property
    def validation(self) -> list[tuple[str, Sample]]:
        """(Source, sample) of validation, in the order of configuration; of each source at most `val_tomograms`."""
        return [
            (source, sample)
            for source in self.samples
            for sample in self._of_split(source, "val")[: self.val_tomograms]
        ]

    @property
    def test(self) -> list[tuple[str, Sample]]:
        """(Source, sample) of the split `test`, if it is wanted."""
        return [
            (source, sample) for source in self.samples if self.with_test for sample in self._of_split(source, "test")
        ]

    def _of_split(self, source: str, split: str) -> list[Sample]:
        return [sample for sample in self.samples[source] if sample.split == split]

    @property
    def val_samples(self) -> list[Sample]:
        """Validation samples of all sources."""
        return [sample for _, sample in self.validation]

    @property
    def train_samples(self) -> dict[str, list[Sample]]:
        """Training samples of each source that has a weight."""
        return {
            name: [sample for sample in self.samples[name] if sample.split == "train"]
            for name, source in self.sources.items()
            if source.weight > 0
        }

    @property
    def clips_per_epoch(self) -> int:
        """Clips in an epoch, of all processes together, before what fills no batch is left out."""
        samples = sum(len(group) for group in self.train_samples.values())
        return self.epoch_clips or samples * int(self._clip_settings["clips_per_tomogram"])

    def check(self) -> None:
        """Find everything that is wrong with the files; raises `InputError` with all of it (see `check_samples`)."""
        empty = [name for name, samples in self.train_samples.items() if not samples]
        if empty:
            raise InputError(f"no train split in {', '.join(empty)}; set its weight to 0 to only validate on it")
        if self.val_samples and all(sample.without_membrane for sample in self.val_samples):
            raise InputError(
                "every tomogram to validate on is without membrane; one with membrane is needed for a Dice"
            )
        self._examined = check_samples(
            [sample for samples in self.samples.values() for sample in samples],
            clip_slices=self._clip_settings["num_slices"] - 2 * self._clip_settings["context_slices"],
            axes=self._clip_settings["axes"],
            cache_folder=self.cache_folder,
        )

    def contents(self) -> dict[str, list[list[str]]]:
        """Source -> (name, split, fingerprint of the content) of each tomogram, wherever it lies."""
        self._measured()
        found = iter(self._examined)
        rows = {name: [next(found) for _ in samples] for name, samples in self.samples.items()}
        return {
            name: [[one.sample.name, one.sample.split, one.fingerprint or ""] for one in group]
            for name, group in rows.items()
        }

    def prepare_data(self) -> None:
        """Check and measure all files, once; with a cache folder, for other processes, too.

        Called by a trainer it keeps faults to itself: `setup` finds them again in every process alike, so that none
        waits for another that has ended.
        """
        try:
            self._measured()
        except InputError:
            if self.trainer is None:
                raise

    def setup(self, stage: str | None = None) -> None:
        """Check and measure all files unless this process has, and fuse what stage 2 sees; for `fit`."""
        if stage not in (None, "fit") or self._mixed is not None:
            return
        datasets, _ = self._measured()
        for dataset in datasets:
            dataset.fuse()
        self._mixed = MixedClips(datasets, self.epoch_clips or sum(len(dataset) for dataset in datasets))

    def _measured(self) -> tuple[list[ClipDataset], ClipDataset]:
        """Training clips of each source, and the tomograms of validation and test, checked and measured.

        Validation tomograms are measured here, too, so that NaN is found before an epoch has been learned.
        """
        if self._datasets is None:
            self.check()
            # sources draw independently of each other
            seeds = np.random.SeedSequence(self.seed).generate_state(len(self.train_samples))
            datasets = [
                ClipDataset(samples, seed=int(seed), **self._clip_settings)
                for samples, seed in zip(self.train_samples.values(), seeds, strict=True)
            ]
            whole = {"num_slices": 1, "context_slices": 0, "foreground_probability": 0.0, "stage1_logits": None}
            validation = ClipDataset(
                [sample for _, sample in [*self.validation, *self.test]], **{**self._clip_settings, **whole}
            )
            for dataset in [*datasets, validation]:
                dataset.measure()
            self._datasets = datasets, validation
        return self._datasets

    def normalized(self, number: int) -> Slices:
        """Slices of tomogram `number` of validation and then test, (Z, Y, X) float32, normalised as measured before."""
        return self._measured()[1].normalized(number)

    def tomograms(self) -> list[tuple[Sample, Slices]]:
        """All tomograms that a run reads, with their normalised slices: for training, then for validation."""
        datasets, validation = self._measured()
        return [
            (sample, dataset.normalized(number))
            for dataset in [*datasets, validation]
            for number, sample in enumerate(dataset.samples)
        ]

    def train_dataloader(self) -> ClipLoader:
        """`ClipBatch` after `ClipBatch`; the last, incomplete batch of an epoch is left out."""
        self.setup("fit")
        assert self._mixed is not None
        weights = [self.sources[name].weight for name in self.train_samples]
        processes, repeat = self._processes(), self.repeat_epoch
        sampler = ClipSampler(self._mixed, weights, self.batch_size, self.seed, *processes, repeat=repeat)
        return self._loader(ClipLoader, self._mixed, sampler, batch_size=self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """One `ValidationItem` a batch; reading the tomogram is part of the validation, slice by slice."""
        return self._whole_tomograms(self.validation, 0)

    def test_dataloader(self) -> DataLoader:
        """As `val_dataloader`, of the split `test`."""
        return self._whole_tomograms(self.test, len(self.validation))

    def _whole_tomograms(self, listed: Sequence[tuple[str, Sample]], first: int) -> DataLoader:
        items = [
            ValidationItem(number, source, sample.dataset_id, sample.run_id, sample.tomogram, sample.target_mask)
            for number, (source, sample) in enumerate(listed, first)
        ]
        replicas, rank = self._processes()
        dataset = _Validation(items)
        sampler = ValidationSampler(dataset, num_replicas=replicas, rank=rank, shuffle=False)
        return self._loader(DataLoader, dataset, sampler, batch_size=None, num_workers=0)

    def _processes(self) -> tuple[int, int]:
        """Number of processes, and which this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _loader(
        self,
        kind: type[Any],
        dataset: Dataset,
        sampler: DistributedSampler,
        *,
        batch_size: int | None,
        num_workers: int,
    ) -> Any:
        return kind(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=batch_size is not None,
            collate_fn=collate if batch_size is not None else _as_it_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # or each epoch would take a number from torch's global one
        )


def _as_it_is(item: ValidationItem) -> ValidationItem:
    return item


def _source(name: str, given: Source | Mapping[str, Any]) -> Source:
    if not isinstance(given, Source):
        unknown = set(given) - set(Source.__dataclass_fields__)
        if unknown or "manifest" not in given:
            raise ConfigError(
                f"data.sources.{name} has {', '.join(map(str, given)) or 'no fields'}; allowed are manifest (needed), "
                "weight and root."
            )
        given = Source(**{str(key): value for key, value in given.items()})
    if not 0 <= given.weight < float("inf"):
        raise ConfigError(f"data.sources.{name}.weight={given.weight} has to be 0 or more.")
    return given
