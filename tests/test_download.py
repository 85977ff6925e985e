"""A download is the file that was asked for, whole and with its record, or it is not there; what broke off goes on."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pooch
import pytest

from etsam import download as download_module
from etsam.download import DownloadJob, ResumingDownloader, Stop, Stopped, fetch, fetch_all, get_json, read_record
from etsam.errors import DownloadError, OutputError

BODY = np.random.default_rng(0).bytes(1_000_003)
OTHER = np.random.default_rng(1).bytes(1_000_003)
CUT = 6 * 65536  # bytes; pooch hands out 64 KiB at a time, and what comes of a piece before a cut is lost
MD5 = ("md5", hashlib.md5(BODY).hexdigest())
WHOLE = ["tomo.mrc", "tomo.mrc.download.json"]
BROKEN = ["tomo.mrc.part", "tomo.mrc.part.json"]
FETCH = """
import sys
from pathlib import Path
from etsam.download import DownloadJob, fetch_all
print([str(error) for _, error in fetch_all([DownloadJob(Path(sys.argv[1]), (sys.argv[2],))])])
"""


def names(target):
    return sorted(path.name for path in target.parent.iterdir()) if target.parent.exists() else []


def fails(job, **settings):
    """Download something that has to fail; gives the message."""
    with pytest.raises(DownloadError) as caught:
        fetch(job, **settings)
    assert not job.target.exists()
    return str(caught.value)


def broken_at(site, target, size, **page):
    """Leave a part of `size` bytes of BODY."""
    url = site.add("/tomo.mrc", BODY, faults=[f"cut:{size}", "500!"], **page)
    fails(DownloadJob(target, (url,)))
    assert names(target) == BROKEN
    assert (target.parent / "tomo.mrc.part").stat().st_size == size
    site.pages["/tomo.mrc"].faults.clear()
    return url


def process(target, url):
    return subprocess.Popen([sys.executable, "-c", FETCH, str(target), url], stdout=subprocess.PIPE, text=True)


# Whole and verified


def test_a_file_comes_whole_with_its_record(site, target):
    url, told = site.add("/tomo.mrc", BODY, faults=[f"cut:{CUT}"]), []
    assert fetch(DownloadJob(target, (url,)), progress=lambda *news: told.append(news)) is True
    assert target.read_bytes() == BODY
    assert names(target) == WHOLE
    record = read_record(target)
    assert (record.url, record.size) == (url, len(BODY))
    assert record.checksums == {"sha256": hashlib.sha256(BODY).hexdigest()}
    assert told[-1] == (str(target), len(BODY), len(BODY))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_what_is_there_and_recorded_is_neither_asked_for_nor_read_again(site, target, monkeypatch):
    job = DownloadJob(target, (site.add("/tomo.mrc", BODY),), len(BODY), (MD5,))
    fetch(job)
    monkeypatch.setattr(download_module, "_digests", lambda *_: 1 / 0)
    assert fetch(job) is False
    assert len(site.asked("/tomo.mrc")) == 1


def test_a_file_that_lies_there_already_is_verified_and_adopted(site, target):
    target.parent.mkdir()
    target.write_bytes(BODY)
    assert fetch(DownloadJob(target, (site.url + "/tomo.mrc",), len(BODY), (MD5,))) is False
    assert site.requests == []
    assert read_record(target).checksums["md5"] == MD5[1]


def test_a_checksum_may_be_written_in_capitals(site, target):
    url = site.add("/tomo.mrc", BODY)
    assert fetch(DownloadJob(target, (url,), None, (("md5", MD5[1].upper()),))) is True
    assert fetch(DownloadJob(target, (url,), None, (("md5", MD5[1].upper()),))) is False
    (target.parent / "tomo.mrc.download.json").unlink()
    assert fetch(DownloadJob(target, (url,), None, (("md5", MD5[1].upper()),))) is False


@pytest.mark.parametrize("content", [OTHER, BODY[:-1]], ids=["other bytes", "shorter"])
def test_another_file_of_that_name_is_kept_and_named(site, target, content):
    target.parent.mkdir()
    target.write_bytes(content)
    with pytest.raises(OutputError, match=str(target)):
        fetch(DownloadJob(target, (site.add("/tomo.mrc", BODY),), len(BODY), (MD5,)))
    assert target.read_bytes() == content
    assert names(target) == ["tomo.mrc"]


def test_a_file_changed_after_its_download_is_noticed(site, target):
    job = DownloadJob(target, (site.add("/tomo.mrc", BODY),))
    fetch(job)
    target.write_bytes(OTHER)
    with pytest.raises(OutputError, match=hashlib.sha256(OTHER).hexdigest()):
        fetch(job)


def test_a_wrong_checksum_leaves_nothing(site, target):
    url = site.add("/tomo.mrc", OTHER)
    message = fails(DownloadJob(target, (url,), None, (MD5,)))
    assert url in message
    assert hashlib.md5(OTHER).hexdigest() in message
    assert MD5[1] in message
    assert names(target) == []


@pytest.mark.parametrize("length", [True, False], ids=["announced", "not announced"])
def test_a_wrong_size_leaves_nothing(site, target, length):
    url = site.add("/tomo.mrc", BODY, length=length)
    assert "1000000" in fails(DownloadJob(target, (url,), 1_000_000))
    assert names(target) == []


def test_a_file_without_announced_end_is_refused_unless_it_can_be_verified(site, target):
    url = site.add("/tomo.mrc", BODY, length=False)
    assert url in fails(DownloadJob(target, (url,)))
    fetch(DownloadJob(target, (url,), None, (MD5,)))
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(("fault", "part"), [("html!", "log in"), ("json!", "quota exceeded")])
def test_a_page_instead_of_the_file_is_recognised(site, target, fault, part):
    assert part in fails(DownloadJob(target, (site.add("/tomo.mrc", BODY, faults=[fault]),)))
    assert len(site.requests) == 1
    assert names(target) == []


@pytest.mark.parametrize("start", [b"<?xml version='1.0'?><Error>NoSuchKey", b"\n<html>x", b'{"status":"ERROR"}'])
def test_a_page_that_claims_to_be_data_is_recognised(site, target, start):
    fails(DownloadJob(target, (site.add("/tomo.mrc", start),)))
    assert names(target) == []


def test_packed_files_stay_packed(site, target):
    url = site.add("/tomo.mrc", BODY, headers={"Content-Encoding": "gzip"})
    fetch(DownloadJob(target, (url,), len(BODY), (MD5,)))
    assert target.read_bytes() == BODY


def test_mirrors_are_tried_in_order_and_each_that_fails_is_named(site, target):
    first, second = site.add("/first", BODY, faults=["404!"]), site.add("/second", OTHER)
    message = fails(DownloadJob(target, (first, second), None, (MD5,)))
    assert first in message
    assert second in message
    site.requests.clear()
    fetch(DownloadJob(target, (first, second, site.add("/third", BODY)), None, (MD5,)))
    assert target.read_bytes() == BODY
    assert read_record(target).url == f"{site.url}/third"
    assert [path for _, path, _ in site.requests] == ["/first", "/second", "/third"]


# Faults


@pytest.mark.parametrize("status", [404, 403, 401, 410])
def test_a_refusal_is_final(site, target, status):
    url = site.add("/tomo.mrc", BODY, faults=[f"{status}!"])
    message = fails(DownloadJob(target, (url,)))
    assert url in message
    assert str(status) in message
    assert len(site.requests) == 1
    assert names(target) == []


def test_what_the_server_says_in_json_is_passed_on(site, target):
    assert "nothing here" in fails(DownloadJob(target, (site.url + "/no",)))


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_fault_that_passes_is_tried_again(site, target, status):
    fetch(DownloadJob(target, (site.add("/tomo.mrc", BODY, faults=[status]),)))
    assert target.read_bytes() == BODY
    assert len(site.requests) == 2


def test_a_fault_that_stays_is_told_after_five_attempts(site, target):
    url = site.add("/tomo.mrc", BODY, faults=["500!"])
    assert "500" in fails(DownloadJob(target, (url,)))
    assert len(site.requests) == 5
    assert names(target) == []


def test_the_server_may_say_how_long_to_wait_and_else_pauses_grow_to_a_minute(site, target, monkeypatch):
    waited = []
    monkeypatch.setattr(Stop, "check", lambda self, seconds=0.0: waited.append(seconds) if seconds else None)
    fetch(DownloadJob(target, (site.add("/tomo.mrc", BODY, faults=[503, 503], headers={"Retry-After": "7"}),)))
    assert waited == [7.0, 7.0]
    waited.clear()
    monkeypatch.setattr(download_module, "BACKOFF_SECONDS", 10.0)
    fails(DownloadJob(target.with_name("b.mrc"), (site.add("/b.mrc", BODY, faults=["500!"]),)))
    assert [8 <= waited[0] <= 12, 16 <= waited[1] <= 24, 32 <= waited[2] <= 48, waited[3]] == [True, True, True, 60.0]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/tomo.mrc", "nonsense", "ftp://127.0.0.1/x", "http://[bad/x"])
def test_no_server_and_no_address_are_told(no_pauses, target, url):
    assert url in fails(DownloadJob(target, (url,)))
    assert names(target) == []


def test_offline_nothing_is_asked(site, target, monkeypatch):
    url = site.add("/tomo.mrc", BODY)
    assert url in fails(DownloadJob(target, (url,)), offline=True)
    monkeypatch.setenv("ETSAM_OFFLINE", "1")
    assert url in fails(DownloadJob(target, (url,)))
    with pytest.raises(DownloadError, match="ETSAM_OFFLINE"):
        get_json(url)
    assert site.requests == []
    monkeypatch.setenv("ETSAM_OFFLINE", "0")
    fetch(DownloadJob(target, (url,)))
    monkeypatch.setenv("ETSAM_OFFLINE", "1")
    assert fetch(DownloadJob(target, (url,))) is False


def test_json_is_asked_for_with_the_same_patience(site):
    site.add("/api", b'{"a": 1}', faults=[503], kind="application/json")
    assert get_json(site.url + "/api") == {"a": 1}
    site.add("/page", b"<html>", kind="text/html")
    with pytest.raises(DownloadError, match="<html>"):
        get_json(site.url + "/page")


def test_a_full_disk_is_noticed_before_the_download(site, target, monkeypatch):
    url = site.add("/tomo.mrc", BODY)
    usage = shutil._ntuple_diskusage(10**9, 10**9, 500_000)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="500000"):
        fetch(DownloadJob(target, (url,)))
    assert names(target) == []


def test_a_disk_that_fills_up_keeps_what_came(site, target, monkeypatch):
    url = site.add("/tomo.mrc", BODY)
    write = ResumingDownloader.write

    def full(self, piece):
        if self._have > 400_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, piece)

    with monkeypatch.context() as patch:
        patch.setattr(ResumingDownloader, "write", full)
        with pytest.raises(OutputError, match=str(target)):
            fetch(DownloadJob(target, (url,)))
    assert names(target) == BROKEN
    fetch(DownloadJob(target, (url,)))
    assert target.read_bytes() == BODY
    assert site.requests[-1][2].startswith("bytes=")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_told(site, target):
    target.parent.mkdir(mode=0o500)
    with pytest.raises(OutputError, match=str(target)):
        fetch(DownloadJob(target, (site.add("/tomo.mrc", BODY),)))


# Resumption


def test_a_cut_connection_goes_on_where_it_stopped(site, target):
    url = site.add("/tomo.mrc", BODY, faults=[f"cut:{CUT}", f"cut:{5 * 65536}"])
    fetch(DownloadJob(target, (url,)))
    assert target.read_bytes() == BODY
    assert [asked for _, _, asked in site.requests] == ["", "bytes=393216-", "bytes=720896-"]


def test_many_cuts_are_no_failure_as_long_as_something_comes(site, target):
    url = site.add("/tomo.mrc", BODY, faults=["cut:65536"] * 12)
    fetch(DownloadJob(target, (url,)))
    assert target.read_bytes() == BODY
    assert site.bytes_sent["/tomo.mrc"] == len(BODY)


def test_a_broken_download_leaves_a_part_that_the_next_run_completes(site, target):
    url = broken_at(site, target, CUT)
    fetch(DownloadJob(target, (url,)))
    assert target.read_bytes() == BODY
    assert names(target) == WHOLE
    assert site.requests[-1][2] == "bytes=393216-"


def test_a_part_that_is_whole_already_is_only_verified(site, target):
    url = broken_at(site, target, CUT)
    (target.parent / "tomo.mrc.part").write_bytes(BODY)
    sent = site.bytes_sent["/tomo.mrc"]
    fetch(DownloadJob(target, (url,)))
    assert target.read_bytes() == BODY
    assert site.bytes_sent["/tomo.mrc"] == sent


def test_without_ranges_the_download_starts_anew_as_often_as_others(site, target):
    url = site.add("/tomo.mrc", BODY, faults=[f"cut:{CUT}"], ranges=False)
    fetch(DownloadJob(target, (url,)))
    assert target.read_bytes() == BODY
    assert len(site.requests) == 2
    url = site.add("/b.mrc", BODY, faults=[f"cut:{CUT}!"], ranges=False)
    fails(DownloadJob(target.with_name("b.mrc"), (url,)))
    assert len(site.asked("/b.mrc")) == 5


@pytest.mark.parametrize(
    "page",
    [{}, {"etag": None, "last_modified": "Mon, 02 Mar 2026 10:00:00 GMT"}, {"etag": None}, {"etag": 'W/"1"'}],
    ids=["etag", "last-modified", "neither", "weak etag"],
)
def test_a_file_that_changed_between_part_and_resumption_is_not_spliced(site, target, page):
    url = broken_at(site, target, CUT, **page)
    site.pages["/tomo.mrc"].body = OTHER  # of the same length
    if page.get("last_modified"):
        site.pages["/tomo.mrc"].last_modified = "Tue, 03 Mar 2026 10:00:00 GMT"
    fetch(DownloadJob(target, (url,)))
    assert target.read_bytes() == OTHER


def test_a_file_that_became_shorter_is_not_spliced(site, target):
    url = broken_at(site, target, CUT)
    site.pages["/tomo.mrc"].body = OTHER[:300_000]
    fetch(DownloadJob(target, (url,)))
    assert target.read_bytes() == OTHER[:300_000]


def test_a_splice_that_no_tag_shows_is_found_by_the_checksum(site, target):
    url = broken_at(site, target, CUT, etag='"same"')
    site.pages["/tomo.mrc"].body = OTHER
    fetch(DownloadJob(target, (url,), None, (("sha256", hashlib.sha256(OTHER).hexdigest()),)))
    assert target.read_bytes() == OTHER


def test_a_part_of_unknown_origin_is_not_used(site, target):
    target.parent.mkdir()
    (target.parent / "tomo.mrc.part").write_bytes(OTHER[:1000])
    fetch(DownloadJob(target, (site.add("/tomo.mrc", BODY),)))
    assert target.read_bytes() == BODY


def test_a_mirror_goes_on_with_what_the_first_gave_if_a_checksum_is_known(site, target):
    first = site.add("/first", BODY, faults=[f"cut:{CUT}", "404!"])
    second = site.add("/second", BODY, etag=None)
    fetch(DownloadJob(target, (first, second), None, (MD5,)))
    assert target.read_bytes() == BODY
    assert site.requests[-1] == ("GET", "/second", "bytes=393216-")


def test_an_address_that_leads_elsewhere_is_followed_with_the_range(site, target):
    site.add("/store", BODY, faults=[f"cut:{CUT}"])
    url = site.add("/api/datafile/1", redirect=site.url + "/store")
    fetch(DownloadJob(target, (url,), None, (MD5,)))
    assert target.read_bytes() == BODY
    assert site.requests[-1] == ("GET", "/store", "bytes=393216-")


def test_the_downloader_is_one_that_pooch_takes(site, tmp_path):
    url = site.add("/tomo.mrc", BODY, faults=[f"cut:{CUT}"])
    pooch.get_logger().setLevel("WARNING")
    found = pooch.retrieve(url, f"md5:{MD5[1]}", "tomo.mrc", tmp_path / "cache", downloader=ResumingDownloader())
    assert Path(found).read_bytes() == BODY
    assert [asked for _, _, asked in site.requests] == ["", "bytes=393216-"]


# Several at once


def test_several_files_come_at_once_and_one_that_fails_stops_none(site, tmp_path):
    jobs = [DownloadJob(tmp_path / f"{n}", (site.add(f"/{n}", BODY[n:]),)) for n in range(6)]
    site.pages["/1"].faults = ["404!"]
    site.pages["/4"].faults = ["html!"]
    failed = fetch_all(jobs, threads=3)
    assert [job.target.name for job, _ in failed] == ["1", "4"]
    assert all(site.url + f"/{job.target.name}" in str(error) for job, error in failed)
    assert all((tmp_path / name).read_bytes() == BODY[int(name) :] for name in "0235")
    site.pages["/1"].faults, site.pages["/4"].faults = [], []
    assert fetch_all(jobs) == []
    assert len(site.asked("/0")) == 1


def test_stop_ends_all_downloads_at_once(site, tmp_path):
    jobs = [DownloadJob(tmp_path / f"{n}", (site.add(f"/{n}", BODY, waits=True),)) for n in range(3)]
    stop, under_way = Stop(), set()

    def stop_when_all_are_under_way(name, done, total):
        if done:
            under_way.add(name)
        if len(under_way) == len(jobs):
            stop.set()

    with pytest.raises(Stopped):
        fetch_all(jobs, stop=stop, progress=stop_when_all_are_under_way)  # else it would wait for the server for ever
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json") == ["0.part", "1.part", "2.part"]


def test_two_processes_load_a_file_once(site, target):
    url = site.add("/tomo.mrc", BODY, waits=True)
    both = [process(target, url) for _ in range(2)]
    site.pages["/tomo.mrc"].waiting.wait(60)
    site.pages["/tomo.mrc"].go_on.set()
    assert [one.communicate(timeout=60)[0].strip() for one in both] == ["[]", "[]"]
    assert target.read_bytes() == BODY
    assert names(target) == WHOLE
    assert site.bytes_sent["/tomo.mrc"] == len(BODY)


def test_without_locks_it_works_still(site, target, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks on this file system")

    monkeypatch.setattr("fcntl.flock", no_locks)
    fetch(DownloadJob(target, (site.add("/tomo.mrc", BODY),)))
    assert names(target) == WHOLE


def test_one_waits_while_another_is_at_the_file(site, target):
    url, told = site.add("/tomo.mrc", BODY), []
    first = download_module._locked(DownloadJob(target, (url,)).part, Stop())
    target.parent.mkdir()
    with first:
        second = threading.Thread(target=lambda: told.append(fetch(DownloadJob(target, (url,)))))
        second.start()
        second.join(0.1)
        assert site.requests == []
        target.write_bytes(BODY)
    second.join(30)
    assert told == [False]
    assert site.requests == []


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_ends_in_the_middle_leaves_a_part_that_is_used(site, target, kind):
    url = site.add("/tomo.mrc", BODY, waits=True)
    running = process(target, url)
    part = target.parent / "tomo.mrc.part"
    site.pages["/tomo.mrc"].waiting.wait(60)
    while part.stat().st_size == 0:  # what was sent is on its way
        running.poll()
    running.send_signal(kind)
    running.communicate(timeout=10)
    assert names(target) == BROKEN
    site.pages["/tomo.mrc"].waits = False
    fetch(DownloadJob(target, (url,)))
    assert target.read_bytes() == BODY
    assert names(target) == WHOLE
    assert int(site.requests[-1][2].removeprefix("bytes=").removesuffix("-")) > 0


def test_importing_the_downloader_loads_no_web_library():
    code = "import etsam.download, sys; print([m for m in ('requests', 'urllib3', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
