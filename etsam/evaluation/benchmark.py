"""Seconds and peak memory of predictions, each in a process of its own, of this program and of others alike."""

import json
import logging
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from etsam.errors import ConfigError, InputError
from etsam.evaluation.report.tables import markdown_table, write_csv
from etsam.paths import make_folder
from etsam.prediction.record import environment, write_record
from etsam.volume import Location, atomic_path, read_volume
from etsam.volume.atomic import refuse_existing

log = logging.getLogger(__name__)

CSV, MARKDOWN, JSON = "benchmark.csv", "benchmark.md", "benchmark.json"

_POLL_SECONDS = 0.05  # how often resident memory is read
_GPU_POLL_SECONDS = 1.0  # how often nvidia-smi is asked, which takes about 0.1 s
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Run:
    """Something to be measured.

    Attributes
    ----------
    name
        In the table.
    command
        Program and arguments; `{input}` and `{output}` in them become the tomogram and an empty folder.
    """

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Measurement:
    """Course of a process.

    Attributes
    ----------
    status
        With which it ended; None: it took too long and was stopped.
    seconds
        From start to end.
    peak_ram_mb
        Largest resident memory of it and all it started, together, 10^6 bytes, looked at every 0.05 s.
    peak_vram_mb
        Largest memory of all of them on GPUs, as nvidia-smi says every second; NaN without nvidia-smi.
    last_line
        Of what it wrote to standard error, or to standard output if nothing.
    """

    status: int | None
    seconds: float
    peak_ram_mb: float
    peak_vram_mb: float
    last_line: str = field(default="")


def own_runs(texts: Iterable[str]) -> list[Run]:
    """Understand `NAME=SETTINGS`: runs of `etsam predict` with these settings (and flags).

    Raises
    ------
    ConfigError
        If a text is written otherwise.
    """
    start = (
        sys.executable,
        "-c",
        "from etsam.cli.main import main; main()",
        "predict",
        "{input}",
        "--output-dir",
        "{output}",
    )
    return [Run(name, (*start, *words)) for name, words in map(named, texts)]


def peer_runs(texts: Iterable[str]) -> list[Run]:
    """Understand `NAME=COMMAND`, with {input} and {output} in the command, which no shell sees.

    Raises
    ------
    ConfigError
        If a text is written otherwise.
    """
    runs = []
    for text in texts:
        name, words = named(text)
        if not words or not any("{input}" in word for word in words):
            raise ConfigError(f"the command of {name} does not say where the tomogram stands; write {{input}} in it.")
        runs.append(Run(name, tuple(words)))
    return runs


def named(text: str) -> tuple[str, list[str]]:
    """Understand `NAME=WORDS`, the words separated as a shell would.

    Raises
    ------
    ConfigError
        If it is written otherwise.
    """
    name, equals, rest = text.partition("=")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise ConfigError(f"{text!r} cannot be read: {error}.") from error
    if not equals or not name.strip():
        raise ConfigError(f"{text!r} has no name; write NAME=SETTINGS or NAME=COMMAND.")
    return name.strip(), words


