"""Downloads of files that are complete and verified, or not there.

What has come of a file lies beside it as `NAME.part` (with `NAME.part.json`, which says what the server announced), and
the next attempt goes on from there. Only a whole, verified file gets its name, and `NAME.download.json` beside it
records where it came from and its checksums, so that it is never downloaded twice.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from etsam.errors import DownloadError, EtsamError, OutputError
from etsam.io.checksum import file_checksums
from etsam.io.part import Part
from etsam.io.transfer import transfer
from etsam.io.web import Web, is_offline
from etsam.volume.atomic import atomic_path, output_error

Progress = Callable[["Download", int, "int | None"], None]
"""Told (download, bytes that are there, bytes in all or None); called from several threads."""


@dataclass(frozen=True)
class Download:
    """A file to fetch.

    Attributes
    ----------
    target
        Where it shall lie.
    urls
        Addresses of the same file, tried in order.
    size
        In bytes; None: as the server says.
    checksums
        (algorithm, hexadecimal digest) pairs, algorithms as `hashlib` names them.
    keep_record
        Write `NAME.download.json` beside the file.
    """

    target: Path
    urls: tuple[str, ...]
    size: int | None = None
    checksums: tuple[tuple[str, str], ...] = ()
    keep_record: bool = True


@dataclass(frozen=True)
class DownloadRecord:
    """What is known of a file that was downloaded, or found and verified.

    Attributes
    ----------
    url
        Where it came from.
    size
        In bytes.
    checksums
        Algorithm -> hexadecimal digest; `sha256` is always there.
    mtime_ns
        Time stamp of the file when it was verified: while it stays, the file is not read again.
    verified
        When that was, ISO 8601, UTC.
    """

    url: str
    size: int
    checksums: dict[str, str]
    mtime_ns: int
    verified: str


def record_path(target: Path) -> Path:
    """Where the record of a downloaded file lies."""
    return target.with_name(f"{target.name}.download.json")


def read_record(target: Path) -> DownloadRecord | None:
    """Record of a downloaded file; None if there is none that can be read."""
    try:
        record = DownloadRecord(**json.loads(record_path(target).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if isinstance(record.checksums, dict) and "sha256" in record.checksums else None


def _write_record(item: Download, url: str, checksums: dict[str, str], file: Path) -> None:
    stat = file.stat()
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = DownloadRecord(url, stat.st_size, checksums, stat.st_mtime_ns, now)
    with atomic_path(record_path(item.target), overwrite=True) as part:
        part.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def is_complete(item: Download, check_stop: Callable[[], None] = lambda: None) -> bool:
    """Whether the file is there and what it should be; reads it only if it may have changed since it was verified.

    Raises
    ------
    OutputError
        If another file of this name is there.
    """
    target = item.target
    if not os.path.lexists(target):
        return False
    if not target.is_file():
        raise OutputError(f"{target}: is no file, but one shall be downloaded there; move it away.")
    stat, record = target.stat(), read_record(target)
    if item.size is not None and stat.st_size != item.size:
        raise _other_file(item, f"has {stat.st_size} bytes, the file on the server {item.size}")
    unchanged = record is not None and (record.size, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    if record is not None and unchanged and all(record.checksums.get(name) == value for name, value in item.checksums):
        return True
    if not item.keep_record and not item.checksums:  # its size is all that can be known
        return True
    expected = {**(record.checksums if record is not None else {}), **dict(item.checksums)}
    found = file_checksums(target, {"sha256", *expected}, check_stop)
    for name, value in expected.items():
        if found[name] != value:
            raise _other_file(item, f"has {name} {found[name]}, expected {value}")
    if item.keep_record:
        _write_record(item, item.urls[0], found, target)
    return True


def _other_file(item: Download, difference: str) -> OutputError:
    return OutputError(f"{item.target}: is there, but {difference}; move it away to download {item.urls[0]} again.")


def download(
    item: Download, *, web: Web | None = None, offline: bool = False, progress: Progress | None = None
) -> bool:
    """Fetch a file, or find that it is there.

    Parameters
    ----------
    item
        What and where. A record of an earlier download at this place counts as expected SHA-256, too.
    web
        Connections to use; default: new ones.
    offline
        Ask no server; so does the environment variable ETSAM_OFFLINE.
    progress
        See `Progress`.

    Returns
    -------
    bool
        False if nothing had to be fetched.

    Raises
    ------
    DownloadError
        If no address gives the file as announced; each is named with what came. What came of a broken download stays
        as `NAME.part`.
    OutputError
        If it cannot be written, the disk is full, or another file of this name is there.
    Stopped
        If `web.stop()` was called.
    """
    web = web or Web()
    target = item.target
    if is_complete(item, web.check_stop):
        _tell(progress, item, target.stat().st_size)
        return False
    if offline or is_offline():
        raise DownloadError(
            f"{target} is not there, and without network it cannot be downloaded; fetch {item.urls[0]} elsewhere and "
            "put it there."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Part(target, web) as part:
            if is_complete(item, web.check_stop):  # by another process, while this one waited
                _tell(progress, item, target.stat().st_size)
                return False
            url, checksums = _fetch(item, part, web, progress)
            if item.keep_record:
                _write_record(item, url, checksums, part.path)
            part.publish()
    except OSError as error:
        raise output_error(error, target) from error
    return True


def _tell(progress: Progress | None, item: Download, size: int) -> None:
    if progress is not None:
        progress(item, size, size)


def _fetch(item: Download, part: Part, web: Web, progress: Progress | None) -> tuple[str, dict[str, str]]:
    """Complete and verify the part from the first address that gives it; return that address and the checksums."""
    expected = dict(item.checksums)
    record = read_record(item.target) if item.keep_record else None
    if record is not None:
        expected.setdefault("sha256", record.checksums["sha256"])

    def tell(done: int, total: int | None) -> None:
        if progress is not None:
            progress(item, done, total)

    faults = []
    for url in item.urls:
        try:
            joined = transfer(url, part, web, item.size, verifiable=bool(expected), progress=tell)
            try:
                return url, _verified(part, expected, url, web)
            except DownloadError:
                if not joined:
                    raise
            # pieces of two files, perhaps: once more, from the first byte
            transfer(url, part, web, item.size, verifiable=bool(expected), progress=tell)
            return url, _verified(part, expected, url, web)
        except DownloadError as fault:
            faults.append(str(fault))
    raise DownloadError(" | ".join(faults))


def _verified(part: Part, expected: dict[str, str], url: str, web: Web) -> dict[str, str]:
    """Checksums of the part; one that is not as expected empties it."""
    part.flush_to_disk()
    found = file_checksums(part.path, {"sha256", *expected}, web.check_stop)
    for name, value in expected.items():
        if found[name] != value.lower():
            part.discard()
            raise DownloadError(
                f"{url}: came damaged or is another file: {name} {found[name]}, expected {value}; it was removed, try "
                "again later."
            )
    return found


def download_all(
    items: Sequence[Download],
    *,
    jobs: int = 4,
    web: Web | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    finished: Callable[[Download], None] | None = None,
) -> list[tuple[Download, EtsamError]]:
    """Fetch several files at once; one that fails does not stop the others.

    Parameters
    ----------
    items
        What to fetch.
    jobs
        Downloads at the same time.
    web, offline, progress
        As for `download`.
    finished
        Called with each file that is there, in this thread.

    Returns
    -------
    list[tuple[Download, EtsamError]]
        What failed, and why. Ctrl-C and anything unforeseen end all downloads at once and are raised.
    """
    web = web or Web()
    failures = []
    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="download") as pool:
        futures = {pool.submit(download, item, web=web, offline=offline, progress=progress): item for item in items}
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                    if finished is not None:
                        finished(futures[future])
                except EtsamError as error:
                    failures.append((futures[future], error))
        except BaseException:
            web.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    order = {id(item): place for place, item in enumerate(items)}
    return sorted(failures, key=lambda failure: order[id(failure[0])])


def missing_bytes(items: Iterable[Download]) -> int:
    """Bytes that are still to come, as far as sizes are known."""
    total = 0
    for item in items:
        if item.size is not None and not item.target.exists():
            total += max(0, item.size - Part.size_beside(item.target))
    return total
