"""`etsam measure` against the truth of simulated specimens, on exact or predicted masks and noisy tomograms.

    python benchmarks/measure_truth.py --specimens 20 --keep specimens --output exact.csv
    python benchmarks/measure_truth.py --specimens 20 --keep specimens --output predicted.csv --predicted

One row a membrane: truth and measure of area, enclosed volume, diameter, mean curvature, distance to the nearest
membrane that was put in earlier, and thickness. A summary is printed. Half of the specimens have voxels of 5 Å, half of
8 Å; every fourth holds nested pairs or stacks only. Seeds: what makes a thickness reliable was chosen with those below
80000, all else with those below 70000.

A membrane of the truth is found one to one if 90 % of it has one measured membrane within 3 voxels, and 90 % of that
has none but it. On predicted masks half of it is asked for as well: where the missing wedge hides a membrane, no mask
has all of it.
"""

import argparse
import itertools
import logging
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import cc3d
import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt

from etsam.measure.label_volume import label_volume
from etsam.measure.measure import Measurement, MeasureSettings, measure
from etsam.measure.shape import distances_between
from etsam.sources.simulation.settings import SpecimenSettings
from etsam.sources.simulation.simulator import SimulatedTomogram, Simulator

log = logging.getLogger("measure_truth")

KINDS: tuple[dict[str, float], ...] = (
    {"vesicle": 5, "tube": 1, "sheet": 1, "double": 1.5, "stack": 0.5, "network": 0.5},
    {"double": 1},
    {"vesicle": 1},
    {"stack": 1},
)
LIMITS = {"area": 0.05, "volume": 0.05, "diameter": 0.05, "distance": 0.05, "mean_curvature": 0.1, "thickness": 0.1}
_NEAR = 3.0  # voxels within which a membrane's voxel is the other's


