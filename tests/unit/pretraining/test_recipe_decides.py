"""``pretrain`` does what its recipe says, and notes what it has done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomalib_msacl import InputError, Recipe, pretrain
from anomalib_msacl.backbone import Encoder, create_backbone
from anomalib_msacl.pretraining import Pretrained

QUICK: dict[str, Any] = {
    "max_steps": 1,
    "batch_size": 4,
    "accumulate": 1,
    "average": 1.0,
    "realign": False,
    "loss": {"centre_images": 4},
    "whitening": {"std": 0},
    "choice": {"evaluations": 0},
}


def images(side: int = 32) -> Tensor:
    return torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))


def pretrained(encoder: Encoder, provenance: Any, given: Any = None, **settings: Any) -> Pretrained:
    return pretrain(encoder, provenance, images() if given is None else given, None, Recipe.of({**QUICK, **settings}))


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the names of the parts of a backbone that are no longer what they were."""
    after = model.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("own", [0, 8])
@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        (0, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        (4, {"layer2", "layer3", "layer4"}),
        (16, {"layer4"}),
    ],
)
def test_the_recipe_says_which_stages_are_trained(stride: int, expected: set[str], own: int) -> None:
    model, provenance = create_backbone("test_resnet", "random")
    encoder = Encoder(model, frozen_stride=own)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pretrained(encoder, provenance, freeze={"stride": stride})
    assert moved(model, before) == expected


def test_a_recipe_that_freezes_everything_is_refused_unless_it_makes_no_step() -> None:
    model, provenance = create_backbone("test_resnet", "random")
    encoder = Encoder(model)
    with pytest.raises(InputError, match=r"nothing would be trained: with freeze.stride 64"):
        pretrained(encoder, provenance, freeze={"stride": 64})
    pretrained(encoder, provenance, freeze={"stride": 64}, max_steps=0)


@pytest.mark.parametrize("kept", [True, False])
def test_the_recipe_says_whether_statistics_of_batch_norm_are_kept(kept: bool) -> None:
    model, provenance = create_backbone("test_resnet", "random")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}
    pretrained(Encoder(model).eval(), provenance, freeze={"stride": 4, "batch_norm": kept})
    assert moved(model, before) == (set() if kept else {"layer2", "layer3", "layer4"})


def test_what_others_hold_fast_is_not_trained() -> None:
    model, provenance = create_backbone("test_resnet", "random")
    model.layer3.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pretrained(Encoder(model), provenance, freeze={"stride": 0})
    assert "layer3" not in moved(model, before)
    assert "layer4" in moved(model, before)


@pytest.mark.parametrize(
    ("own", "mean", "std"),
    [({}, [0.5] * 3, [0.5] * 3), ({"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)}, [0.1, 0.2, 0.3], [0.3, 0.2, 0.1])],
)
def test_weights_are_saved_with_the_normalisation_and_size_of_their_training(
    own: Any, mean: list[float], std: list[float], tmp_path: Path
) -> None:
    model, provenance = create_backbone("test_resnet", "random")
    encoder = Encoder(model, **own)
    assert encoder.mean.flatten().tolist() == pytest.approx(mean)
    assert encoder.std.flatten().tolist() == pytest.approx(std)
    folder = pretrained(encoder, provenance, images(64)).save(tmp_path / "weights")
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["std"], config["input_size"]) == (mean, std, [3, 64, 64])
    again, told = create_backbone("test_resnet", folder)
    assert Encoder(again).normalisation == (tuple(mean), tuple(std)) == (told.mean, told.std)
