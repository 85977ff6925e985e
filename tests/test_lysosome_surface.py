"""The script that finds where a lysosome's membrane is, by its tomogram alone."""

import json
import sys

import mrcfile
import numpy as np
import pandas as pd
import pytest

from etsam.paths import resource_path

BENCHMARKS = resource_path("configs").parent / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("needs a checkout", allow_module_level=True)

SHAPE, MIDDLE, AXES = (52, 84, 92), np.array([26.0, 42.0, 46.0]), np.array([30.0, 33.0, 37.0])
MOVED = 4.0  # voxels outwards, of the membrane at larger x


@pytest.fixture
def surface(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import lysosome_surface

    return lysosome_surface


def _sphere(number):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(number, 3))
    directions[:, 0] *= 0.3  # no caps: they lie beyond the tomogram
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def test_points_are_moved_to_the_dark_sheet_where_the_tomogram_shows_one(surface, tmp_path, monkeypatch, capsys):
    z, y, x = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    place = (np.stack([z, y, x], axis=-1) - MIDDLE) / AXES
    radius = np.linalg.norm(place, axis=-1)
    length = np.linalg.norm(place * AXES, axis=-1) / np.maximum(radius, 1e-6)  # of the surface in this direction
    outwards = (radius - 1) * length - np.where(x > MIDDLE[2], MOVED, 0.0)
    membrane = (np.abs(outwards) < 1.2) & (y > MIDDLE[1] - 10)  # none at small y
    grey = np.random.default_rng(1).normal(0, 8, SHAPE) - 40 * membrane
    with mrcfile.new(tmp_path / "lyso.mrc") as file:
        file.set_data(grey.astype(np.float32))
        file.voxel_size = 24.0
    with mrcfile.new(tmp_path / "lumen.mrc") as file:
        file.set_data((radius < 0.85).astype(np.int8))
    points = MIDDLE + _sphere(6000) * AXES
    points = points[(points[:, 0] > 1) & (points[:, 0] < SHAPE[0] - 2)]
    pd.DataFrame(points, columns=["z_voxel", "y_voxel", "x_voxel"]).to_csv(tmp_path / "points.csv", index=False)
    entry = {"group": "lysosome", "kind": "lumen", "points": "points.csv", "lumen": "lumen.mrc"}
    entry |= {name: str(tmp_path / entry[name]) for name in ("points", "lumen")}
    (tmp_path / "set.json").write_text(json.dumps({"lyso": entry}))
    (tmp_path / "exact").mkdir()
    np.save(tmp_path / "exact" / "lyso.npy", np.where(membrane, 2.0, -2.0))
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), str(tmp_path / "exact")])
    surface.main()
    told = capsys.readouterr().out.splitlines()
    seen, near = (float(part.split()[number]) for part, number in zip(told[0].split(" at ")[-2:], (0, 0), strict=True))
    patch = 300 / 24  # voxels over which profiles are averaged: so far beyond its end a sheet is seen at the most
    least, most = ((points[:, 1] > MIDDLE[1] - 10 - beyond).mean() for beyond in (0, patch))
    assert least - 0.02 < seen < most
    assert near == pytest.approx(0.5, abs=0.08)  # the half that was not moved
    given, visible = (float(part.split()[-1].rstrip(",")) for part in told[1].split(", visible"))
    assert given < 0.5
    assert visible == pytest.approx(least / seen, abs=0.03)  # all that there is


def test_normals_of_an_ellipsoid_are_its_gradient(surface):
    on = _sphere(800)
    expected = on / AXES
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(surface.normals(MIDDLE + on * AXES), expected, atol=0.02)
