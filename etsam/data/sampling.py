"""Clips of an epoch: their order, their process, and where a resumed run goes on."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from etsam.data.batch import Clip
from etsam.data.clips import ClipDataset
from etsam.errors import ConfigError

log = logging.getLogger(__name__)


class Draw(NamedTuple):
    """One clip of an epoch: which source, and which clip of it. All that a worker needs to know."""

    epoch: int
    source: int
    clip: int


class MixedClips(Dataset[Clip]):
    """Clips of several sources, asked for by `Draw`; its length is that of an epoch."""

    def __init__(self, sources: Sequence[ClipDataset], length: int) -> None:
        self.sources, self._length = sources, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, draw: Draw) -> Clip:
        return self.sources[draw.source].clip(draw.clip, draw.epoch)


# Both samplers derive from torch's so that Lightning takes them as already split over processes.


class ClipSampler(DistributedSampler):
    """Draws of an epoch: a pure function of (seed, epoch), split over processes without overlap.

    Each source has its share of the draws (fractions are rounded at random), and within its share every tomogram comes
    up equally often, give or take one. Draws beyond the last full global batch are left out.

    Parameters
    ----------
    mixed
        What is drawn from; its length is that of an epoch.
    weights
        Of its sources.
    batch_size
        Clips in a batch of one process.
    seed
        Of the order.
    num_replicas, rank
        Number of processes, and which this is.
    repeat
        Every epoch shows the clips of the first one, in the same order.
    """

    def __init__(
        self,
        mixed: MixedClips,
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        num_replicas: int,
        rank: int,
        *,
        repeat: bool = False,
    ) -> None:
        super().__init__(mixed, num_replicas=num_replicas, rank=rank, seed=seed)
        self._sizes = [len(source.samples) for source in mixed.sources]
        self._shares = np.asarray(weights, dtype=np.float64) / sum(weights)
        self._epoch_clips = len(mixed)
        self.global_batch = batch_size * num_replicas
        self._repeat = repeat
        self.start = 0  # global draws to leave out once
        if self._epoch_clips < self.global_batch:
            raise ConfigError(
                f"an epoch of {self._epoch_clips} clips does not fill one batch of {self.global_batch} (batch_size "
                f"{batch_size} x {num_replicas} devices); raise data.clips_per_tomogram or data.epoch_clips, or lower "
                "data.batch_size"
            )

    def plan(self, epoch: int) -> list[Draw]:
        """All draws of an epoch, of all processes together, in order."""
        epoch = 0 if self._repeat else epoch
        rng = np.random.default_rng([self.seed, epoch])
        exact = self._shares * self._epoch_clips
        counts = np.floor(exact + 1e-9).astype(int)
        rest = exact - counts
        missing = self._epoch_clips - int(counts.sum())
        if missing:
            counts += rng.multinomial(missing, np.clip(rest, 0, None) / np.clip(rest, 0, None).sum())
        draws = []
        for source, (count, size) in enumerate(zip(counts, self._sizes, strict=True)):
            rounds = [number * size + rng.permutation(size) for number in range(-(-int(count) // size))]
            draws += [Draw(epoch, source, int(index)) for index in np.concatenate([*rounds, []])[:count]]
        return [draws[i] for i in rng.permutation(len(draws))]

    def __iter__(self) -> Iterator[Draw]:
        draws = self.plan(self.epoch)[: len(self) * self.num_replicas]
        start, self.start = self.start, 0
        return iter(draws[start + self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return self._epoch_clips // self.global_batch * (self.global_batch // self.num_replicas)


class ValidationSampler(DistributedSampler):
    """Every tomogram once, over all processes; as many items on each, -1 where there is none left."""

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)  # type: ignore[arg-type]
        return (i if i < count else -1 for i in range(self.rank, len(self) * self.num_replicas, self.num_replicas))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.num_replicas)  # type: ignore[arg-type]


class ClipLoader(DataLoader):
    """A loader whose state is (epoch, position): Lightning saves it in checkpoints and gives it back on resuming.

    Position counts clips of all processes together, so that a run may go on with another number of devices; then the
    number of batches that Lightning remembers no longer fits, and that one epoch may end early. With other clips in a
    batch of all processes a learning rate means something else, hence a warning.
    """

    _done = 0  # clips of the current epoch that were handed out, of all processes together
    _resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Lightning asks for the iterator before it sets the epoch; the body of a generator runs at the first batch
        sampler: ClipSampler = self.sampler  # type: ignore[assignment]
        resume, self._resume = self._resume, None
        self._done = resume["position"] if resume is not None and resume["epoch"] == sampler.epoch else 0
        sampler.start = self._done
        for batch in super().__iter__():
            self._done += sampler.global_batch
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch and position."""
        if self._resume is not None:  # loaded, and not begun yet
            return dict(self._resume)
        sampler: ClipSampler = self.sampler  # type: ignore[assignment]
        return {"epoch": sampler.epoch, "position": self._done, "global_batch": sampler.global_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration, if it is of the same epoch, with the clips that have not been handed out."""
        self._resume = {name: int(value) for name, value in state.items()}
        sampler: ClipSampler = self.sampler  # type: ignore[assignment]
        sampler.set_epoch(self._resume["epoch"])
        before = self._resume.get("global_batch", sampler.global_batch)
        if before != sampler.global_batch:
            log.warning(
                "a batch is now %d clips on all devices together, and was %d: data.batch_size or the number of devices "
                "has changed, which changes what the learning rate means",
                sampler.global_batch,
                before,
            )
