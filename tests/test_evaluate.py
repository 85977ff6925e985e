"""`etsam evaluate` through the real command line: tables, failures, resuming, predictions of other tools."""

import csv
import json
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
from conftest import SHAPE, VOXEL_SIZE_ZYX, grey, write_mrc
from omegaconf import OmegaConf

from etsam.app import compose_config
from etsam.errors import OutputError
from etsam.evaluation.data import EvaluationData
from etsam.evaluation.metrics.results import InclinationRow, SlicePicture, TomogramResult
from etsam.evaluation.result_store import ResultStore
from etsam.inference import tiles
from etsam.labels import overlap_scores, stat_counts
from etsam.paths import resource_path
from etsam.postprocess import steps
from etsam.volume import Volume, read_volume

TINY = ["net=tiny_test", "weights=random", "trainer=cpu", "weights.seed=1", "stage2.threshold=-0.075", "output_dir=out"]
ROWS = ["dataset_id,run_id,split,tomogram,target_mask", "lab,a,val,a.mrc,a_mask.mrc", "lab,b,val,b.mrc,b_mask.mrc"]


def truth(seed=0):
    mask = np.zeros(SHAPE, np.int8)
    mask[:, SHAPE[1] // 2 : SHAPE[1] // 2 + 3] = 1
    mask[0, : 3 + seed] = -1  # not annotated
    return mask


def binary(seed=0):
    return (truth(seed) == 1).astype(np.int8)


@pytest.fixture
def manifest(work):
    """Two tomograms of a `val` split, with masks, and one of `train`."""
    for seed, name in enumerate("ab"):
        write_mrc(work / f"{name}.mrc", grey(seed=seed))
        write_mrc(work / f"{name}_mask.mrc", truth(seed))
    (work / "manifest.csv").write_text("\n".join([*ROWS, "lab,c,train,c.mrc,c_mask.mrc"]) + "\n")
    return work


@pytest.fixture
def evaluate(etsam, manifest):
    return lambda *settings: etsam("evaluate", "data.manifest=manifest.csv", "output_dir=out", *settings)


def table(folder, name="out"):
    rows = csv.DictReader((folder / name / "scores.csv").read_text().splitlines())
    return {(row["method"], row["tomogram"]): row for row in rows}


def failed(folder):
    return {f"{row['method']} {row['tomogram']}" for row in table(folder).values() if row["error"]}


def states(folder):
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in (folder / "out/tomograms").rglob("*.*")}


def expected(mask, target):
    labels = np.where(target == -1, 255, target.astype(np.int16)).astype(np.uint8)  # numpy 2.5 puts no 255 into int8
    return overlap_scores(stat_counts(np.asarray(mask, bool), labels))


def test_predictions_made_in_the_run_are_scored_and_kept(evaluate, manifest):
    outcome = evaluate(*TINY, "write_predictions=true")
    assert outcome.status == 0, outcome.stderr
    rows = table(manifest)
    assert list(rows) == [("etsam", "lab/a"), ("etsam", "lab/b")]
    for seed, name in enumerate("ab"):
        row = rows["etsam", f"lab/{name}"]
        logits = read_volume(f"out/predictions/lab/{name}_etsam_predicted_logits.mrc").read()
        scores = expected(logits > -0.075, truth(seed))
        assert 0 < scores.dice < 1
        for metric in ("dice", "iou", "precision", "recall"):
            assert float(row[metric]) == pytest.approx(getattr(scores, metric), abs=1e-9)
        assert row["error"] == ""
        assert float(row["seconds"]) > 0
        assert {"auprc", "surface_dice", "hausdorff95_angstrom", "cldice", "betti0_error"} <= set(row)
    assert json.loads((manifest / "out/report.json").read_text())["settings"]["prediction"]["net"]["image_size"] == 64
    tables = (f"{name}.csv" for name in ("means", "planes", "inclination", "thresholds", "best_thresholds", "pooled"))
    for name in ("report.html", "report.md", *tables):
        assert (manifest / "out" / name).stat().st_size > 50
    # the same predictions, read back, score the same
    assert evaluate("predictions=out/predictions", "output_dir=again").status == 0
    again = table(manifest, "again")
    for row, before in zip(again.values(), rows.values(), strict=True):
        unlike = {name for name in row if row[name] != before[name]}
        assert unlike == {"method", "seconds"}


