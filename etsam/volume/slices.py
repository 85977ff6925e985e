"""What the whole pipeline hands around: a volume that gives out one Z slice at a time."""

from collections.abc import Callable, Iterator
from operator import index
from typing import Protocol

import numpy as np

from etsam.threads import in_order, worker_count


class Slices(Protocol):
    """Z slices by index, nothing resident.

    A NumPy array of shape (Z, Y, X) is one; so are a `Volume` on disk, a normalised view of it, and a mask that is
    filtered while it is read. `slices[z]` costs one slice of memory, whatever the number of slices.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""
        ...

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Slice `z`, shape (Y, X). The caller may keep the array but must not write into it."""
        ...


class FilteredSlices:
    """A volume whose slices are computed when they are asked for; the last one is kept.

    Parameters
    ----------
    shape
        (Z, Y, X).
    compute
        Gives slice `z`, shape (Y, X), for `z` from 0 to Z - 1.
    """

    def __init__(self, shape: tuple[int, ...], compute: Callable[[int], np.ndarray]) -> None:
        self.shape = tuple(shape)
        self._compute = compute
        self._last: tuple[int, np.ndarray] | None = None

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Slice `z`, shape (Y, X); negative indices count from the end."""
        n_slices = self.shape[0]
        z = index(z)
        if not -n_slices <= z < n_slices:
            raise IndexError(f"slice {z} of a volume of {n_slices} slices")
        z %= n_slices
        last = self._last
        if last is None or last[0] != z:
            self._last = last = (z, self._compute(z))
        return last[1]


class ReadAhead:
    """A `compute` for `FilteredSlices` that uses several threads while slices are asked for in order.

    The slice that is asked for is computed by threads together with up to `workers` of the following ones, if it is
    the first or follows the one before; any other is computed alone. Reading stays in the calling thread. A slice that
    cannot be read or computed raises when it is asked for, not before.

    Parameters
    ----------
    depth
        Z.
    read
        Gives slice `z` of the input.
    compute
        Input slice -> output slice.
    workers
        Threads, as of `etsam.threads.worker_count`.
    """

    def __init__(
        self,
        depth: int,
        read: Callable[[int], np.ndarray],
        compute: Callable[[np.ndarray], np.ndarray],
        workers: int | None,
    ) -> None:
        self._depth, self._read, self._compute = depth, read, compute
        self._workers = worker_count(workers)
        self._following = 0
        self._stream: Iterator[np.ndarray] | None = None  # of the slices from `_following` on

    def __call__(self, z: int) -> np.ndarray:
        """Output slice `z`, 0 to Z - 1."""
        stream, self._stream = self._stream, None  # kept only if all goes well
        if z != self._following:
            plane = self._compute(self._read(z))
        else:
            if stream is None:
                stream = in_order(self._compute, map(self._read, range(z, self._depth)), self._workers)
            plane = next(stream)
            if z + 1 < self._depth:
                self._stream = stream
        self._following = z + 1
        return plane
