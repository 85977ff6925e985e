"""A fault that may pass is tried again with growing pauses, and a refusal is told at once in the server's words."""

import json

import pytest
from downloads import BODY, fails, names

from etsam.errors import DownloadError
from etsam.io import web as web_module
from etsam.io.download import Download, download
from etsam.io.web import Web


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


def test_no_server_at_all_is_told(no_pauses, target):
    message = fails(Download(target, ("http://127.0.0.1:9/tomo.mrc",)))
    assert "http://127.0.0.1:9/tomo.mrc: no answer (" in message
    assert "Connection refused" in message


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1/x", "http://[bad/x"])
def test_an_address_that_is_none_is_told(target, url):
    assert "check the address" in fails(Download(target, (url,)))


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


def test_json_is_asked_for_with_the_same_patience(site):
    site.add("/api", json.dumps({"a": 1}).encode(), faults=[503], kind="application/json")
    assert Web().get_json(site.url + "/api") == {"a": 1}
    site.add("/page", b"<html>", kind="text/html")
    with pytest.raises(DownloadError, match="expected JSON, got '<html>'"):
        Web().get_json(site.url + "/page")
