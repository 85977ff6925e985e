"""Where the lysosome's membrane is, by its tomogram alone; how far the points are from it, and what of it is found.

    python benchmarks/lysosome_surface.py SET LOGITS [LOGITS ...] [--threshold T]

SET is that of `nano_table.py tomograms`, LOGITS a folder with NAME.npy. The points lie on ellipsoids, and organelles
are none. Here each point is moved along the ellipsoid's normal to the darkest place within 10 voxels, by profiles that
are averaged over all points within 300 Å. A place counts as a visible sheet if it is darker than the darkest place of
99 in 100 such profiles within the lumen, where there is no membrane. No network has a say in it.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nano_table import LUMEN_SHARE, NEAR_VOXELS, _entries, _logits, _volume, at_points, nano_threshold
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from etsam.evaluation.metrics.points import read_points
from etsam.volume import read_volume

REACH_VOXELS, STEP_VOXELS = 10.0, 0.5
PATCH_ANGSTROM = 300.0
SHRUNK = (0.45, 0.6, 0.75)  # of the larger vesicle: surfaces of the same shape within the lumen
FALSE_SHARE = 0.01
OFFSETS = np.arange(-REACH_VOXELS, REACH_VOXELS + STEP_VOXELS / 2, STEP_VOXELS)


def vesicles(points: np.ndarray) -> Iterator[np.ndarray]:
    """Points (N, 3) of each vesicle: those that hang together within 6 voxels."""
    pairs = cKDTree(points).query_pairs(6, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(points),) * 2)
    part = connected_components(links)[1]
    yield from (points[part == number] for number in range(part.max() + 1) if (part == number).sum() > 200)


def normals(points: np.ndarray) -> np.ndarray:
    """Unit normals (N, 3) of the quadric through points (N, 3)."""
    z, y, x = offset = (points - points.mean(axis=0)).T
    terms = np.stack([z * z, y * y, x * x, z * y, z * x, y * x, z, y, x], axis=1)
    a, b, c, d, e, f, *linear = np.linalg.lstsq(terms, np.ones(len(points)), rcond=None)[0]
    form = np.array([[2 * a, d, e], [d, 2 * b, f], [e, f, 2 * c]])
    gradient = (form @ offset).T + linear
    found: np.ndarray = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    return found


def darkest(grey: np.ndarray, points: np.ndarray, along: np.ndarray, patch_voxels: float) -> tuple[np.ndarray, ...]:
    """Offset (N,) in voxels along the normals at which the averaged profile is darkest, and how dark it is there."""
    places = points[:, None] + OFFSETS[None, :, None] * along[:, None]
    profiles = map_coordinates(grey, places.reshape(-1, 3).T, order=1, mode="nearest").reshape(len(points), -1)
    mean = np.array([profiles[near].mean(axis=0) for near in cKDTree(points).query_ball_point(points, patch_voxels)])
    mean -= gaussian_filter(mean, [0, 4 / STEP_VOXELS])  # what varies slowly is no sheet
    return OFFSETS[mean.argmin(axis=1)], mean.min(axis=1)


def main() -> None:
    """Print how far points are from sheets, and how much of the sheets is covered."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", type=Path)
    parser.add_argument("logits", type=Path, nargs="+")
    parser.add_argument("--threshold", type=float, default=nano_threshold(), metavar="T", help="that of nano")
    args = parser.parse_args()
    told: list[str] = []
    for name, entry in _entries(args.set).items():
        if entry["kind"] != "lumen":
            continue
        with read_volume(args.set / f"{name}.mrc", warn=False) as volume:
            patch = PATCH_ANGSTROM / float(np.mean(volume.voxel_size_angstrom or np.nan))
        grey = gaussian_filter(_volume(args.set / f"{name}.mrc").astype(np.float32), 0.7)
        points, lumen = read_points(Path(entry["points"])), _volume(entry["lumen"]) > 0
        parts = list(vesicles(points))
        large = max(parts, key=len)
        limit = np.quantile(np.concatenate(list(_within(grey, large, lumen, patch))), FALSE_SHARE)
        sheets = []
        for part in parts:
            along = normals(part)
            offset, dark = darkest(grey, part, along, patch)
            seen = dark < limit
            sheets.append((part + offset[:, None] * along)[seen])
            near = (abs(offset[seen]) <= NEAR_VOXELS).mean()
            told.append(
                f"{name}, vesicle of {len(part)} points: a sheet is visible at {seen.mean():.3f} of them, "
                f"within {NEAR_VOXELS:g} voxels of the point at {near:.3f} of these"
            )
        visible = np.concatenate(sheets)
        for folder in args.logits:
            logits = _logits(folder, name)
            if logits is None:
                continue
            limits = {f"at {args.threshold:g}": args.threshold}
            limits["where 1 % of the lumen is marked"] = float(np.quantile(logits[lumen], 1 - LUMEN_SHARE))
            for where, least in limits.items():
                shares = [(at_points(logits, some, NEAR_VOXELS) > least).mean() for some in (points, visible)]
                told.append(f"{name}, {folder.name}, {where}: points {shares[0]:.3f}, visible sheets {shares[1]:.3f}")
    print("\n".join(told))  # noqa: T201


def _within(grey: np.ndarray, large: np.ndarray, lumen: np.ndarray, patch: float) -> Iterator[np.ndarray]:
    """Darkest places of profiles in the lumen, on the vesicle's shape made smaller."""
    along, middle = normals(large), large.mean(axis=0)
    for share in SHRUNK:
        points = middle + share * (large - middle)
        ends = (points[:, None] + np.array([-REACH_VOXELS, REACH_VOXELS])[:, None] * along[:, None]).round().astype(int)
        inside = np.all((ends >= 0) & (ends < lumen.shape), axis=(1, 2))
        inside[inside] = lumen[tuple(ends[inside].reshape(-1, 3).T)].reshape(-1, 2).all(axis=1)
        if inside.sum() > 100:
            yield darkest(grey, points[inside], along[inside], share * patch)[1]


if __name__ == "__main__":
    main()
