"""Specification of `etsam.postprocess.components`, `misconnections` and `postprocess`."""

from pathlib import Path

import cc3d
import numpy as np
import pytest
from conftest import CountedSlices, write_mrc
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy import ndimage

from etsam.errors import ConfigError, InputError
from etsam.postprocess.components import StreamedComponents
from etsam.postprocess.misconnections import sever_misconnections
from etsam.postprocess.steps import (
    InstanceLabels,
    RemoveSmallComponents,
    RemoveThinNoise,
    SeverMisconnections,
    apply_steps,
    why_nothing_stays,
)
from etsam.prediction.doubts import Mask, doubts
from etsam.volume import read_volume

CONFIGS = Path(__file__).parents[1] / "configs"
# Outputs of the published post-processing (June 2026) on synthetic sheets, rings, rungs, spurs, blobs and specks
GOLDENS = np.load(Path(__file__).parent / "goldens" / "postprocess.npz")
GOLDEN_STEPS = {
    "thin_5": [RemoveThinNoise(5)],
    "thin_10": [RemoveThinNoise()],
    "parallel_b5_s0": [SeverMisconnections()],
    "parallel_b5_s5": [SeverMisconnections(5, 5)],
    "parallel_b8_s0": [SeverMisconnections(8)],
    "parallel_b8_s5": [SeverMisconnections(8, 5)],
    "both_10_5_0": [RemoveThinNoise(), SeverMisconnections()],
    "both_5_8_5": [RemoveThinNoise(5), SeverMisconnections(8, 5)],
    "pipeline_both_5_8_5": [RemoveThinNoise(5), SeverMisconnections(8, 5)],
}


def full(slices):
    return np.stack([slices[z] for z in range(slices.shape[0])])


def full_labels(found):
    return np.stack([found.labels(z) for z in range(found.shape[0])])


def random_mask(seed, shape=(9, 23, 31), fraction=0.12):
    return np.random.default_rng(seed).random(shape) < fraction


def same_partition(a, b):
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]).astype(np.int64), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def composed(choice, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(overrides=[f"+postprocess={choice}", *overrides])
    return instantiate(cfg.get("postprocess", {}), _convert_="all")


def ladder():
    """Two horizontal sheets, 3 pixels thick and 4 apart, with a rung 3 pixels wide at x = 20..22."""
    mask = np.zeros((30, 47), bool)
    mask[8:11] = mask[15:18] = True
    mask[11:15, 20:23] = True
    return mask


@pytest.mark.parametrize("name", GOLDEN_STEPS)
def test_equals_the_published_result(name):
    mask = GOLDENS["pipeline_mask" if "pipeline" in name else "mask"]
    result = full(apply_steps(mask, GOLDEN_STEPS[name]))
    np.testing.assert_array_equal(result, GOLDENS[name])
    assert (result != mask).any()


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("shape", [(9, 23, 31), (1, 7, 12), (6, 1, 15), (14, 8, 1)])
@pytest.mark.parametrize("fraction", [0.05, 0.12, 0.3, 0.6])
def test_streamed_components_are_those_of_the_whole_volume(connectivity, shape, fraction):
    mask = random_mask(connectivity, shape, fraction)
    found = StreamedComponents(mask, connectivity)
    labels = full_labels(found)
    # as uint8: for booleans cc3d 4.1.1 is wrong on some volumes with a side of 1
    expected, count = cc3d.connected_components(mask.astype(np.uint8), connectivity=connectivity, return_N=True)
    assert found.count == count == labels.max()
    assert same_partition(labels, expected)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_component_tables_equal_those_counted_on_the_labels(connectivity):
    found = StreamedComponents(random_mask(4), connectivity)
    labels = full_labels(found)
    z_ranges = [box[0] for box in ndimage.find_objects(labels.astype(np.int32))]
    np.testing.assert_array_equal(found.voxels[1:], np.bincount(labels.ravel())[1:])
    assert found.z_first[1:].tolist() == [z.start for z in z_ranges]
    assert found.z_span[1:].tolist() == [z.stop - z.start for z in z_ranges]
    assert found.voxels[0] == found.z_first[0] == found.z_span[0] == 0


def test_components_are_numbered_by_size_and_equal_ones_by_first_voxel():
    labels = full_labels(StreamedComponents(random_mask(5), 6))
    voxels = np.bincount(labels.ravel())[1:]
    first = np.unique(labels, return_index=True)[1][1:]
    assert np.lexsort((first, -voxels)).tolist() == list(range(len(voxels)))


def test_arms_of_a_u_that_join_only_in_the_last_slice_are_one_component():
    mask = np.zeros((7, 9, 12), bool)
    mask[:, 4, 2] = mask[:, 4, 9] = True
    mask[6, 4, 2:10] = True
    found = StreamedComponents(mask, 6)
    assert (found.count, found.voxels[1], found.z_span[1]) == (1, 20, 7)


@pytest.mark.parametrize(("joined_in", "count"), [(None, 2), (0, 1), (17, 1), (39, 1)])
def test_arms_of_a_double_helix_are_one_component_once_any_slice_joins_them(joined_in, count):
    mask = np.zeros((40, 21, 24), bool)
    for z, arm in np.ndindex(40, 2):
        y, x = round(10 + 6 * np.sin(z / 4 + arm * np.pi)), round(12 + 6 * np.cos(z / 4 + arm * np.pi))
        mask[z, y - 1 : y + 2, x - 1 : x + 2] = True
    if joined_in is not None:
        mask[joined_in] = True
    assert StreamedComponents(mask).count == count


@pytest.mark.parametrize(
    ("step", "joined_at"), [((1, 0, 0), {6, 18, 26}), ((1, 1, 0), {18, 26}), ((1, -1, 1), {26}), ((0, 1, 1), {18, 26})]
)
def test_neighbours_by_face_edge_and_corner_join_at_their_connectivities(step, joined_at):
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 2, 2] = mask[1 + step[0], 2 + step[1], 2 + step[2]] = True
    assert {c for c in (6, 18, 26) if StreamedComponents(mask, c).count == 1} == joined_at


