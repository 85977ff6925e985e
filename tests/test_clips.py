"""Clips are the slices of the files, normalised and fused as in prediction, and reproducible."""

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_manifest import make_sample, with_mask, write

from etsam.data.batch import collate
from etsam.data.clips import ClipDataset
from etsam.data.measured import IGNORE
from etsam.errors import ConfigError, InputError
from etsam.inference.fusion import fuse
from etsam.inference.two_stage import Stage2Input
from etsam.network.images import slices_seen
from etsam.normalize import MinMaxPositive, Robust, normalize
from etsam.volume import read_volume

SHAPE = (6, 20, 28)


@pytest.fixture
def sample(tmp_path):
    return make_sample(tmp_path)


def stack(slices):
    return np.stack([slices[z] for z in range(slices.shape[0])])


def dataset(*samples, num_slices=3, normalization=None, **settings):
    return ClipDataset(samples, normalization or Robust(), num_slices=num_slices, **settings)


def part(volume, clip):
    """The voxels of a volume that a clip without padding should show, in its own order of axes."""
    axis = "zyx".index(clip.axis)
    sizes = list(clip.images.shape[1:])
    sizes.insert(axis, clip.images.shape[0])
    box = tuple(slice(start, start + size) for start, size in zip(clip.start, sizes, strict=True))
    values = np.moveaxis(volume[box], axis, 0)
    return values[::-1] if clip.reversed else values


@pytest.mark.parametrize("method", [Robust(), MinMaxPositive()])
@pytest.mark.parametrize("crop", [None, 16, (7, 28)])
def test_a_clip_equals_the_slices_of_the_file_normalised_as_in_prediction(sample, method, crop):
    clip = dataset(sample, normalization=method, crop=crop)[0]
    whole = stack(normalize(read_volume(sample.tomogram), method))
    np.testing.assert_array_equal(clip.images, part(whole, clip))
    np.testing.assert_array_equal(clip.masks, part(read_volume(sample.target_mask).read(), clip))
    assert (clip.images.dtype, clip.masks.dtype) == (torch.float32, torch.uint8)


def test_the_other_contrast_leaves_what_stage_1_says(sample):
    whole = normalize(read_volume(sample.tomogram), Robust())
    logits = np.random.default_rng(1).normal(0, 2, SHAPE).astype(np.float32)
    settings = {"crop": 16, "reverse_probability": 0.5, "clips_per_tomogram": 4}
    inverted = dataset(sample, **settings, invert_probability=1, stage1_logits=given(logits))
    fused, grey = stack(fuse(whole, logits)), stack(whole)
    for clip in inverted:
        np.testing.assert_allclose(clip.images, part(fused - grey + (1 - grey), clip), atol=1e-6)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_slices_follow_each_other_along_the_axis_asked_for(sample, axis):
    clip = dataset(sample, axes=[axis], crop=(5, 11))[0]
    whole = stack(normalize(read_volume(sample.tomogram), Robust()))
    assert clip.axis == axis
    assert clip.images.shape == (3, 5, 11)
    np.testing.assert_array_equal(clip.images, part(whole, clip))


def test_axes_and_directions_are_drawn_equally_often(sample):
    clips = list(dataset(sample, axes="zyx", crop=4, reverse_probability=0.25, clips_per_tomogram=300))
    counts = [sum(clip.axis == axis for clip in clips) for axis in "zyx"]
    assert min(counts) > 70  # of 100 expected
    assert 50 < sum(clip.reversed for clip in clips) < 100  # of 75


def test_a_reversed_clip_has_images_and_masks_backwards(sample):
    clip = dataset(sample, reverse_probability=1)[0]
    whole = stack(normalize(read_volume(sample.tomogram), Robust()))
    np.testing.assert_array_equal(clip.images, part(whole, clip))
    assert clip.reversed


def test_a_clip_of_one_slice_may_run_backwards(sample):
    clip = dataset(sample, num_slices=1, reverse_probability=1)[0]
    np.testing.assert_array_equal(clip.masks, part(read_volume(sample.target_mask).read(), clip))
    assert clip.reversed


