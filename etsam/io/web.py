"""Requests to servers: which faults are worth another try, which are final, and how both are told to a person."""

import json
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from etsam._version import __version__
from etsam.errors import DownloadError

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

T = TypeVar("T")

# RFC 9110: 408 timeout, 5xx faults of the server that may pass; RFC 6585: 429 too many requests
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_STATUS_ADVICE = {
    401: "the server wants a login; the file is not public",
    403: "access is forbidden; the file may be restricted or embargoed",
    404: "there is no such file; the address may have changed",
    410: "the file was withdrawn",
}
_TIMEOUTS_SECONDS = (10.0, 30.0)  # to connect, between two pieces
BACKOFF_SECONDS = 1.0
"""Pause before the second attempt; it doubles with each further one, up to a minute."""
_LONGEST_PAUSE_SECONDS = 60.0


class TransientError(Exception):
    """A fault that may pass: what happened, and how long the server asks to wait (seconds; None: it does not say)."""

    def __init__(self, what: str, wait_seconds: float | None = None) -> None:
        super().__init__(what)
        self.wait_seconds = wait_seconds


class Stopped(Exception):  # noqa: N818 - not an error
    """The whole download was told to stop; not an error of this file."""


def is_offline() -> bool:
    """Whether the environment variable ETSAM_OFFLINE forbids the network."""
    return os.environ.get("ETSAM_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


@dataclass
class Web:
    """Connections of one piece of work, for any number of threads; `stop()` ends all of them at once.

    Attributes
    ----------
    retries
        Further attempts after one that brought nothing new, before an address is given up.
    """

    retries: int = 4
    _stop: threading.Event = field(default_factory=threading.Event)
    _own: threading.local = field(default_factory=threading.local)
    _open: "set[requests.Response]" = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stop(self) -> None:
        """Make every thread that works with these connections raise `Stopped`."""
        self._stop.set()
        with self._lock:
            responses = list(self._open)
        for response in responses:
            with suppress(Exception):  # a connection that ended meanwhile; urllib3 before 2.3 has no shutdown
                response.raw.shutdown()

    def check_stop(self) -> None:
        """Raise `Stopped` if `stop` was called."""
        if self._stop.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep; raise `Stopped` as soon as `stop` is called."""
        if self._stop.wait(seconds):
            raise Stopped

    @contextmanager
    def request(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> "Iterator[requests.Response]":
        """Open a response whose body has not been read; connection faults, also in the block, are `TransientError`s.

        Raises
        ------
        DownloadError
            If the fault will not pass: an address that is none, a certificate that is not trusted.
        TransientError
            If the connection fails or breaks off.
        """
        import requests
        from urllib3.exceptions import HTTPError

        self.check_stop()
        response = None
        try:
            response = self._session().request(method, url, headers=headers, stream=True, timeout=_TIMEOUTS_SECONDS)
            with self._lock:
                self._open.add(response)
            yield response
        except requests.exceptions.SSLError as error:
            raise DownloadError(
                f"{url}: the server's certificate is not trusted ({_reason(error)}); behind a proxy that opens "
                "connections set REQUESTS_CA_BUNDLE to its certificate."
            ) from error
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            self.check_stop()  # else a connection that `stop` cut would look like a fault
            raise TransientError(f"no answer ({_reason(error)})") from error
        except requests.RequestException as error:
            raise DownloadError(f"{url}: cannot be asked for: {_reason(error)}; check the address.") from error
        except HTTPError as error:
            self.check_stop()
            raise TransientError(f"the connection broke off ({_reason(error)})") from error
        finally:
            if response is not None:
                with self._lock:
                    self._open.discard(response)
                response.close()

    def _session(self) -> "requests.Session":
        import requests

        session = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = requests.Session()
            # identity: bytes as they lie on the server, so that lengths and checksums mean them
            session.headers.update({"User-Agent": f"etsam/{__version__}", "Accept-Encoding": "identity"})
        return session

    def persist(self, url: str, attempt: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Call `attempt` until it ends without a `TransientError`, with growing pauses.

        Parameters
        ----------
        url
            For messages.
        attempt
            What is to be done.
        progress
            Bytes that are safe; an attempt after which there are more than ever starts the count anew.

        Raises
        ------
        DownloadError
            If `retries + 1` attempts in a row brought nothing; names the last fault.
        """
        fruitless, furthest = 0, progress()
        while True:
            try:
                return attempt()
            except TransientError as fault:
                reached = progress()
                fruitless = 1 if reached > furthest else fruitless + 1
                furthest = max(reached, furthest)
                if fruitless > self.retries:
                    raise DownloadError(
                        f"{url}: {fault}, in {fruitless} attempts in a row; check the connection, try again later."
                    ) from fault
                pause = fault.wait_seconds
                if pause is None:
                    pause = BACKOFF_SECONDS * 2 ** (fruitless - 1) * random.uniform(0.8, 1.2)
                pause = min(pause, _LONGEST_PAUSE_SECONDS)
                log.info("%s: %s; trying again in %.0f s", url, fault, pause)
                self.wait(pause)

    def get_json(self, url: str) -> Any:
        """Ask an interface for JSON.

        Raises
        ------
        DownloadError
            If the server cannot be reached, refuses, or answers something else.
        """

        def attempt() -> Any:
            with self.request("GET", url, {"Accept": "application/json"}) as response:
                refuse_status(response, url)
                body = response.content
            try:
                return json.loads(body)
            except ValueError as error:
                raise DownloadError(f"{url}: expected JSON, got {excerpt(body)}; check the address.") from error

        return self.persist(url, attempt)

    def size_bytes(self, url: str) -> int | None:
        """Size of a file by a HEAD request; None if the server does not say.

        Raises
        ------
        DownloadError
            If there is no such file, or no answer.
        """

        def attempt() -> int | None:
            with self.request("HEAD", url) as response:
                if response.status_code in (403, 405, 501):  # servers, and signed addresses, that allow GET only
                    return None
                refuse_status(response, url)
                return content_length(response)

        return self.persist(url, attempt)


def refuse_status(response: "requests.Response", url: str) -> None:
    """Raise for every status but success: `TransientError` if it may pass, else `DownloadError`."""
    status = response.status_code
    if status < 400:
        return
    said = f"the server answered {status} {response.reason or ''}".strip()
    if status in _TRANSIENT_STATUSES:
        wait = response.headers.get("Retry-After", "")
        raise TransientError(said, float(wait) if wait.isdigit() else None)
    advice = _STATUS_ADVICE.get(status, "the request was refused")
    detail = _message_of(response)
    raise DownloadError(f"{url}: {said}{f' ({detail})' if detail else ''}: {advice}.")


def _message_of(response: "requests.Response") -> str:
    """Read what a JSON error says, as Dataverse and Zenodo put it: `{"status": "ERROR", "message": "..."}`."""
    if "json" not in response.headers.get("Content-Type", ""):
        return ""
    try:
        return message_in(json.loads(response.raw.read(1 << 16)))
    except ValueError:
        return ""


def message_in(answer: object) -> str:
    """Find the `message` in a JSON error, shortened; empty if there is none."""
    message = answer.get("message", "") if isinstance(answer, dict) else ""
    return " ".join(str(message).split())[:200]


def content_length(response: "requests.Response") -> int | None:
    """Bytes that the body has, None if the server does not say."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def excerpt(body: bytes) -> str:
    """Begin a body as text, for messages."""
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return repr(text[:60]) if text else "nothing"


def _reason(error: BaseException) -> str:
    """Dig the last cause out of the layers that libraries wrap around it."""
    inner: Any = error
    for _ in range(6):
        deeper = getattr(inner, "reason", None) or next((a for a in inner.args if isinstance(a, BaseException)), None)
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    text = " ".join(str(inner).split())
    return text.split(">: ")[-1][:160] or type(inner).__name__
