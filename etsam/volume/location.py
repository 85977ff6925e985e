"""Location of a volume: a file, a Zarr folder or a URL, told apart by name, and what can be said of it unread."""

import hashlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from etsam.errors import InputError
from etsam.paths import sha256

PLAIN_SUFFIXES = (".mrc", ".rec", ".map", ".mrcs", ".st", ".ali", ".ccp4")
PACKED_SUFFIXES = (".gz", ".bz2")
TOMOGRAM_SUFFIXES = tuple(plain + packed for packed in ("", *PACKED_SUFFIXES) for plain in PLAIN_SUFFIXES)
"""Endings of names of MRC tomograms, in lower case; upper case is understood, too."""

ZARR_SUFFIXES = (".ome.zarr", ".zarr")
"""Usual endings of names of OME-Zarr folders, the longer one first."""

_ZARR_ENTRIES = (".zgroup", ".zarray", ".zattrs", "zarr.json")  # Zarr 2 and 3 specifications
_END_BYTES = 1 << 20  # of head and tail that are looked at to know a file again
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")  # RFC 3986, but for one letter, which is a drive of Windows


class Url(str):
    """Address of an OME-Zarr, http(s):// or s3://; a `Path` would make `https:/` of it."""

    __slots__ = ()

    def __new__(cls, text: str) -> "Url":
        return super().__new__(cls, text.rstrip("/"))

    @property
    def name(self) -> str:
        """Last part, as of a path."""
        return self.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """Address of what this lies in."""
        return Url(self.rpartition("/")[0])


Location: TypeAlias = Path | Url


def locate(given: str | os.PathLike[str], folder: Path | None = None) -> Location:
    """Tell URLs from paths.

    Parameters
    ----------
    given
        As someone wrote it; `~` is the home folder.
    folder
        What relative paths start from; None: the current folder.

    Examples
    --------
    >>> locate("https://host/TS_01.zarr/0/")
    'https://host/TS_01.zarr/0'
    >>> locate("TS_01.mrc", Path("/data"))
    PosixPath('/data/TS_01.mrc')
    """
    text = os.fspath(given)
    if _SCHEME.match(text):
        return Url(text)
    path = Path(os.path.expanduser(text))  # unlike Path.expanduser it leaves names such as ~$tomo.mrc alone
    return path if folder is None else folder / path


def is_plain_mrc(location: Location) -> bool:
    """True for a name of MRC that is not compressed, which is what ChimeraX and other programs open."""
    return str(location).lower().endswith(PLAIN_SUFFIXES)


def is_zarr(location: Location) -> bool:
    """True if this is read as OME-Zarr: every URL, a Zarr folder, and what would lie in one (a level)."""
    if isinstance(location, Url):
        return True
    return _is_zarr_folder(location) or (not os.path.lexists(location) and _is_zarr_folder(location.parent))


def _is_zarr_folder(path: Path) -> bool:
    named = path.name.lower().endswith(ZARR_SUFFIXES)
    return os.path.isdir(path) and (named or any(os.path.isfile(path / entry) for entry in _ZARR_ENTRIES))


def exists(location: Location) -> bool:
    """True if it is there; URLs are taken to be, until they are opened."""
    return isinstance(location, Url) or os.path.exists(location)


def absolute(location: Location) -> str:
    """Name that is valid in every folder."""
    return str(location if isinstance(location, Url) else location.absolute())


def display_name(location: Location) -> str:
    """Name without folders; of a level of a Zarr with the name of that: `TS_01.zarr/1`."""
    parts = PurePosixPath(str(location)).parts
    inside = [number for number, part in enumerate(parts) if part.lower().endswith(ZARR_SUFFIXES)]
    return "/".join(parts[inside[-1] :]) if inside else location.name


