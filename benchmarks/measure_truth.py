"""`etsam measure` against the truth of simulated specimens, on their exact masks and noisy tomograms.

    python benchmarks/measure_truth.py --specimens 20 --output table.csv

One row a membrane: truth and measure of area, enclosed volume, diameter, mean curvature, distance to the nearest
membrane that was put in earlier, and thickness. A summary is printed. Half of the specimens have voxels of 5 Å, half of
8 Å; every fourth holds nested pairs or stacks only. The seeds are none that thresholds were chosen with.
"""

import argparse
import itertools
import logging
import math
from pathlib import Path

import cc3d
import numpy as np
import pandas as pd

from etsam.measure.label_volume import label_volume
from etsam.measure.measure import Measurement, MeasureSettings, measure
from etsam.measure.shape import distances_between
from etsam.sources.simulation.settings import SpecimenSettings
from etsam.sources.simulation.simulator import SimulatedTomogram, Simulator
from etsam.sources.simulation.specimen import Specimen

log = logging.getLogger("measure_truth")

KINDS: tuple[dict[str, float], ...] = (
    {"vesicle": 5, "tube": 1, "sheet": 1, "double": 1.5, "stack": 0.5, "network": 0.5},
    {"double": 1},
    {"vesicle": 1},
    {"stack": 1},
)
LIMITS = {"area": 0.05, "volume": 0.05, "diameter": 0.05, "distance": 0.05, "mean_curvature": 0.1, "thickness": 0.1}
_SEED = 70_000  # thresholds were chosen with seeds below


def simulator(number: int, shape: tuple[int, int, int]) -> Simulator:
    """Simulator of specimen `number`."""
    size = (5.0, 8.0)[number % 2]
    specimen = SpecimenSettings(kinds=KINDS[number // 2 % len(KINDS)], empty_probability=0.0)
    return Simulator(shape=shape, voxel_size_angstrom=(size, size), specimen=specimen, seed=_SEED + number)


def compare(made: SimulatedTomogram | Specimen, found: Measurement, number: int) -> tuple[pd.DataFrame, int, int]:
    """Rows of membranes, the number of true pieces that are large enough, and how many were found one to one."""
    mask = (made.mask > 0).astype(np.uint8)
    labels = label_volume(mask, found.membranes)
    volume = np.stack([labels[z] for z in range(len(mask))])
    # what the simulator calls one membrane may be several: a sponge, a sheet that leaves the tomogram and returns
    pieces = cc3d.connected_components(made.instances, connectivity=26)
    sizes = np.bincount(pieces.ravel())
    width = max(made.truths[0].thickness_nm * 10 / made.voxel_size_angstrom, 2.5) if made.truths else 2.5
    least = MeasureSettings().min_area_nm2 / (made.voxel_size_angstrom / 10) ** 2 * width
    large = [piece for piece in range(1, len(sizes)) if sizes[piece] >= 1.3 * least]
    matched, rows = 0, []
    for piece in large:
        inside = pieces == piece
        own = np.bincount(volume[inside], minlength=1)
        name = int(own.argmax())
        good = name > 0 and own[name] > 0.9 * sizes[piece] and own[name] > 0.9 * np.count_nonzero(volume == name)
        matched += good
        instance = int(np.bincount(made.instances[inside]).argmax())
        if good and np.count_nonzero(made.instances == instance) == sizes[piece]:  # the truth is of the whole
            rows.append(_row(made, found, instance, name) | {"specimen": number, "voxel": made.voxel_size_angstrom})
    return pd.DataFrame(rows), len(large), matched


def _row(made: SimulatedTomogram | Specimen, found: Measurement, instance: int, name: int) -> dict[str, float]:
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
        of_mesh = [
            int(np.bincount(made.instances[tuple(at[a:b].T)], minlength=1)[1:].argmax()) + 1
            for a, b in itertools.pairwise(bounds)
        ]
        index = found.numbers.index(name)
        earlier = [mesh for mesh, other in zip(found.meshes, of_mesh, strict=True) if other < instance]
        if earlier:
            distance = distances_between([found.meshes[index], *earlier], 0.0).nearest[0]
            mean = float(np.average(distance, weights=found.meshes[index].vertex_areas)) * nm
            row |= {"distance_truth": truth.nearest_earlier_mean_nm, "distance": mean}
    return row


def summary(table: pd.DataFrame) -> list[str]:
    """A line for each measure: how many, median and 90th percentile of the error, and the share within its limit."""
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


def main() -> None:
    """Simulate, measure, compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specimens", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--shape", default="96,160,192", metavar="Z,Y,X")
    parser.add_argument("--no-tomogram", action="store_true", help="without thickness: many times as fast")
    parser.add_argument("--output", type=Path, default=Path("measure_truth.csv"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    depth, height, width = (int(side) for side in args.shape.split(","))
    tables, true, matched = [], 0, 0
    for number in range(args.first, args.first + args.specimens):
        maker = simulator(number, (depth, height, width))
        made = maker.draw(0) if args.no_tomogram else maker.tomogram(0)
        mask = (made.mask > 0).astype(np.uint8)
        found = measure(mask, made.voxel_size_angstrom / 10, getattr(made, "tomogram", None))
        rows, pieces, good = compare(made, found, number)
        tables.append(rows)
        true, matched = true + pieces, matched + good
        log.info("specimen %d: %d of %d pieces one to one, %d found", number, good, pieces, len(found.numbers))
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(args.output, index=False)
    log.info("one to one: %d of %d (%.1f %%)", matched, true, 100 * matched / max(true, 1))
    for line in summary(table):
        log.info(line)


if __name__ == "__main__":
    main()