def simulator(number: int, shape: tuple[int, int, int], seed: int) -> Simulator:
    """Simulator of specimen `number`."""
    size = (5.0, 8.0)[number % 2]
    specimen = SpecimenSettings(kinds=KINDS[number // 2 % len(KINDS)], empty_probability=0.0)
    return Simulator(shape=shape, voxel_size_angstrom=(size, size), specimen=specimen, seed=seed + number)


def specimen(number: int, shape: tuple[int, int, int], seed: int, folder: Path | None) -> SimulatedTomogram:
    """Simulated tomogram `number`, from the folder if it is there, else made and kept there."""
    file = None if folder is None else folder / f"{seed + number}.pickle"
    if file is not None and file.exists():
        with file.open("rb") as stream:
            kept: SimulatedTomogram = pickle.load(stream)
        return kept
    made = simulator(number, shape, seed).tomogram(0)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(made))
    return made


def nearest_numbers(labels: np.ndarray) -> np.ndarray:
    """Number of the nearest label within `_NEAR` voxels of each voxel (Z, Y, X); 0 where there is none."""
    if not labels.any():
        return np.zeros_like(labels)
    away, at = distance_transform_edt(labels == 0, return_indices=True)
    return np.where(away <= _NEAR, labels[tuple(at)], 0)


def compare(made: SimulatedTomogram, mask: np.ndarray, found: Measurement, number: int) -> pd.DataFrame:
    """A row for each true piece that is large enough; `cover` and `purity` say how well the best membrane is it."""
    labels = label_volume(mask, found.membranes)
    volume = np.stack([labels[z] for z in range(len(mask))]).astype(np.int32)
    volume[~np.isin(volume, found.numbers)] = 0
    # what the simulator calls one membrane may be several: a sponge, a sheet that leaves the tomogram and returns
    pieces = cc3d.connected_components(made.instances, connectivity=26).astype(np.int32)
    sizes = np.bincount(pieces.ravel())
    width = max(made.truths[0].thickness_nm * 10 / made.voxel_size_angstrom, 2.5) if made.truths else 2.5
    least = MeasureSettings().min_area_nm2 / (made.voxel_size_angstrom / 10) ** 2 * width
    near_volume, near_pieces = nearest_numbers(volume), nearest_numbers(pieces)
    rows = []
    for piece in (piece for piece in range(1, len(sizes)) if sizes[piece] >= 1.3 * least):
        inside = pieces == piece
        own = np.bincount(near_volume[inside], minlength=1)
        own[0] = 0
        name = int(own.argmax())
        cover = float(own[name] / sizes[piece])
        purity = float((near_pieces[volume == name] == piece).mean()) if own[name] else 0.0
        instance = int(np.bincount(made.instances[inside]).argmax())
        row = {"specimen": number, "voxel": made.voxel_size_angstrom, "piece": piece, "cover": cover, "purity": purity}
        if min(cover, purity) > 0.5 and np.count_nonzero(made.instances == instance) == sizes[piece]:
            row |= _row(made, found, instance, name)  # the truth is of the whole
        rows.append(row)
    return pd.DataFrame(rows)


def _row(made: SimulatedTomogram, found: Measurement, instance: int, name: int) -> dict[str, float]:
    truth, own = made.truths[instance - 1], found.table.set_index("membrane").loc[name]
    nm = made.voxel_size_angstrom / 10
    row = {
        "instance": instance,
        "membrane": name,
        "area_truth": truth.area_nm2,
        "area": own["area_nm2"],
        "mean_curvature_truth": truth.mean_curvature_per_nm,
        "mean_curvature": own["mean_curvature_per_nm"],
        "thickness_truth": truth.thickness_nm,
        "thickness": own.get("thickness_nm", math.nan),
        "thickness_reliable": own.get("thickness_reliable", ""),
        "thickness_method": own.get("thickness_method", ""),
    }
    if truth.enclosed_nm3 is not None:
        row |= {"volume_truth": truth.enclosed_nm3, "volume": own["volume_nm3"]}
        row |= {"diameter_truth": (6 * truth.enclosed_nm3 / math.pi) ** (1 / 3), "diameter": own["diameter_nm"]}
    if truth.nearest_earlier_mean_nm is not None:
        at = np.rint(np.concatenate([mesh.vertices for mesh in found.meshes])).astype(int)
        at = np.clip(at, 0, np.array(made.instances.shape) - 1)
        bounds = np.cumsum([0, *(len(mesh.vertices) for mesh in found.meshes)])
        own = [np.bincount(made.instances[tuple(at[a:b].T)], minlength=2) for a, b in itertools.pairwise(bounds)]
        of_mesh = [int(counts[1:].argmax()) + 1 if counts[1:].any() else 0 for counts in own]  # 0: a false one
        index = found.numbers.index(name)
        earlier = [mesh for mesh, other in zip(found.meshes, of_mesh, strict=True) if 0 < other < instance]
        if earlier:
            distance = distances_between([found.meshes[index], *earlier], 0.0).nearest[0]
            mean = float(np.average(distance, weights=found.meshes[index].vertex_areas)) * nm
            row |= {"distance_truth": truth.nearest_earlier_mean_nm, "distance": mean}
    return row


def summary(table: pd.DataFrame) -> list[str]:
    """A line for each measure: how many, median and 90th percentile of the error, and the share within its limit.

    Of membranes that are found one to one, and once more of those of which half is there.
    """
    whole = (table["cover"] > 0.9) & (table["purity"] > 0.9)
    half = (table["cover"] > 0.5) & (table["purity"] > 0.9)
    lines = [
        f"one to one: {int(whole.sum())} of {len(table)} ({100 * whole.mean():.1f} %); at least half of it, and nothing"
        f" else: {int(half.sum())} ({100 * half.mean():.1f} %)",
        *_errors(table[whole]),
    ]
    if (half & ~whole).any():
        lines += ["", "of those of which half is there:", *_errors(table[half])]
    return lines


def _errors(table: pd.DataFrame) -> list[str]:
    lines = []
    for name, limit in LIMITS.items():
        if name not in table or not table[name].notna().any():
            continue
        truth, value = table[f"{name}_truth"], table[name]
        known = truth.notna()
        parts = {"": known}
        if name == "mean_curvature":  # the error of nearly flat ones has no meaning in percent
            parts = {" (radius below 100 nm)": known & (truth.abs() > 0.01)}
        if name == "thickness":
            reliable = table["thickness_reliable"] == "yes"
            parts = {
                f" {size:g} Å, {word}": known & (table["voxel"] == size) & (reliable == yes)
                for size in sorted(table["voxel"].unique())
                for word, yes in (("reliable", True), ("flagged unreliable", False))
            }
        for text, chosen in parts.items():
            if name == "mean_curvature":
                error = (value[chosen].abs() - truth[chosen].abs()).abs() / truth[chosen].abs()
            else:
                error = (value[chosen] / truth[chosen] - 1).abs()
            within = float((error <= limit).mean()) if len(error) else math.nan
            missing = int(value[chosen].isna().sum())
            lines.append(
                f"{name}{text}: n={len(error)}, median error {100 * error.median():.2f} %, 90 % below "
                f"{100 * error.quantile(0.9):.1f} %, within {100 * limit:g} %: {100 * within:.0f} %, missing {missing}"
            )
    return lines


def predicted_masks() -> Callable[[SimulatedTomogram], np.ndarray]:
    """Function that segments a tomogram with the embedded weights, at the settings of `etsam predict`."""
    import etsam

    model = etsam.load(device="cpu")

    def segment(made: SimulatedTomogram) -> np.ndarray:
        found = model.segment(made.tomogram, voxel_size=(made.voxel_size_angstrom,) * 3)
        return np.stack([found.mask[z] for z in range(len(made.tomogram))]).astype(np.uint8)

    return segment


def main() -> None:
    """Simulate, measure, compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specimens", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=80_000, help="of the first specimen (80000)")
    parser.add_argument("--shape", default="96,160,192", metavar="Z,Y,X")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep specimens here, and take them from here")
    parser.add_argument("--predicted", action="store_true", help="masks by the embedded weights, not the exact ones")
    parser.add_argument("--output", type=Path, default=Path("measure_truth.csv"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    depth, height, width = (int(side) for side in args.shape.split(","))
    segment = predicted_masks() if args.predicted else lambda made: (made.mask > 0).astype(np.uint8)
    tables = []
    for number in range(args.first, args.first + args.specimens):
        made = specimen(number, (depth, height, width), args.seed, args.keep)
        mask = segment(made)
        found = measure(mask, made.voxel_size_angstrom / 10, made.tomogram)
        tables.append(compare(made, mask, found, number))
        good = int((tables[-1][["cover", "purity"]].min(axis=1) > 0.9).sum()) if len(tables[-1]) else 0
        log.info("specimen %d: %d of %d pieces one to one, %d found", number, good, len(tables[-1]), len(found.numbers))
        pd.concat(tables, ignore_index=True).to_csv(args.output, index=False, float_format="%.5g")
    for line in summary(pd.concat(tables, ignore_index=True)):
        log.info(line)


if __name__ == "__main__":
    main()
