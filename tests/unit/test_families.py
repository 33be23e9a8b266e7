"""Families of synthetic lesions and their mixture."""

from __future__ import annotations

import pytest
import torch

from anomalib_msacl.errors import InputError
from anomalib_msacl.families import FAMILIES, NAMES, LesionMix
from anomalib_msacl.medmix import MedMix


def images(batch: int = 6, height: int = 64, width: int = 64, grey: bool = False) -> torch.Tensor:
    """Smooth tissue-like pictures."""
    coarse = torch.rand(batch, 1 if grey else 3, 8, 8, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (0.2 + 0.6 * smooth).expand(-1, 3, -1, -1).contiguous()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_a_lesion_changes_its_mask_and_nothing_else(name: str, size: tuple[int, int]) -> None:
    normal = images(6, *size)
    output = LesionMix([name]).synthesize(normal, torch.tensor([0, 1, 1, 1, 1, 1]), generator())
    inside = output.mask.expand_as(normal) > 0
    assert torch.equal(output.image[~inside], normal[~inside])
    assert torch.equal(output.image[0], normal[0])
    change = (output.image - normal).abs().flatten(1).amax(dim=1)
    assert (change[1:] > 0.01).all()
    assert 0 <= output.image.min() <= output.image.max() <= 1


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_grey_images_stay_grey(name: str) -> None:
    image = LesionMix([name]).synthesize(images(grey=True), 2, generator()).image
    torch.testing.assert_close(image[:, :1].expand_as(image), image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_lesions_lie_on_tissue(name: str) -> None:
    normal = images(20)
    normal[..., 32:] = 0  # right half: black border
    mask = LesionMix([name]).synthesize(normal, 1, generator()).mask
    share = mask[..., :32].flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1)
    assert share.mean() > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_images_darker_than_the_threshold_get_lesions_all_the_same(name: str) -> None:
    mask = LesionMix([name]).synthesize(images(20) * 0.08, 1, generator()).mask
    assert (mask.flatten(1).amax(dim=1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_lesions_lie_anywhere_where_the_foreground_is_not_asked_for(name: str) -> None:
    normal = images(20)
    normal[..., 32:] *= 0.05
    mask = LesionMix([name], MedMix(keep_on_foreground=False)).synthesize(normal, 2, generator()).mask
    share = mask[..., :32].flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1)
    assert 0.3 < share.mean() < 0.7


def test_a_mixture_draws_all_its_families_and_the_counts_asked_for() -> None:
    counts = torch.arange(12) % 4
    mixed = LesionMix(NAMES).synthesize(images(12), counts, generator())
    assert torch.equal(mixed.count, counts)
    assert torch.equal(mixed.mask.flatten(1).amax(dim=1) > 0, counts > 0)


def test_the_same_generator_gives_the_same_lesions() -> None:
    first, second, other = (LesionMix(NAMES).synthesize(images(), 2, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.image, second.image)
    assert not torch.equal(first.image, other.image)


def test_medmix_alone_is_medmix() -> None:
    counts = torch.tensor([0, 1, 2, 3, 1, 2])
    torch.manual_seed(0)
    expected = MedMix().synthesize(images(), counts)
    torch.manual_seed(0)
    torch.testing.assert_close(LesionMix().synthesize(images(), counts).image, expected.image)


def test_half_precision_images_keep_their_type() -> None:
    output = LesionMix(NAMES).synthesize(images().half(), 3, generator())
    assert output.image.dtype == output.mask.dtype == torch.float16


@pytest.mark.parametrize("families", [[], ["tumour"], ["medmix", "fog"]])
def test_an_unknown_family_is_told_with_those_there_are(families: list[str]) -> None:
    with pytest.raises(InputError, match="haze"):
        LesionMix(families)
