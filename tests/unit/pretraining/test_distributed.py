"""Two processes give the gradients and weights of one, over the same images and lesions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from anomalib_msacl import pretrain
from anomalib_msacl.backbone import Encoder, create_backbone, whiten
from anomalib_msacl.lesions.mixture import LesionMixture, LesionOutput
from anomalib_msacl.pretraining.devices import joining_strategy
from anomalib_msacl.pretraining.exchange import exchange_of
from anomalib_msacl.pretraining.lightning_model import make_trainer
from anomalib_msacl.pretraining.synthesis import Synthesis, SyntheticBatch
from anomalib_msacl.pretraining.torch_model import MsaclTerms
from anomalib_msacl.recipe import TERMS, Recipe
from tests.conftest import make_recipe
from tests.processes import METHOD, prepare_server

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
# Ten images, seven to a batch: shares are of unequal size, the last batch has three, and the centres end within one.
RUN: dict[str, Any] = {"max_steps": 2, "batch_size": 7, "accumulate": 2, "evaluations": 1, "centre_images": 8}
RUN |= {"classes": 3, "views": 2, "evaluation_images": 4, "learning_rate": 1e-3, **dict.fromkeys(TERMS, 0.5)}
IMAGES = torch.rand(10, 3, 48, 48, generator=torch.Generator().manual_seed(0))
original, synthesize = Synthesis.__call__, LesionMixture.synthesize


@contextmanager
def in_float32() -> Iterator[None]:
    """Lesions are made in no other precision."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(dtype)


def with_lesions(self: LesionMixture, images: Tensor, *arguments: Any) -> LesionOutput:
    with in_float32():
        found = synthesize(self, images.float(), *arguments)
    return LesionOutput(found.image.to(images), found.mask.to(images), found.count)


def of_each_image(self: Synthesis, images: Tensor, views: int = 1) -> SyntheticBatch:
    """Views and lesions that follow from the image alone, in whatever batch it is."""
    parts = []
    for image in images.float():
        with torch.random.fork_rng(devices=[]), in_float32():
            torch.manual_seed(int(1e6 * image.sum().item()))
            parts.append(original(self, image[None], views))

    def join(name: str) -> Tensor:
        values = torch.stack([getattr(part, name).unflatten(0, (views, self.classes)) for part in parts], dim=1)
        return values.flatten(0, 2)

    owners = torch.arange(len(images)).repeat(views).repeat_interleave(self.classes)
    return SyntheticBatch(join("images").to(images), join("masks").to(images), join("classes"), owners)


class Step(nn.Module):
    """The loss of a batch as one module."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = Encoder(create_backbone("test_resnet", "random")[0], frozen_stride=4)
        self.terms = MsaclTerms(self.encoder, recipe)
        features = torch.randn(9, 128, generator=torch.Generator().manual_seed(1))
        self.terms.centring.fix(features, torch.arange(3).repeat(3))
        self.double().to(torch.get_default_dtype())

    def forward(self, batch: SyntheticBatch, counts: bool) -> Tensor:
        torch.manual_seed(7 if not distributed.is_initialized() or distributed.get_rank() == 0 else 8)
        found = self.terms(self.encoder, batch, exchange=exchange_of(batch, counts))
        assert set(found.values) == set(TERMS)
        return self.terms.total(found.values)


def gradients(images: Tensor, processes: int, rank: int, **settings: Any) -> dict[str, Tensor]:
    """Gradients of one step; a process without an image takes part with one that does not count."""
    recipe = make_recipe(**RUN)
    recipe = replace(recipe, loss=replace(recipe.loss, **settings))
    step = Step(recipe)
    own = images[rank::processes]
    batch = Synthesis(recipe)(own if len(own) else images[:1], recipe.view.number)
    module = DistributedDataParallel(step, find_unused_parameters=True) if processes > 1 else step
    module(batch, len(own) > 0).backward()
    return {name: value.grad for name, value in step.named_parameters() if value.grad is not None}


def weights(processes: int, rank: int) -> dict[str, Tensor]:
    """Weights after a whole short run."""
    recipe = make_recipe(**RUN)
    torch.manual_seed(5)
    backbone, provenance = create_backbone("test_efficientnet", "random")
    encoder = Encoder(backbone.to(torch.get_default_dtype()), frozen_stride=4)
    options: dict[str, Any] = {"accelerator": "cpu", "barebones": False}
    if processes > 1:
        options |= {"devices": processes, "strategy": joining_strategy(rank)}
    images = IMAGES.to(torch.get_default_dtype())
    loader = torch.utils.data.DataLoader(images, batch_size=7, shuffle=True)
    found = pretrain(encoder, provenance, loader, images[:6].flip(-1), recipe, make_trainer(recipe, **options))
    assert list(found.candidates) == ["untouched", "whitened", "step 2"]
    return found.weights


def of_equal_range(images: Tensor, processes: int, rank: int) -> dict[str, Tensor]:
    """Weights of a ResNet whose channels were brought to equal ranges; each process has other images."""
    torch.manual_seed(6)
    encoder = Encoder(create_backbone("test_resnet", "random")[0]).to(torch.get_default_dtype())
    assert whiten(encoder, images[rank::processes].split(2), 0.1)
    return {key: value.detach() for key, value in encoder.backbone.state_dict().items()}


Found = dict[str, dict[str, Tensor]]


def everything(processes: int, rank: int) -> Found:
    """Gradients and weights in both precisions."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    Synthesis.__call__, LesionMixture.synthesize = of_each_image, with_lesions  # type: ignore[method-assign]
    found: Found = {}
    try:
        for dtype in TOLERANCE:
            torch.set_default_dtype(dtype)
            images = IMAGES.to(dtype)
            for number in (1, 5):
                found[f"{dtype} {number}"] = gradients(images[:number], processes, rank)
            found[f"{dtype} image"] = gradients(images[:4], processes, rank, positives="image", position_images=1)
            found[f"{dtype} ranges"] = of_equal_range(images[:5], processes, rank)
            found[f"{dtype} run"] = weights(processes, rank)
    finally:
        torch.set_default_dtype(torch.float32)
        Synthesis.__call__, LesionMixture.synthesize = original, synthesize  # type: ignore[method-assign]
    return found


def work(rank: int, processes: int, folder: str) -> None:
    """One process of several, or the only one."""
    os.environ["PL_GLOBAL_SEED"] = "3"  # as seed_everything leaves it; Lightning would seed several processes by it
    if processes > 1:
        distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=processes)
    torch.save(everything(processes, rank), f"{folder}/{rank}.pt")
    if processes > 1:
        distributed.destroy_process_group()


def results_of(processes: int, folder: Path) -> list[Found]:
    """Return what each of some processes found."""
    prepare_server()
    multiprocessing.start_processes(work, (processes, str(folder)), nprocs=processes, start_method=METHOD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return results_of(1, tmp_path_factory.mktemp("process"))[0]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return results_of(2, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", ["1", "5", "image", "ranges", "run"])
def test_processes_give_what_one_gives(case: str, dtype: torch.dtype, one: Found, several: list[Found]) -> None:
    """One image: the second process has none. Five, ranges: unequal shares. A run: whitened, averaged, chosen."""
    name = f"{dtype} {case}"
    first = several[0][name]
    for found in several:
        assert found[name].keys() == one[name].keys()
        assert all(torch.equal(tensor, first[key]) for key, tensor in found[name].items())
    for key, expected in one[name].items():
        scale = max(1.0, expected.abs().max().item())
        difference = (first[key] - expected).abs().max().item() / scale
        assert difference <= TOLERANCE[dtype], (key, difference)
