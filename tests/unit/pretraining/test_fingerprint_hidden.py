"""What transforms of torchvision and of users do not show: tensors, functions, mappings, and what these hold."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as first_version
from torch import Tensor, nn
from torchvision.transforms import v2

from anomalib_msacl.pretraining.fingerprint import fingerprint

Build = Callable[[float], Any]


class Field(v2.Transform):
    def __init__(self, field: Any) -> None:
        super().__init__()
        self.field = field

    def transform(self, inpt: Any, params: Any) -> Any:
        del params
        return inpt * self.field


class Telling(nn.Module):
    """Its repr tells one setting and hides another."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength, self.name = strength, "x"

    def extra_repr(self) -> str:
        return self.name


class Named(Telling):
    def __repr__(self) -> str:
        return "Named"


class Settings:
    def __init__(self, factor: float, **more: Any) -> None:
        self.factor, self.more, self._calls = factor, more, object()

    def scale(self, images: Tensor) -> Tensor:
        return images * self.factor


def scale(images: Tensor, factor: float = 0.5, *, offset: float = 0.0) -> Tensor:
    return images * factor + offset


def closure(factor: float) -> Callable[[Tensor], Tensor]:
    def inner(images: Tensor) -> Tensor:
        return images * factor

    return inner


def written(factor: float) -> Callable[[Tensor], Tensor]:
    """Return a function as users write it, with its numbers in the code, also in that of an inner function."""
    code = (
        f"def outer(images):\n    return (lambda each: each * {factor} if 'a' in {{'a', 'b', 'c'}} else each)(images)"
    )
    found: dict[str, Any] = {}
    exec(code, found)
    return found["outer"]


def of_global(factor: float) -> Callable[[Tensor], Tensor]:
    found = {"FACTOR": factor}
    exec("def outer(images):\n    return images * FACTOR", found)
    return found["outer"]  # type: ignore[return-value]


def with_default(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda images, by=factor: images * by


def holding_itself(factor: float) -> Any:
    holder: dict[str, Any] = {"factor": factor}
    holder["itself"] = [holder]
    return holder


BUILDS: dict[str, Build] = {
    "a tensor": lambda x: Field(torch.full((1, 64, 64), x)),
    "a small difference in a list of tensors": lambda x: Field([torch.full((2,), 0.5 + x * 1e-6)]),
    "an array of objects": lambda x: Field(np.array([x, None], dtype=object)),
    "code": lambda x: v2.Lambda(written(x)),
    "a closure": lambda x: v2.Lambda(closure(x)),
    "a value of its file": lambda x: v2.Lambda(of_global(x)),
    "a default": lambda x: v2.Lambda(with_default(x)),
    "a function in a partial": lambda x: v2.Lambda(functools.partial(scale, offset=x)),
    "a positional argument of a partial": lambda x: v2.Lambda(functools.partial(torch.mul, x)),
    "a function that keeps its results": lambda x: v2.Lambda(functools.cache(closure(x))),
    "a function of numpy": lambda x: v2.Lambda(np.sqrt if x < 0.7 else np.square),
    "a method": lambda x: v2.Lambda(Settings(x).scale),
    "a function in a list": lambda x: v2.Compose([v2.Resize(8), closure(x)]),
    "a function alone": closure,
    "a fill for each kind of image": lambda x: v2.RandomAffine(5, fill={torch.Tensor: x, "others": 0}),
    "matrices": lambda x: v2.LinearTransformation(x * torch.eye(12), torch.zeros(12)),
    "a type": lambda x: v2.ToDtype(torch.float32 if x < 0.7 else torch.float64),
    "an object": lambda x: Field(Settings(0, inner=Settings(x))),
    "a set": lambda x: Field({"a", "b", str(x)}),
    "a module in a mapping": lambda x: Field({"part": Telling(x)}),
    "a buffer": lambda x: v2.Compose([nn.BatchNorm1d(1), nn.PReLU(init=x)]),
    "what an extra_repr leaves out": Telling,
    "what a repr leaves out": Named,
    "a transform of torchvision's first version": lambda x: first_version.Compose([first_version.Lambda(closure(x))]),
    "something that holds itself": lambda x: Field(holding_itself(x)),
}


@pytest.mark.parametrize("name", BUILDS)
def test_hidden_settings_are_told_apart_and_equal_ones_are_not(name: str) -> None:
    one, same, other = (json.dumps(fingerprint(BUILDS[name](x))) for x in (0.5, 0.5, 0.9))
    assert one == same
    assert one != other
    assert " at 0x" not in one


def test_another_process_finds_the_same() -> None:
    code = (
        "import json; from tests.unit.pretraining.test_fingerprint_hidden import BUILDS, fingerprint; "
        "print(json.dumps([fingerprint(build(0.5)) for build in BUILDS.values()]))"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
    assert json.loads(there) == json.loads(json.dumps([fingerprint(build(0.5)) for build in BUILDS.values()]))


def test_what_ordinary_transforms_show_is_enough_so_that_older_weights_are_found() -> None:
    parts = [v2.Resize((8, 8)), v2.RandomAffine(5, fill=0.5), v2.RandomApply([v2.GaussianBlur(3)]), v2.RandAugment()]
    for part in (*parts, v2.Compose(parts), nn.Sequential(*parts)):
        assert fingerprint(part) == [repr(part)]
