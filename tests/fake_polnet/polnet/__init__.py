"""Stands in for PolNet 1.1 in tests: the same class, which writes a sheet of membrane at a random height.

Variables of the environment: FAKE_POLNET_FAIL and FAKE_POLNET_HANG name numbers of tomograms, FAKE_POLNET_TOGETHER how
many samples have to be under way at the same time.
"""

import os
import random
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np

__version__ = "1.1.2"
sys.stdout.write("PolNet talks\n")  # as libraries do


def _named(variable, number):
    return str(number) in os.environ.get(variable, "").split(",")


class SynthTomo:
    def __init__(
        self, *, index, mbs_file_list, flms_file_list, pns_file_list, pms_file_list, tem_file_path, data_path, tomo_dir,
        shape, v_size, offset,
    ):  # fmt: skip
        for file in [*mbs_file_list, *flms_file_list, *pns_file_list, *pms_file_list]:
            if not (data_path / file).is_file():
                raise FileNotFoundError(file)
        if not isinstance(shape, list) or not isinstance(v_size, float) or not isinstance(tomo_dir, Path):
            raise TypeError("shape is a list, v_size a float, tomo_dir a Path")
        self.number, self.folder, self.shape, self.v_size, self.tem_file = (
            index, tomo_dir, shape[::-1], v_size, tem_file_path,
        )  # fmt: skip

    def generate_sample(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "half_done.txt").write_text("x")
        together = int(os.environ.get("FAKE_POLNET_TOGETHER", "0"))
        until = time.monotonic() + 60
        while len(list(self.folder.parent.glob(".Tomo*.part/half_done.txt"))) < together:
            if time.monotonic() > until:
                raise RuntimeError("alone")
            time.sleep(0.02)
        if together:
            time.sleep(0.5)  # the others look, too
        if _named("FAKE_POLNET_FAIL", self.number):
            raise RuntimeError(f"no room for number {self.number}")
        while _named("FAKE_POLNET_HANG", self.number):
            time.sleep(0.1)
        self.labels = np.zeros(self.shape, np.uint8)
        height = random.randrange(4, self.shape[0] - 8)
        self.labels[height : height + 4, 3:-3, 3:-3] = 1
        self.labels[np.random.rand(*self.shape) > 0.99] = 2
        self.density = (self.labels > 0).astype(np.float32)

    def simulate_tem(self):
        assert self.tem_file.is_file()
        self._write("rec_snr1.5", -self.density)
        (self.folder / "tem").mkdir()
        self._write("rec", -self.density, folder=self.folder / "tem")

    def save(self):
        self._write("den", self.density)
        self._write("lbl", self.labels)
        rows = ["type\tlabel\tcode\tpolymer\tx\ty\tz\tq1\tq2\tq3\tq4"]
        rows += [f"{kind}\t{label}\tc\t0\t1\t1\t1\t1\t0\t0\t0" for kind, label in (("membrane", 1), ("cprotein", 2))]
        (self.folder / f"tomo_{self.number:03d}_motif_list.csv").write_text("\n".join(rows) + "\n")

    def _write(self, what, data, folder=None):
        path = (folder or self.folder) / f"tomo_{self.number:03d}_{Path(what).name}.mrc"
        with mrcfile.new(path, overwrite=True) as mrc:
            mrc.set_data(data)
            mrc.voxel_size = self.v_size