def test_resume_keeps_what_is_complete_and_refuses_other_settings(evaluate, manifest):
    few = ["metrics=[curve]", *TINY]
    assert evaluate(*few).status == 0
    before, rows = states(manifest), table(manifest)
    assert "--resume" in evaluate(*few).message
    (manifest / "out/tomograms/etsam/lab__b.json").unlink()  # as if it had been stopped there
    assert evaluate(*few, "resume=true").status == 0
    after = states(manifest)
    changed = {name for name in before if before[name][1] != after[name][1]}
    assert changed == {str(manifest / f"out/tomograms/etsam/lab__b.{suffix}") for suffix in ("json", "npz")}
    again = table(manifest)
    assert all(row.pop("seconds") for row in [*rows.values(), *again.values()])
    assert again == rows
    line = evaluate(*few, "resume=true", "ignore_border_voxels=1").message
    assert "ignore_border_voxels" in line
    write_mrc(manifest / "a_mask.mrc", truth(3))
    assert "lab/a" in evaluate(*few, "resume=true").message
    assert {name: state for name, state in states(manifest).items() if "lab__a" in name} == {
        name: state for name, state in before.items() if "lab__a" in name
    }
    assert evaluate(*few, "overwrite=true").status == 0
    assert states(manifest) != after


def test_a_tomogram_that_fails_is_a_row_and_the_others_are_scored(evaluate, manifest):
    write_mrc("a.mrc", np.full(SHAPE, np.nan, np.float32))
    outcome = evaluate(*TINY, "metrics=[]")
    assert outcome.status == 1
    assert "lab/a" in outcome.message
    assert "lab/b" not in outcome.message
    rows = table(manifest)
    assert failed(manifest) == {"etsam lab/a"}
    assert "a.mrc" in rows["etsam", "lab/a"]["error"]
    assert rows["etsam", "lab/a"]["dice"] == ""
    done = states(manifest)
    write_mrc("a.mrc", grey())
    assert evaluate(*TINY, "metrics=[]", "resume=true").status == 0  # what failed is tried again
    assert failed(manifest) == set()
    kept = {name: state for name, state in done.items() if "lab__b" in name}
    assert kept.items() <= states(manifest).items()


def test_predictions_of_several_tools_with_a_missing_and_a_damaged_file(evaluate, manifest):
    write_mrc("good/a.mrc", binary())
    write_mrc("good/b_segmented.mrc", np.where(truth(1) == 1, 4, -4.5).astype(np.float32))
    write_mrc("bad/a.mrc", np.ones(SHAPE, np.int8))
    (manifest / "bad/a.mrc").write_bytes((manifest / "bad/a.mrc").read_bytes()[:2000])
    outcome = evaluate("predictions={good: good, bad: bad}")
    assert outcome.status == 1
    assert "good, lab/" not in outcome.message
    rows = table(manifest)
    for name in "ab":
        assert float(rows["good", f"lab/{name}"]["dice"]) == 1
    assert rows["good", "lab/a"]["auprc"] == ""  # a mask
    assert float(rows["good", "lab/b"]["auprc"]) == pytest.approx(1)  # logits
    assert "bad/a.mrc" in rows["bad", "lab/a"]["error"]
    assert "b.mrc" in rows["bad", "lab/b"]["error"]
    assert failed(manifest) == {"bad lab/a", "bad lab/b"}


