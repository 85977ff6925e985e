"""A web server on 127.0.0.1 whose faults are chosen file by file; it remembers what it was asked."""

import hashlib
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

JSON = {"Content-Type": "application/json"}


@dataclass
class Page:
    """What lies at an address.

    `faults` are used up one a GET request: a status (500), `cut:N` (end the connection after N bytes), `html`, `json`.
    A fault that ends in `!` stays. `answer`, if given, makes the body from (query, request body).
    """

    body: bytes = b""
    faults: list = field(default_factory=list)
    ranges: bool = True
    etag: str | None = "auto"
    last_modified: str | None = None
    length: bool = True
    kind: str = "application/octet-stream"
    headers: dict = field(default_factory=dict)
    waits: bool = False  # after 64 KiB until `go_on` is set, and sets `waiting`
    redirect: str | None = None
    answer: object = None
    waiting: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def tag(self):
        return f'"{hashlib.md5(self.body).hexdigest()}"' if self.etag == "auto" else self.etag


class Server:
    """Pages by path; `requests` lists (method, path, Range header). Without a page the answer is `missing_status`."""

    def __init__(self):
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.bytes_sent = Counter()
        self.missing_status = 404
        self.url = ""

    def add(self, path, body=b"", **settings):
        """Put a file at `path`; gives its address."""
        self.pages[path] = Page(body, **settings)
        return self.url + path

    def asked(self, path, method="GET"):
        return [item for item in self.requests if item[:2] == (method, path)]

    @property
    def found(self):
        """Paths that were asked for and have a page, in order."""
        return [path for _, path, _ in self.requests if path in self.pages]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Server

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.serve(None)

    def do_GET(self):
        self.serve(b"")

    def do_POST(self):
        self.serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def serve(self, sent):
        address = urlsplit(self.path)
        site = self.site
        site.requests.append((self.command, address.path, self.headers.get("Range", "")))
        page = site.pages.get(address.path)
        if page is None:
            body = b'{"status": "ERROR", "message": "nothing here"}'
            return self.reply(site.missing_status, body, {"Content-Type": "application/json"})
        if page.redirect is not None:
            return self.reply(302, b"", {"Location": page.redirect})
        if page.answer is not None:
            status, body = page.answer(dict(parse_qsl(address.query)), sent)
            return self.reply(status, body, {"Content-Type": page.kind})
        fault = ""
        if page.faults and self.command == "GET":
            fault = str(page.faults[0])
            if fault.endswith("!"):
                fault = fault[:-1]
            else:
                page.faults.pop(0)
        if fault.isdigit():
            return self.reply(int(fault), b"fault", page.headers)
        if fault == "html":
            return self.reply(200, b"<!DOCTYPE html><html>log in</html>", {"Content-Type": "text/html; charset=utf-8"})
        if fault == "json":
            return self.reply(
                200, b'{"status":"ERROR","message":"quota exceeded"}', {"Content-Type": "application/json"}
            )
        self.send_file(page, int(fault.removeprefix("cut:")) if fault.startswith("cut:") else None)

    def send_file(self, page, cut):
        body, start, status = page.body, 0, 200
        headers = {"Content-Type": page.kind, **page.headers}
        if page.tag() is not None:
            headers["ETag"] = page.tag()
        if page.last_modified is not None:
            headers["Last-Modified"] = page.last_modified
        wanted = self.headers.get("Range")
        if wanted and page.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}", **headers})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if page.length:
            self.send_header("Content-Length", str(len(body) - start))
        else:
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = body[start : None if cut is None else start + cut]
        for place in range(0, len(rest), 1 << 16):
            if page.waits and place:
                page.waiting.set()
                page.go_on.wait(60)
            try:
                self.wfile.write(rest[place : place + (1 << 16)])
            except OSError:
                self.close_connection = True
                return
            self.site.bytes_sent[self.path.partition("?")[0]] += len(rest[place : place + (1 << 16)])
        if cut is not None:
            self.close_connection = True

    def reply(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Type": "text/plain", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Quiet(ThreadingHTTPServer):
    """Says nothing of clients that hang up."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextmanager
def serving(protocol="HTTP/1.1"):
    """Run a server in a thread; by `HTTP/1.0` no connection outlives its answer, nor the server."""
    site = Server()
    httpd = Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"site": site, "protocol_version": protocol}))
    site.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@contextmanager
def serving_folder(folder):
    """Serve the files that lie in a folder now; when this ends, nobody answers any more."""
    with serving("HTTP/1.0") as site:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                site.add(f"/{file.relative_to(folder).as_posix()}", file.read_bytes())
        yield site
