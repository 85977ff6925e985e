"""Sources are mixed by weight, shared out over processes without overlap, and resumed in the middle of an epoch."""

from collections import Counter
from dataclasses import replace

import lightning
import mrcfile
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_manifest import make_sample, with_mask

from etsam.data.datamodule import Source, TomogramClips
from etsam.data.manifest import write_manifest
from etsam.errors import ConfigError, InputError
from etsam.normalize import Robust
from etsam.paths import resource_path

QUIET = [
    # advice of Lightning 2.6 about speed, logging and folders
    "ignore:.*does not have many workers.*",
    "ignore:.*is smaller than the logging interval.*",
    "ignore:.*exists and is not empty.*",
    "ignore:.*LeafSpec.*:FutureWarning",  # Lightning 2.6 calls what torch 2.15 deprecates
]


def source(folder, name, train, val=1):
    """A manifest of so many tomograms, each with other noise."""
    folder = folder / name
    folder.mkdir()
    splits = ["train"] * train + ["val"] * val
    seed = 10 * sum(name.encode())
    samples = [make_sample(folder, f"{name}{i}", split, seed=seed + i) for i, split in enumerate(splits)]
    write_manifest(folder / "manifest.csv", samples)
    return folder / "manifest.csv"


@pytest.fixture
def manifest(tmp_path):
    return source(tmp_path, "own", train=3)


def module(*manifests, weights=None, **settings):
    sources = {path.parent.name: {"manifest": path} for path in manifests}
    for name, weight in (weights or {}).items():
        sources[name]["weight"] = weight
    settings = {"num_slices": 2, "crop": 8, "clips_per_tomogram": 4, "batch_size": 2, **settings}
    return TomogramClips(sources, Robust(), **settings)


class Process:
    """All that the data module asks of a trainer."""

    def __init__(self, world_size, global_rank):
        self.world_size, self.global_rank = world_size, global_rank


def on_rank(rank, world_size, *args, **settings):
    data = module(*args, **settings)
    data.trainer = Process(world_size, rank)
    return data


def keys(batches):
    return [tuple(map(tuple, batch.keys.tolist())) for batch in batches]


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return keys(loader)


def test_an_epoch_shows_every_tomogram_its_number_of_times(manifest):
    batches = list(module(manifest).train_dataloader())
    assert Counter(name for batch in batches for name in batch.names) == {f"set/own{i}": 4 for i in range(3)}
    assert batches[0].images.shape == (2, 2, 8, 8)
    assert len(set(sum(keys(batches), ()))) == 12


def test_two_runs_with_one_seed_see_the_same_clips_and_other_epochs_and_seeds_differ(manifest):
    one, same = (module(manifest).train_dataloader() for _ in range(2))
    assert epoch_of(one, 1) == epoch_of(same, 1)
    other = module(manifest, seed=1).train_dataloader()
    assert not set(epoch_of(one, 0)) & set(epoch_of(one, 1) + epoch_of(other, 0))


def test_every_epoch_may_show_the_same_clips(manifest):
    loader = module(manifest, repeat_epoch=True).train_dataloader()
    assert epoch_of(loader, 0) == epoch_of(loader, 3) == epoch_of(module(manifest).train_dataloader(), 0)


def test_tomograms_to_validate_on_are_limited_for_each_source_and_those_of_test_read_if_wanted(tmp_path):
    manifests = [source(tmp_path, "a", train=1, val=3), source(tmp_path, "b", train=1, val=1)]
    data = module(*manifests, val_tomograms=2, with_test=True)
    assert [sample.run_id for sample in data.val_samples] == ["a1", "a2", "b1"]
    data.samples["b"][0] = replace(data.samples["b"][0], split="test")
    data.samples["a"].append(replace(data.samples["a"][3], split="unused"))
    (item,) = data.test_dataloader()
    assert (item.number, item.source, item.run_id) == (3, "b", "b0")
    assert module(*manifests).test == []


def test_workers_give_the_same_clips_as_the_main_process_in_every_epoch(manifest):
    plain, workers = module(manifest).train_dataloader(), module(manifest, num_workers=2).train_dataloader()
    for epoch in (0, 1):
        assert epoch_of(plain, epoch) == epoch_of(workers, epoch)


def test_weights_of_sources_hold_and_a_source_without_weight_is_left_out(tmp_path):
    manifests = [source(tmp_path, name, train=count) for name, count in (("a", 1), ("b", 4), ("c", 2))]
    data = module(*manifests, weights={"a": 3, "b": 1, "c": 0}, epoch_clips=400)
    plan = data.train_dataloader().sampler.plan(0)
    assert Counter(draw.source for draw in plan) == {0: 300, 1: 100}
    assert Counter(draw.clip % 4 for draw in plan if draw.source == 1) == {i: 25 for i in range(4)}
    assert len(set(plan)) == 400


