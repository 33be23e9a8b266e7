"""The detectors leave the random numbers of a run as they found them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Callback

from anomalib_msacl import Igd
from tests.conftest import phantom

Make = Callable[..., Any]


def igd() -> Igd:
    options: dict[str, Any] = {"backbone": "test_resnet", "layers": ["layer3"], "pre_trained": False, "image_size": 64}
    return Igd(**options, dim=8, width=2, patch_size=0, evaluations=0, visualizer=False)


def drawn() -> tuple[float, float, float]:
    """Return the next numbers of torch, NumPy and Python."""
    return float(torch.rand(1)), float(np.random.rand()), random.random()  # noqa: NPY002


class DrawsAndFails(Callback):
    """Draws numbers in a fit, as augmentations do, and perhaps fails."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def on_train_batch_start(self, *_: Any) -> None:
        drawn()
        if self.fails:
            raise ZeroDivisionError


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", ["Msacl", "Igd"])
def test_global_random_numbers_are_left_as_they_were(
    name: str, fails: bool, make_msacl: Make, make_engine: Make, phantom_root: Path
) -> None:
    model: AnomalibModule = make_msacl() if name == "Msacl" else igd()
    data = phantom(phantom_root, val_split_mode="from_train", val_split_ratio=0.2, seed=0)
    engine = make_engine(max_steps=2, callbacks=[DrawsAndFails(fails)])
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(11)
    expected = drawn()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(11)
    if fails:
        with pytest.raises(ZeroDivisionError):
            engine.fit(model, datamodule=data)
    else:
        engine.fit(model, datamodule=data)
    assert drawn() == expected
