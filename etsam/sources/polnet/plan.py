"""The tomograms of a PolNet run: their seeds and settings, and which of them are there already."""

import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from etsam.errors import OutputError
from etsam.paths import make_folder
from etsam.sources.files.splits import share_out
from etsam.sources.polnet.config import Acquisition, PolnetConfig, read_acquisition
from etsam.sources.polnet.install import Installation, check_imod, find_models, find_tem_file
from etsam.volume.atomic import claim

# of a process of PolNet 1.1.2: measured 1.00, 1.27, 1.53 GB with 0.9, 4.0, 6.9 million voxels
_BYTES_PER_VOXEL = 80
_BYTES_PER_PROCESS = 1_000_000_000
RECORD_NAME = "etsam_record.json"


@dataclass(frozen=True)
class Job:
    """One tomogram to be made.

    Attributes
    ----------
    dataset
        Name of the settings, and of the folder of its `TomoNNN`.
    number
        NNN, from 1.
    folder
        `.../TomoNNN`.
    settings
        All that decides what the tomogram looks like, as plain values; kept in the folder's record.
    models, tem_file
        PolNet's models and `.tem` file.
    acquisition
        Ours; None: PolNet's own, by IMOD.
    """

    dataset: str
    number: int
    folder: Path
    settings: dict[str, Any]
    models: Path
    tem_file: Path
    acquisition: Acquisition | None

    @property
    def name(self) -> str:
        """`dataset/TomoNNN`."""
        return f"{self.dataset}/{self.folder.name}"


def plan(
    configs: Sequence[PolnetConfig],
    count: int | None,
    output_dir: Path,
    seed: int,
    polnet: Installation,
    polnet_data: Path | None = None,
    *,
    imod: bool = False,
) -> list[Job]:
    """List the tomograms of a run.

    A tomogram's seeds depend on `seed`, the name of its settings and its number only, so that more tomograms can be
    made later, in any order.

    Parameters
    ----------
    configs
        One or several.
    count
        Tomograms in all, shared out in the proportion of the numbers that the configs ask for; None: those numbers.
    output_dir
        Tomograms go to `output_dir/NAME/TomoNNN`, NAME being the config's.
    seed
        Of all that is random.
    polnet, polnet_data
        The installation, and the folder of its models; None: it is looked for.
    imod
        PolNet's own acquisition, by IMOD.

    Raises
    ------
    InputError
        If models, a `.tem` file or IMOD are missing.
    """
    numbers = [config.count for config in configs]
    if count is not None:
        numbers = share_out(count, numbers)
    if imod:
        check_imod()
    jobs = []
    for config, last in zip(configs, numbers, strict=True):
        models = find_models(config, polnet_data, polnet.package)
        tem_file = find_tem_file(config, models)
        acquisition = None if imod else read_acquisition(tem_file)
        for number in range(1, last + 1):
            sequence = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(config.name.encode()), number))
            sample_seed, acquisition_seed = (int(state) for state in sequence.generate_state(2))
            settings = {
                "seed": seed,
                "sample_seed": sample_seed,
                "acquisition_seed": None if imod else acquisition_seed,
                "sample": config.sample,
                "acquisition": asdict(acquisition) if acquisition else f"imod {tem_file.read_text(encoding='utf-8')}",
            }
            plain = json.loads(json.dumps(settings))  # as it comes back from a record
            folder = output_dir / config.name / f"Tomo{number:03d}"
            jobs.append(Job(config.name, number, folder, plain, models, tem_file, acquisition))
    return jobs


@contextmanager
def only_run(output_dir: Path) -> Iterator[None]:
    """Keep a second run out of a folder, which is made if need be.

    Raises
    ------
    OutputError
        If another run is at work in it.
    """
    make_folder(output_dir)
    with claim(output_dir / ".polnet.lock") as claimed:
        if not claimed:
            raise OutputError(f"{output_dir}: another run is at work in this folder; wait, or choose another")
        yield


def workers_that_fit(jobs: Sequence[Job]) -> int:
    """Number of samples that can be made at once: as many as there are cores, and as the free memory allows."""
    voxels = max((math.prod(job.settings["sample"]["shape"]) for job in jobs), default=1)
    by_memory = psutil.virtual_memory().available // (voxels * _BYTES_PER_VOXEL + _BYTES_PER_PROCESS)
    return int(max(1, min(os.cpu_count() or 1, by_memory)))


def pending(jobs: Sequence[Job]) -> list[Job]:
    """Jobs whose tomogram is not there yet.

    Raises
    ------
    OutputError
        If a folder is there that was made with other settings, or by another program.
    """
    left, faults = [], []
    for job in jobs:
        if not job.folder.exists():
            left.append(job)
            continue
        try:
            found = json.loads((job.folder / RECORD_NAME).read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            faults.append(f"{job.folder} was not made by etsam")
            continue
        other = [key for key, value in job.settings.items() if found.get(key) != value]
        if other:
            faults.append(f"{job.folder} was made with another {', '.join(other)}")
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise OutputError(f"{faults[0]}{more}; choose another --output-dir, or the settings and --seed of before")
    return left
