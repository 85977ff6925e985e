"""The reader and the panel in napari; skipped where napari or Qt is not installed."""

import json
import os
import time
from importlib import import_module
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from conftest import ORIGIN_ZYX, SHAPE, VOXEL_SIZE_ZYX, grey, write_mrc

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
napari = pytest.importorskip("napari")
pytest.importorskip("pytestqt")

from etsam.data.manifest import read_manifest  # noqa: E402
from etsam.errors import InputError  # noqa: E402
from etsam.paths import resource_path  # noqa: E402
from etsam.viewer.lazy_array import LazyArray  # noqa: E402
from etsam.viewer.napari_reader import get_reader  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of napari and of what it brings
TOY = "net=tiny_test weights=random trainer=cpu write_preview=false weights.seed=1 trainer.precision=32-true"


@pytest.fixture
def viewer(work):
    from napari.components import ViewerModel

    write_mrc("tomo.mrc")
    viewer = ViewerModel()
    ((data, options, kind),) = get_reader(str(work / "tomo.mrc"))(str(work / "tomo.mrc"))
    assert kind == "image"
    viewer.add_image(data, **options)
    return viewer


@pytest.fixture
def panel(viewer, qtbot):
    from etsam.viewer.napari_widget import SegmentWidget

    panel = SegmentWidget(viewer)
    qtbot.addWidget(panel)
    panel.weights.addItem("random")
    panel.weights.setCurrentText("random")
    panel.more.setText(TOY.replace("weights=random ", ""))
    panel.folder.setText("out")
    yield panel
    panel._slab.cleanup()  # Qt may destroy the panel only after Python has collected it, which warns in another test


def wait(panel, qtbot):
    qtbot.waitUntil(lambda: not panel._timer.isActive(), timeout=300_000)


def test_the_reader_opens_lazily_with_scale_in_nm(viewer):
    layer = viewer.layers["tomo"]
    assert isinstance(layer.data, LazyArray)
    np.testing.assert_allclose(layer.scale, np.array(VOXEL_SIZE_ZYX) / 10)
    np.testing.assert_allclose(layer.translate, np.array(ORIGIN_ZYX) / 10)
    assert [str(unit) for unit in layer.units] == ["nanometer"] * 3
    np.testing.assert_array_equal(layer.data[3], grey()[3])
    assert get_reader("notes.txt") is None


def test_the_manifest_of_the_plugin_is_valid_and_its_names_exist():
    from importlib.resources import files

    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(str(files("etsam.viewer") / "napari.yaml"))
    for command in manifest.contributions.commands:
        module, _, name = str(command.python_name).partition(":")
        assert callable(getattr(import_module(module), name))


def test_a_press_without_a_tomogram_says_what_to_do(panel, viewer):
    viewer.layers.clear()
    panel.start_button.click()
    assert "open one first" in panel.told.text()


def test_a_damaged_file_is_refused_by_its_name(work):
    (work / "bad.mrc").write_bytes(write_mrc("tomo.mrc").read_bytes()[:3000])
    with pytest.raises(InputError, match=r"bad\.mrc.*truncated"):
        get_reader("bad.mrc")("bad.mrc")


def test_measured_membranes_carry_their_table(panel, viewer, qtbot, work):
    z, y, x = np.indices((40, 44, 48))
    distance = np.sqrt((z - 20) ** 2 + (y - 22) ** 2 + (x - 23) ** 2)
    with mrcfile.new("ball.mrc") as file:
        file.set_data(distance.astype(np.float32))
        file.voxel_size = 10.0
    ((data, options, _),) = get_reader("ball.mrc")("ball.mrc")
    viewer.add_image(data, **options)
    panel.tomogram.setCurrentText("ball")
    viewer.layers.selection.active = viewer.add_labels((np.abs(distance - 14) <= 2).astype(np.uint8))
    with qtbot.waitSignal(panel._measured, timeout=120_000):
        panel.measure_button.click()
    layer = viewer.layers["measured membranes"]
    (row,) = layer.metadata["table"].to_dict("records")
    assert row["area_nm2"] == pytest.approx(4 * np.pi * 14**2, rel=0.05)
    assert list(layer.features["index"]) == [0, row["membrane"]]
    assert set(np.unique(layer.data)) == {0, 1}


