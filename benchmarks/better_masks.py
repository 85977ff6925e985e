"""Gains and losses of options with the same weights, and the constants that these options have.

    python benchmarks/nano_table.py tomograms SET --simulated DIR --polnet polnet/manifest.csv --real shared/real
    python benchmarks/better_masks.py run SET LOGITS [--only 'polnet_*' ...] [--option views4 ...] [KEY=VALUE ...]
    python benchmarks/better_masks.py fit SET LOGITS             # constants of side views and of the calibration
    python benchmarks/better_masks.py score SET LOGITS --out benchmarks/2026-11-better_masks

`run` segments each tomogram once for each option and keeps logits and spread in LOGITS/OPTION; what is there is kept,
so that it can be stopped, and run again with other weights in another folder. `fit` looks at simulated tomograms only:
all but every second one of a group, which are held out for `score`. Both need `run` to have been there.
"""

import argparse
import csv
import fnmatch
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nano_table import THRESHOLDS, _entries, _save, _volume, measure, rows
from omegaconf import OmegaConf
from scipy.optimize import minimize

from etsam.app import reporting_errors
from etsam.errors import InputError
from etsam.evaluation.metrics.calibration import calibration_curve, expected_calibration_error
from etsam.evaluation.metrics.scores import Metrics, Scored
from etsam.inference.axes import SideViews, fused
from etsam.inference.ensemble import Averaged, spread_of
from etsam.inference.uncertainty import Calibration
from etsam.volume import read_volume

OPTIONS = {
    "plain": [],
    "along_y": ["axes=[y]"],
    "along_x": ["axes=[x]"],
    "along_y_strided": ["axes=[y]", "slice_stride=2"],
    "along_x_strided": ["axes=[x]", "slice_stride=2"],
    "quick": ["slice_stride=2"],
    "stride4": ["slice_stride=4"],
    "bidirectional": ["propagation=bidirectional"],
    "views4": ["views=4"],
}
"""Option -> settings of predict."""

TOGETHER = {
    "axes": {"z": "plain", "y": "along_y", "x": "along_x"},
    "better": {"z": "plain", "y": "along_y_strided", "x": "along_x_strided"},
}
"""Option that is put together -> axis -> option along it: axes=[z,y,x], and the same with side_slice_stride=2."""

_SIDES = TOGETHER["axes"]
_SECONDS, _SPREAD = "seconds.json", ".spread.npy"
_SAMPLE = 60_000  # voxels of each tomogram that constants are fitted to
_FLOORS, _WEIGHTS, _SHIFTS = (0, 1, 2, 3, 4, 6, 10), (0.1, 0.15, 0.2, 0.25, 0.3, 0.4), np.arange(0, 4.1, 0.5)
_BINS = 10
_VOXELS, _ANGLES = (1.0, 1.0, 1.0), (0, 30, 60)  # distances count in voxels


# ---------------------------------------------------------------------- segmenting


def run(args: argparse.Namespace) -> None:
    """Segment all tomograms by all options, those first that matter most: tomogram by tomogram."""
    from etsam import api

    torch.set_num_threads(args.threads)
    models: dict[str, Any] = {}
    for name in _chosen(args):
        for option in args.option or OPTIONS:
            path = args.logits / option / f"{name}.npy"
            if path.exists():
                continue
            if option not in models:
                settings = [*args.settings, *OPTIONS[option], "write_uncertainty=true"]
                models[option] = api.load(settings, device="cpu")._segmenter
            path.parent.mkdir(parents=True, exist_ok=True)
            _segment(models[option], args.set / f"{name}.mrc", path)


def _segment(segmenter: Any, source: Path, path: Path) -> None:
    with read_volume(source, warn=False) as volume:
        started = time.process_time()
        logits = segmenter.segment(volume).logits
        spread = spread_of(logits)
        assert spread is not None
        planes = [(logits[z], spread[z]) for z in range(volume.shape[0])]
        seconds = time.process_time() - started
    _save(path.with_suffix(_SPREAD), np.stack([plane for _, plane in planes]))
    _save(path, np.stack([plane for plane, _ in planes]))
    told = path.parent / _SECONDS
    known = json.loads(told.read_text()) if told.exists() else {}
    told.write_text(json.dumps(known | {path.stem: round(seconds, 2)}, indent=1))


