"""What `threshold=auto` chooses, beside a fixed threshold and the best one, on everything with truth in reach.

    python benchmarks/auto_threshold.py shuffle SET SHUFFLED             # logits of shuffled parts, both stages
    python benchmarks/auto_threshold.py score SET LOGITS SHUFFLED OUT.csv [--far DIR --far-logits DIR]

SET is made by `nano_table.py tomograms`, LOGITS by `nano_table.py stage2` or `etsam predict ... write_logits=true`.
`--far` names further folders of simulated tomograms (val_*), which `shuffle` takes, too. Settings of the choice were
picked on the simulated tomograms; PolNet and real ones had no say.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nano_table
import numpy as np
import torch
from hydra.utils import instantiate

from etsam.app import compose_config
from etsam.evaluation.metrics.points import read_points
from etsam.inference.false_marks import ThresholdChoice, marked_shares, phase_shuffled, richest_window
from etsam.normalize import Robust, normalize
from etsam.volume import read_volume
from etsam.volume.slices import LazySlices

FIXED = 0.5  # of nano, when this was measured
RATES = (0.05, 0.1, 0.2, 0.3, 0.5)
TRIED = np.round(np.arange(-6, 6.01, 0.1), 2)


def entries(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, str], Path]]:
    """Name, references and file of each tomogram; copies of the other contrast are left out."""
    for name, entry in nano_table._entries(args.set).items():
        if not name.endswith("_inverted"):
            yield name, entry, args.set / f"{name}.mrc"
    for mask in sorted(args.far.glob("val_*/*_membrane.mrc")) if args.far else ():
        tomogram = mask.with_name(mask.name.replace("_membrane", ""))
        yield tomogram.stem, {"group": mask.parent.name, "kind": "domain", "mask": str(mask)}, tomogram


def part_of(path: Path) -> LazySlices:
    """Part of a tomogram that is shuffled, normalised."""
    slices = normalize(read_volume(path, warn=False), Robust())
    z, y, x = richest_window(slices)
    return LazySlices.of(slices).window(z.start, z.stop).crop(y, x)


def shuffle(args: argparse.Namespace) -> None:
    """Segment the shuffled parts whose logits are not there."""
    torch.set_num_threads(args.threads)
    two_stage = instantiate(compose_config("predict", ["weights=nano", "input=none"]).segmenter.two_stage)
    args.shuffled.mkdir(parents=True, exist_ok=True)
    for name, _, path in entries(args):
        target = args.shuffled / f"{name}.npy"
        if not target.exists():
            part = part_of(path)
            with torch.inference_mode():
                found = two_stage(phase_shuffled(np.stack([part[z] for z in range(part.shape[0])])))
                nano_table._save(target, np.stack([found.logits[z] for z in range(part.shape[0])]))


def measures(name: str, entry: dict[str, str], logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is right and what is wrong at each of `TRIED`: Dice and marked share, or coverage and false share."""
    if "mask" in entry:
        truth = nano_table._volume(entry["mask"])
        membrane, counted = logits[truth == 1], logits[truth != 255]
        hits = marked_shares(membrane[None, None], list(TRIED)) * membrane.size
        marked = marked_shares(counted[None, None], list(TRIED))
        return 2 * hits / np.maximum(marked * counted.size + membrane.size, 1), marked
    points = read_points(Path(entry["points"]))
    covered = marked_shares(nano_table.at_points(logits, points, nano_table.NEAR_VOXELS)[None, None], list(TRIED))
    if "lumen" in entry:
        return covered, marked_shares(logits[nano_table._volume(entry["lumen"]) > 0][None, None], list(TRIED))
    far = logits[nano_table.far_from(points, logits.shape, nano_table.FAR_VOXELS)]
    elsewhere = marked_shares(far[None, None], list(TRIED)) * far.size
    return covered, elsewhere / np.maximum(marked_shares(logits, list(TRIED)) * logits.size, 1)


def score(args: argparse.Namespace) -> None:
    """One row for each tomogram and threshold: fixed, best (where there is truth by voxel), auto at each rate."""
    rows: list[dict[str, Any]] = []
    for name, entry, path in entries(args):
        folders = [args.logits, *([args.far_logits] if args.far_logits else [])]
        logits = next((found for folder in folders if (found := nano_table._logits(folder, name)) is not None), None)
        if logits is None:
            continue
        z, y, x = richest_window(normalize(read_volume(path, warn=False), Robust()))
        shuffled = nano_table._logits(args.shuffled, name)
        assert shuffled is not None
        right, wrong = measures(name, entry, logits)
        chosen = {"fixed": FIXED, "fixed -0.25": -0.25}
        if entry["kind"] in ("domain", "polnet"):
            chosen["best"] = float(TRIED[int(np.argmax(right))])
        for rate in RATES:
            chosen[f"auto {rate:g}"] = ThresholdChoice.of(logits[z, y, x], shuffled, FIXED, rate).threshold
        for how, threshold in chosen.items():
            at = int(np.argmin(np.abs(TRIED - threshold)))
            shown = {"right": f"{right[at]:.4f}", "wrong": f"{wrong[at]:.4f}"}
            rows.append(
                {"group": entry["group"], "tomogram": name, "how": how, "threshold": f"{threshold:.2f}", **shown}
            )
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Run the command that is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True)
    for run in (shuffle, score):
        command = commands.add_parser(run.__name__, help=(run.__doc__ or "").split("\n")[0])
        command.set_defaults(run=run)
        command.add_argument("set", type=Path)
        if run is score:
            command.add_argument("logits", type=Path)
        command.add_argument("shuffled", type=Path)
        if run is score:
            command.add_argument("out", type=Path)
            command.add_argument("--far-logits", type=Path)
        command.add_argument("--far", type=Path)
        command.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
