"""Outputs that are complete or not there: written under a temporary name in the same folder, then renamed."""

import errno
import fcntl
import glob
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from etsam.errors import OutputError

log = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# Answers of file systems without hard links (exFAT, SMB and FUSE mounts, some parallel file systems)
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


@contextmanager
def atomic_path(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Lend a temporary path whose file becomes `path` when the block ends well, and vanishes when it does not.

    The temporary file lies in the folder of `path`, so that renaming never copies; its name starts with a dot and
    ends in `.part`. It exists, empty, when the block starts. Libraries that choose a format by suffix need to be told
    the format.

    Parameters
    ----------
    path
        Where the output shall lie; its folder must exist.
    overwrite
        Replace an existing file. Without it an existing file is an error, both at the start and, if another process
        was faster, at the end.

    Yields
    ------
    Path
        The temporary file.

    Raises
    ------
    OutputError
        If `path` exists, cannot be written, or the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "run.json") as part:
    ...     _ = part.write_text("{}")
    >>> [entry.name for entry in folder.iterdir()]
    ['run.json']
    """
    target = Path(path)
    refuse_existing(target, overwrite)
    remove_abandoned(target.parent, f".{glob.escape(target.name[:60])}.{'?' * 12}.part")
    with scratch_file(target) as part:
        yield part
        _flush_to_disk(part)
        _publish(part, target, overwrite)


@contextmanager
def scratch_file(target: Path) -> Iterator[Path]:
    """Lend an empty hidden file beside an output, which goes when the block ends.

    What a process that was killed (SIGKILL) left of it goes when `target` is written the next time.

    Raises
    ------
    OutputError
        If it cannot be made, or the block meets a full disk.
    """
    part = _part_of(target)
    try:
        # not tempfile: its files are readable by their owner only, and stay so after renaming
        part.open("xb").close()
        held = hold(part)
    except OSError as error:
        raise output_error(error, target) from error
    try:
        yield part
    except OSError as error:
        # an error of another file, such as the input, is not ours to explain
        if error.filename == str(part) or (error.filename is None and error.errno in _FULL | _FORBIDDEN):
            raise output_error(error, target) from error
        raise
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        os.close(held)


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str], overwrite: bool = False, *, replaceable: Callable[[Path], bool]
) -> Iterator[Path]:
    """`atomic_path` for an output that is a folder: a hidden one beside it, filled in the block, then renamed.

    Parameters
    ----------
    path
        Where the folder shall lie; what it lies in must exist.
    overwrite
        Replace an existing folder. It keeps its place until the new one is complete.
    replaceable
        Whether an existing folder is one that may be replaced, so that no folder of other things ever is.

    Yields
    ------
    Path
        The temporary folder, empty.

    Raises
    ------
    OutputError
        If `path` exists, cannot be written, or the disk is full.
    """
    target = Path(path)
    _refuse_folder(target, overwrite, replaceable)
    remove_abandoned(target.parent, f".{glob.escape(target.name[:60])}.{'?' * 12}.part")
    part = _part_of(target)
    try:
        part.mkdir()
        held = hold(part)
    except OSError as error:
        raise output_error(error, target) from error
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        _refuse_folder(target, overwrite, replaceable)  # it may have appeared meanwhile
        if os.path.lexists(target):
            old = _part_of(target)
            target.rename(old)
            try:
                part.rename(target)
            except OSError:
                old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.rename(target)
    except OSError as error:
        if str(error.filename or "").startswith(str(part)) or error.errno in _FULL | _FORBIDDEN:
            raise output_error(error, target) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(held)


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Raise an OutputError if `target` exists and may not be replaced, or is a folder."""
    if os.path.isdir(target):
        raise OutputError(f"{target}: is a folder; give the name of a file")
    if not overwrite and os.path.lexists(target):
        raise _exists(target)


def _exists(target: Path) -> OutputError:
    return OutputError(f"{target}: exists already; choose another name, or set overwrite=true to replace it")