def _chosen(args: argparse.Namespace) -> list[str]:
    names = list(_entries(args.set))
    return [name for name in names if not args.only or any(fnmatch.fnmatch(name, one) for one in args.only)]


def _loaded(folder: Path, name: str) -> Averaged:
    arrays = [np.load(folder / f"{name}{ending}").astype(np.float32) for ending in (".npy", _SPREAD)]
    return Averaged(arrays[0].clip(-10, 10), arrays[1])


def _stack(slices: Any) -> np.ndarray:
    return np.stack([slices[z] for z in range(slices.shape[0])])


def _put_together(args: argparse.Namespace, option: str, side_views: SideViews) -> None:
    """Logits of several axes from those along each, as the program does it."""
    folder, sides = args.logits / option, TOGETHER[option]
    folder.mkdir(exist_ok=True)
    seconds: dict[str, float] = {}
    for name in _there(args, list(sides.values())):
        along = {axis: _loaded(args.logits / one, name) for axis, one in sides.items()}
        found = fused(along, side_views)
        _save(folder / f"{name}.npy", _stack(found))
        _save(folder / f"{name}{_SPREAD}", _stack(spread_of(found)))
        times = [_seconds(args.logits / one).get(name) for one in sides.values()]
        if None not in times:
            seconds[name] = sum(one for one in times if one is not None)
    (folder / _SECONDS).write_text(json.dumps(seconds, indent=1))


def _seconds(folder: Path) -> dict[str, float]:
    path = folder / _SECONDS
    found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _there(args: argparse.Namespace, options: Sequence[str]) -> list[str]:
    """Tomograms that all these options have segmented."""
    return [name for name in _chosen(args) if all((args.logits / one / f"{name}.npy").exists() for one in options)]


# ---------------------------------------------------------------------- constants


def _simulated(args: argparse.Namespace, held_out: bool | None) -> Iterator[tuple[str, np.ndarray]]:
    """Simulated tomograms that are there along Z, and their truth: to fit to, or held out; None: all."""
    entries = _entries(args.set)
    number: dict[str, int] = {}
    chosen = set(_chosen(args))
    for name in sorted(entries):
        group = entries[name]["group"]
        number[group] = number.get(group, -1) + 1
        wanted = held_out is None or (number[group] % 2 == 1) == held_out
        if group.startswith("val_") and wanted and name in chosen and (args.logits / "plain" / f"{name}.npy").exists():
            yield name, _volume(entries[name]["mask"])


def fit(args: argparse.Namespace) -> None:
    """Print constants of least log loss on simulated tomograms, held-out ones left aside."""
    random = np.random.default_rng(0)
    along: dict[str, list[np.ndarray]] = {option: [] for option in _SIDES.values()}
    logits, spread, membrane, sided = [], [], [], []
    for name, truth in _simulated(args, held_out=False):
        known = np.flatnonzero(truth != 255)
        taken = random.choice(known, min(_SAMPLE, len(known)), replace=False)
        plain = _loaded(args.logits / "plain", name)
        logits.append(_stack(plain).ravel()[taken])
        spread.append(_stack(plain.spread).ravel()[taken])
        membrane.append(truth.ravel()[taken] == 1)
        sided.append(name in _there(args, list(_SIDES.values())))
        for option, found in along.items():
            if sided[-1]:
                found.append(_stack(_loaded(args.logits / option, name)).ravel()[taken])
    if not logits:
        raise InputError(f"{args.logits} has no simulated tomograms; make them with `better_masks.py run`.")
    every, is_membrane = np.concatenate(logits), np.concatenate(membrane)
    calibration = _fit_calibration(every, np.concatenate(spread), is_membrane)
    print(f"tomograms: {len(logits)}, {sum(sided)} of them along all axes")  # noqa: T201
    print(f"calibration: [{', '.join(f'{one:.3f}' for one in calibration)}]")  # noqa: T201
    if any(sided):
        truth = np.concatenate([one for one, there in zip(membrane, sided, strict=True) if there])
        views = _fit_side_views({axis: np.concatenate(along[option]) for axis, option in _SIDES.items()}, truth)
        print(f"side_views: [{views.weight:g}, {views.floor:g}, {views.shift:g}]")  # noqa: T201


def _log_loss(logits: np.ndarray, membrane: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0, logits) - membrane * logits))


