"""The networks: which terms run, what a weight of 0 saves, what gradients reach."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anomalib_msacl import MedMix
from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.backbone.encoder import Encoder
from anomalib_msacl.detectors.msacl.lesion_head import LesionHead
from anomalib_msacl.detectors.msacl.torch_model import MsaclModel
from anomalib_msacl.pretraining.synthesis import SyntheticBatch
from anomalib_msacl.pretraining.torch_model import MsaclTerms, class_separation
from anomalib_msacl.recipe import TERMS
from tests.conftest import make_recipe

OFF = dict.fromkeys(TERMS, 0.0)


def build(name: str = "test_resnet", **weights: float) -> tuple[Encoder, MsaclTerms]:
    torch.manual_seed(0)
    recipe = make_recipe(**{**OFF, **weights}, classes=3)
    encoder = Encoder(create_backbone(name, "random")[0], frozen_stride=4)
    terms = MsaclTerms(encoder, recipe)
    terms.centring.fix(torch.randn(6, 128), torch.arange(3).repeat(2))
    return encoder.train(), terms.train()


def batch(images: int = 4) -> SyntheticBatch:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(3).repeat(images)
    output = MedMix().synthesize(torch.rand(3 * images, 3, 64, 64, generator=generator), classes, generator)
    return SyntheticBatch(output.image, output.mask, classes, torch.arange(images).repeat_interleave(3))


@pytest.mark.parametrize("term", TERMS)
def test_a_weight_switches_exactly_its_term_on(term: str) -> None:
    encoder, terms = build(**{term: 1.0})
    modules: dict[str, nn.Module] = {name: getattr(terms, name) for name in TERMS}
    called: list[str] = []
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    values = terms(encoder, batch()).values
    assert list(values) == [term]
    assert set(called) == {term}
    terms.total(values).backward()
    trained = [p for p in encoder.backbone.parameters() if p.requires_grad]
    assert any(p.grad is not None and bool(p.grad.any()) for p in trained)


def test_the_total_is_the_weighted_sum() -> None:
    values = {"dense": torch.tensor(3.0), "position": torch.tensor(5.0)}
    assert float(build(dense=0.5, position=2.0)[1].total(values)) == 0.5 * 3 + 2 * 5


def test_the_relative_position_of_one_batch_counts_for_all_batches_of_a_step() -> None:
    encoder, terms = build(dense=0.5, position=2.0)
    assert list(terms(encoder, batch(), position=False).values) == ["dense"]
    values = {"dense": torch.tensor(3.0), "position": torch.tensor(5.0)}
    assert float(terms.total(values, batches=3)) == 0.5 * 3 + 3 * 2 * 5


def test_dense_alone_does_not_run_the_deepest_stage() -> None:
    for weights, runs in (({"dense": 1.0}, 0), ({"centring": 1.0}, 1)):
        encoder, terms = build(**weights)
        ran: list[int] = []
        encoder.backbone.layer4.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        terms(encoder, batch())
        assert len(ran) == runs


def test_frozen_stages_get_no_gradient() -> None:
    encoder, terms = build(dense=1.0)
    terms.total(terms(encoder, batch()).values).backward()
    backbone = encoder.backbone
    assert all(p.grad is None for p in backbone.layer1.parameters())
    assert any(p.grad is not None for p in backbone.layer3.parameters())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_other_architectures_learn_from_all_terms(name: str) -> None:
    encoder, terms = build(name, **dict.fromkeys(TERMS, 1.0))
    found = terms(encoder, batch())
    assert list(found.values) == list(TERMS)
    assert len(found.maps) == 2
    assert found.z is not None
    terms.total(found.values).backward()
    scores = MsaclModel(encoder).eval()(batch().images)
    assert scores.anomaly_map.shape == (12, 1, 64, 64)


def test_the_lesion_head_does_not_touch_the_backbone() -> None:
    model = MsaclModel(build(dense=1.0)[0])
    images, masks, _, _ = batch()
    maps, _ = model.encoder(images, pooled=False)
    LesionHead.loss(model.lesion_head(maps), masks).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.lesion_head.parameters())


def test_the_lesion_head_learns_what_its_maps_show() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(4, 1, 32, 32)
    masks[:, :, 8:20, 8:20] = 1
    maps = [masks[:, :, ::2, ::2] + 0.1 * torch.randn(4, 3, 16, 16)]
    head = LesionHead([3])
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        LesionHead.loss(head(maps), masks).backward()
        optimizer.step()
    inside = head(maps)[masks[:, :, ::2, ::2] == 1].mean()
    outside = head(maps)[masks[:, :, ::2, ::2] == 0].mean()
    assert inside > 1 > -1 > outside


def test_scores_and_maps_are_probabilities_and_independent_of_the_batch() -> None:
    model = MsaclModel(build(dense=1.0)[0]).eval()
    images = batch().images
    together, alone = model(images), model(images[:1])
    assert together.anomaly_map.min() >= 0
    assert together.anomaly_map.max() <= 1
    assert together.pred_score.shape == (12,)
    assert torch.allclose(together.pred_score[:1], alone.pred_score, atol=1e-6)


def test_class_separation_by_hand() -> None:
    z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
    gap, spread = class_separation(z, torch.tensor([0, 0, 1, 1]))
    assert (float(gap), float(spread)) == (4.0, 1.0)
