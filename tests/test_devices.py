"""Several processes share a list of tomograms; here two on the CPU, through the real command line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from etsam.app import is_first_process
from etsam.paths import resource_path
from etsam.volume import MrcWriter


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"SLURM_PROCID": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "1"}, True),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # started by Lightning in an interactive job of Slurm
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
    ],
)
def test_one_process_speaks_for_all_whoever_started_them(monkeypatch, environment, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


def write_tomograms(folder, names, spoiled=()):
    rng = np.random.default_rng(0)
    for name in names:
        with MrcWriter(folder / name, (5, 40, 50), np.float32, voxel_size_angstrom=(10, 10, 10)) as writer:
            for z in range(5):
                writer[z] = rng.normal(size=(40, 50)).astype(np.float32) * (np.nan if name in spoiled else 1)


def predict(folder, *overrides):
    command = [sys.executable, str(resource_path("predict.py")), f"input={folder}", f"output_dir={folder / 'out'}"]
    return subprocess.run(
        [*command, "net=tiny_test", "weights=random", "trainer=cpus", *overrides],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_segment_every_tomogram_once_and_report_what_failed_in_either(tmp_path):
    names = [f"t{i}.mrc" for i in range(4)]
    write_tomograms(tmp_path, names, spoiled=["t1.mrc"])
    done = predict(tmp_path, "weights.seed=1")
    assert done.returncode == 1  # t1 falls to the second process; the first has to know
    errors = [line for line in done.stderr.splitlines() if line.startswith("etsam: error")]
    assert len(errors) == 1
    assert "t1.mrc" in errors[0]
    records = sorted(path.name for path in (tmp_path / "out").glob("*record.json"))
    assert records == [f"t{i}_etsam_predicted_record.json" for i in (0, 2, 3)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "t1.mrc").unlink()
    resumed = predict(tmp_path, "weights.seed=1", "resume=true")
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert json.loads((tmp_path / "out" / records[0]).read_text())["membrane_share"] >= 0