def test_where_every_tomogram_fails_there_is_a_table_that_says_why(evaluate, manifest):
    (manifest / "nothing").mkdir()
    outcome = evaluate("predictions=nothing")
    assert outcome.status == 1
    assert "nothing, lab/a" in outcome.message
    assert failed(manifest) == {"nothing lab/a", "nothing lab/b"}
    assert "report.html" in outcome.files


def test_stored_predictions_are_scored_without_the_tomogram(evaluate, manifest):
    write_mrc("masks/a.mrc", binary())
    write_mrc("masks/b.mrc", binary(1))
    (manifest / "a.mrc").unlink()
    assert evaluate("predictions=masks", "metrics=[]", "name=mine").status == 0
    assert set(table(manifest)) == {("mine", "lab/a"), ("mine", "lab/b")}
    found = ResultStore(manifest / "out/tomograms", {}).load("mine", "lab/b")
    assert [picture.axis for picture in found.pictures] == ["z", "y", "x"]
    assert found.pictures[1].index == SHAPE[1] // 2
    np.testing.assert_array_equal(found.pictures[1].truth[0], 1)
    np.testing.assert_array_equal(found.pictures[2].truth[0, :4], 255)
    np.testing.assert_array_equal(found.pictures[0].prediction, truth(1)[found.pictures[0].index] == 1)
    assert ResultStore(manifest / "out/tomograms", {}).load("mine", "lab/a").pictures == ()