def measure(command: Sequence[str], limit_seconds: float | None = None) -> Measurement:
    """Run a command to its end and watch its memory.

    Raises
    ------
    InputError
        If there is no such program.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        try:
            process = psutil.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise InputError(f"{command[0]} cannot be started: {error.strerror}.") from error
        ram, vram, asked = 0, math.nan, -math.inf
        status: int | None = None
        try:
            while True:
                family = _family(process)
                ram = max(ram, sum(_resident(member) for member in family))
                now = time.perf_counter()
                if now - asked >= _GPU_POLL_SECONDS and shutil.which("nvidia-smi"):
                    asked, used = now, _on_gpu({member.pid for member in family})
                    vram = used if math.isnan(vram) else max(vram, used)
                if limit_seconds is not None and now - started > limit_seconds:
                    break
                try:
                    status = process.wait(_POLL_SECONDS)
                    break
                except psutil.TimeoutExpired:
                    continue
        finally:
            for member in _family(process):
                _stop(member)
        seconds = time.perf_counter() - started
        return Measurement(status, seconds, ram / _MEGABYTE, vram, _last_line(err) or _last_line(out))


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0


def _stop(process: psutil.Process) -> None:
    try:
        process.kill()
        process.wait(10)
    except psutil.NoSuchProcess:
        return


def _on_gpu(pids: set[int]) -> float:
    """Memory of processes on all GPUs, 10^6 bytes."""
    question = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(question, capture_output=True, text=True, check=False)
    rows = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1]
    return sum(float(used) * 2**20 / _MEGABYTE for pid, used in rows if pid.strip().isdigit() and int(pid) in pids)


def _last_line(file: Any) -> str:
    file.seek(0)
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def run_all(
    runs: Sequence[Run],
    tomograms: Sequence[Location],
    output_dir: Path,
    *,
    limit_seconds: float | None = None,
    keep: bool = False,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Measure every run on every tomogram, and write `benchmark.csv`, `.md` and `.json`.

    Parameters
    ----------
    runs
        Of different names.
    tomograms
        Files.
    output_dir
        Made if need be.
    limit_seconds
        A run that takes longer is stopped and has failed; None: no limit.
    keep
        Keep what runs write, in `output_dir/outputs`.
    overwrite
        Replace tables that exist.

    Returns
    -------
    DataFrame
        A row for each run and tomogram: run, tomogram, status (`ok` or `failed`), slices, seconds, seconds_per_slice,
        peak_ram_mb, peak_vram_mb, the seconds of each part that a record of this program tells, error.

    Raises
    ------
    ConfigError
        If there is nothing to run, or a name is there twice.
    OutputError
        If a table exists and may not be replaced.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        found = ", ".join(names) or "none"
        raise ConfigError(
            f"runs need names of their own (found: {found}); write NAME=SETTINGS or NAME=COMMAND for each."
        )
    make_folder(output_dir)
    for name in (CSV, MARKDOWN, JSON):
        refuse_existing(output_dir / name, overwrite)
    rows = []
    for tomogram in tomograms:
        for run in runs:
            rows.append(_row(run, tomogram, output_dir, limit_seconds, keep))
            log.info("%s, %s: %s, %.1f s", run.name, tomogram.name, rows[-1]["status"], rows[-1]["seconds"])
    table = pd.DataFrame(rows)
    table = table[[*(column for column in table.columns if column != "error"), "error"]]
    write_csv(output_dir / CSV, table, overwrite)
    cells = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    with atomic_path(output_dir / MARKDOWN, overwrite) as part:
        part.write_text(f"# Benchmark\n\n{markdown_table(list(table.columns), cells)}\n", encoding="utf-8")
    plain = json.loads(table.to_json(orient="records"))
    commands = {run.name: list(run.command) for run in runs}
    write_record(output_dir / JSON, {"runs": plain, "commands": commands, "environment": environment()}, overwrite)
    return table


def _row(run: Run, tomogram: Location, output_dir: Path, limit_seconds: float | None, keep: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run.name, "tomogram": tomogram.name, "status": "failed"}
    numbers = ("slices", "seconds", "seconds_per_slice", "peak_ram_mb", "peak_vram_mb")
    row |= dict.fromkeys(numbers, math.nan) | {"error": ""}
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=output_dir))
    try:
        with read_volume(tomogram, warn=False) as volume:
            row["slices"] = volume.shape[0]
        places = {"{input}": str(tomogram), "{output}": str(folder)}
        found = measure([_filled(word, places) for word in run.command], limit_seconds)
        row |= {"seconds": found.seconds, "peak_ram_mb": found.peak_ram_mb, "peak_vram_mb": found.peak_vram_mb}
        row["seconds_per_slice"] = found.seconds / row["slices"]
        if found.status is None:
            row["error"] = f"stopped after {limit_seconds:g} s"
        elif found.status != 0:
            row["error"] = f"status {found.status}: {found.last_line}"
        elif not any(folder.iterdir()) and any("{output}" in word for word in run.command):
            row["error"] = "nothing was written"
        else:
            row["status"] = "ok"
            row |= _parts(folder)
    except InputError as error:
        row["error"] = str(error)
    finally:
        if keep and any(folder.iterdir()):
            target = output_dir / "outputs" / run.name.replace("/", "_") / tomogram.name
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
        else:
            shutil.rmtree(folder)
    return row


def _filled(word: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word


def _parts(folder: Path) -> dict[str, float]:
    """Seconds of each part, of the record that this program leaves."""
    records = list(folder.glob("*_record.json"))
    if len(records) != 1:
        return {}
    seconds = json.loads(records[0].read_text(encoding="utf-8"))["seconds"]
    return {f"{part.replace(' ', '')}_seconds": value for part, value in seconds.items()}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)