@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 4, 5), (3, 0, 5)])
def test_an_empty_mask_has_no_components(shape):
    found = StreamedComponents(np.zeros(shape, np.uint8))
    assert found.count == 0
    assert found.voxels.tolist() == found.z_span.tolist() == [0]


def test_a_full_volume_is_one_component():
    found = StreamedComponents(np.ones((4, 6, 11), np.uint8))
    assert (found.count, found.voxels.tolist(), found.z_span.tolist()) == (1, [0, 264], [0, 4])


def test_a_mask_that_changes_between_the_passes_is_refused():
    mask = random_mask(6)
    found = StreamedComponents(mask)
    mask[3] = False
    with pytest.raises(InputError, match=r"slice 3 .* must not change"):
        found.labels(3)


def test_a_short_rung_is_cut_and_the_sheets_stay():
    cut = sever_misconnections(ladder(), max_bridge_len=5)
    assert ndimage.label(ladder())[1] == 1
    assert ndimage.label(cut)[1] == 2
    assert cut[8:11].sum() + cut[15:18].sum() >= 6 * 47 - 6


def test_a_rung_longer_than_the_limit_stays():
    np.testing.assert_array_equal(sever_misconnections(ladder(), max_bridge_len=3), ladder())


def test_dead_ends_are_cut_only_up_to_the_spur_length():
    mask = np.zeros((25, 41), bool)
    mask[12] = mask[13:17, 20] = True  # a line with a dead end of 4 pixels
    assert not sever_misconnections(mask, 5, 5)[14:17, 20].any()
    np.testing.assert_array_equal(sever_misconnections(mask, 5, 0), mask)


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (17, 31)])
def test_empty_and_full_slices_stay_as_they_are(fill, shape):
    mask = np.full(shape, fill)
    np.testing.assert_array_equal(sever_misconnections(mask, 5, 0), mask)


def test_a_cut_depends_only_on_its_surroundings():
    small = ladder()
    large = np.zeros((400, 347), bool)  # large enough for the windows to be smaller than the slice
    large[100:130, 150:197] = small
    expected = sever_misconnections(small, 5)
    assert (expected != small).any()
    np.testing.assert_array_equal(sever_misconnections(large, 5)[100:130, 150:197], expected)


def test_the_given_slice_is_not_written_to():
    mask = ladder()
    sever_misconnections(mask, 5, 5)
    np.testing.assert_array_equal(mask, ladder())


