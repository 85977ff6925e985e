"""Flags that people type: what they set, what is said of those that do not exist, and in whose words messages speak."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import write_mrc
from omegaconf import OmegaConf

from etsam.app import compose_config
from etsam.cli.evaluate import evaluate_overrides
from etsam.cli.main import build_parser
from etsam.cli.predict import predict_overrides
from etsam.cli.settings_list import settings_of_config
from etsam.cli.wording import InFlags, did_you_mean
from etsam.paths import resource_path


def composed(command, *arguments):
    """The config that `etsam COMMAND ARGUMENTS` runs."""
    args, rest = build_parser().parse_known_args([command, *arguments])
    if command == "predict":
        return compose_config("predict", predict_overrides(args, rest))
    return compose_config("evaluate", evaluate_overrides(args, [*rest, *args.settings]))


@pytest.mark.parametrize(
    ("flags", "key", "expected"),
    [
        (["-o", "my masks"], "writer.output_dir", "my masks"),
        (["--threshold", "-1e-3"], "stage2.threshold", -0.001),
        (["--threshold", "auto", "--false-rate", "0.1"], "segmenter.false_rate", 0.1),
        (["--membranes", "bright"], "normalize.membranes", "bright"),
        (["--instances"], "writer.write_instances", True),
        (["--no-page"], "writer.companions.page.enabled", False),
        (["--page"], "overview.page", True),
        (["--quick"], "slice_stride", 2),
        (["--better"], "axes", ["z", "y", "x"]),
        (["--better"], "side_slice_stride", 2),
        (["--memory", "4GB"], "memory_budget_gb", 4.0),
        (["--memory", "500 MB"], "memory_budget_gb", 0.5),
        (["--memory", "2GiB"], "memory_budget_gb", 2.14748365),
        (["--gpu", "cpu"], "trainer.accelerator", "cpu"),
        (["--gpu", "mps"], "trainer.accelerator", "mps"),
        (["--gpu", "mps"], "trainer.precision", "32-true"),
        (["--gpu", "3"], "trainer.devices", [3]),
        (["--gpu", "3"], "trainer.accelerator", "gpu"),
        (["--gpu", "0,2"], "trainer.devices", [0, 2]),
        (["--gpu", "0,2"], "trainer.strategy", "ddp"),
        (["--gpu", "all"], "trainer.devices", -1),
    ],
)
def test_each_flag_sets_its_value(flags, key, expected):
    found = OmegaConf.select(composed("predict", "tomo.mrc", *flags), key)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == expected


@pytest.mark.parametrize(
    ("flags", "override"),
    [(["--voxel-size", "13.48"], "voxel_size=13.48"), (["--strict"], "strict=true"), (["--force"], "force=true")],
)
def test_flags_about_the_tomograms_set_what_the_inputs_read(flags, override):
    args, rest = build_parser().parse_known_args(["predict", "tomo.mrc", *flags])
    assert override in predict_overrides(args, rest)
    args, rest = build_parser().parse_known_args(["predict", "tomo.mrc"])
    assert override not in predict_overrides(args, rest)


@pytest.mark.parametrize(
    ("arguments", "key", "expected"),
    [
        (["pairs.csv"], "data.manifest", "pairs.csv"),
        (["views=2", "my pairs.csv"], "data.manifest", "my pairs.csv"),
        (["pairs.csv", "-o", "report"], "output_dir", "report"),
        (["pairs.csv", "--threshold", "-1.5"], "stage2.threshold", -1.5),
        (["pairs.csv", "--predictions", "masks", "--threshold", "-1.5"], "prediction_threshold", -1.5),
        (["pairs.csv", "--predictions", "masks"], "data.predictions", "masks"),
        (["pairs.csv", "--gpu", "cpu"], "trainer.accelerator", "cpu"),
        (["data.manifest=pairs.csv"], "data.manifest", "pairs.csv"),
    ],
)
def test_evaluate_takes_a_manifest_and_flags(arguments, key, expected):
    assert OmegaConf.select(composed("evaluate", *arguments), key) == expected


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["predikt", "a.mrc"], "did you mean predict?"),
        (["segment", "a.mrc"], "did you mean predict?"),
        (["data", "colect"], "did you mean collect?"),
        (["predict", "a.mrc", "--gpus", "0"], "did you mean --gpu?"),
        (["predict", "a.mrc", "--device=cuda"], "did you mean --gpu=cuda?"),
        (["predict", "a.mrc", "--treshold", "0"], "did you mean --threshold?"),
        (["predict", "a.mrc", "--apix", "10"], "did you mean --voxel-size?"),
        (["predict", "a.mrc", "--slice-stride", "3"], "slice_stride=3"),
        (["predict", "a.mrc", "--membranes", "drak"], "did you mean dark?"),
        (["weights", "get", "etsam_v1"], "did you mean download?"),
        (["predict", "a.mrc", "--gpu", "one"], "--gpu one"),
        (["predict", "a.mrc", "--memory", "much"], "--memory much"),
        (["predict", "a.mrc", "--quick", "--better"], "--quick leaves slices out"),
        (["evaluate", "a.csv", "b.csv"], "b.csv"),
        (["evaluate", "a.csv", "--overwite"], "did you mean --overwrite?"),
        (["demo"], "did you mean data demo?"),
        (["predict", "--settings", "nothing_like_it"], "nothing_like_it"),
    ],
)
def test_what_is_mistyped_is_told_with_what_was_meant(etsam, arguments, part):
    outcome = etsam(*arguments)
    assert outcome.status == 1
    assert part in outcome.message


def parsers(parser):
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        for command in set(action.choices.values()) if isinstance(action.choices, dict) else ():
            yield from parsers(command)


def test_where_outputs_go_is_told_by_o_in_every_command():
    flags = [set(parser._option_string_actions) for parser in parsers(build_parser())]
    assert sum("--output-dir" in names for names in flags) > 10
    assert all(("-o" in names) == ("--output-dir" in names) for names in flags)


def test_a_word_like_no_other_gets_no_suggestion():
    assert did_you_mean("xyzzy", ["predict", "evaluate"]) is None


@pytest.mark.parametrize(
    ("message", "typed", "expected"),
    [
        ("set overwrite=true to replace it", [], "add --overwrite to replace it"),
        ("set overwrite=true or resume=true", ["resume=true"], "add --overwrite or resume=true"),
        ("remove it or set overwrite=true.", [], "remove it or add --overwrite."),
        ("choose another output_dir.", [], "choose another --output-dir."),
        ("overwrite=no does not fit", [], "overwrite=no does not fit"),
        ("try stage2.threshold=-0.5, normalize.membranes=dark", [], "try --threshold -0.5, --membranes dark"),
        ("stage1.threshold=0 or a/weights=b", [], "stage1.threshold=0 or a/weights=b"),
        ("memory_budget_gb=0.01 is too little: all", [], "--memory 0.01GB is too little: all"),
        ("postprocess=all postprocess.thin_noise=3", [], "--post-process postprocess.thin_noise=3"),
    ],
)  # fmt: skip
def test_messages_speak_in_flags_but_for_settings_that_were_typed(message, typed, expected):
    flags = ["--overwrite", "--resume", "--output-dir", "--threshold", "--membranes", "--weights", "--memory"]
    flags += ["--post-process"]
    assert InFlags(flags, typed)(message) == expected


def test_an_output_that_exists_is_told_in_the_words_of_the_command(tomogram, predict, work):
    (work / "out").mkdir()
    write_mrc(work / "out" / "tomo_etsam_predicted_mask.mrc")
    message = predict("tomo.mrc").message
    assert "--overwrite" in message
    assert "overwrite=true" not in message


def test_etsam_alone_shows_the_commands_in_groups(etsam):
    outcome = etsam()
    assert outcome.status == 0
    titles = [line for line in outcome.stdout.splitlines() if line.endswith(":")]
    assert titles[:4] == ["segment:", "train:", "judge:", "data:"]
    assert outcome.stdout == etsam("--help").stdout
    shown = {line.split()[0] for line in outcome.stdout.splitlines() if line.startswith("  ")}
    assert set(build_parser()._subparsers._group_actions[0].choices) <= shown


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "missing.mrc"], ["predict", "--settings", "stride"]])
def test_quick_answers_import_neither_torch_nor_lightning(arguments, work):
    code = (
        "import json, sys, etsam.cli.main\n"
        f"try: etsam.cli.main.main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted({'torch', 'lightning', 'hydra', 'matplotlib'} & set(sys.modules))))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout.splitlines()[-1]) == []


def test_weights_beside_predictions_that_are_there_are_refused(etsam, work):
    outcome = etsam("evaluate", "manifest.csv", "--predictions", "masks", "--weights", "nano")
    assert (outcome.status, "--weights nano" in outcome.message) == (1, True)


def test_the_sign_of_life_comes_before_every_slow_import(tomogram):
    code = (
        "import sys, etsam.cli.main, etsam.cli.predict as predict\n"
        "slow = {'torch', 'hydra', 'numpy', 'omegaconf'}\n"
        "predict.run_config = lambda *_: print('etsam.screen' in sys.modules, slow & set(sys.modules))\n"
        "etsam.cli.main.main(['predict', 'tomo.mrc'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "True set()\n"


def test_missing_files_get_a_line_each(etsam, work):
    outcome = etsam("predict", "one.mrc", "two.mrc")
    assert outcome.status == 1
    assert [line.split(":")[0].strip() for line in outcome.stderr.splitlines()[1:]] == ["one.mrc", "two.mrc"]


@pytest.mark.parametrize("name", ["predict", "train", "evaluate"])
def test_settings_lists_keys_that_exist_with_their_defaults(name):
    settings = settings_of_config(resource_path("configs"), name)
    cfg = compose_config(name)
    missing = object()
    for setting in settings:
        if "@" not in setting.key and setting.value not in ("???", "''") and "." in setting.key:
            assert OmegaConf.select(cfg, setting.key, default=missing, throw_on_missing=False) is not missing, setting
    keys = [setting.key for setting in settings]
    assert len(set(keys)) == len(keys)
    about = {setting.key: setting.about for setting in settings}
    assert about["output_dir"]
    assert name == "train" or all(about[key] for key in about if "." not in key)


def test_settings_shows_those_with_a_word(etsam):
    outcome = etsam("predict", "--settings", "stride")
    assert outcome.status == 0
    assert [line.split()[:2] for line in outcome.stdout.splitlines()[1:3]] == [
        ["side_slice_stride", "1"],
        ["slice_stride", "1"],
    ]


@pytest.mark.parametrize(
    ("typed", "override"),
    [
        (["--threshold", "auto"], "threshold=auto"),
        (["--threshold", "-1e-3"], "stage2.threshold=-0.001"),
        (["--lamella"], "sample=slab"),
        (["--exclude", "gold,carbon"], "exclude=[gold,carbon]"),
    ],
)
def test_flags_of_threshold_and_of_what_is_left_out_are_settings(typed, override):
    args, rest = build_parser().parse_known_args(["predict", "a.mrc", *typed])
    assert override in predict_overrides(args, rest)


@pytest.mark.parametrize("typed", [["--threshold", "low"], ["--exclude", "gold;border"]])
def test_flags_that_take_no_such_word_say_what_they_take(etsam, typed):
    outcome = etsam("predict", "a.mrc", *typed)
    assert outcome.status == 1
    assert typed[0] in outcome.message
    assert typed[1] in outcome.message


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        (["predict", "tomo.mrc", "--voxel-size", "10A"], ["--voxel-size 10A", "13.5"]),
        (["predict", "tomo.mrc", "--threshold", "0,5"], ["--threshold", "0,5", "0.5"]),
        (["threshold", "--at", "0", "tomo.mrc"], ["--at", "tomo.mrc", "before"]),
        (["inspect", "--preview", "tomo.mrc"], ["--preview", "tomo.mrc", ".png"]),
        (["evaluate"], ["data.manifest=MANIFEST.csv"]),
        (["evaluate", "m.csv", "prediction_threshold=0"], ["prediction_threshold=0", "predictions="]),
        (["data", "simulate", "-o", "new", "nonsense=3"], ["nonsense"]),
        (["data", "simulate", "-o", "new", "--n", "two"], ["--n two", "whole number"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_people_mistype_is_answered_in_one_line_that_helps(etsam, tomogram, work, arguments, tokens):
    outcome = etsam(*arguments)
    assert outcome.status == 1
    assert all(token in outcome.message for token in tokens), outcome.message
    assert [path.name for path in work.iterdir()] == ["tomo.mrc"]


def test_the_threshold_may_be_called_as_predict_calls_it(etsam, work):
    write_mrc(work / "logits.mrc", np.random.default_rng(0).normal(size=(6, 20, 24)).astype(np.float32))
    assert etsam("threshold", "logits.mrc", "--threshold", "0.5", "--no-preview", "--no-page").status == 0
    assert (work / "logits_etsam_predicted_at_0.5_mask.mrc").exists()
