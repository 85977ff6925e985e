"""Every shipped config composes, and its objects can be built."""

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

from etsam.app import compose_config
from etsam.inference import prompts
from etsam.network.build import build_network
from etsam.paths import resource_path
from etsam.prediction.segmenter import Segmenter
from etsam.weights.registry import REGISTRY

CONFIGS = Path(resource_path("configs"))


def options(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml") if not path.stem.startswith("_"))


@pytest.mark.parametrize("group", ["normalize", "tiles", "postprocess"])
def test_every_option_of_a_group_builds_a_segmenter_and_a_writer(group, tmp_path):
    for option in options(group):
        cfg = compose_config(
            "predict", ["net=tiny_test", "weights=random", f"{group}={option}", f"output_dir='{tmp_path}'"]
        )
        assert isinstance(instantiate(cfg.segmenter), Segmenter)
        instantiate(cfg.writer)


@pytest.mark.parametrize("option", options("prompt"))
def test_every_prompt_is_the_function_it_is_named_after(option):
    cfg = compose_config("predict", [f"prompt@stage2.prompt={option}"])
    assert instantiate(cfg.stage2.prompt).func is getattr(prompts, option)


# parameters in millions, counted with the configs of sam2 1.1.0 itself
@pytest.mark.parametrize(
    ("option", "millions", "side"),
    [
        ("sam2.1_hiera_t", 38.96, 1024),
        ("sam2.1_hiera_s", 46.06, 1024),
        ("sam2.1_hiera_b+", 80.85, 1024),
        pytest.param("sam2.1_hiera_l", 224.45, 1024, marks=pytest.mark.slow),
        ("nano_v1", 4.33, 256),
        ("nano", 3.61, 512),
        ("tiny_test", 0.66, 64),
        ("tiny_voxel_test", 0.27, 160),
    ],
)
def test_every_network_builds_with_its_number_of_parameters(option, millions, side):
    network = build_network(compose_config("predict", [f"net={option}"]).net)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert network.image_size == side


def test_every_network_config_is_covered_above():
    ours = ["nano", "nano_v1", "tiny_test", "tiny_voxel_test"]
    assert options("net") == sorted([*ours, "sam2.1_hiera_b+", "sam2.1_hiera_l", "sam2.1_hiera_s", "sam2.1_hiera_t"])


@pytest.mark.parametrize("size", ["t", "s", "b+", "l"])
def test_the_published_sizes_have_the_hyper_parameters_of_the_official_package(size):
    import sam2

    official = OmegaConf.load(Path(sam2.__path__[0]) / f"configs/sam2.1/sam2.1_hiera_{size}.yaml").model
    ours = compose_config("predict", [f"net=sam2.1_hiera_{size}"]).net

    def compare(theirs, mine, key):
        if OmegaConf.is_dict(theirs):
            for name, value in theirs.items():
                compare(value, mine[name], f"{key}.{name}")
        else:
            assert theirs == mine, key

    compare(official, ours, "net")


@pytest.mark.parametrize("option", options("trainer"))
def test_every_trainer_composes_with_a_precision(option):
    assert compose_config("predict", [f"trainer={option}"]).trainer.precision in ("32-true", "bf16-mixed")


def test_the_published_weights_bring_their_network_and_normalisation():
    cfg = compose_config("predict", ["weights=etsam_v1"])
    assert cfg.net.image_encoder.trunk.embed_dim == 112
    assert cfg.normalize._target_ == "etsam.normalize.MinMaxPositive"
    assert cfg.stage1.tracker.checkpoint.endswith("etsam_stage1_v1.pt")
    assert (cfg.stage1.threshold, cfg.stage2.threshold) == (-0.25, -0.25)


def test_settings_on_the_command_line_win_over_those_of_a_group():
    cfg = compose_config("predict", ["weights=etsam_v1", "normalize=robust", "tiles=split2x2", "grid_interval=7"])
    assert cfg.normalize._target_ == "etsam.normalize.Robust"
    assert cfg.stage1.prompt.interval == 7


def test_split_processing_sets_interval_10_and_the_published_names():
    cfg = compose_config("predict", ["tiles=split2x2"])
    assert cfg.stage1.prompt.interval == 10
    assert cfg.writer.infix == "_split_processing"


def test_random_weights_of_the_two_stages_differ():
    cfg = compose_config("predict", ["weights.seed=4"])
    assert (cfg.stage1.tracker.seed, cfg.stage2.tracker.seed) == (4, 5)


@pytest.mark.parametrize("name", ["nano", "etsam_v1"])
def test_the_voxel_sizes_of_weights_are_those_that_weights_list_shows(name):
    assert tuple(compose_config("predict", [f"weights={name}"]).weights.voxel_sizes) == REGISTRY[name].voxel_angstrom


@pytest.mark.parametrize(("experiment", "trained"), [("nano_slices", 1), ("nano_stage1", 6), ("nano_stage2", 6)])
@pytest.mark.parametrize(("net", "seen"), [("nano", 21), ("tiny_test", 1)])
def test_clips_of_nano_have_as_many_slices_to_train_whatever_the_network_sees(experiment, trained, net, seen):
    data = compose_config("train", [f"experiment={experiment}", f"net={net}", "data.sources.own.manifest=m"]).data
    assert data.num_slices == trained + seen - 1


def test_a_config_is_composed_within_a_job_of_hydra_and_leaves_it_as_it_was():
    with initialize_config_dir(str(resource_path("configs")), version_base="1.3"):
        running = GlobalHydra.instance().hydra
        assert compose_config("train", ["experiment=finetune_nano", "name=x", "start=null"]).name == "x"
        assert GlobalHydra.instance().hydra is running
