"""Memory of the metrics, in a process of its own."""

import subprocess
import sys

import numpy as np
import pytest

from etsam.io import MrcWriter

AREA, WHOLE, LIMIT_MB = (928, 960), 500, 1500

SCORE = """
import sys
from etsam.evaluation.metrics import Metrics, Scored
from etsam.inference.record import peak_memory_mb
from etsam.io import read_volume
truth, logits = (read_volume(path) for path in sys.argv[1:])
assert Metrics()(truth, Scored(logits, -0.25), truth.voxel_size_angstrom).metrics["dice"] > 0.9
print(peak_memory_mb()["ram"])
"""


def peak_mb(folder, slices):
    """Peak resident memory of all metrics on a wavy stack of sheets, 6 % membrane, MB."""
    y, x = np.indices(AREA, dtype=np.float32)
    files = folder / "truth.mrc", folder / "logits.mrc"
    rng = np.random.default_rng(0)
    with (
        MrcWriter(files[0], (slices, *AREA), np.int8, voxel_size_angstrom=(10, 10, 10)) as truth,
        MrcWriter(files[1], (slices, *AREA), np.float32, voxel_size_angstrom=(10, 10, 10)) as logits,
    ):
        for z in range(slices):
            height = (y + 0.5 * z + 15 * np.sin(x / 40)) % 64
            distance = abs(height - 32)
            truth[z] = distance < 2
            logits[z] = 4 - 2 * distance + rng.normal(0, 0.3, AREA)
    done = subprocess.run([sys.executable, "-c", SCORE, *files], capture_output=True, text=True, check=True)
    for file in files:
        file.unlink()
    return float(done.stdout)


@pytest.mark.slow
def test_all_metrics_of_500_x_928_x_960_voxels_take_less_than_1500_mb(tmp_path):
    few, many = 40, 140
    peaks = [peak_mb(tmp_path, slices) for slices in (few, many)]
    growth = (peaks[1] - peaks[0]) / (many - few)
    assert peaks[0] + growth * (WHOLE - few) < LIMIT_MB
