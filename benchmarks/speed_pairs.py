"""How fast one stage is beside SAM2's own video predictor: same weights, input and machine, in turns, in one run."""

import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from flops import matmul_rate, slice_flops

from etsam.errors import ConfigError, EtsamError
from etsam.evaluation.report.tables import markdown_table, write_csv, write_plain_json
from etsam.inference.two_stage import DEFAULT_THRESHOLD
from etsam.network.build import build_tracker, input_slices
from etsam.prediction.record import environment
from etsam.volume import atomic_path
from etsam.volume.atomic import refuse_existing

log = logging.getLogger(__name__)

CSV, MARKDOWN, JSON = "speed.csv", "speed.md", "speed.json"
SIDES = ("peer", "own")


@dataclass(frozen=True)
class SpeedSettings:
    """What is timed.

    Attributes
    ----------
    net
        Config of the group `net`; with one input slice, because SAM2's predictor knows no other.
    checkpoint
        Weights of the stage.
    repeats
        Pairs of runs.
    device, precision
        As in the config group `trainer`; `32-true` or `bf16-mixed`.
    threads
        Of torch on a CPU; 0: its choice.
    peer
        Whether SAM2's predictor runs, too.
    parts
        Whether one more pair is run in which the parts of a slice are timed.
    prompt
        `grid_zero` or `zero`.
    encode_batch_size
        Of ours, as for a prediction.
    """

    net: Mapping[str, Any]
    checkpoint: str
    repeats: int = 3
    device: str = "cpu"
    precision: str = "32-true"
    threads: int = 0
    peer: bool = True
    parts: bool = True
    prompt: str = "grid_zero"
    encode_batch_size: int | None = None


@dataclass
class SpeedReport:
    """What was measured.

    Attributes
    ----------
    runs
        A row for each run: side, repeat, seconds_per_slice (the whole stage, input and output included),
        full_bank_seconds_per_slice (slices that see a full memory bank), second_half_seconds_per_slice (on a GPU the
        first slices pay for what is prepared once), seconds of each part by slice, ram_mb, gpu_mb.
    ratios
        Of each pair: slices per second of ours over those of the peer, on slices with a full memory bank.
    largest_difference
        Between the logits of both sides; None without a peer.
    same_mask
        Share of voxels whose mask is the same.
    gflop_per_slice, gflop_per_second
        Arithmetic of a slice with a full memory bank, and the rate of a large matrix product on this machine.
    logits
        Ours, (Z, Y, X) float32.
    """

    runs: pd.DataFrame
    ratios: list[float] = field(default_factory=list)
    largest_difference: float | None = None
    same_mask: float | None = None
    gflop_per_slice: float = 0.0
    gflop_per_second: float = 0.0
    logits: np.ndarray | None = None


def compare_speed(
    settings: SpeedSettings, volume: np.ndarray, output_dir: Path, *, overwrite: bool = False
) -> SpeedReport:
    """Time both sides in turns, and write `speed.csv`, `.md` and `.json`.

    Parameters
    ----------
    settings
        What is timed.
    volume
        Normalised (Z, Y, X) float32, whose slices fit the network's side or are shrunk to it, as one tile.
    output_dir
        Made if need be.
    overwrite
        Replace tables that exist.

    Raises
    ------
    ConfigError
        If there are too few slices for a full memory bank, no repeats, or a network that SAM2's predictor cannot run.
    OutputError
        If a table exists and may not be replaced.
    """
    bank, depth = int(settings.net["num_maskmem"]), volume.shape[0]
    if settings.repeats < 1:
        raise ConfigError(f"{settings.repeats} repeats: at least 1 pair of runs has to be timed.")
    if depth < bank + 2:
        raise ConfigError(
            f"{depth} slices are too few: the memory bank is full after {bank}; take at least {bank + 2}."
        )
    if settings.peer and input_slices(settings.net) != 1:
        raise ConfigError("SAM2's predictor sees one slice at a time; for this network set peer=false (--no-peer).")
    output_dir.mkdir(parents=True, exist_ok=True)
    for name in (CSV, MARKDOWN, JSON):
        refuse_existing(output_dir / name, overwrite)
    with tempfile.TemporaryDirectory(prefix="speed-", dir=output_dir) as folder:
        report = _measure(settings, volume, bank, Path(folder))
    tracker = build_tracker(settings.net, settings.checkpoint)
    report.gflop_per_slice = slice_flops(tracker) / 1e9
    report.gflop_per_second = matmul_rate(settings.device, settings.precision, settings.threads) / 1e9
    _write(settings, volume, report, output_dir, overwrite)
    return report


