"""`etsam doctor`: does this installation work, and what to paste into a report if it does not."""

import argparse
import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam._version import __version__
from etsam.cli import add_command

if TYPE_CHECKING:
    import numpy as np

    from etsam.api import Segmentation
    from etsam.volume import Slices

_PACKAGES = ("torch", "torchvision", "sam2", "lightning", "hydra-core", "numpy", "mrcfile")
_EXTRAS = {
    "zarr": "zarr",
    "measure": "trimesh",
    "sff": "sfftkrw",
    "napari": "napari",
    "data": "cryoet_data_portal",
    "copick": "copick",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
}
STORED_RESULT = Path(__file__).parents[1] / "self_test.json"
_SHAPE = (14, 72, 88)
# Logits lie between about -10 and 10. Float32 on other CPUs differs by 1e-3 at most, bfloat16 by some tenths
_TOLERANCE = {"cpu": 0.05, "other": 1.0}
_SAMPLED_EVERY = (4, 12, 12)  # voxels between stored logits, (Z, Y, X)


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "doctor",
        run,
        help="does this installation work? versions, devices, weights, a short test",
        description="Show versions, devices, memory and weights, and segment a tiny volume on each device and compare "
        "with stored numbers. Exit status 1 if something does not work. Paste all of it into a bug report.",
    )
    parser.add_argument("--no-test", action="store_true", help="only show what is there")
    parser.add_argument(
        "--store-self-test",
        action="store_true",
        help="for maintainers: store the numbers of these weights",
    )


def run(args: argparse.Namespace) -> None:
    """Print the facts, then the verdict; raises `EtsamError` if the program does not work here."""
    from etsam.app import quiet
    from etsam.cli.console import print_line
    from etsam.errors import EtsamError

    if args.store_self_test:
        store_result()
        print_line(f"stored: {STORED_RESULT}")
        return
    print_line(f"etsam {__version__}")
    for name, text in facts().items():
        print_line(f"  {name:<10} {text}")
    if args.no_test:
        return
    failed = []
    for device in _devices():
        with quiet("etsam"):  # no lines of the segmentation between these
            verdict = check_device(device)
        print_line(f"  {'self-test':<10} {device}: {verdict.text}")
        failed += [] if verdict.passed else [device]
    if failed:
        raise EtsamError(f"the self-test failed on {', '.join(failed)}; report it with all of the lines above.")
    print_line("everything works")


def facts() -> dict[str, str]:
    """Lines about machine and installation, by a short name; the home folder is written `~`."""
    import psutil

    from etsam.download import is_offline
    from etsam.prediction.record import version_of
    from etsam.threads import worker_count
    from etsam.weights.registry import weights_folder
    from etsam.weights.store import list_weights

    memory, disk = psutil.virtual_memory(), psutil.disk_usage(".")
    network = "no request allowed (ETSAM_OFFLINE)" if is_offline() else "requests allowed"
    there: dict[str, list[bool]] = {}
    for state in list_weights():
        there.setdefault(state.weights.name, []).append(state.path is not None)
    found = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version_of(name) or 'missing'}" for name in _PACKAGES),
        "extras": ", ".join(name for name, module in _EXTRAS.items() if _is_there(module)) or "none",
        "program": f"{_short(Path(__file__).parents[1])}, run by {_short(Path(sys.executable))}",
        "cpu": f"{_processor()}, {worker_count()} threads for this program of {os.cpu_count()} cores",
        "gpu": _gpus(),
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "disk": f"{disk.free / 1e9:.1f} GB free in the current folder",
        "weights": ", ".join(name for name, files in there.items() if all(files)) or "none",
        "downloads": f"{_short(weights_folder())}, {network}",
    }
    settings = {name: value for name, value in sorted(os.environ.items()) if name.startswith(("ETSAM_", "OMP_"))}
    settings |= {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    if settings:
        found["variables"] = ", ".join(f"{name}={value}" for name, value in settings.items())
    return found


@dataclass(frozen=True)
class Verdict:
    """Outcome of the self-test on one device.

    Attributes
    ----------
    passed
        The logits are the stored ones, within rounding.
    text
        What came out, in one line.
    """

    passed: bool
    text: str


def check_device(device: str) -> Verdict:
    """Segment the tiny volume with the embedded weights, and compare with the stored logits.

    Parameters
    ----------
    device
        As torch calls it.
    """
    import time

    import numpy as np

    begun = time.monotonic()
    try:
        stored = json.loads(STORED_RESULT.read_text(encoding="utf-8"))
        result = segment_tiny_volume(device)
    except Exception as error:  # told as the outcome, whatever it was
        return Verdict(False, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    expected = np.array(stored["logits"], dtype=np.float32)
    differences = np.abs(_sampled(result.logits) - expected)
    allowed = _TOLERANCE["cpu" if device == "cpu" else "other"]
    share = float(np.asarray(result.mask).mean())
    text = f"{100 * share:.1f} % membrane (expected {100 * stored['membrane_fraction']:.1f} %)"
    text += f", logits differ by at most {differences.max():.2g}, {time.monotonic() - begun:.0f} s"
    passed = bool(differences.max() <= allowed) and abs(share - stored["membrane_fraction"]) < 0.01
    return Verdict(passed, text if passed else f"failed: {text}; allowed are {allowed:g}")


def store_result() -> None:
    """Write the numbers that the self-test compares with: of the weights and program as they are, on the CPU."""
    import numpy as np

    from etsam.volume import atomic_path

    result = segment_tiny_volume("cpu")
    stored = {
        "membrane_fraction": round(float(np.asarray(result.mask).mean()), 6),
        "logits": [round(float(value), 4) for value in _sampled(result.logits)],
    }
    with atomic_path(STORED_RESULT, overwrite=True) as part:
        part.write_text(json.dumps(stored) + "\n", encoding="utf-8")


def segment_tiny_volume(device: str) -> "Segmentation":
    """Logits and mask of two vesicles in noise, by the embedded weights."""
    import etsam

    return etsam.segment(tiny_volume(), voxel_size=(10.0, 10.0, 10.0), overrides=["weights=nano"], device=device)


def tiny_volume() -> "np.ndarray":
    """Two dark vesicles in noise, (14, 72, 88) float32, of 10 Å voxels; the same on every machine."""
    import numpy as np

    z, y, x = np.ogrid[tuple(slice(side) for side in _SHAPE)]
    volume = np.random.Generator(np.random.PCG64(7)).normal(0, 0.5, _SHAPE)
    for centre, radius in (((7, 30, 30), 20), ((6, 44, 68), 14)):
        distance = np.sqrt(sum((axis - middle) ** 2 for axis, middle in zip((z, y, x), centre, strict=True)))
        volume -= 1.5 * np.exp(-(((distance - radius) / 1.6) ** 2))
    return volume.astype(np.float32)


def _sampled(logits: "Slices") -> "np.ndarray":
    import numpy as np

    return np.asarray(logits)[tuple(slice(step // 2, None, step) for step in _SAMPLED_EVERY)].ravel()


def _devices() -> list[str]:
    import torch

    return ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]


def _gpus() -> str:
    import torch

    names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    if names:
        listed = ", ".join(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in names)
        return f"{listed}; CUDA {torch.version.cuda}"
    if torch.backends.mps.is_available():
        return "Apple (mps); not tested with this program"
    built = (
        f"torch is built for CUDA {torch.version.cuda}, but finds none" if torch.version.cuda else "torch has no CUDA"
    )
    return f"none; {built}"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent
        return False


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _short(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
