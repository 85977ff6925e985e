"""Reads slices ahead in a thread, and encodes several in one batch ahead of the tracker."""

import logging
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etsam.network.tracker import SliceFeatures, SliceTracker
from etsam.volume.slices import Slices

log = logging.getLogger(__name__)

READ_AHEAD = 2  # slices; reading one and preparing it takes a fraction of what the network takes


class SlicesAhead:
    """Slices as float32, the last few kept, the next ones read meanwhile by a thread, the only one that reads.

    Several threads may ask: slices are read one at a time. Use it as a context manager, which ends the thread.

    Parameters
    ----------
    slices
        (Z, Y, X).
    kept
        Number of slices that stay in memory, those asked for last.
    ahead
        Number of slices read ahead; 0: each is read when it is asked for, without a thread (on a CPU the network has
        all cores).
    needed
        Those that will be asked for, ascending; None: all.
    pinned
        Those that stay in memory to the end once they were read.
    """

    def __init__(
        self,
        slices: Slices,
        kept: int,
        ahead: int = READ_AHEAD,
        needed: Sequence[int] | None = None,
        pinned: Collection[int] = (),
    ) -> None:
        self._slices, self._kept, self._ahead, self._pinned = slices, kept, ahead, set(pinned)
        self._needed = range(slices.shape[0]) if needed is None else needed
        self._planes: dict[int, Future[np.ndarray]] = {}
        self._lock = threading.Lock()
        self._reader: Executor = ThreadPoolExecutor(1, thread_name_prefix="slices") if ahead else _AtOnce()

    def __enter__(self) -> "SlicesAhead":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Slice `z`, (Y, X) float32; raises what reading it raised."""
        with self._lock:
            self._ask(z)
            asked = self._planes[z]
            place = bisect_right(self._needed, z)
            following = self._needed[place : place + self._ahead]
            for other in following:
                self._ask(other)
            staying = {z, *following} | self._pinned
            others = [other for other in self._planes if other not in staying]
            room = self._kept - (z not in self._pinned)
            for other in others[: max(0, len(others) - room)]:
                del self._planes[other]
        return asked.result()

    def _ask(self, z: int) -> None:
        if z not in self._planes:
            self._planes[z] = self._reader.submit(self._read, z)

    def _read(self, z: int) -> np.ndarray:
        plane = np.asarray(self._slices[z], dtype=np.float32)
        return plane if plane.flags.writeable else plane.copy()  # torch takes what may be written to without a copy


class _AtOnce(Executor):
    """Does what it is given before it returns."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args, **kwargs))
        return done


@dataclass
class EncodeBatch:
    """Number of slices encoded at a time; shared by all that run on one device, because it is their memory.

    Attributes
    ----------
    size
        At least 1.
    halved
        True once it was halved because memory did not suffice, which is done once.
    """

    size: int = 1
    halved: bool = False

    def halve(self) -> bool:
        """Take half as many from now on; False if that was done before, or cannot be."""
        if self.halved or self.size < 2:
            return False
        self.size, self.halved = self.size // 2, True
        torch.cuda.empty_cache()
        log.warning("out of memory while %d slices were encoded together: from now on %d", 2 * self.size, self.size)
        return True


class EncodedAhead:
    """Features of slices, encoded a few at a time.

    Parameters
    ----------
    tracker
        The stage.
    image_at
        Slice index -> (B, C, S, S) image from `tracker.prepare`.
    order
        Slices in the order in which they will be asked for; others are encoded alone.
    batch
        Number at a time.
    """

    def __init__(
        self,
        tracker: SliceTracker,
        image_at: Callable[[int], Tensor],
        order: Sequence[int],
        batch: EncodeBatch | None = None,
    ) -> None:
        self._tracker, self._image_at, self._order = tracker, image_at, order
        self._places = {z: place for place, z in enumerate(order)}
        self._batch = batch or EncodeBatch()
        self._ready: dict[int, SliceFeatures] = {}

    def __getitem__(self, z: int, /) -> SliceFeatures:
        """Features of slice `z` of B tiles; each slice of `order` can be had once.

        Raises
        ------
        torch.OutOfMemoryError
            If half as many slices at a time are still too many.
        """
        if z not in self._ready:
            self._encode(z)
        return self._ready.pop(z)

    def _encode(self, z: int) -> None:
        place = self._places.get(z)
        while True:
            together = [z] if place is None else list(self._order[place : place + self._batch.size])
            images = one_batch([self._image_at(other) for other in together])
            try:
                encoded = self._tracker.encode(images)
            except torch.OutOfMemoryError:
                if len(together) > 1 and self._batch.halve():
                    continue
                raise
            self._ready |= dict(zip(together, encoded.split(len(images) // len(together)), strict=True))
            return


def one_batch(images: list[Tensor]) -> Tensor:
    """Images (B, C, H, W) in one batch; a single one as it is, since a copy of a large tile is 20 MB."""
    return torch.cat(images) if len(images) > 1 else images[0]