def test_an_evaluation_is_a_run_of_wandb_when_asked(evaluate, manifest, wandb_apart):
    (manifest / "masks").mkdir()
    for seed, name in enumerate("ab"):
        write_mrc(manifest / "masks" / f"{name}.mrc", binary(seed))
    outcome = evaluate("predictions=masks", "metrics=[curve]", "wandb.project=etsam", "wandb.offline=true")
    assert outcome.status == 0, outcome.stderr
    assert list((manifest / "out" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert (manifest / "out" / "report.html").is_file()


def test_a_post_processed_mask_is_scored_when_asked_for(evaluate, manifest):
    steps = ["postprocess=thin_noise", "postprocess.thin_noise.min_slices=7"]  # more than there are: nothing is left
    assert evaluate(*TINY, "metrics=[curve]", *steps).status == 0
    for row in table(manifest).values():
        assert float(row["recall"]) == 0
        assert float(row["auprc"]) > 0  # the curve is that of the logits


def test_stored_predictions_are_post_processed_when_asked_for(evaluate, manifest):
    both = binary()
    both[2, 4:9, 4:9] = 1  # beside the sheet, in one slice
    write_mrc("masks/a.mrc", both)
    write_mrc("masks/b.mrc", np.where(binary(1) == 1, 4, -4.5).astype(np.float32))
    steps = ["postprocess=thin_noise", "postprocess.thin_noise.min_slices=3"]
    assert evaluate("predictions=masks", "metrics=[]").status == 0
    assert float(table(manifest)["masks", "lab/a"]["precision"]) < 1
    line = evaluate("predictions=masks", "metrics=[]", "resume=true", *steps).message
    assert "postprocess" in line
    assert evaluate("predictions=masks", "metrics=[]", "overwrite=true", *steps).status == 0
    assert [float(row["dice"]) for row in table(manifest).values()] == [1, 1]


def counted(monkeypatch, owner, name):
    """Calls of a function or method from now on, in a list that grows."""
    calls, original = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **named: calls.append(given) or original(*given, **named))
    return calls


@pytest.mark.parametrize("kept", [True, False])
def test_a_prediction_is_post_processed_once_and_the_mask_that_is_kept_is_scored(evaluate, manifest, monkeypatch, kept):
    stitched = counted(monkeypatch, tiles.Stitched, "__getitem__")
    severed = counted(monkeypatch, steps, "sever_misconnections")
    settings = ["postprocess=misconnections", "postprocess.misconnections.max_bridge_len=9", "metrics=[curve]"]
    rows = [*ROWS[:2]]
    (manifest / "manifest.csv").write_text("\n".join(rows) + "\n")
    assert evaluate(*TINY, *settings, f"write_predictions={str(kept).lower()}").status == 0
    assert len(severed) == SHAPE[0]  # every slice once
    # extremes of stage 1, what stage 2 sees, then mask and logits: in one pass where files keep both
    assert len(stitched) == (3 + (not kept)) * SHAPE[0]
    if kept:
        mask = read_volume("out/predictions/lab/a_etsam_predicted_post_processed_mask.mrc").read()
        assert (mask != read_volume("out/predictions/lab/a_etsam_predicted_mask.mrc").read()).any()
        assert float(table(manifest)["etsam", "lab/a"]["dice"]) == pytest.approx(expected(mask, truth()).dice)


def test_a_stored_prediction_is_read_once(evaluate, manifest, monkeypatch):
    write_mrc("masks/a.mrc", binary())
    write_mrc("masks/b.mrc", np.where(binary(1) == 1, 4, -4.5).astype(np.float32))
    read = counted(monkeypatch, Volume, "__getitem__")
    assert evaluate("predictions=masks", "metrics=[curve]").status == 0
    for name in "ab":
        slices = [given[1] for given in read if str(given[0].path).endswith(f"masks/{name}.mrc")]
        # the one in the middle before, to tell a copy of the tomogram and what the values mean
        assert slices == [SHAPE[0] // 2, SHAPE[0] // 2, *range(SHAPE[0])]


def test_kept_predictions_of_tomograms_called_the_same_are_told_apart_by_their_runs(evaluate, manifest):
    for seed, name in enumerate("ab"):
        write_mrc(manifest / name / "tomo.mrc", grey(seed=seed))
    rows = [ROWS[0], "lab,a,val,a/tomo.mrc,a_mask.mrc", "lab,b,val,b/tomo.mrc,b_mask.mrc"]
    (manifest / "manifest.csv").write_text("\n".join(rows) + "\n")
    assert evaluate(*TINY, "metrics=[]", "write_predictions=true").status == 0
    made = [float(row["dice"]) for row in table(manifest).values()]
    assert made[0] != made[1]
    assert evaluate("predictions=out/predictions", "metrics=[]", "output_dir=again").status == 0
    assert [float(row["dice"]) for row in table(manifest, "again").values()] == made


def test_the_voxel_size_is_the_manifests_then_the_tomograms_then_the_truths(evaluate, manifest, caplog):
    shifted = np.roll(binary(), 2, axis=1)
    for name in "ab":
        write_mrc(f"masks/{name}.mrc", shifted)
        write_mrc(f"{name}_mask.mrc", binary())
    rows = [f"{ROWS[0]},voxel_size", f"{ROWS[1]},10", f"{ROWS[2]},"]
    (manifest / "manifest.csv").write_text("\n".join(rows) + "\n")
    with mrcfile.mmap(manifest / "b_mask.mrc", mode="r+") as mrc:
        mrc.voxel_size = 1
    with caplog.at_level("WARNING"):
        assert evaluate("predictions=masks", "metrics=[surface]").status == 0
    distances = [float(row["hausdorff95_angstrom"]) for row in table(manifest).values()]
    assert distances == pytest.approx([2 * 10, 2 * VOXEL_SIZE_ZYX[1]])
    assert "lab/b: voxel size 4 x 3 x 2" in caplog.text


@pytest.mark.slow  # four starts of the interpreter
def test_two_processes_share_the_tomograms(manifest):
    (manifest / "manifest.csv").write_text("\n".join([*ROWS, "lab,d,val,d.mrc,b_mask.mrc"]) + "\n")
    write_mrc(manifest / "d.mrc", np.full(SHAPE, np.nan, np.float32))
    command = [sys.executable, str(resource_path("evaluate.py")), "data.manifest=manifest.csv", *TINY, "trainer=cpus"]
    done = subprocess.run([*command, "metrics=[]"], cwd=manifest, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("etsam: error")]
    assert len(errors) == 1, done.stderr
    assert "lab/d" in errors[0]
    assert failed(manifest) == {"etsam lab/d"}
    write_mrc(manifest / "d.mrc", grey(seed=4))
    done = subprocess.run(
        [*command, "metrics=[]", "resume=true"], cwd=manifest, capture_output=True, text=True, timeout=300
    )  # one tomogram is left for two processes
    assert done.returncode == 0, done.stderr
    assert len(table(manifest)) == 3
    assert failed(manifest) == set()


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["data.split=test"], "data.split"),
        (["data.manifest=no.csv"], "no.csv"),
        (["predictions=.", "prediction_threshold=high"], "prediction_threshold=high"),
        (["metrics=[dice]"], "metrics="),
        (["predictions=nowhere"], "nowhere"),
        (["predictions=[a,b]"], "predictions="),
        (["ignore_border_voxels=1.5"], "ignore_border_voxels=1.5"),
        (["views=2.5"], "views=2.5"),  # of configs/segmenter.yaml
        (["benchmark=true"], "benchmark"),  # which is benchmarks/speed.py now
        (["resume=yes"], "resume=yes"),
    ],
)
def test_what_does_not_fit_ends_with_one_line_and_no_file(evaluate, settings, part):
    outcome = evaluate(*settings)
    assert outcome.status == 1
    assert part in outcome.message
    assert outcome.files == []


