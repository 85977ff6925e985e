"""One address -> `NAME.part`: goes on where an earlier attempt stopped, if the file on the server is still the same."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam.errors import DownloadError, OutputError
from etsam.io.part import Announced, Part
from etsam.io.web import TransientError, Web, content_length, excerpt, message_in, refuse_status

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 16
_SPARE_BYTES = 64 << 20  # left free on the disk for records and whatever else runs there
_JSON_LIKE = (".json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


def transfer(
    url: str,
    part: Part,
    web: Web,
    size: int | None,
    *,
    verifiable: bool,
    progress: Callable[[int, int | None], None],
) -> bool:
    """Bring the part to its full length.

    Parameters
    ----------
    url
        Address.
    part
        What has come so far.
    web
        Connections.
    size
        Bytes that the file has to have; None: as the server says.
    verifiable
        Whether a checksum is known.
    progress
        Told (bytes there, bytes in all).

    Returns
    -------
    bool
        Whether it was joined from several answers.

    Raises
    ------
    DownloadError
        If the server does not give the file, or gives another.
    OutputError
        If the disk has no room for it.
    """
    joined = False

    def attempt() -> None:
        nonlocal joined
        have = part.size()
        before = part.announced()
        if have and before is None:
            part.discard()
            have = 0
        # no If-Range: Dataverse does not support it (its Data Access API guide); the answer is compared instead
        headers = {"Range": f"bytes={have}-"} if have else {}
        with web.request("GET", url, headers) as response:
            if response.status_code == 416:
                joined = True
                return _beyond_the_end(response, url, part, before, size, verifiable)
            refuse_status(response, url)
            start, total = _place(response)
            now = Announced(url, total, _strong_etag(response), response.headers.get("Last-Modified", ""))
            if size is not None and total is not None and total != size:
                part.discard()
                _refuse_page(response, response.raw.read(_PIECE_BYTES, decode_content=False), url, part.target)
                raise DownloadError(f"{url}: the server announces {total} bytes, expected are {size}; is it this file?")
            if response.status_code == 206 and (start != have or before is None or not now.fits(before, verifiable)):
                part.discard()
                raise TransientError("the file on the server has changed since the download began", 0.0)
            if response.status_code != 206:
                if have:
                    log.info("%s: the server starts anew, it does not go on from byte %d", url, have)
                part.discard()
                have = 0
                _require_an_end(response, url, size, verifiable)
            joined = joined or have > 0
            _require_room(part, total, have)
            part.announce(now)
            _receive(response, url, part, web, have, total, progress)
        if size is not None and part.size() != size:
            got = part.size()
            part.discard()
            raise DownloadError(f"{url}: {got} bytes came, expected are {size}; is it this file?")

    web.persist(url, attempt, part.size)
    return joined


def _receive(
    response: "requests.Response",
    url: str,
    part: Part,
    web: Web,
    have: int,
    total: int | None,
    progress: Callable[[int, int | None], None],
) -> None:
    first = have == 0
    progress(have, total)
    # the bytes as sent, not decoded: a .gz that is sent as `Content-Encoding: gzip` has to stay one
    for piece in response.raw.stream(_PIECE_BYTES, decode_content=False):
        web.check_stop()
        if first:
            _refuse_page(response, piece, url, part.target)
            first = False
        part.append(piece)
        have += len(piece)
        progress(have, total)
    if total is not None and have != total:
        raise TransientError(f"the connection ended after {have} of {total} bytes")


def _place(response: "requests.Response") -> tuple[int, int | None]:
    """(first byte, bytes in all) of what an answer holds."""
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if found is None:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    return 0, content_length(response)


def _strong_etag(response: "requests.Response") -> str:
    etag = response.headers.get("ETag", "")
    return "" if etag.startswith("W/") else etag  # RFC 9110 8.8.1: equal weak tags do not mean equal bytes


def _beyond_the_end(
    response: "requests.Response", url: str, part: Part, before: Announced | None, size: int | None, verifiable: bool
) -> None:
    """Handle 416: all bytes were there already, or the file is another now."""
    have = part.size()
    found = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
    total = int(found[1]) if found else size
    now = Announced(url, total, _strong_etag(response), response.headers.get("Last-Modified", ""))
    same = before is not None and (not now.etag or now.etag == before.etag or verifiable)
    if have == total and same and size in (None, have):
        return
    part.discard()
    raise TransientError("the file on the server has changed since the download began", 0.0)


def _require_an_end(response: "requests.Response", url: str, size: int | None, verifiable: bool) -> None:
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "")
    if content_length(response) is None and not chunked and size is None and not verifiable:
        raise DownloadError(
            f"{url}: the server does not say how long the file is, so that a cut would not be noticed; use another "
            "address."
        )


def _require_room(part: Part, total: int | None, have: int) -> None:
    if total is None:
        return
    free = shutil.disk_usage(part.target.parent).free
    if total - have + _SPARE_BYTES > free:
        raise OutputError(
            f"{part.target}: needs {total - have} bytes more, {free} are free in {part.target.parent}; free some space "
            "or choose another folder."
        )


def _refuse_page(response: "requests.Response", first: bytes, url: str, target: Path) -> None:
    """Raise if a web page or an error message comes instead of the file."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    head = first[:200].lstrip().lower()
    suffix = target.suffix.lower()
    if suffix not in (".html", ".htm", ".xml") and (
        kind in ("text/html", "application/xhtml+xml")
        or head.startswith((b"<!doctype html", b"<html", b"<?xml", b"<error"))
    ):
        raise DownloadError(
            f"{url}: a web page came instead of the file ({excerpt(first)}); the address may have changed, or the "
            "network wants a login."
        )
    if (
        suffix not in _JSON_LIKE
        and target.name not in _JSON_LIKE
        and (kind == "application/json" or head.startswith((b'{"status"', b'{"message"', b'{"error"')))
    ):
        said: Any = ""
        with suppress(ValueError):
            said = message_in(json.loads(first))
        raise DownloadError(f"{url}: an error message came instead of the file ({said or excerpt(first)}).")
