"""Fixtures that unit and integration tests share."""

from __future__ import annotations

import functools
import gc
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl import Msacl, Recipe
from anomalib_msacl.data import Phantom
from anomalib_msacl.detectors.msacl import lesion_head
from anomalib_msacl.recipe import RENAMED
from anomalib_msacl.screening.signal_stack import kept_signal_stack

# The tensors of these tests are small: on a shared machine threads cost more than they give.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that they start, too
# Where there is no GPU, torch would look for its driver at nearly every operation that it traces.
if not torch.cuda.is_available():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

TINY: dict[str, Any] = {"max_steps": 4, "batch_size": 4, "accumulate": 1, "evaluations": 2}
TINY |= {"evaluation_images": 8, "centre_images": 8, "whitening": 0.0}


def make_recipe(**settings: Any) -> Recipe:
    """Return a recipe from flat names, which keep the tests short: ``make_recipe(dense=0.5, evaluations=0)``."""
    plain: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "train_batch_norm":
            plain.setdefault("freeze", {})["batch_norm"] = not value
            continue
        part, _, inner = RENAMED.get(name, name).partition(".")
        if inner:
            plain.setdefault(part, {})[inner] = value
        else:
            plain[part] = value
    return Recipe.of(plain)


# The files that take longest, longest first: they start first, so that no worker is left alone with one at the end.
HEAVY = ("test_models", "test_cli", "test_msacl", "test_export", "test_parity", "test_igd", "test_callback")
HEAVY += ("test_report_splits", "test_backbones", "test_distributed", "test_faults", "test_bad_input")
HEAVY += ("test_report_page", "test_thresholds")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the others stay in their order."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return HEAVY.index(name) if name in HEAVY else len(HEAVY)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _exports_without_coverage() -> Iterator[None]:
    """Let coverage look away while torch writes ONNX: it would take twice as long, in code that is not ours."""
    export = torch.onnx.export

    def resume() -> None:
        """Coverage goes on at the next call of a function, which is this one."""

    @functools.wraps(export)
    def untraced(*arguments: Any, **options: Any) -> Any:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return export(*arguments, **options)
        finally:
            sys.settrace(trace)
            resume()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", untraced)
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_look_at_the_stack() -> Iterator[None]:
    """Let jsonargparse see who calls it without the source of every frame: pytest's stack is a hundred frames deep."""

    def stack(context: int = 1) -> list[inspect.FrameInfo]:
        del context
        frame, found = sys._getframe(1), []
        while frame is not None:
            code = frame.f_code
            found.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
            frame = frame.f_back  # type: ignore[assignment]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", stack)
        yield


@pytest.fixture(scope="module", autouse=True)
def _frozen_garbage() -> None:
    """Let the garbage collector pass over what is there already: exports make so many objects that it runs often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Screening sets the threads of its process, and all later tests of it would take several times as long."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _kept_signal_stack() -> Iterator[None]:
    """Tests that compile models with OpenVINO leave the process as it was: see the module."""
    with kept_signal_stack():
        yield


@pytest.fixture(scope="session", autouse=True)
def _quick_lesion_head() -> Iterator[None]:
    """A few steps for the lesion head of `Msacl`: its 60 are most of what a small run costs, and no test needs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesion_head, "_STEPS", 4)
        yield


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered once for all tests."""
    root = tmp_path_factory.mktemp("phantom")
    phantom(root).prepare_data()
    return root


def phantom(root: Path, **options: Any) -> Phantom:
    """Twenty training and twelve test images of 64 pixels."""
    defaults: dict[str, Any] = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    return Phantom("fundus", root, image_size=64, train_images=20, test_images=12, **{**defaults, **options})


@pytest.fixture
def tiny_recipe() -> Callable[..., Recipe]:
    """A recipe of a few small steps, with changes."""
    return lambda **changes: make_recipe(**{**TINY, **changes})


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., Engine]:
    """An engine that writes below the test's folder."""
    options: dict[str, Any] = {"default_root_dir": tmp_path / "results", "accelerator": "cpu", "devices": 1}
    options |= {"enable_progress_bar": False, "enable_model_summary": False}
    return lambda **changes: Engine(**{**options, **changes})


@pytest.fixture
def make_msacl(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> Callable[..., Msacl]:
    """Msacl on a tiny backbone."""

    def build(recipe: Recipe | None = None, **changes: Any) -> Msacl:
        torch.manual_seed(0)
        defaults: dict[str, Any] = {"backbone": "test_resnet", "weights": "random", "image_size": 64}
        defaults |= {"recipe": recipe or tiny_recipe(), "weights_dir": tmp_path / "weights", "visualizer": False}
        return Msacl(**{**defaults, **changes})

    return build


@pytest.fixture
def make_patchcore() -> Callable[..., Patchcore]:
    """PatchCore on a tiny backbone without weights of its own."""

    def build(**changes: Any) -> Patchcore:
        torch.manual_seed(1)
        transform = Compose([Resize((64, 64), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
        defaults: dict[str, Any] = {"backbone": "test_resnet", "layers": ["layer2", "layer3"], "pre_trained": False}
        defaults |= {"pre_processor": PreProcessor(transform=transform), "visualizer": False}
        return Patchcore(**{**defaults, **changes})

    return build
