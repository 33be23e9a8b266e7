"""Distance from bank, against plain loops and scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.backbone.encoder import Encoder
from anomalib_msacl.detectors.msacl.memory_bank import PatchMemoryBank
from anomalib_msacl.detectors.msacl.torch_model import MsaclModel
from anomalib_msacl.pretraining.patches import patch_features


def learned(images: int = 12) -> MsaclModel:
    torch.manual_seed(0)
    model = MsaclModel(Encoder(create_backbone("test_resnet", "random")[0])).eval()
    model.fit_memory_bank(torch.rand(images, 3, 64, 64), torch.rand(6, 3, 64, 64), seed=0)
    return model


def test_patches_are_those_of_patchcore() -> None:
    layers = [torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4, 4)]
    found = patch_features(layers)
    pooled = [nn.AvgPool2d(3, 1, 1)(layer) for layer in layers]
    assert torch.equal(found[:, :3], pooled[0])
    assert torch.allclose(found[:, 3:], nn.functional.interpolate(pooled[1], size=(8, 8), mode="bilinear"))


def test_distances_are_those_to_the_nearest_neighbour() -> None:
    bank = PatchMemoryBank(size=1000)
    bank.fit([torch.rand(3, 4, 5, 5), torch.rand(2, 4, 5, 5)], images=5, seed=0)
    patches = torch.rand(2, 4, 5, 5)
    index = NearestNeighbors(n_neighbors=1).fit((bank.bank + bank.centre).numpy())
    expected = index.kneighbors(patches.movedim(1, -1).reshape(-1, 4).numpy())[0]
    assert bank.distance(patches).flatten().numpy() == pytest.approx(expected.flatten(), abs=1e-4)


def test_the_bank_is_bounded_and_takes_patches_of_every_batch() -> None:
    marked = torch.arange(10.0)[:, None, None, None].expand(10, 1, 6, 6)
    bank = PatchMemoryBank(size=20)
    bank.fit(marked.split(4), images=10, seed=0)
    assert bank.bank.shape == (20, 1)
    assert torch.bincount(((bank.bank + bank.centre)[:, 0].round() // 4).long()).tolist() == [8, 8, 4]
    small = PatchMemoryBank(size=20)
    small.fit([marked[:1, :, :2, :2]], images=1, seed=0)
    assert small.bank.shape == (4, 1)


def test_the_score_is_the_mean_of_evidence_in_units_of_normal_images() -> None:
    bank = PatchMemoryBank()
    evidence, planes = torch.randn(50, 3) * torch.tensor([1.0, 10.0, 0.1]) + 7, torch.randn(50, 2, 4, 4)
    assert not bank.fitted
    bank.calibrate(evidence, planes)
    assert bank.fitted
    score, maps = bank(evidence, planes)
    for row in range(50):
        units = [(evidence[row, k] - evidence[:, k].mean()) / evidence[:, k].std(correction=0) for k in range(3)]
        mean = sum(units) / 3
        assert score[row].item() == pytest.approx(float(0.5 + 0.5 * mean / (1 + abs(mean))), abs=1e-5)
    middle = (evidence.mean(dim=0)[None], planes.mean(dim=(0, 2, 3))[None, :, None, None])
    assert [value.item() for value in bank(*middle)] == pytest.approx([0.5, 0.5], abs=1e-5)
    far = bank(evidence[:2] + torch.tensor([[1e4], [2e4]]), planes[:2])[0]
    assert far[0] < far[1] < 1  # a sigmoid would have run out of digits
    assert maps.shape == (50, 1, 4, 4)


def test_a_constant_evidence_does_not_divide_by_zero() -> None:
    bank = PatchMemoryBank()
    bank.calibrate(torch.ones(4, 3), torch.ones(4, 2, 2, 2))
    assert bank(torch.ones(4, 3), torch.ones(4, 2, 2, 2))[0].tolist() == [0.5] * 4
    # Of a single image there is no spread: evidence of any scale must go on counting, and keep its order.
    bank.calibrate(torch.tensor([[2.0, 0.02, -5.0]]), torch.ones(1, 2, 2, 2))
    factors = torch.tensor([[1.0, 1.0, 1.0], [1.5, 1.0, 1.0], [1.0, 2.0, 1.0], [2.0, 2.0, 1.0]])
    evidence = torch.tensor([[2.0, 0.02, -5.0]]) * factors
    scores = bank(evidence, torch.ones(4, 2, 2, 2))[0].tolist()
    assert scores == sorted(scores)
    assert len(set(scores)) == 4


def test_focal_and_diffuse_changes_both_raise_the_score() -> None:
    torch.manual_seed(1)
    model = learned()
    normal = torch.rand(8, 3, 64, 64)
    focal, diffuse = normal.clone(), 0.8 * normal
    focal[:, :, 20:36, 20:36] = 1
    scores = [model(images).pred_score.mean() for images in (normal, focal, diffuse)]
    assert scores[0] < scores[1]
    assert scores[0] < scores[2]
    found = model(focal).anomaly_map[:, 0]
    assert found[:, 22:34, 22:34].mean() > found.mean()


def test_an_image_score_is_the_mean_of_four_parts() -> None:
    torch.manual_seed(2)
    model = learned()
    bank, images = model.memory_bank, torch.rand(5, 3, 64, 64) ** 2
    with torch.no_grad():
        maps, pooled = model.encoder(images)
        distance = bank.distance(patch_features(maps)).flatten(1)
        contrast = maps[-1].flatten(2).std(dim=2, correction=0)  # of the deeper layer
        parts = [distance.amax(dim=1), distance.mean(dim=1), *model.whole_images(contrast, pooled).T]
        scores = model(images).pred_score
    assert len(bank.image_mean) == len(parts) == 4
    for row, score in enumerate(scores):
        mean = (
            sum(((p[row] - m) / s).item() for p, m, s in zip(parts, bank.image_mean, bank.image_std, strict=True)) / 4
        )
        assert score.item() == pytest.approx(0.5 + 0.5 * mean / (1 + abs(mean)), abs=1e-4)


def test_the_spread_is_read_from_the_deepest_layer_in_any_order() -> None:
    torch.manual_seed(3)
    images, others = torch.rand(8, 3, 64, 64), torch.rand(4, 3, 64, 64)
    for layers in (["layer2", "layer3"], ["layer3", "layer2"]):
        model = MsaclModel(Encoder(create_backbone("test_resnet", "random")[0], layers)).eval()
        model.fit_memory_bank(images, others, seed=0)
        assert len(model.whole_images.spread_mean) == max(model.encoder.dims)


def test_a_checkpoint_brings_the_bank_to_a_new_model() -> None:
    model = learned()
    fresh = MsaclModel(Encoder(create_backbone("test_resnet", "random")[0])).eval()
    assert not fresh.memory_bank.fitted
    fresh.load_state_dict(model.state_dict())
    images = torch.rand(3, 3, 64, 64)
    assert torch.equal(fresh(images).pred_score, model(images).pred_score)
    assert torch.equal(fresh(images).anomaly_map, model(images).anomaly_map)
