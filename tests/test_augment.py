"""Augmentations act alike on all slices, take masks along where they move voxels, and are reproducible."""

import math

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from etsam.app import compose_config
from etsam.data.augment import (
    Affine,
    Augment,
    Brightness,
    Contrast,
    FaintSlices,
    GaussianBlur,
    GaussianNoise,
    Gradient,
    HorizontalFlip,
    InvertContrast,
    Rim,
    Rotate90,
    SliceFlip,
    clip_generators,
)
from etsam.data.augment_fourier import FourierAmplitude, MissingWedge, wedge
from etsam.data.measured import IGNORE
from etsam.errors import ConfigError
from etsam.paths import resource_path

SHAPE = (6, 20, 28)
GEOMETRIC = [HorizontalFlip(1), SliceFlip(1), Rotate90(1), Affine(25, 20), Affine(10, 10, scale=(0.7, 1.5))]
GREY_VALUES = [
    *(Brightness(), Contrast(), InvertContrast(1), GaussianNoise(probability=1), GaussianBlur(probability=1)),
    *(FourierAmplitude(probability=1), MissingWedge(probability=1), Gradient(probability=1)),
    FaintSlices((2, 3), probability=1),
]


def name(step):
    return type(step).__name__


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clip(shape=SHAPE, top=1.0):
    """Noise in 0..top, and blobs of membrane with a line of ignored voxels."""
    images = torch.rand(shape, generator=generator(5)) * top
    masks = torch.zeros(shape, dtype=torch.uint8)
    masks[1, 4:9, 3:12] = masks[3, 10:17, 8:14] = masks[:, 13, 2:5] = 1
    masks[:, 2, 8:12] = IGNORE
    return images, masks


def run(step, images, masks, draws=None):
    """One clip through one augmentation."""
    changed, moved = step(images[None], masks[None], draws or generator())
    return changed[0], moved[0]


@pytest.mark.parametrize("shape", [SHAPE, (6, 20, 20)], ids=["oblong", "square"])
@pytest.mark.parametrize("step", GEOMETRIC, ids=name)
@pytest.mark.parametrize("seed", range(4))
def test_masks_stay_aligned_with_images(step, shape, seed):
    masks = clip(shape)[1]
    masks[masks == IGNORE] = 0
    images, moved = run(step, masks.float(), masks, generator(seed))
    seen = moved != IGNORE
    assert moved[seen].any()
    assert torch.equal((images >= 0.5)[seen], (moved == 1)[seen])
    assert torch.equal(seen.all(0), seen.any(0))  # the same voxels come from outside in every slice


@pytest.mark.parametrize("step", [HorizontalFlip(1), SliceFlip(1), Rotate90(1)], ids=name)
def test_flips_and_turns_move_every_voxel_and_lose_none(step):
    images, masks = clip()
    for seed in range(3):
        changed, moved = run(step, images, masks, generator(seed))
        assert not torch.equal(changed, images)
        assert torch.equal(changed.flatten().sort().values, images.flatten().sort().values)
        assert torch.equal(moved.flatten().sort().values, masks.flatten().sort().values)


def test_flips_mirror_x_and_slices():
    images, masks = clip()
    assert torch.equal(run(HorizontalFlip(1), images, masks, generator())[0], images[:, :, range(27, -1, -1)])
    assert torch.equal(run(SliceFlip(1), images, masks, generator())[1], masks[range(5, -1, -1)])


def test_square_clips_turn_by_every_multiple_of_90_degrees_and_others_by_180_only():
    for shape, expected in (((2, 5, 5), {1, 2, 3}), ((2, 5, 7), {2})):
        images = torch.rand(shape)
        turned = [run(Rotate90(1), images, images > 0.5, generator(seed))[0] for seed in range(30)]
        found = {k for k in range(4) for one in turned if torch.equal(one, images.rot90(k, (1, 2)))}
        assert found == expected


def test_affine_without_rotation_and_shear_is_the_identity():
    images, masks = clip()
    changed, moved = run(Affine(0, 0), images, masks, generator())
    torch.testing.assert_close(changed, images, atol=1e-5, rtol=0)
    assert torch.equal(moved, masks)