def test_shares_below_one_clip_an_epoch_come_up_as_often_as_they_should(tmp_path):
    manifests = [source(tmp_path, name, train=2) for name in "ab"]
    sampler = module(*manifests, weights={"a": 0.97, "b": 0.03}, epoch_clips=8).train_dataloader().sampler
    count = sum(draw.source == 1 for epoch in range(500) for draw in sampler.plan(epoch))
    assert 80 < count < 165  # 120 expected, standard deviation below 10


def test_the_order_is_not_source_after_source(tmp_path):
    manifests = [source(tmp_path, name, train=1) for name in "ab"]
    plan = module(*manifests, epoch_clips=100).train_dataloader().sampler.plan(0)
    assert 30 < sum(draw.source for draw in plan[:50]) / 50 * 100 < 70


def test_two_processes_see_disjoint_clips_whose_union_is_the_epoch_of_one(manifest):
    alone = keys(on_rank(0, 1, manifest, batch_size=4).train_dataloader())
    parts = [keys(on_rank(rank, 2, manifest).train_dataloader()) for rank in range(2)]
    assert not set(sum(parts[0], ())) & set(sum(parts[1], ()))
    for step, whole in enumerate(alone):  # also batch by batch: the global batch is the same
        assert sorted(whole) == sorted(parts[0][step] + parts[1][step])


