"""Downloads of files that are whole and verified, or not there.

What has come of a file lies beside it as `NAME.part`, what the server said of it as `NAME.part.json`, and the next
attempt goes on from there. Only a whole, verified file gets its name. `NAME.download.json` beside it records where it
came from and its checksums: while size and time stamp stay, the file is neither downloaded nor read again.

pooch's HTTP downloader fetches the bytes. `Pooch.fetch` does not do the rest: version 1.9.0 starts a broken file anew
(two cuts at three quarters: 2.5 times its bytes were sent, here once), replaces another file of its name in silence,
and tries a 404 five times, for 10 s.
"""

import hashlib
import json
import logging
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from etsam._version import __version__
from etsam.errors import DownloadError, EtsamError, OutputError
from etsam.volume.atomic import atomic_path, output_error, take

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

T = TypeVar("T")

Progress = Callable[[str, int, "int | None"], None]
"""Told (file, bytes that are there, bytes in all or None); called from several threads."""

BACKOFF_SECONDS = 1.0
"""Pause before the second attempt; it doubles with each further one, up to a minute."""
_LONGEST_PAUSE_SECONDS = 60.0
_FRUITLESS_ATTEMPTS = 5  # in a row, without a new byte, before an address is given up
_LOCK_POLL_SECONDS = 0.2
_TIMEOUTS_SECONDS = (10.0, 30.0)  # to connect, between two pieces
_PIECE_BYTES = 1 << 16
_SPARE_BYTES = 64 << 20  # left free on the disk for records and whatever else runs there

# identity: bytes as they lie on the server, so that lengths and checksums mean them
_HEADERS = {"User-Agent": f"etsam/{__version__}", "Accept-Encoding": "identity"}
# RFC 9110: 408 timeout, 5xx faults of the server that may pass; RFC 6585: 429 too many requests
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_STATUS_ADVICE = {
    401: "the server wants a login; the file is not public",
    403: "access is forbidden; the file may be restricted or embargoed",
    404: "there is no such file; the address may have changed",
    410: "the file was withdrawn",
}

# how web pages, errors of S3 and messages of Dataverse and Zenodo begin
_PAGE = re.compile(rb'\s*(<!doctype html|<html|<\?xml|<error|\{"(status|message|error)")', re.IGNORECASE)


class Stopped(Exception):  # noqa: N818 - not an error
    """End of all downloads that was asked for; not an error of this file."""


class NoNetworkError(DownloadError):
    """The server's name does not resolve: as good as always there is no network."""


class _TransientError(Exception):
    """Fault that may pass, with the pause that the server asks for (seconds; None: it does not say).

    `unresolved`: the server's name is not known, which rarely passes.
    """

    def __init__(self, what: str, wait_seconds: float | None = None, *, unresolved: bool = False) -> None:
        super().__init__(what)
        self.wait_seconds, self.unresolved = wait_seconds, unresolved


class Stop:
    """Switch that ends all downloads that look at it, those too that wait for a server."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.waiting: set[requests.Response] = set()

    def set(self) -> None:
        """Make every thread that downloads raise `Stopped`."""
        self._event.set()
        for response in list(self.waiting):
            with suppress(Exception):  # a connection that ended meanwhile; urllib3 before 2.3 has no shutdown
                response.raw.shutdown()

    def check(self, wait_seconds: float = 0.0) -> None:
        """Sleep; raise `Stopped` as soon as it is set."""
        if self._event.wait(wait_seconds):
            raise Stopped


# Files that are there, and what is known of them


@dataclass(frozen=True)
class DownloadJob:
    """File to download.

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

    def __post_init__(self) -> None:
        """Write digests in small letters, as `hashlib` does; servers and people may use capitals."""
        object.__setattr__(self, "checksums", tuple((name, digest.lower()) for name, digest in self.checksums))

    @property
    def part(self) -> Path:
        """File of what has come so far."""
        return self.target.with_name(f"{self.target.name}.part")


