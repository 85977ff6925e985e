"""Every number and switch of configs/ has a type, written where it is used; another is refused under the key's name."""

from pathlib import Path

import pytest
from conftest import write_mrc
from omegaconf import OmegaConf

from etsam.app import compose_config, types_without_target
from etsam.paths import resource_path
from etsam.settings import flat, misfits

CONFIGS = Path(resource_path("configs"))
FILES = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))
FILES = [name for name in FILES if "/_" not in name and not name.startswith("local")]
# Hydra's own; what Lightning takes as text, too; what sam2 does not annotate (told when the network is built)
ELSEWHERE = {
    "_recursive_",
    "_partial_",
    "devices",
    "num_pos_feats",
    "embedding_dim",
    "kv_in_dim",
    "out_dim",
    "dim",
    "num_layers",
}
# group -> the program whose config it is composed into, and where, if not under its own name
PLACES = {
    **dict.fromkeys(("net", "normalize", "postprocess", "tiles", "weights"), ("predict", "")),
    "prompt": ("predict", "@stage2.prompt"),
}


def composed(file):
    """(program, config with this file in it, prefix of the file's keys in it)."""
    group, _, option = file.partition("/")
    if not option:
        return group, compose_config(group), ""
    program, place = PLACES.get(group, ("train", ""))
    text = (CONFIGS / f"{file}.yaml").read_text()
    prefix = "" if "@package _global_" in text else f"{place[1:] or group}."
    added = "+" if group == "stage1_logits" else ""  # a group that experiments add
    return program, compose_config(program, [f"{added}{group}{place}={option}"]), prefix


def refused(cfg, program):
    return {line.partition("=")[0]: line for line in misfits(cfg, types_without_target(program))}


@pytest.mark.parametrize("file", FILES)
def test_a_text_in_place_of_any_number_or_switch_is_refused_by_its_key(file):
    program, cfg, prefix = composed(file)
    assert refused(cfg, program) == {}
    written = flat(OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{file}.yaml")))
    keys = {prefix + key for key, value in written.items() if isinstance(value, bool | int | float)}
    keys = {key for key in keys if not key.startswith("hydra.") and key.rpartition(".")[2] not in ELSEWHERE}
    for key in keys:
        OmegaConf.update(cfg, key, "text")
    lines = refused(cfg, program)
    assert keys - set(lines) == set()
    for key in keys:
        assert lines[key].startswith(f"{key}=text does not fit; allowed: ")


@pytest.mark.parametrize(
    ("program", "override", "allowed"),
    [
        ("predict", "memory_budget_gb=abc", "numbers or null"),
        ("predict", "stage2.threshold=.nan", "numbers"),
        ("predict", "weights.seed=abc", "whole numbers"),
        ("predict", "normalize.low_percent=a", "numbers"),
        ("predict", "net.memory_slices=1.5", "whole numbers or null"),
        ("predict", "overwrite=no", "true or false"),
        ("train", "optimizer.lr=fast", "numbers"),
        ("train", "data.num_slices=8.5", "whole numbers"),
        ("train", "data.batch_size=1.5", "whole numbers"),
        ("train", "data.batch_size=true", "whole numbers"),
        ("train", "trainer.max_epochs=two", "null"),
        ("train", "augment.noise.sigma=[0,wide]", "a list of numbers"),
        ("train", "freeze_image_encoder=no", "true or false"),
        ("evaluate", "prediction_threshold=high", "numbers or null"),
        ("train", "data.sources.own.weight=x", "numbers"),
        ("simulate", "simulator.specimen.kinds.tube=x", "numbers"),
        ("postprocess", "workers=two", "whole numbers or null"),
        ("postprocess", "postprocess.thin_noise.min_slices=x", "whole numbers"),
    ],
)
def test_what_does_not_fit_is_named_as_it_was_written_with_what_is_allowed(program, override, allowed):
    key = override.partition("=")[0]
    ((name, line),) = refused(compose_config(program, [override]), program).items()
    assert name == key
    assert allowed in line


def test_a_command_ends_with_status_1_and_the_line(etsam, work):
    write_mrc(work / "tomo.mrc")
    for command in (
        ("train", "name=x", "start=null", "optimizer.lr=fast"),
        ("predict", "tomo.mrc", "memory_budget_gb=abc"),
        ("evaluate", "data.manifest=m.csv", "workers=two"),
        ("postprocess", "in.mrc", "out.mrc", "postprocess.thin_noise.min_slices=x"),
        ("data", "simulate", "--output-dir", "out", "acquisition.snr=low"),
    ):
        outcome = etsam(*command)
        assert outcome.status == 1
        assert command[-1] in outcome.message
