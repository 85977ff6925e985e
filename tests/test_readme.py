"""What the README tells people to type works."""

import re
import shlex

import numpy as np
import pytest

from etsam.app import compose_config
from etsam.cli.main import build_parser, postprocess_overrides, predict_overrides
from etsam.paths import resource_path

ROOT = resource_path("configs").parent
if not (ROOT / "README.md").exists():
    pytest.skip("needs a checkout", allow_module_level=True)
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = "".join(
    page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
)
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGES, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
TABLE = re.findall(r"^\| `(?:python [a-z]+\.py|\.\.\.) ?(.*?)` \| (?:the same, or )?`(.*?)` \|$", README, re.MULTILINE)


def composed(words):
    """The config that an `etsam predict` command line gives."""
    args, rest = build_parser().parse_known_args(words)
    return compose_config("predict", predict_overrides(args, rest))


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("etsam predict")])
def test_every_predict_command_composes(line):
    cfg = composed(shlex.split(line, comments=True)[1:])
    assert cfg.input


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("etsam train")])
def test_every_train_command_composes(line):
    cfg = compose_config("train", shlex.split(line)[2:])
    assert cfg.name.startswith("first")


PARSED = [line for line in COMMANDS if line.startswith("etsam ") and line.split()[1] not in ("predict", "train")]


@pytest.mark.parametrize("line", PARSED)
def test_every_other_command_parses(line):
    args, rest = build_parser().parse_known_args(shlex.split(line, comments=True)[1:])
    assert not [word for word in rest if word.startswith("-")]
    assert args.command == line.split()[1]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("etsam evaluate")])
def test_every_evaluate_command_composes(line):
    assert compose_config("evaluate", shlex.split(line)[2:]).data.manifest == "manifest.csv"


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("python predict.py")])
def test_every_script_command_composes(line):
    assert compose_config("predict", shlex.split(line)[2:]).input == "tomogram.mrc"


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


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", "\n".join(COMMANDS), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_python_example_runs_and_gives_what_its_comments_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    scope: dict = {}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(text, scope)
    result = scope["result"]
    assert (result.mask.shape, result.mask.dtype) == ((101, 135, 135), np.uint8)
    assert (result.logits.shape, result.logits.dtype) == ((101, 135, 135), np.float32)
    assert result.voxel_size == pytest.approx((43.2, 43.2, 43.2), rel=1e-3)