def test_affine_turns_by_the_angle_it_draws_without_stretching():
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(61.0) - 30, indexing="ij")
    step, seed = Affine(25, 0), 3
    draws = generator(seed)
    angle = [float(torch.rand((), generator=draws)) for _ in range(2)][1]  # the first decides whether to act
    angle = math.radians(-25 + 50 * angle)
    masks = torch.zeros((1, 41, 61), dtype=torch.uint8)
    turned, moved = run(step, x[None], masks, generator(seed))
    expected = (x * math.cos(angle) - y * math.sin(angle))[None]
    inside = (moved != IGNORE) & (expected.abs() < 29)  # beyond lies the outer half of the last voxel
    assert inside.float().mean() > 0.6
    torch.testing.assert_close(turned[inside], expected[inside], atol=1e-3, rtol=0)


def test_affine_magnifies_about_the_middle():
    masks = torch.zeros(1, 40, 40, dtype=torch.uint8)
    masks[0, 16:24, 18:22] = 1
    _, moved = run(Affine(0, 0, scale=(2, 2)), masks.float(), masks)
    expected = torch.zeros_like(masks)
    expected[0, 12:28, 16:24] = 1
    assert torch.equal(moved, expected)


def test_affine_ignores_what_comes_from_outside_and_continues_the_image_there():
    images = torch.full(SHAPE, 0.7)
    changed, moved = run(Affine(25, 20), images, torch.zeros(SHAPE, dtype=torch.uint8), generator(1))
    assert (moved == IGNORE).any()
    torch.testing.assert_close(changed, images)


def test_affine_keeps_unannotated_voxels_unannotated():
    masks = torch.full(SHAPE, IGNORE, dtype=torch.uint8)
    assert (run(Affine(), torch.rand(SHAPE), masks, generator())[1] == IGNORE).all()


@pytest.mark.parametrize("step", GREY_VALUES, ids=name)
def test_grey_value_augmentations_leave_masks_alone(step):
    images, masks = clip()
    changed, same = run(step, images, masks, generator())
    assert torch.equal(same, masks)
    assert not torch.equal(changed, images)


@pytest.mark.parametrize("top", [1.0, 2.0], ids=["stage 1", "stage 2"])
@pytest.mark.parametrize("step", GEOMETRIC + GREY_VALUES, ids=name)
def test_images_stay_finite_float32_and_inputs_unchanged(step, top):
    images, masks = clip((5, 19, 27), top)
    before = images.clone(), masks.clone()
    changed, moved = run(step, images, masks, generator())
    assert (changed.dtype, moved.dtype, changed.shape) == (torch.float32, torch.uint8, images.shape)
    assert changed.isfinite().all()
    assert changed.min() > -1.5
    assert changed.max() < top + 1.5
    assert torch.equal(images, before[0])
    assert torch.equal(masks, before[1])


def test_brightness_and_contrast_are_one_factor_within_their_strength():
    images, masks = clip()
    factor = run(Brightness(0.1), images, masks, generator(1))[0] / images
    assert factor.std() < 1e-6
    assert 0.9 <= factor.mean() <= 1.1
    changed = run(Contrast(0.03), images, masks, generator(1))[0]
    torch.testing.assert_close(changed.mean(), images.mean())
    assert 0.97 <= changed.std() / images.std() <= 1.03


def test_inverting_twice_gives_the_clip_back_within_its_own_range():
    images, masks = clip(top=2.0)
    once = run(InvertContrast(1), images, masks, generator())[0]
    torch.testing.assert_close((once.min(), once.max()), (images.min(), images.max()))
    torch.testing.assert_close(run(InvertContrast(1), once, masks, generator())[0], images)


def test_a_gradient_is_a_plane_that_is_zero_in_the_middle():
    images, masks = torch.zeros(3, 21, 29), torch.zeros(3, 21, 29, dtype=torch.uint8)
    added = run(Gradient(0.1, 1), images, masks)[0]
    assert added[0, 10, 14] == pytest.approx(0, abs=1e-7)
    assert added.std() > 0.01
    for axis in (1, 2):
        steps = added.diff(dim=axis)
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), atol=1e-6, rtol=0)