def _fit_calibration(logits: np.ndarray, spread: np.ndarray, membrane: np.ndarray) -> tuple[float, float, float]:
    """Offset, slope and softening."""

    def loss(numbers: np.ndarray) -> float:
        offset, slope, softening = numbers
        return _log_loss((offset + slope * logits) / np.sqrt(1 + math.exp(softening) * np.square(spread)), membrane)

    offset, slope, softening = minimize(loss, [0.0, 0.5, -2.0], method="Nelder-Mead").x
    return float(offset), float(slope), math.exp(softening)


def _fit_side_views(along: Mapping[str, np.ndarray], membrane: np.ndarray) -> SideViews:
    """Numbers whose logits have the least loss, on the scale of what is seen along Z."""
    offset, slope = minimize(
        lambda numbers: _log_loss(numbers[0] + numbers[1] * along["z"], membrane), [0.0, 0.5], method="Nelder-Mead"
    ).x
    limited = {floor: [np.maximum(along[axis], -floor) for axis in "yx"] for floor in _FLOORS}

    def loss(choice: tuple[float, float, float]) -> float:
        weight, floor, shift = choice
        added = weight * sum(side + shift for side in limited[int(floor)])
        return _log_loss(offset + slope * np.clip(along["z"] + added, -10, 10), membrane)

    choices = [(weight, floor, shift) for weight in _WEIGHTS for floor in _FLOORS for shift in _SHIFTS]
    weight, floor, shift = min(choices, key=loss)
    return SideViews(weight, -float(floor), float(shift))


# ---------------------------------------------------------------------- what is gained


def score(args: argparse.Namespace) -> None:
    """Write OUT.md and OUT.csv: the table of `nano_table.py` for each option, time, and calibration."""
    from etsam.app import compose_config

    config = compose_config("predict", ["weights=nano", *args.settings])
    weights = config.weights
    if args.threshold is None:
        args.threshold = float(config.stage2.threshold)
    calibration = Calibration.of(weights.calibration)
    for option in TOGETHER:
        _put_together(args, option, SideViews(*(weights.side_views or ())))
    entries, options = _entries(args.set), [*OPTIONS, *TOGETHER]
    options = [one for one in options if (args.logits / one).is_dir() and _there(args, ["plain", one])]
    columns: dict[str, dict[str, str]] = {}
    for option in options:
        names = _there(args, ["plain", option])
        for other in ("plain", option):  # an option that has fewer tomograms is compared with plain on the same
            column = option if other == option else f"plain, as {option}"
            if other == option or len(names) < len(_there(args, ["plain"])):
                curves = measure(args.logits / other, {name: entries[name] for name in names})
                columns[column] = {"tomograms": str(len(names)), **_mean_dice(curves, args.threshold)}
                columns[column] |= rows(curves, args.threshold) | _of_surfaces(args, other, names)
                columns[column]["time"] = _factor(args, other, names)
        columns[option] |= _calibrated(args, option, calibration)
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {label} | {' | '.join(one.get(label, '') for one in columns.values())} |" for label in labels]
    lines += ["", *_curve(args, calibration)]
    args.out.with_suffix(".md").write_text(_HEADING + "\n".join(lines) + "\n", encoding="utf-8")
    with args.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["option", "measure", "value"])
        writer.writerows([column, *pair] for column, found in columns.items() for pair in found.items())


_HEADING = """# Options for better masks

Made by `benchmarks/better_masks.py score`, with the embedded weights; what each row means: `benchmarks/nano_table.py`.
A column `plain, as OPTION` is plain on the tomograms that the option has, where these are not all. Time is processor
time, as times that of plain. Constants were fitted to simulated tomograms, all but every second of a group; the Dice of
groups has both, calibration and the curve have those that were held out. Real tomograms and PolNet chose nothing.

"""


def _mean_dice(curves: Mapping[str, Any], threshold: float) -> dict[str, str]:
    """Mean over groups of simulated tomograms; none if there are none."""
    at = int(np.argmin(np.abs(THRESHOLDS - threshold)))
    dice = [found["dice"][at] for group, found in curves.items() if group.startswith("val_") and "dice" in found]
    return {"simulated, mean Dice of groups": f"{np.mean(dice):.3f}"} if dice else {}


