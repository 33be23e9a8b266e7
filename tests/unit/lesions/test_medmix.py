"""MedMix: what it changes, what it leaves, and how it fits torchvision and anomalib."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.models import Draem
from PIL import Image
from scipy import ndimage
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from anomalib_msacl import InputError, MedMix
from anomalib_msacl.lesions import Lesions
from anomalib_msacl.lesions.geometry import soft_outline
from anomalib_msacl.lesions.patches import PatchParameters

# Every change of look and geometry off: a lesion is a turned copy of its source.
NEUTRAL = {
    "brightness": (0, 0),
    "contrast": (1, 1),
    "saturation": (1, 1),
    "hue": (0, 0),
    "gamma": (1, 1),
    "noise": (0, 0),
    "fisheye": (0, 0),
    "wave": (0, 0),
}
STRONG = {"brightness": (1, 1), "contrast": (3, 3), "noise": (1, 1), "gamma": (0.3, 3)}


class Plain(MedMix):
    """MedMix with whole outlines as masks, whose lesions are those of its only family."""

    def __init__(self, **options):
        super().__init__(visible=0, **options)

    def draw(self, *arguments):
        return super().draw(*arguments).parts[0]

    def apply(self, images, lesions, donors=None):
        return super().apply(images, Lesions.of([(self.families[0], lesions)]), donors)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tissue(batch: int = 2, channels: int = 3, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    """Give random images without black, with structure of about four pixels."""
    coarse = 0.2 + 0.6 * torch.rand(batch, channels, height // 4 + 1, width // 4 + 1, generator=seeded(seed))
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def opacity_of(lesions: PatchParameters, height: int, width: int) -> torch.Tensor:
    """Give the opacity of each lesion on its whole image, shape (N, H, W)."""
    y = torch.arange(height)[None, :, None] - lesions.centre[:, :1, None]
    x = torch.arange(width)[None, None, :] - lesions.centre[:, 1:, None]
    return soft_outline(lesions, y, x)[:, 0] * lesions.opacity[:, None, None]


def regions(mask: torch.Tensor) -> int:
    return ndimage.label(mask[0].numpy(), structure=np.ones((3, 3)))[1]


def input_error(function, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


# How many


def test_no_lesion_returns_the_image_bit_for_bit():
    images = tissue()
    output = Plain().synthesize(images, 0)
    assert torch.equal(output.image, images)
    assert output.image.data_ptr() != images.data_ptr()
    assert output.mask.sum() == 0
    assert output.count.tolist() == [0, 0]


def test_as_a_transform_no_lesion_returns_the_image():
    image = tissue(1)[0]
    assert torch.equal(Plain(counts=(0,))(image), image)


def test_counts_may_differ_in_a_batch():
    images, counts = tissue(5), torch.tensor([0, 3, 1, 0, 2])
    output = Plain().synthesize(images, counts, seeded())
    assert torch.equal(output.count, counts)
    changed = [not torch.equal(new, old) for new, old in zip(output.image, images, strict=True)]
    assert changed == (counts > 0).tolist()
    assert (output.mask.flatten(1).amax(dim=1) > 0).tolist() == changed


def test_one_count_holds_for_all_images():
    assert Plain().synthesize(tissue(3), 2, seeded()).count.tolist() == [2, 2, 2]


def test_counts_are_drawn_from_those_named():
    counts = Plain(counts=(1, 4)).synthesize(tissue(40, 1, 32, 32), generator=seeded()).count
    assert set(counts.tolist()) == {1, 4}


def test_input_is_not_written_to():
    images = tissue()
    before = images.clone()
    Plain().synthesize(images, 3, seeded())
    assert torch.equal(images, before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_regions_as_lesions(count):
    images, medmix = torch.full((40, 1, 128, 128), 0.5), Plain()
    lesions = medmix.draw(images, count, seeded(count))
    masks = medmix.apply(images, lesions)[1]
    found = []
    for index, mask in enumerate(masks):
        own = lesions.of_image(index)
        gap = torch.cdist(own.centre, own.centre) - own.extent[:, None] - own.extent[None, :]
        apart = bool((gap.fill_diagonal_(math.inf) > 2).all())
        found.append(regions(mask))
        assert found[-1] == count if apart else found[-1] <= count
    assert np.mean(np.array(found) == count) >= 0.9


def test_lesions_keep_clear_of_each_other():
    lesions = Plain().draw(torch.full((40, 1, 128, 128), 0.5), 3, seeded())
    centre, radius = lesions.centre.reshape(40, 3, 2), lesions.radius.reshape(40, 3)
    clear = [
        (centre[:, a] - centre[:, b]).norm(dim=-1) >= 1.5 * (radius[:, a] + radius[:, b])
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert torch.stack(clear).float().mean() >= 0.95


# What is kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 128)])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_image_keeps_form_range_and_surroundings(channels, size, dtype):
    images = tissue(3, channels, *size).to(dtype)
    images[0] = images[0].round()  # the ends of the range as well
    image, mask, _ = Plain(**STRONG).synthesize(images, 2, seeded())
    assert image.shape == images.shape
    assert mask.shape == (3, 1, *size)
    assert image.dtype == mask.dtype == dtype
    assert image.min() >= 0
    assert image.max() <= 1
    assert set(mask.unique().tolist()) == {0, 1}
    outside = (mask == 0).expand_as(images)
    assert torch.equal(image[outside], images[outside])
    changed = (image != images).any(dim=1, keepdim=True) & (mask > 0)
    assert changed.flatten(1).any(dim=1).all()


def test_layout_in_memory_does_not_matter():
    images, medmix = tissue(), Plain()
    lesions = medmix.draw(images, 3, seeded())
    expected = medmix.apply(images, lesions)[0]
    assert torch.equal(medmix.apply(images.to(memory_format=torch.channels_last), lesions)[0], expected)


@pytest.mark.parametrize("channels", [3, 5])
def test_grey_images_stay_grey(channels):
    images = tissue(8, 1).repeat(1, channels, 1, 1)
    image = Plain(saturation=(0, 3), hue=(-180, 180)).synthesize(images, 3, seeded()).image
    assert (image - image[:, :1]).abs().max() < 1e-5
    assert not torch.equal(image, images)


# What is drawn


def test_same_parameters_give_the_same_images():
    images, medmix = tissue(), Plain()
    lesions = medmix.draw(images, 3, seeded())
    first, second = medmix.apply(images, lesions), medmix.apply(images, lesions)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_seed_decides():
    images, medmix = tissue(), Plain()
    first, again, other = (medmix.synthesize(images, 3, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.mask, again.mask)
    assert not torch.equal(first.mask, other.mask)


def test_global_random_state_is_touched_only_without_a_generator():
    images, state = tissue(), torch.get_rng_state()
    Plain(counts=(1, 2)).synthesize(images, None, seeded())
    assert torch.equal(torch.get_rng_state(), state)
    Plain(counts=(1, 2)).synthesize(images)
    assert not torch.equal(torch.get_rng_state(), state)


def test_batch_equals_one_image_at_a_time():
    images, medmix = tissue(4), Plain()
    lesions = medmix.draw(images, torch.tensor([3, 0, 1, 2]), seeded())
    image, mask = medmix.apply(images, lesions)
    for index in range(4):
        own_image, own_mask = medmix.apply(images[index : index + 1], lesions.of_image(index), donors=images)
        torch.testing.assert_close(own_image[0], image[index], rtol=0, atol=1e-6)
        assert torch.equal(own_mask[0], mask[index])


def test_later_lesions_lie_on_top():
    images, medmix = torch.full((1, 1, 64, 64), 0.5), Plain(**NEUTRAL, opacity=(1, 1), irregularity=0)
    lesions = medmix.draw(images, 2, seeded())
    middle = torch.tensor([[32.0, 32.0]]).expand(2, 2)
    lesions = replace(lesions, centre=middle, brightness=torch.tensor([0.3, -0.3]))
    assert medmix.apply(images, lesions)[0][0, 0, 32, 32].item() == pytest.approx(0.2, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "limits", "read"),
    [
        ("radius", (0.1, 0.2), lambda lesions: lesions.radius / 64),
        ("aspect", (1.5, 3), lambda lesions: lesions.aspect),
        ("edge", (0.1, 0.7), lambda lesions: lesions.edge),
        ("opacity", (0.3, 0.9), lambda lesions: lesions.opacity),
        ("brightness", (0.2, 0.6), lambda lesions: lesions.brightness.abs()),
        ("contrast", (0.5, 2), lambda lesions: lesions.contrast),
        ("saturation", (0.5, 2), lambda lesions: lesions.saturation),
        ("hue", (-90, 30), lambda lesions: lesions.hue.rad2deg()),
        ("gamma", (0.5, 2), lambda lesions: lesions.gamma),
        ("fisheye", (0.2, 0.8), lambda lesions: lesions.fisheye.abs()),
        ("wave", (0.1, 0.5), lambda lesions: lesions.wave[:, 0] / lesions.radius),
    ],
)
def test_parameters_fill_their_range(name, limits, read):
    values = read(Plain(**{name: limits}).draw(tissue(50, 1, 64, 96), 3, seeded()))
    low, high = limits
    assert values.min() >= low - 1e-4 * abs(low)
    assert values.max() <= high + 1e-4 * abs(high)
    assert values.max() - values.min() > 0.8 * (high - low)


@pytest.mark.parametrize("name", ["radius", "gamma"])
def test_median_is_the_geometric_mean_of_the_range(name):
    values = getattr(Plain(**{name: (0.05, 0.45)}).draw(tissue(200, 1, 32, 32), 3, seeded()), name)
    assert values.median().item() == pytest.approx(0.15 * (32 if name == "radius" else 1), rel=0.15)


def test_brightness_and_fisheye_have_both_signs():
    lesions = Plain().draw(tissue(20, 1), 3, seeded())
    assert set(lesions.brightness.sign().tolist()) == set(lesions.fisheye.sign().tolist()) == {-1, 1}


def test_outline_deviates_by_no_more_than_the_irregularity():
    lesions = Plain(irregularity=0.4).draw(tissue(50, 1), 3, seeded())
    deviation = lesions.harmonics.norm(dim=-1).sum(dim=-1)
    assert deviation.max() <= 0.4
    assert deviation.max() > 0.25


@pytest.mark.parametrize("probability", [0, 0.3, 1])
def test_share_of_patches_from_another_image(probability):
    lesions = Plain(other_image=probability).draw(tissue(100, 1, 32, 32), 4, seeded())
    share = (lesions.donor != lesions.image).float().mean().item()
    assert share == pytest.approx(probability, abs=0 if probability in {0, 1} else 0.08)


def test_single_image_is_its_own_donor():
    lesions = Plain(other_image=1).draw(tissue(1), 3, seeded())
    assert lesions.donor.tolist() == [0, 0, 0]


def test_select_and_of_image_take_whole_rows():
    lesions = Plain().draw(tissue(3), torch.tensor([1, 2, 1]), seeded())
    middle = lesions.of_image(1)
    assert len(middle) == 2
    assert middle.image.tolist() == [0, 0]
    assert middle.order.tolist() == [0, 1]
    for field in fields(lesions):
        if field.name != "image":
            assert torch.equal(getattr(middle, field.name), getattr(lesions, field.name)[1:3])


# Where


def disc(side: int = 128, radius: float = 40) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return 0.6 * ((y - side / 2) ** 2 + (x - side / 2) ** 2 < radius**2)[None, None].float()


def test_lesions_and_their_sources_lie_on_tissue():
    images = disc().expand(30, 1, 128, 128)
    lesions = Plain().draw(images, 3, seeded())
    for place in (lesions.centre, lesions.source):
        assert ((place - 64).norm(dim=1) < 40).all()


def test_lesions_reach_all_of_the_tissue():
    distance = (Plain().draw(disc().expand(60, 1, 128, 128), 3, seeded()).centre - 64).norm(dim=1)
    assert distance.min() < 10
    assert distance.max() > 28


def test_places_are_finer_than_the_grid_of_cells():
    places = Plain().draw(torch.full((60, 1, 128, 128), 0.5), 3, seeded()).centre
    assert places.min() >= -0.5
    assert places.max() <= 127.5
    within = (places + 0.5) % 4  # cells are of four pixels
    assert torch.histc(within, 4, 0, 4).min() > 60  # of 360 numbers


def test_foreground_may_be_ignored():
    lesions = Plain(keep_on_foreground=False).draw(disc().expand(30, 1, 128, 128), 3, seeded())
    assert ((lesions.centre - 64).norm(dim=1) > 42).any()


def test_thin_tissue_still_takes_lesions():
    images = torch.zeros(10, 1, 64, 64)
    images[:, :, :, 20:22] = 0.8
    lesions = Plain().draw(images, 2, seeded())
    assert (lesions.centre[:, 1] - 20.5).abs().max() <= 2  # within a cell of two pixels


def test_black_image_takes_lesions_anywhere():
    output = Plain().synthesize(torch.zeros(6, 3, 64, 64), 2, seeded())
    assert output.count.tolist() == [2] * 6
    assert (output.mask.flatten(1).sum(dim=1) > 0).all()


# Shape


def test_area_of_a_circle():
    images = disc()
    medmix = Plain(radius=(0.1, 0.1), aspect=(1, 1), irregularity=0)
    for seed in range(5):
        area = medmix.synthesize(images, 1, seeded(seed)).mask.sum().item()
        assert area == pytest.approx(math.pi * 12.8**2, rel=0.03)


def test_area_within_the_bounds_of_radius_and_irregularity():
    medmix = Plain(radius=(0.08, 0.1), aspect=(1, 2), irregularity=0.3)
    areas = medmix.synthesize(disc().expand(30, 1, 128, 128), 1, seeded()).mask.flatten(1).sum(dim=1)
    low, high = (math.pi * (radius * 128) ** 2 for radius in (0.08 * 0.7, 0.1 * 1.3))
    assert areas.min() > 0.9 * low
    assert areas.max() < 1.1 * high
    assert areas.max() > 1.2 * areas.min()


def test_mask_stays_within_the_extent():
    images, medmix = torch.full((20, 1, 96, 96), 0.5), Plain(irregularity=0.5, aspect=(1, 4))
    lesions = medmix.draw(images, 1, seeded())
    mask = medmix.apply(images, lesions)[1]
    for index, (y, x) in enumerate(lesions.centre.tolist()):
        rows, columns = mask[index, 0].nonzero(as_tuple=True)
        assert torch.hypot(rows - y, columns - x).max() <= lesions.extent[index]


@pytest.mark.parametrize("axis", ["long", "short"])
def test_edge_falls_to_nothing_at_the_rim(axis):
    medmix = Plain(irregularity=0, aspect=(2, 2), opacity=(0.8, 0.8), edge=(0.4, 0.4))
    lesion = medmix.draw(tissue(1), 1, seeded())
    rim = lesion.radius.item() * (2**0.5 if axis == "long" else 2**-0.5)
    along = lesion.angle.item() + (0 if axis == "long" else math.pi / 2)
    t = torch.linspace(0, 1.3, 131)  # along the axis, 1 is the rim
    points = lesion.select(torch.zeros(len(t), dtype=torch.long))
    y, x = (rim * t * f(along) for f in (math.sin, math.cos))
    opacity = (soft_outline(points, y[:, None, None], x[:, None, None])[:, 0] * points.opacity[:, None, None]).flatten()
    assert (opacity.diff() <= 1e-6).all()
    torch.testing.assert_close(opacity[t < 0.595], torch.full([60], 0.8))  # full until the edge begins
    assert opacity[t > 1.001].max() == 0
    assert opacity[80].item() == pytest.approx(0.4, abs=1e-3)  # half in the middle of the edge
    assert 0 < opacity[99].item() < 0.002


def test_shape_equals_a_plain_loop():
    lesions = Plain(irregularity=0.5, aspect=(1, 3)).draw(tissue(4, 1, 40, 48), 2, seeded())
    found = opacity_of(lesions, 40, 48).numpy()
    expected = np.zeros_like(found)
    for n in range(len(lesions)):
        cy, cx = lesions.centre[n].tolist()
        angle, aspect, radius = lesions.angle[n].item(), lesions.aspect[n].item(), lesions.radius[n].item()
        for row in range(40):
            for column in range(48):
                dy, dx = row - cy, column - cx
                u = (math.cos(angle) * dx + math.sin(angle) * dy) / (radius * math.sqrt(aspect))
                v = (math.cos(angle) * dy - math.sin(angle) * dx) / (radius / math.sqrt(aspect))
                theta, boundary = math.atan2(v, u), 1.0
                for k, (real, imaginary) in enumerate(lesions.harmonics[n].tolist(), start=2):
                    boundary += math.hypot(real, imaginary) * math.cos(k * theta + math.atan2(imaginary, real))
                ramp = min(max((1 - math.hypot(u, v) / boundary) / lesions.edge[n].item(), 0), 1)
                expected[n, row, column] = lesions.opacity[n].item() * ramp**2 * (3 - 2 * ramp)
    np.testing.assert_allclose(found, expected, atol=2e-5)


# Look


@pytest.mark.parametrize("channels", [1, 3])
def test_neutral_settings_leave_a_constant_image(channels):
    images = torch.full((4, channels, 64, 64), 0.37)
    output = Plain(**NEUTRAL, other_image=0).synthesize(images, 3, seeded())
    assert output.mask.sum() > 0
    torch.testing.assert_close(output.image, images, rtol=0, atol=1e-6)


def in_place(medmix: Plain, images: torch.Tensor, **changes) -> torch.Tensor:
    """Paste one lesion per image over the very place, unturned, that its patch was cut from."""
    lesions = medmix.draw(images, 1, seeded())
    middle = torch.full((len(images), 2), 32.0)
    same = {"donor": lesions.image, "centre": middle, "source": middle, "turn": torch.zeros(len(images))}
    return medmix.apply(images, replace(lesions, **(same | changes)))[0]


def test_neutral_patch_is_a_copy_of_its_source():
    images = tissue()
    torch.testing.assert_close(in_place(Plain(**NEUTRAL), images), images, rtol=0, atol=1e-5)


def test_neutral_patch_is_turned_about_its_centre():
    images = tissue(2, 3, 65, 65)
    medmix = Plain(**NEUTRAL, opacity=(1, 1))
    image = in_place(medmix, images, turn=torch.full((2,), math.pi / 2))
    middle = slice(31, 34)
    turned = torch.rot90(images, -1, (2, 3))
    torch.testing.assert_close(image[..., middle, middle], turned[..., middle, middle], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"brightness": (0.2, 0.2)},
        {"contrast": (2, 2)},
        {"saturation": (0, 0)},
        {"hue": (90, 90)},
        {"gamma": (2, 2)},
        {"noise": (0.05, 0.05)},
        {"fisheye": (0.6, 0.6)},
        {"wave": (0.4, 0.4)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_operation_changes_the_patch(change):
    images = tissue()
    assert (in_place(Plain(**(NEUTRAL | change)), images) - images).abs().max() > 0.03


def test_operations_on_a_constant_colour_by_hand():
    colour = torch.tensor([0.6, 0.4, 0.2])
    images = colour[None, :, None, None].repeat(1, 1, 64, 64)

    def colour_after(**change) -> torch.Tensor:
        return in_place(Plain(**(NEUTRAL | {"opacity": (1, 1)} | change)), images)[0, :, 32, 32]

    luma = torch.tensor([0.299, 0.587, 0.114]) @ colour
    torch.testing.assert_close(colour_after(gamma=(2, 2)), colour**2, rtol=0, atol=1e-5)
    torch.testing.assert_close(colour_after(contrast=(3, 3)), colour, rtol=0, atol=1e-5)
    torch.testing.assert_close(colour_after(saturation=(0, 0)), luma.expand(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(colour_after(saturation=(0.5, 0.5)), (colour + luma) / 2, rtol=0, atol=1e-3)
    turned = colour_after(hue=(180, 180))  # luma stays, colour mirrors
    torch.testing.assert_close(turned, 2 * luma - colour, rtol=0, atol=1e-3)


def test_hue_turns_the_plane_of_chroma():
    colour = torch.tensor([0.6, 0.5, 0.4])
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    images = colour[None, :, None, None].repeat(1, 1, 64, 64)
    medmix = Plain(**(NEUTRAL | {"hue": (90, 90)}), opacity=(1, 1))
    luma, first, second = (to_yiq @ colour).tolist()
    expected = torch.tensor([luma, -second, first])
    torch.testing.assert_close(to_yiq @ in_place(medmix, images)[0, :, 32, 32], expected, rtol=0, atol=1e-3)


def test_noise_has_the_stated_deviation():
    images = torch.full((8, 3, 64, 64), 0.5)
    medmix = Plain(**(NEUTRAL | {"noise": (0.05, 0.05)}), opacity=(1, 1), edge=(0.01, 0.01), radius=(0.3, 0.3))
    image, mask, _ = medmix.synthesize(images, 1, seeded())
    noise = (image - 0.5)[:, 0][mask[:, 0] > 0]
    assert noise.std().item() == pytest.approx(0.05, rel=0.1)
    assert noise.mean().item() == pytest.approx(0, abs=0.003)


def test_autocast_changes_nothing():
    images, medmix = tissue(4, 1).repeat(1, 3, 1, 1), Plain()
    lesions = medmix.draw(images, 3, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = medmix.apply(images, lesions)[0]
    torch.testing.assert_close(image, medmix.apply(images, lesions)[0], rtol=0, atol=1e-5)


# Gradients


def test_untouched_pixels_pass_their_gradient_on():
    images, medmix = tissue().requires_grad_(), Plain()
    lesions = medmix.draw(images, 2, seeded())
    image, mask = medmix.apply(images, lesions, donors=images.detach())
    image.sum().backward()
    outside = (mask == 0).expand_as(images)
    assert (images.grad[outside] == 1).all()
    assert (images.grad[~outside] < 1).any()


def test_pasted_pixels_pass_their_gradient_to_the_donor():
    images, donors = tissue(), tissue(seed=1).requires_grad_()
    medmix = Plain(**NEUTRAL)
    lesions = replace(medmix.draw(images, 1, seeded()), donor=torch.tensor([1, 1]))
    medmix.apply(images, lesions, donors)[0].sum().backward()
    assert donors.grad[0].abs().sum() == 0
    # Each patch takes as much weight from the donor as its opacity: a copy neither makes nor loses intensity.
    weight = opacity_of(lesions, 64, 64).sum().item()
    assert donors.grad[1, 0].sum().item() == pytest.approx(weight, rel=1e-3)
    reach = (lesions.extent + 2 + lesions.wave[:, 0])[:, None]
    for y, x in donors.grad[1, 0].nonzero().tolist():
        assert ((lesions.source - torch.tensor([y, x])).norm(dim=1, keepdim=True) <= reach).any()


def test_covered_pixels_pass_nothing_to_their_background():
    images, donors = tissue().requires_grad_(), tissue(seed=1)
    medmix = Plain(opacity=(1, 1), edge=(0.1, 0.1))
    lesions = medmix.draw(images, 1, seeded())
    medmix.apply(images, lesions, donors)[0].sum().backward()
    covered = (opacity_of(lesions, 64, 64) == 1)[:, None].expand_as(images)
    assert covered.sum() > 100
    assert images.grad[covered].abs().max() == 0


def test_gradient_equals_finite_differences():
    images = tissue().double()
    medmix = Plain(brightness=(0, 0.1), contrast=(0.8, 1.2), noise=(0, 0.02))  # far from the ends of the range
    lesions = medmix.draw(images, 2, seeded())
    weight = torch.rand(images.shape, generator=seeded(1), dtype=torch.float64)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (medmix.apply(x, lesions)[0] * weight).sum()

    leaf = images.clone().requires_grad_()
    value(leaf).backward()
    inside = medmix.apply(images, lesions)[1]  # elsewhere the gradient is trivial
    for seed in range(4):
        direction = torch.randn(images.shape, generator=seeded(seed), dtype=torch.float64) * inside
        step = 2e-3
        slope = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
        expected = (leaf.grad * direction).sum()
        assert slope.item() == pytest.approx(expected.item(), abs=2e-3 * leaf.grad.norm().item())


# In torchvision and anomalib


def test_in_compose_types_are_kept_and_the_mask_gets_the_lesions():
    transform = v2.Compose([Plain(counts=(2,)), v2.RandomHorizontalFlip(p=1)])
    image = tv_tensors.Image(tissue(1)[0])
    mask = tv_tensors.Mask(torch.zeros(64, 64, dtype=torch.uint8))
    mask[0, 63] = 1
    new_image, new_mask = transform(image, mask)
    assert type(new_image) is tv_tensors.Image
    assert type(new_mask) is tv_tensors.Mask
    assert new_mask.dtype == torch.uint8
    assert new_mask.shape == (64, 64)
    assert new_mask[0, 0] == 1  # what was marked before stays marked
    same = (new_image.flip(-1) == image).all(dim=0)
    assert (new_mask.flip(-1)[~same] == 1).all()
    assert new_mask.sum() > 1
    assert mask.sum() == 1


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_mask_with_channel_and_of_any_type(dtype):
    empty = tv_tensors.Mask(torch.zeros(1, 64, 64, dtype=dtype))
    mask = Plain(counts=(1,))(tv_tensors.Image(tissue(1)[0]), empty)[1]
    assert mask.shape == (1, 64, 64)
    assert mask.dtype == dtype
    assert mask.any()


def test_bare_tensors_of_one_image_and_of_a_batch():
    image, batch = tissue(1)[0], tissue(3)
    new = Plain(counts=(1,))(image)
    assert type(new) is torch.Tensor
    assert new.shape == image.shape
    assert not torch.equal(new, image)
    new = Plain(counts=(1,))(batch)
    assert all(not torch.equal(a, b) for a, b in zip(new, batch, strict=True))


def test_other_things_in_a_sample_pass_through():
    sample = {"image": tv_tensors.Image(tissue(1)[0]), "label": torch.tensor(1), "path": "a.png"}
    new = Plain(counts=(1,))(sample)
    assert new["path"] == "a.png"
    assert new["label"] is sample["label"]
    assert not torch.equal(new["image"], sample["image"])


def test_return_mask_gives_images_and_masks():
    images = tissue(3)
    torch.manual_seed(0)
    image, mask = Plain(counts=(1,), return_mask=True)(images)
    assert mask.shape == (3, 1, 64, 64)
    torch.manual_seed(0)
    assert torch.equal(image, Plain(counts=(1,)).synthesize(images).image)
    image, mask = Plain(counts=(1,), return_mask=True)(images[0])
    assert image.shape == (3, 64, 64)
    assert mask.shape == (1, 64, 64)


def test_train_augmentations_named_in_yaml(tmp_path):
    (tmp_path / "good").mkdir()
    for index in range(4):
        Image.fromarray(np.full((48, 48, 3), 128, np.uint8)).save(tmp_path / "good" / f"{index}.png")
    config = tmp_path / "data.yaml"
    config.write_text(
        f"""
