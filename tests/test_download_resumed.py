"""A download that breaks off goes on where it stopped, and two versions of a file are never spliced."""

import errno
import hashlib
import os

import pytest
from downloads import BODY, BROKEN, MD5, OTHER, WHOLE, fails, names

from etsam.errors import OutputError
from etsam.io import part as part_module
from etsam.io.download import Download, download


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
