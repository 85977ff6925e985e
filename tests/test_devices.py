"""Several processes share a list of tomograms; here two on the CPU, through the real command line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from etsam.app import is_first_process
from etsam.paths import resource_path
from etsam.volume import MrcWriter, read_volume


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"SLURM_PROCID": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "1"}, True),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # started by Lightning in an interactive job of Slurm
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
    ],
)
def test_one_process_speaks_for_all_whoever_started_them(monkeypatch, environment, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


def write_tomograms(folder, names, spoiled=()):
    rng = np.random.default_rng(0)
    for name in names:
        with MrcWriter(folder / name, (5, 40, 50), np.float32, voxel_size_angstrom=(10, 10, 10)) as writer:
            for z in range(5):
                writer[z] = rng.normal(size=(40, 50)).astype(np.float32) * (np.nan if name in spoiled else 1)


def predict(folder, *overrides, launcher=()):
    script = [*launcher, str(resource_path("predict.py")), f"input={folder}", f"output_dir={folder / 'out'}"]
    return subprocess.run(
        [sys.executable, *script, "net=tiny_test", "weights=random", "trainer=cpus", *overrides],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_segment_every_tomogram_once_and_report_what_failed_in_either(tmp_path):
    names = [f"t{i}.mrc" for i in range(4)]
    write_tomograms(tmp_path, names, spoiled=["t1.mrc"])
    done = predict(tmp_path, "weights.seed=1")
    assert done.returncode == 1  # t1 falls to the second process; the first has to know
    errors = [line for line in done.stderr.splitlines() if line.startswith("etsam: error")]
    assert len(errors) == 1
    assert "t1.mrc" in errors[0]
    records = sorted(path.name for path in (tmp_path / "out").glob("*record.json"))
    assert records == [f"t{i}_etsam_predicted_record.json" for i in (0, 2, 3)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_etsam_predicted_*")}
    (tmp_path / "t1.mrc").unlink()
    resumed = predict(tmp_path, "weights.seed=1", "resume=true")
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((tmp_path / "out" / records[0]).read_text())["membrane_share"] >= 0


@pytest.mark.slow
def test_fewer_tomograms_than_processes_give_the_masks_of_one_process(tmp_path):
    write_tomograms(tmp_path, ["t0.mrc"])
    for name, trainer in (("one", "trainer=cpu"), ("two", "trainer=cpus")):
        done = predict(tmp_path, "weights.seed=1", "write_logits=true", f"output_dir={tmp_path / name}", trainer)
        assert done.returncode == 0, done.stderr
    one, two = (read_volume(tmp_path / name / "t0_etsam_predicted_logits.mrc").read() for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_processes_of_torchrun_share_a_list_and_a_restarted_job_makes_only_what_is_missing(tmp_path):
    names = [f"t{i}.mrc" for i in range(3)]
    write_tomograms(tmp_path, names, spoiled=["t1.mrc"])
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    settings = ("weights.seed=1", "nonfinite=mean", "write_preview=false")
    first = predict(tmp_path, *settings, launcher=torchrun)
    assert "t1_etsam_predicted_mask.mrc" not in {path.name for path in (tmp_path / "out").iterdir()}, first.stderr
    done = sorted((tmp_path / "out").glob("*mask.mrc"))
    assert [path.name for path in done] == [f"t{i}_etsam_predicted_mask.mrc" for i in (0, 2)]
    before = [path.stat().st_mtime_ns for path in done]
    (tmp_path / "t1.mrc").unlink()
    write_tomograms(tmp_path, ["t1.mrc"])
    again = predict(tmp_path, *settings, "resume=true", launcher=torchrun)
    assert again.returncode == 0, again.stderr
    assert [path.stat().st_mtime_ns for path in done] == before
    assert (tmp_path / "out" / "t1_etsam_predicted_mask.mrc").exists()


SLURM = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "etsam", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
SLURM |= {"SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1"}


def tasks_of_slurm(number, *arguments):
    """`srun etsam predict ARGUMENTS` with so many tasks on one node: what Slurm sets is set; errors of each task."""
    command = [sys.executable, "-m", "etsam", "predict", *map(str, arguments), "trainer=cpus"]
    command += ["net=tiny_test", "weights=random", "weights.seed=1", "write_preview=false", "--no-page"]
    count = {"SLURM_NTASKS": str(number), "SLURM_NTASKS_PER_NODE": str(number)}
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | SLURM | count | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in range(number)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * number, errors
    return errors


@pytest.mark.slow
def test_tasks_of_slurm_share_a_list_once_and_a_restarted_job_makes_only_what_is_missing(tmp_path):
    names = [f"t{i}.mrc" for i in range(3)]
    write_tomograms(tmp_path, names)
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text("\n".join(names))
    errors = tasks_of_slurm(2, listed, "-o", out)
    assert ["t1.mrc" in told for told in errors] == [False, True]  # the last line, of the whole list, names none
    masks = [out / f"t{i}_etsam_predicted_mask.mrc" for i in range(3)]
    first = [read_volume(mask).read() for mask in masks]
    masks[1].unlink()  # one tomogram is left for two tasks
    before = [mask.stat().st_mtime_ns for mask in (masks[0], masks[2])]
    tasks_of_slurm(2, listed, "-o", out, "--resume")
    assert [mask.stat().st_mtime_ns for mask in (masks[0], masks[2])] == before
    for mask, values in zip(masks, first, strict=True):
        np.testing.assert_array_equal(read_volume(mask).read(), values)


@pytest.mark.slow
def test_each_job_of_submitits_array_takes_one_tomogram_and_a_second_array_nothing(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    write_tomograms(tmp_path, ["t0.mrc", "t1.mrc"])
    script = [sys.executable, str(resource_path("predict.py")), "--multirun", "hydra/launcher=submitit_local"]
    script += [f"hydra.sweep.dir={tmp_path / 'jobs'}", f"input={tmp_path / 't0.mrc'},{tmp_path / 't1.mrc'}"]
    script += [f"output_dir={tmp_path / 'out'}", "resume=true", "net=tiny_test", "weights=random", "weights.seed=1"]
    script += ["trainer=cpu", "write_preview=false", "write_page=false"]
    made = []
    for _ in range(2):
        done = subprocess.run(script, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*mask.mrc")})
    assert set(made[0]) == {f"t{i}_etsam_predicted_mask.mrc" for i in range(2)}
    assert made[1] == made[0]
