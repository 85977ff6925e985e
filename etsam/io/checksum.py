"""Checksums of files, read in pieces."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_PIECE_BYTES = 1 << 20


def file_checksums(
    path: Path, algorithms: Iterable[str], check_stop: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """Several checksums of a file in one reading.

    Parameters
    ----------
    path
        The file.
    algorithms
        Names that `hashlib` knows, such as `md5`.
    check_stop
        Called between pieces; may raise to end the reading.

    Returns
    -------
    dict[str, str]
        Algorithm -> hexadecimal digest.
    """
    digests: dict[str, Any] = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            check_stop()
            for digest in digests.values():
                digest.update(piece)
    return {name: digest.hexdigest() for name, digest in digests.items()}
