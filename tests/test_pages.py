"""Commands, pictures and links of every page: what people are told to type works.

A block of commands runs in a folder with small tomograms. `<!-- test: REASON -->` before a block says what it needs and
a test does not have (network, a GPU, hours, another program); its commands are parsed and their settings composed.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from command_line import status_of
from conftest import write_mrc
from omegaconf import OmegaConf

from etsam.app import compose_config
from etsam.cli.evaluate import evaluate_overrides
from etsam.cli.main import build_parser
from etsam.cli.postprocess_flags import postprocess_overrides
from etsam.cli.predict import predict_overrides
from etsam.paths import resource_path
from etsam.volume import read_volume

ROOT = resource_path("configs").parent
if not (ROOT / "README.md").exists():
    pytest.skip("needs a checkout", allow_module_level=True)
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("checkpoints/README.md", "data/README.md", "data/demo/README.md")),
]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
BLOCK = re.compile(r"(?:<!-- test: (?P<needs>[^>]+) -->\n+)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
REASONS = {"network", "GPU", "hours", "minutes", "script of Slurm", "Slurm", "weights of a training", "other programs"}
REASONS |= {"ChimeraX", "IMOD", "napari", "copick", "published weights"}
TABLE = re.findall(
    r"^\| `(?:python [a-z]+\.py|\.\.\.) ?(.*?)` \| (?:the same, or )?`(.*?)` \|$",
    (ROOT / "docs/how-to/coming-from-etsam.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_demo_ends_with_the_page_that_its_prediction_writes():
    lines = subprocess.run(["make", "-n", "-C", ROOT, "demo"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in lines.splitlines() if not line.startswith("make")]
    (words,) = (shlex.split(line) for line in lines if " predict " in line)
    args, rest = build_parser().parse_known_args(words[1:])
    cfg = compose_config("predict", predict_overrides(args, rest))
    assert cfg.write_page
    page = ROOT / cfg.output_dir / f"{Path(args.inputs[0]).stem}_etsam_predicted.html"
    assert shlex.split(lines[-1])[-1].endswith(f" {page}")


def blocks(page, kind):
    """(what it needs, text) of the blocks of a kind."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(one["needs"], one["text"]) for one in found if one["kind"] == kind]


def commands(text):
    """Lines of a block as the shell takes them: joined where they go on, without comments."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def words_of(line):
    """Arguments of each `etsam` of a line, also behind `srun` or in a container."""
    words, found = shlex.split(line, comments=True), []
    for word in words:
        if word == "etsam" or word.endswith(("/bin/etsam", "etsam.sif")):
            found.append([])
        elif word in ("&&", "||", ";", "|"):
            found.append(None)
        elif found and found[-1] is not None:
            found[-1].append(word)
    return [one for one in found if one and one[0] not in (".", "containers/etsam.def")]


def composed(words):
    """The config that an `etsam predict` command line gives."""
    args, rest = build_parser().parse_known_args(words)
    return compose_config("predict", predict_overrides(args, rest))


def first_of_sweeps(settings):
    """Settings of a sweep's first run."""
    plain = [setting for setting in settings if not setting.startswith(("--", "hydra"))]
    plain = [re.sub(r"=(?:tag\(\w+,)?interval\(([^,]+),.*$", r"=\1", setting) for setting in plain]  # a searched space
    return [re.sub(r"^(\w[\w.]*=[^,\[\]{}']+),.*$", r"\1", setting) for setting in plain]


def check(words):
    """Parse a command and compose its settings; nothing runs."""
    args, rest = build_parser().parse_known_args(words)
    assert not [word for word in rest if word.startswith("-") and word != "--multirun"]
    if words[0] == "predict":
        assert composed(words).input
        return
    settings = [*rest, *getattr(args, "settings", [])]
    if words[0] == "evaluate":
        assert compose_config("evaluate", evaluate_overrides(args, settings)).data.manifest
    elif words[0] == "train":
        if args.list is None:
            compose_config("train", first_of_sweeps(settings))
    elif words[0] == "finetune":
        compose_config("train", ["experiment=finetune", "start=nano_stage1", *settings])
    elif words[0] == "robustness":
        compose_config("robustness", settings)


