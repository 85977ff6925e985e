"""Several downloads at once, in one process or two, do not disturb each other, and all end together when told to."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from downloads import BODY, BROKEN, WHOLE, names

from etsam.io import part as part_module
from etsam.io.download import Download, download, download_all
from etsam.io.web import Stopped, Web

FETCH = """
import sys
from pathlib import Path
from etsam.io.download import Download, download_all
failed = download_all([Download(Path(sys.argv[1]), (sys.argv[2],))])
print([str(error) for _, error in failed])
"""


def process(target, url):
    return subprocess.Popen([sys.executable, "-c", FETCH, str(target), url], stdout=subprocess.PIPE, text=True)


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
    web, stopped = Web(), []

    def stop_when_all_are_under_way():  # which takes a busy machine longer
        deadline = time.monotonic() + 30
        while sum(part.stat().st_size > 0 for part in tmp_path.glob("*.part")) < len(items):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        stopped.append(time.monotonic())
        web.stop()

    threading.Thread(target=stop_when_all_are_under_way).start()
    with pytest.raises(Stopped):
        download_all(items, web=web)
    assert time.monotonic() - stopped[0] < 1.5
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json") == ["0.part", "1.part", "2.part"]


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
