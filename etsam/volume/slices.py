"""Volumes that give out one Z slice at a time: what the whole pipeline hands around."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Protocol

import numpy as np

from etsam.errors import InputError
from etsam.threads import in_order, worker_count

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, slices done, slices in all)."""


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


def refuse_single_slice(shape: Sequence[int], name: str) -> None:
    """Raise InputError if a volume (Z, Y, X) has one slice only."""
    if shape[0] == 1:
        raise InputError(f"{name}: one slice only: this is a 2D image; a tomogram has at least two slices.")


@dataclass(frozen=True)
class LazySlices:
    """Slices computed when they are asked for: `slices[z]` is `plane(z)`.

    Attributes
    ----------
    shape
        (Z, Y, X).
    plane
        Gives slice `z`, (Y, X), for `z` from 0 to Z - 1; `slices[z]` checks these bounds and counts negative indices
        from the end.
    """

    shape: tuple[int, ...]
    plane: Callable[[int], np.ndarray]

    @classmethod
    def of(cls, slices: Slices) -> "LazySlices":
        """The same slices, to be cropped and mapped."""
        return cls(tuple(slices.shape), slices.__getitem__)

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Slice `z`, (Y, X); IndexError if there is none."""
        depth = self.shape[0]
        z = index(z)
        if not -depth <= z < depth:
            raise IndexError(f"slice {z} of a volume of {depth} slices")
        return self.plane(z % depth)

    def crop(self, y: slice, x: slice) -> "LazySlices":
        """Rows `y` and columns `x` of each slice, voxels."""
        sides = (len(range(*part.indices(length))) for part, length in zip((y, x), self.shape[1:], strict=True))
        return LazySlices((self.shape[0], *sides), lambda z: self.plane(z)[y, x])

    def window(self, first: int, last: int) -> "LazySlices":
        """Slices `first` to `last`, the latter excluded; IndexError unless 0 <= first <= last <= Z."""
        if not 0 <= first <= last <= self.shape[0]:
            raise IndexError(f"slices {first} to {last} of a volume of {self.shape[0]} slices")
        return LazySlices((last - first, *self.shape[1:]), lambda z: self.plane(first + z))

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "LazySlices":
        """`function` of each slice; it keeps the shape (Y, X)."""
        return LazySlices(self.shape, lambda z: function(self.plane(z)))

    def keep_last(self) -> "LazySlices":
        """The same slices, of which the one that was asked for last is not computed again."""
        last: list[tuple[int, np.ndarray]] = []

        def plane(z: int) -> np.ndarray:
            if not last or last[0][0] != z:
                last[:] = [(z, self.plane(z))]
            return last[0][1]

        return LazySlices(self.shape, plane)


class ReadAhead:
    """A `plane` for `LazySlices` that uses several threads while slices are asked for in order.

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
