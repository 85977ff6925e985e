"""The script that measures options for better masks, and fits their constants."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_mrc

from etsam.inference.axes import SideViews
from etsam.paths import resource_path

BENCHMARKS = resource_path("configs").parent / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("needs a checkout", allow_module_level=True)

SHAPE = (20, 31, 43)
OFFSET, SLOPE, SOFTENING = -0.4, 0.8, 0.3


@pytest.fixture
def better_masks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import better_masks

    return better_masks


@pytest.fixture
def measured(tmp_path):
    """Set and logits of tomograms whose truth is drawn from the chances that the logits stand for."""
    random, entries = np.random.default_rng(0), {}
    for number in range(4):
        name = f"simulated_{number}"
        logits = random.normal(-1, 3, SHAPE).clip(-10, 10)
        spread = random.uniform(0, 3, SHAPE)
        chance = 1 / (1 + np.exp(-(OFFSET + SLOPE * logits) / np.sqrt(1 + SOFTENING * spread**2)))
        truth = random.random(SHAPE) < chance
        mask = write_mrc(tmp_path / "set" / f"{name}_membrane.mrc", truth.astype(np.int8))
        write_mrc(tmp_path / "set" / f"{name}.mrc")
        entries[name] = {"group": "val_plain", "kind": "domain", "mask": str(mask)}
        for option in ("plain", "along_y", "along_x"):
            folder = tmp_path / "logits" / option
            folder.mkdir(parents=True, exist_ok=True)
            seen = logits if option == "plain" else np.where(truth & (random.random(SHAPE) < 0.7), 4, -10)
            np.save(folder / f"{name}.npy", seen.astype(np.float16))
            np.save(folder / f"{name}.spread.npy", spread.astype(np.float16))
    (tmp_path / "set/set.json").write_text(json.dumps(entries))
    return tmp_path


def command(better_masks, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["better_masks.py", *map(str, words)])
    better_masks.main()


def test_fit_finds_the_calibration_and_that_side_views_count(better_masks, measured, monkeypatch, capsys):
    command(better_masks, monkeypatch, "fit", measured / "set", measured / "logits")
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    np.testing.assert_allclose(json.loads(told["calibration"]), [OFFSET, SLOPE, SOFTENING], atol=0.08)
    assert told["tomograms"].startswith("2, 2 ")  # the other two are held out
    assert SideViews(*json.loads(told["side_views"])).weight == max(better_masks._WEIGHTS)


def test_score_compares_options_on_the_same_tomograms_and_says_how_well_calibrated(better_masks, measured, monkeypatch):
    out = measured / "table"
    settings = [f"weights.calibration=[{OFFSET},{SLOPE},{SOFTENING}]", "weights.side_views=[0.4,-1,0]"]
    (measured / "logits/along_x/simulated_3.npy").unlink()
    command(better_masks, monkeypatch, "score", measured / "set", measured / "logits", *settings, "--out", out)
    with Path(f"{out}.csv").open(newline="") as file:
        found = {(row["option"], row["measure"]): row["value"] for row in csv.DictReader(file)}
    assert found["plain", "tomograms"] == "4"
    assert found["axes", "tomograms"] == found["plain, as axes", "tomograms"] == "3"
    assert float(found["axes", "val_plain, Dice"]) > float(found["plain, as axes", "val_plain, Dice"]) + 0.05
    assert float(found["plain", "expected calibration error"]) < 0.02
    assert 0.3 < float(found["plain", "surface Dice within 2 voxels, mean of those with truth"]) <= 1
    assert found["plain", "recall of surfaces whose normal lies 0, 30, 60 degrees and more from Z"].count(".") == 3
    assert "| uncertainty" in Path(f"{out}.md").read_text()