def test_a_rim_has_one_value_and_no_membrane_and_lies_on_every_side_in_turn():
    images, masks = clip()
    sides = set()
    for seed in range(30):
        changed, moved = run(Rim((3, 3), 1), images, masks, generator(seed))
        rim = (changed != images).any(0)
        rows, columns = rim.any(1), rim.any(0)
        assert changed[:, rim].unique().numel() == 1
        assert not moved[:, rim].any()
        assert torch.equal(moved[:, ~rim], masks[:, ~rim])
        assert min(int(rows.sum()), int(columns.sum())) == 3
        sides.add((bool(rim[0].all()), bool(rim[-1].all()), bool(rim[:, 0].all()), bool(rim[:, -1].all())))
    assert len(sides) == 4


def test_faint_slices_are_neighbours_that_lose_their_signal_and_keep_mean_and_spread():
    images = torch.linspace(0, 1, 40 * 50).view(1, 40, 50).repeat(9, 1, 1)
    masks = torch.zeros(9, 40, 50, dtype=torch.uint8)
    faint = run(FaintSlices((3, 3), (0.2, 0.2), 1), images, masks)[0]
    changed = [z for z in range(9) if not torch.equal(faint[z], images[z])]
    assert changed == list(range(changed[0], changed[0] + 3))
    for z in changed:
        assert torch.corrcoef(torch.stack([faint[z].flatten(), images[z].flatten()]))[0, 1] == pytest.approx(
            0.2, abs=0.1
        )
        assert faint[z].mean() == pytest.approx(0.5, abs=0.03)
        assert faint[z].std() == pytest.approx(float(images[z].std()), rel=0.1)


def test_noise_has_the_standard_deviation_asked_for_and_differs_between_slices():
    images = torch.zeros((4, 60, 70))
    noise = run(GaussianNoise((0.2, 0.2), 1), images, images, generator())[0]
    assert noise.std().item() == pytest.approx(0.2, rel=0.05)
    assert abs(torch.corrcoef(noise.flatten(1))[0, 1]) < 0.05


def test_blur_spreads_a_point_by_its_sigma_within_its_slice():
    images = torch.zeros((3, 31, 41))
    images[1, 15, 20] = 1
    blurred = run(GaussianBlur((1.5, 1.5), 1), images, images, generator())[0]
    assert blurred[[0, 2]].abs().max() == 0
    x = torch.arange(41.0) - 20
    assert blurred.sum().item() == pytest.approx(1, abs=1e-5)
    assert (blurred[1].sum(0) * x**2).sum().item() ** 0.5 == pytest.approx(1.5, rel=0.03)


def test_fourier_amplitudes_change_by_one_factor_per_radius_and_the_mean_stays():
    images, masks = clip((4, 16, 24))
    changed = run(FourierAmplitude(0.5, 6, 1), images, masks, generator())[0]
    ratio = torch.fft.fft2(changed) / torch.fft.fft2(images)
    assert ratio.imag.abs().max() < 1e-3
    assert (ratio.real.log().abs() <= 0.501).all()
    torch.testing.assert_close(ratio[0], ratio[2], atol=1e-3, rtol=0)
    torch.testing.assert_close(ratio[0, 2, 0], ratio[0, 0, 3], atol=1e-3, rtol=0)  # 2/16 = 3/24 cycles per voxel
    torch.testing.assert_close(changed.mean(), images.mean())


@pytest.mark.parametrize("shape", [(8, 20, 28), (7, 15, 21)])
def test_the_missing_wedge_is_empty_in_fourier_space_and_the_rest_untouched(shape):
    images = torch.rand(shape, generator=generator())
    changed = run(MissingWedge((60, 60), 1), images, images, generator(2))[0]
    before, after = torch.fft.rfftn(images), torch.fft.rfftn(changed)
    draws = generator(2)
    axis = [float(torch.rand((), generator=draws)) for _ in range(3)][2] * 180
    keep = wedge(shape, 60, axis)
    assert 0.1 < 1 - keep.float().mean() < 0.6
    assert after[~keep].abs().max() < 1e-3
    torch.testing.assert_close(after[keep], before[keep], atol=1e-3, rtol=0)


