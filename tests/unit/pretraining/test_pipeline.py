"""The method as a function: no hook of Lightning in sight."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_msacl import InputError, pretrain
from anomalib_msacl.backbone import Encoder, create_backbone
from anomalib_msacl.backbone.tensors import StateDict, same
from anomalib_msacl.pretraining import Pretrained, Questions, Score
from anomalib_msacl.pretraining.torch_model import MsaclTerms
from anomalib_msacl.recipe import whitening_only
from tests.conftest import make_recipe

SMALL: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "accumulate": 1, "evaluations": 2, "centre_images": 8}


def start(name: str = "test_efficientnet") -> tuple[Encoder, Any]:
    torch.manual_seed(3)
    model, provenance = create_backbone(name, "random")
    return Encoder(model, frozen_stride=4), provenance


def images(number: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(number, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def run(**settings: Any) -> Pretrained:
    return pretrain(*start(), images(), images(6, 1), make_recipe(**{**SMALL, **settings}))


def test_the_steps_are_taken_in_their_order_and_the_candidates_have_names() -> None:
    untouched = start()[0].backbone.state_dict()
    found = run()
    assert list(found.candidates) == ["untouched", "whitened", "step 1", "step 2"]
    assert found.kept in found.candidates
    assert found.kept in found.verdict
    assert found.steps == 2
    assert any(not torch.equal(untouched[name], tensor) for name, tensor in found.weights.items())
    assert found.provenance.layers == tuple(found.encoder.layers)


@pytest.mark.parametrize(("name", "share"), [("test_efficientnet", 0.5), ("test_resnet", 0.5), ("test_vit", 0.25)])
def test_a_transformer_keeps_more_of_its_weights_than_others(name: str, share: float) -> None:
    def trained(average: float | None) -> StateDict:
        settings = {**SMALL, "max_steps": 1, "evaluations": 0, "average": average}
        encoder, provenance = start(name)
        return pretrain(encoder, provenance, images(), recipe=make_recipe(**settings)).weights

    found = trained(None)
    assert same(found, trained(share))
    assert not same(found, trained(0.75 - share))


def test_a_saved_folder_lists_the_candidates_by_name(tmp_path: Path) -> None:
    found = run()
    with (found.save(tmp_path / "weights") / "candidates.csv").open(newline="") as file:
        rows = {row["candidate"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(found.candidates)
    for name, score in found.candidates.items():
        assert float(rows[name]["image_auroc"]) == pytest.approx(score.image_auroc, abs=1e-6)
        assert rows[name]["kept"] == str(name == found.kept)


def test_the_same_seed_gives_the_same_weights_and_outside_nothing_moves() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = run(seed=4).weights
    torch.manual_seed(12)
    second, third = run(seed=4).weights, run(seed=5).weights
    torch.manual_seed(11)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_a_tensor_and_a_loader_of_it_give_the_same_weights() -> None:
    recipe = make_recipe(**SMALL)
    loader = DataLoader(images(), batch_size=4, shuffle=True, drop_last=True)
    one = pretrain(*start(), images(), images(6, 1), recipe).weights
    other = pretrain(*start(), loader, images(6, 1), recipe).weights
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_batches_and_a_loader_of_them_give_the_same_weights(kind: Any) -> None:
    recipe, batches = make_recipe(**{**SMALL, "max_steps": 3}), kind(images(8).split(4))
    one = pretrain(*start(), batches, kind([images(6, 1)]), recipe)
    other = pretrain(*start(), DataLoader(images(8), batch_size=4), DataLoader(images(6, 1), batch_size=6), recipe)
    assert one.steps == other.steps == 3
    assert all(torch.equal(one.weights[name], tensor) for name, tensor in other.weights.items())


@pytest.mark.parametrize(("accumulate", "expected"), [(1, [1, 1, 1, 1]), (3, [3, 1, 3, 1]), (8, [4, 4, 4, 4])])
def test_relative_positions_count_once_for_each_batch_of_their_step(
    accumulate: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen images make four batches: the last step of an epoch has fewer than are asked for."""
    counted: list[int] = []
    total = MsaclTerms.total

    def count(terms: MsaclTerms, values: dict[str, Tensor], batches: int = 1) -> Tensor:
        without = total(terms, {**values, "position": torch.zeros(())}, batches)
        if "position" in values:
            weight = terms.loss.position * float(values["position"].detach())
            counted.append(round(float(total(terms, values, batches) - without) / weight))
        return total(terms, values, batches)

    monkeypatch.setattr(MsaclTerms, "total", count)
    run(max_steps=4, accumulate=accumulate, evaluations=0, dense=0.0)
    assert counted == expected


def test_whitening_alone_makes_no_step_and_is_compared_with_the_untouched_backbone() -> None:
    encoder, provenance = start()
    found = pretrain(encoder, provenance, images(), images(6, 1), whitening_only(0.3))
    assert list(found.candidates) == ["untouched", "whitened"]
    assert found.steps == 0
    assert found.provenance.feature_std == (0.3 if found.kept == "whitened" else None)


def test_what_harms_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.2, 0.2, 0.2])
    monkeypatch.setattr(Questions, "score", lambda *_: Score(next(scores), 0.5))
    untouched = {name: tensor.clone() for name, tensor in start()[0].backbone.state_dict().items()}
    found = run()
    assert found.kept == "untouched"
    assert "the untouched backbone is kept" in found.verdict
    assert all(torch.equal(untouched[name], tensor) for name, tensor in found.weights.items())
    assert found.provenance.feature_std is None


def test_without_held_out_images_the_last_step_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    found = pretrain(*start(), images(), None, make_recipe(**SMALL))
    assert "no held-out normal images" in caplog.text
    assert found.kept is None
    assert found.candidates == {}


def test_no_steps_leave_the_backbone_as_it_is() -> None:
    encoder, provenance = start()
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    found = pretrain(encoder, provenance, images(), None, make_recipe(max_steps=0))
    assert all(torch.equal(before[name], tensor) for name, tensor in found.weights.items())


def test_images_that_were_normalised_are_refused() -> None:
    with pytest.raises(InputError, match=r"values from -.* but lesions are made on \[0, 1\]"):
        pretrain(*start(), 4 * images() - 2, None, make_recipe(**SMALL))