def strip_suffix(path: str | os.PathLike[str]) -> str:
    """File name without its folder and without the suffix of a tomogram, nothing else removed.

    Examples
    --------
    >>> strip_suffix("TS_01_10.00Apx.mrc")
    'TS_01_10.00Apx'
    >>> strip_suffix("folder/a.b.rec.gz")
    'a.b'
    >>> strip_suffix("s3://bucket/TS_01.zarr/1")
    'TS_01'
    """
    name = display_name(locate(path)).partition("/")[0]
    suffix = next((end for end in ZARR_SUFFIXES if name.lower().endswith(end)), None) or suffix_of(name)
    return name[: len(name) - len(suffix)] or name


def suffix_of(name: str) -> str:
    """Find the entry of TOMOGRAM_SUFFIXES that the name ends in; else nothing."""
    return next((suffix for suffix in TOMOGRAM_SUFFIXES if name.lower().endswith(suffix)), "")


def state_of(location: Location) -> tuple[str, int, int]:
    """Full name, time of the last change (ns) and size (bytes): equal as long as nobody changes the content.

    Of a Zarr folder the newest time and the sum over its files. Of a URL no time is known: what stands for the
    content is a checksum of its metadata, asked for once in this process.

    Raises
    ------
    InputError
        If it is not there, or cannot be read.
    """
    if isinstance(location, Url):
        return str(location), 0, int(_remote_checksum(location)[:15], 16)
    try:
        found = [path.stat() for path in ([location] if location.is_file() else _files(location))]
        if not found:
            location.stat()
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error.strerror or error}") from error
    times = max((one.st_mtime_ns for one in found), default=0)
    return str(location.resolve()), times, sum(one.st_size for one in found)


def fingerprint_of(location: Location) -> dict[str, Any]:
    """State of a tomogram by which it is known again, cheap however large it is; plain values.

    It answers "is it the same file", not "is it authentic": size, time of the last change, and the first and last MiB.

    Returns
    -------
    dict
        `of`: what was looked at: `head and tail` of a file, `names, sizes and times` of the files of a Zarr folder,
        `metadata` of a URL. `sha256` of that; `bytes` and `mtime_ns` unless it is a URL.

    Raises
    ------
    InputError
        If it is not there, or cannot be read.
    """
    if isinstance(location, Url):
        return {"of": "metadata", "sha256": _remote_checksum(location)}
    digest = hashlib.sha256()
    try:
        if location.is_file():
            state, of = location.stat(), "head and tail"
            total, changed = state.st_size, state.st_mtime_ns
            with open(location, "rb") as file:
                digest.update(file.read(_END_BYTES))
                file.seek(max(0, total - _END_BYTES))
                digest.update(file.read(_END_BYTES))
        else:
            total, changed, of = 0, 0, "names, sizes and times"
            for path in _files(location):
                state = path.stat()
                total, changed = total + state.st_size, max(changed, state.st_mtime_ns)
                line = f"{path.relative_to(location).as_posix()} {state.st_size} {state.st_mtime_ns}\n"
                digest.update(line.encode())
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error.strerror or error}") from error
    return {"of": of, "bytes": total, "mtime_ns": changed, "sha256": digest.hexdigest()}


def checksum_of(location: Location) -> tuple[str, str]:
    """SHA-256, and what it is of: a `file`, all `files` of a Zarr folder with their names, or `metadata` of a URL.

    Raises
    ------
    InputError
        If the metadata behind a URL cannot be read.
    """
    if isinstance(location, Url):
        return _remote_checksum(location), "metadata"
    if location.is_file():
        return sha256(location), "file"
    digest = hashlib.sha256()
    for path in _files(location):
        digest.update(f"{path.relative_to(location).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest(), "files"


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(path for path in folder.rglob("*") if path.is_file()))


@lru_cache(maxsize=1024)
def _remote_checksum(url: Url) -> str:
    from etsam.volume.zarr_reader import open_zarr

    return hashlib.sha256(open_zarr(url).description.encode()).hexdigest()
