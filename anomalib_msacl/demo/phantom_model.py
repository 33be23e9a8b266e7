"""A small model to try the page with: PatchCore on features of ImageNet, fitted on rendered phantom images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from anomalib.data.utils import ValSplitMode
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl.callback import MsaclPretraining
from anomalib_msacl.phantom.datamodule import Phantom
from anomalib_msacl.recipe import Recipe
from anomalib_msacl.thresholds.callback import NormalsThreshold

SPECIFICITY = 0.9


@dataclass(frozen=True)
class PhantomModel:
    """A model and images to try it with.

    Attributes:
        checkpoint: The fitted model; its threshold comes from held-out normal phantoms.
        examples: Phantoms that it has not seen, normal ones and ones with lesions in turn.
    """

    checkpoint: Path
    examples: tuple[Path, ...]


def fit_phantom_model(folder: Path, images: int = 100, side: int = 128) -> PhantomModel:
    """Fit PatchCore on phantoms, below a folder; without pre-training, which would take minutes.

    Args:
        folder: Where images, weights and checkpoint go.
        images: Number of normal images.
        side: Side of the images in pixels.

    Returns:
        The model.

    Raises:
        InputError: If the extra ``offline``, which brings the backbone's first weights, is not installed.
    """
    torch.manual_seed(0)
    mode = ValSplitMode.NONE
    data = Phantom(
        "fundus", folder / "phantoms", image_size=side, train_images=images, test_images=12, val_split_mode=mode
    )
    transform = Compose([Resize((side, side), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    model = Patchcore(
        backbone="tf_efficientnet_lite0",
        layers=["blocks.2", "blocks.4"],
        pre_trained=False,
        coreset_sampling_ratio=0.01,
        pre_processor=PreProcessor(transform),
        visualizer=False,
    )
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    weights = MsaclPretraining("offline", Recipe.of({"max_steps": 0}), folder / "weights")
    engine = Engine(
        callbacks=[weights, NormalsThreshold(SPECIFICITY, ratio=0.3)],
        default_root_dir=folder / "results",
        accelerator="cpu",
        devices=1,
        **quiet,
    )
    engine.fit(model, datamodule=data)
    return PhantomModel(Path(str(engine.best_model_path)), _examples(Path(str(data.root))))


def _examples(root: Path) -> tuple[Path, ...]:
    """Return three normal test images and three with lesions, in turn."""
    kinds = [sorted((root / "test" / kind).glob("*.png"))[:3] for kind in ("good", "lesion")]
    return tuple(path for pair in zip(*kinds, strict=True) for path in pair)
