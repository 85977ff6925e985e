"""Compressed tomograms: recognised by content, unpacked chunk by chunk into a temporary file on disk."""

import bz2
import gzip
import os
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from etsam.errors import InputError, OutputError
from etsam.volume.atomic import hold, remove_abandoned

_MAGIC = {b"\x1f\x8b\x08": ".gz", b"BZh": ".bz2"}  # RFC 1952 (with method deflate); bzip2's own documentation
_PREFIX, _SUFFIX = ".etsam-unpacked-", ".part"  # which nobody gives to a file of his own
_CHUNK_BYTES = 1 << 20  # memory needed for unpacking, whatever the size of the file


def packing_of(raw: bytes) -> str | None:
    """Suffix of the compression that a file beginning with these bytes uses; None without compression."""
    return next((packing for magic, packing in _MAGIC.items() if raw.startswith(magic)), None)


def unpack(
    path: Path, packing: str, scratch_dir: str | os.PathLike[str] | None, accept: Callable[[bytes], None]
) -> tuple[Path, int]:
    """Unpack into a new file in `scratch_dir`, which belongs to the caller until `release`.

    What a process that was killed (SIGKILL) left there is removed before.

    Parameters
    ----------
    path
        The compressed file.
    packing
        `.gz` or `.bz2`.
    scratch_dir
        Folder of the new file; None for the system's (`TMPDIR`).
    accept
        Is given the first chunk and raises if going on makes no sense.

    Returns
    -------
    tuple
        The file, and the descriptor that holds it.

    Raises
    ------
    InputError
        If the compressed file is damaged or cut off.
    OutputError
        If `scratch_dir` cannot be written or is full.
    """
    folder = Path(scratch_dir) if scratch_dir is not None else Path(tempfile.gettempdir())
    remove_abandoned(folder, f"{_PREFIX}*{_SUFFIX}")
    try:
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=folder)
    except OSError as error:
        raise _no_place(path, folder, error) from error
    scratch, held = Path(name), hold(Path(name))
    try:
        # unbuffered: a full disk shows in write(), not later in close()
        with os.fdopen(handle, "wb", buffering=0) as target, _open(path, packing) as source:
            chunk = _read(source, path, packing)
            accept(chunk)
            while chunk:
                try:
                    write_all(target, chunk)
                except OSError as error:
                    raise _no_place(path, folder, error) from error
                chunk = _read(source, path, packing)
    except BaseException:
        release(scratch, held, os.getpid())
        raise
    return scratch, held


def write_all(file: IO[bytes], data: bytes | memoryview) -> None:
    """Write everything; an unbuffered file may take less than it is given (2 GiB at once on Linux)."""
    left = memoryview(data).cast("B")
    while len(left):
        left = left[file.write(left) :]


def release(scratch: Path, held: int, pid: int) -> None:
    """Remove the file, unless this is a forked child of process `pid`: the file is the parent's."""
    if os.getpid() == pid:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
    with suppress(OSError):
        os.close(held)


def _open(path: Path, packing: str) -> bz2.BZ2File | gzip.GzipFile:
    return bz2.open(path) if packing == ".bz2" else gzip.open(path)


def _read(source: bz2.BZ2File | gzip.GzipFile, path: Path, packing: str) -> bytes:
    try:
        return source.read(_CHUNK_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: the {packing} file is damaged or cut off ({error}); copy it again") from error


def _no_place(path: Path, folder: Path, error: OSError) -> OutputError:
    reason = error.strerror or error
    return OutputError(f"{folder}: no place to unpack {path}: {reason}; set TMPDIR to another folder")
