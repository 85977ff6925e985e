"""Robustness curves: the same specimens at every value, intervals by hand, and the whole by the real command line."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from command_line import status_of

from etsam.errors import ConfigError
from etsam.evaluation.compare.statistics import mean_interval
from etsam.evaluation.metrics.results import TomogramResult
from etsam.evaluation.robustness.run import curve_table, tomogram_table
from etsam.sources.simulation.paired import Conditions, PairedSimulator
from etsam.sources.simulation.settings import SpecimenSettings
from etsam.sources.simulation.simulator import AcquisitionSettings, Simulator
from etsam.sources.simulation.specimen import draw_specimen, resample

pytestmark = pytest.mark.workshop
SHAPE = (16, 40, 48)
USUAL = Conditions(snr=0.4, max_tilt_degrees=60, voxel_size_angstrom=10, thickness_angstrom=35, contrast="dark")
VARY = {
    "snr": [0.05, 2],
    "max_tilt_degrees": [30],
    "voxel_size_angstrom": [8, 16],
    "thickness_angstrom": [25, 50],
    "contrast": ["dark", "bright"],
}
STEADY = AcquisitionSettings(
    tilt_step_degrees=(5, 5), reconstructions={"wbp": 1}, filters={"none": 1}, misalignment_voxels=(0, 0)
)


@pytest.fixture(scope="module")
def paired():
    specimen = SpecimenSettings(empty_probability=0, radius_angstrom=(80, 160))
    return PairedSimulator(Simulator(SHAPE, specimen=specimen, acquisition=STEADY), USUAL, VARY, tomograms=2)


def test_every_curve_has_its_values_in_order_and_the_baseline(paired):
    assert paired.curves["snr"] == {0.05: "snr_0.05", 0.4: "baseline", 2: "snr_2"}
    assert paired.curves["contrast"] == {"dark": "baseline", "bright": "contrast_bright"}
    assert len(paired.points) == 1 + 2 + 1 + 2 + 2 + 1
    assert paired.points["max_tilt_degrees_30"] == replace(USUAL, max_tilt_degrees=30)
    assert paired.grid_angstrom == 8


def test_noise_tilts_and_contrast_leave_the_specimen_as_it_is(paired):
    usual = paired.tomogram("baseline", 1)
    assert usual.tomogram.shape == SHAPE
    for point in ("snr_0.05", "max_tilt_degrees_30", "contrast_bright"):
        other = paired.tomogram(point, 1)
        np.testing.assert_array_equal(other.instances, usual.instances)
        assert not np.array_equal(other.tomogram, usual.tomogram)
    both = paired.tomogram("contrast_bright", 1).tomogram + usual.tomogram
    np.testing.assert_allclose(both, both.mean(), atol=1e-3)  # turned around its mean
    assert not np.array_equal(paired.tomogram("baseline", 0).mask, usual.mask)


def test_the_noise_of_a_specimen_is_that_of_the_baseline_times_a_factor(paired):
    low, usual, high = (paired.tomogram(name, 0).tomogram for name in ("snr_0.05", "baseline", "snr_2"))
    density = paired.tomogram("baseline", 0).mask
    centred = [part - part.mean() for part in (low, high)]
    alike = [float(np.corrcoef(part.ravel(), (usual - usual.mean()).ravel())[0, 1]) for part in centred]
    assert min(alike) > 0.8  # with noise of its own the correlation is below
    contrasts = [part[density == 0].mean() - part[density == 1].mean() for part in (low, usual, high)]
    assert contrasts == sorted(contrasts)


def test_membranes_of_another_thickness_lie_in_the_same_places(paired):
    thin, thick = (paired.specimen(replace(USUAL, thickness_angstrom=value), 0) for value in (25, 50))
    np.testing.assert_array_equal(thin.nearest, thick.nearest)
    assert thin.instances.max() == thick.instances.max() > 0
    inside = thin.instances > 0
    np.testing.assert_array_equal(thick.instances[inside], thin.instances[inside])
    assert np.count_nonzero(thick.mask) > 1.4 * np.count_nonzero(thin.mask)
    np.testing.assert_array_equal(thick.instances > 0, thick.nearest * 8 <= 25)


def test_a_coarser_grid_shows_the_same_specimen(paired):
    fine = paired.specimen(USUAL, 0)
    coarse = resample(fine, (10, 25, 30), 16.0)
    assert coarse.voxel_size_angstrom == 16
    assert coarse.density.sum() * 2**3 == pytest.approx(fine.density.sum(), rel=0.05)
    middles = np.argwhere(coarse.nearest < 0.4)
    assert len(middles) > 10
    on_fine = np.rint((middles - (9 / 2, 24 / 2, 29 / 2)) * 2 + [(side - 1) / 2 for side in fine.density.shape])
    at = tuple(np.clip(on_fine.astype(int), 0, np.array(fine.density.shape) - 1).T)
    assert (fine.nearest[at] < 2.2).all()
    np.testing.assert_array_equal(coarse.instances[tuple(middles.T)], fine.instances[at])
    np.testing.assert_array_equal(coarse.mask == 1, coarse.nearest <= 1.25)  # 2.5 voxels are the least
    assert resample(fine, fine.density.shape, 8.0) is fine
    with pytest.raises(ValueError, match="4 Å"):
        resample(fine, (40, 100, 120), 4.0)


def test_room_for_their_own_thickness_is_what_membranes_have_without_a_setting():
    settings = SpecimenSettings(thickness_angstrom=(40, 40))
    plain, roomy = (
        draw_specimen(replace(settings, room_angstrom=room), SHAPE, 10.0, np.random.default_rng(3))
        for room in (None, 40)
    )
    np.testing.assert_array_equal(plain.density, roomy.density)


def test_means_intervals_and_paired_differences(paired):
    five = replace(paired, vary={"snr": [0.05, 2]}, tomograms=5)
    dice = {"baseline": [0.8, 0.7, 0.9, 0.6, 0.75], "snr_0.05": [0.3, 0.25, 0.45, 0.1, np.nan], "snr_2": [0.9] * 5}
    results = [
        TomogramResult("m", f"robustness/{point}_{i:04d}", "" if np.isfinite(v) else "lost", {"dice": v})
        for point, values in dice.items()
        for i, v in enumerate(values)
    ]
    table = curve_table(five, tomogram_table(five, results))
    assert list(table["value"]) == [0.05, 0.4, 2]
    assert list(table["is_baseline"]) == [False, True, False]
    low, usual, high = (row for _, row in table.iterrows())
    assert (low["n"], low["n_pairs"], usual["n"]) == (4, 4, 5)
    assert low["mean"] == pytest.approx(0.275)
    assert low["difference"] == pytest.approx(np.mean([-0.5, -0.45, -0.45, -0.5]))
    assert (low["low"], low["high"]) == mean_interval(np.array(dice["snr_0.05"][:4]))
    assert low["difference_high"] - low["difference_low"] < 0.1 < low["high"] - low["low"]  # what pairing is for
    assert (usual["difference"], usual["difference_low"], usual["difference_high"]) == (0, 0, 0)
    assert (high["low"], high["high"]) == (0.9, 0.9)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"vary": {"dose": [1]}}, "dose"),
        ({"vary": {"snr": []}}, "vary"),
        ({"vary": {"snr": 3}}, "vary.snr=3"),
        ({"vary": {"snr": [0]}}, "snr=0"),
        ({"vary": {"max_tilt_degrees": [100]}}, "max_tilt_degrees=100"),
        ({"vary": {"contrast": ["grey"]}}, "contrast=grey"),
        ({"vary": {"voxel_size_angstrom": [40]}}, r"\[4, 10, 12\]"),
        ({"tomograms": 0}, "tomograms=0"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(paired, change, part):
    with pytest.raises(ConfigError, match=part):
        replace(paired, **change)


# --- the command ------------------------------------------------------------------------------------------------------

FEW = [
    "net=tiny_test",
    "weights=random",
    "trainer=cpu",
    "weights.seed=1",
    "stage2.threshold=-0.03",
    "tomograms=1",
    "simulator.shape=[12,40,48]",
    "output_dir=out",
]
FEW += ["vary.snr=[0.1]", "vary.contrast=[bright]", "simulator.acquisition.tilt_step_degrees=[6,6]"]
FEW += [f"vary.{factor}=[]" for factor in ("max_tilt_degrees", "voxel_size_angstrom", "thickness_angstrom")]


def table(folder, name):
    return pd.read_csv(folder / "out" / name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a command that has ended well."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert status_of(["robustness", *FEW]) == 0
    return folder / "out"


def test_the_command_writes_curves_and_goes_on_where_it_stopped(etsam, work, finished):
    shutil.copytree(finished, work / "out")
    curves, tomograms = table(work, "curves.csv"), table(work, "tomograms.csv")
    assert list(curves["factor"]) == ["snr"] * 4 + ["contrast"] * 4
    assert set(curves["metric"]) == {"dice", "surface_dice"}
    assert tomograms["dice"].between(0.1, 0.9).all()
    assert tomograms["dice"][0] != tomograms["dice"][1]
    assert list(tomograms["point"]) == ["baseline", "snr_0.1", "contrast_bright"]
    for row in curves.to_dict(orient="records"):
        point = "baseline" if row["is_baseline"] else f"{row['factor']}_{row['value']}"
        assert row["mean"] == tomograms.set_index("point").loc[point, row["metric"]]
    assert (work / "out/robustness.png").read_bytes().startswith(b"\x89PNG")
    page = (work / "out/robustness.html").read_text()
    assert page.count("data:image/svg+xml") == 2
    assert "http" not in page.replace("http-equiv", "").split("<footer")[0]
    assert json.loads((work / "out/robustness.json").read_text())["settings"]["baseline"]["snr"] == 0.4

    made = {path: path.stat().st_mtime_ns for path in (work / "out").glob("*/**/*.*")}
    assert "robustness.html" in etsam("robustness", *FEW).message
    lost = work / "out/simulated/snr_0.1_0000.json"
    before = lost.with_suffix(".mrc").read_bytes()[1024:]
    (work / "out/tomograms/etsam/robustness__contrast_bright_0000.json").unlink()
    two = ["--method", "etsam=weights.seed=1", "--method", "other=weights.seed=8 stage2.threshold=-0.01"]
    assert etsam("robustness", *two, *FEW, "resume=true").status == 0
    both = table(work, "tomograms.csv").set_index(["method", "point"])["dice"]
    assert dict(both["etsam"]) == dict(tomograms.set_index("point")["dice"])
    assert set(both["other"].index) == {"baseline", "snr_0.1", "contrast_bright"}
    kept = {path for path, time in made.items() if path.stat().st_mtime_ns == time}
    assert {path.name for path in set(made) - kept} == {
        "manifest.csv", "robustness__contrast_bright_0000.json", "robustness__contrast_bright_0000.npz"
    }  # fmt: skip
    line = etsam("robustness", *FEW, "resume=true", "baseline.snr=0.5").message
    assert "simulated" in line
    assert lost.with_suffix(".mrc").read_bytes()[1024:] == before


def test_predictions_of_another_tool_on_the_simulated_tomograms_are_scored(etsam, work, finished):
    shutil.copytree(finished, work / "out")
    (work / "masks").mkdir()
    rows = list(csv.DictReader((work / "out/simulated/manifest.csv").read_text().splitlines()))
    assert {row["split"] for row in rows} == {"test"}
    for path in (work / "out/simulated").glob("*_membrane.mrc"):
        target = work / "masks" / path.name.replace("_membrane", "")
        target.write_bytes(path.read_bytes())
    outcome = etsam("robustness", *FEW, "resume=true", "predictions=masks")
    assert outcome.status == 0, outcome.stderr
    assert set(table(work, "curves.csv")["mean"]) == {1.0}


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["vary.dose=[1]"], "vary.dose"),
        (["baseline.snr=-1"], "snr=-1"),
        (["--method", "nano"], "nano"),
        (["--method", "a=net=nano", "--method", "a=net=nano"], "called a"),
        (["trainer.devices=2"], "trainer.devices=2"),
        (
            ["--method", "a=", "--method", "b=", "write_predictions=true"],
            "write_predictions",
        ),
        (["baseline.voxel_size_angstrom=ten"], "baseline.voxel_size_angstrom=ten"),
        (["tomograms=1.5"], "tomograms=1.5"),
        (["weights=files", "weights.stage1=no.pt", "weights.stage2=no.pt"], "no.pt"),
    ],
)
def test_what_does_not_fit_ends_with_one_line_and_no_file(etsam, settings, part):
    outcome = etsam("robustness", *FEW, *settings)
    assert outcome.status == 1
    assert part in outcome.message
    assert outcome.files == []