def test_a_crop_larger_than_the_tomogram_is_reflected_and_ignored_outside(sample):
    clip = dataset(sample, crop=(26, 16))[0]
    inner = clip.images[:, 3:23].numpy()
    np.testing.assert_array_equal(clip.images[:, :3], inner[:, 1:4][:, ::-1])
    np.testing.assert_array_equal(clip.images[:, 23:], inner[:, -4:-1][:, ::-1])
    assert (clip.masks[:, :3] == IGNORE).all()
    assert (clip.masks[:, 23:] == IGNORE).all()
    assert (clip.masks[:, 3:23] != IGNORE).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint16])
def test_unannotated_voxels_are_ignored(sample, dtype):
    values = read_volume(sample.target_mask).read().astype(dtype)
    values[:, 4] = -1 if dtype == np.int8 else 255
    clip = dataset(with_mask(sample, values))[0]
    assert (clip.masks[:, 4] == IGNORE).all()
    assert (clip.masks[:, 5] != IGNORE).all()


def test_a_mask_with_other_labels_is_an_error(sample):
    labelled = with_mask(sample, np.full(SHAPE, 3, np.int8))
    with pytest.raises(InputError, match="not binary: it has 3"):
        dataset(labelled)[0]


def test_foreground_clips_hold_membrane_in_their_middle_half(tmp_path):
    mask = np.zeros(SHAPE, np.int8)
    mask[4, 9, 13] = 1
    lonely = with_mask(make_sample(tmp_path), mask)
    clips = list(dataset(lonely, crop=8, foreground_probability=1, clips_per_tomogram=40))
    assert all(int(clip.masks.sum()) == 1 for clip in clips)
    where = np.array([np.argwhere(clip.masks.numpy())[0] for clip in clips])
    assert set(where[:, 1]) == set(where[:, 2]) == {2, 3, 4, 5}
    assert not all(int(clip.masks.sum()) for clip in dataset(lonely, crop=8, clips_per_tomogram=40))


def test_every_membrane_voxel_is_as_likely_as_another(tmp_path):
    mask = np.zeros(SHAPE, np.int8)
    mask[0, 2, :3] = mask[5, 10, 20] = 1
    sample = with_mask(make_sample(tmp_path), mask)
    data = dataset(sample, num_slices=1, crop=4, foreground_probability=1, clips_per_tomogram=400)
    assert 60 < sum(clip.start[0] == 5 for clip in data) < 140  # of 100


def equal(one, other):
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True))


RANDOM = {"crop": 9, "axes": "zyx", "reverse_probability": 0.5, "foreground_probability": 0.5, "clips_per_tomogram": 8}


def test_two_datasets_with_one_seed_give_identical_clips(sample):
    one, other = dataset(sample, **RANDOM), dataset(sample, **RANDOM)
    assert all(equal(one[i], other[i]) for i in reversed(range(8)))


def test_another_epoch_or_seed_gives_other_clips(sample):
    first, later, other = dataset(sample, **RANDOM), dataset(sample, **RANDOM), dataset(sample, **RANDOM, seed=1)
    later.set_epoch(1)
    assert not any(equal(first[i], later[i]) or equal(first[i], other[i]) for i in range(8))


def test_a_pickled_dataset_gives_the_same_clips(sample):
    data = dataset(sample, **RANDOM)
    data.measure()
    assert equal(pickle.loads(pickle.dumps(data))[3], data[3])


def test_every_tomogram_has_its_number_of_clips(tmp_path):
    samples = [make_sample(tmp_path, name) for name in "abc"]
    names = [clip.name for clip in dataset(*samples, clips_per_tomogram=2)]
    assert sorted(names) == ["set/a", "set/a", "set/b", "set/b", "set/c", "set/c"]


def given(logits):
    """Stage-1 logits of any sample, fused as a whole."""
    return lambda sample, normalized: Stage2Input(fuse(normalized, logits), None)


def test_stage_2_clips_are_fused_by_the_function_of_prediction(sample):
    logits = np.random.default_rng(3).normal(0, 4, SHAPE).astype(np.float32)
    clip = dataset(sample, crop=12, axes="y", stage1_logits=given(logits))[0]
    whole = stack(fuse(normalize(read_volume(sample.tomogram), Robust()), logits))
    np.testing.assert_array_equal(clip.images[:, 3:9], part(whole, clip._replace(images=clip.images[:, 3:9])))
    assert clip.images.max() > 1.2


