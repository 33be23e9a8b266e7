"""Training in 16 bits: the scaler of gradients through the hooks of this package, as far as a CPU can show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from anomalib_msacl import pretrain
from anomalib_msacl.backbone import Encoder, create_backbone
from anomalib_msacl.backbone.tensors import StateDict, copy_of, same
from anomalib_msacl.pretraining import Pretrained, trainings
from anomalib_msacl.pretraining.lightning_model import make_trainer
from anomalib_msacl.pretraining.pipeline import Pretraining
from anomalib_msacl.pretraining.torch_model import MsaclTerms
from tests.conftest import make_recipe

SCALE = 1024.0  # of gradients at the first step: at torch's 65536 the first steps of this backbone overflow


@dataclass
class Run:
    """A pre-training of four steps in two trainings, two batches to a step.

    Attributes:
        found: What came of it.
        before: Weights before the first step, whitened.
        after: Weights after each step.
        scales: Of the gradients, after each step; empty in single precision.
    """

    found: Pretrained
    before: StateDict
    after: list[StateDict]
    scales: list[float]

    def moved(self) -> torch.Tensor:
        """Return how the weights have moved, as one vector."""
        moved = [self.found.weights[name] - value for name, value in self.before.items() if value.is_floating_point()]
        return torch.cat([each.flatten() for each in moved])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that trains in 16 or 32 bits; the losses of some batches are infinite."""
    monkeypatch.setattr(trainings, "SHORTEST", 2)
    settings: dict[str, Any] = {"batch_size": 4, "accumulate": 2, "max_steps": 4, "trainings": 2, "optimizer": "sgd"}
    # A norm below that of all gradients: if they were clipped before they are scaled back, no step would go far.
    settings |= {"gradient_clip": 0.1}
    recipe = make_recipe(**settings, evaluations=0, centre_images=8, average=1.0, realign=False)
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    begin, consider, total = Pretraining.begin_training, Pretraining.consider, MsaclTerms.total

    def train(half: bool, infinite: Sequence[int] = ()) -> Run:
        torch.manual_seed(3)
        model, provenance = create_backbone("test_efficientnet", "random")
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if half else None
        batches, before = iter(range(8)), dict[str, torch.Tensor]()
        after: list[StateDict] = []
        scales: list[float] = []

        def watched(under_way: Pretraining, step: int, steps: float) -> Any:
            after.append(copy_of(under_way.encoder.backbone))
            scales.extend([scaler.get_scale()] if half else [])
            return consider(under_way, step, steps)

        def begun(under_way: Pretraining, step: int, steps: float) -> bool:
            if step == 0:
                before.update(copy_of(under_way.encoder.backbone))
            return begin(under_way, step, steps)

        def maybe_infinite(terms: MsaclTerms, values: Any, number: int = 1) -> torch.Tensor:
            loss = total(terms, values, number)
            return loss * torch.inf if next(batches) in infinite else loss

        monkeypatch.setattr(Pretraining, "begin_training", begun)
        monkeypatch.setattr(Pretraining, "consider", watched)
        monkeypatch.setattr(MsaclTerms, "total", maybe_infinite)
        trainer = make_trainer(recipe, accelerator="cpu", plugins=plugins)
        found = pretrain(Encoder(model, frozen_stride=4), provenance, images, recipe=recipe, trainer=trainer)
        return Run(found, before, after, scales)

    return train


def test_16_bits_train_towards_the_weights_of_32(run: Any) -> None:
    """Gradients are scaled for the backward pass and scaled back before they are clipped."""
    exact, half = run(half=False), run(half=True)
    assert half.scales == [SCALE] * 4
    assert not same(exact.found.weights, half.found.weights)  # it was another precision
    assert torch.nn.functional.cosine_similarity(exact.moved(), half.moved(), dim=0) > 0.99
    assert half.moved().norm() == pytest.approx(float(exact.moved().norm()), rel=0.1)


def test_a_step_of_infinite_gradients_is_skipped(run: Any) -> None:
    """One of the two batches of a step is enough; here in the last step of a training and in the first of the next."""
    half = run(half=True, infinite=(2, 5))
    last, first = half.after[1], half.after[2]
    assert same(last, half.after[0])
    assert same(first, half.before)
    assert half.scales == [SCALE, SCALE / 2, SCALE / 4, SCALE / 4]
    assert not same(last, half.before)
    assert not same(half.after[3], first)
    floats = {name for name, value in last.items() if value.is_floating_point()}
    for name in floats:
        torch.testing.assert_close(half.found.weights[name], (last[name] + half.after[3][name]) / 2)


def test_a_run_whose_steps_are_all_skipped_is_told(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    half = run(half=True, infinite=range(8))
    assert same(half.found.weights, half.before)
    assert "the 4 steps have left the weights as they were" in caplog.text