@pytest.mark.slow
def test_from_opening_to_saving(panel, viewer, qtbot, predict, work):
    panel.start_button.click()
    wait(panel, qtbot)
    assert "membrane" in panel.told.text(), panel.told.text()
    assert (
        predict("tomo.mrc", "weights.seed=1", "--store-logits", "write_preview=false", "output_infix=_cli").status == 0
    )
    logits = mrcfile.read(work / "out" / "tomo_etsam_predicted_cli_logits.mrc")
    np.testing.assert_array_equal(mrcfile.read(work / "out" / "tomo_etsam_predicted_logits.mrc"), logits)
    record = json.loads((work / "out" / "tomo_etsam_predicted_record.json").read_text())
    assert panel.threshold.value() == record["settings"]["stage2"]["threshold"]

    viewer.layers.selection.clear()
    level = round(float(np.median(logits)), 2)
    panel.threshold.setValue(level)
    np.testing.assert_array_equal(panel.mask(), logits > level)
    panel.number()
    assert viewer.layers["membranes"].data.max() >= 1
    viewer.layers.selection.clear()
    corrected = panel.correct()
    corrected.data[1, 4:8, 5:9] = 1
    viewer.layers.selection.active = corrected
    panel.save("saved.mrc")
    np.testing.assert_array_equal(mrcfile.read("saved.mrc"), corrected.data > 0)
    assert mrcfile.open("saved.mrc", header_only=True).voxel_size.z == VOXEL_SIZE_ZYX[0]
    panel.add(str(work / "manifest.csv"))
    (sample,) = read_manifest(work / "manifest.csv")
    np.testing.assert_array_equal(mrcfile.read(sample.target_mask), corrected.data > 0)

    panel.start_button.click()  # again: what exists stays
    wait(panel, qtbot)
    assert "exists already" in panel.told.text()


@pytest.mark.slow
def test_fields_for_better_masks_are_settings_of_the_command(panel, viewer, qtbot, work):
    from etsam.cli.main import build_parser
    from etsam.cli.predict import predict_overrides

    write_mrc("half of tomo.mrc", grey(seed=1))
    panel.better.setCurrentIndex(1)
    panel.unsure.setChecked(True)
    panel.also.setText("half of tomo.mrc")
    args, rest = build_parser().parse_known_args(["predict", "tomo.mrc", *panel._all_arguments()])
    overrides = predict_overrides(args, rest)
    assert {"views=4", "write_uncertainty=true", "also=['half of tomo.mrc']"} <= set(overrides)
    panel.better.setCurrentIndex(0)
    panel.start_button.click()
    wait(panel, qtbot)
    assert "membrane" in panel.told.text(), panel.told.text()
    shown = viewer.layers["tomo_etsam_predicted_uncertainty"]
    assert shown.data.shape == SHAPE
    assert not shown.visible


@pytest.mark.slow
def test_a_preview_shows_some_slices(panel, viewer, qtbot):
    panel.preview_button.click()
    wait(panel, qtbot)
    assert viewer.layers["preview"].data.shape == SHAPE
    assert "preview" in panel.told.text()