def test_thin_noise_keeps_components_of_exactly_the_minimum():
    mask = np.zeros((12, 9, 14), np.uint8)
    mask[2:6, 2, 3] = mask[2:7, 6, 9] = 1
    result = full(RemoveThinNoise(min_slices=5)(mask))
    np.testing.assert_array_equal(result[:, 6, 9], mask[:, 6, 9])
    assert result.sum() == 5


def test_small_components_keeps_components_of_exactly_the_minimum():
    mask = np.zeros((5, 9, 14), np.uint8)
    mask[1, 1, 1:5] = mask[1:3, 6, 8:11] = 1
    result = full(RemoveSmallComponents(min_voxels=6)(mask))
    assert (result.sum(), result[1:3, 6, 8:11].sum()) == (6, 6)


def test_small_components_uses_its_connectivity():
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    assert full(RemoveSmallComponents(2, 26)(mask)).sum() == 2
    assert full(RemoveSmallComponents(2, 6)(mask)).sum() == 0


@pytest.mark.parametrize(("dtype", "top"), [(bool, 1), (np.uint8, 255), (np.int8, 1), (np.uint16, 1), (np.float32, 1)])
def test_every_kind_of_mask_gives_the_same_uint8_result(dtype, top):
    mask = np.asfortranarray(GOLDENS["mask"] * np.uint8(top)).astype(dtype)
    result = full(apply_steps(mask, GOLDEN_STEPS["both_5_8_5"]))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, GOLDENS["both_5_8_5"])


@pytest.mark.parametrize("value", [-1, -0.5, np.nan])
def test_logits_and_overflown_masks_are_refused(value):
    mask = np.full((3, 4, 5), value, np.float32 if value != -1 else np.int8)
    with pytest.raises(InputError, match="slice 0 of the mask holds the value"):
        RemoveThinNoise()(mask)


def test_without_steps_the_mask_comes_back_as_0_and_1():
    result = full(apply_steps(GOLDENS["mask"] * np.uint8(255), []))
    np.testing.assert_array_equal(result, GOLDENS["mask"])


@pytest.mark.parametrize("step", [RemoveThinNoise(2), RemoveSmallComponents(3), InstanceLabels()])
def test_component_steps_read_each_slice_once_and_once_more_on_demand(step):
    mask = CountedSlices(random_mask(7, (5, 23, 31)))
    result = step(mask)
    assert mask.read == [0, 1, 2, 3, 4]
    assert (result[2] == result[2]).all()
    assert mask.read == [0, 1, 2, 3, 4, 2]


def test_severing_reads_only_what_is_asked_for_and_keeps_the_last_slice():
    mask = CountedSlices(GOLDENS["mask"])
    result = SeverMisconnections()(mask)
    assert result[7] is result[7]
    assert mask.read == [7]


def test_results_are_indexed_like_arrays():
    result = SeverMisconnections()(GOLDENS["mask"])
    assert result.shape == GOLDENS["mask"].shape
    np.testing.assert_array_equal(result[-1], result[25])
    with pytest.raises(IndexError, match="slice 26 of a volume of 26 slices"):
        result[26]


def test_progress_is_called_after_each_slice_of_each_first_pass():
    calls = []
    steps = [RemoveThinNoise(2), SeverMisconnections(), RemoveSmallComponents(3)]
    apply_steps(random_mask(8, (3, 23, 31)), steps, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)] * 2


def test_instance_labels_number_components_from_the_largest():
    mask = random_mask(9)
    labels = full(InstanceLabels(connectivity=6)(mask))
    assert labels.dtype == np.uint16
    assert same_partition(labels, cc3d.connected_components(mask.astype(np.uint8), connectivity=6))
    assert (np.diff(np.bincount(labels.ravel())[1:]) <= 0).all()


def test_too_many_instances_are_refused_with_the_size_that_is_enough():
    mask = np.zeros((2, 520, 512), np.uint8)
    mask[0, ::2, ::2] = 1  # 66560 single voxels
    mask[0, 0, :5] = 1  # joins three of them
    with pytest.raises(InputError, match=r"66558 components; .* allow 65535: .*min_voxels=2\)"):
        InstanceLabels()(mask)
    assert full(InstanceLabels()(RemoveSmallComponents(2)(mask))).max() == 1