def test_all_processes_have_the_same_number_of_batches(manifest):
    loaders = [on_rank(rank, 3, manifest, epoch_clips=11, batch_size=1).train_dataloader() for rank in range(3)]
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders] == [3, 3, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_in_mid_epoch_gives_exactly_the_remaining_batches(manifest, workers):
    whole = epoch_of(module(manifest).train_dataloader(), 3)
    loader = module(manifest, num_workers=workers).train_dataloader()
    loader.sampler.set_epoch(3)
    batches = iter(loader)
    first = keys([next(batches), next(batches)])
    state = loader.state_dict()
    assert state == {"epoch": 3, "position": 4, "global_batch": 2}
    resumed = module(manifest, num_workers=workers).train_dataloader()
    resumed.load_state_dict(state)
    assert first + keys(resumed) == whole
    assert epoch_of(resumed, 4) == epoch_of(loader, 4)  # the epoch after is whole again


def test_a_run_may_be_resumed_on_another_number_of_processes(manifest, caplog):
    whole = sum(keys(module(manifest).train_dataloader()), ())
    loaders = [on_rank(rank, 2, manifest).train_dataloader() for rank in range(2)]
    for loader in loaders:
        loader.load_state_dict({"epoch": 0, "position": 4})
    rest = [key for loader in loaders for batch in keys(loader) for key in batch]
    assert sorted(rest) == sorted(whole[4:])
    assert not caplog.text
    loaders[0].load_state_dict({"epoch": 0, "position": 4, "global_batch": 8})
    assert "a batch is now 4 clips on all devices together, and was 8" in caplog.text


def test_a_state_that_was_loaded_and_not_begun_is_saved_as_it_was(manifest):
    loader = module(manifest).train_dataloader()
    loader.load_state_dict({"epoch": 2, "position": 6})
    assert loader.state_dict() == {"epoch": 2, "position": 6}


def test_a_state_of_another_epoch_does_not_shorten_this_one(manifest):
    loader = module(manifest).train_dataloader()
    loader.load_state_dict({"epoch": 0, "position": 12})
    assert len(epoch_of(loader, 1)) == 6


class Recorder(lightning.LightningModule):
    """Trains one number, and notes the clips of every step."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated, self.stop_after = [], [], stop_after

    def training_step(self, batch, _):
        if len(self.seen) == self.stop_after:
            raise KeyError("killed")
        self.seen.append(keys([batch]))
        return (self.weight - batch.images.mean()) ** 2

    def validation_step(self, item, _):
        self.validated.append(item.run_id)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, data, model, resume=None):
    keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return model


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("steps", [2, 6, 10])
def test_lightning_continues_a_killed_run_with_the_clips_not_seen_yet(tmp_path, manifest, steps):
    whole = fit(tmp_path / "whole", module(manifest), Recorder())
    killed = Recorder(stop_after=steps)
    with pytest.raises(KeyError, match="killed"):
        fit(tmp_path / "killed", module(manifest), killed)
    resumed = fit(tmp_path / "killed", module(manifest), Recorder(), tmp_path / "killed" / f"step={steps}.ckpt")
    assert len(whole.seen) == 18
    assert killed.seen + resumed.seen == whole.seen
    assert resumed.weight.item() == whole.weight.item()


@pytest.mark.filterwarnings(*QUIET)
def test_lightning_validates_on_every_validation_tomogram_after_each_epoch(tmp_path, manifest):
    assert fit(tmp_path / "run", module(manifest), Recorder()).validated == ["own3"] * 3


def test_validation_tomograms_of_all_sources_are_listed_once_over_all_processes(tmp_path):
    manifests = [source(tmp_path, "a", train=1, val=2), source(tmp_path, "b", train=1, val=1)]
    items = [list(on_rank(rank, 2, *manifests).val_dataloader()) for rank in range(2)]
    assert [[item.number for item in part] for part in items] == [[0, 2], [1, -1]]
    data = module(*manifests)
    assert [sample.run_id for sample in data.val_samples] == ["a1", "a2", "b1"]
    assert items[0][1].source == "b"
    assert items[0][1].tomogram == data.val_samples[2].tomogram


def test_processes_without_a_tomogram_to_validate_on_still_have_a_batch(manifest):
    assert [next(iter(on_rank(rank, 3, manifest).val_dataloader())).number for rank in range(3)] == [0, -1, -1]


def test_faults_of_all_sources_come_together_before_the_first_step(tmp_path):
    manifests = [source(tmp_path, name, train=1) for name in "ab"]
    data = module(*manifests)
    empty = with_mask(data.samples["a"][0], np.zeros((6, 20, 28), np.int8))
    gone = replace(data.samples["b"][1], tomogram=tmp_path / "gone.mrc")
    data.samples = {"a": [empty, data.samples["a"][1]], "b": [data.samples["b"][0], gone]}
    with pytest.raises(InputError, match=r"2 faults.*set/a0: mask empty.* \| .*gone\.mrc"):
        data.setup("fit")


def test_nan_in_a_validation_tomogram_is_found_before_the_first_step(tmp_path, manifest):
    data = module(manifest)
    (sample,) = data.val_samples
    with mrcfile.open(sample.tomogram, "r+") as file:
        file.data[1, 2, 3] = np.nan
    with pytest.raises(InputError, match=rf"{sample.tomogram}: 1 of \d+ voxels are NaN or infinite"):
        data.setup("fit")
    module(manifest, nonfinite="mean").setup("fit")


def test_a_tomogram_for_training_in_one_source_and_validation_in_another_is_found(tmp_path):
    manifests = [source(tmp_path, name, train=1) for name in "ab"]
    data = module(*manifests)
    data.samples["b"].append(replace(data.samples["a"][0], split="val"))
    with pytest.raises(InputError, match=r"set/a0 \(train\) and set/a0 \(val\) are the same file"):
        data.setup("fit")


def test_preparing_fills_the_cache_and_leaves_faults_to_setup_where_others_wait(tmp_path, manifest):
    data = module(manifest, cache_folder=tmp_path / "cache")
    data.prepare_data()
    assert len(list((tmp_path / "cache").glob("*.grey_values.npz"))) == 4
    assert len(list((tmp_path / "cache").glob("*.mask.npz"))) == 4
    data = module(manifest)
    data.samples["own"] = data.samples["own"][:3]
    with pytest.raises(InputError, match="no val split"):
        data.prepare_data()
    data.trainer = Process(1, 0)
    data.prepare_data()  # called by a trainer: in one process only
    with pytest.raises(InputError, match="no val split"):
        data.setup("fit")


def test_a_source_without_training_tomograms_needs_weight_0(tmp_path):
    manifests = [source(tmp_path, "a", train=1), source(tmp_path, "b", train=0)]
    with pytest.raises(InputError, match="no train split in b; set its weight to 0"):
        module(*manifests).setup("fit")
    module(*manifests, weights={"b": 0}).setup("fit")


def test_an_epoch_shorter_than_one_batch_is_refused(manifest):
    with pytest.raises(ConfigError, match=r"12 clips does not fill one batch of 16 \(batch_size 8 x 2 devices\)"):
        on_rank(0, 2, manifest, batch_size=8).train_dataloader()


@pytest.mark.parametrize(
    ("sources", "settings", "expected"),
    [
        ({"own": {"weight": 1}}, {}, "data.sources.own has weight; allowed are manifest"),
        ({"own": {"manifest": "m", "wieght": 1}}, {}, "has manifest, wieght"),
        ({"own": Source("m", -1)}, {}, "weight=-1"),
        ({"own": Source("m", 0)}, {}, "no source with a weight above 0"),
        ({"own": Source("m")}, {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_impossible_settings_are_refused(sources, settings, expected):
    with pytest.raises(ConfigError, match=expected):
        TomogramClips(sources, Robust(), **settings)


def test_settings_of_clips_are_refused_before_files_are_looked_at(manifest):
    with pytest.raises(ConfigError, match=r"data\.axes"):
        module(manifest, axes=["q"])


def test_the_config_builds_with_the_defaults_of_the_class(manifest):
    config = OmegaConf.create({"normalize": {"_target_": "etsam.normalize.Robust"}, "seed": 3, "test_after": False})
    config.data = OmegaConf.load(resource_path("configs") / "data" / "manifest.yaml")
    config.data.sources.own.manifest = str(manifest)
    data = instantiate(config.data)
    plain = TomogramClips({"own": Source(manifest)}, Robust())
    assert (data.sources["own"].weight, data.batch_size, data.epoch_clips, data.seed) == (1.0, 1, None, 3)
    assert data._clip_settings == plain._clip_settings
