"""Bad weights and settings that do not fit: one line, exit status 1, no file; and nothing in a checkpoint is run."""

import os
import pickle
import warnings

import pytest
import safetensors.torch
import torch

from etsam.app import compose_config
from etsam.errors import CheckpointError
from etsam.network.build import build_network
from etsam.network.checkpoint import read_state_dict

MARK = "executed.txt"


class Code:
    """Unpickling this creates a file: what a harmful checkpoint could do, harmlessly."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


@pytest.fixture(scope="module")
def state():
    """Weights of the toy network."""
    return build_network(compose_config("predict", ["net=tiny_test"]).net).state_dict()


@pytest.fixture
def weights_refused(refused, tomogram):
    """Use a file as weights of both stages, which has to be refused; gives the line."""

    def call(path, *arguments):
        return refused("tomo.mrc", "weights=files", f"weights.stage1={path}", f"weights.stage2={path}", *arguments)

    return call


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_missing_weights_are_named_with_the_place_where_they_were_looked_for(weights_refused, work):
    message = weights_refused("no.pt")
    assert str(work / "no.pt") in message
    assert "weights.stage1=FILE" in message


def test_published_weights_that_are_not_there_come_with_the_address(refused, tomogram):
    message = refused("tomo.mrc", "--weights", "etsam_v1")
    assert "checkpoints/etsam_stage1_v1.pt" in message
    assert "zenodo" in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page, not weights"),
        (b'<?xml version="1.0"?><Error>NoSuchKey</Error>', "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run `git lfs pull`"),
        (b"", "is empty, not weights"),
        (b'{"message": "Not found"}', "damaged, cut off or no checkpoint at all; download or copy it again"),
        (bytes(range(256)) * 20, "damaged, cut off or no checkpoint at all; download or copy it again"),
    ],
)
def test_a_failed_download_is_no_checkpoint(weights_refused, work, content, part):
    (work / "w.pt").write_bytes(content)
    assert part in weights_refused("w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_that_was_cut_off_is_refused(weights_refused, work, state, suffix):
    path = work / f"w{suffix}"
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    halved(path)
    assert weights_refused(path.name).startswith(f"{path.name} is damaged, cut off or no checkpoint at all")


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_code_in_a_checkpoint_is_refused_and_not_run(weights_refused, work, state, form):
    if form == "plain":
        (work / "w.pt").write_bytes(pickle.dumps({"model": state["no_mem_embed"].tolist(), "x": Code()}))
    else:
        content = {"model": state, "x": Code()}
        torch.save(content, work / "w.pt", _use_new_zipfile_serialization=form == "zip")
    message = weights_refused("w.pt")
    assert "possibly code; it was refused and nothing in it was run" in message
    assert not (work / MARK).exists()


def test_that_code_would_run_where_pickles_are_trusted(work):
    pickle.loads(pickle.dumps(Code()))  # so that the test above can fail
    assert (work / MARK).exists()


def test_weights_of_another_architecture_are_refused_with_what_differs(weights_refused, work, state):
    torch.save({"model": state}, work / "w.pt")
    message = weights_refused("w.pt", "net.num_maskmem=5")
    assert "another architecture than the chosen network: 1 of another shape (maskmem_tpos_enc (7, " in message
    assert "net=" in message


def test_weights_with_missing_and_unexpected_tensors_are_refused(weights_refused, work, state):
    fewer = {name: value for name, value in state.items() if name != "no_mem_embed"}
    torch.save({"model": {**fewer, "extra": torch.zeros(1)}}, work / "w.pt")
    message = weights_refused("w.pt")
    assert "1 missing (no_mem_embed); 1 unexpected (extra)" in message


def test_weights_that_are_not_finite_are_refused(weights_refused, work, state):
    broken = {**state, "no_mem_embed": torch.full_like(state["no_mem_embed"], float("nan"))}
    torch.save({"model": broken}, work / "w.pt")
    assert "not finite: 1 tensors (no_mem_embed)" in weights_refused("w.pt")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"model": 3}])
def test_a_file_without_tensors_holds_no_weights(weights_refused, work, content):
    torch.save(content, work / "w.pt")
    assert "holds no weights" in weights_refused("w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_whatever_bytes_change_the_error_is_about_the_checkpoint(work, suffix):
    tensors = {"maskmem_tpos_enc": torch.ones(3, 2), "a.b": torch.zeros(4)}
    path = work / f"w{suffix}"
    safetensors.torch.save_file(tensors, path) if suffix == ".safetensors" else torch.save({"model": tensors}, path)
    good, refusals = path.read_bytes(), 0
    for place in range(0, len(good), 11):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        try:
            read_state_dict(path)
        except CheckpointError as error:
            refusals += len(str(error).splitlines()) == 1
    assert refusals > 5


def test_reading_a_good_checkpoint_warns_of_nothing(work, state):
    torch.save({"model": state}, work / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_state_dict(work / "w.pt").keys() == state.keys()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["foo=3"], "there is no setting foo (foo=3); `etsam predict --settings` lists all"),
        (["stage2.treshold=0"], "did you mean stage2.threshold"),
        (["resegment_prompted=false"], "did you mean resegment_conditioning"),  # its name in version 0.1
        (["normalise=robust"], "did you mean normalize"),
        (["prompt=grid"], "did you mean prompt@stage1.prompt or prompt@stage2.prompt"),
        (["normalize=foo"], "normalize=foo is unknown; allowed: min_max_positive, robust, softplus_minmax."),
        (
            ["--weights", "my.pt"],
            "--weights my.pt is unknown",
        ),
        (["weights=files"], "weights.stage1 is not given; add weights.stage1=FILE"),
        (["input=a.mrc,b.mrc"], "input=[a.mrc,b.mrc]"),
        (["output_dir=a(b"], "put text with spaces or special characters in double quotes"),
        (["overwrite=no"], "overwrite=no"),
        (["stage2.threshold=high"], "stage2.threshold=high"),
        (["--logit-threshold", "nan"], "--threshold nan"),
        (["--logit-threshold", "high"], "--threshold: high"),
        (["grid_interval=1.5"], "grid_interval=1.5"),
        (["grid_interval=0"], "interval 0 has to be a whole number of voxels of at least 1"),
        (["nonfinite=zero"], "nonfinite=zero"),
        (["normalize.low_percent=99.9"], "99.9 and 99.5 are not two increasing numbers between 0 and 100"),
        (["trainer.precision=low"], "trainer.precision=low"),
        (["--overwrite", "--resume"], "--overwrite replaces what --resume would keep"),
        (
            ["--post-process", "--post-process-min-slices", "0"],
            "min_slices is 0; allowed are whole numbers of at least",
        ),
        (["--post-process", "--post-process-max-bridge-len", "-1"], "max_bridge_len is -1; allowed are"),
        (["--post-process-min-slices", "5"], "does nothing without post-processing; add --post-process"),
        (
            ["--postprocess-remove-thin-noise", "--post-process-max-spur-len", "5"],
            "--post-process-max-spur-len belongs to a step that is not run; add --post-process",
        ),
        (["--post-process-min-slices", "many"], "--post-process-min-slices many"),
        (["--treshold", "3"], "did you mean --threshold?"),
        (["--stage1-prompt", "etsam_stage1_partial"], "--stage1-prompt etsam_stage1_partial"),
        (["output_infix=a/b"], "output_infix=a/b is a part of file names, without /; for a folder use --output-dir"),
    ],
)
def test_settings_that_do_not_fit_are_refused(refused, tomogram, arguments, part):
    assert part in refused("tomo.mrc", *arguments)


def test_a_tomogram_has_to_be_named(refused, work):
    assert refused("write_logits=true") == "input is not given; add input=FILE, FOLDER, 'PATTERN' or LIST.txt."


def test_a_missing_file_with_an_equals_sign_is_taken_for_a_setting_and_explained(refused, work):
    assert "no setting a (a=b.mrc)" in refused("a=b.mrc")
    assert "If a file is called so, check that it is there" in refused("a=b.mrc")


@pytest.mark.parametrize("arguments", [["segment", "tomo.mrc"], ["predict"]])
def test_an_incomplete_command_points_to_the_help(etsam, arguments):
    outcome = etsam(*arguments)
    assert outcome.status == 1
    assert "--help`" in outcome.message