@pytest.mark.parametrize("value", [0, -3, 2.0, "5", True, None])
def test_a_minimum_that_is_not_a_positive_whole_number_is_refused(value):
    with pytest.raises(ConfigError, match=f"min_slices is {value!r}; allowed are whole numbers of at least 1"):
        RemoveThinNoise(value)
    with pytest.raises(ConfigError, match="min_voxels is"):
        RemoveSmallComponents(value)


def test_what_is_not_annotated_in_signed_bytes_is_not_taken_for_membrane_unless_it_is_only_rewritten(etsam, work):
    mask = np.zeros((9, 20, 24), np.int8)
    mask[:, 5:15, 6] = -1
    write_mrc(work / "mask.mrc", mask)
    outcome = etsam("postprocess", "mask.mrc", "clean.mrc", "--post-process-min-slices", 2)
    assert outcome.status == 1
    assert "postprocess=none" in outcome.message
    assert not (work / "clean.mrc").exists()
    assert etsam("postprocess", "mask.mrc", "clean.mrc", "postprocess=none").status == 0
    np.testing.assert_array_equal(read_volume(work / "clean.mrc").read(), mask != 0)


@pytest.mark.parametrize(("min_slices", "reason"), [(10, True), (9, False)])
def test_a_mask_that_loses_everything_is_a_warning_which_says_if_it_is_too_thin(
    etsam, work, caplog, min_slices, reason
):
    mask = np.zeros((9, 20, 24), np.int8)
    mask[:8, 5:15, 6] = 1
    write_mrc(work / "mask.mrc", mask)
    outcome = etsam("postprocess", "mask.mrc", "clean.mrc", "--post-process-min-slices", min_slices)
    assert outcome.status == 0
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "removed everything" in warning
    assert ("9 slices" in warning) == reason
    (doubt,) = doubts(Mask(0.0, 0.1, False, None, False, 0.0, why_nothing_stays([RemoveThinNoise(min_slices)], 9)))
    assert ("9 slices" in doubt) == reason


@pytest.mark.parametrize("lengths", [(-1, 0), (5, -1), (5.0, 0), (5, True), (0, 0)])
def test_lengths_that_are_negative_or_broken_or_cut_nothing_are_refused(lengths):
    with pytest.raises(ConfigError, match=r"max_bridge_len|max_spur_len"):
        SeverMisconnections(*lengths)


@pytest.mark.parametrize("connectivity", [8, 0, True, 26.5, "26"])
def test_an_unknown_connectivity_is_refused(connectivity):
    for make in (RemoveSmallComponents, InstanceLabels):
        with pytest.raises(ConfigError, match=r"connectivity is .* allowed are 6"):
            make(connectivity=connectivity)


def test_a_mask_that_is_not_a_volume_is_refused():
    for step in (RemoveThinNoise(), SeverMisconnections(), InstanceLabels()):
        with pytest.raises(InputError, match=r"shape \(7, 9\); allowed are volumes"):
            step(np.zeros((7, 9), np.uint8))


def test_something_that_is_not_a_step_is_refused():
    with pytest.raises(ConfigError, match="a post-processing step is 'thin_noise'"):
        apply_steps(GOLDENS["mask"], ["thin_noise"])


STEPS = {
    "thin_noise": RemoveThinNoise(10),
    "misconnections": SeverMisconnections(5, 0),
    "small_components": RemoveSmallComponents(1000, 26),
}


@pytest.mark.parametrize(
    ("choice", "names"), [("none", []), ("all", ["thin_noise", "misconnections"]), *((name, [name]) for name in STEPS)]
)
def test_each_config_gives_its_named_steps_in_order(choice, names):
    assert list(composed(choice).items()) == [(name, STEPS[name]) for name in names]


def test_a_single_setting_can_be_overridden():
    steps = composed("all", "postprocess.thin_noise.min_slices=5", "postprocess.misconnections.max_bridge_len=8")
    assert list(steps.values()) == [RemoveThinNoise(5), SeverMisconnections(8, 0)]


def test_the_config_all_is_the_published_post_processing():
    result = full(apply_steps(GOLDENS["mask"], composed("all")))
    np.testing.assert_array_equal(result, GOLDENS["both_10_5_0"])
