"""A download is the file that was asked for, whole and with its record, or it is not there."""

import hashlib
import shutil
import subprocess
import sys

import pytest
from downloads import BODY, MD5, OTHER, WHOLE, fails, names

from etsam.errors import DownloadError, OutputError
from etsam.io import transfer as transfer_module
from etsam.io.download import Download, download, read_record
from etsam.io.web import Web


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


def test_packed_files_stay_packed(site, target):
    url = site.add("/tomo.mrc", BODY, headers={"Content-Encoding": "gzip"})
    download(Download(target, (url,), len(BODY), (MD5,)))
    assert target.read_bytes() == BODY


def test_progress_counts_up_to_all_bytes(site, target):
    told = []
    url = site.add("/tomo.mrc", BODY, faults=["cut:400000"])
    download(Download(target, (url,)), progress=lambda item, done, total: told.append((item.target, done, total)))
    assert told[-1] == (target, len(BODY), len(BODY))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_the_size_of_a_file_is_known_before_it_is_loaded(site):
    site.add("/tomo.mrc", BODY)
    assert Web().size_bytes(site.url + "/tomo.mrc") == len(BODY)
    assert site.bytes_sent["/tomo.mrc"] == 0
    with pytest.raises(DownloadError, match="404"):
        Web().size_bytes(site.url + "/no")


def test_importing_the_downloader_loads_no_web_library():
    code = "import etsam.io.download, sys; print([m for m in ('requests', 'urllib3', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
