"""Several trainings from the same weights: where each begins, and what is averaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from anomalib_msacl import pretrain
from anomalib_msacl.backbone import Encoder, create_backbone
from anomalib_msacl.backbone.tensors import StateDict, copy_of, same
from anomalib_msacl.pretraining import trainings
from anomalib_msacl.pretraining.lightning_model import PretrainingModule
from anomalib_msacl.pretraining.pipeline import Pretraining
from tests.conftest import make_recipe


@pytest.mark.parametrize(("total", "wanted"), [(7, 3), (90, 3), (4, 9), (61, 2)])
def test_every_step_belongs_to_one_training_and_none_is_short(
    total: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "SHORTEST", 2)
    number = trainings.number_of_trainings(wanted, total)
    found = sorted({trainings.bounds(step, total, number) for step in range(total)})
    assert len(found) == number
    assert [first for first, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == total
    assert min(end - first for first, end in found) >= 2


def test_the_mean_counts_each_training_by_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of one: two of two steps and one of the three that the last one has."""
    monkeypatch.setattr(trainings, "SHORTEST", 2)
    backbone, heads = nn.BatchNorm1d(3), nn.Linear(2, 2)
    start, first_heads, run = copy_of(backbone), copy_of(heads), trainings.Trainings(3)
    ends, begun = [], []
    for step in range(5):
        if run.begin(step, 7, backbone, heads, start):
            begun.append(step)
            assert same(copy_of(backbone), start)
            assert same(copy_of(heads), first_heads)
        with torch.no_grad():
            for parameter in (*backbone.parameters(), *heads.parameters()):
                parameter.add_(torch.rand_like(parameter))
        ends.append(copy_of(backbone))
    assert begun == [2, 4]
    found = run.mean(copy_of(backbone), 5)
    expected = (2 * ends[1]["weight"] + 2 * ends[3]["weight"] + ends[4]["weight"]) / 5
    torch.testing.assert_close(found["weight"], expected)
    assert found["num_batches_tracked"].dtype == torch.long
    assert not run.begin(0, 7, backbone, heads, start)  # another fit of the same model begins with nothing
    assert same(run.mean(ends[4], 1), ends[4])


def test_a_run_of_two_trainings_is_the_mean_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is a run of its own; the second begins where it began, with an optimiser that knows nothing."""
    monkeypatch.setattr(trainings, "SHORTEST", 2)
    settings: dict[str, Any] = {"batch_size": 4, "accumulate": 1, "evaluations": 0, "centre_images": 8, "average": 1.0}
    images = torch.rand(12, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    seen: dict[int, StateDict] = {}
    counted: list[float] = []

    def watched(run: Pretraining, step: int, total: float) -> Any:
        seen[step] = copy_of(run.encoder.backbone)
        return consider(run, step, total)

    def begun(module: PretrainingModule, batch: Any, batch_idx: int) -> None:
        start(module, batch, batch_idx)
        states = module.trainer.optimizers[0].state.values()
        counted.append(max((float(state["step"]) for state in states), default=0))

    consider, start = Pretraining.consider, PretrainingModule.on_train_batch_start
    monkeypatch.setattr(Pretraining, "consider", watched)
    monkeypatch.setattr(PretrainingModule, "on_train_batch_start", begun)

    def run(**steps: int) -> StateDict:
        torch.manual_seed(3)
        model, provenance = create_backbone("test_efficientnet", "random")
        recipe = make_recipe(**settings, **steps, realign=False)
        return pretrain(Encoder(model, frozen_stride=4), provenance, images, recipe=recipe).weights

    one = run(max_steps=2, trainings=1)
    counted.clear()
    both = run(max_steps=4, trainings=2)
    assert same(seen[2], one)
    assert counted == [0, 1, 0, 1]
    assert not same(seen[4], seen[2])
    for name, value in both.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (seen[2][name] + seen[4][name]) / 2)
