"""`etsam benchmark`: what is measured, and what failed."""

import csv
import json
import math
import sys

import pytest
from conftest import write_mrc

from etsam.evaluation.benchmark import measure

pytestmark = pytest.mark.workshop
PYTHON = sys.executable


@pytest.fixture
def benchmark(etsam, tomogram):
    return lambda *arguments: etsam("benchmark", "tomo.mrc", "--output-dir", "out", *arguments)


def rows(folder):
    return {row["run"]: row for row in csv.DictReader((folder / "out/benchmark.csv").read_text().splitlines())}


def test_own_settings_and_other_programs_are_rows_and_failures_too(benchmark, work):
    tiny = "net=tiny_test weights=random trainer=cpu write_preview=false"
    copy = f"{PYTHON} -c 'import shutil, sys; shutil.copy(*sys.argv[1:])' {{input}} {{output}}"
    outcome = benchmark(
        *("--settings", f"tiny={tiny}"),
        *("--settings", "wrong=net=nonsense"),
        *("--peer", f"copy={copy}"),
        *("--peer", f"lazy={PYTHON} -c pass {{input}} {{output}}"),
        *("--peer", "absent=no_such_program {input}"),
    )
    assert outcome.status == 0, outcome.stderr
    found = rows(work)
    assert {name: row["status"] for name, row in found.items()} == {
        "tiny": "ok", "wrong": "failed", "copy": "ok", "lazy": "failed", "absent": "failed",
    }  # fmt: skip
    tiny = found["tiny"]
    assert float(tiny["stage1_seconds"]) > 0
    assert float(tiny["stage2_seconds"]) > 0
    assert float(tiny["seconds"]) > float(tiny["stage1_seconds"]) + float(tiny["stage2_seconds"])
    assert float(tiny["seconds_per_slice"]) == pytest.approx(float(tiny["seconds"]) / 6)
    assert 200 < float(tiny["peak_ram_mb"]) < 20_000
    assert "net=nonsense" in found["wrong"]["error"]
    assert found["lazy"]["error"]
    assert "no_such_program" in found["absent"]["error"]
    assert outcome.files == ["benchmark.csv", "benchmark.json", "benchmark.md"]
    assert len(json.loads((work / "out/benchmark.json").read_text())["runs"]) == 5
    assert "benchmark.csv" in benchmark("--peer", f"copy={copy}").message
    assert benchmark("--peer", f"copy={copy}", "--overwrite", "--keep").status == 0
    assert (work / "out/outputs/copy/tomo.mrc/tomo.mrc").read_bytes() == (work / "tomo.mrc").read_bytes()


def test_memory_of_a_process_and_its_children_is_measured():
    hold = "import time; a = bytearray(b'x') * 300_000_000; time.sleep(0.6)"
    alone = measure([PYTHON, "-c", hold])
    parent = measure([PYTHON, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"])
    for found in (alone, parent):
        assert found.status == 0
        assert 300 < found.peak_ram_mb < 450
        assert 0.6 < found.seconds < 60
    assert math.isnan(alone.peak_vram_mb) or alone.peak_vram_mb == 0


def test_a_run_that_takes_too_long_is_stopped(benchmark, work):
    sleep = f"slow={PYTHON} -c 'import time; time.sleep(100)' {{input}}"
    assert benchmark("--peer", sleep, "--limit-seconds", "0.5").status == 0
    assert "0.5 s" in rows(work)["slow"]["error"]
    assert float(rows(work)["slow"]["seconds"]) < 50


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "none"),
        (["--settings", "a=net=nano", "--settings", "a=net=nano"], "a, a"),
        (["--settings", "nano"], "nano"),
        (["--peer", "a=tool --x"], "{input}"),
        (["--peer", "a=tool 'x {input}"], "tool"),
    ],
)
def test_what_cannot_be_run_is_refused(benchmark, arguments, part):
    outcome = benchmark(*arguments)
    assert outcome.status == 1
    assert part in outcome.message
    assert outcome.files == []


def test_a_tomogram_that_cannot_be_read_is_a_failed_row(etsam, work):
    write_mrc(work / "good.mrc")
    (work / "bad.mrc").write_bytes(b"nothing")
    peer = f"lazy={PYTHON} -c pass {{input}}"
    assert etsam("benchmark", "good.mrc", "bad.mrc", "--output-dir", "out", "--peer", peer).status == 0
    table = list(csv.DictReader((work / "out/benchmark.csv").read_text().splitlines()))
    assert [row["status"] for row in table] == ["ok", "failed"]
    assert "bad.mrc" in table[1]["error"]
