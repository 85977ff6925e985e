"""`etsam.load` and `etsam.segment`, the Python interface."""

import numpy as np
import pytest
import torch

import etsam
from etsam import api
from etsam.app import compose_config
from etsam.errors import ConfigError, InputError, OutputError
from etsam.inference.rescale import rescaled, rescaled_shape
from etsam.network import build
from etsam.network.fast import heap
from etsam.normalize import Robust, normalize
from etsam.postprocess import steps
from etsam.volume import MrcWriter, Volume, read_volume

TINY = ["net=tiny_test", "weights=random", "weights.seed=1"]
SHAPE = (6, 40, 51)


@pytest.fixture(scope="module")
def array():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def found(array):
    return etsam.segment(array, voxel_size=(10.0, 11.0, 12.0), overrides=TINY)


def test_an_array_gives_logits_mask_and_voxel_size(found):
    assert (found.logits.shape, found.logits.dtype) == (SHAPE, np.float32)
    assert (found.mask.shape, found.mask.dtype) == (SHAPE, np.uint8)
    np.testing.assert_array_equal(found.mask, found.logits > found.threshold)
    assert found.voxel_size == (10.0, 11.0, 12.0)


def test_the_array_is_not_changed(array):
    before = array.copy()
    etsam.segment(array, overrides=TINY)
    np.testing.assert_array_equal(array, before)


def test_a_file_gives_what_its_array_gives(array, found, tmp_path):
    with MrcWriter(tmp_path / "a.mrc", SHAPE, np.float32, voxel_size_angstrom=(8, 9, 10)) as writer:
        for z in range(SHAPE[0]):
            writer[z] = array[z]
    of_file = etsam.segment(tmp_path / "a.mrc", overrides=TINY)
    np.testing.assert_array_equal(of_file.logits, found.logits)
    assert of_file.voxel_size == pytest.approx((8, 9, 10))


def test_an_output_path_streams_the_same_logits_to_disk(array, found, tmp_path):
    streamed = etsam.segment(array, voxel_size=(10, 11, 12), overrides=TINY, output_path=tmp_path / "logits.mrc")
    np.testing.assert_array_equal(read_volume(tmp_path / "logits.mrc").read(), found.logits)
    np.testing.assert_array_equal(streamed.mask[3], found.mask[3])
    assert read_volume(tmp_path / "logits.mrc").voxel_size_angstrom == pytest.approx((10, 11, 12))
    assert [path.name for path in tmp_path.iterdir()] == ["logits.mrc"]


def test_an_existing_output_path_is_kept_unless_overwrite_is_set(array, tmp_path):
    path = tmp_path / "logits.mrc"
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        etsam.segment(array, overrides=TINY, output_path=path)
    assert path.read_text() == "precious"


def test_an_output_path_that_may_not_be_written_is_refused_before_anything_is_computed(array, tmp_path):
    with MrcWriter(tmp_path / "a.mrc", SHAPE, np.float32) as writer:
        for z in range(SHAPE[0]):
            writer[z] = array[z]
    before, calls = (tmp_path / "a.mrc").read_bytes(), []
    for refused, overwrite in (("a.mrc", True), ("a.mrc", False), ("no_folder/b.mrc", True)):
        with pytest.raises(OutputError):
            etsam.segment(
                tmp_path / "a.mrc",
                overrides=TINY,
                output_path=tmp_path / refused,
                overwrite=overwrite,
                progress=lambda *call: calls.append(call),
            )
    assert (tmp_path / "a.mrc").read_bytes() == before
    assert calls == []


def test_progress_counts_every_slice_of_every_part(array):
    calls = []
    etsam.segment(array, overrides=TINY, progress=lambda *call: calls.append(call))
    for part in ("reading", "stage 1", "stage 2", "writing"):
        assert [call for call in calls if call[0] == part] == [(part, done, 6) for done in range(1, 7)]


def test_settings_are_overrides_as_on_the_command_line(array, found):
    other = etsam.segment(array, overrides=[*TINY, "stage2.threshold=1e9"])
    assert other.mask.max() == 0
    np.testing.assert_array_equal(other.logits, found.logits)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((5, 6)), "three axes"),
        (np.zeros((1, 5, 6)), "2D image"),
        (np.zeros((2, 5, 6), complex), "real numbers"),
        (np.zeros((2, 5, 6)), "every voxel has the value"),
        ("missing.mrc", "no such file"),
    ],
    ids=["2D", "one slice", "complex", "constant", "missing"],
)
def test_bad_input_is_an_input_error(bad, message):
    with pytest.raises(InputError, match=message):
        etsam.segment(bad, overrides=TINY)