@dataclass(frozen=True)
class DownloadRecord:
    """Knowledge of a file that was downloaded, or found and verified.

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
    """Path of the record of a downloaded file."""
    return target.with_name(f"{target.name}.download.json")


def read_record(target: Path) -> DownloadRecord | None:
    """Record of a downloaded file; None if there is none that can be read."""
    try:
        record = DownloadRecord(**json.loads(record_path(target).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if isinstance(record.checksums, dict) and "sha256" in record.checksums else None


def _write_record(job: DownloadJob, url: str, checksums: dict[str, str], file: Path) -> None:
    stat = file.stat()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = DownloadRecord(url, stat.st_size, checksums, stat.st_mtime_ns, now)
    with atomic_path(record_path(job.target), overwrite=True) as path:
        path.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")


def _digests(path: Path, algorithms: Iterable[str], stop: Stop) -> dict[str, str]:
    """Algorithm -> hexadecimal digest of a file, in one reading."""
    found = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            stop.check()
            for digest in found.values():
                digest.update(piece)
    return {name: digest.hexdigest() for name, digest in found.items()}


def _is_there(job: DownloadJob, stop: Stop) -> bool:
    """True if the file is there and is what it should be; it is read only if it may have changed since then."""
    target = job.target
    if not os.path.lexists(target):
        return False
    if not target.is_file():
        raise OutputError(f"{target}: is no file, but one shall be downloaded there; move it away.")
    stat, record = target.stat(), read_record(target)
    if job.size is not None and stat.st_size != job.size:
        raise _other_file(job, f"has {stat.st_size} bytes, the file on the server {job.size}")
    known = record.checksums if record is not None else {}
    unchanged = record is not None and (record.size, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    if unchanged and all(known.get(name) == digest for name, digest in job.checksums):
        return True
    if not job.keep_record and not job.checksums:  # its size is all that can be known
        return True
    expected = {**known, **dict(job.checksums)}
    found = _digests(target, {"sha256", *expected}, stop)
    for name, digest in expected.items():
        if found[name] != digest:
            raise _other_file(job, f"has {name} {found[name]}, expected {digest}")
    if job.keep_record:
        _write_record(job, job.urls[0], found, target)
    return True


def _other_file(job: DownloadJob, difference: str) -> OutputError:
    return OutputError(f"{job.target}: is there, but {difference}; move it away to download {job.urls[0]} again.")


def missing_bytes(jobs: Iterable[DownloadJob]) -> int:
    """Bytes that are still to come, as far as sizes are known."""
    total = 0
    for job in jobs:
        if job.size is not None and not job.target.exists():
            total += max(0, job.size - (job.part.stat().st_size if job.part.exists() else 0))
    return total


# Downloads


def is_offline() -> bool:
    """True if the environment variable ETSAM_OFFLINE forbids the network."""
    return os.environ.get("ETSAM_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def fetch_all(
    jobs: Sequence[DownloadJob],
    *,
    threads: int = 4,
    offline: bool = False,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> list[tuple[DownloadJob, EtsamError]]:
    """Download several files at once; one that fails does not stop the others.

    Parameters
    ----------
    jobs
        Files.
    threads
        Downloads at the same time.
    offline, progress, stop
        As for `fetch`.

    Returns
    -------
    list[tuple[DownloadJob, EtsamError]]
        What failed, in the order of `jobs`. Ctrl-C and anything unforeseen end all downloads at once and are raised.
    """
    stop = stop or Stop()
    failures = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="download") as pool:
        places = {
            pool.submit(fetch, job, offline=offline, progress=progress, stop=stop): place
            for place, job in enumerate(jobs)
        }
        try:
            for future in as_completed(places):
                try:
                    future.result()
                except EtsamError as error:
                    failures[places[future]] = error
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [(jobs[place], failures[place]) for place in sorted(failures)]


def fetch(
    job: DownloadJob, *, offline: bool = False, progress: Progress | None = None, stop: Stop | None = None
) -> bool:
    """Download a file, or find that it is there.

    Parameters
    ----------
    job
        What and where. A record of an earlier download at this place counts as expected SHA-256, too.
    offline
        Ask no server; so does the environment variable ETSAM_OFFLINE.
    progress
        See `Progress`.
    stop
        Switch that ends the download.

    Returns
    -------
    bool
        False if nothing had to be downloaded.

    Raises
    ------
    DownloadError
        If no address gives the file as announced; each is named with what came. What came of a broken download stays
        as `NAME.part`.
    OutputError
        If it cannot be written, the disk is full, or another file of this name is there.
    Stopped
        If `stop` is set.
    """
    stop, target = stop or Stop(), job.target

    def tell(done: int, total: int | None) -> None:
        if progress is not None:
            progress(str(target), done, total)

    if not _is_there(job, stop):
        if offline or is_offline():
            raise DownloadError(
                f"{target} is not there, and without network it cannot be downloaded; fetch {job.urls[0]} elsewhere "
                "and put it there."
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(job.part, stop):
                if not _is_there(job, stop):  # else another process brought it, while this one waited
                    url, checksums = _complete_part(job, stop, tell)
                    if job.keep_record:  # first, so that no file with a name lacks its record
                        _write_record(job, url, checksums, job.part)
                    if os.path.lexists(target):
                        raise OutputError(f"{target}: appeared while it was downloaded; move it away.")
                    os.replace(job.part, target)
                    return True
        except OSError as error:
            raise output_error(error, target) from error
    tell(target.stat().st_size, target.stat().st_size)
    return False


@contextmanager
def _locked(part: Path, stop: Stop) -> Iterator[None]:
    """Keep other processes away from a part, which vanishes at the end if it is empty."""
    while (held := take(part)) is None:
        log.debug("%s: waiting for another process", part)
        stop.check(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()
        if not part.exists():
            _said_path(part).unlink(missing_ok=True)
        os.close(held)


def _complete_part(job: DownloadJob, stop: Stop, tell: Callable[[int, int | None], None]) -> tuple[str, dict[str, str]]:
    """Complete and verify the part from the first address that gives it: (that address, checksums)."""
    expected = dict(job.checksums)
    record = read_record(job.target) if job.keep_record else None
    if record is not None:
        expected.setdefault("sha256", record.checksums["sha256"])
    faults: list[DownloadError] = []
    for url in job.urls:
        resume = ResumingDownloader(job.size, verifiable=bool(expected), stop=stop, tell=tell)
        try:
            while True:
                resume(url, job.part)
                found = _digests(job.part, {"sha256", *expected}, stop)
                wrong = [name for name, digest in expected.items() if found[name] != digest]
                if not wrong:
                    return url, found
                _discard(job.part)
                if not resume.joined:  # else pieces of two files, perhaps: once more, from the first byte
                    raise DownloadError(
                        f"{url}: came damaged or is another file: {wrong[0]} {found[wrong[0]]}, expected "
                        f"{expected[wrong[0]]}; it was removed, try again later."
                    )
        except DownloadError as fault:
            faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    kind = NoNetworkError if all(isinstance(fault, NoNetworkError) for fault in faults) else DownloadError
    raise kind.of(f"no address gives {job.target.name}", faults)


def _said_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    os.truncate(part, 0)
    _said_path(part).unlink(missing_ok=True)


class ResumingDownloader:
    """Downloader in the sense of pooch that goes on with what lies in its output file already.

    What the server says of the file lies beside it as `NAME.json`. Pieces are joined if size and tag (strong ETag, or
    time) are still the same, or the size alone where a checksum will tell afterwards. The request has no If-Range,
    because Dataverse does not support it (its Data Access API guide); the answer is compared instead.

    Parameters
    ----------
    size
        Bytes that the file has to have; None: as the server says.
    verifiable
        A checksum is known.
    stop
        Switch that ends the download.
    tell
        Told (bytes there, bytes in all or None).

    Attributes
    ----------
    joined
        Whether the file came in several pieces.
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        verifiable: bool = False,
        stop: Stop | None = None,
        tell: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> None:
        self.joined = False
        self._size, self._verifiable, self._stop, self._tell = size, verifiable, stop or Stop(), tell

    def __call__(self, url: str, output_file: str | os.PathLike[str], pooch: Any = None) -> None:
        """Bring the output file to its full length.

        Raises
        ------
        DownloadError
            If the server does not give the file, or gives another.
        OutputError
            If the disk has no room for it.
        """
        self.joined, self._url, self._part = False, url, Path(output_file)
        with self._part.open("ab", buffering=0) as self._file:
            self._have = self._file.tell()
            _persist(url, self._attempt, self._stop, lambda: self._have)
            os.fsync(self._file.fileno())  # else a crash of the machine can leave the new name with no content

    def _attempt(self) -> None:
        from pooch import HTTPDownloader

        try:
            self._said = json.loads(_said_path(self._part).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # bytes of unknown origin
            self._said = None
            self._start_anew()
        if self._said is not None and self._said[1] == self._have:
            return  # it is whole
        self._answer: requests.Response | None = None
        headers = {**_HEADERS, "Range": f"bytes={self._have}-"} if self._have else _HEADERS
        hooks = {"response": self._begin}
        fetch = HTTPDownloader(chunk_size=_PIECE_BYTES, headers=headers, timeout=_TIMEOUTS_SECONDS, hooks=hooks)
        try:
            with _faults_told(self._url, self._stop):
                fetch(self._url, self, None)
        finally:
            if self._answer is not None:
                self._stop.waiting.discard(self._answer)
                self._answer.close()
        if self._size not in (None, self._have):
            came = self._have
            self._start_anew()
            raise DownloadError(f"{self._url}: {came} bytes came, expected are {self._size}.")

    def _start_anew(self) -> None:
        _discard(self._part)
        self._have = 0

    def _begin(self, answer: "requests.Response", **_: Any) -> None:
        """Look at an answer before its body comes; discard the part if it does not go on from there."""
        if answer.is_redirect:
            return
        self._answer = answer
        self._stop.waiting.add(answer)
        self._stop.check()
        # the bytes as sent, not decoded: a .gz that is sent as `Content-Encoding: gzip` has to stay one
        answer.raw.headers.pop("Content-Encoding", None)
        length, etag = answer.headers.get("Content-Length", ""), answer.headers.get("ETag", "W/")
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        self._total = int(place[2]) if place else int(length) if length.isdigit() else None
        # RFC 9110 8.8.1: equal weak tags do not mean equal bytes
        tag = answer.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
        now = [self._url, self._total, tag]
        if answer.status_code in (206, 416):
            same = (now == self._said and tag) or (self._verifiable and self._said and self._said[1] == self._total)
            if not (same and place and int(place[1]) == self._have):
                self._start_anew()
                raise _TransientError("the file on the server has changed since the download began", 0.0)
            self.joined = True
        else:
            _refuse_status(answer, self._url)
            self._start_anew()
        ends = self._total is not None or "chunked" in answer.headers.get("Transfer-Encoding", "")
        if not ends and self._size is None and not self._verifiable:
            raise DownloadError(
                f"{self._url}: the server does not say how long the file is, so that a cut would not be noticed; use "
                "another address."
            )
        if self._size is not None and self._total not in (None, self._size):
            self._start_anew()
            raise DownloadError(f"{self._url}: the server announces {self._total} bytes, expected are {self._size}.")
        needed, free = (self._total or 0) - self._have, shutil.disk_usage(self._part.parent).free
        if needed + _SPARE_BYTES > free:
            raise OutputError(
                f"{self._part.with_suffix('')}: needs {needed} bytes more, {free} are free in {self._part.parent}; "
                "free some space or choose another folder."
            )
        _said_path(self._part).write_text(json.dumps(now), encoding="utf-8")
        self._tell(self._have, self._total)

    def write(self, piece: bytes) -> None:
        """Take a piece of the body from pooch."""
        self._stop.check()
        if self._have == 0 and _PAGE.match(piece):
            raise DownloadError(
                f"{self._url}: a web page or an error message came instead of the file "
                f"({' '.join(piece.decode('utf-8', 'replace').split())[:80]}); the address may have changed, or the "
                "network wants a login."
            )
        rest = memoryview(piece)
        while rest:
            written = self._file.write(rest)
            self._have, rest = self._have + written, rest[written:]
        self._tell(self._have, self._total)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""


# Requests


def get_json(url: str) -> Any:
    """Answer of an interface that speaks JSON.

    Raises
    ------
    DownloadError
        If the server cannot be reached, refuses, or answers something else.
    """
    response = _ask("GET", url)
    try:
        return response.json()
    except ValueError as error:
        raise DownloadError(f"{url}: expected JSON, got {response.text[:60]!r}; check the address.") from error


def size_bytes(url: str) -> int | None:
    """Size of a file by a HEAD request; None if the server does not say.

    Raises
    ------
    DownloadError
        If there is no such file, or no answer.
    """
    length = _ask("HEAD", url, accepted=(403, 405, 501)).headers  # servers, and signed addresses, that allow GET only
    return int(length["Content-Length"]) if length.get("Content-Length", "").isdigit() else None


def _ask(method: str, url: str, accepted: Container[int] = ()) -> "requests.Response":
    import requests

    if is_offline():
        raise DownloadError(f"{url}: without network it cannot be asked for; unset ETSAM_OFFLINE.")

    def attempt() -> requests.Response:
        with _faults_told(url, stop):
            response = requests.request(method, url, headers=_HEADERS, timeout=_TIMEOUTS_SECONDS, allow_redirects=True)
        if response.status_code not in accepted:
            _refuse_status(response, url)
        return response

    stop = Stop()
    return _persist(url, attempt, stop)


def _persist(url: str, attempt: Callable[[], T], stop: Stop, safe_bytes: Callable[[], int] = lambda: 0) -> T:
    """Call `attempt` until it ends without a fault that may pass; one that brought new bytes starts the count anew.

    A name that does not resolve is asked for once, unless something came before: then the network was there.
    """
    at_start = safe_bytes()
    fruitless, furthest = 0, at_start
    while True:
        try:
            return attempt()
        except _TransientError as fault:
            if fault.unresolved and safe_bytes() <= at_start:
                raise NoNetworkError(f"{url}: {fault}; is there a network here, and is the address right?") from fault
            fruitless = 1 if safe_bytes() > furthest else fruitless + 1
            furthest = max(safe_bytes(), furthest)
            if fruitless == _FRUITLESS_ATTEMPTS:
                raise DownloadError(
                    f"{url}: {fault}, in {fruitless} attempts in a row; check the connection, try again later."
                ) from fault
            pause = fault.wait_seconds
            if pause is None:
                pause = BACKOFF_SECONDS * 2 ** (fruitless - 1) * random.uniform(0.8, 1.2)
            pause = min(pause, _LONGEST_PAUSE_SECONDS)
            log.info("%s: %s; trying again in %.0f s", url, fault, pause)
            stop.check(pause)


def _refuse_status(response: "requests.Response", url: str) -> None:
    status = response.status_code
    if status < 400:
        return
    said = f"the server answered {status} {response.reason or ''}".strip()
    if status in _TRANSIENT_STATUSES:
        wait = response.headers.get("Retry-After", "")
        raise _TransientError(said, float(wait) if wait.isdigit() else None)
    if "json" in response.headers.get("Content-Type", ""):
        # Dataverse and Zenodo explain themselves: {"status": "ERROR", "message": "..."}
        with suppress(OSError, ValueError, LookupError, TypeError):
            said += f" ({' '.join(str(response.json()['message']).split())[:200]})"
    raise DownloadError(f"{url}: {said}: {_STATUS_ADVICE.get(status, 'the request was refused')}.")


@contextmanager
def _faults_told(url: str, stop: Stop) -> Iterator[None]:
    """Turn what requests raises into a fault that may pass, or an error for people."""
    from requests import ConnectionError, RequestException, Timeout
    from requests.exceptions import ChunkedEncodingError, SSLError

    try:
        yield
    except SSLError as error:
        raise DownloadError(
            f"{url}: the server's certificate is not trusted ({_reason(error)}); behind a proxy that opens connections "
            "set REQUESTS_CA_BUNDLE to its certificate."
        ) from error
    except ChunkedEncodingError as error:
        stop.check()  # else a connection that `stop` cut would look like a fault
        raise _TransientError(f"the connection broke off ({_reason(error)})") from error
    except (ConnectionError, Timeout) as error:
        stop.check()
        unresolved = _is_unresolved(error)
        reason = "the server's name is not known" if unresolved else f"no answer ({_reason(error)})"
        raise _TransientError(reason, unresolved=unresolved) from error
    except RequestException as error:
        raise DownloadError(f"{url}: cannot be asked for: {_reason(error)}; check the address.") from error


def _is_unresolved(error: BaseException) -> bool:
    """True if an error of requests comes from a name that does not resolve."""
    from urllib3.exceptions import NameResolutionError

    inner: Any = error
    while inner is not None and not isinstance(inner, NameResolutionError):
        inner = next((a for a in (getattr(inner, "reason", None), *inner.args) if isinstance(a, Exception)), None)
    return inner is not None


def _reason(error: BaseException) -> str:
    """Last cause in the layers that libraries wrap around it."""
    inner: Any = error
    while deeper := next((a for a in (getattr(inner, "reason", None), *inner.args) if isinstance(a, Exception)), None):
        inner = deeper
    text = " ".join(str(inner).split())
    return re.sub(r"^(<.*>|\w*Connection\w*\(.*?\)): ", "", text)[:160] or type(inner).__name__
