"""The same simulated specimens at 5, 10, 20 and 40 Å: what `target_voxel_size` makes of them, and what its lack does.

    python benchmarks/scale_matching.py FOLDER --fit [--specimens N]       # weights.finer_shift, on other specimens
    python benchmarks/scale_matching.py FOLDER [--specimens N] [--seed S]

Each specimen is drawn, imaged and reconstructed once, at 5 Å; coarser ones are that reconstruction with its Fourier
transform cropped, so all sizes hold the same data. Truth of a coarser size is where more than half of a voxel is
membrane. Each tomogram is segmented as it is and with each target; its logits are scored on its own grid and, by linear
interpolation, on that of 10 Å, with the truth there: at the threshold of the weights, at that of `threshold=auto`, and
at the best one. One row a run goes to FOLDER/scale_matching.csv, and what is there is not run again.

`--fit` finds what has to be added to the logits of voxels that were interpolated to half and to a quarter of their
side, so that one threshold serves for all: the thresholds of the same specimens at 10 Å, 20 Å and 40 Å by the rule of
`nano_table.py` (the highest that is within 0.01 of the best mean Dice) become one.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
from nano_table import THRESHOLDS, _dice, dice_counts, highest_near_best, nano_threshold

from etsam.api import load
from etsam.inference.rescale import rescaled
from etsam.sources.simulation.settings import SpecimenSettings
from etsam.sources.simulation.simulator import AcquisitionSettings, Simulator
from etsam.volume import Slices

FINE, COMMON = 5, 10  # Å: of the simulation, and of the grid that all are compared on
SIZES, TARGETS = (10, 20, 40, 5), (10, None)
FIT_SEED = 9610  # of specimens to fit on; others are scored
SHAPE = (80, 208, 240)  # Z, Y, X at the finest size
COLUMNS = (
    *("specimen", "voxel_size", "target", "dice", "dice_at_10"),
    *("auto_threshold", "auto_dice_at_10", "best_dice_at_10", "seconds"),
)


def fourier_cropped(volume: np.ndarray, factor: int) -> np.ndarray:
    """Volume (Z, Y, X) float32 with voxels `factor` times as large: the low frequencies of its Fourier transform.

    The middle of a large voxel is that of the small ones in its place, as with means of blocks.
    """
    if factor == 1:
        return volume
    sides = [side // factor for side in volume.shape]
    spectrum = np.fft.fftshift(np.fft.fftn(volume))
    kept = spectrum[
        tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(volume.shape, sides, strict=True))
    ]
    for axis, (whole, side) in enumerate(zip(volume.shape, sides, strict=True)):
        frequencies = np.fft.fftshift(np.fft.fftfreq(side)) * side / whole  # cycles a small voxel
        shift = np.exp(2j * np.pi * frequencies * (factor - 1) / 2)
        kept = kept * shift.reshape([-1 if other == axis else 1 for other in range(3)])
    return (np.fft.ifftn(np.fft.ifftshift(kept)).real / factor**3).astype(np.float32)


def coarse_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """Mask (Z, Y, X) bool, True where more than half of a voxel is membrane."""
    depth, height, width = (side // factor for side in mask.shape)
    blocks = mask.reshape(depth, factor, height, factor, width, factor)
    return np.asarray(blocks.mean(axis=(1, 3, 5)) > 0.5)


def dice(logits: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    """Dice of what lies above a threshold."""
    marked = logits > threshold
    return float(2 * (marked & truth).sum() / max(1, marked.sum() + truth.sum()))


def simulator(seed: int) -> Simulator:
    """Specimens at the finest size."""
    return Simulator(
        shape=SHAPE,
        voxel_size_angstrom=(FINE, FINE),
        specimen=SpecimenSettings(empty_probability=0, membranes=(8, 14), radius_angstrom=(160, 500)),
        # what is drawn for 10 Å elsewhere, at half the voxel: as much noise in an area, half the cutoff's frequency
        acquisition=AcquisitionSettings(snr=(0.05, 0.3), cutoff=(0.2, 0.3), filters={"none": 1}),
        seed=seed,
    )


def on_common(logits: Slices, shape: tuple[int, ...]) -> np.ndarray:
    """Logits on the grid of 10 Å, (Z, Y, X) float32."""
    at_common = rescaled(logits, shape)
    return np.stack([at_common[z] for z in range(shape[0])])


def fit(args: argparse.Namespace) -> None:
    """Print the shifts, with the mean Dice of each size by threshold."""
    model = load(["weights=nano", f"target_voxel_size={COMMON}", "weights.finer_shift=null"])
    curves: dict[int, list[np.ndarray]] = {size: [] for size in (10, 20, 40)}
    threshold, made = nano_threshold(), simulator(FIT_SEED)
    for number in range(args.specimens):
        drawn = made.tomogram(number)
        common = coarse_mask(drawn.mask == 1, COMMON // FINE)
        for size, rows in curves.items():
            tomogram = fourier_cropped(drawn.tomogram.astype(np.float32), size // FINE)
            found = model.segment(tomogram, voxel_size=(size, size, size))
            logits = on_common(found.logits, common.shape)
            rows.append(_dice(dice_counts(logits, common)))
    chosen = {}
    for size, rows in curves.items():
        mean = np.mean(rows, axis=0)
        chosen[size] = highest_near_best(mean)
        here = float(np.interp(threshold, THRESHOLDS, mean))
        told = f"{here:.3f} at {threshold:g}, best {mean.max():.3f}, chosen {chosen[size]:g}"
        print(f"{size} Å: {told}, shift {chosen[COMMON] - chosen[size]:g}")  # noqa: T201


def main() -> None:
    """Simulate, segment, score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--specimens", type=int, default=3)
    parser.add_argument("--seed", type=int, default=9510)
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    if args.fit:
        return fit(args)
    args.folder.mkdir(parents=True, exist_ok=True)
    table = args.folder / "scale_matching.csv"
    done = set()
    if table.exists():
        with table.open() as file:
            done = {tuple(row[name] for name in COLUMNS[:3]) for row in csv.DictReader(file)}
    else:
        table.write_text(",".join(COLUMNS) + "\n")
    specimens = simulator(args.seed)
    fixed = nano_threshold()
    models = {
        target: load(["weights=nano", "threshold=auto"] + [f"target_voxel_size={target}"] * bool(target))
        for target in TARGETS
    }
    for number in range(args.specimens):
        runs = [(str(number), str(size), str(target or "own")) for size in SIZES for target in TARGETS]
        if set(runs) <= done:
            continue
        made = specimens.tomogram(number)
        volume, mask = made.tomogram.astype(np.float32), made.mask == 1
        common = coarse_mask(mask, COMMON // FINE)
        for size in SIZES:
            tomogram, truth = fourier_cropped(volume, size // FINE), coarse_mask(mask, size // FINE)
            for target, model in models.items():
                key = (str(number), str(size), str(target or "own"))
                if key in done or target == size:
                    continue
                started = time.perf_counter()
                found = model.segment(tomogram, voxel_size=(size, size, size))
                seconds = time.perf_counter() - started
                logits = on_common(found.logits, common.shape)
                scores = (
                    dice(np.asarray(found.logits), truth, fixed),
                    dice(logits, common, fixed),
                    found.threshold,
                    dice(logits, common, found.threshold),
                    _dice(dice_counts(logits, common)).max(),
                )
                with table.open("a") as file:
                    values = [*(f"{score:.4f}" for score in scores), f"{seconds:.1f}"]
                    file.write(",".join([*key, *values]) + "\n")


if __name__ == "__main__":
    main()
