"""What tells one transform from another."""

from __future__ import annotations

import json
from typing import Any

import kornia.augmentation
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from anomalib_msacl.pretraining.fingerprint import fingerprint


class Plain(nn.Module):
    """An augmentation as users write it: without a repr."""

    def __init__(self, strength: Any, part: nn.Module | None = None) -> None:
        super().__init__()
        self.strength, self.part, self._calls = strength, part, 0

    def forward(self, images: Tensor) -> Tensor:
        self._calls += 1
        return images


class Buffered(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.full((2, 2), value))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Plain(1), Plain(2)),
        (Plain((0.1, 0.2)), Plain((0.1, 0.3))),
        (Plain({"sigma": [1]}), Plain({"sigma": [2]})),
        (Plain(torch.ones(2)), Plain(torch.zeros(2))),
        (Plain(torch.ones(()).bfloat16()), Plain(torch.zeros(()).bfloat16())),
        (Plain(torch.ones(4)), Plain(torch.ones(2, 2))),
        (Plain(np.ones(2)), Plain(np.zeros(2))),
        (Plain(1, Plain(1)), Plain(1, Plain(2))),
        (Plain(1, v2.GaussianBlur(3)), Plain(1, v2.GaussianBlur(5))),
        (Buffered(1), Buffered(2)),
        (v2.Compose([v2.RandomApply([Plain(1)])]), v2.Compose([v2.RandomApply([Plain(2)])])),
        (nn.Sequential(Plain(1)), nn.Sequential(Plain(2))),
        (v2.RandomHorizontalFlip(0.1), v2.RandomHorizontalFlip(0.2)),
        (None, Plain(1)),
    ],
)
def test_transforms_of_other_settings_are_told_apart(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)
    assert json.dumps(fingerprint(one)) != json.dumps(fingerprint(other))


def test_a_transform_stays_the_same_after_calls_and_in_copies() -> None:
    def build() -> nn.Module:
        drawn = kornia.augmentation.AugmentationSequential(
            kornia.augmentation.RandomAffine(10.0), kornia.augmentation.RandomGaussianBlur((3, 3), (0.1, 0.2))
        )
        return v2.Compose([Plain(object()), v2.Resize((8, 8)), drawn])

    transform = build()
    before = fingerprint(transform)
    transform(torch.rand(2, 3, 8, 8))
    transform.train(False)
    assert fingerprint(transform) == before == fingerprint(build())
