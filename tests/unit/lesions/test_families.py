"""The contract, kept by every family: drawn parameters decide all, and a batch is no more than its images."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import pytest
import torch

from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions import (
    FAMILIES,
    Blob,
    Colour,
    CutPaste,
    Haze,
    Lesion,
    LesionMixture,
    Lesions,
    Missing,
    Parameters,
    Streak,
    Texture,
    Warp,
)
from anomalib_msacl.lesions.base import Rendered
from anomalib_msacl.lesions.canvas import Canvas, reflected, span, window_sides
from anomalib_msacl.lesions.geometry import blur_matrix, outline_extent, smooth_noise
from anomalib_msacl.lesions.randomness import Draw
from tests.unit.lesions.pictures import binarised, dark, grey, seeded, smooth

NAMES = sorted(FAMILIES)


def tensors(lesions: Lesions) -> list[torch.Tensor]:
    return [getattr(part, each.name) for part in lesions.parts for each in fields(part)]


def centred(family: Lesion[Any], images: torch.Tensor, **changes: torch.Tensor) -> torch.Tensor:
    """Return images of 65 x 65 pixels with one lesion in their middle each."""
    mixture = LesionMixture([family], visible=0)
    part = mixture.draw(images, 1, seeded()).parts[0]
    part = replace(part, centre=torch.full((len(images), 2), 32.0), **changes)
    return mixture.apply(images, Lesions((family,), (part,)))[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_lesion_changes_its_mask_and_nothing_else(name, size, channels, dtype):
    normal = smooth(6, *size, channels).to(dtype)
    output = LesionMixture([name]).synthesize(normal, torch.tensor([0, 1, 1, 1, 1, 1]), seeded())
    assert output.image.dtype == output.mask.dtype == dtype
    inside = output.mask.expand_as(normal) > 0
    assert torch.equal(output.image[~inside], normal[~inside])
    assert torch.equal(output.image[0], normal[0])
    change = (output.image - normal).abs().float().flatten(1).amax(dim=1)
    assert (change[1:] > 0.02).all()
    assert 0 <= output.image.min() <= output.image.max() <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("picture", [smooth, binarised, dark])
def test_batch_equals_one_image_at_a_time(name, picture):
    images, mixture = picture(5), LesionMixture([name])
    lesions = mixture.draw(images, torch.tensor([3, 0, 1, 2, 2]), seeded())
    image, mask = mixture.apply(images, lesions)
    for index in range(len(images)):
        own = mixture.apply(images[index : index + 1], lesions.of_image(index), donors=images)
        assert torch.equal(own[1][0], mask[index])
        torch.testing.assert_close(own[0][0], image[index], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_drawn_is_what_is_added(name):
    images, mixture, counts = binarised(6), LesionMixture([name]), torch.arange(6) % 4
    lesions = mixture.draw(images, counts, seeded())
    image, mask = mixture.apply(images, lesions)
    output = mixture.synthesize(images, counts, seeded())
    torch.testing.assert_close(image, output.image, rtol=0, atol=1e-6)
    assert torch.equal(mask, output.mask)
    assert all(torch.equal(*pair) for pair in zip(mixture.apply(images, lesions), (image, mask), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides_every_parameter(name):
    images, mixture = smooth(), LesionMixture([name])
    first, again, other = (tensors(mixture.draw(images, 2, seeded(seed))) for seed in (3, 3, 4))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_select_and_of_image_take_whole_rows(name):
    part = LesionMixture([name], visible=0).draw(smooth(3), torch.tensor([1, 2, 1]), seeded()).parts[0]
    middle = part.of_image(1)
    assert middle.image.tolist() == [0, 0]
    assert middle.order.tolist() == [0, 1]
    for each in fields(part):
        if each.name != "image":
            assert torch.equal(getattr(middle, each.name), getattr(part, each.name)[1:3])
    whole = part.select(torch.tensor([0])).join([middle, part.select(torch.tensor([3]))])
    assert torch.equal(whole.centre, part.centre)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_changed_beyond_the_extent(name):
    images, mixture = binarised(20), LesionMixture([name], visible=0)
    lesions = mixture.draw(images, 1, seeded())
    part, mask = lesions.parts[0], mixture.apply(images, lesions)[1]
    for image, centre, extent in zip(part.image, part.centre, part.extent, strict=True):
        distance = (mask[image, 0].nonzero() - centre).norm(dim=1)
        assert distance.max() <= extent + 1
        assert distance.max() > 0.15 * extent


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_stay_grey(name):
    image = LesionMixture([name]).synthesize(grey(), 2, seeded()).image
    torch.testing.assert_close(image[:, :1].expand_as(image), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_lesions_lie_on_tissue(name):
    normal = smooth(20)
    normal[..., 32:] = 0  # right half: black border
    mask = LesionMixture([name]).synthesize(normal, 1, seeded()).mask
    share = mask[..., :32].flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1)
    assert share.mean() > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_lesions_lie_anywhere_where_the_foreground_is_not_asked_for(name):
    normal = smooth(20)
    normal[..., 32:] *= 0.05
    mask = LesionMixture([name], keep_on_foreground=False, visible=0).synthesize(normal, 2, seeded()).mask
    share = mask[..., :32].flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1)
    assert 0.3 < share.mean() < 0.7


@pytest.mark.parametrize("name", NAMES)
def test_no_two_lesions_are_alike(name):
    images = binarised(1).expand(12, -1, -1, -1)
    masks = LesionMixture([name]).synthesize(images, 1, seeded()).mask.flatten(1)
    overlap = (masks @ masks.T) / (masks.sum(dim=1)[:, None] + masks.sum(dim=1)[None] - masks @ masks.T)
    assert (overlap - torch.eye(12)).max() < 0.95


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name):
    images, mixture = smooth(4), LesionMixture([name])
    lesions = mixture.draw(images, 2, seeded())
    expected = mixture.apply(images, lesions)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(mixture.apply(images, lesions)[0], expected, rtol=0, atol=1e-6)


# What each of them does


def test_blob_and_haze_shift_the_intensity_by_what_they_say():
    flat = torch.full((40, 1, 65, 65), 0.5)
    steady = {"radius": (0.2, 0.2), "aspect": (1.0, 1.0), "irregularity": 0.0}
    blob = centred(Blob(**steady, shift=(0.2, 0.2)), flat)[:, 0, 32, 32] - 0.5
    torch.testing.assert_close(blob.abs(), torch.full_like(blob, 0.2), rtol=0, atol=1e-5)
    assert set(blob.sign().tolist()) == {-1.0, 1.0}
    haze = centred(Haze(**steady, shift=(0.1, 0.1), brighter=0.8, clouds=0.0), flat)[:, 0, 32, 32] - 0.5
    torch.testing.assert_close(haze.abs(), torch.full_like(haze, 0.1), rtol=0, atol=1e-5)
    assert 0.6 < (haze > 0).float().mean() < 0.98


def test_texture_has_the_stated_deviation_and_no_colour():
    flat = torch.full((20, 3, 64, 64), 0.5)
    image, mask, _ = LesionMixture(
        [Texture(strength=(0.05, 0.05), radius=(0.4, 0.4), edge=(0.01, 0.01))], visible=0
    ).synthesize(flat, 1, seeded())
    change = (image - flat)[:, :1][mask > 0]
    assert change.std().item() == pytest.approx(0.05, rel=0.1)
    assert torch.equal(image[:, 0], image[:, 2])


def test_colour_keeps_the_product_of_the_channels_and_changes_the_gamma_of_grey():
    colours = torch.tensor([0.5, 0.3, 0.2])[None, :, None, None].expand(10, -1, 65, 65).contiguous()
    after = centred(Colour(radius=(0.3, 0.3)), colours)[:, :, 32, 32]
    torch.testing.assert_close(after.prod(dim=1), torch.full((10,), 0.03), rtol=1e-3, atol=0)
    assert (after - colours[:, :, 32, 32]).abs().max() > 0.05
    greys = torch.full((10, 1, 65, 65), 0.5)
    after = centred(Colour(radius=(0.3, 0.3), gamma=(math.log(2), math.log(2))), greys)[:, 0, 32, 32]
    torch.testing.assert_close(after.sort().values[[0, -1]], torch.tensor([0.25, 0.5**0.5]), rtol=1e-4, atol=0)


def test_streak_is_long_and_thin():
    flat = torch.full((12, 1, 128, 128), 0.5)
    streak = Streak(second=0, third=0, bend=0, length=(0.2, 0.2), width=(0.01, 0.01))
    masks = LesionMixture([streak], visible=0).synthesize(flat, 1, seeded()).mask
    for mask in masks:
        points = mask[0].nonzero().float()
        if points.min() == 0 or points.max() == 127:
            continue
        deviation = torch.linalg.svdvals(points - points.mean(dim=0)) / len(points) ** 0.5
        assert deviation[0] * 12**0.5 == pytest.approx(2 * 0.2 * 128, rel=0.15)
        assert deviation[1] < 2


def test_missing_leaves_a_blur():
    images = binarised(4, 65)
    after = centred(Missing(radius=(0.4, 0.4), aspect=(1.0, 1.0), irregularity=0.0, edge=(0.1, 0.1)), images)
    inside = (slice(None), slice(None), slice(22, 43), slice(22, 43))
    assert after[inside].diff(dim=-1).abs().max() < 0.3 * images[inside].diff(dim=-1).abs().max()
    matrix = blur_matrix(6, 2, 3, torch.device("cpu"))
    assert matrix.shape == (6, 18)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(6))
    assert (matrix[0, :13] - matrix[0, :13].flip(0)).abs().max() < 1e-6


def test_cutpaste_copies_a_rectangle_as_it_is():
    images = smooth(4, 65, 65)
    family = CutPaste(area=(0.04, 0.04), ratio=(1.0, 1.0), gain=(1.0, 1.0))
    after = centred(family, images, source=torch.tensor([[20.0, 18.0]]).expand(4, 2))
    assert torch.equal(after[:, :, 26:39, 26:39], images[:, :, 14:27, 12:25])
    assert torch.equal(after[:, :, :25], images[:, :, :25])


def test_warp_keeps_its_centre_and_magnifies_around_it():
    ramp = torch.linspace(0, 1, 65)[None, None, None].expand(1, 1, 65, 65).contiguous()
    after = centred(Warp(radius=(0.4, 0.4), strength=(0.5, 0.5), bulges=1), ramp)
    assert after[0, 0, 32, 32].item() == pytest.approx(0.5, abs=1e-4)
    assert (after - ramp)[0, 0, 32, 40] < -0.01  # what is nearer to the centre lies here now
    slope = (after[0, 0, 32, 33] - after[0, 0, 32, 31]).item() * 32
    assert slope == pytest.approx(0.5, abs=0.1)


# The parts that they are made of


def test_noise_has_unit_variance_anywhere():
    grains = torch.randn(400, 1, 8, 8, generator=seeded())
    noise = smooth_noise(grains, torch.arange(50)[None], torch.arange(70)[None], (50, 70))
    assert noise.shape == (400, 1, 50, 70)
    assert noise.std(dim=0).min() > 0.8
    assert noise.std(dim=0).max() < 1.2


def test_windows_hold_their_lesion_and_lie_in_the_image():
    extent = torch.tensor([1.0, 6.5, 7.0, 40.0])
    assert (window_sides(extent) >= 2 * extent + 1).all()
    assert (window_sides(extent) <= 1.5 * (2 * extent.ceil() + 3) + 1).logical_or(extent < 7).all()
    pixels = span(torch.tensor([0.0, 31.4, 63.0]), 16, 64)
    assert pixels[:, 0].tolist() == [0, 23, 48]
    assert reflected(torch.tensor([-2, -1, 0, 4, 5, 6]), 5).tolist() == [2, 1, 0, 4, 3, 2]


def test_windows_read_what_is_there():
    images = smooth(2, 40, 50)
    canvas = Canvas(images, -1.0, copies=2)
    part = Parameters(
        image=torch.tensor([3]), order=torch.tensor([0]), centre=torch.tensor([[2.0, 30.0]]), extent=torch.tensor([5.0])
    )
    _, windows = next(canvas.windows(part))
    assert torch.equal(windows.pixels[0], images[1, :, :16, 22:38])
    assert torch.equal(windows.elsewhere(torch.tensor([[3, 2]]))[0], images[1, :, 3:19, 24:40])
    padded = torch.nn.functional.pad(images, [6, 6, 6, 6], mode="reflect")
    expected = padded
    for _ in range(3):
        expected = torch.nn.functional.avg_pool2d(expected, 5, 1)
    torch.testing.assert_close(windows.blurred(3)[0], expected[1, :, :16, 22:38], rtol=0, atol=1e-5)


# Configuration


@pytest.mark.parametrize("name", NAMES)
def test_every_magnitude_is_checked_and_named(name):
    checked = [each for each in fields(FAMILIES[name]) if "limits" in each.metadata]
    assert checked
    for each in checked:
        highest = each.metadata["limits"][1]
        beyond = (highest, highest + 1) if isinstance(each.default, tuple) else highest + 1
        for wrong in (beyond, "much", (1, 2, 3), math.nan):
            with pytest.raises(InputError, match=f"{FAMILIES[name].__name__}: {each.name} is "):
                FAMILIES[name](**{each.name: wrong})


def test_lists_of_a_configuration_are_ranges():
    assert Blob(shift=[0.1, 0.2]) == Blob(shift=(0.1, 0.2))


def test_a_family_is_one_class(monkeypatch):
    monkeypatch.setattr("anomalib_msacl.lesions.base.FAMILIES", dict(FAMILIES))

    @dataclass(frozen=True)
    class Speck(Lesion[Parameters]):
        name: ClassVar[str] = "speck"

        def draw(self, canvas: Canvas, image: torch.Tensor, draw: Draw) -> Parameters:
            return Parameters(**self.somewhere(canvas, image, draw), extent=torch.full((len(image),), 4.0))

        def render(self, windows: Any, parameters: Parameters) -> Rendered:
            inside = (windows.y.abs() < 4) & (windows.x.abs() < 4)
            return Rendered(1 - windows.pixels.round(), inside[:, None].float())

    mixture = LesionMixture([Speck(), "blob"])
    lesions = mixture.draw(smooth(20), 2, seeded())
    assert set(lesions.family) == {"speck", "blob"}
    assert len(lesions.family) == len(lesions) == 40


def test_the_extent_is_a_tight_bound_of_the_outline():
    harmonics = 0.2 * torch.randn(500, 4, 2, generator=seeded())
    radius, aspect = torch.full((500,), 10.0), torch.full((500,), 2.0)
    angle = torch.linspace(-math.pi, math.pi, 5000)
    order = torch.arange(2, 6)[:, None] * angle
    boundary = 1 + harmonics[..., 0] @ order.cos() - harmonics[..., 1] @ order.sin()
    true = boundary.amax(dim=1) * 10 * 2**0.5
    extent = outline_extent(radius, aspect, harmonics)
    assert (extent >= true - 1e-3).all()
    assert (extent <= 1.05 * true).all()
