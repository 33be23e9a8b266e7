"""Mixtures of families: counts, shares, replay, and their place in torchvision and anomalib."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from anomalib.data import AnomalibDataModule
from PIL import Image

from anomalib_msacl import MedMix
from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions import FAMILIES, Blob, Haze, LesionMixture, Patch
from tests.unit.lesions.pictures import seeded, smooth

NAMES = list(FAMILIES)


def test_a_mixture_makes_the_counts_asked_for():
    counts = torch.arange(12) % 4
    mixed = LesionMixture(NAMES).synthesize(smooth(12), counts, seeded())
    assert torch.equal(mixed.count, counts)
    assert torch.equal(mixed.mask.flatten(1).amax(dim=1) > 0, counts > 0)


def test_every_lesion_says_its_family_and_all_take_part():
    lesions = LesionMixture(NAMES).draw(smooth(60), 3, seeded())
    number = Counter(lesions.family)
    assert set(number) == set(NAMES)
    assert min(number.values()) > 8  # of 180 / 9 = 20 each
    assert len(lesions) == len(lesions.family) == len(lesions.image) == len(lesions.order) == len(lesions.centre) == 180
    assert torch.equal(torch.bincount(lesions.image), torch.full((60,), 3))
    slots = set(zip(lesions.image.tolist(), lesions.order.tolist(), strict=True))
    assert slots == {(image, order) for image in range(60) for order in range(3)}
    own = lesions.of_image(7)
    assert Counter(own.family) == Counter(
        family for family, image in zip(lesions.family, lesions.image.tolist(), strict=True) if image == 7
    )


def test_batch_equals_one_image_at_a_time():
    images, mixture = smooth(5), LesionMixture(NAMES)
    lesions = mixture.draw(images, 3, seeded())
    image, mask = mixture.apply(images, lesions)
    for index in range(5):
        own = mixture.apply(images[index : index + 1], lesions.of_image(index), donors=images)
        torch.testing.assert_close(own[0][0], image[index], rtol=0, atol=1e-6)
        assert torch.equal(own[1][0], mask[index])


def test_several_images_of_each():
    images, mixture = smooth(4), LesionMixture(NAMES)
    counts = torch.tensor([[0, 1, 2], [0, 0, 3], [1, 1, 1], [0, 2, 0]])
    output = mixture.synthesize(images, counts, seeded())
    copies = images.repeat_interleave(3, dim=0)
    assert torch.equal(output.count, counts.flatten())
    outside = (output.mask == 0).expand_as(copies)
    assert torch.equal(output.image[outside], copies[outside])
    assert torch.equal(output.mask.flatten(1).amax(dim=1) > 0, counts.flatten() > 0)
    image, mask = mixture.apply(copies, mixture.draw(images, counts, seeded()))
    torch.testing.assert_close(image, output.image, rtol=0, atol=1e-6)
    assert torch.equal(mask, output.mask)


def test_patches_of_other_images_are_not_of_a_copy():
    part = MedMix(other_image=1, visible=0).draw(smooth(3), torch.ones(3, 4, dtype=torch.long), seeded()).parts[0]
    assert (part.donor // 4 != part.image // 4).all()
    assert set((part.donor // 4).tolist()) == {0, 1, 2}


def test_medmix_alone_is_medmix():
    counts = torch.tensor([0, 1, 2, 3, 1, 2])
    expected = MedMix().synthesize(smooth(), counts, seeded())
    assert torch.equal(LesionMixture().synthesize(smooth(), counts, seeded()).image, expected.image)


def test_medmix_among_others_keeps_its_settings():
    mixture = MedMix(radius=(0.1, 0.1), foreground_threshold=0.3, visible=0.01).among(["haze", "medmix"])
    assert mixture.families == (Haze(), Patch(radius=(0.1, 0.1)))
    assert (mixture.foreground_threshold, mixture.visible) == (0.3, 0.01)


def test_lesions_of_different_families_keep_clear_of_each_other():
    mixture = LesionMixture(["medmix", "blob", "cutpaste"], visible=0)
    lesions = mixture.draw(torch.full((40, 1, 128, 128), 0.5), 3, seeded())
    extent = torch.cat([part.extent for part in lesions.parts])
    clear = []
    for image in range(40):
        own = lesions.image == image
        distance = torch.cdist(lesions.centre[own], lesions.centre[own])
        gap = distance - extent[own][:, None] - extent[own][None] + 1e9 * torch.eye(3)
        clear.append(gap.min() >= 0)
    assert np.mean(clear) > 0.9


def test_a_batch_of_one_and_generators_of_any_state():
    image = smooth(1)
    output = LesionMixture(NAMES).synthesize(image, 2)
    assert output.count.tolist() == [2]
    assert LesionMixture(NAMES).synthesize(image, torch.tensor([[0, 3]]), seeded()).count.tolist() == [0, 3]


@pytest.mark.parametrize("families", [[], ["tumour"], ["medmix", "fog"], "haze"])
def test_an_unknown_family_is_told_with_those_there_are(families):
    with pytest.raises(InputError, match="missing"):
        LesionMixture(families)


@pytest.mark.parametrize("setting", [{"visible": -0.1}, {"foreground_threshold": 1.5}, {"counts": []}])
def test_a_bad_setting_is_named(setting):
    with pytest.raises(InputError, match=f"LesionMixture: {next(iter(setting))} is "):
        LesionMixture(**setting)


@pytest.mark.parametrize("counts", [[1, 2], [[1], [2]], [-1] * 6, torch.ones(6, 1, 1)])
def test_counts_that_do_not_fit_are_named(counts):
    with pytest.raises(InputError, match="one number per image"):
        LesionMixture().synthesize(smooth(), torch.as_tensor(counts))


def test_mixtures_that_differ_read_differently():
    mixtures = [LesionMixture(["blob"]), LesionMixture([Blob(shift=(0.2, 0.3))]), LesionMixture(["blob"], visible=0.03)]
    assert len({repr(mixture) for mixture in mixtures}) == 3
    assert repr(mixtures[0]) == repr(LesionMixture([Blob()]))


def test_named_and_configured_in_yaml(tmp_path):
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
    class_path: anomalib_msacl.lesions.LesionMixture
    init_args:
      families:
        - medmix
        - class_path: anomalib_msacl.lesions.Haze
          init_args:
            shift: [0.3, 0.4]
      counts: [2]
      keep_on_foreground: true
      foreground_threshold: 0.08
""",
        encoding="utf-8",
    )
    datamodule = AnomalibDataModule.from_config(config)
    datamodule.setup()
    mixture = datamodule.train_augmentations
    assert isinstance(mixture, LesionMixture)
    assert mixture.families == (Patch(), Haze(shift=(0.3, 0.4)))
    batch = next(iter(datamodule.train_dataloader()))
    assert ((batch.image - 128 / 255).abs() > 1e-3).flatten(1).any(dim=1).all()