class _Convertible:
    """What NumPy makes an array of, as arrays of other libraries."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_tensors_lists_and_volumes_are_segmented_as_their_array(array, found):
    model = etsam.load(TINY)
    for given in (torch.tensor(array), array.tolist(), _Convertible(array)):
        result = model.segment(given, voxel_size=12)
        np.testing.assert_array_equal(result.logits, found.logits)
        assert result.voxel_size == (12.0, 12.0, 12.0)
    volume = Volume.from_array(array, (10.0, 11.0, 12.0))
    result = model.segment(volume)
    np.testing.assert_array_equal(result.logits, found.logits)
    assert result.voxel_size == (10.0, 11.0, 12.0)
    etsam.load([*TINY, "voxel_size=7"]).segment(volume)
    assert volume.voxel_size_angstrom == (10.0, 11.0, 12.0)


def test_one_tensor_as_also_is_one_reconstruction(array):
    model = etsam.load(TINY)
    other = array[:, ::-1].copy()
    expected = model.segment(array, also=[other]).logits
    for also in (torch.tensor(other), _Convertible(other), [torch.tensor(other)], Volume.from_array(other)):
        np.testing.assert_array_equal(model.segment(array, also=also).logits, expected)


@pytest.mark.parametrize(
    ("given", "token"),
    [
        (torch.zeros(SHAPE, device="meta"), "cpu"),
        (b"a.mrc", "bytes"),
        (None, "NoneType"),
        (torch.zeros(SHAPE[1:]), "three axes"),
        (["a.mrc", "b.mrc"], "one by one"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_neither_array_nor_path_is_an_input_error(array, given, token):
    model = etsam.load(TINY)
    for size in (None, (12, 12, 12)):
        with pytest.raises(InputError, match=token):
            model.segment(given, voxel_size=size)
    with pytest.raises(InputError):
        model.segment(array, also=given)


def test_masked_voxels_are_treated_as_nan(array):
    hidden = np.zeros(SHAPE, bool)
    hidden[2, 5:9, 7:20] = True
    masked, holed = np.ma.MaskedArray(array, hidden), np.where(hidden, np.float32("nan"), array)
    with pytest.raises(InputError, match="52 of"):
        etsam.segment(masked, overrides=TINY)
    filled = [etsam.segment(one, overrides=[*TINY, "nonfinite=mean"]).logits for one in (masked, holed)]
    np.testing.assert_array_equal(*filled)


def test_a_voxel_size_beside_a_file_is_an_error(tmp_path):
    for given in (tmp_path / "a.mrc", Volume.from_array(np.zeros(SHAPE))):
        with pytest.raises(InputError, match="for arrays"):
            etsam.segment(given, voxel_size=(1, 1, 1), overrides=TINY)


@pytest.mark.parametrize(
    "override", ["no_such_key=3", "normalize=foo", "prompt@stage1.prompt=stage1_mask", "resegment_conditioning=no"]
)
def test_a_setting_that_does_not_fit_is_a_config_error(array, override):
    with pytest.raises(ConfigError):
        etsam.segment(array, overrides=[*TINY, override])


@pytest.mark.gpu
def test_float32_on_a_gpu_is_close_to_float32_on_a_cpu(array, found):
    on_gpu = etsam.segment(array, overrides=[*TINY, "trainer.precision=32-true"], device="cuda")
    assert np.abs(on_gpu.logits - found.logits).mean() < 1e-3


@pytest.fixture
def built(monkeypatch):
    """Networks that are built, one entry each."""
    calls, real = [], build.build_network
    monkeypatch.setattr(build, "build_network", lambda net: calls.append(net) or real(net))
    return calls


def test_a_loaded_model_segments_many_volumes_without_building_networks_again(array, found, built, tmp_path):
    model = etsam.load(TINY)
    assert len(built) == 2
    other = array[:4, :30, ::-1]
    for volume, name in ((array, None), (other, None), (array, tmp_path / "logits.mrc")):
        result = model.segment(volume, output_path=name)
        assert result.logits.shape == volume.shape
    assert len(built) == 2
    np.testing.assert_array_equal(result.logits.read(), found.logits)
    again = etsam.segment(other, overrides=TINY)
    np.testing.assert_array_equal(model.segment(other).logits, again.logits)
    assert model.segment(array).voxel_size is None


@pytest.mark.parametrize("streamed", [False, True])
def test_the_mask_is_post_processed_if_asked_for(array, found, tmp_path, streamed):
    asked = ["postprocess=thin_noise", "postprocess.thin_noise.min_slices=100", "stage2.threshold=-1e9"]
    path = tmp_path / "logits.mrc" if streamed else None
    thinned = etsam.segment(array, overrides=[*TINY, *asked], output_path=path)
    assert [int(thinned.mask[z].max()) for z in range(SHAPE[0])] == [0] * SHAPE[0]
    np.testing.assert_array_equal(thinned.logits[2], found.logits[2])
    plain = etsam.segment(array, overrides=[*TINY, asked[-1]])
    assert plain.mask.min() == 1


def test_workers_and_precision_are_honoured(array, found, monkeypatch):
    seen, real = [], steps.apply_steps
    monkeypatch.setattr(steps, "apply_steps", lambda *a, **kw: seen.append(kw["workers"]) or real(*a, **kw))
    asked = ["trainer.precision=bf16-mixed", "workers=3", "postprocess=thin_noise"]
    half = etsam.segment(array, overrides=[*TINY, *asked], device="cpu")
    assert seen == [3]
    assert 0 < np.abs(half.logits - found.logits).max() < 1


@pytest.mark.parametrize(
    "override",
    [
        *("output_dir=out", "overwrite=true", "resume=true", "write_logits=true", "output_format=zarr", "input=a.mrc"),
        *("trainer=gpus", "trainer.devices=2", "+trainer.max_time=1", "debug=true", "segmenter.scratch_folder=x"),
    ],
)
def test_a_setting_that_would_be_without_effect_is_refused_by_name(override):
    with pytest.raises(ConfigError, match=override.lstrip("+").partition("=")[0]):
        etsam.load([*TINY, override])


def test_every_setting_of_predict_is_honoured_in_python_or_refused():
    settings = {str(name) for name in compose_config("predict")}
    honoured = {name.partition(".")[0].partition("=")[0] for name in api._HONOURED}
    assert sorted(settings - honoured - set(api._COMMAND_LINE)) == []


@pytest.mark.parametrize(
    "override", ["workers=0", "trainer.precision=64-true", "trainer.accelerator=tpu", "kernels=quick", "views=3"]
)
def test_a_value_that_does_not_fit_is_a_config_error_when_loading(override):
    with pytest.raises(ConfigError):
        etsam.load([*TINY, override], device="cpu")


@pytest.mark.parametrize("kernels", ["fast", "reference"])
def test_the_library_does_not_touch_the_memory_of_the_process_and_the_program_only_with_fast_kernels(
    array, monkeypatch, tmp_path, kernels
):
    calls = []
    library = type("Library", (), {name: lambda *a: calls.append(a) for name in ("mallopt", "malloc_trim")})
    monkeypatch.setattr(heap, "_glibc", library)
    model = etsam.load([*TINY, f"kernels={kernels}"], device="cpu")
    model.segment(array)
    assert calls == []
    with MrcWriter(tmp_path / "a.mrc", SHAPE, np.float32) as writer:
        for z in range(SHAPE[0]):
            writer[z] = array[z]
    model._segmenter.predict_step(str(tmp_path / "a.mrc"))
    assert bool(calls) == (kernels == "fast")


def test_a_target_voxel_size_gives_the_logits_of_the_tomogram_rescaled_there_and_back(array):
    normalized = normalize(array, Robust())
    model = etsam.load([*TINY, "target_voxel_size=6"], device="cpu")
    found = model.segment(array, voxel_size=(9.0, 9.0, 9.0)).logits
    assert found.shape == array.shape
    shape = rescaled_shape(array.shape, (9.0, 9.0, 9.0), 6.0)
    seen = rescaled(normalized, shape)
    with torch.no_grad():
        there = model._segmenter.two_stage(seen).logits
    back = rescaled(there, array.shape)
    np.testing.assert_allclose(found, np.stack([back[z] for z in range(array.shape[0])]), atol=1e-5)


def test_logits_of_interpolated_voxels_are_raised_by_what_the_weights_say(array):
    settings = ["target_voxel_size=6", "write_uncertainty=true", "propagation=bidirectional"]
    plain, raised = (
        etsam.load([*TINY, *settings, *more], device="cpu") for more in ([], ["weights.finer_shift=[1,3]"])
    )
    for side, shift in ((12.0, 1.0), (9.0, np.log2(1.5))):
        before, after = (model.segment(array, voxel_size=(side,) * 3) for model in (plain, raised))
        np.testing.assert_allclose(after.logits, before.logits + np.float32(shift), atol=1e-5)
        assert before.threshold == after.threshold


def test_a_shift_that_is_none_is_refused_before_anything_is_segmented():
    with pytest.raises(ConfigError, match="finer_shift"):
        etsam.load([*TINY, "weights.finer_shift=[1]"], device="cpu")


def test_a_target_voxel_size_needs_the_tomograms_own(array):
    with pytest.raises(InputError, match="voxel_size"):
        etsam.segment(array, overrides=[*TINY, "target_voxel_size=6"], device="cpu")