def test_a_wedge_of_60_degrees_about_y_lacks_what_is_steeper_than_60_degrees():
    keep = wedge((40, 30, 40), 60, axis_degrees=0)
    assert keep[0].all()  # in the slices nothing is lost
    assert not keep[5, :, 0].any()  # along the beam everything
    assert keep[5, :, 3].all()  # tan 60 degrees = 1.73 > 5/3
    assert not keep[6, :, 3].any()
    assert torch.equal(keep[:, 0], keep[:, 7])  # the tilt axis is along Y


def test_a_tilt_range_of_90_degrees_keeps_everything():
    assert wedge(SHAPE, 90, 30).all()


def load(option):
    return OmegaConf.load(resource_path("configs") / "augment" / f"{option}.yaml")


def cryoet():
    return Augment(instantiate(load("cryoet")))


KEYS = torch.tensor([[7, 0, 1], [7, 0, 2], [8, 1, 0]])


def batch():
    images, masks = zip(*(clip(top=top) for top in (1.0, 1.5, 2.0)), strict=True)
    return torch.stack(images), torch.stack(masks)


def test_equal_generators_give_equal_batches_and_others_do_not():
    results = [cryoet()(*batch(), clip_generators(KEYS, seed)) for seed in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


def test_with_a_generator_each_a_clip_does_not_depend_on_its_batch():
    images, masks = batch()
    together = cryoet()(images, masks, clip_generators(KEYS))
    alone = cryoet()(images[1:2], masks[1:2], clip_generators(KEYS[1:2]))
    assert torch.equal(together[0][1], alone[0][0])
    assert torch.equal(together[1][1], alone[1][0])


def test_global_random_numbers_are_not_touched():
    before = torch.get_rng_state()
    cryoet()(*batch(), clip_generators(KEYS))
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_run_in_the_order_of_configuration():
    images, masks = clip()
    steps = {"invert": InvertContrast(1), "brightness": Brightness(0.1)}
    forth = Augment(steps)(images[None], masks[None], [generator()])[0]
    inverted = images.min() + images.max() - images
    draws = generator()
    factor = 0.9 + 0.2 * [float(torch.rand((), generator=draws)) for _ in range(3)][2]
    torch.testing.assert_close(forth[0], inverted * factor)


def test_a_probability_is_the_share_of_clips_that_change():
    images = torch.arange(6.0).expand(400, 1, 2, 6)
    changed, _ = HorizontalFlip(0.25)(images, images, generator())
    share_changed = (changed[:, 0, 0, 0] == 5).float().mean()
    assert 0.18 < share_changed < 0.32


@pytest.mark.parametrize("option", ["none", "published", "cryoet", "nano", "nano_clips"])
def test_every_config_builds_and_runs(option):
    steps = compose_config("train", [f"augment={option}"]).augment
    images, masks = Augment(instantiate(steps))(*batch(), clip_generators(KEYS))
    assert images.shape == masks.shape == (3, *SHAPE)
    assert torch.equal(images, batch()[0]) == (option == "none")


def test_the_published_set_is_in_the_published_order():
    assert list(load("published")) == ["horizontal_flip", "affine", "brightness", "contrast"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: HorizontalFlip(1.5),
        lambda: Affine(shear_degrees=90),
        lambda: GaussianNoise((0.2, 0.1)),
        lambda: MissingWedge((10, 91)),
        lambda: FourierAmplitude(bands=1),
        lambda: Brightness(2),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ConfigError):
        build()


@pytest.mark.gpu
def test_a_batch_on_the_gpu_equals_that_on_the_cpu_for_a_generator_on_the_cpu():
    images, masks = batch()
    here = cryoet()(images, masks, clip_generators(KEYS))
    there = cryoet()(images.cuda(), masks.cuda(), clip_generators(KEYS))
    torch.testing.assert_close(there[0].cpu(), here[0], atol=1e-4, rtol=0)
    assert (there[1].cpu() != here[1]).float().mean() < 1e-3
