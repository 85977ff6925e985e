"""Where the time of a slice goes once the memory bank is full: kernels, gaps between them, launches by the host.

python benchmarks/gpu_profile.py --net sam2.1_hiera_b+ --shape 60,928,960 --output-dir results/profile
"""

import argparse
import json
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from speed import made_volume, parse_shape, random_weights
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from etsam.app import compose_config, configure_logging
from etsam.inference import prompts
from etsam.inference.memory_plan import plan_memory
from etsam.inference.propagate import PropagationSettings
from etsam.inference.tiles import Tile
from etsam.inference.two_stage import Stage, run_stage
from etsam.network.build import build_tracker
from etsam.network.fast.gpu_graphs import graphed

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
"""Calls by which the host hands work to a GPU."""


class Window:
    """A profiler that runs from one slice to another, called as slices are done.

    Parameters
    ----------
    first, slices
        Number of slices before it starts, and while it runs.
    device
        Whose kernels are recorded.
    """

    def __init__(self, first: int, slices: int, device: torch.device) -> None:
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        self.profiler = profile(activities=activities)
        self.first, self.last, self.device = first, first + slices, device
        self.seconds = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Start or stop after so many slices."""
        if done in (self.first, self.last):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            if done == self.first:
                self.profiler.start()
                self.seconds = -time.perf_counter()
            else:
                self.seconds += time.perf_counter()
                self.profiler.stop()


def busy_microseconds(spans: Iterable[tuple[float, float]]) -> float:
    """Time covered by spans (start, end), which may overlap; in their unit."""
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy


def summary(events: Iterable[Any], seconds: float, slices: int, device: torch.device) -> tuple[dict[str, float], Any]:
    """Milliseconds a slice (wall, busy device, gaps, host) and launches a slice; and a table, one row a kernel.

    Parameters
    ----------
    events
        Of a `torch.profiler`.
    seconds, slices
        Wall time of so many slices.
    device
        A CPU's operations stand for kernels.
    """
    wanted = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    spans, launches = [], 0
    for event in events:
        launches += event.name in LAUNCHES
        if event.device_type == wanted:
            own = event.time_range.elapsed_us() if device.type == "cuda" else event.self_cpu_time_total
            total[event.name] += own
            count[event.name] += 1
            spans.append((event.time_range.start, event.time_range.end))
    wall, busy = 1e3 * seconds / slices, busy_microseconds(spans) / 1e3 / slices
    table = pd.DataFrame(
        [(name, count[name] / slices, total[name] / 1e3 / slices) for name in total],
        columns=["kernel", "calls_per_slice", "ms_per_slice"],
    ).sort_values("ms_per_slice", ascending=False)
    facts = {"ms_per_slice": wall, "busy_ms_per_slice": busy, "gaps_ms_per_slice": max(0.0, wall - busy)}
    return facts | {"launches_per_slice": launches / slices, "slices": slices}, table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as of a prediction")
    parser.add_argument("--net", default="sam2.1_hiera_b+", help="of configs/net, with random weights")
    parser.add_argument("--shape", type=parse_shape, default=(60, 928, 960), metavar="Z,Y,X")
    parser.add_argument("--first", type=int, default=30, help="slices before the profiler starts")
    parser.add_argument("--slices", type=int, default=20, help="that are profiled")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="bf16-mixed")
    parser.add_argument("--output-dir", type=Path, default=Path("results/profile"))
    args = parser.parse_args()
    if args.first + args.slices > args.shape[0]:
        parser.error(f"--shape has {args.shape[0]} slices, --first and --slices ask for {args.first + args.slices}")
    configure_logging()
    cfg = compose_config("predict", [f"net={args.net}", "input=x", "weights=random", *args.settings])
    device = torch.device(args.device)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        net: Any = OmegaConf.to_container(cfg.net, resolve=True)
        random_weights(net, Path(folder) / "stage.safetensors")
        tracker = build_tracker(net, str(Path(folder) / "stage.safetensors")).to(device)
    window = Window(args.first, args.slices, device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16-mixed")
    volume = made_volume(args.shape)
    with half, torch.no_grad(), graphed(tracker):
        stitched = run_stage(
            Stage(tracker, prompts.grid_zero),
            volume,
            [Tile(0, args.shape[1], 0, args.shape[2])],
            settings=PropagationSettings(resegment_conditioning=False),
            batching=plan_memory([tracker], 1),
            progress=window,
        )
        stitched[0]
    facts, table = summary(window.profiler.events(), window.seconds, args.slices, device)
    table.to_csv(args.output_dir / "kernels.csv", index=False, float_format="%.4f")
    (args.output_dir / "profile.json").write_text(json.dumps(facts, indent=1) + "\n")
    for name, value in facts.items():
        logging.getLogger("etsam.profile").info("%s %.3f", name, value)


if __name__ == "__main__":
    main()
