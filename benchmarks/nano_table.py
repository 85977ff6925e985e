"""The whole table by which embedded weights are judged: simulated domains, PolNet, real tomograms, seconds a slice.

    python benchmarks/nano_table.py tomograms SET --simulated DIR --polnet polnet/manifest.csv --real shared/real
    python benchmarks/nano_table.py trunk SET LOGITS --weights trunk.safetensors   # the trunk alone, slices whole
    python benchmarks/nano_table.py stage1 SET LOGITS [KEY=VALUE of predict ...]   # one stage, with its memory
    python benchmarks/nano_table.py stage2 SET LOGITS --stage1 LOGITS [KEY=VALUE of predict ...]
    python benchmarks/nano_table.py both SET LOGITS --stage1 LOGITS --stage2 LOGITS   # their mean, as nano gives it
    python benchmarks/nano_table.py sheets SET LOGITS                              # the classical bar
    python benchmarks/nano_table.py score SET LOGITS [LOGITS ...] [--threshold T]

`tomograms` puts links to all tomograms into SET, and with them copies of the other contrast of some simulated ones. Any
program may segment them: `score` reads NAME_etsam_predicted_logits.mrc (`etsam predict 'SET/*.mrc' write_logits=true`)
or NAME.npy from LOGITS. Without `--threshold` the simulated domains choose it: the highest one that is within 0.01 of
their best mean Dice, since what is marked too much is more in the way. Real tomograms have no say in it.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from omegaconf import OmegaConf

from etsam.app import reporting_errors
from etsam.errors import InputError
from etsam.evaluation.metrics.points import read_points
from etsam.normalize import Robust, normalize
from etsam.volume import read_volume

THRESHOLDS = np.round(np.arange(-6, 8.01, 0.25), 2)
NEAR_VOXELS, FAR_VOXELS = 1.5, 3.0  # as `etsam points`
LUMEN_SHARE = 0.01  # of the lysosome's inside, which holds no membrane
TOLERANCE = 0.01  # of the mean Dice by which the threshold is chosen
SHEET_SIGMA_VOXELS, WIDE_SIGMA_VOXELS = 2.5, 12.0
_LIST, _SECONDS = "set.json", "seconds.json"
_CURVE, _INVERTED = "val_curve_", " inverted"  # names of groups


# ---------------------------------------------------------------------- what is judged


def tomograms(args: argparse.Namespace) -> None:
    """Gather the set: links, inverted copies, and `set.json` with what each one is compared with."""
    args.set.mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, str]] = {}

    def add(group: str, kind: str, tomogram: Path, **references: Path) -> None:
        link = args.set / tomogram.name
        link.unlink(missing_ok=True)
        link.symlink_to(tomogram.resolve())
        entries[tomogram.stem] = {
            "group": group,
            "kind": kind,
            **{name: str(path.resolve()) for name, path in references.items()},
        }

    for folder in sorted(args.simulated.glob("val_*")):
        kind = "empty" if folder.name == "val_mt" else "domain"
        for mask in sorted(folder.glob("*_membrane.mrc")):
            tomogram = mask.with_name(mask.name.replace("_membrane", ""))
            add(folder.name, kind, tomogram, mask=mask)
            if folder.name.startswith(_CURVE):
                inverted = args.set / f"{tomogram.stem}_inverted.mrc"
                _invert(tomogram, inverted)
                entries[inverted.stem] = {"group": folder.name + _INVERTED, "kind": kind, "mask": str(mask.resolve())}
    for mask in sorted((args.polnet.parent / "val").glob("*_membrane.mrc")):
        add("PolNet", "polnet", mask.with_name(mask.name.replace("_membrane", "")), mask=mask)
    real = args.real
    add("HIV particles", "points", real / "hiv_vlps.mrc", points=real / "hiv_vlps_surface_points.csv")
    for name in ("24A", "12A_crop"):
        file = next(real.glob(f"lysosome_wbp_{name}.mrc"))
        references = {"points": f"lysosome_{name}_surface_points.csv", "lumen": f"lysosome_{name}_lumen.mrc.gz"}
        add(f"lysosome {name}", "lumen", file, **{key: real / value for key, value in references.items()})
    (args.set / _LIST).write_text(json.dumps(entries, indent=1))
    print(f"{len(entries)} tomograms in {args.set}")  # noqa: T201


def _invert(tomogram: Path, path: Path) -> None:
    with mrcfile.open(tomogram) as file, mrcfile.new(path, overwrite=True) as copy:
        copy.set_data(-file.data.astype(np.float32))
        copy.voxel_size = file.voxel_size


def _entries(folder: Path) -> dict[str, dict[str, str]]:
    try:
        found: dict[str, dict[str, str]] = json.loads((folder / _LIST).read_text())
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no {_LIST}; make it with `nano_table.py tomograms`.") from error
    return found


def _volume(path: str | Path) -> np.ndarray:
    with read_volume(path, warn=False) as volume:
        return np.stack([volume[z] for z in range(volume.shape[0])])


# ---------------------------------------------------------------------- what segments


def _missing(args: argparse.Namespace) -> Iterator[tuple[Path, Path]]:
    """Tomograms of the set whose logits are not there, and where these go."""
    args.logits.mkdir(parents=True, exist_ok=True)
    for name in _entries(args.set):
        path = args.logits / f"{name}.npy"
        if not path.exists():
            yield args.set / f"{name}.mrc", path


def _save(path: Path, logits: np.ndarray) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, logits.astype(np.float16))
    part.replace(path)


def trunk(args: argparse.Namespace) -> None:
    """The convolutional trunk alone, on whole slices; no memory, no prompt."""
    from etsam.app import compose_config
    from etsam.network.build import build_tracker
    from etsam.network.checkpoint import read_state_dict

    torch.set_num_threads(args.threads)
    tracker = build_tracker(compose_config("predict", ["net=nano", *args.settings]).net, None, 0).eval()
    encoder = tracker.network.image_encoder.trunk
    prefix = "image_encoder.trunk."
    state = read_state_dict(args.weights)
    own = {name.split(prefix)[-1]: value for name, value in state.items() if _of_trunk(name)}
    encoder.load_state_dict(encoder.adapted(own))

    @torch.inference_mode()
    def segment(planes: np.ndarray) -> np.ndarray:
        images = tracker.prepare(torch.from_numpy(planes)[None])
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits = encoder.logits(images)[0, 0].float().numpy()
        inside: np.ndarray = logits[: planes.shape[1], : planes.shape[2]]
        return inside

    for source, path in _missing(args):
        with read_volume(source, warn=False) as volume:
            slices = normalize(volume, Robust(membranes=args.membranes))
            planes = np.stack([slices[z] for z in range(volume.shape[0])])
        seen = (tracker.seen_with(z, len(planes)) for z in range(len(planes)))
        _save(path, np.stack([segment(planes[numbers]) for numbers in seen]))
    planes = np.random.default_rng(0).random((tracker.input_slices, 928, 960), dtype=np.float32)
    segment(planes)
    started = time.perf_counter()
    segment(planes)
    label = f"seconds a slice of 928 x 960, {args.threads} threads, {'bfloat16' if args.bf16 else 'float32'}"
    (args.logits / _SECONDS).write_text(json.dumps({label: f"{time.perf_counter() - started:.2f}"}))


def _of_trunk(name: str) -> bool:
    return "image_encoder.trunk." in name or name.split(".")[0] in ("down", "across", "up", "head")


def stage1(args: argparse.Namespace) -> None:
    """Stage 1 as `etsam predict` runs it, with its prompts and memory."""
    _stage(args, "stage1")


def stage2(args: argparse.Namespace) -> None:
    """Stage 2 as `etsam predict` runs it, on logits that `stage1` wrote."""
    _stage(args, "stage2", args.stage1)


def _stage(args: argparse.Namespace, name: str, before: Path | None = None) -> None:
    from hydra.utils import instantiate

    from etsam.app import compose_config
    from etsam.inference.fusion import fuse
    from etsam.inference.two_stage import run_stage

    torch.set_num_threads(args.threads)
    config = compose_config("predict", args.settings)
    stage, tiling, method = (instantiate(part) for part in (config[name], config.tiles, config.normalize))
    tracker = stage.tracker.eval()
    for source, path in _missing(args):
        with read_volume(source, warn=False) as volume, torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            seen: Any = normalize(volume, method)
            if before is not None:
                seen = fuse(seen, np.load(before / path.name).astype(np.float32))
            tiles = tiling.plan(*volume.shape[1:], tracker.tile_voxels, tracker.tile_step)
            logits = run_stage(stage, seen, tiles)
            _save(path, np.stack([logits[z] for z in range(volume.shape[0])]))


def both(args: argparse.Namespace) -> None:
    """Mean of the logits of both stages, as nano gives it."""
    from etsam.inference.ensemble import average_of

    for _, path in _missing(args):
        members = [np.load(folder / path.name).astype(np.float32) for folder in (args.stage1, args.stage2)]
        mean = average_of(members)
        _save(path, np.stack([mean[z] for z in range(mean.shape[0])]))


def sheets(args: argparse.Namespace) -> None:
    """Classical sheet filter: bright or dark across, flat along both other axes, in standard deviations."""
    for source, path in _missing(args):
        with read_volume(source, warn=False) as volume:
            slices = normalize(volume, Robust(membranes=args.membranes))  # dark membranes
            grey = np.stack([slices[z] for z in range(volume.shape[0])])
        _save(path, sheetness(grey, SHEET_SIGMA_VOXELS, WIDE_SIGMA_VOXELS))


def sheetness(grey: np.ndarray, sigma_voxels: float, wide_sigma_voxels: float) -> np.ndarray:
    """Largest eigenvalue of the Hessian minus the absolute value of the middle one, in standard deviations.

    Parameters
    ----------
    grey
        (Z, Y, X) float32, membranes dark.
    sigma_voxels
        Of the Gaussian whose second derivatives are taken.
    wide_sigma_voxels
        Of the Gaussian that is subtracted before.

    Returns
    -------
    numpy.ndarray
        (Z, Y, X) float32.
    """
    from scipy.ndimage import gaussian_filter

    flat = grey - gaussian_filter(grey, wide_sigma_voxels)
    hessian = np.empty((*grey.shape, 3, 3), dtype=np.float32)
    for i in range(3):
        for j in range(i, 3):
            order = [(axis == i) + (axis == j) for axis in range(3)]
            hessian[..., i, j] = hessian[..., j, i] = gaussian_filter(flat, sigma_voxels, order=order)
    strength = np.empty_like(grey)
    for z in range(len(grey)):
        values = np.linalg.eigvalsh(hessian[z])  # ascending
        strength[z] = values[..., 2] - np.abs(values[..., 1])
    return strength / strength.std()


# ---------------------------------------------------------------------- how well


def dice_counts(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Hits, marked voxels and membrane voxels at each of `THRESHOLDS`, (3, N); logits strictly above are marked."""

    def above(values: np.ndarray) -> np.ndarray:
        return len(values) - np.searchsorted(np.sort(values), THRESHOLDS, side="right")

    membrane = truth == 1
    hits, marked = above(logits[membrane]), above(logits[truth != 255])
    return np.stack([hits, marked, np.full(len(THRESHOLDS), membrane.sum())])


