"""Places of the files that belong to the program, in the installed package or beside it in a checkout; checksums."""

import hashlib
import os
import sys
from functools import lru_cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_ROOTS = (_PACKAGE / "share", _PACKAGE.parent)  # wheel (pyproject.toml, force-include), then checkout


def read_names_as_utf8() -> None:
    """Start this program anew in Python's UTF-8 mode, where the locale knows no more than ASCII (`LANG=C`).

    Python takes that mode by itself there, unless `PYTHONUTF8=0` forbids it. Without it names such as `膜.mrc` could
    neither be shown nor written into records and pages.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def resource_paths(*parts: str) -> list[Path]:
    """Existing paths of a shipped file or folder, the installed one first."""
    return [path for path in (root.joinpath(*parts) for root in _ROOTS) if path.exists()]


def resource_path(*parts: str) -> Path:
    """Path of a shipped file or folder.

    Raises
    ------
    FileNotFoundError
        If the installation is incomplete.
    """
    found = resource_paths(*parts)
    if not found:
        raise FileNotFoundError(f"{'/'.join(parts)} is missing from this installation of etsam; reinstall it.")
    return found[0]


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; computed once a process while size and time stamp of the file stay."""
    stat = path.stat()
    return _sha256(path.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