def _refuse_folder(target: Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    if not os.path.lexists(target):
        return
    if os.path.islink(target) or not os.path.isdir(target) or not replaceable(target):
        raise OutputError(f"{target}: is there and holds something else, which is never replaced; choose another name")
    if not overwrite:
        raise _exists(target)


def _part_of(target: Path) -> Path:
    # 60 characters of the name: the whole stays below the usual limit of 255 bytes, in any alphabet
    return target.parent / f".{target.name[:60]}.{secrets.token_hex(6)}.part"


@contextmanager
def claim(file: Path, text: str = "", kept: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hidden file that keeps other processes away from an output until the block ends, when it goes.

    What a process that was killed (SIGKILL) leaves of it keeps nobody away, and says that the output is half made.

    Parameters
    ----------
    file
        Its folder must exist.
    text
        Put into the file, for those who are kept away; as well as it can be.
    kept
        Asked at the end: True leaves the file as a killed process does.

    Yields
    ------
    bool
        False if another living process has it. On file systems without locks that is never known.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    try:
        held = take(file)
    except OSError as error:
        raise output_error(error, file) from error
    if held is None:
        yield False
        return
    try:
        if text:
            with suppress(OSError):  # a full disk, or somebody else's file, left by a killed process
                os.ftruncate(held, 0)
                os.write(held, text.encode())
        yield True
    finally:
        with suppress(OSError):
            if not kept():
                file.unlink(missing_ok=True)
        os.close(held)


def take(file: Path) -> int | None:
    """Descriptor that holds a lock on a file, made if need be; None if another living process has it."""
    while True:
        held = _open_to_lock(file, os.O_CREAT)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            return None
        except OSError as error:
            _tell_without_locks(file.parent, str(error.strerror))
            return held
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), file.stat()):
                return held
        os.close(held)  # whoever had it has renamed or removed it just now


@cache
def _tell_without_locks(folder: Path, why: str) -> None:
    """Warn of a folder, once."""
    log.warning("%s: cannot be locked (%s); start no second run in it", folder, why)


def hold(part: Path) -> int:
    """Descriptor that holds a lock on a temporary file or folder for as long as this process lives."""
    held = _open_to_lock(part)
    with suppress(OSError):  # file systems without locks
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return held


def _open_to_lock(path: Path, more: int = 0) -> int:
    try:
        return os.open(path, os.O_RDWR | more, 0o666)  # NFS locks only what is open for writing
    except (IsADirectoryError, PermissionError):  # a folder, or somebody else's
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove temporary files that nobody holds (`hold`): a process that was killed (SIGKILL) leaves its own."""
    for name in glob.glob(pattern, root_dir=folder):
        part = folder / name
        with suppress(OSError):  # held, somebody else's, or gone meanwhile
            held = _open_to_lock(part)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if part.is_dir():
                    shutil.rmtree(part)
                else:
                    part.unlink()
            finally:
                os.close(held)


def output_error(error: OSError, target: Path) -> OutputError:
    """One line about an OSError met while writing `target`."""
    if error.errno in _FULL:
        free = "unknown"
        with suppress(OSError):
            free = f"{shutil.disk_usage(target.parent).free}"
        return OutputError(
            f"{target}: disk full ({free} bytes free in {target.parent}); free some space or choose another folder"
        )
    if error.errno in _FORBIDDEN:
        return OutputError(f"{target}: no permission to write in {target.parent}; choose another folder")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return OutputError(f"{target}: the folder {target.parent} does not exist; create it")
    return OutputError(f"{target}: cannot be written: {error.strerror or error}")


def _flush_to_disk(part: Path) -> None:
    """Without it a crash of the machine can leave the new name with no content."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())


def _publish(part: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(part, target)
        return
    try:
        os.link(part, target)  # unlike a rename it fails if the target appeared meanwhile
    except FileExistsError:
        refuse_existing(target, overwrite)
        raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        refuse_existing(target, overwrite)
        part.rename(target)