def _measure(settings: SpeedSettings, volume: np.ndarray, bank: int, folder: Path) -> SpeedReport:
    np.save(folder / "volume.npy", volume.astype(np.float32))
    spec = {
        "net": dict(settings.net),
        "checkpoint": str(settings.checkpoint),
        "volume": str(folder / "volume.npy"),
        "device": settings.device,
        "precision": settings.precision,
        "threads": settings.threads,
        "prompt": settings.prompt,
        "encode_batch_size": settings.encode_batch_size,
    }
    sides = SIDES if settings.peer else SIDES[1:]
    rows, report = [], SpeedReport(pd.DataFrame())
    for repeat in range(settings.repeats + settings.parts):  # the last one with parts: on a GPU, timing them takes time
        pace = {}
        for side in sides if repeat % 2 == 0 else sides[::-1]:
            parts = repeat == settings.repeats
            found = _run({**spec, "side": side, "parts": parts, "logits": str(folder / f"{side}.npy")}, folder)
            done = found["done"]
            pace[side] = (done[-1] - done[bank - 1]) / (len(done) - bank)
            row = {"side": side, "repeat": "parts" if parts else str(repeat + 1)}
            half = len(done) // 2
            row |= {"seconds_per_slice": found["seconds"] / len(volume), "full_bank_seconds_per_slice": pace[side]}
            row |= {"second_half_seconds_per_slice": (done[-1] - done[half]) / (len(done) - 1 - half)}
            row |= {"ram_mb": found["ram_mb"], "gpu_mb": found["gpu_mb"]}
            if parts:
                row |= {f"{name} (s/slice)": seconds / len(volume) for name, seconds in found["parts"].items()}
            rows.append(row)
            log.info("%s, %s: %.3f s a slice", side, row["repeat"], pace[side])
        if settings.peer and repeat < settings.repeats:
            report.ratios.append(pace["peer"] / pace["own"])
    report.runs, report.logits = pd.DataFrame(rows), np.load(folder / "own.npy")
    if settings.peer:
        theirs, ours = (np.load(folder / f"{side}.npy", mmap_mode="r") for side in SIDES)
        pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(theirs, ours, strict=True)]
        report.largest_difference = max(float(np.abs(a - b).max()) for a, b in pairs)
        marked = [(a > DEFAULT_THRESHOLD, b > DEFAULT_THRESHOLD) for a, b in pairs]
        report.same_mask = float(np.mean([np.mean(a == b) for a, b in marked]))
    return report


def _run(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("speed_worker.py")), str(folder / "spec.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise EtsamError(f"the timed run of {spec['side']} failed with status {done.returncode}: {last[:300]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(report: SpeedReport) -> list[str]:
    """What was found, in sentences."""
    plain = report.runs[report.runs["repeat"] != "parts"]
    pace = plain.groupby("side")["full_bank_seconds_per_slice"].median()
    lines = [f"{side}: {1 / pace[side]:.4g} slices/s with a full memory bank" for side in pace.index]
    late = plain.groupby("side")["second_half_seconds_per_slice"].median()
    lines += [f"{side}: {1 / late[side]:.4g} slices/s in the second half of the volume" for side in late.index]
    if report.ratios:
        span = f"{min(report.ratios):.3f} to {max(report.ratios):.3f}"
        lines.append(f"own over peer: {statistics.median(report.ratios):.3f} (median of {len(report.ratios)}: {span})")
        same = 100 * (report.same_mask or 0)
        lines.append(f"logits differ by at most {report.largest_difference:.2g}; {same:.4f} % of the mask is the same")
    floor = report.gflop_per_slice / report.gflop_per_second
    lines.append(
        f"arithmetic: {report.gflop_per_slice:.4g} GFLOP a slice as SAM2 computes it; at {report.gflop_per_second:.4g} "
        f"GFLOP/s (a large matrix product here) {floor:.4g} s; ours takes {pace['own'] / floor:.2f} times that"
    )
    return lines


def _write(settings: SpeedSettings, volume: np.ndarray, report: SpeedReport, output_dir: Path, overwrite: bool) -> None:
    write_csv(output_dir / CSV, report.runs, overwrite)
    lines = summary(report)
    cells = [[_cell(value) for value in row] for row in report.runs.itertuples(index=False)]
    table = markdown_table(list(report.runs.columns), cells)
    sentences = "\n".join(f"- {line}" for line in lines)
    with atomic_path(output_dir / MARKDOWN, overwrite) as part:
        part.write_text(f"# Speed of one stage\n\n{sentences}\n\n{table}\n", encoding="utf-8")
    content = {
        "shape_zyx": list(volume.shape),
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else settings.device,
        "precision": settings.precision,
        "threads": settings.threads or torch.get_num_threads(),
        "ratios": report.ratios,
        "summary": lines,
        "runs": json.loads(report.runs.to_json(orient="records")),
        "environment": environment(),
    }
    write_plain_json(output_dir / JSON, content, overwrite)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
