"""Store of logits of tiles between the stages: in memory, or in an unnamed file beside the outputs."""

import os
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from etsam.errors import OutputError


class LogitStore(Protocol):
    """(Z, tiles, s, s) float32 or float16, one slice position at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, tiles, s, s)."""
        ...

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Logits of slice `z`, (tiles, s, s)."""
        ...

    def __setitem__(self, z: int, value: np.ndarray, /) -> None: ...


class FileStore:
    """A store on disk that costs no memory. The file has no name (where the system allows) and goes with the process.

    Parameters
    ----------
    shape
        (Z, tiles, s, s).
    folder
        Where there is room; the output folder.
    dtype
        Kept numbers; float16 rounds to 11 bits.

    Raises
    ------
    OutputError
        If the folder is not writable or full.
    """

    def __init__(self, shape: tuple[int, ...], folder: Path, dtype: type[np.floating] = np.float32) -> None:
        self.shape, self._folder, self._dtype = shape, folder, np.dtype(dtype)
        self._slice_bytes = int(np.prod(shape[1:])) * self._dtype.itemsize
        try:
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".etsam-", suffix=".part")  # noqa: SIM115 (finalize)
        except OSError as error:
            raise OutputError(f"no temporary file can be made in {folder}: {error.strerror}.") from error
        weakref.finalize(self, _close, self._file)

    def __getitem__(self, z: int, /) -> np.ndarray:
        """Logits of slice `z`, (tiles, s, s)."""
        try:
            self._file.seek(z * self._slice_bytes)
            data = self._file.read(self._slice_bytes)
        except OSError as error:  # not to be taken for one of the tomogram
            raise OutputError(
                f"intermediate logits cannot be read from {self._folder}: {os.strerror(error.errno or 0)}."
            ) from error
        return np.frombuffer(bytearray(data), dtype=self._dtype).reshape(self.shape[1:])

    def __setitem__(self, z: int, value: np.ndarray, /) -> None:
        try:
            self._file.seek(z * self._slice_bytes)
            self._file.write(np.ascontiguousarray(value, dtype=self._dtype).data)
        except OSError as error:
            raise OutputError(
                f"intermediate logits cannot be written to {self._folder}: {os.strerror(error.errno or 0)}."
            ) from error


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # of what still waits to be written, and nobody reads any more
        file.close()


def open_store(shape: tuple[int, ...], folder: Path | None, dtype: type[np.floating] = np.float32) -> LogitStore:
    """In `folder`, or in memory without one."""
    return np.zeros(shape, dtype=dtype) if folder is None else FileStore(shape, folder, dtype)
