"""The weak view and the pairs of patches."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.errors import InputError
from anomalib_msacl.pretraining.views import WeakView, patch_pairs
from anomalib_msacl.recipe import Recipe, ViewRecipe

OFF = {"scale": (1, 1), "ratio": (1, 1), "jitter": 0, "grey": 0, "blur": 0, "flip": 0}


def textured(batch: int = 4, height: int = 48, width: int = 48) -> torch.Tensor:
    coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bilinear").repeat(batch, 1, 1, 1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# WeakView


@pytest.mark.parametrize("size", [(48, 48), (33, 64)])
def test_view_keeps_shape_and_range(size):
    images = textured(8, *size).round()  # values at the ends of the range
    views = WeakView(ViewRecipe(brightness=0.9, contrast=0.9, jitter=1))(images)
    assert views.shape == images.shape
    assert views.min() >= 0
    assert views.max() <= 1


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (160, 40)])
def test_views_of_images_of_any_shape_are_stretched_within_the_ratio(size):
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    ramps = torch.stack([y, x, x]) / max(size)
    views = WeakView(ViewRecipe(**{**OFF, "scale": (0.6, 1.0), "ratio": (0.8, 1.25)}))(ramps.repeat(40, 1, 1, 1))
    views = views * max(size)
    middle = views[..., size[0] // 4 : -size[0] // 4, size[1] // 4 : -size[1] // 4]
    vertical = middle[:, 0].diff(dim=1).mean(dim=(1, 2))
    horizontal = middle[:, 1].diff(dim=2).mean(dim=(1, 2))
    stretch = horizontal / vertical
    assert stretch.min() > 0.78
    assert stretch.max() < 1.28
    assert stretch.max() - stretch.min() > 0.1


def test_equal_images_get_different_views():
    views = WeakView()(textured(6))
    for a in range(6):
        for b in range(a):
            assert (views[a] - views[b]).abs().max() > 0.01


@pytest.mark.parametrize(
    "change",
    [{"scale": (0.3, 0.9)}, {"jitter": 1}, {"grey": 0.5}, {"blur": 1}, {"flip": 0.5}],
    ids=lambda change: next(iter(change)),
)
def test_each_operation_is_drawn_per_image(change):
    images = textured(12)
    views = WeakView(ViewRecipe(**(OFF | change)))(images)
    different = [(views[0] - view).abs().max() > 1e-4 for view in views[1:]]
    assert any(different)
    assert (views - images).abs().max() > 1e-3


def test_next_call_draws_anew():
    view, images = WeakView(), textured()
    assert not torch.equal(view(images), view(images))


def test_view_with_everything_off_is_the_image():
    images = textured(2)
    torch.testing.assert_close(WeakView(ViewRecipe(**OFF))(images), images, rtol=0, atol=1e-4)


def test_flip_mirrors_left_and_right():
    images = textured(2)
    torch.testing.assert_close(WeakView(ViewRecipe(**(OFF | {"flip": 1})))(images), images.flip(-1), rtol=0, atol=1e-4)


def test_grey_view_has_equal_channels():
    views = WeakView(ViewRecipe(**(OFF | {"grey": 1})))(textured())
    assert (views - views[:, :1]).abs().max() < 1e-5


def test_crop_shows_the_stated_area():
    ramp = torch.linspace(0, 1, 64)
    images = torch.stack([ramp[:, None].expand(64, 64), ramp[None].expand(64, 64), torch.zeros(64, 64)])
    views = WeakView(ViewRecipe(**(OFF | {"scale": (0.25, 0.25)})))(images.repeat(8, 1, 1, 1))
    spans = views.flatten(2).amax(dim=2) - views.flatten(2).amin(dim=2)
    assert (spans[:, :2] - 0.5).abs().max() < 0.05  # half a side in either direction
    assert views[:, 0].flatten(1).amin(dim=1).std() > 0.05  # at different places


def test_view_carries_no_gradient():
    assert not WeakView()(textured().requires_grad_()).requires_grad


@pytest.mark.parametrize(
    "setting",
    [
        {"brightness": -0.1},
        {"hue": 0.7},
        {"scale": (0.5,)},
        {"scale": (0.9, 0.2)},
        {"scale": (2.0, 3.0)},
        {"scale": (-1.0, 0.5)},
        {"ratio": (0.0, 0.0)},
        {"flip": 1.8},
        {"jitter": -0.5},
    ],
    ids=str,
)
def test_bad_setting_is_refused_by_the_recipe(setting):
    with pytest.raises(InputError, match=rf"recipe\.view\.{next(iter(setting))} is "):
        Recipe.of({"view": setting})


# patch_pairs


def cells(batch: int, side: int = 48) -> torch.Tensor:
    """Give images whose value is the index 0 to 8 of the cell."""
    third = torch.arange(side) * 3 // side
    return (3 * third[:, None] + third[None, :]).float().expand(batch, 1, side, side)


@pytest.mark.parametrize("side", [6, 8])
def test_patch_is_the_middle_and_neighbour_from_the_stated_cell(side):
    patch, neighbour, position = patch_pairs(cells(200), side)
    assert patch.shape == neighbour.shape == (200, 1, side, side)
    assert set(position.tolist()) == set(range(8))
    torch.testing.assert_close(patch, torch.full_like(patch, 4), rtol=0, atol=1e-3)
    stated = (position + (position >= 4)).float()[:, None, None, None].expand_as(neighbour)
    torch.testing.assert_close(neighbour, stated, rtol=0, atol=1e-3)


def test_positions_are_about_equally_frequent():
    counts = torch.bincount(patch_pairs(cells(4000, 12), 2)[2], minlength=8)
    assert counts.min() > 400
    assert counts.max() < 600


def test_patches_lie_at_random_places_of_their_cell():
    ramp = torch.arange(96.0)[None, None, None, :].expand(200, 1, 96, 96)
    patch, neighbour, position = patch_pairs(ramp, 8)
    start = patch[:, 0, 0, 0] - 32
    assert start.min() < 3
    assert 8 < start.max() < 12
    # Patch and neighbour are placed independently: the gap between them gives nothing away.
    gap = (neighbour - patch)[position == 4][:, 0, 0, 0]
    assert gap.std() > 2
    # 8 pixels across three quarters of a cell of 32.
    torch.testing.assert_close(patch.diff(dim=-1), torch.full((200, 1, 8, 7), 3.0), rtol=0, atol=1e-3)


def test_patches_of_an_oblong_image_come_from_its_own_thirds():
    images = F.interpolate(cells(100, 48), (48, 96), mode="nearest")
    patch, _, _ = patch_pairs(images, 6)
    torch.testing.assert_close(patch, torch.full_like(patch, 4), rtol=0, atol=1e-3)


def test_gradient_flows_to_the_pixels_of_the_patches():
    images = cells(30).clone().requires_grad_()
    patch, neighbour, position = patch_pairs(images, 6)
    (patch.sum() + neighbour.sum()).backward()
    per_cell = torch.stack([images.grad[:, 0][cells(30)[:, 0] == k].reshape(30, -1).abs().sum(dim=1) for k in range(9)])
    reached = per_cell > 1e-3
    expected = torch.zeros_like(reached)
    expected[4] = True
    expected[position + (position >= 4), torch.arange(30)] = True
    assert torch.equal(reached, expected)
