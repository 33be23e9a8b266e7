"""What cannot be seen is no lesion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from anomalib.data.utils import read_image
from torchvision.transforms.v2.functional import resize

from anomalib_msacl.lesions import FAMILIES, LesionMixture
from anomalib_msacl.lesions.foreground import local_mean
from tests.unit.lesions.pictures import binarised, constant, dark, seeded, smooth

NAMES = list(FAMILIES)
VISIBLE = 0.02


def pictures() -> dict[str, torch.Tensor]:
    return {
        "binarised": binarised(),
        "dark": dark(),
        "smooth": smooth(8, 96, 96),
        "grey": constant(),
        "white": constant(value=1.0),
        "black": constant(value=0.0),
    }


def change_in_mask(images: torch.Tensor, output) -> torch.Tensor:
    """Return the mean absolute change of the masked pixels of each image."""
    change = (output.image - images).abs().mean(dim=1, keepdim=True)
    return (change * output.mask).flatten(1).sum(dim=1) / output.mask.flatten(1).sum(dim=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("picture", pictures())
def test_every_lesion_is_visible_on_any_picture(name, picture):
    images = pictures()[picture]
    output = LesionMixture([name]).synthesize(images, 1, seeded())
    assert output.count.tolist() == [1] * len(images)
    assert (output.mask.flatten(1).sum(dim=1) >= 0.002 * 96 * 96).all()
    assert (change_in_mask(images, output) >= 1.5 * VISIBLE - 1e-6).all()


@pytest.mark.parametrize("picture", pictures())
def test_mixtures_are_visible_with_exact_counts(picture):
    images, counts = pictures()[picture], torch.arange(8) % 4
    mixture = LesionMixture(NAMES)
    output = mixture.synthesize(images, counts, seeded())
    assert torch.equal(output.count, counts)
    lesions = mixture.draw(images, counts, seeded())
    assert torch.equal(torch.bincount(lesions.image, minlength=8), counts)
    some = counts > 0
    assert (change_in_mask(images, output)[some] >= VISIBLE).all()
    assert torch.equal(output.image[~some], images[~some])
    outside = (output.mask == 0).expand_as(images)
    assert torch.equal(output.image[outside], images[outside])


@pytest.mark.parametrize("name", NAMES)
def test_masks_hold_no_pixel_around_which_nothing_changes(name):
    images = dark()
    output = LesionMixture([name]).synthesize(images, 1, seeded())
    change = local_mean((output.image - images).abs().mean(dim=1, keepdim=True), reach=3)
    assert change[output.mask > 0].min() > 0.1 * VISIBLE


def test_masks_are_cut_down_and_no_more():
    images = smooth(8, 96, 96)
    whole, seen = (LesionMixture(["blob"], visible=visible) for visible in (0, VISIBLE))
    lesions = seen.draw(images, 1, seeded())
    outline, mask = whole.apply(images, lesions)[1], seen.apply(images, lesions)[1]
    assert (mask <= outline).all()
    assert 0.3 < mask.sum() / outline.sum() < 0.95
    change = (whole.apply(images, lesions)[0] - images).abs().mean(dim=1, keepdim=True)
    assert mask[(local_mean(change) > 1.5 * VISIBLE) & (outline > 0)].min() == 1


def test_a_displacement_cannot_be_seen_on_one_colour_and_a_spot_takes_its_place():
    mixture = LesionMixture(["warp", "missing"])
    assert set(mixture.draw(constant(), 2, seeded()).family) == {"blob"}
    assert set(mixture.draw(binarised(), 2, seeded()).family) <= {"warp", "missing", "blob"}


def test_another_family_of_the_mixture_is_tried_before_the_spot():
    lesions = LesionMixture(["warp", "texture"]).draw(constant(20), 2, seeded())
    assert lesions.family.count("texture") > 30


def test_with_zero_no_lesion_is_drawn_again():
    lesions = LesionMixture(["warp"], visible=0).draw(constant(), 2, seeded())
    assert set(lesions.family) == {"warp"}


def test_what_no_try_makes_visible_keeps_its_number():
    output = LesionMixture(["haze"], visible=0.9).synthesize(smooth(), 2, seeded())
    assert output.count.tolist() == [2] * 6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", ["pcb", "brain_mri"])
def test_real_images(data, name, shared_images):
    images = shared_images(data)
    counts = torch.arange(len(images)) % 3 + 1
    mixture = LesionMixture([name])
    output = mixture.synthesize(images, counts, seeded())
    assert torch.equal(output.count, counts)
    assert torch.equal(torch.bincount(mixture.draw(images, counts, seeded()).image), counts)
    assert (change_in_mask(images, output) >= VISIBLE).all()
    one = mixture.synthesize(images, 1, seeded(1))
    assert (change_in_mask(images, one) >= 1.5 * VISIBLE - 1e-6).all()


@pytest.fixture
def shared_images():
    """Load images of a shared set, where there is one beside the project."""

    def load(name: str) -> torch.Tensor:
        folders = [parent / "shared" / "data" / name / "train" / "good" for parent in Path(__file__).resolve().parents]
        folder = next((folder for folder in folders if folder.is_dir()), None)
        if folder is None:
            pytest.skip("the shared images are not here")
        paths = sorted(folder.iterdir())[:: len(list(folder.iterdir())) // 12][:12]
        return torch.stack([resize(read_image(p, as_tensor=True), [128, 128]).as_subclass(torch.Tensor) for p in paths])

    return load
