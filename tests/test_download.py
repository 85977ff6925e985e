"""Downloads: whole and verified or not there, resumed, retried, refused in one line; against a server with faults."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from web_server import serving

from etsam.errors import DownloadError, OutputError
from etsam.io import part as part_module
from etsam.io import transfer as transfer_module
from etsam.io import web as web_module
from etsam.io.download import Download, download, download_all, read_record
from etsam.io.web import Stopped, Web

BODY = np.random.default_rng(0).bytes(1_000_003)
OTHER = np.random.default_rng(1).bytes(1_000_003)
MD5 = ("md5", hashlib.md5(BODY).hexdigest())


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(web_module, "BACKOFF_SECONDS", 0.001)


@pytest.fixture
def site():
    with serving() as server:
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "deep" / "tomo.mrc"


def names(target):
    return sorted(path.name for path in target.parent.iterdir()) if target.parent.exists() else []


WHOLE = ["tomo.mrc", "tomo.mrc.download.json"]
BROKEN = ["tomo.mrc.part", "tomo.mrc.part.json"]


def fails(item, **settings):
    """Download something that has to fail; gives the message."""
    with pytest.raises(DownloadError) as caught:
        download(item, **settings)
    assert not item.target.exists()
    return str(caught.value)


def test_a_file_comes_whole_with_its_record(site, target):
    url = site.add("/tomo.mrc", BODY)
    assert download(Download(target, (url,))) is True
    assert target.read_bytes() == BODY
    assert names(target) == WHOLE
    record = read_record(target)
    assert (record.url, record.size) == (url, len(BODY))
    assert record.checksums["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_what_is_there_and_recorded_is_neither_asked_for_nor_read_again(site, target, monkeypatch):
    item = Download(target, (site.add("/tomo.mrc", BODY),), len(BODY), (MD5,))
    download(item)
    monkeypatch.setattr("etsam.io.download.file_checksums", lambda *_: 1 / 0)
    assert download(item) is False
    assert len(site.asked("/tomo.mrc")) == 1


def test_a_file_that_lies_there_already_is_verified_and_adopted(site, target):
    target.parent.mkdir()
    target.write_bytes(BODY)
    assert download(Download(target, (site.url + "/tomo.mrc",), len(BODY), (MD5,))) is False
    assert site.requests == []
    assert read_record(target).checksums["md5"] == MD5[1]


@pytest.mark.parametrize(
    ("content", "part"), [(OTHER, "has md5"), (BODY[:-1], "has 1000002 bytes, the file on the server 1000003")]
)
def test_another_file_of_that_name_is_kept_and_named(site, target, content, part):
    target.parent.mkdir()
    target.write_bytes(content)
    with pytest.raises(OutputError, match=part):
        download(Download(target, (site.add("/tomo.mrc", BODY),), len(BODY), (MD5,)))
    assert target.read_bytes() == content
    assert names(target) == ["tomo.mrc"]


def test_a_file_changed_after_its_download_is_noticed(site, target):
    item = Download(target, (site.add("/tomo.mrc", BODY),))
    download(item)
    target.write_bytes(OTHER)
    with pytest.raises(OutputError, match="has sha256"):
        download(item)


@pytest.mark.parametrize("status", [404, 403, 401, 410])
def test_a_refusal_is_final(site, target, status):
    url = site.add("/tomo.mrc", BODY, faults=[f"{status}!"])
    message = fails(Download(target, (url,)))
    assert message.startswith(f"{url}: the server answered {status}")
    assert len(site.requests) == 1
    assert names(target) == []


def test_what_the_server_says_in_json_is_passed_on(site, target):
    assert "404 Not Found (nothing here): there is no such file" in fails(Download(target, (site.url + "/no",)))


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_fault_that_passes_is_tried_again(site, target, status):
    download(Download(target, (site.add("/tomo.mrc", BODY, faults=[status]),)))
    assert target.read_bytes() == BODY
    assert len(site.requests) == 2


def test_a_fault_that_stays_is_told_after_five_attempts(site, target):
    url = site.add("/tomo.mrc", BODY, faults=["500!"])
    assert "the server answered 500 Internal Server Error, in 5 attempts in a row" in fails(Download(target, (url,)))
    assert len(site.requests) == 5
    assert names(target) == []


def test_the_server_may_say_how_long_to_wait(site, target, monkeypatch):
    waited = []
    monkeypatch.setattr(Web, "wait", lambda self, seconds: waited.append(seconds))
    download(Download(target, (site.add("/tomo.mrc", BODY, faults=[503, 503], headers={"Retry-After": "7"}),)))
    assert waited == [7.0, 7.0]


def test_pauses_grow_and_stay_below_a_minute(monkeypatch):
    monkeypatch.setattr(web_module, "BACKOFF_SECONDS", 10.0)
    waited = []
    monkeypatch.setattr(Web, "wait", lambda self, seconds: waited.append(seconds))

    def attempt():
        raise web_module.TransientError("busy")

    with pytest.raises(DownloadError, match="u: busy, in 5 attempts"):
        Web().persist("u", attempt)
    assert [8 <= waited[0] <= 12, 16 <= waited[1] <= 24, 32 <= waited[2] <= 48, waited[3]] == [True, True, True, 60.0]


def test_no_server_at_all_is_told(target):
    message = fails(Download(target, ("http://127.0.0.1:9/tomo.mrc",)))
    assert "http://127.0.0.1:9/tomo.mrc: no answer (" in message
    assert "Connection refused" in message


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1/x", "http://[bad/x"])
def test_an_address_that_is_none_is_told(target, url):
    assert "check the address" in fails(Download(target, (url,)))


def test_a_cut_connection_goes_on_where_it_stopped(site, target):
    url = site.add("/tomo.mrc", BODY, faults=["cut:400000", "cut:300000"])
    download(Download(target, (url,)))
    assert target.read_bytes() == BODY
    assert [asked for _, _, asked in site.requests] == ["", "bytes=400000-", "bytes=700000-"]


def test_many_cuts_are_no_failure_as_long_as_something_comes(site, target):
    url = site.add("/tomo.mrc", BODY, faults=["cut:80000"] * 12)
    download(Download(target, (url,)))
    assert target.read_bytes() == BODY
    assert site.bytes_sent["/tomo.mrc"] == len(BODY)


def test_a_broken_download_leaves_a_part_that_the_next_run_completes(site, target):
    url = site.add("/tomo.mrc", BODY, faults=["cut:400000", "500!"])
    message = fails(Download(target, (url,)))
    assert "the server answered 500" in message
    assert names(target) == BROKEN
    assert (target.parent / "tomo.mrc.part").stat().st_size == 400_000
    site.pages["/tomo.mrc"].faults.clear()
    download(Download(target, (url,)))
    assert target.read_bytes() == BODY
    assert names(target) == WHOLE
    assert site.requests[-1][2] == "bytes=400000-"


def test_a_part_that_is_whole_already_is_only_verified(site, target):
    url = site.add("/tomo.mrc", BODY, faults=["cut:400000", "500!"])
    fails(Download(target, (url,)))
    site.pages["/tomo.mrc"].faults.clear()
    (target.parent / "tomo.mrc.part").write_bytes(BODY)
    sent = site.bytes_sent["/tomo.mrc"]
    download(Download(target, (url,)))
    assert target.read_bytes() == BODY
    assert site.bytes_sent["/tomo.mrc"] == sent


def test_without_ranges_the_download_starts_anew(site, target):
    url = site.add("/tomo.mrc", BODY, faults=["cut:400000"], ranges=False)
    download(Download(target, (url,)))
    assert target.read_bytes() == BODY
    assert len(site.requests) == 2


def test_without_ranges_a_cut_at_the_same_place_each_time_ends(site, target):
    url = site.add("/tomo.mrc", BODY, faults=["cut:400000!"], ranges=False)
    message = fails(Download(target, (url,)))
    assert "in 5 attempts in a row" in message
    assert "the connection broke off" in message


def broken_at(site, target, size, **page):
    """Leave a part of `size` bytes of BODY."""
    url = site.add("/tomo.mrc", BODY, faults=[f"cut:{size}", "500!"], **page)
    fails(Download(target, (url,)))
    site.pages["/tomo.mrc"].faults.clear()
    return url


@pytest.mark.parametrize(
    "page",
    [{}, {"etag": None, "last_modified": "Mon, 02 Mar 2026 10:00:00 GMT"}, {"etag": None}, {"etag": 'W/"1"'}],
    ids=["etag", "last-modified", "neither", "weak etag"],
)
def test_a_file_that_changed_between_part_and_resumption_is_not_spliced(site, target, page):
    url = broken_at(site, target, 400_000, **page)
    site.pages["/tomo.mrc"].body = OTHER  # of the same length
    if page.get("last_modified"):
        site.pages["/tomo.mrc"].last_modified = "Tue, 03 Mar 2026 10:00:00 GMT"
    download(Download(target, (url,)))
    assert target.read_bytes() == OTHER


def test_a_file_that_became_shorter_is_not_spliced(site, target):
    url = broken_at(site, target, 400_000)
    site.pages["/tomo.mrc"].body = OTHER[:300_000]
    download(Download(target, (url,)))
    assert target.read_bytes() == OTHER[:300_000]


def test_a_splice_that_no_tag_shows_is_found_by_the_checksum(site, target):
    url = broken_at(site, target, 400_000, etag='"same"')
    site.pages["/tomo.mrc"].body = OTHER
    download(Download(target, (url,), None, (("sha256", hashlib.sha256(OTHER).hexdigest()),)))
    assert target.read_bytes() == OTHER


def test_a_part_of_unknown_origin_is_not_used(site, target):
    target.parent.mkdir()
    (target.parent / "tomo.mrc.part").write_bytes(OTHER[:1000])
    download(Download(target, (site.add("/tomo.mrc", BODY),)))
    assert target.read_bytes() == BODY


def test_a_wrong_checksum_leaves_nothing(site, target):
    url = site.add("/tomo.mrc", OTHER)
    message = fails(Download(target, (url,), None, (MD5,)))
    assert message.startswith(f"{url}: came damaged or is another file: md5 {hashlib.md5(OTHER).hexdigest()}")
    assert MD5[1] in message
    assert names(target) == []


def test_a_wrong_size_is_noticed_before_anything_is_loaded(site, target):
    url = site.add("/tomo.mrc", BODY)
    assert "announces 1000003 bytes, expected are 1000000" in fails(Download(target, (url,), 1_000_000))
    assert names(target) == []


def test_a_wrong_size_that_the_server_does_not_announce_is_noticed_afterwards(site, target):
    url = site.add("/tomo.mrc", BODY, length=False)
    assert "1000003 bytes came, expected are 1000000" in fails(Download(target, (url,), 1_000_000))
    assert names(target) == []


def test_a_file_without_announced_end_is_refused_unless_it_can_be_verified(site, target):
    url = site.add("/tomo.mrc", BODY, length=False)
    assert "a cut would not be noticed" in fails(Download(target, (url,)))
    download(Download(target, (url,), None, (MD5,)))
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("html", "a web page came instead of the file ('<!DOCTYPE html><html>log in</html>')"),
        ("json", "an error message came instead of the file (quota exceeded)"),
    ],
)
def test_a_page_instead_of_the_file_is_recognised(site, target, fault, part):
    assert part in fails(Download(target, (site.add("/tomo.mrc", BODY, faults=[f"{fault}!"]),)))
    assert len(site.requests) == 1
    assert names(target) == []


@pytest.mark.parametrize("start", [b"<?xml version='1.0'?><Error>NoSuchKey", b"\n<html>x", b'{"status":"ERROR"}'])
def test_a_page_that_claims_to_be_data_is_recognised(site, target, start):
    assert "instead of the file" in fails(Download(target, (site.add("/tomo.mrc", start),)))


def test_a_full_disk_is_noticed_before_the_download(site, target, monkeypatch):
    url = site.add("/tomo.mrc", BODY)
    usage = shutil._ntuple_diskusage(10**9, 10**9, 500_000)
    monkeypatch.setattr(transfer_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="needs 1000003 bytes more, 500000 are free in"):
        download(Download(target, (url,)))
    assert names(target) == []


def test_a_disk_that_fills_up_keeps_what_came(site, target, monkeypatch):
    url = site.add("/tomo.mrc", BODY)
    append = part_module.Part.append

    def full(self, piece):
        if self.size() > 400_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, piece)

    monkeypatch.setattr(part_module.Part, "append", full)
    with pytest.raises(OutputError, match=r"tomo\.mrc: disk full"):
        download(Download(target, (url,)))
    assert names(target) == BROKEN
    monkeypatch.undo()
    download(Download(target, (url,)))
    assert target.read_bytes() == BODY
    assert site.requests[-1][2].startswith("bytes=")


def test_mirrors_are_tried_in_order(site, target):
    first = site.add("/first", BODY, faults=["404!"])
    second = site.add("/second", OTHER)
    third = site.add("/third", BODY)
    download(Download(target, (first, second, third), None, (MD5,)))
    assert target.read_bytes() == BODY
    assert read_record(target).url == third
    assert [path for _, path, _ in site.requests] == ["/first", "/second", "/third"]


def test_when_all_mirrors_fail_each_is_named(site, target):
    first, second = site.add("/first", BODY, faults=["404!"]), site.add("/second", OTHER)
    message = fails(Download(target, (first, second), None, (MD5,)))
    assert first in message
    assert second in message


def test_a_mirror_goes_on_with_what_the_first_gave_if_a_checksum_is_known(site, target):
    first = site.add("/first", BODY, faults=["cut:400000", "404!"])
    second = site.add("/second", BODY, etag=None)
    download(Download(target, (first, second), None, (MD5,)))
    assert target.read_bytes() == BODY
    assert site.requests[-1] == ("GET", "/second", "bytes=400000-")


def test_an_address_that_leads_elsewhere_is_followed_with_the_range(site, target):
    site.add("/store", BODY, faults=["cut:400000"])
    url = site.add("/api/datafile/1", redirect=site.url + "/store")
    download(Download(target, (url,), None, (MD5,)))
    assert target.read_bytes() == BODY
    assert site.requests[-1] == ("GET", "/store", "bytes=400000-")


def test_packed_files_stay_packed(site, target):
    url = site.add("/tomo.mrc", BODY, headers={"Content-Encoding": "gzip"})
    download(Download(target, (url,), len(BODY), (MD5,)))
    assert target.read_bytes() == BODY


def test_offline_nothing_is_asked(site, target, monkeypatch):
    url = site.add("/tomo.mrc", BODY)
    assert f"fetch {url} elsewhere and put it there" in fails(Download(target, (url,)), offline=True)
    monkeypatch.setenv("ETSAM_OFFLINE", "1")
    assert "without network" in fails(Download(target, (url,)))
    assert site.requests == []
    monkeypatch.setenv("ETSAM_OFFLINE", "0")
    download(Download(target, (url,)))
    monkeypatch.setenv("ETSAM_OFFLINE", "1")
    assert download(Download(target, (url,))) is False


def test_progress_counts_up_to_all_bytes(site, target):
    told = []
    url = site.add("/tomo.mrc", BODY, faults=["cut:400000"])
    download(Download(target, (url,)), progress=lambda item, done, total: told.append((item.target, done, total)))
    assert told[-1] == (target, len(BODY), len(BODY))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_several_files_come_at_once_and_one_that_fails_stops_none(site, tmp_path):
    items = [Download(tmp_path / f"{n}", (site.add(f"/{n}", BODY[n:], slow_seconds=0.005),)) for n in range(6)]
    site.pages["/1"].faults = ["404!"]
    site.pages["/4"].faults = ["html!"]
    done = []
    failed = download_all(items, jobs=3, finished=done.append)
    assert [item.target.name for item, _ in failed] == ["1", "4"]
    assert all(site.url + f"/{item.target.name}" in str(error) for item, error in failed)
    assert sorted(item.target.name for item in done) == ["0", "2", "3", "5"]
    assert all((tmp_path / name).read_bytes() == BODY[int(name) :] for name in "0235")
    site.pages["/1"].faults, site.pages["/4"].faults = [], []
    assert download_all(items) == []
    assert len(site.asked("/0")) == 1


def test_stop_ends_all_downloads_at_once(site, tmp_path):
    items = [Download(tmp_path / f"{n}", (site.add(f"/{n}", BODY, slow_seconds=0.2),)) for n in range(3)]
    web = Web()
    threading.Timer(0.5, web.stop).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        download_all(items, web=web)
    assert time.monotonic() - started < 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json") == ["0.part", "1.part", "2.part"]


FETCH = """
import sys
from pathlib import Path
from etsam.io.download import Download, download_all
failed = download_all([Download(Path(sys.argv[1]), (sys.argv[2],))])
print([str(error) for _, error in failed])
"""


def process(target, url):
    return subprocess.Popen([sys.executable, "-c", FETCH, str(target), url], stdout=subprocess.PIPE, text=True)


def test_two_processes_load_a_file_once(site, target):
    url = site.add("/tomo.mrc", BODY, slow_seconds=0.15)
    both = [process(target, url) for _ in range(2)]
    assert [one.communicate(timeout=60)[0].strip() for one in both] == ["[]", "[]"]
    assert target.read_bytes() == BODY
    assert names(target) == WHOLE
    assert site.bytes_sent["/tomo.mrc"] == len(BODY)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_ends_in_the_middle_leaves_a_part_that_is_used(site, target, kind):
    url = site.add("/tomo.mrc", BODY, slow_seconds=0.2)
    running = process(target, url)
    deadline = time.monotonic() + 30
    part = target.parent / "tomo.mrc.part"
    while not (part.exists() and part.stat().st_size > 0):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(kind)
    running.communicate(timeout=10)
    assert names(target) == BROKEN
    site.pages["/tomo.mrc"].slow_seconds = 0
    download(Download(target, (url,)))
    assert target.read_bytes() == BODY
    assert int(site.requests[-1][2].removeprefix("bytes=").removesuffix("-")) > 0


def test_without_locks_it_works_still(site, target, monkeypatch):
    monkeypatch.setattr(part_module, "fcntl", None)
    download(Download(target, (site.add("/tomo.mrc", BODY),)))
    assert target.read_bytes() == BODY


def test_json_is_asked_for_with_the_same_patience(site):
    site.add("/api", json.dumps({"a": 1}).encode(), faults=[503], kind="application/json")
    assert Web().get_json(site.url + "/api") == {"a": 1}
    site.add("/page", b"<html>", kind="text/html")
    with pytest.raises(DownloadError, match="expected JSON, got '<html>'"):
        Web().get_json(site.url + "/page")


def test_the_size_of_a_file_is_known_before_it_is_loaded(site):
    site.add("/tomo.mrc", BODY)
    assert Web().size_bytes(site.url + "/tomo.mrc") == len(BODY)
    assert site.bytes_sent["/tomo.mrc"] == 0
    with pytest.raises(DownloadError, match="404"):
        Web().size_bytes(site.url + "/no")


def test_importing_the_downloader_loads_no_web_library():
    code = "import etsam.io.download, sys; print([m for m in ('requests', 'urllib3', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
