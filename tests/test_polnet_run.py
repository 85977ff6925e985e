"""PolNet is driven with seeds, several processes at once, resumably; and imaged without IMOD."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from test_polnet_settings import TEM

from etsam.data.checks import check_samples
from etsam.data.manifest import read_manifest

FAKE = Path(__file__).parent / "fake_polnet"
SETTINGS = """
folders: {input: models}
global: {ntomos: 3}
sample:
  voi_shape: [28, 24, 20]
  v_size: 10
  membranes: [in_mbs/sphere.mbs]
  pns: [in_10A/a.pns]
tem: {config: in_tem/fast.tem}
"""


@pytest.fixture
def models(work, monkeypatch):
    """PolNet (a stand-in) that this Python finds, its models, and the settings `small.yaml`."""
    monkeypatch.setenv("PYTHONPATH", f"{FAKE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name in ("in_mbs/sphere.mbs", "in_10A/a.pns"):
        (work / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "models" / name).touch()
    (work / "models" / "in_tem").mkdir()
    (work / "models" / "in_tem" / "fast.tem").write_text(TEM)
    (work / "small.yaml").write_text(SETTINGS)
    return work / "models"


@pytest.fixture
def simulate(etsam, models):
    """`etsam data polnet --config small.yaml --output-dir out ...`."""

    def call(*arguments, config=("small.yaml",)):
        return etsam("data", "polnet", "--config", *config, "--output-dir", "out", "--device", "cpu", *arguments)

    return call


def files(folder):
    """Name and content of all files of a tomogram but the seconds it took."""
    return {path.name: path.read_bytes() for path in folder.rglob("*.*") if path.name != "etsam_record.json"}


def volumes(folder):
    return {path.name: mrcfile.read(path) for path in sorted(folder.glob("*.mrc"))}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, volume in found.items():
        np.testing.assert_array_equal(volume, expected[name])


def test_tomograms_are_made_imaged_and_listed(simulate, work):
    outcome = simulate("--n", "2", "--seed", "5")
    assert outcome.status == 0, outcome.stderr
    samples = read_manifest("out/manifest.csv")
    check_samples(samples)
    assert [sample.name for sample in samples] == ["small/Tomo001", "small/Tomo002"]
    assert [sample.shape for sample in samples] == [(20, 24, 28)] * 2
    snrs = [float(dict(sample.extra)["snr"]) for sample in samples]
    assert all(1 <= snr <= 2 for snr in snrs)
    assert snrs[0] != snrs[1]
    folder = work / "out" / "small" / "Tomo001"
    names = ["etsam_record.json", "half_done.txt", "tem", "tomo_001_den.mrc", "tomo_001_lbl.mrc"]
    names += [f"tomo_001_mics_snr{snrs[0]}.mrc", "tomo_001_motif_list.csv", f"tomo_001_rec_snr{snrs[0]}.mrc"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "tem" / "out_tangs.tlt").read_text().split() == ["-60", "-40", "-20", "0", "20", "40", "60"]
    assert mrcfile.read(folder / names[5]).shape == (7, 24, 28)
    with mrcfile.open(folder / names[7]) as rec, mrcfile.open(folder / "tomo_001_den.mrc") as density:
        assert rec.voxel_size.tolist() == (10, 10, 10)
        assert (
            np.corrcoef(rec.data.ravel(), density.data.ravel())[0, 1] < -0.1
        )  # matter is dark; there are but seven tilts
    assert "PolNet talks" in (work / "out" / "logs" / "small" / "Tomo001.log").read_text()


def test_a_tomogram_depends_on_seed_and_number_only(simulate, work):
    assert simulate("--n", "2", "--jobs", "2").status == 0
    two = [volumes(work / "out" / "small" / f"Tomo00{i}") for i in (1, 2)]
    assert not np.array_equal(two[0]["tomo_001_lbl.mrc"], two[1]["tomo_002_lbl.mrc"])
    shutil.rmtree(work / "out")
    assert simulate("--jobs", "1").status == 0
    for i in (1, 2):
        assert_equal(volumes(work / "out" / "small" / f"Tomo00{i}"), two[i - 1])
    shutil.rmtree(work / "out")
    assert simulate("--n", "1", "--seed", "1").status == 0
    other = volumes(work / "out" / "small" / "Tomo001")
    assert not np.array_equal(other["tomo_001_lbl.mrc"], two[0]["tomo_001_lbl.mrc"])


def test_samples_are_made_at_the_same_time(simulate, monkeypatch):
    monkeypatch.setenv("FAKE_POLNET_TOGETHER", "3")  # each waits for the others
    outcome = simulate("--jobs", "3")
    assert outcome.status == 0, outcome.stderr


def test_a_failure_is_named_at_the_end_and_only_it_is_done_again(simulate, monkeypatch, caplog, work):
    monkeypatch.setenv("FAKE_POLNET_FAIL", "2")
    outcome = simulate("--jobs", "1")
    assert outcome.status == 1
    assert outcome.message.startswith("1 of 3 tomograms failed; ")
    assert "small/Tomo002: PolNet ended with status 1: RuntimeError: no room for number 2 (" in outcome.message
    log = work / "out" / "logs" / "small" / "Tomo002.log"
    assert str(log.relative_to(work)) in outcome.message
    assert "Traceback" in log.read_text()
    assert sorted(path.name for path in (work / "out" / "small").iterdir()) == ["Tomo001", "Tomo003"]
    assert not (work / "out" / "manifest.csv").exists()
    before = files(work / "out" / "small" / "Tomo001")
    monkeypatch.setenv("FAKE_POLNET_FAIL", "1,3")  # these would fail if they were made again
    outcome = simulate()
    assert outcome.status == 0, outcome.stderr
    assert files(work / "out" / "small" / "Tomo001") == before
    assert len(read_manifest("out/manifest.csv")) == 3
    assert simulate().status == 0
    assert "nothing to do, all 3 tomograms are there" in caplog.text


def test_tomograms_of_other_settings_are_not_taken_for_ours(simulate, work):
    assert simulate("--n", "1").status == 0
    (work / "out" / "manifest.csv").unlink()
    assert "out/small/Tomo001 was made with another seed, sample_seed, acq" in simulate("--seed", "1").message
    settings = (work / "small.yaml").read_text()
    (work / "small.yaml").write_text(settings.replace("[28, 24, 20]", "[28, 24, 22]"))
    assert "out/small/Tomo001 was made with another sample; choose another --output-dir" in simulate().message
    (work / "small.yaml").write_text(settings)
    (work / "out" / "small" / "Tomo001" / "etsam_record.json").unlink()
    assert "out/small/Tomo001 was not made by etsam" in simulate().message


def test_more_tomograms_need_leave_to_replace_the_manifest(simulate, work):
    assert simulate("--n", "1").status == 0
    assert "manifest.csv: exists already, without small/Tomo002" in simulate("--n", "2").message
    assert simulate("--n", "2", "--overwrite").status == 0
    assert len(read_manifest("out/manifest.csv")) == 2


def test_what_a_killed_run_left_is_made_anew(simulate, work):
    part = work / "out" / "small" / ".Tomo001.part"
    part.mkdir(parents=True)
    (part / "tomo_001_rec_snr9.mrc").write_bytes(b"half")
    assert simulate("--n", "1").status == 0
    assert not part.exists()
    assert not list((work / "out" / "small" / "Tomo001").glob("*snr9*"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_ends_its_processes_and_can_go_on(simulate, monkeypatch, work, how):
    monkeypatch.setenv("FAKE_POLNET_HANG", "2")
    arguments = ["data", "polnet", "--config", "small.yaml", "--output-dir", "out", "--n", "2", "--jobs", "1"]
    run = subprocess.Popen(
        [sys.executable, "-c", "from etsam.cli.main import main; main()", *arguments], stderr=subprocess.PIPE, text=True
    )
    part = work / "out" / "small" / ".Tomo002.part"
    until = time.monotonic() + 120
    while not (part / "half_done.txt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert (work / "out" / "small" / "Tomo001").is_dir()
    before = files(work / "out" / "small" / "Tomo001")
    worker = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_worker(entry, part)]
    assert len(worker) == 1
    run.send_signal(how)
    message = run.communicate(timeout=60)[1]
    assert run.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 143), message
    assert part.exists() == (how == signal.SIGKILL)
    while _is_worker(Path("/proc") / str(worker[0]), part) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _is_worker(Path("/proc") / str(worker[0]), part)
    monkeypatch.delenv("FAKE_POLNET_HANG")
    outcome = simulate("--n", "2")
    assert outcome.status == 0, outcome.stderr
    assert files(work / "out" / "small" / "Tomo001") == before
    assert not part.exists()
    assert len(read_manifest("out/manifest.csv")) == 2


def _is_worker(process, part):
    try:
        return str(part / "job.json").encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_a_second_run_in_the_same_folder_is_refused(simulate, work):
    (work / "out").mkdir()
    with (work / "out" / ".polnet.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "out: another run is at work in this folder" in simulate().message


def test_several_settings_share_the_number_out(simulate, work):
    (work / "large.yaml").write_text(SETTINGS.replace("ntomos: 3", "ntomos: 1"))
    outcome = simulate("--n", "4", config=("small.yaml", "large.yaml"))
    assert outcome.status == 0, outcome.stderr
    names = ["large/Tomo001", "small/Tomo001", "small/Tomo002", "small/Tomo003"]
    assert [sample.name for sample in read_manifest("out/manifest.csv")] == names
    (work / "b").mkdir()
    shutil.copy("small.yaml", "b/small.yaml")
    assert "--config small is given twice" in simulate(config=("small.yaml", "b/small.yaml")).message


@pytest.fixture
def bare_python(work):
    """A Python that has no packages at all."""
    program = work / "bare" / "python"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    program.chmod(0o755)
    return program


def test_without_polnet_the_message_says_how_to_install_it(simulate, bare_python, work):
    outcome = simulate("--polnet-python", bare_python)
    assert f"PolNet is not installed in {bare_python} (it is not on PyPI); install it: git clone" in outcome.message
    assert "pip install ./polnet, then --polnet-python polnet/.venv/bin/python --polnet-data" in outcome.message
    assert outcome.files == []
    assert "nowhere: no such program" in simulate("--polnet-python", "nowhere").message


def test_a_polnet_that_does_not_load_is_quoted(simulate, monkeypatch, work):
    broken = work / "broken" / "polnet"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import package_that_is_missing")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    assert "PolNet does not load in" in (message := simulate().message)
    assert "No module named 'package_that_is_missing'" in message
    (broken / "__init__.py").write_text("__version__ = '1.0.0'")
    assert "PolNet 1.0.0 is older than 1.1" in simulate().message


def test_models_are_found_or_asked_for(simulate, models, work):
    models.rename(work / "elsewhere")
    message = simulate().message
    assert "PolNet's models, such as in_mbs/sphere.mbs, are not in" in message
    assert "give --polnet-data polnet/data" in message
    (work / "elsewhere" / "in_10A" / "a.pns").unlink()
    assert (
        "elsewhere: without the models in_10A/a.pns that small.yaml" in simulate("--polnet-data", "elsewhere").message
    )
    (work / "elsewhere" / "in_10A" / "a.pns").touch()
    assert simulate("--polnet-data", "elsewhere", "--n", "1").status == 0


def test_imod_is_used_if_asked_for_and_missing_imod_is_named(simulate, monkeypatch, work):
    (work / "bin").mkdir()
    for program in ("xyzproj", "alterheader"):
        (work / "bin" / program).write_text("#!/bin/sh\n")
        (work / "bin" / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(work / "bin"))
    assert "IMOD's tilt not found on the PATH" in simulate("--acquisition", "imod").message
    shutil.copy(work / "bin" / "xyzproj", work / "bin" / "tilt")
    assert simulate("--acquisition", "imod", "--n", "1").status == 0
    sample = read_manifest("out/manifest.csv")[0]
    assert sample.tomogram.name == "tomo_001_rec_snr1.5.mrc"  # what PolNet wrote, untouched
    density = mrcfile.read(sample.tomogram.with_name("tomo_001_den.mrc"))
    np.testing.assert_array_equal(mrcfile.read(sample.tomogram), -density)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ntomos: 3", "ntomos: many", "global.ntomos is 'many'"),
        ("v_size: 10", "v_size: -1", "sample.v_size is -1"),
        ("[28, 24, 20]", "[28, 24]", "sample.voi_shape is [28, 24]"),
        ("membranes: [in_mbs/sphere.mbs]", "membranes: []", "sample.membranes is empty"),
        ("pns:", "pnss:", "unknown settings sample.pnss; known are voi_shape"),
        ("config: in_tem/fast.tem", "config: in_tem/slow.tem", "tem.config in_tem/slow.tem is neither"),
        ("config: in_tem/fast.tem", "config: null", "tem.config is None"),
        ("tem:", "tom:", "without the sections tem"),
        ("global:", "global: [", "no PolNet settings"),
    ],
)
def test_settings_that_do_not_fit_are_refused(simulate, work, old, new, message):
    (work / "small.yaml").write_text(SETTINGS.replace(old, new))
    outcome = simulate()
    assert outcome.status == 1
    assert "small.yaml" in outcome.message
    assert message in outcome.message


def test_records_say_how_a_tomogram_was_made(simulate, work):
    assert simulate("--n", "1", "--seed", "3").status == 0
    record = json.loads((work / "out" / "small" / "Tomo001" / "etsam_record.json").read_text())
    assert record["polnet_version"] == "1.1.2"
    assert record["settings"]["seed"] == 3
    assert record["settings"]["sample"]["shape"] == [28, 24, 20]
    assert f"_snr{record['snr']}.mrc" in str(read_manifest("out/manifest.csv")[0].tomogram)