def test_the_manifest_has_to_be_given(etsam):
    assert "data.manifest" in etsam("evaluate", "net=tiny_test", "weights=random").message


def test_test_is_the_split_where_there_is_one(manifest):
    assert [job.name for job in EvaluationData("manifest.csv").jobs] == ["lab/a", "lab/b"]
    (manifest / "manifest.csv").write_text("\n".join([*ROWS, "lab,c,test,c.mrc,c_mask.mrc"]) + "\n")
    assert [job.name for job in EvaluationData("manifest.csv").jobs] == ["lab/c"]


def test_evaluation_predicts_as_prediction_does():
    one, other = compose_config("evaluate"), compose_config("predict")
    other.output_dir = one.output_dir
    other.input = "x"
    del other.segmenter.samples  # for pages, which an evaluation has none of
    del other.segmenter.also  # of a single tomogram
    sizes = ("tile_batch_size", "encode_batch_size", "memory_budget_gb")
    for key in ("stage1", "stage2", "segmenter", "nonfinite", "resegment_conditioning", *sizes):
        assert OmegaConf.select(one, key) == OmegaConf.select(other, key), key


def test_a_stored_result_is_read_back_as_it_was(tmp_path):
    picture = SlicePicture(
        "y", 3, np.float32([[0, 1], [0.2, 0.4]]), np.uint8([[0, 1], [255, 0]]), np.array([[True, False]] * 2)
    )
    result = TomogramResult(
        method="a/b",
        tomogram="set/run 1",
        metrics={"dice": 0.5, "assd_angstrom": float("nan")},
        thresholds=np.float32([0, 1]),
        counts=np.array([[1, 2, 3], [4, 5, 6]]),
        planes={"xy": {"dice": 0.25}},
        inclination=(InclinationRow(0.0, 10.0, float("nan"), 1.0, 7, 8),),
        pictures=(picture,),
        seconds=2.0,
    )
    store = ResultStore(tmp_path, {"threshold": (1, 2)}, resume=True)
    store.save(result, [__file__])
    assert store.complete("a/b", "set/run 1", [__file__])
    found = store.load("a/b", "set/run 1")
    assert found.metrics == pytest.approx(result.metrics, nan_ok=True)
    assert found.planes == result.planes
    assert found.inclination[0] == pytest.approx(result.inclination[0], nan_ok=True)
    assert (found.seconds, found.error, found.method) == (2.0, "", "a/b")
    np.testing.assert_array_equal(found.counts, result.counts)
    np.testing.assert_array_equal(found.thresholds, result.thresholds)
    np.testing.assert_allclose(found.pictures[0].grey, picture.grey, atol=1 / 500)
    np.testing.assert_array_equal(found.pictures[0].truth, picture.truth)
    assert (found.pictures[0].axis, found.pictures[0].index) == ("y", 3)