def _dice(counts: np.ndarray) -> np.ndarray:
    hits, marked, membrane = counts
    share: np.ndarray = 2 * hits / np.maximum(marked + membrane, 1)
    return share


def at_points(logits: np.ndarray, points: np.ndarray, near_voxels: float) -> np.ndarray:
    """Largest logit within `near_voxels` of each point (N, 3), (N,): a point is covered at thresholds below it."""
    found = np.full(len(points), -np.inf, dtype=np.float32)
    for voxels, distances in _around(points, logits.shape, near_voxels):
        inside = distances <= near_voxels + 1e-6
        found[inside] = np.maximum(found[inside], logits[tuple(voxels[inside].T)])
    return found


def far_from(points: np.ndarray, shape: tuple[int, ...], far_voxels: float) -> np.ndarray:
    """(Z, Y, X) bool, True farther than `far_voxels` from all points (N, 3)."""
    far = np.ones(shape, dtype=bool)
    for voxels, distances in _around(points, shape, far_voxels):
        far[tuple(voxels[distances <= far_voxels + 1e-6].T)] = False
    return far


def _around(points: np.ndarray, shape: tuple[int, ...], reach: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each step around the points: voxels (N, 3), and their distances (N,) from the points, infinite outside."""
    side = np.arange(-np.ceil(reach), np.ceil(reach) + 1, dtype=int)
    middle = np.round(points).astype(int)
    for step in np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3):
        voxels = middle + step
        outside = ((voxels < 0) | (voxels >= np.array(shape))).any(axis=1)
        yield (
            np.clip(voxels, 0, np.array(shape) - 1),
            np.where(outside, np.inf, np.linalg.norm(voxels - points, axis=1)),
        )


def measure(folder: Path, entries: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Curves over `THRESHOLDS` of every group whose logits are in `folder`, and lysosomes at 1 % of the lumen."""
    curves: dict[str, Any] = {}
    counts: dict[str, list[np.ndarray]] = {}
    for name, entry in entries.items():
        logits = _logits(folder, name)
        if logits is None:
            continue
        group, kind = entry["group"], entry["kind"]
        if kind in ("domain", "polnet", "empty"):
            counts.setdefault(group, []).append(dice_counts(logits, _volume(entry["mask"])))
            continue
        points = read_points(Path(entry["points"]))
        largest = at_points(logits, points, NEAR_VOXELS)
        covered = (largest[:, None] > THRESHOLDS).mean(axis=0)
        if kind == "points":
            far = logits[far_from(points, logits.shape, FAR_VOXELS)]
            marked = [max(1, int((logits > limit).sum())) for limit in THRESHOLDS]
            elsewhere = np.array([(far > limit).sum() / total for limit, total in zip(THRESHOLDS, marked, strict=True)])
            curves[group] = {"covered": covered, "elsewhere": elsewhere}
        else:
            lumen = logits[_volume(entry["lumen"]) > 0]
            limit = np.quantile(lumen, 1 - LUMEN_SHARE)
            curves[group] = {
                "covered": covered,
                "lumen": np.array([(lumen > limit).mean() for limit in THRESHOLDS]),
                "covered_at_1_percent": float((largest > limit).mean()),
            }
    for group, found in counts.items():
        kind = next(entry["kind"] for entry in entries.values() if entry["group"] == group)
        if kind == "polnet":
            curves[group] = {
                "dice": np.mean([_dice(one) for one in found], axis=0),
                "each": [_dice(one) for one in found],
            }
        elif kind == "empty":
            voxels = [_volume(entry["mask"]).size for entry in entries.values() if entry["group"] == group]
            curves[group] = {"marked": sum(one[1] for one in found) / sum(voxels)}
        else:
            curves[group] = {"dice": _dice(np.sum(found, axis=0))}
    return curves


def _logits(folder: Path, name: str) -> np.ndarray | None:
    for path in (folder / f"{name}.npy", *sorted(folder.glob(f"{name}_etsam_*logits.mrc"))):
        if path.exists():
            return np.load(path).astype(np.float32) if path.suffix == ".npy" else _volume(path)
    return None


def best_threshold(curves: dict[str, Any]) -> float:
    """Highest threshold that is within `TOLERANCE` of the best mean Dice of the simulated domains.

    Voxel sizes of the curve count as one domain in all, so that it does not outweigh the others.
    """
    curve = [value["dice"] for group, value in curves.items() if group.startswith(_CURVE)]
    domains = [curves[group]["dice"] for group in _domains(curves)]
    return highest_near_best(np.mean([*domains, *([np.mean(curve, axis=0)] if curve else [])], axis=0))


def highest_near_best(dice: np.ndarray) -> float:
    """Highest of `THRESHOLDS` at which a curve of Dice is within `TOLERANCE` of its best."""
    return float(THRESHOLDS[np.flatnonzero(dice >= dice.max() - TOLERANCE)[-1]])


def nano_threshold() -> float:
    """Threshold that the embedded weights have in prediction."""
    from etsam.app import compose_config

    return float(compose_config("predict", ["weights=nano"]).stage2.threshold)


def _domains(curves: dict[str, Any]) -> list[str]:
    """Simulated groups with membranes, but for those of the curve of voxel sizes."""
    return [
        name for name, value in curves.items() if name.startswith("val_") and "dice" in value and _CURVE not in name
    ]


def score(args: argparse.Namespace) -> None:
    """Print a Markdown table, one column for each folder of logits, and keep the curves as LOGITS/scores.json."""
    entries = _entries(args.set)
    columns = {}
    for folder in args.logits:
        curves = measure(folder, entries)
        threshold = best_threshold(curves) if args.threshold is None else args.threshold
        columns[folder.name] = rows(curves, threshold)
        plain = {"thresholds": THRESHOLDS, "threshold": threshold, **curves}
        (folder / "scores.json").write_text(json.dumps(plain, default=lambda value: np.asarray(value).tolist()))
        if (folder / _SECONDS).exists():
            columns[folder.name] |= json.loads((folder / _SECONDS).read_text())
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")  # noqa: T201
    for name in names:
        print(f"| {name} | {' | '.join(column.get(name, '') for column in columns.values())} |")  # noqa: T201


def rows(curves: dict[str, Any], threshold: float) -> dict[str, str]:
    """What the table says of one program, label -> number."""
    i = int(np.argmin(np.abs(THRESHOLDS - threshold)))
    found = {"threshold": f"{THRESHOLDS[i]:g}"}
    found |= {f"{group}, Dice": f"{curves[group]['dice'][i]:.3f}" for group in _domains(curves)}
    for ending in ("", _INVERTED):
        sizes = [name[len(_CURVE) :].removesuffix(_INVERTED) for name in curves if name.startswith(_CURVE)]
        dice = {size: curves.get(f"{_CURVE}{size}{ending}") for size in sorted(set(sizes), key=float)}
        there = {size: f"{value['dice'][i]:.2f}" for size, value in dice.items() if value is not None}
        if there:
            found[f"Dice at {', '.join(there)} Å{',' * bool(ending)}{ending}"] = ", ".join(there.values())
    if "val_mt" in curves:
        found["microtubules without membranes: marked"] = f"{100 * curves['val_mt']['marked'][i]:.2f} %"
    if "PolNet" in curves:
        each = ", ".join(f"{dice[i]:.3f}" for dice in curves["PolNet"]["each"])
        found["PolNet, Dice (each)"] = f"{curves['PolNet']['dice'][i]:.3f} ({each})"
    for group, value in curves.items():
        if "elsewhere" in value:
            found[f"{group}: covered / elsewhere"] = f"{value['covered'][i]:.3f} / {value['elsewhere'][i]:.3f}"
            at = _where(value["elsewhere"], value["covered"], 0.35)
            found[f"{group}: covered where 35 % is elsewhere"] = f"{at:.3f}"
        if "lumen" in value:
            found[f"{group}: covered / lumen"] = f"{value['covered'][i]:.3f} / {100 * value['lumen'][i]:.2f} %"
            found[f"{group}: covered at 1 % of the lumen"] = f"{value['covered_at_1_percent']:.3f}"
    return found


def _where(falling: np.ndarray, values: np.ndarray, level: float) -> float:
    """Values at the lowest threshold at which `falling` has come down to `level`, linear between thresholds."""
    below = np.flatnonzero(falling <= level)
    if not len(below):
        return float("nan")
    i = int(below[0])
    if i == 0:
        return float(values[0])
    part = (falling[i - 1] - level) / max(falling[i - 1] - falling[i], 1e-9)
    return float(values[i - 1] + part * (values[i] - values[i - 1]))


def build_parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    parser = argparse.ArgumentParser(description="The table by which embedded weights are judged.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Any) -> argparse.ArgumentParser:
        one = commands.add_parser(run.__name__, help=(run.__doc__ or "").split("\n")[0])
        one.add_argument("set", type=Path, metavar="SET", help="folder of `tomograms`")
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        one.set_defaults(run=run)
        return one

    gather = command(tomograms)
    gather.add_argument(
        "--simulated", type=Path, required=True, metavar="DIR", help="folders val_* of `etsam data simulate`"
    )
    gather.add_argument("--polnet", type=Path, required=True, metavar="CSV", help="manifest beside a folder val")
    gather.add_argument("--real", type=Path, required=True, metavar="DIR", help="real tomograms with points")
    for run in (trunk, stage1, stage2, both, sheets):
        one = command(run)
        one.add_argument("logits", type=Path, metavar="LOGITS", help="where logits go; those there are kept")
        one.add_argument(
            "--membranes", default="auto", choices=["auto", "dark", "bright"], help="contrast in the files"
        )
        one.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (1)")
        one.add_argument("--bf16", action="store_true", help="bfloat16 where torch's autocast allows")
        if run is trunk:
            one.add_argument(
                "--weights", type=Path, required=True, metavar="FILE", help="of the trunk or the whole network"
            )
        if run in (stage2, both):
            one.add_argument("--stage1", type=Path, required=True, metavar="LOGITS", help="of stage 1")
        if run is both:
            one.add_argument("--stage2", type=Path, required=True, metavar="LOGITS", help="of stage 2")
        if run not in (both, sheets):
            one.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of predict")
    judge = command(score)
    judge.add_argument("logits", type=Path, nargs="+", metavar="LOGITS")
    judge.add_argument(
        "--threshold", type=float, metavar="T", help="logits above are membrane (best on simulated ones)"
    )
    return parser


def main() -> None:
    """Command line."""
    parser = build_parser()
    args, rest = parser.parse_known_args()  # settings may stand anywhere
    if hasattr(args, "settings"):
        args.settings += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    reporting_errors(lambda cfg: args.run(args), OmegaConf.create({"debug": args.debug}))


if __name__ == "__main__":
    main()
