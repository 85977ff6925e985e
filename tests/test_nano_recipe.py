"""checkpoints/train_nano.sh: what it asks of the program, seen by a stand-in, is what the program takes."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hydra.utils import instantiate

from etsam.app import check_values, compose_config
from etsam.cli import simulate
from etsam.cli.main import build_parser

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
SETS = 43  # simulated ones
STAND_IN = """#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
if arguments[:2] == ["data", "simulate"]:
    made = pathlib.Path(arguments[arguments.index("--output-dir") + 1]) / "manifest.csv"
elif arguments[0] == "train":
    folder = next(item for item in arguments if item.startswith("output_dir=")).partition("=")[2]
    made = pathlib.Path(folder) / "checkpoints/last.ckpt"
else:
    made = pathlib.Path(arguments[2])
made.parent.mkdir(parents=True, exist_ok=True)
made.touch()
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Run the script in a folder of its own; gives the calls of `etsam`."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "bin").mkdir()
    (folder / "bin/etsam").write_text(STAND_IN.format(python=sys.executable))
    (folder / "bin/etsam").chmod(0o755)

    def run(*arguments, **variables):
        (folder / "calls.jsonl").unlink(missing_ok=True)
        environment = os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"} | variables
        done = subprocess.run(
            ["bash", str(CHECKPOINTS / "train_nano.sh"), *arguments],
            cwd=folder,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
        calls = folder / "calls.jsonl"
        return done, [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    return run


@pytest.fixture(scope="module")
def calls(recipe):
    done, calls = recipe("polnet.csv", "out", "7", "trainer.log_every_n_steps=5")
    assert done.returncode == 0, done.stderr
    assert "out/seed7/nano_stage1.safetensors and nano_stage2.safetensors" in done.stdout
    return calls


def test_every_simulation_and_training_composes(calls):
    simulated, trained = [], []
    for call in calls:
        if call[:2] == ["data", "simulate"]:
            args, rest = build_parser().parse_known_args(call)
            args.settings = [*args.settings, *rest]
            cfg = compose_config("simulate", simulate.overrides(args))
            check_values(cfg, "simulate")
            instantiate(cfg.simulator)
            simulated.append(args.output_dir)
        elif call[0] == "train":
            cfg = compose_config("train", call[1:])
            assert cfg.seed == 7
            assert cfg.trainer.precision == "bf16-mixed"
            assert cfg.trainer.log_every_n_steps == 5
            for source in cfg.data.sources.values():
                assert source.manifest == "polnet.csv" or Path(source.manifest).parent in simulated
            trained.append(cfg)
    assert len(simulated) == len(set(simulated)) == SETS
    assert [cfg.name for cfg in trained] == [f"nano_{step}" for step in ("slices", "stage1", "stage2_slices", "stage2")]
    assert all(not name.startswith("val_") for cfg in trained for name in cfg.data.sources)
    for before, cfg in pairwise(trained):
        assert cfg.start == f"{before.output_dir}/checkpoints/last.ckpt"
    seen, unseen = set(trained[1].data.sources), set(trained[3].data.sources)
    assert seen & unseen == {"own"}  # stage 2 learns from logits of tomograms that stage 1 has not learned from
    assert [call[2] for call in calls if call[0] == "export"] == [
        f"out/seed7/nano_stage{number}.safetensors" for number in (1, 2)
    ]


def test_a_part_of_it_learns_from_fewer_tomograms_in_fewer_steps_and_is_judged_by_the_same(recipe, calls):
    _, parts = recipe("polnet.csv", "part", "7", PART="4")

    def tomograms(calls):
        made = [call for call in calls if call[:2] == ["data", "simulate"]]
        return {Path(call[call.index("--output-dir") + 1]).name: int(call[call.index("--n") + 1]) for call in made}

    whole, part = tomograms(calls), tomograms(parts)
    assert part == {name: count if name.startswith("val_") else -(-count // 4) for name, count in whole.items()}
    steps = [
        [cfg.trainer.max_epochs * cfg.data.epoch_clips for cfg in trained]
        for trained in ([compose_config("train", c[1:]) for c in run if c[0] == "train"] for run in (calls, parts))
    ]
    assert steps[1] == [clips // 4 for clips in steps[0]]


def test_what_is_finished_is_not_done_again(recipe, calls):
    done, again = recipe("polnet.csv", "out", "7")
    assert done.returncode == 0, done.stderr
    assert {call[0] for call in again} == {"export"}


def test_without_arguments_it_says_what_it_takes(recipe):
    done, none = recipe()
    assert done.returncode == 1
    assert "POLNET_MANIFEST OUTPUT_FOLDER [SEED]" in done.stdout
    assert none == []
