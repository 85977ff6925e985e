"""One stage over one volume, timed, by this program or by SAM2's own video predictor as the published code drives it.

Run as `python benchmarks/speed_worker.py SPEC.json`; each run has a process of its own, so that neither finds the
other's memory or caches warm. The result is a line of JSON on standard output.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from etsam.prediction.record import peak_memory_mb

# of SAM2's network, by the names of this project's documents
PARTS = {
    "image encoder": ("forward_image",),
    "memory attention": ("memory_attention",),
    "mask decoder": ("_forward_sam_heads",),
    "memory encoder": ("_encode_new_memory",),
}


class Clock:
    """Seconds spent in parts that do not overlap, and the time at which each slice was done."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.done: list[float] = []
        self._device = device

    def now(self) -> float:
        """Seconds; waits for a GPU."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what happens in this context to a part."""
        started = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - started

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Add each call of a method (or of a submodule) to a part."""
        original = getattr(owner, method)
        call = original.forward if isinstance(original, nn.Module) else original

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        if isinstance(original, nn.Module):
            original.forward = timed
        else:
            setattr(owner, method, timed)


def run(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Time one run.

    Parameters
    ----------
    spec
        `side` (`own` or `peer`), `net` (of the config group), `checkpoint` (weights file), `volume` (.npy, normalised,
        (Z, Y, X) float32), `logits` (where the result goes, .npy), `device`, `precision` (`32-true` or `bf16-mixed`),
        `threads` (0: torch's choice), `prompt` (`grid_zero` or `zero`), `encode_batch_size` (of ours), `parts`
        (whether parts are timed, which makes a GPU wait).

    Returns
    -------
    dict
        `seconds`; `done`: seconds at which each slice was done; `parts`: seconds of each; `ram_mb` above what the
        process had before weights and volume, and `gpu_mb`.
    """
    if spec["threads"]:
        torch.set_num_threads(int(spec["threads"]))
    from etsam.network.build import build_tracker, import_sam2

    import_sam2()
    device = torch.device(spec["device"])
    before = psutil.Process().memory_info().rss / 1e6
    side: Literal["own", "peer"] = spec["side"]
    tracker = build_tracker(spec["net"], spec["checkpoint"]).to(device)
    clock = Clock(device)
    stage = _own if side == "own" else _peer
    half = torch.autocast(device.type, torch.bfloat16, enabled=spec["precision"] == "bf16-mixed")
    if device.type == "cuda":  # of the first call, which no later one pays
        torch.zeros(1, device=device)
    with half, torch.no_grad():
        work = stage(spec, tracker, clock)
        started = clock.now()
        work()
        seconds = clock.now() - started
    memory = peak_memory_mb()
    return {
        "seconds": seconds,
        "done": [moment - started for moment in clock.done],
        "parts": clock.seconds | {"other": seconds - sum(clock.seconds.values())},
        "ram_mb": memory["ram"] - before,
        "gpu_mb": memory.get("gpu"),
    }


def _watch_network(spec: Mapping[str, Any], clock: Clock, network: Any) -> None:
    if spec["parts"]:
        for name, methods in PARTS.items():
            for method in methods:
                clock.watch(network, method, name)


def _own(spec: Mapping[str, Any], tracker: Any, clock: Clock) -> Callable[[], None]:
    """One stage of `etsam.inference`, logits as they are written to a file."""
    from etsam.inference import prompts
    from etsam.inference.memory_plan import Batching, plan_memory
    from etsam.inference.propagate import PropagationSettings
    from etsam.inference.tiles import Tile
    from etsam.inference.two_stage import Stage, run_stage
    from etsam.network.fast.gpu_graphs import graphed

    def work() -> None:
        with graphed(tracker):  # before the clock, which could not be recorded
            _watch_network(spec, clock, tracker.network)
            if spec["parts"]:
                clock.watch(tracker, "prepare", "resizing")
            stage()

    def stage() -> None:
        volume = np.load(spec["volume"], mmap_mode="r")
        tile = Tile(0, volume.shape[1], 0, volume.shape[2])
        plan = plan_memory([tracker], 1, Batching(encode_batch_size=spec["encode_batch_size"]))
        stitched = run_stage(
            Stage(tracker, getattr(prompts, spec["prompt"])),
            volume,
            [tile],
            settings=PropagationSettings(resegment_conditioning=False),
            batching=plan,
            progress=lambda done, total: clock.done.append(time.perf_counter()),  # a GPU is not waited for
        )
        with clock.part("output"), open(spec["logits"], "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": volume.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for z in range(volume.shape[0]):
                file.write(stitched[z].astype("<f4").data)

    return work


def _peer(spec: Mapping[str, Any], tracker: Any, clock: Clock) -> Callable[[], None]:
    """SAM2's video predictor: all slices resized by Pillow and kept in memory, three equal channels."""
    from etsam.inference import prompts
    from etsam.network.build import build_video_predictor

    video: list[tuple[Tensor, int, int]] = []
    predictor = build_video_predictor(spec["net"], lambda: video[0])
    predictor.load_state_dict(tracker.network.state_dict())
    predictor.to(spec["device"])
    _watch_network(spec, clock, predictor)
    prompt = getattr(prompts, spec["prompt"])(np.load(spec["volume"], mmap_mode="r").shape)[0]

    def work() -> None:
        volume = np.load(spec["volume"])
        height, width = volume.shape[1:]
        with clock.part("resizing"):
            images = _frames(volume, tracker)
        video.append((images, height, width))
        state = predictor.init_state("unused", offload_video_to_cpu=True)
        predictor.add_new_mask(state, 0, 1, torch.from_numpy(prompt))
        found: list[Tensor] = []
        for _, _, logits in predictor.propagate_in_video(state):
            found.append(logits[0, 0].float().cpu())  # of the video's size: the predictor has resized them
            clock.done.append(clock.now())
        with clock.part("output"):
            np.save(spec["logits"], torch.stack(found).numpy())

    return work


def _frames(volume: np.ndarray, tracker: Any) -> Tensor:
    """(Z, 3, S, S) float32."""
    from PIL import Image

    side = tracker.side
    resized = [np.asarray(Image.fromarray(plane).resize((side, side))) for plane in volume]
    images = torch.stack([torch.from_numpy(plane.copy()).repeat(3, 1, 1) for plane in resized])
    return (images - tracker.mean.cpu()) / tracker.std.cpu()


def main() -> None:
    """Command line."""
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    sys.stdout.write(json.dumps(run(spec)) + "\n")


if __name__ == "__main__":
    Path(sys.argv[1]).resolve(strict=True)
    main()
