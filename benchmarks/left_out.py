"""What leaving out gold beads, void and carbon removes, and what it costs, on simulated tomograms whose truth is known.

    python benchmarks/left_out.py OUT.csv [--tomograms N]

Five sets: with gold beads, without any, a lamella (the specimen cut off at two tilted planes, noise everywhere), with
the film of the grid, and without it. A mark is wrong if it is no membrane. Near gold is within 5 nm of a bead, near
carbon within 10 nm of the film. Of carbon few are segmented; of the others `membrane_lost` is of the true membrane.
One row a tomogram; what is there is not run again.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from etsam.api import load
from etsam.postprocess.coarse import Coarse
from etsam.postprocess.regions import RegionSettings
from etsam.postprocess.slab import Slab
from etsam.sources.simulation.settings import SpecimenSettings
from etsam.sources.simulation.simulator import AcquisitionSettings, SimulatedTomogram, Simulator

COLUMNS = (
    *("set", "number", "voxel_size", "snr", "true", "found", "false", "error_nm", "dice_before", "dice_after"),
    *("wrong_there_before", "wrong_there_after", "membrane_lost"),
    *("film_share", "film_covered", "membrane_lost_elsewhere"),
)
NEAR_ANGSTROM = 50.0
NEAR_FILM_ANGSTROM = 100.0
PLANES = ((0.5, 0.0, 0.0), (0.45, 0.12, 0.0), (0.6, -0.08, 0.1))  # thickness / Z, slopes along Y and X


def simulator(kind: str) -> Simulator:
    """Simulator of a set; other seeds than those the detectors were made with."""
    specimen = SpecimenSettings(
        gold_probability=1.0 if kind == "gold" else 0.0,
        gold_beads=(3, 10),
        ice_probability=0,
        carbon_probability=0,
        empty_probability=0,
    )
    if kind.endswith("carbon"):
        gold_and_ice = 0.0 if kind == "carbon" else 0.35
        return Simulator(
            shape=(64, 256, 256),
            voxel_size_angstrom=(8, 16),
            specimen=replace(
                SpecimenSettings(),
                gold_probability=gold_and_ice,
                ice_probability=gold_and_ice,
                carbon_probability=1.0 if kind == "carbon" else 0.0,
            ),
            seed=914 if kind == "carbon" else 915,
        )
    if kind == "lamella":
        return Simulator(
            shape=(80, 128, 144),
            specimen=replace(specimen, crowding=(0.05, 0.12), filled_depth=(1, 1)),
            acquisition=AcquisitionSettings(snr=(0.1, 0.4)),
            seed=913,
        )
    return Simulator(
        shape=(48, 128, 144),
        voxel_size_angstrom=(8, 16),
        specimen=specimen,
        acquisition=AcquisitionSettings(snr=(0.08, 0.8)),
        seed=911 if kind == "gold" else 912,
    )


def made(kind: str, number: int) -> tuple[SimulatedTomogram, np.ndarray, np.ndarray]:
    """Tomogram, (Z, Y, X) bool of where nothing is to be marked, and centres of beads, levels of planes, or film."""
    simulated = simulator(kind)
    specimen = simulated.draw(number)
    shape, size = specimen.density.shape, specimen.voxel_size_angstrom
    if kind.endswith("carbon"):
        film = specimen.strong > 0 if kind == "carbon" and specimen.strong is not None else np.zeros(shape, bool)
        near = film.copy()
        if film.any():
            near = ndimage.distance_transform_edt(~film) * size <= NEAR_FILM_ANGSTROM
        return simulated.image(specimen, number), near, film
    if kind != "lamella":
        tomogram = simulated.image(specimen, number)
        if specimen.strong is None:
            return tomogram, np.zeros(shape, bool), np.zeros((0, 3))
        gold = specimen.strong > 3
        labels, count = ndimage.label(gold)
        there = ndimage.distance_transform_edt(~gold) * size <= NEAR_ANGSTROM
        return tomogram, there, np.array(ndimage.center_of_mass(gold, labels, range(1, count + 1)))
    thick, along_y, along_x = PLANES[number % len(PLANES)]
    z, y, x = (np.arange(side) for side in shape)
    slope = along_y * (y[:, None] - shape[1] / 2) + along_x * (x[None] - shape[2] / 2)
    levels = np.stack([shape[0] * (0.5 - thick / 2) + slope, shape[0] * (0.5 + thick / 2) + slope])
    inside = (z[:, None, None] >= levels[0]) & (z[:, None, None] <= levels[1])
    cut = replace(specimen, density=specimen.density * inside, instances=specimen.instances * inside)
    return simulated.image(cut, number), ~inside, levels


def main() -> None:
    """Simulate, segment, leave out, score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tomograms", type=int, default=6, help="of each of the sets of gold")
    parser.add_argument("--carbon", type=int, default=12, help="of each of the sets of carbon")
    parser.add_argument("--segmented", type=int, default=3, help="of those with carbon that is found")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.out.exists():
        args.out.write_text(",".join(COLUMNS) + "\n")
    with args.out.open() as file:
        done = {(row["set"], int(row["number"])) for row in csv.DictReader(file)}
    model = load(["weights=nano"], device="cpu")
    runs = [(kind, n) for n in range(args.tomograms) for kind in ("gold", "none", "lamella")]
    runs += [(kind, n) for n in range(args.carbon) for kind in ("carbon", "no carbon")]
    for kind, number in runs:
        if (kind, number) in done or (kind == "lamella" and number >= len(PLANES)):
            continue
        tomogram, there, truth = made(kind, number)
        size, membrane = tomogram.voxel_size_angstrom, tomogram.mask == 1
        exclude = {"lamella": (), "carbon": ("carbon",), "no carbon": ("carbon",)}.get(kind, ("gold",))
        settings = RegionSettings("slab" if kind == "lamella" else "all", exclude)
        regions = settings.find(Coarse.of(tomogram.tomogram, (size, size, size)))
        outside = np.stack([regions.outside(z) for z in range(membrane.shape[0])])
        segmented = not kind.endswith("carbon") or (kind == "carbon" and outside.any() and args.segmented > 0)
        before = membrane  # of carbon most are asked only where something is left out
        if segmented:
            args.segmented -= kind == "carbon"
            found = model.segment(np.asarray(tomogram.tomogram, np.float32), voxel_size=(size, size, size))
            before = np.asarray(found.mask) > 0
        after = before & ~outside
        film: tuple[str, ...] = ("", "", "")

        def dice(mask: np.ndarray, membrane: np.ndarray = membrane) -> float:
            return float(2 * (mask & membrane).sum() / max(1, mask.sum() + membrane.sum()))

        if kind == "lamella":
            (slab,) = regions.parts.values()
            counts, error = (1, int(slab is not None), 0), ""
            if isinstance(slab, Slab):
                y, x = np.arange(truth.shape[1])[:, None], np.arange(truth.shape[2])[None]
                fitted = np.stack([a + b * y + c * x for a, b, c in (slab.bottom, slab.top)])
                error = f"{np.abs(fitted - truth).mean() * size / 10:.2f}"  # the margin of 3 nm is part of it
        elif kind.endswith("carbon"):
            hit = bool((outside & truth).any())
            counts, error = (int(truth.any()), int(hit), int(outside.any() and not hit)), ""
            elsewhere = membrane & ~truth
            film = (
                f"{truth.mean():.4f}",
                f"{(outside & truth).sum() / max(1, truth.sum()):.4f}",
                f"{(outside & elsewhere).sum() / max(1, elsewhere.sum()):.4f}",
            )
        else:
            (beads,) = regions.parts.values()
            centres = np.array([bead.centre for bead in beads.beads]).reshape(-1, 3)  # type: ignore[union-attr]
            apart = np.linalg.norm(centres[:, None] - truth[None], axis=2) * size / 10
            hits = (apart < 6).any(axis=0).sum() if len(centres) else 0
            false = (~(apart < 6).any(axis=1)).sum() if len(truth) else len(centres)
            counts, error = (len(truth), int(hits), int(false)), ""
        values = (
            *(kind, number, f"{size:.1f}", tomogram.parameters["snr"], *counts, error),
            *((f"{dice(before):.4f}", f"{dice(after):.4f}") if segmented else ("", "")),
            *((mask & ~membrane & there).sum() if segmented else "" for mask in (before, after)),
            f"{(before & ~after & membrane).sum() / max(1, (before & membrane).sum()):.4f}",
            *film,
        )
        with args.out.open("a") as file:
            file.write(",".join(map(str, values)) + "\n")


if __name__ == "__main__":
    main()
