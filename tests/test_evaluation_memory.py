"""Memory of the metrics, in a process of its own."""

import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from etsam.evaluation.metrics.planes import Shown
from etsam.evaluation.scorer import pictures
from etsam.volume import MrcWriter

AREA, WHOLE, LIMIT_MB = (928, 960), 500, 1500

SCORE = """
import sys
from etsam.evaluation.metrics.scores import Metrics, Scored
from etsam.prediction.record import peak_memory_mb
from etsam.volume import read_volume
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


def test_pictures_keep_three_slices_and_not_the_tomogram():
    shape = (120, 90, 110)
    shown = tuple(Shown(axis, index, "most membrane") for axis, index in (("z", 60), ("y", 7), ("x", 101)))

    class Tomogram:
        """Each slice is made when it is asked for, as if it came from a file."""

        def __init__(self):
            self.shape = shape

        def __getitem__(self, z):
            return np.full(shape[1:], z, np.float32)

    masks = np.random.default_rng(0).random((2, *shape)) > 0.5
    scores = SimpleNamespace(shown=shown, masks=(*(AsTheyCome(mask) for mask in masks), None))
    tracemalloc.start()
    try:
        found = pictures(Tomogram(), scores, (30.0, 20.0, 10.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < np.prod(shape) * 4 / 4  # a quarter of the tomogram
    assert [(one.axis, one.index, one.grey.shape) for one in found] == [
        ("z", 60, (90, 110)),
        ("y", 7, (120, 110)),
        ("x", 101, (120, 90)),
    ]
    assert [(one.voxel_size_angstrom, one.averaged) for one in found] == [
        ((20.0, 10.0), 3),
        ((30.0, 10.0), 5),
        ((30.0, 20.0), 9),
    ]
    np.testing.assert_array_equal(found[1].prediction, masks[1][:, 7])
    np.testing.assert_array_equal(found[2].truth, masks[0][:, :, 101])
    assert (np.diff(found[2].grey[:, 0]) >= 0).all()


class AsTheyCome:
    """Slices as copies, none of which the volume keeps."""

    def __init__(self, volume):
        self.volume = volume

    def __getitem__(self, z):
        return self.volume[z].copy()


@pytest.mark.slow
def test_all_metrics_of_500_x_928_x_960_voxels_take_less_than_1500_mb(tmp_path):
    few, many = 40, 140
    peaks = [peak_mb(tmp_path, slices) for slices in (few, many)]
    growth = (peaks[1] - peaks[0]) / (many - few)
    assert peaks[0] + growth * (WHOLE - few) < LIMIT_MB