def test_stage_1_logits_of_another_shape_are_named(sample):
    with pytest.raises(InputError, match="set/a"):
        dataset(sample, stage1_logits=given(np.zeros((1, 2, 3), np.float32)))[0]


def test_statistics_are_kept_in_the_cache_folder_and_give_the_same_clips(sample, tmp_path, monkeypatch):
    first = dataset(sample, cache_folder=tmp_path / "cache")[0]
    monkeypatch.setattr("etsam.data.measured.measure", None)  # would fail if it were called
    assert equal(dataset(sample, cache_folder=tmp_path / "cache")[0], first)


def test_fitting_the_normalisation_says_nothing_for_each_tomogram(sample, caplog):
    caplog.set_level(logging.INFO)
    dataset(sample).measure()
    assert not caplog.records


def test_infinite_voxels_are_an_error_that_names_the_file_or_become_the_mean(sample, tmp_path):
    values = read_volume(sample.tomogram).read()
    values[2, 3, 4] = np.nan
    broken = replace(sample, tomogram=write(tmp_path / "nan.mrc", values))
    with pytest.raises(InputError, match=r"nan\.mrc: 1 of 3360 voxels are NaN"):
        dataset(broken)[0]
    assert dataset(broken, num_slices=6, nonfinite="mean")[0].images.isfinite().all()


@pytest.mark.parametrize("around", [0.0, 1.0])
@pytest.mark.parametrize(("axis", "context"), [("z", 2), ("z", 5), ("x", 2)])  # 11 slices of 6
def test_every_slice_is_trained_and_the_ends_are_repeated_beside_them_as_in_prediction(sample, axis, context, around):
    settings = {"axes": [axis], "clips_per_tomogram": 200, "foreground_probability": around}
    clips = dataset(sample, num_slices=2 * context + 1, context_slices=context, **settings)
    grey, target = stack(clips.normalized(0)), read_volume(sample.target_mask).read()
    if axis == "x":
        grey, target = (volume.transpose(2, 0, 1) for volume in (grey, target))
    seen_by = [grey[slices_seen(z, len(grey), 2 * context + 1)] for z in range(len(grey))]
    trained = set()
    for number in range(len(clips)):
        images = np.asarray(clips[number].images)
        (z,) = [z for z, images_of in enumerate(seen_by) if np.array_equal(images_of, images)]
        np.testing.assert_array_equal(clips[number].masks[context], target[z])
        trained.add(z)
    assert trained == {z for z in range(len(grey)) if not around or (target[z] == 1).any()}


def test_a_clip_longer_than_the_tomogram_is_an_error(sample):
    with pytest.raises(InputError, match="set/a: a clip of 7 slices is longer than 6 along z"):
        dataset(sample, num_slices=7, axes="yz")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_slices": 0},
        {"crop": 0},
        {"crop": (3, -1)},
        {"axes": "q"},
        {"axes": []},
        {"reverse_probability": 1.5},
        {"invert_probability": -1},
    ],
)
def test_impossible_settings_are_refused(sample, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        dataset(sample, **settings)


def test_a_batch_stacks_clips_and_keeps_what_belongs_to_each(sample):
    clips = [dataset(sample, **RANDOM)[i] for i in range(3)]
    batch = collate(clips)
    assert batch.images.shape == batch.masks.shape == (3, 3, 9, 9)
    assert batch.starts == [clip.start for clip in clips]
    assert batch.keys.tolist() == [[0, 0, i] for i in range(3)]


def test_whole_slices_of_different_sizes_do_not_fit_into_one_batch(sample, tmp_path):
    other = make_sample(tmp_path, "b", shape=(5, 18, 22))
    with pytest.raises(ConfigError, match=r"set data\.crop"):
        collate([dataset(sample, other)[i] for i in range(2)])


def test_clips_of_a_tomogram_without_membrane_lie_anywhere(sample):
    empty = with_mask(sample, np.zeros(SHAPE, np.int8))
    with pytest.raises(InputError, match="mask empty"):
        dataset(empty, crop=8, foreground_probability=1.0)[0]
    said = replace(empty, extra=(("without_membrane", "yes"),))
    clips = list(dataset(said, crop=8, foreground_probability=1.0, clips_per_tomogram=8))
    assert not any(clip.masks.any() for clip in clips)
    assert len({clip.start for clip in clips}) > 4
