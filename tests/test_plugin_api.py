"""The published tool's Python interface, as its plugins call it."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import SHAPE, grey

import etsam
from etsam import plugin_api
from etsam.errors import ConfigError
from etsam.postprocess.steps import RemoveThinNoise, SeverMisconnections, apply_steps

TOY = ["net=tiny_test", "weights=random", "trainer=cpu"]
# what the plugins' worker sends
SENT = {"normalize_method": "min_max_positive_values", "stage1_prompt": "grid_zero", "stage2_prompt": "zero"}


def test_the_published_arguments_give_the_logits_of_ours_into_a_file(tmp_path):
    ours = etsam.segment(grey(), overrides=[*TOY, "tiles=split2x2", "prompt@stage2.prompt=stage1_mask"]).logits
    told, path = [], tmp_path / "logits.npy"
    sent = SENT | {"stage2_prompt": "etsam_stage1_partial", "split_processing": True}
    theirs = etsam.segment(
        grey(), **sent, progress=lambda *what: told.append(what), output_path=str(path), overrides=TOY
    )
    np.testing.assert_array_equal(np.load(path), ours)
    np.testing.assert_array_equal(theirs, ours)
    assert (theirs.shape, theirs.dtype) == (SHAPE, np.float32)
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] < 0.05
    assert fractions[-1] == 1
    assert all(isinstance(message, str) and message for _, message in told)
    assert os.listdir(tmp_path) == [path.name]


def test_without_a_file_the_logits_are_an_array():
    logits = etsam.segment(grey(), **SENT, split_processing=False, overrides=TOY)
    np.testing.assert_array_equal(logits, etsam.segment(grey(), overrides=TOY).logits)


def test_the_workers_question_for_output_path_is_answered():
    assert "output_path" in inspect.signature(etsam.segment).parameters


def test_an_unknown_word_is_refused():
    with pytest.raises(ConfigError, match="normalize_method"):
        etsam.segment(grey(), normalize_method="other")


def test_post_processing_is_the_published_one():
    mask = (np.random.default_rng(0).random((14, 30, 44)) > 0.6).astype(np.uint8)
    expected = apply_steps(mask, [RemoveThinNoise(), SeverMisconnections()])
    np.testing.assert_array_equal(plugin_api.postprocess(mask), np.stack([expected[z] for z in range(14)]))


def test_the_plugins_python_finds_both_modules(tmp_path):
    start = "import sys; from etsam.plugin_api import plugin_python; sys.argv[1:] = sys.argv[2:]; plugin_python()"
    ask = "import etsam, postprocess; print(postprocess.postprocess.__module__, callable(etsam.segment))"
    ended = subprocess.run(
        [sys.executable, "-c", start, "--", "-c", ask], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert ended.stdout.split() == ["etsam.plugin_api", "True"]
