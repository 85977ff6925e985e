"""Fixtures that several files of tests share: small tomograms, and the console command run inside this process."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from command_line import status_of
from web_server import serving

# The toy networks gain nothing from threads, and lose a factor of 30 where other processes keep the cores busy.
# Before torch is imported, and for the processes that tests start, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHAPE = (6, 40, 56)  # three different sides, none a multiple of the toy network's 64
VOXEL_SIZE_ZYX = (4.0, 3.0, 2.0)
ORIGIN_ZYX = (7.0, 6.0, 5.0)
START_ZYX = (3, 2, 1)


def pytest_runtest_setup(item):
    """Skip what is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def grey(shape=SHAPE, seed=0):
    """Noise with a dark sheet, (Z, Y, X) float32, all positive."""
    values = np.random.default_rng(seed).normal(10, 1, shape).astype(np.float32)
    values[:, shape[1] // 2 : shape[1] // 2 + 3] -= 5
    return values


def write_mrc(path, data=None):
    """Write an MRC file by mrcfile, not by us; what mrcfile thinks of odd data is no matter here."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mrcfile.new(path, overwrite=True) as mrc:
            mrc.set_data(grey() if data is None else data)
            mrc.voxel_size = VOXEL_SIZE_ZYX[::-1]
            for word, values in (("origin", ORIGIN_ZYX), ("start", START_ZYX)):
                for axis, value in zip("zyx", values, strict=True):
                    if word == "origin":
                        mrc.header.origin[axis] = value
                    else:
                        mrc.header[f"n{axis}start"] = value
    return Path(path)


class CountedSlices:
    """A volume that notes which of its slices are read."""

    def __init__(self, volume):
        self.volume, self.shape, self.read = volume, volume.shape, []

    def __getitem__(self, z):
        self.read.append(z)
        return self.volume[z]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    stderr: str
    folder: Path
    stdout: str = ""

    @property
    def message(self):
        """What the person is told, without `etsam: error: `: one error, its faults joined, and no traceback."""
        assert self.stderr.count("etsam: error: ") == 1, self.stderr
        assert "Traceback" not in self.stderr
        first, *faults = self.stderr.partition("etsam: error: ")[2].splitlines()
        assert all(fault.startswith("  ") for fault in faults), self.stderr
        return " | ".join([first, *(fault.strip() for fault in faults)])

    @property
    def files(self):
        """Names of everything below the output folder, hidden files included."""
        return sorted(path.name for path in self.folder.rglob("*")) if self.folder.is_dir() else []


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tomogram(work):
    """`tomo.mrc` in the current folder."""
    return write_mrc(work / "tomo.mrc")


@pytest.fixture
def etsam(work, capsys):
    """Call the console command in this process: `etsam("predict", "tomo.mrc") -> Outcome`."""

    def call(*arguments):
        capsys.readouterr()
        status = status_of([str(item) for item in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.err, work / "out", captured.out)

    return call


@pytest.fixture
def predict(etsam):
    """`etsam predict` with the toy network on the CPU, into the folder `out`.

    With random weights if none are named, and without pages unless they are asked for.
    """

    def call(*arguments):
        named = any(argument == "--weights" or argument.startswith("weights=") for argument in arguments)
        weights = [] if named else ["weights=random"]
        views = ("write_page", "write_chimerax")
        pages = [f"{key}=false" for key in views if not any(item.startswith(f"{key}=") for item in arguments)]
        return etsam("predict", *arguments, "net=tiny_test", *weights, *pages, "trainer=cpu", "--output-dir", "out")

    return call


@pytest.fixture
def refused(predict):
    """Ask for a prediction that has to end with status 1, one line, and no file; gives the line."""

    def call(*arguments):
        outcome = predict(*arguments)
        assert outcome.status == 1, outcome.stderr
        assert outcome.files == []
        return outcome.message

    return call


@pytest.fixture
def no_pauses(monkeypatch):
    """Downloads that fail are tried again at once."""
    monkeypatch.setattr("etsam.download.BACKOFF_SECONDS", 0.001)


@pytest.fixture
def site(no_pauses):
    """A web server that has no pages yet."""
    with serving() as server:
        yield server


@pytest.fixture
def target(tmp_path):
    """Where a download goes: a file in a folder that is not there yet."""
    return tmp_path / "deep" / "tomo.mrc"


@pytest.fixture
def published(site, work, monkeypatch):
    """Two tomograms of the portal, one of EMDB, one simulated; all masks; and `list.csv` of the four."""
    from published_servers import publish

    return publish(site, work, monkeypatch)


@pytest.fixture
def collect(etsam):
    """`etsam data collect` of a list, `list.csv` if none is named, into the folder `out`."""

    def call(*arguments, csv="list.csv"):
        return etsam("data", "collect", "--csv", csv, "--output-dir", "out", *arguments)

    return call


@pytest.fixture
def wandb_apart(monkeypatch):
    """For tests that log to W&B in this process: later ones and their processes get a service of their own."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    import wandb

    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB") and "SERVICE" in name]:
        del os.environ[name]