class_path: anomalib.data.Folder
init_args:
  name: tiny
  root: {tmp_path}
  normal_dir: good
  train_batch_size: 4
  num_workers: 0
  test_split_mode: none
  val_split_mode: none
  train_augmentations:
    class_path: anomalib_msacl.MedMix
    init_args:
      counts: [2]
      brightness: [0.2, 0.3]
""",
        encoding="utf-8",
    )
    datamodule = AnomalibDataModule.from_config(config)
    datamodule.setup()
    assert datamodule.train_augmentations.families[0].brightness == (0.2, 0.3)
    batch = next(iter(datamodule.train_dataloader()))
    changed = (batch.image - 128 / 255).abs().amax(dim=1) > 1e-3
    share = changed.flatten(1).float().mean(dim=1)
    assert (share > 0.01).all()
    assert (share < 0.6).all()


def test_takes_the_place_of_the_generator_in_draem(tmp_path):
    model = Draem(dtd_dir=tmp_path)  # a folder that exists, so that nothing is downloaded
    model.augmenter = Plain(counts=(1, 2), return_mask=True)
    model.log = lambda *_, **__: None
    seen = {}
    model.loss.register_forward_pre_hook(lambda _, arguments: seen.update(clean=arguments[0], mask=arguments[2]))
    model.model.register_forward_pre_hook(lambda _, arguments: seen.update(lesions=arguments[0]))
    images = tissue(2, 3, 32, 32)
    torch.manual_seed(0)
    model.training_step(ImageBatch(image=images))["loss"].backward()
    torch.manual_seed(0)
    expected = Plain(counts=(1, 2)).synthesize(images)
    assert torch.equal(seen["clean"], images)
    assert torch.equal(seen["lesions"], expected.image)
    assert torch.equal(seen["mask"], expected.mask)
    for part in (model.model.reconstructive_subnetwork, model.model.discriminative_subnetwork):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


# Bad input


def test_images_that_are_no_batch():
    assert "(B, C, H, W)" in input_error(Plain().synthesize, tissue()[0])


def test_integer_images_name_the_conversion():
    message = input_error(Plain().synthesize, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert "torch.uint8" in message
    assert "to_dtype(scale=True)" in message


@pytest.mark.parametrize("size", [(31, 64), (64, 16)])
def test_small_images_name_the_smallest_side(size):
    message = input_error(Plain().synthesize, torch.zeros(1, 3, *size))
    assert f"{size[0]} x {size[1]}" in message
    assert "32 x 32" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("radius", (0.2, 0.1)),
        ("radius", (0, 0.1)),
        ("radius", (0.1, 0.2, 0.3)),
        ("radius", (math.nan, 0.1)),
        ("aspect", (0.5, 1)),
        ("opacity", (0, 1)),
        ("edge", (0.5, 1.5)),
        ("fisheye", (0, 1)),
        ("hue", (30, -30)),
        ("irregularity", 0.6),
        ("other_image", -0.1),
    ],
)
def test_range_out_of_bounds_is_named(name, value):
    message = input_error(Plain, **{name: value})
    assert f"{name} is {value}" in message
    assert "<=" in message or "from 0 to" in message


@pytest.mark.parametrize("counts", [(), (1, -1)])
def test_bad_counts_are_named(counts):
    assert f"counts is {list(counts)}" in input_error(Plain, counts=counts)


def test_mask_without_image_is_refused():
    assert "no image" in input_error(Plain(), tv_tensors.Mask(torch.zeros(64, 64)))