def _of_surfaces(args: argparse.Namespace, option: str, names: Sequence[str]) -> dict[str, str]:
    """Mean surface Dice, and recall of surfaces by the angle of their normal to Z, of tomograms with truth."""
    entries, metrics = _entries(args.set), Metrics(["surface", "inclination"])
    dice: list[float] = []
    found = {lower: 0.0 for lower in _ANGLES}
    surface = dict.fromkeys(_ANGLES, 0)
    for name in names:
        if "mask" not in entries[name] or not ((truth := _volume(entries[name]["mask"])) == 1).any():
            continue
        mask = _stack(_loaded(args.logits / option, name)) > args.threshold
        scores = metrics(truth, Scored(mask=mask), _VOXELS)
        dice.append(scores.metrics["surface_dice"])
        for row in scores.inclination:
            lower = max(angle for angle in _ANGLES if angle <= row.lower_degrees)
            surface[lower] += row.truth_voxels
            found[lower] += row.recall * row.truth_voxels if row.truth_voxels else 0.0
    if not dice:
        return {}
    recall = [f"{found[lower] / surface[lower]:.3f}" if surface[lower] else "" for lower in _ANGLES]
    return {
        "surface Dice within 2 voxels, mean of those with truth": f"{np.mean(dice):.3f}",
        "recall of surfaces whose normal lies 0, 30, 60 degrees and more from Z": ", ".join(recall),
    }


def _factor(args: argparse.Namespace, option: str, names: Sequence[str]) -> str:
    mine, plain = _seconds(args.logits / option), _seconds(args.logits / "plain")
    both = [name for name in names if name in mine and name in plain]
    return f"{sum(mine[one] for one in both) / sum(plain[one] for one in both):.1f}" if both else ""


def _held_out(args: argparse.Namespace, option: str, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainty of all voxels of held-out tomograms with truth, and which are called wrongly."""
    chances, wrong = [np.empty(0, np.float32)], [np.empty(0, bool)]
    for name, truth in _simulated(args, held_out=True):
        if (args.logits / option / f"{name}.npy").exists():
            logits = _loaded(args.logits / option, name)
            found, known = _stack(logits), truth != 255
            chances.append(calibration.wrong(found, args.threshold, _stack(logits.spread))[known])
            wrong.append(((found > args.threshold) != (truth == 1))[known])
    return np.concatenate(chances), np.concatenate(wrong)


def _calibrated(args: argparse.Namespace, option: str, calibration: Calibration) -> dict[str, str]:
    chance, wrong = _held_out(args, option, calibration)
    if not chance.size:
        return {}
    error = expected_calibration_error(calibration_curve(chance, wrong, _BINS))
    return {"expected calibration error": f"{error:.4f}", "wrong voxels": f"{100 * wrong.mean():.2f} %"}


def _curve(args: argparse.Namespace, calibration: Calibration) -> Iterator[str]:
    """Lines of a table: of the voxels with so much uncertainty, how many are wrong."""
    chance, wrong = _held_out(args, "plain", calibration)
    curve = calibration_curve(chance, wrong, _BINS)
    yield "| uncertainty, mean of the bin | wrong, found | share of voxels |\n|---|---|---|"
    for expected, found, voxels in zip(curve.expected, curve.found, curve.voxels, strict=True):
        yield f"| {expected:.3f} | {found:.3f} | {100 * voxels / max(1, chance.size):.2f} % |"


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(description="Gains of options that make masks better.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (run, fit, score):
        one = commands.add_parser(command.__name__, help=(command.__doc__ or "").split("\n")[0])
        one.add_argument("set", type=Path, metavar="SET", help="folder of `nano_table.py tomograms`")
        one.add_argument("logits", type=Path, metavar="LOGITS", help="a folder for each option")
        one.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of predict, such as weights=nano")
        one.add_argument("--only", nargs="+", metavar="PATTERN", help="tomograms, in quotes")
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if command is run:
            one.add_argument("--option", nargs="+", choices=list(OPTIONS), help="those (all)")
            one.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (1)")
        if command is score:
            one.add_argument("--out", type=Path, required=True, metavar="NAME", help="NAME.md and NAME.csv")
            one.add_argument(
                "--threshold", type=float, metavar="T", help="logits above are membrane (that of the weights)"
            )
        one.set_defaults(run=command)
    return parser


def main() -> None:
    """Command line."""
    args = build_parser().parse_args()
    reporting_errors(lambda cfg: args.run(args), OmegaConf.create({"debug": args.debug}))


if __name__ == "__main__":
    main()