def test_results_whose_names_look_alike_are_kept_apart(tmp_path):
    store = ResultStore(tmp_path, {}, resume=True)
    names = ["x__y/z", "x/y__z", "x/_y", "x_/y", "x/y", "x/y/z"]
    for number, name in enumerate(names):
        store.save(TomogramResult("m", name, metrics={"dice": number / 10}), [])
    assert [store.load("m", name).metrics["dice"] for name in names] == [number / 10 for number in range(len(names))]
    assert (tmp_path / "m/x__y.json").is_file()


def test_the_result_of_another_tomogram_is_not_taken(tmp_path):
    store = ResultStore(tmp_path, {}, resume=True)
    store.save(TomogramResult("m", "lab/a"), [])
    for suffix in (".json", ".npz"):  # as on a disk for which small and capital letters are the same
        store.path("m", "lab/a").with_suffix(suffix).rename(store.path("m", "lab/A").with_suffix(suffix))
    for ask in (lambda: store.load("m", "lab/A"), lambda: store.complete("m", "lab/A", [])):
        with pytest.raises(OutputError, match="lab/a"):
            ask()


def test_a_result_of_an_earlier_version_without_predicted_voxels_is_made_anew(tmp_path):
    store = ResultStore(tmp_path, {}, resume=True)
    store.save(TomogramResult("m", "lab/a", inclination=(InclinationRow(0.0, 10.0, 1.0, 1.0, 7, 8),)), [])
    assert store.complete("m", "lab/a", [])
    file = store.path("m", "lab/a")
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"inclination": [row[:5] for row in record["inclination"]]}))
    assert not store.complete("m", "lab/a", [])


@pytest.mark.parametrize("stored", [np.uint16(255), np.int8(-1)], ids=["255", "-1"])
def test_a_truth_of_0_and_255_is_refused_and_postprocess_makes_it_one(etsam, evaluate, manifest, stored):
    for name in "ab":
        write_mrc(manifest / f"{name}_mask.mrc", np.where(binary(), stored, 0).astype(stored.dtype))
        write_mrc(manifest / "none" / f"{name}.mrc", binary())
    outcome = evaluate("predictions={none: none}")
    assert outcome.status == 1
    assert {row["dice"] for row in table(manifest).values()} == {""}
    assert all("postprocess=none" in row["error"] for row in table(manifest).values())
    for name in "ab":
        written = etsam("postprocess", f"{name}_mask.mrc", "new.mrc", "postprocess=none", "--overwrite")
        assert written.status == 0, written.stderr
        (manifest / "new.mrc").replace(manifest / f"{name}_mask.mrc")
    again = evaluate("predictions={none: none}", "overwrite=true")
    assert again.status == 0, again.stderr
    assert {row["dice"] for row in table(manifest).values()} == {"1.0"}


def test_a_truth_with_nothing_but_255_is_scored_where_the_manifest_says_that_there_is_no_membrane(evaluate, manifest):
    empty = np.zeros(SHAPE, np.int8)
    empty[0] = -1
    write_mrc(manifest / "a_mask.mrc", empty)
    write_mrc(manifest / "none" / "a.mrc", np.zeros(SHAPE, np.int8))
    (manifest / "manifest.csv").write_text(f"{ROWS[0]},without_membrane\n{ROWS[1]},yes\n")
    outcome = evaluate("predictions={none: none}")
    assert outcome.status == 0, outcome.stderr
    assert {row["dice"] for row in table(manifest).values()} == {"1.0"}
