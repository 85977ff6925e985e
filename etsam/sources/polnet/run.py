"""Runs PolNet: each tomogram in a process of its own with a seed of its own, several at once, resumable.

PolNet is not part of etsam and not on PyPI. It may be installed anywhere: it is started as a process of the Python
that has it (`polnet_worker`), makes the sample, and the acquisition follows here (`polnet_acquisition`) or, with IMOD,
in PolNet itself.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import torch

from etsam._version import __version__
from etsam.errors import ConfigError, EtsamError
from etsam.sources.polnet import worker
from etsam.sources.polnet.acquisition import acquire_folder
from etsam.sources.polnet.install import Installation
from etsam.sources.polnet.plan import RECORD_NAME, Job

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


@dataclass
class _Running:
    """Processes at work, so that they can be ended, and whether that has been asked for."""

    processes: set[subprocess.Popen[bytes]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False


def find_device(name: str | None) -> torch.device:
    """Device of a name; None: a GPU if there is one, else the CPU.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: not on this machine; cpu always is, cuda with an NVIDIA GPU") from error


def generate(
    jobs: Sequence[Job],
    polnet: Installation,
    log_dir: Path,
    *,
    workers: int,
    device: torch.device,
    progress: Progress | None = None,
) -> None:
    """Make tomograms, `workers` samples at once; a `TomoNNN` folder appears when it is complete.

    Parameters
    ----------
    jobs
        As `pending` gives them.
    polnet
        The installation to run.
    log_dir
        What PolNet says goes to `log_dir/DATASET/TomoNNN.log`.
    workers
        Processes at the same time; the acquisitions come one after the other.
    device
        Of the acquisition.
    progress
        Called with (tomograms done, tomograms in all, name of the tomogram).

    Raises
    ------
    EtsamError
        When all others are done: names the tomograms that failed, with the last line of each log.
    """
    running, acquiring, failures = _Running(), threading.Lock(), []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            futures: dict[Future[None], Job] = {
                pool.submit(_make, job, polnet, log_dir, workers, device, running, acquiring): job for job in jobs
            }
            left, done = set(futures), 0
            while left:
                finished, left = wait(left, return_when=FIRST_COMPLETED)
                for future in finished:
                    job, done = futures[future], done + 1
                    error = future.exception()
                    if isinstance(error, EtsamError):
                        failures.append(str(error))
                        log.error("%s", error)
                    elif error is not None:
                        raise error
                    elif progress is not None:
                        progress(done, len(jobs), job.name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _end(running)
            raise
    if failures:
        head = (
            f"{len(failures)} of {len(jobs)} tomograms failed; the others are complete, and the same command tries the "
            "failed ones again"
        )
        raise EtsamError.of(head, failures)


def _make(
    job: Job,
    polnet: Installation,
    log_dir: Path,
    workers: int,
    device: torch.device,
    running: _Running,
    acquiring: threading.Lock,
) -> None:
    """Make one tomogram in a hidden folder, and give it its name."""
    started = time.monotonic()
    part = job.folder.parent / f".{job.folder.name}.part"
    log_file = log_dir / job.dataset / f"{job.folder.name}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if part.exists():
        shutil.rmtree(part)  # a run that was killed
    part.mkdir(parents=True)
    try:
        _sample(job, part, polnet, log_file, workers, running)
        snr = None
        if job.acquisition is not None:
            with acquiring:  # it uses all cores, or the GPU, and the memory of a few volumes
                snr = acquire_folder(part, job.number, job.acquisition, job.settings["acquisition_seed"], device)
        record = {
            "etsam_version": __version__,
            "polnet_version": polnet.version,
            "settings": job.settings,
            "snr": snr,
            "seconds": round(time.monotonic() - started, 1),
        }
        (part / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.rename(job.folder)
    except EtsamError as error:
        raise type(error)(f"{job.name}: {error}") from error
    finally:
        if part.exists():
            shutil.rmtree(part)


def _sample(job: Job, part: Path, polnet: Installation, log_file: Path, workers: int, running: _Running) -> None:
    """Run PolNet for one sample."""
    task = part / "job.json"
    sent = {
        "number": job.number,
        "seed": job.settings["sample_seed"],
        "sample": job.settings["sample"],
        "models": str(job.models),
        "tem_file": None if job.acquisition is not None else str(job.tem_file),
        "folder": str(part.resolve()),
    }
    task.write_text(json.dumps(sent), encoding="utf-8")
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    # sets of names must come in the same order each time
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": threads}
    with log_file.open("wb") as output:
        with running.lock:
            if running.stopped:
                raise EtsamError("stopped")
            process = subprocess.Popen(
                [polnet.python, worker.__file__, str(task.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this program, which ends its children
            )
            running.processes.add(process)
        status = process.wait()
        with running.lock:
            running.processes.discard(process)
    task.unlink(missing_ok=True)
    if status < 0:
        name = signal.Signals(-status).name
        hint = "; perhaps too little memory: fewer --jobs need less" if name == "SIGKILL" else ""
        raise EtsamError(f"PolNet was ended by {name}{hint} ({log_file})")
    if status:
        raise EtsamError(f"PolNet ended with status {status}: {_last_line(log_file)} ({log_file})")


def _last_line(log_file: Path) -> str:
    lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else "it said nothing"


def _end(running: _Running) -> None:
    """End all processes and those that they started."""
    with running.lock:
        running.stopped = True
        for process in running.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
