"""The console command: flags of the published tool, names of files, start-up, outputs, overwriting and resuming."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from conftest import ORIGIN_ZYX, SHAPE, START_ZYX, VOXEL_SIZE_ZYX, grey, write_mrc
from omegaconf import OmegaConf

from etsam import __version__
from etsam.app import compose_config
from etsam.cli.main import build_parser
from etsam.cli.overrides import quote
from etsam.cli.predict import predict_overrides
from etsam.volume import read_volume
from etsam.volume.location import fingerprint_of

MASKS = Path(__file__).parent / "goldens" / "postprocess.npz"
COMMAND = Path(sys.executable).parent / "etsam"
SEED, THRESHOLD = 1, -0.075  # of 14 seeds one whose logits vary; their median, so that both values occur in masks


def composed(*arguments):
    """The config that `etsam predict ARGUMENTS` runs."""
    args, rest = build_parser().parse_known_args(["predict", *arguments])
    return compose_config("predict", predict_overrides(args, rest))


def value(cfg, key):
    found = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


STEPS = "etsam.postprocess.steps"
PROMPTS = "etsam.inference.prompts"


@pytest.mark.parametrize(
    ("flags", "key", "expected"),
    [
        ([], "output_dir", "results"),
        (["--output-dir", "my masks"], "writer.output_dir", "my masks"),
        ([], "stage2.threshold", 0),
        (["--logit-threshold", "-1.5"], "stage2.threshold", -1.5),
        (["--logit-threshold=-1e-3"], "stage2.threshold", -0.001),
        (["--logit-threshold", "-1e-3"], "stage2.threshold", -0.001),
        (["--logit-threshold", "0"], "stage2.threshold", 0.0),
        (["--logit-threshold", "1"], "stage1.threshold", -0.25),
        (["--store-logits"], "writer.write_logits", True),
        (["--overwrite"], "writer.overwrite", True),
        (["--resume"], "writer.resume", True),
        (["--debug"], "debug", True),
        (["--split-processing"], "tiles._target_", "etsam.inference.tiles.Split2x2"),
        (["--split-processing"], "stage1.prompt.interval", 10),
        (["--split-processing"], "writer.infix", "_split_processing"),
        ([], "stage1.prompt", {"_target_": f"{PROMPTS}.grid_zero", "_partial_": True, "interval": 50}),
        (["--stage1-prompt", "zero"], "stage1.prompt._target_", f"{PROMPTS}.zero"),
        (["--stage1-prompt", "grid"], "stage1.prompt._target_", f"{PROMPTS}.grid"),
        (["--stage1-prompt", "grid"], "stage2.prompt._target_", f"{PROMPTS}.zero"),
        (["--stage2-prompt", "grid_zero"], "stage2.prompt._target_", f"{PROMPTS}.grid_zero"),
        (["--stage2-prompt", "etsam_stage1_partial"], "stage2.prompt._target_", f"{PROMPTS}.stage1_mask"),
        (["--normalize-method", "min_max_positive_values"], "normalize._target_", "etsam.normalize.MinMaxPositive"),
        (["--normalize-method", "softplus_minmax"], "normalize._target_", "etsam.normalize.SoftplusMinMax"),
        (["--weights", "etsam_v1"], "normalize._target_", "etsam.normalize.MinMaxPositive"),
        (["--weights", "etsam_v1", "--normalize-method", "robust"], "normalize._target_", "etsam.normalize.Robust"),
        ([], "postprocess", {}),
        (["--postprocess-remove-thin-noise"], "postprocess", {
            "thin_noise": {"_target_": f"{STEPS}.RemoveThinNoise", "min_slices": 10}}),
        (["--postprocess-remove-parallel-membrane-misconnections"], "postprocess", {
            "misconnections": {"_target_": f"{STEPS}.SeverMisconnections", "max_bridge_len": 5, "max_spur_len": 0}}),
        (["--post-process", "--post-process-min-slices", "3"], "writer.postprocess.thin_noise.min_slices", 3),
        (["--post-process", "--post-process-max-bridge-len", "8"], "postprocess.misconnections.max_bridge_len", 8),
        (["--post-process", "--post-process-max-spur-len", "4"], "postprocess.misconnections.max_spur_len", 4),
        (["net=tiny_test"], "net.image_size", 64),
    ],
)  # fmt: skip
def test_each_flag_sets_its_value(flags, key, expected):
    assert value(composed("tomo.mrc", *flags), key) == expected
    assert value(composed(*flags, "tomo.mrc"), key) == expected


@pytest.mark.parametrize(
    "flags",
    [
        ["--post-process"],
        ["--postprocess-remove-thin-noise", "--postprocess-remove-parallel-membrane-misconnections"],
    ],
)
def test_both_steps_run_thin_noise_first(flags):
    assert list(composed("tomo.mrc", *flags).postprocess) == ["thin_noise", "misconnections"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["net=tiny_test", "a.mrc", "--store-logits", "b.mrc"],
        ["a.mrc", "net=tiny_test", "b.mrc", "--store-logits"],
        ["--store-logits", "a.mrc", "b.mrc", "net=tiny_test"],
        ["a.mrc", "--store-logits", "net=tiny_test", "b.mrc"],
    ],
)
def test_settings_and_files_may_stand_anywhere(arguments):
    cfg = composed(*arguments)
    assert (list(cfg.input), cfg.net.image_size, cfg.write_logits) == (["a.mrc", "b.mrc"], 64, True)


NAMES = [
    "two words.mrc", "it's.mrc", 'say "hi".mrc', "a=b.mrc", "a,b.mrc", "[1]{2}(3).mrc", "back\\slash.mrc", "end\\",
    "quote\\'.mrc", "1e5.mrc", "0.5", "null", "true", "~home.mrc", "$HOME.mrc", "${x}.mrc", "$x^$.mrc", "膜é.mrc",
    "a:b@c.mrc", "%s#!.mrc", "x.y.z.mrc", "tab\t.mrc",
]  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, "new\nline.mrc", "\\${x}\\", "\\\\server\\share\\"])
def test_any_name_survives_quoting(name):
    cfg = compose_config("predict", [f"input=[{quote(name)}]", f"output_dir={quote(name)}"])
    assert (list(cfg.inputs.input), cfg.writer.output_dir) == ([name], name)


def test_files_of_any_name_are_found_where_they_exist(etsam, work):
    for name in NAMES:
        write_mrc(work / name, grey((2, 4, 5)))
    outcome = etsam("predict", *NAMES, "net=tiny_test", "weights=random", "trainer=cpu", "tiles=foo")
    assert outcome.message.startswith("tiles=foo is unknown")  # all names were taken for files, none for a setting
    assert list(composed(*NAMES).input) == NAMES


def test_a_name_that_would_be_a_formula_or_has_no_glyph_does_not_hurt_the_preview(predict, work):
    write_mrc("$膜^$.mrc")
    outcome = predict("$膜^$.mrc")
    assert outcome.status == 0, outcome.stderr
    assert "$膜^$_etsam_predicted_preview.png" in outcome.files


def test_help_comes_at_once_and_needs_neither_torch_nor_hydra():
    code = (
        "import sys, etsam.cli.main\n"
        "try: etsam.cli.main.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'numpy', 'lightning'} & set(sys.modules)\n"
    )
    started = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "predict" in ended.stdout
    assert time.perf_counter() - started < 1 or cpu_seconds_of_help() < 1  # a busy machine is no fault of ours


def cpu_seconds_of_help():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([COMMAND, "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_package_itself_is_the_command():
    ended = subprocess.run([sys.executable, "-m", "etsam", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"etsam {__version__}\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["predict", "--help"], ["postprocess", "--help"]])
def test_help_and_version_end_with_status_0(etsam, arguments):
    assert etsam(*arguments).status == 0


@pytest.fixture
def mask(work):
    with np.load(MASKS) as arrays:
        return write_mrc(work / "mask.mrc", arrays["mask"].astype(np.int8))


@pytest.mark.parametrize(
    ("flags", "golden"),
    [
        ([], "both_10_5_0"),
        (["--postprocess-remove-thin-noise"], "thin_10"),
        (["--post-process-min-slices", "5", "--post-process-max-bridge-len", "8", "--post-process-max-spur-len", "5"],
         "both_5_8_5"),
        (["--postprocess-remove-parallel-membrane-misconnections", "postprocess.misconnections.max_spur_len=5"],
         "parallel_b5_s5"),
    ],
)  # fmt: skip
def test_postprocess_gives_what_the_published_steps_give(etsam, mask, flags, golden):
    outcome = etsam("postprocess", "mask.mrc", "clean.mrc", *flags)
    assert outcome.status == 0, outcome.stderr
    cleaned = read_volume("clean.mrc")
    with np.load(MASKS) as arrays:
        np.testing.assert_array_equal(cleaned.read(), arrays[golden])
    assert cleaned.voxel_size_angstrom == VOXEL_SIZE_ZYX


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["no.mrc", "out.mrc"], "no.mrc: no such file"),
        (["mask.mrc", "mask.mrc"], "is the input; name another file"),
        (["mask.mrc", "out.tif"], "out.tif: no format of that name is written"),
        (["mask.mrc", "old.mrc"], "old.mrc: exists already"),
        (["mask.mrc", "nowhere/out.mrc"], "nowhere/out.mrc: the folder nowhere does not exist; create it"),
        (["grey.mrc", "out.mrc"], "is no mask: it holds the values"),
        (["mask.mrc", "out.mrc", "--post-process-min-slices", "0"], "min_slices is 0"),
        (["mask.mrc", "out.mrc", "surplus"], "unknown argument surplus"),
        (["mask.mrc"], "required: output_mask"),
    ],
)
def test_postprocess_refuses_with_one_line(etsam, mask, arguments, part):
    write_mrc("grey.mrc")
    write_mrc("old.mrc")
    before = sorted(path.name for path in mask.parent.iterdir())
    outcome = etsam("postprocess", *arguments)
    assert outcome.status == 1
    assert part in outcome.message
    assert sorted(path.name for path in mask.parent.iterdir()) == before


ALL = ["--store-logits", "--post-process", "--post-process-min-slices", "2", "write_instances=true"]
ENDINGS = ["instances.mrc", "logits.mrc", "mask.mrc", "post_processed_mask.mrc", "preview.png", "record.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder where the real command has written every output."""
    folder = tmp_path_factory.mktemp("finished")
    write_mrc(folder / "TS_1_10.00Apx.mrc")
    command = [COMMAND, "predict", "TS_1_10.00Apx.mrc", *ALL, "net=tiny_test", "weights=random"]
    command += [f"weights.seed={SEED}", "--logit-threshold", str(THRESHOLD)]
    ended = subprocess.run([*command, "--output-dir", "out"], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert all(line.startswith(("INFO: ", "WARNING: ")) for line in ended.stderr.splitlines()), ended.stderr
    return folder


def output(folder, ending):
    return folder / "out" / f"TS_1_10.00Apx_etsam_predicted_{ending}"


def test_the_command_writes_every_output_and_nothing_else(finished):
    assert sorted(path.name for path in (finished / "out").iterdir()) == [
        *(f"TS_1_10.00Apx_etsam_predicted.{suffix}" for suffix in ("cxc", "html")),
        *(f"TS_1_10.00Apx_etsam_predicted_{ending}" for ending in ENDINGS),
    ]
    assert output(finished, "preview.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending.endswith("mrc")])
def test_outputs_lie_where_the_tomogram_lies(finished, ending):
    volume = read_volume(output(finished, ending))
    assert volume.shape == SHAPE
    assert volume.voxel_size_angstrom == VOXEL_SIZE_ZYX
    assert volume.origin_angstrom == ORIGIN_ZYX
    assert volume.start == START_ZYX
    assert mrcfile.validate(output(finished, ending))


def test_the_mask_is_where_logits_exceed_the_threshold(finished):
    logits = mrcfile.read(output(finished, "logits.mrc"))
    mask = mrcfile.read(output(finished, "mask.mrc"))
    assert 0.01 < mask.mean() < 0.99
    np.testing.assert_array_equal(mask, logits > THRESHOLD)


def test_instances_number_the_post_processed_mask(finished):
    instances = mrcfile.read(output(finished, "instances.mrc"))
    cleaned = mrcfile.read(output(finished, "post_processed_mask.mrc"))
    np.testing.assert_array_equal(instances > 0, cleaned > 0)
    counts = np.bincount(instances.ravel())[1:]
    assert (np.diff(counts) <= 0).all()


def test_the_record_says_what_was_done(finished):
    record = json.loads(output(finished, "record.json").read_text())
    tomogram = finished / "TS_1_10.00Apx.mrc"
    assert record["input"]["fingerprint"] == fingerprint_of(tomogram)
    assert record["input"]["fingerprint"]["of"] == "head and tail"
    assert record["input"]["path"] == str(tomogram)
    assert record["input"]["shape_zyx"] == list(SHAPE)
    assert record["input"]["voxel_size_angstrom_zyx"] == list(VOXEL_SIZE_ZYX)
    assert sorted(record["outputs"]) == sorted(path.name for path in (finished / "out").iterdir())
    cleaned = mrcfile.read(output(finished, "post_processed_mask.mrc"))
    assert record["membrane_share"] == pytest.approx(cleaned.mean(dtype=np.float64))
    assert record["settings"]["stage2"]["threshold"] == THRESHOLD
    assert record["settings"]["net"]["image_size"] == 64
    assert record["settings"]["postprocess"]["thin_noise"]["min_slices"] == 2
    assert record["settings"]["weights"]["stage2"] == {"name": f"random (seed {SEED + 1})", "sha256": None}
    assert {"normalize", "stage 1", "stage 2", "write"} <= set(record["seconds"])
    assert all(seconds >= 0 for seconds in record["seconds"].values())
    assert 100 < record["peak_memory_mb"]["ram"] < 20_000
    assert record["environment"]["packages"]["sam2"].startswith("1.1")


@pytest.mark.slow
def test_in_a_locale_of_ascii_names_of_any_script_are_read_shown_and_written(work):
    write_mrc("in/ζ-тест-膜 Å.mrc")
    Path("in/kaputt ä.mrc").write_text("no volume")
    locale = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    toy = ["net=tiny_test", "weights=random", "trainer=cpu", "write_preview=false"]
    done = subprocess.run(
        [COMMAND, "predict", "in", "-o", "ü", *toy], env=os.environ | locale, capture_output=True, check=False
    )
    told = done.stderr.decode("utf-8")
    assert (done.returncode, told.count("etsam: error: kaputt ä.mrc")) == (1, 1), told
    assert "ü/ζ-тест-膜 Å_etsam_predicted_mask.mrc" in told
    written = {path.name.removeprefix("ζ-тест-膜 Å_etsam_predicted") for path in Path("ü").glob("ζ*")}
    assert written == {"_mask.mrc", "_record.json", ".html", ".cxc"}
    assert "ζ-тест-膜 Å" in Path("ü/index.html").read_text(encoding="utf-8")
