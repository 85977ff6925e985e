"""`etsam measure`: files in, files out, complete or not there; what cannot be measured says so in a line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import starfile
import trimesh
from membrane_shapes import shell, sphere
from PIL import Image
from scipy.ndimage import distance_transform_edt
from skimage.color import rgb2lab

from etsam.app import compose_config
from etsam.cli.measure import after_prediction
from etsam.errors import ConfigError, InputError, OutputError
from etsam.measure import run as measure_run
from etsam.measure.colours import colour_of
from etsam.measure.measure import MeasureSettings
from etsam.measure.mesh_files import COLOUR_SCALES, FORMATS, check_formats
from etsam.measure.page import histogram
from etsam.measure.run import COMBINED, MeasureJob, OutputSettings, find_masks, run_jobs, tomogram_of
from etsam.volume import MrcWriter, read_volume

pytestmark = pytest.mark.workshop
SHAPE = (31, 36, 54)
VOXEL = 8.0
STAR = """data_global

loop_
_rlnTomoName #1
_rlnTomoTiltSeriesPixelSize #2
_rlnTomoReconstructedTomogram #3
TS_01 2.0 Tomograms/rec_TS_01.mrc
"""
SMALL = MeasureSettings(min_area_nm2=50)


def write(path: Path, array: np.ndarray, voxel: float | None = VOXEL, origin: float = 0.0) -> Path:
    sizes = None if voxel is None else (voxel,) * 3
    path.parent.mkdir(parents=True, exist_ok=True)
    with MrcWriter(path, array.shape, array.dtype, voxel_size_angstrom=sizes) as writer:
        for z, plane in enumerate(array):
            writer[z] = plane
    if origin:
        import mrcfile

        with mrcfile.open(path, "r+") as file:
            file.header.origin.x, file.header.origin.y, file.header.origin.z = origin, 2 * origin, 3 * origin
    return path


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return (shell(sphere(SHAPE, (15, 17, 16), 12)) | shell(sphere(SHAPE, (15, 17, 42), 8))).astype(np.int8)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray) -> tuple[Path, MeasureJob]:
    folder = tmp_path_factory.mktemp("measured")
    tomogram = write(folder / "cell.mrc", -mask.astype(np.float32), origin=100.0)
    file = write(folder / "cell_etsam_predicted_mask.mrc", mask)
    output = OutputSettings(FORMATS, points_nm=4.0, unbinned_pixel_angstrom=2.0)
    job = MeasureJob(file, tomogram, folder / "out", SMALL, output)
    lines = run_jobs([job])
    assert len(lines) == 1
    assert lines[0].startswith("cell_etsam_predicted_mask.mrc: 2 membranes, of them 2 closed")
    return folder / "out", job


def test_a_plain_mask_taken_for_labels_says_that_it_is_one_membrane(
    tmp_path: Path, mask: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "cell_mask.mrc", mask)
    run_jobs([MeasureJob(file, None, tmp_path / "out", SMALL, OutputSettings(()), labels=True)])
    assert "--instances" in caplog.text
    assert len(pd.read_csv(tmp_path / "out" / "cell_membranes.csv")) == 1


def test_all_files_are_written_and_nothing_else(measured: tuple[Path, MeasureJob]) -> None:
    folder, job = measured
    assert {path.name for path in folder.iterdir()} == {path.name for path in job.names.files(job.output)} | {
        "cell_meshes"
    }
    meshes = {path.name for path in (folder / "cell_meshes").iterdir()}
    assert meshes == {f"cell_membrane_{number:03d}.{kind}" for number in (1, 2) for kind in FORMATS}
    record = json.loads((folder / "cell_measure.json").read_text())
    assert record["membranes"] == 2
    assert record["mask"] == str(job.mask)
    table = pd.read_csv(folder / "cell_membranes.csv")
    assert table["diameter_nm"].to_numpy() == pytest.approx([19.2, 12.8], rel=0.03)


def test_labels_lie_on_the_mask_with_its_voxel_size(measured: tuple[Path, MeasureJob], mask: np.ndarray) -> None:
    labels = read_volume(measured[0] / "cell_membrane_labels.mrc", warn=False)
    values = labels.read()
    assert ((values > 0) == (mask > 0)).all()
    assert set(np.unique(values)) == {0, 1, 2}
    assert labels.voxel_size_angstrom == pytest.approx((VOXEL,) * 3)
    assert values[15, 17, 28] == 1
    assert values[15, 17, 34] == 2


def test_labels_lie_where_meshes_do_with_the_voxel_size_that_was_used(tmp_path: Path, mask: np.ndarray) -> None:
    file = write(tmp_path / "cell_mask.mrc", mask, origin=100.0)
    output, labels = OutputSettings(("ply",)), tmp_path / "out" / "cell_membrane_labels.mrc"
    run_jobs([MeasureJob(file, None, tmp_path / "out", SMALL, output, voxel_angstrom=12.0)])
    assert read_volume(labels).voxel_size_angstrom == pytest.approx((12.0,) * 3)
    unknown = write(tmp_path / "cell.mrc", -mask.astype(np.float32), voxel=None)
    run_jobs([MeasureJob(file, unknown, tmp_path / "out", SMALL, output, overwrite=True)])
    assert read_volume(labels).voxel_size_angstrom == pytest.approx((VOXEL,) * 3)
    assert read_volume(labels).origin_angstrom == (300, 200, 100)
    body = trimesh.load(tmp_path / "out" / "cell_meshes" / "cell_membrane_001.ply", force="mesh")
    assert body.bounds.mean(axis=0) == pytest.approx([16 * VOXEL + 100, 17 * VOXEL + 200, 15 * VOXEL + 300], abs=2)


def test_a_voxel_size_that_was_set_in_prediction_stays_and_two_that_differ_are_refused(tmp_path, mask) -> None:
    tomogram = write(tmp_path / "cell.mrc", -mask.astype(np.float32), voxel=20.0)
    file = write(tmp_path / "cell_etsam_predicted_at_0_post_processed_mask.mrc", mask, voxel=43.2)
    job = MeasureJob(file, tomogram, tmp_path / "out", SMALL, OutputSettings(()))
    with pytest.raises(InputError, match="--voxel-size"):
        run_jobs([job])
    (tmp_path / "cell_etsam_predicted_at_0_record.json").write_text('{"settings": {"voxel_size": 43.2}}')
    run_jobs([job])
    assert json.loads((tmp_path / "out" / "cell_measure.json").read_text())["voxel_angstrom"] == pytest.approx(43.2)


def test_meshes_and_points_lie_where_chimerax_puts_a_tomogram_with_a_start_and_no_origin(tmp_path, mask) -> None:
    import mrcfile

    file = write(tmp_path / "cell_mask.mrc", mask)
    with mrcfile.open(file, "r+") as changed:
        changed.header.nxstart, changed.header.nystart, changed.header.nzstart = 100, 200, -50
    run_jobs([MeasureJob(file, None, tmp_path / "out", SMALL, OutputSettings(("ply",), points_nm=8.0))])
    body = trimesh.load(tmp_path / "out" / "cell_meshes" / "cell_membrane_001.ply", force="mesh")
    assert body.bounds.mean(axis=0) == pytest.approx([116 * VOXEL, 217 * VOXEL, -35 * VOXEL], abs=2)
    points = pd.read_csv(tmp_path / "out" / "cell_points.csv")
    for axis, start in zip("xyz", (100, 200, -50), strict=True):
        assert points[f"{axis}_angstrom"].to_numpy() == pytest.approx((points[f"{axis}_voxel"] + start) * VOXEL)


@pytest.mark.parametrize("kind", ["ply", "obj", "stl", "glb"])
def test_meshes_are_read_by_trimesh_closed_and_outward_in_angstrom_with_the_origin(
    measured: tuple[Path, MeasureJob], kind: str
) -> None:
    body = trimesh.load(measured[0] / "cell_meshes" / f"cell_membrane_001.{kind}", force="mesh")
    body.merge_vertices()
    assert body.is_watertight
    assert body.volume == pytest.approx(4 / 3 * np.pi * (12 * VOXEL) ** 3, rel=0.03)
    assert body.centroid == pytest.approx([16 * VOXEL + 100, 17 * VOXEL + 200, 15 * VOXEL + 300], abs=2)


def test_ply_and_vtp_carry_values_at_the_vertices(measured: tuple[Path, MeasureJob]) -> None:
    body = trimesh.load(measured[0] / "cell_meshes" / "cell_membrane_001.ply", process=False)
    data = body.metadata["_ply_raw"]["vertex"]["data"]
    assert np.median(data["mean_curvature_per_nm"]) == pytest.approx(1 / 9.6, rel=0.05)
    assert np.median(data["gaussian_curvature_per_nm2"]) == pytest.approx(1 / 9.6**2, rel=0.1)
    assert {"shape_index", "inclination_degrees", "distance_nm", "thickness_nm", "joined"} <= set(data.dtype.names)
    text = (measured[0] / "cell_meshes" / "cell_membrane_002.vtp").read_text()
    assert 'Name="mean_curvature_per_nm"' in text


@pytest.mark.parametrize(("kind", "reader"), [("ply", "PLY"), ("obj", "OBJ"), ("stl", "STL"), ("vtp", "XMLPolyData")])
def test_vtk_reads_meshes_in_angstrom_and_the_values_of_vtp(measured, kind: str, reader: str) -> None:
    vtk = pytest.importorskip("vtk")
    file = getattr(vtk, f"vtk{reader}Reader")()
    file.SetFileName(str(measured[0] / "cell_meshes" / f"cell_membrane_001.{kind}"))
    file.Update()
    bounds, data = np.array(file.GetOutput().GetBounds()).reshape(3, 2), file.GetOutput().GetPointData()
    assert bounds.mean(1) == pytest.approx([16 * VOXEL + 100, 17 * VOXEL + 200, 15 * VOXEL + 300], abs=4)
    names = {data.GetArrayName(index) for index in range(data.GetNumberOfArrays())}
    assert {"ply": "RGBA", "obj": "RGB", "vtp": "thickness_nm"}.get(kind) in names | {None}


@pytest.mark.parametrize("kind", ["ply", "stl"])  # of OBJ it takes the colours for coordinates
def test_meshio_reads_meshes_in_angstrom(measured, kind: str) -> None:
    meshio = pytest.importorskip("meshio")
    body = meshio.read(measured[0] / "cell_meshes" / f"cell_membrane_001.{kind}")
    middle = (body.points.min(0) + body.points.max(0)) / 2
    assert middle == pytest.approx([16 * VOXEL + 100, 17 * VOXEL + 200, 15 * VOXEL + 300], abs=4)
    assert ("thickness_nm" in body.point_data) == (kind == "ply")


def test_a_membrane_has_one_colour_in_picture_page_and_scene_and_no_other_has_it(measured, tmp_path: Path) -> None:
    colours = [colour_of(number) for number in range(1, 400)]
    assert len(set(colours)) == len(colours)
    lab = rgb2lab(np.array(colours[:40])[None].astype(np.uint8))[0]
    between = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[~np.eye(40, dtype=bool)]
    assert between.min() > 19  # CIE 1976, as the dozen that was repeated before; 2.3 can just be told apart
    folder, _ = measured
    scene, html = trimesh.load_scene(folder / "cell_membranes.glb"), (folder / "cell_measure.html").read_text()
    assert set(scene.geometry) == {"membrane_001", "membrane_002"}
    with Image.open(folder / "cell_measure.png") as image:
        picture = np.asarray(image).reshape(-1, 3).astype(float)
    shaded = picture[np.ptp(picture, axis=1) > 40]
    shaded /= shaded.max(axis=1, keepdims=True)
    for number in (1, 2):
        colour = np.array(colour_of(number))
        assert f"background:rgb({','.join(map(str, colour))})" in html
        body = scene.geometry[f"membrane_{number:03d}"]
        np.testing.assert_array_equal(np.unique(body.visual.vertex_colors, axis=0), [[*colour, 255]])
    drawn = np.abs(shaded - np.array(colour_of(1)) / max(colour_of(1))).max(axis=1) < 0.05
    assert drawn.mean() > 0.5  # the outer one hides the other


def test_thickness_not_to_rely_on_is_pale_and_apart_in_the_histogram() -> None:
    values, areas = np.array([3.0, 3.1, 4.0, np.nan, 4.2]), np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    axes = histogram(values, areas, "nm", np.array([True, True, False, False, False])).axes[0]
    heights = [sum(bar.get_height() for bar in container) for container in axes.containers]
    assert heights == [3, 20]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["reliable", "not reliable"]
    assert axes.containers[0][0].get_facecolor() != axes.containers[1][0].get_facecolor()
    (all_of_it,) = histogram(values, areas, "nm", np.ones(5, bool)).axes[0].containers
    assert sum(bar.get_height() for bar in all_of_it) == 23


def test_the_scene_of_values_holds_all_membranes_coloured_on_one_scale(measured: tuple[Path, MeasureJob]) -> None:
    folder, _ = measured
    scene = trimesh.load_scene(folder / "cell_membranes_values.glb")
    assert set(scene.geometry) == {"membrane_001", "membrane_002"}
    by = json.loads((folder / "cell_measure.json").read_text())["coloured_by"]
    for name, body in scene.geometry.items():
        file = trimesh.load(folder / "cell_meshes" / f"cell_{name}.ply", process=False)
        values = file.metadata["_ply_raw"]["vertex"]["data"][by]
        np.testing.assert_allclose(body.vertices, file.vertices, rtol=1e-5)
        np.testing.assert_array_equal(body.visual.vertex_colors, COLOUR_SCALES[by].colours(values))
        np.testing.assert_array_equal(file.visual.vertex_colors, body.visual.vertex_colors)


def test_colours_grow_with_the_value_and_are_grey_where_there_is_none() -> None:
    scale = COLOUR_SCALES["thickness_nm"]
    colours = scale.colours(np.array([1.0, 2.0, 4.0, 6.0, 9.0, np.nan]))
    key = dict(scale.key(3))
    assert [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue, _ in colours[1:4]] == list(key)
    assert list(key.values()) == ["2", "4", "6 nm"]
    assert colours[0].tolist() == colours[1].tolist()
    assert colours[4].tolist() == colours[3].tolist()
    assert colours[5].tolist() == [153, 153, 153, 255]


def test_the_command_ends_with_what_to_type_in_3d(tmp_path: Path, mask: np.ndarray, etsam) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}_etsam_predicted_mask.mrc", mask)
    outcome = etsam("measure", ".", "-o", "a b", "--min-area-nm2", "50")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1] == "in 3D:  chimerax 'a b/all_membranes.cxc'"
    scripts = {name: Path("a b", name).read_text() for name in ("one_membranes.cxc", "one_membranes_values.cxc")}
    assert [name.replace(".cxc", ".glb") in text for name, text in scripts.items()] == [True, True]
    assert ["key" in re.findall(r"^\w+", text, re.MULTILINE) for text in scripts.values()] == [False, True]
    for name in ("one", "two"):
        assert f"{name}_membranes_values.glb" in Path("a b/all_membranes.cxc").read_text()


def test_points_lie_on_the_mask_within_half_a_voxel_through_every_convention(
    measured: tuple[Path, MeasureJob], mask: np.ndarray
) -> None:
    folder = measured[0]
    relion5, relion4 = (starfile.read(folder / f"cell_points_relion{version}.star") for version in (5, 4))
    plain = pd.read_csv(folder / "cell_points.csv")
    size = np.array([SHAPE[2], SHAPE[1], SHAPE[0]])
    centred = relion5[[f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]].to_numpy()
    positions = {
        "relion5": centred / VOXEL + size / 2,
        "relion4": relion4[[f"rlnCoordinate{axis}" for axis in "XYZ"]].to_numpy() * 2.0 / VOXEL,
        "angstrom": (plain[[f"{axis}_angstrom" for axis in "xyz"]].to_numpy() - [100, 200, 300]) / VOXEL,
        "voxel": plain[[f"{axis}_voxel" for axis in "xyz"]].to_numpy(),
    }
    # the middle of the membrane is less than half a voxel from the known spheres
    for name, found in positions.items():
        away = [np.linalg.norm(found - centre, axis=1) for centre in ([16, 17, 15], [42, 17, 15])]
        off = np.minimum(np.abs(away[0] - 12), np.abs(away[1] - 8))
        assert off.max() < 0.5, name
        beside = distance_transform_edt(mask == 0)
        cells = np.rint(found[:, ::-1]).astype(int)
        assert beside[tuple(cells.T)].max() == 0, name
    assert set(relion5["rlnTomoName"]) == {"cell"}
    area = 4 * np.pi * (12**2 + 8**2) * VOXEL**2 / 100
    assert 0.5 * area / 16 < len(plain) < 1.2 * area / 16
    rot, tilt = np.radians(relion5["rlnAngleRot"]), np.radians(relion5["rlnAngleTilt"])
    axis = np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=1)
    first = plain["membrane"].to_numpy() == 1
    out = (positions["voxel"] - [16, 17, 15])[first] / 12
    assert np.einsum("ij,ij->i", axis[first], out).min() > 0.95


def test_an_offset_moves_points_outwards(tmp_path: Path, mask: np.ndarray) -> None:
    file = write(tmp_path / "mask.mrc", mask)
    output = OutputSettings((), points_nm=6.0, points_offset_nm=4.0)
    run_jobs([MeasureJob(file, None, tmp_path / "out", SMALL, output)])
    found = pd.read_csv(tmp_path / "out" / "mask_points.csv")
    first = found[found["membrane"] == 1][["x_voxel", "y_voxel", "z_voxel"]].to_numpy()
    assert np.linalg.norm(first - [16, 17, 15], axis=1).mean() == pytest.approx(17, abs=0.2)
    assert not (tmp_path / "out" / "mask_meshes").exists()


def test_points_have_the_name_that_the_star_file_of_relion_gives_the_tomogram(tmp_path, mask, etsam) -> None:
    write(tmp_path / "Tomograms" / "rec_TS_01.mrc", -mask.astype(np.float32))
    write(tmp_path / "rec_TS_01_etsam_predicted_mask.mrc", mask)
    (tmp_path / "tomograms.star").write_text(STAR)
    measured = ("measure", "rec_TS_01_etsam_predicted_mask.mrc", "--tomogram", "tomograms.star")
    flags = ("--points", "8", "--mesh-format", "none", "--min-area-nm2", "50", "--overwrite")
    for more, name in (((), "TS_01"), (("--tomogram-name", "own"), "own")):
        outcome = etsam(*measured, "-o", "out", *flags, *more)
        assert outcome.status == 0, outcome.stderr
        for version in (4, 5):
            table = starfile.read(tmp_path / "out" / f"rec_TS_01_points_relion{version}.star")
            assert set(table["rlnTomoName"]) == {name}


def test_points_for_relion_4_are_in_unbinned_pixels_of_the_star_or_a_warning_says_that_they_are_not(
    tmp_path, mask, etsam, caplog
) -> None:
    tomogram = write(tmp_path / "Tomograms" / "rec_TS_01.mrc", -mask.astype(np.float32))
    write(tmp_path / "rec_TS_01_etsam_predicted_mask.mrc", mask)
    (tmp_path / "tomograms.star").write_text(STAR)
    flags = ("--points", "8", "--mesh-format", "none", "--min-area-nm2", "50", "--overwrite", "-o", "out")
    for given, pixel in (("tomograms.star", 2.0), (tomogram, VOXEL)):
        assert "unbinned" not in caplog.text
        outcome = etsam("measure", "rec_TS_01_etsam_predicted_mask.mrc", "--tomogram", given, *flags)
        assert outcome.status == 0, outcome.stderr
        found = starfile.read(tmp_path / "out" / "rec_TS_01_points_relion4.star")["rlnCoordinateX"].to_numpy()
        voxels = pd.read_csv(tmp_path / "out" / "rec_TS_01_points.csv")["x_voxel"].to_numpy()
        assert found == pytest.approx(voxels * VOXEL / pixel, abs=1e-3)
    assert "--unbinned-pixel-size" in caplog.text


def test_points_outside_the_tomogram_are_left_out_and_counted(tmp_path: Path, mask: np.ndarray, caplog) -> None:
    file = write(tmp_path / "mask.mrc", mask)
    tables = []
    for offset in (0.0, 4.0):
        output = OutputSettings((), points_nm=3.0, points_offset_nm=offset)
        run_jobs([MeasureJob(file, None, tmp_path / "out", SMALL, output, overwrite=True)])
        tables.append(pd.read_csv(tmp_path / "out" / "mask_points.csv"))
    on, beside = tables
    places = beside[["z_voxel", "y_voxel", "x_voxel"]].to_numpy()
    assert (places > -0.51).all()
    assert (places < np.array(SHAPE) - 0.49).all()
    assert 0 < len(beside) < len(on)
    assert f"{len(on) - len(beside)} of {len(on)} points" in caplog.text
    assert len(starfile.read(tmp_path / "out" / "mask_points_relion5.star")) == len(beside)


def test_the_page_loads_nothing_and_explains_every_column(measured: tuple[Path, MeasureJob]) -> None:
    text = (measured[0] / "cell_measure.html").read_text(encoding="utf-8")
    for word in ("http://", "https://"):
        assert word not in text.replace("http://www.w3.org", "")
    assert text.count("data:image/png;base64") == 1
    assert text.count("data:image/svg+xml;base64") >= 2
    table = pd.read_csv(measured[0] / "cell_membranes.csv")
    assert all(f"<dt>{column}</dt>" in text for column in table)


@pytest.mark.parametrize(
    ("change", "token"),
    [
        (lambda mask: mask * 0, "empty"),
        (lambda mask: (mask * 0 + 1).astype(np.int8), "%"),
        (lambda mask: (mask + mask * (np.arange(SHAPE[2]) > 28)).astype(np.int8), "--instances"),
        (lambda mask: mask[:-1], "30 x 36 x 54"),
        (
            lambda mask: mask * (np.add.outer(np.add.outer(np.arange(31), np.arange(36)), np.arange(54)) < 31),
            "min-area",
        ),
    ],
)
def test_a_mask_that_cannot_be_measured_is_refused_and_nothing_is_left(tmp_path, mask, change, token) -> None:
    tomogram = write(tmp_path / "cell.mrc", mask.astype(np.float32))
    file = write(tmp_path / "cell_mask.mrc", change(mask))
    with pytest.raises(InputError, match=token):
        run_jobs([MeasureJob(file, tomogram, tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("labels", [False, True])
def test_a_filled_mask_says_that_its_shell_is_needed(tmp_path: Path, labels: bool) -> None:
    file = write(tmp_path / "cell_mask.mrc", (sphere(SHAPE, (15, 17, 26), 13) < 0).astype(np.int8))
    with pytest.raises(InputError, match=r"filled.*shell") as caught:
        run_jobs([MeasureJob(file, None, tmp_path / "out", labels=labels)])
    assert "--min-area-nm2" not in str(caught.value)


def test_a_mask_of_which_everything_is_dropped_is_refused(tmp_path, mask) -> None:
    file = write(tmp_path / "cell_mask.mrc", mask)
    with pytest.raises(InputError, match="--drop") as caught:
        run_jobs([MeasureJob(file, None, tmp_path / "out", replace(SMALL, drop="1,2"))])
    assert "--min-area-nm2" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("voxel", [1.0, None])
def test_without_a_believable_voxel_size_one_has_to_be_given(tmp_path, mask, voxel) -> None:
    file = write(tmp_path / "mask.mrc", mask, voxel)
    with pytest.raises(InputError, match="voxel-size"):
        run_jobs([MeasureJob(file, None, tmp_path / "out")])
    run_jobs([MeasureJob(file, None, tmp_path / "out", SMALL, OutputSettings(()), voxel_angstrom=8.0)])
    assert len(pd.read_csv(tmp_path / "out" / "mask_membranes.csv")) == 2


def test_an_interrupted_run_leaves_nothing_and_resume_keeps_what_is_complete(tmp_path, mask, monkeypatch) -> None:
    folder = tmp_path / "out"
    files = [write(tmp_path / f"{name}_etsam_predicted_mask.mrc", mask) for name in ("a", "b")]

    def jobs(**settings: object) -> list[MeasureJob]:
        return [MeasureJob(file, None, folder, SMALL, OutputSettings(()), **settings) for file in files]  # type: ignore[arg-type]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measure_run, "render", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_jobs(jobs())
    assert list(folder.iterdir()) == []
    run_jobs([jobs()[0]])
    before = (folder / "a_membranes.csv").stat().st_mtime_ns
    with pytest.raises(OutputError, match="a_"):
        run_jobs(jobs())
    assert len(run_jobs(jobs(resume=True))) == 1
    assert (folder / "a_membranes.csv").stat().st_mtime_ns == before
    combined = pd.read_csv(folder / COMBINED)
    assert combined["tomogram"].tolist() == ["a", "a", "b", "b"]
    changed = MeasureJob(files[0], None, folder, MeasureSettings(min_area_nm2=60), OutputSettings(()), resume=True)
    with pytest.raises(OutputError, match=r"a_measure\.json"):
        run_jobs([changed])


def test_a_result_of_which_a_mesh_is_gone_is_made_anew_by_resume(tmp_path: Path, mask: np.ndarray) -> None:
    file = write(tmp_path / "a_mask.mrc", mask)
    job = MeasureJob(file, None, tmp_path / "out", SMALL, OutputSettings(("ply",)), resume=True)
    assert len(run_jobs([job])) == 1
    assert run_jobs([job]) == []
    gone = tmp_path / "out" / "a_meshes" / "a_membrane_002.ply"
    gone.unlink()
    assert len(run_jobs([job])) == 1
    assert gone.exists()


def test_masks_are_found_in_a_folder_and_tomograms_by_name(tmp_path: Path) -> None:
    for name in (
        "a_etsam_predicted_mask.mrc",
        "a_etsam_predicted_post_processed_mask.mrc",
        "b_etsam_predicted_mask.mrc",
    ):
        (tmp_path / name).touch()
    found = [Path(path).name for path in find_masks([tmp_path])]
    assert found == ["a_etsam_predicted_post_processed_mask.mrc", "b_etsam_predicted_mask.mrc"]
    tomograms = [tmp_path / "b.mrc", tmp_path / "a.mrc"]
    assert [tomogram_of(tmp_path / name, tomograms).name for name in found] == ["a.mrc", "b.mrc"]
    with pytest.raises(InputError, match="c"):
        tomogram_of(tmp_path / "c_mask.mrc", tomograms)
    assert tomogram_of(tmp_path / "c_mask.mrc", tomograms[:1]) == tomograms[0]
    with pytest.raises(InputError, match="holds no predicted mask"):
        find_masks([tmp_path / ".."])


def test_a_lone_tomogram_of_another_name_is_not_taken_for_several_masks(tmp_path, mask, etsam) -> None:
    write(tmp_path / "a.mrc", -mask.astype(np.float32))
    for name in "ab":
        write(tmp_path / f"{name}_mask.mrc", mask)
    outcome = etsam("measure", "a_mask.mrc", "b_mask.mrc", "--tomogram", "a.mrc", "-o", "out")
    assert outcome.status == 1
    assert "called b" in outcome.message
    assert outcome.files == []


def test_of_masks_of_several_thresholds_the_one_of_the_run_is_measured_and_named(tmp_path: Path, caplog) -> None:
    for middle in ("_at_0.5", "_at_-1_post_processed", "", "_split_processing"):
        (tmp_path / f"a_etsam_predicted{middle}_mask.mrc").touch()
    (tmp_path / "b_etsam_predicted_mask.mrc").touch()
    assert [path.name for path in find_masks([tmp_path])] == [
        "a_etsam_predicted_mask.mrc",
        "b_etsam_predicted_mask.mrc",
    ]
    (line,) = caplog.messages
    assert line.startswith("a_etsam_predicted_mask.mrc is measured")
    assert "_at_0.5_mask" in line
    (tmp_path / "a_etsam_predicted_post_processed_mask.mrc").touch()
    assert find_masks([tmp_path])[0].name == "a_etsam_predicted_post_processed_mask.mrc"


def test_a_tomogram_or_logits_in_place_of_a_mask_are_named(tmp_path: Path, mask: np.ndarray) -> None:
    file = write(tmp_path / "cell.mrc", -mask.astype(np.float32))
    with pytest.raises(InputError, match=r"cell\.mrc"):
        run_jobs([MeasureJob(file, None, tmp_path / "out")])


def test_a_format_of_meshes_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="blend"):
        check_formats(["ply", "blend"])
    with pytest.raises(ConfigError, match="ply, obj"):
        check_formats(["ply", ""])


def test_a_file_for_deposition_holds_every_membrane_where_the_tomogram_is(tmp_path: Path, mask: np.ndarray) -> None:
    sfftkrw = pytest.importorskip("sfftkrw")
    tomogram = write(tmp_path / "cell.mrc", -mask.astype(np.float32), origin=100.0)
    file = write(tmp_path / "cell_mask.mrc", mask)
    run_jobs([MeasureJob(file, tomogram, tmp_path / "out", SMALL, OutputSettings(("sff", "ply")))])
    folder = tmp_path / "out" / "cell_meshes"
    assert {path.name for path in folder.iterdir()} == {
        "cell_membranes.hff",
        "cell_membrane_001.ply",
        "cell_membrane_002.ply",
    }
    read = sfftkrw.SFFSegmentation.from_file(str(folder / "cell_membranes.hff"))
    assert (read.primary_descriptor, read.version) == ("mesh_list", "0.8.0.dev1")
    box = read.bounding_box
    assert (box.xmin, box.ymax, box.zmax) == pytest.approx((100, 200 + 36 * 8, 300 + 31 * 8))
    assert [segment.biological_annotation.name for segment in read.segment_list] == ["membrane 1", "membrane 2"]
    for number, segment in enumerate(read.segment_list, 1):
        (body,) = segment.mesh_list
        vertices, faces = body.vertices.data_array, body.triangles.data_array
        own = trimesh.Trimesh(vertices, faces, process=False)
        ply = trimesh.load(folder / f"cell_membrane_00{number}.ply", process=False)
        assert own.is_watertight
        assert own.volume == pytest.approx(ply.volume, rel=1e-4)
        assert own.bounds == pytest.approx(ply.bounds, abs=0.01)
    run_jobs([MeasureJob(file, tomogram, tmp_path / "out", SMALL, OutputSettings(("sff",)), overwrite=True)])
    assert [path.name for path in folder.iterdir()] == ["cell_membranes.hff"]


def test_after_a_prediction_the_cleaned_mask_is_measured_beside_it(tmp_path: Path, mask: np.ndarray) -> None:
    tomogram = write(tmp_path / "cell.mrc", -mask.astype(np.float32))
    write(tmp_path / "cell_etsam_predicted_mask.mrc", mask)
    cleaned = mask.copy()
    cleaned[:, :, 31:] = 0
    write(tmp_path / "cell_etsam_predicted_post_processed_mask.mrc", cleaned)
    (tmp_path / "cell_etsam_predicted_record.json").write_text('{"settings": {}}')
    given = [f"input=[{tomogram},{write(tmp_path / 'failed.mrc', -mask)}]", f"output_dir={tmp_path}", "postprocess=all"]
    after_prediction(compose_config("predict", [*given, "voxel_size=20"]))  # `failed` has no record
    table = pd.read_csv(tmp_path / "cell_membranes.csv")
    assert json.loads((tmp_path / "cell_measure.json").read_text())["voxel_angstrom"] == 20
    assert len(table) == 1
    assert "thickness_nm" in table