@pytest.mark.parametrize(
    "line", sorted({line for page in PAGES for _, text in blocks(page, "bash") for line in commands(text)})
)
def test_every_command_of_every_page_parses(line):
    for words in words_of(line):
        check(words)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_is_bash_and_what_it_needs_is_known(page):
    for needs, text in blocks(page, "bash"):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert needs is None or needs in REASONS
        if needs is None:  # it runs below
            assert all(line.startswith(("etsam ", "make ")) for line in commands(text))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_and_picture_of_a_page_is_there(page):
    for target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_page_and_every_picture_is_used():
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    linked = {(page.parent / name).resolve() for page, text in texts.items() for name in LINK.findall(text)}
    for picture in (ROOT / "docs/images").iterdir():
        assert picture in linked
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in navigation


def test_every_make_target_of_the_pages_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for target in re.findall(r"\bmake ([a-z-]+)(?=[`\s]*(?:`|$|#))", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_containers_take_all_that_the_wheel_is_made_of():
    with open(ROOT / "pyproject.toml", "rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    docker = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    apptainer = (ROOT / "containers/etsam.def").read_text(encoding="utf-8")
    apptainer = re.findall(r"^    (\S+) /source/\1$", apptainer, re.MULTILINE)
    for part in ("pyproject.toml", "README.md", "LICENSE", *wheel["packages"], *wheel["force-include"]):
        within = [part, *map(str, Path(part).parents)]
        for copied in (docker, apptainer):
            assert any(fnmatch(one, pattern) for one in within for pattern in copied), part


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 65


@pytest.mark.parametrize(("published", "ours"), [row for row in TABLE if "=" in row[1] and "etsam " not in row[1]])
def test_flag_and_setting_of_each_row_of_the_table_mean_the_same(published, ours):
    by_flag = composed(["predict", "a.mrc", *shlex.split(published)])
    by_setting = composed(["predict", "a.mrc", *shlex.split(ours)])
    assert by_flag == by_setting
    assert by_flag != composed(["predict", "a.mrc"])


def test_the_table_has_a_row_for_every_flag_of_the_published_tool():
    assert len(TABLE) == 10


def test_the_postprocess_command_parses():
    args, _ = build_parser().parse_known_args(["postprocess", "IN.mrc", "OUT.mrc", "--post-process"])
    assert postprocess_overrides(args) == ["postprocess=all"]


@pytest.fixture(scope="module")
def reference():
    """Module that makes the text of the reference pages."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_names_every_command_and_every_flag(reference):
    text = reference.command_line()
    for command in ("etsam predict", "etsam threshold", "etsam data collect", "etsam weights download", "etsam doctor"):
        assert re.search(rf"^###* {command}$", text, re.MULTILINE)
    flags = build_parser()._subparsers._group_actions[0].choices["predict"]._option_string_actions
    assert [flag for flag in flags if flag not in text] == []


def test_the_settings_of_the_reference_exist_and_have_their_defaults(reference):
    cfg = compose_config("predict")
    part = reference.settings().partition("## etsam evaluate")[0]
    rows = re.findall(r"^\| `([\w.@]+)` \| `(.*?)` \|", part, re.MULTILINE)
    assert len(rows) > 40
    for key, value in rows:
        if key in ("stage1.threshold", "overwrite", "views", "normalize.low_percent", "tiles.overlap_voxels"):
            assert OmegaConf.select(cfg, key, default="absent") == OmegaConf.create(f"x: {value}").x, key


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "stage2.threshold" in (tmp_path / "site/reference/settings.html").read_text(encoding="utf-8")
    assert (tmp_path / "site/repository/checkpoints/index.html").exists()


# ---- running them


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Files that pages name: small simulated tomograms, masks, and what a prediction of one of them leaves."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        simulate = (
            "data simulate --n 5 --shape 20,64,72 --voxel-size 12 --val-fraction 0.4 --seed 3 --output-dir simulated"
        )
        easy = ["specimen.empty_probability=0", "acquisition.snr=[0.8,1]", "acquisition.max_tilt_degrees=[60,60]"]
        assert status_of([*simulate.split(), *easy, "min_contrast=0.3"]) == 0
        Path("data").mkdir()
        for number, tomogram in enumerate(sorted(Path("simulated").glob("simulated_3_????.mrc"))):
            shutil.copy(tomogram, f"data/cell{number}.mrc")
            shutil.copy(tomogram.with_name(f"{tomogram.stem}_membrane.mrc"), f"data/cell{number}_mask.mrc")
        shutil.copy("data/cell0.mrc", "tomogram.mrc")
        Path("tomograms").mkdir()
        shutil.copy("data/cell1.mrc", "tomograms/TS_01_rec.mrc")
        Path("list.txt").write_text("tomograms/TS_01_rec.mrc\n")
        manifest = (
            "data manifest --tomograms data/*.mrc --masks data/*_mask.mrc --split 0.8,0.2,0 --output manifest.csv"
        )
        assert status_of(manifest.split()) == 0
        assert (
            status_of(
                ["predict", "tomogram.mrc", "--weights", "nano", "--output-dir", "made/results", "--store-logits"]
            )
            == 0
        )
        predict = ["predict", *map(str, sorted(Path("simulated").glob("simulated_3_????.mrc"))), "--weights", "nano"]
        assert status_of([*predict, "--output-dir", "made/masks/mine"]) == 0
        shutil.copytree("made/masks/mine", "made/masks/other")
        mask = read_volume("data/cell0_mask.mrc")
        write_mrc("mask_255.mrc", np.stack([mask[z] for z in range(mask.shape[0])]) * np.uint8(255))
        points = np.argwhere(np.stack([mask[z] for z in range(mask.shape[0])]))[::50]
        np.savetxt("points.csv", points, "%d", ",", header="z_voxel,y_voxel,x_voxel", comments="")
        shutil.copytree(ROOT / "data/demo", "data/demo")
    return folder


@pytest.fixture
def desk(prepared, tmp_path, monkeypatch):
    """A copy of it that is the current folder; what a prediction leaves is laid there when a page asks for it."""
    shutil.copytree(prepared, tmp_path / "desk", ignore=lambda folder, names: ["made"] if "made" in names else [])
    monkeypatch.chdir(tmp_path / "desk")
    return prepared / "made"


def shell_words(line):
    """Arguments of `etsam`, expanded by bash."""
    script = f"etsam() {{ printf '%s\\0' \"$@\"; }}; {line}"
    return subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.decode().split("\0")[:-1]


def lay(text, made):
    """Put the files that a text names and that are not there from `made` into the current folder."""
    for name in sorted(set(re.findall(r"\b(?:results|masks)/[\w./*-]+", text))):
        for source in made.glob(name) if not Path(name).exists() else ():
            target = Path(source.relative_to(made))
            if not target.exists():
                shutil.copytree(source, target) if source.is_dir() else (
                    target.parent.mkdir(parents=True, exist_ok=True),
                    shutil.copy(source, target),
                )


RUNNING = [page for page in PAGES if any(needs is None for needs, _ in blocks(page, "bash"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_run_one_after_the_other(page, desk):
    for needs, text in blocks(page, "bash"):
        for line in commands(text):
            if needs is None and line.startswith("etsam "):
                if line.startswith("etsam data manifest"):
                    Path("manifest.csv").unlink()  # the page makes it itself
                elif not re.match(r"etsam predict|etsam data simulate", line):
                    lay(line, desk)
                assert status_of(shell_words(line)) == 0, line


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_the_python_of_a_page_runs_and_gives_what_its_comments_say(page, desk):
    scope: dict = {}
    for _, text in blocks(page, "python"):
        lay(text, desk)
        exec(text, scope)
    if "result" in scope:
        result = scope["result"]
        assert (result.mask.shape, result.mask.dtype) == ((101, 135, 135), np.uint8)
        assert (result.logits.shape, result.logits.dtype) == ((101, 135, 135), np.float32)
        assert result.voxel_size == pytest.approx((43.2, 43.2, 43.2), rel=1e-3)
    if "voxel_size" in scope:
        with mrcfile.open("tomogram.mrc") as tomogram:
            assert scope["voxel_size"].x == tomogram.voxel_size.x


def test_every_error_that_the_page_names_is_one_of_the_program():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "etsam").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts over several lines
    page = (ROOT / "docs/reference/errors.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 20
    assert [words for words in quoted if words not in source] == []
