"""Places: files that belong to the program, installed or in a checkout; folders for outputs; checksums."""

import hashlib
import os
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from etsam.errors import OutputError

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


_made: list[Path] = []  # folders for outputs of the command at work, the inner ones first


def make_folder(folder: Path) -> None:
    """Make a folder for outputs, and those that it lies in; if the command fails, those that stayed empty go again.

    Raises
    ------
    OutputError
        If it cannot be made or written into.
    """
    places = [path.absolute() for path in (folder, *folder.parents)]
    missing = [path for path in places if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
        if file is not None:
            raise OutputError(f"{file} is a file, not a folder for outputs; choose another output_dir.") from error
        raise OutputError(
            f"the output folder {folder} cannot be made ({error.strerror}); choose another output_dir."
        ) from error
    finally:
        _made[:0] = missing
    refuse_unwritable(folder)


def refuse_unwritable(folder: Path) -> None:
    """Raise an OutputError unless files can be made in a folder."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write in the output folder {folder}; choose another output_dir.")


def forget_folders() -> None:
    """Begin a command: what folders are there are not its own."""
    _made.clear()


def remove_empty_folders() -> None:
    """End a command that failed: remove the folders that it made and wrote nothing into."""
    for folder in _made:
        with suppress(OSError):  # it is not empty, or gone
            folder.rmdir()
    _made.clear()


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
