"""What counts as tissue, as an object and as background."""

import pytest
import torch

from anomalib_msacl.lesions.foreground import foreground, foreground_fraction, place_weights, tissue


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("background", [0.0, 0.3, 0.8, 0.92, 1.0])
def test_foreground_is_the_object_whatever_the_plain_background(background):
    inside = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    inside[..., 20:40, 10:50] = True
    noise = 0.01 * torch.randn(2, 3, 64, 64, generator=seeded())
    images = (torch.where(inside, 0.5, background) + noise).clamp(0, 1)
    assert torch.equal(foreground(images, 0.08), inside.expand(2, -1, -1, -1))
    assert foreground(images, -1.0).all()


def test_textures_smooth_surfaces_and_dark_images_are_all_foreground():
    texture = 0.3 + 0.6 * torch.rand(1, 3, 64, 64, generator=seeded())
    surface = 0.5 + 0.01 * torch.randn(1, 3, 64, 64, generator=seeded())
    surface[..., 30:34, 10:40] = 0.9  # 3 %: no object
    assert foreground(torch.cat([texture, surface, 0.05 * texture, torch.zeros_like(texture)]), 0.08).all()


def test_foreground_fraction_counts_bright_pixels():
    images = torch.zeros(2, 2, 4, 4)
    images[0, :, 0, 0] = 0.5
    images[0, :, 2:, 2:] = 0.5
    images[0, 0, 0, 2] = 0.1  # mean .05 is below the threshold
    fraction = foreground_fraction(foreground(images, 0.08), 2)
    assert fraction.tolist() == [[[0.25, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]


def test_tissue_leaves_out_single_pixels_and_fills_their_holes():
    found = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    found[..., 8:24, 8:24] = True
    found[..., 16, 16] = False
    found[..., 2, 2] = True
    kept = tissue(found)
    assert kept[0, 0, 16, 16]
    assert not kept[0, 0, 2, 2]
    assert kept[0, 0, 8:24, 8:24].all()
    assert not kept[0, 0, :6].any()


def test_places_keep_their_distance_where_there_is_room():
    fraction = torch.zeros(2, 32, 32)
    fraction[0, 8:24, 8:24] = 1
    fraction[1, 5] = 0.6  # thin: no cell is far from the border
    weights = place_weights(fraction, 0.1)
    assert weights[0].nonzero().amin() >= 10
    assert weights[0].nonzero().amax() <= 21
    assert torch.equal(weights[1], fraction[1])
