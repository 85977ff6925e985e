"""Memory that glibc keeps instead of giving it back, while a network runs on a CPU.

Each layer makes tensors of tens of megabytes. By default glibc gets each from the system and gives it back, and the
system clears every page anew: 0.7 of 5.2 s for each slice in the image encoder (base-plus at side 1024, two cores,
measured). Kept, the memory is used again by the next layer. A training step of nano gains 5 % (32 slices, one core,
measured); a prediction by nano nothing that shows (five slices of 256 x 256, four pairs in turns, seconds of one busy
core: 4.76 and 4.80 on average).

All threads share one heap: with one for each, two tiles at a time keep what each of them needs at most (0.1 GB of the
peak, 6 slices of 928 x 960, measured).

It is a setting of the whole process, hence for the programs only: not for a notebook that calls `etsam.segment`.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# parameters of mallopt(3), from malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_MMAPS = 65536  # glibc's own default
_LARGEST_THRESHOLD = 32 << 20  # that glibc accepts; its own rule ends there, too, once such blocks were freed
_KEPT_BYTES = 2**31 - 1

_depth = 0


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Keep freed memory for what comes next, and give it back at the end; nothing where the C library is another."""
    global _depth
    library = _glibc()
    if library is None:
        yield
        return
    _depth += 1
    try:
        if _depth == 1:
            library.mallopt(_ARENA_MAX, 1)  # it stays: glibc has no way back
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            library.mallopt(_MMAP_MAX, _MMAPS)
            library.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
            library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
            library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
