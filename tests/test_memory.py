"""Memory does not grow with the number of slices, through the real command."""

import json
import subprocess
import sys

import numpy as np
import pytest

from etsam.paths import resource_path
from etsam.volume import MrcWriter

SIDE = 1024


def peak_mb(folder, slices):
    """Peak resident memory of a prediction with every streamed output, MB."""
    rng = np.random.default_rng(0)
    path = folder / f"t{slices}.mrc"
    with MrcWriter(path, (slices, SIDE, SIDE), np.float32, voxel_size_angstrom=(10, 10, 10)) as writer:
        for z in range(slices):
            writer[z] = rng.normal(size=(SIDE, SIDE)).astype(np.float32)
    command = [
        sys.executable,
        str(resource_path("predict.py")),
        f"input={path}",
        f"output_dir={folder / 'out'}",
        "net=tiny_voxel_test",  # logits of every voxel, as those of nano, in a fraction of its time
        "weights=random",
    ]
    settings = ["tiles=whole", "write_logits=true", "postprocess=thin_noise", "weights.seed=1"]
    subprocess.run([*command, *settings], check=True, timeout=900, capture_output=True)
    path.unlink()
    record = json.loads((folder / "out" / f"t{slices}_etsam_predicted_record.json").read_text())
    return record["peak_memory_mb"]["ram"]


@pytest.mark.slow
def test_peak_memory_grows_by_less_than_700_kb_a_slice_of_1024_x_1024(tmp_path):
    few, many = 20, 120
    growth = (peak_mb(tmp_path, many) - peak_mb(tmp_path, few)) / (many - few)
    assert growth < 0.7  # a float32 slice alone has 4.2 MB