@pytest.mark.slow
def test_cancel_in_mid_run(panel, viewer, qtbot, work):
    write_mrc("long.mrc", grey((80, 90, 110)))
    ((data, options, _),) = get_reader("long.mrc")("long.mrc")
    viewer.add_image(data, **options)
    panel.tomogram.setCurrentText("long")
    panel.more.setText(panel.more.text() + " tiles.size_voxels=24")
    panel.start_button.click()
    started = time.monotonic()
    qtbot.waitUntil(lambda: panel.bar.value() > 1 or time.monotonic() - started > 200, timeout=240_000)
    assert " of 80" in panel.bar.format()
    panel.cancel_button.click()
    wait(panel, qtbot)
    assert "cancelled" in panel.told.text()
    assert [path.name for path in (work / "out").iterdir()] == ["long_etsam_predicted_log.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["damaged", "without a GPU"])
def test_a_run_that_cannot_be_is_told_in_one_line_and_leaves_its_log(panel, qtbot, work, trouble):
    import torch

    token = "truncated" if trouble == "damaged" else "GPU"
    if trouble == "damaged":  # after it was opened
        (work / "tomo.mrc").write_bytes((work / "tomo.mrc").read_bytes()[:3000])
    elif torch.cuda.is_available():
        pytest.skip("there is a GPU")
    else:
        panel.more.setText(panel.more.text().replace("trainer=cpu ", ""))
        panel.device.setCurrentText("gpu")
    panel.start_button.click()
    wait(panel, qtbot)
    told = panel.told.text()
    assert token in told
    assert "\n" not in told
    assert "Traceback" not in told
    assert not panel.cancel_button.isEnabled()
    assert all(path.name.endswith("_log.txt") for path in (work / "out").glob("*"))


@pytest.mark.slow
def test_the_demo_from_opening_to_saving_equals_the_command_line_and_its_correction_trains(panel, viewer, qtbot, etsam):
    demo = str(resource_path("data", "demo", "hiv_vlps.mrc"))
    ((data, options, _),) = get_reader(demo)(demo)
    viewer.add_image(data, **options)
    panel.tomogram.setCurrentText("hiv_vlps")
    panel.weights.setCurrentText("nano")
    panel.clean.setCurrentText("none")
    panel.more.setText("write_page=false write_preview=false")
    panel.device.setCurrentText("cpu")
    panel.start_button.click()
    wait(panel, qtbot)
    assert "% membrane" in panel.told.text(), panel.told.text()
    flags = ("--post-process", "--gpu", "cpu", "write_page=false", "write_preview=false")
    assert etsam("predict", demo, "-o", "command", "--weights", "nano", *flags).status == 0
    viewer.layers.selection.clear()
    panel.save("saved.mrc")
    mask = mrcfile.read("command/hiv_vlps_etsam_predicted_mask.mrc")
    np.testing.assert_array_equal(mrcfile.read("saved.mrc"), mask)
    np.testing.assert_array_equal(mrcfile.read("out/hiv_vlps_etsam_predicted_mask.mrc"), mask)
    with mrcfile.open("saved.mrc", header_only=True) as saved, mrcfile.open(demo, header_only=True) as opened:
        assert saved.voxel_size == opened.voxel_size

    panel.clean_up()
    viewer.layers.selection.active = viewer.layers["cleaned mask"]
    panel.save("cleaned.mrc")
    cleaned = mrcfile.read("command/hiv_vlps_etsam_predicted_post_processed_mask.mrc")
    np.testing.assert_array_equal(mrcfile.read("cleaned.mrc"), cleaned)

    viewer.layers.selection.clear()
    panel.threshold.setValue(-0.4)
    panel.save("lower.mrc")
    assert etsam("threshold", "out/hiv_vlps_etsam_predicted_logits.mrc", "--at", "-0.4").status == 0
    (lower,) = (path for path in Path("out").glob("*-0.4*mask.mrc"))
    np.testing.assert_array_equal(mrcfile.read("lower.mrc"), mrcfile.read(lower))

    viewer.layers.selection.clear()
    corrected = panel.correct()
    corrected.data[20:24, 30:60, 40:50] = 0
    viewer.layers.selection.active = corrected
    panel.add("manifest.csv")
    assert "to judge by, too" in panel.told.text()
    (sample,) = read_manifest(Path("manifest.csv"))
    np.testing.assert_array_equal(mrcfile.read(sample.target_mask), corrected.data)
    with mrcfile.new("other.mrc") as file:
        file.set_data(mrcfile.read(demo)[24:40])
        file.voxel_size = sample.voxel_size_angstrom
    ((data, options, _),) = get_reader("other.mrc")("other.mrc")
    viewer.add_image(data, **options)
    panel.tomogram.setCurrentText("other")
    viewer.layers.selection.active = viewer.add_labels(corrected.data[24:40])
    panel.split.setCurrentText("to judge by")
    panel.add("manifest.csv")
    assert "etsam finetune manifest.csv" in panel.told.text()
    one_step = ("trainer.max_steps=1", "trainer.limit_val_batches=1", "trainer.limit_train_batches=1")
    outcome = etsam("finetune", "manifest.csv", *one_step)
    assert outcome.status == 0, outcome.stderr
    assert {"finetuned_stage1", "finetuned_stage2"} <= {path.name for path in Path("runs").iterdir()}
