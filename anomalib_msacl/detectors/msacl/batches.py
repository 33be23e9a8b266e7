"""Batches and images, arranged for ``Msacl``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from anomalib.data import ImageBatch
from anomalib.models.components.base import AnomalibModule
from lightning.pytorch import Trainer
from torch import Tensor

from anomalib_msacl.pretraining.images import NormalImages
from anomalib_msacl.pretraining.preparation import apply_transform

_OF_OTHER_IMAGES = ("image_path", "mask_path", "pred_score", "anomaly_map", "pred_label", "pred_mask", "explanation")


def fill(batch: ImageBatch, images: Tensor, masks: Tensor) -> None:
    """Put other images into a batch in place: anomalib's callbacks look at this very object.

    Args:
        batch: What it says of its former images is taken out.
        images: Shape ``(B, 3, H, W)``.
        masks: Lesions, shape ``(B, H, W)``, bool; images without any are normal.
    """
    for name in _OF_OTHER_IMAGES:
        if hasattr(batch, name):
            setattr(batch, name, None)
    for name, value in (("image", images), ("gt_label", masks.flatten(1).any(dim=1)), ("gt_mask", masks)):
        setattr(batch, name, value)


def share_batches(trainer: Trainer) -> None:
    """Let the training batches of a trainer's datamodule be divided among its processes, and be resumable."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if datamodule is None or isinstance(getattr(datamodule, "train_dataloader", None), _Shared):
        return
    datamodule.train_dataloader = _Shared(datamodule.train_dataloader)


def return_batches(trainer: Trainer) -> None:
    """Take back what :func:`share_batches` has done: the next model may want other batches of the same datamodule."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if isinstance(getattr(datamodule, "train_dataloader", None), _Shared):
        method = datamodule.train_dataloader.method
        del datamodule.train_dataloader
        if datamodule.train_dataloader != method:  # it was replaced on this object before, too
            datamodule.train_dataloader = method


class _Shared:
    """A method that returns a loader, whose loaders are shared."""

    def __init__(self, method: Callable[[], Any]) -> None:
        self.method = method

    def __call__(self) -> Any:
        """Return the loader."""
        return NormalImages(self.method()).shared()


def training_images(module: AnomalibModule) -> NormalImages:
    """Return the training images of a module's trainer, as its pre-processor brings them to the model."""
    return NormalImages(module.trainer.train_dataloader or (), partial(apply_transform, module.pre_processor))


def held_out_images(module: AnomalibModule) -> NormalImages | None:
    """Return the normal images of the validation set, prepared as :func:`training_images`; None without such a set."""
    data: Any = getattr(module.trainer, "datamodule", None)
    if not hasattr(data, "val_data"):
        return None
    return NormalImages(data.val_dataloader(), partial(apply_transform, module.pre_processor))
