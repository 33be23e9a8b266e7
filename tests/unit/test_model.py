"""The networks: which terms run, what a weight of 0 saves, what gradients reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anomalib_msacl import MedMix, Recipe
from anomalib_msacl.encoder import Encoder
from anomalib_msacl.model import LesionHead, MsaclModel, class_separation
from anomalib_msacl.recipe import TERMS
from anomalib_msacl.weights import create_backbone

OFF = dict.fromkeys(TERMS, 0.0)


def build(name: str = "test_resnet", **weights: float) -> MsaclModel:
    torch.manual_seed(0)
    recipe = Recipe(**{**OFF, **weights}, classes=3)
    model = MsaclModel(Encoder(create_backbone(name, "random")[0], frozen_stride=4), recipe)
    model.centring.fix(torch.randn(6, 128), torch.arange(3).repeat(2))
    return model.train()


def batch(images: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(3).repeat(images)
    output = MedMix().synthesize(torch.rand(3 * images, 3, 64, 64, generator=generator), classes, generator)
    return output.image, output.mask, classes, torch.arange(images).repeat_interleave(3)


@pytest.mark.parametrize("term", TERMS)
def test_a_weight_switches_exactly_its_term_on(term: str) -> None:
    model = build(**{term: 1.0})
    modules: dict[str, nn.Module] = {name: getattr(model, name) for name in TERMS}
    called: list[str] = []
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    terms, _, _ = model.terms(*batch())
    assert list(terms) == [term]
    assert set(called) == {term}
    model.total(terms).backward()
    trained = [p for p in model.encoder.backbone.parameters() if p.requires_grad]
    assert any(p.grad is not None and bool(p.grad.any()) for p in trained)


def test_the_total_is_the_weighted_sum() -> None:
    terms = {"dense": torch.tensor(3.0), "position": torch.tensor(5.0)}
    assert float(build(dense=0.5, position=2.0).total(terms)) == 0.5 * 3 + 2 * 5


def test_dense_alone_does_not_run_the_deepest_stage() -> None:
    model = build(dense=1.0)
    ran = []
    model.encoder.backbone.layer4.register_forward_hook(lambda *_: ran.append(1))
    model.terms(*batch())
    assert not ran
    build(centring=1.0).terms(*batch())


def test_frozen_stages_get_no_gradient() -> None:
    model = build(dense=1.0)
    model.total(model.terms(*batch())[0]).backward()
    backbone = model.encoder.backbone
    assert all(p.grad is None for p in backbone.layer1.parameters())
    assert any(p.grad is not None for p in backbone.layer3.parameters())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_other_architectures_learn_from_all_terms(name: str) -> None:
    model = build(name, **dict.fromkeys(TERMS, 1.0))
    terms, maps, z = model.terms(*batch())
    assert list(terms) == list(TERMS)
    assert len(maps) == 2
    assert z is not None
    model.total(terms).backward()
    scores = model.eval()(batch()[0])
    assert scores.anomaly_map.shape == (12, 1, 64, 64)


def test_the_lesion_head_does_not_touch_the_backbone() -> None:
    model = build(dense=1.0)
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
    model = build(dense=1.0).eval()
    images = batch()[0]
    together, alone = model(images), model(images[:1])
    assert together.anomaly_map.min() >= 0
    assert together.anomaly_map.max() <= 1
    assert together.pred_score.shape == (12,)
    assert torch.allclose(together.pred_score[:1], alone.pred_score, atol=1e-6)


def test_class_separation_by_hand() -> None:
    z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
    gap, spread = class_separation(z, torch.tensor([0, 0, 1, 1]))
    assert (float(gap), float(spread)) == (4.0, 1.0)
