"""What ``Igd`` refuses, or tells, before and while it is trained."""

from __future__ import annotations

import logging
from typing import Any

from anomalib.data import AnomalibDataModule
from lightning.pytorch import Trainer
from torch import Tensor
from torchvision.transforms.v2 import Normalize

from anomalib_msacl.backbone.checks import is_number
from anomalib_msacl.data.checks import check_datamodule, check_validation, warn_of_shared_images
from anomalib_msacl.data.looks import seen_by_runs
from anomalib_msacl.detectors.settings import LARGEST_SIDE, check_whole
from anomalib_msacl.errors import InputError
from anomalib_msacl.pretraining.preparation import check_precision, transform_parts

logger = logging.getLogger(__name__)

_SMALLEST = 16  # pixels of a side
_WHOLE = {
    "dim": (1, 1 << 16),
    "width": (1, 1024),
    "patches": (1, 1 << 16),
    "update_every": (1, 10**9),
    "evaluations": (0, 10**6),
    "patch_size": (0, LARGEST_SIDE),
    "patch_stride": (0, LARGEST_SIDE),
    "seed": (-(2**63), 2**63 - 1),
}
_COLLAPSED = 1e-4  # mean squared distance of descriptors to their mean; sigma is at least 1
_DEAD = 1e-6  # standard deviation of what the critic says of the interpolations of a batch


def check_numbers(learning_rate: float, **values: int) -> None:
    """Refuse numbers that cannot be, or that no memory holds.

    Args:
        learning_rate: Of the optimisers.
        **values: The whole numbers among the settings, by their names.

    Raises:
        InputError: Naming the first of them.
    """
    for name, value in values.items():
        check_whole("Igd", name, value, *_WHOLE[name])
    if not is_number(learning_rate) or not 0 < learning_rate <= 1:
        raise InputError(f"Igd: learning_rate is {learning_rate!r}, but must be a number above 0 and 1 at most.")


def size_of(image_size: Any) -> tuple[int, int]:
    """Return height and width in pixels of a pair, or of one side.

    Raises:
        InputError: If it is neither.
    """
    size = tuple(image_size) if isinstance(image_size, list | tuple) else (image_size, image_size)
    if len(size) != 2:
        raise InputError(f"Igd: image_size is {image_size!r}, but must be one side, or height and width, in pixels.")
    for side in size:
        check_whole("Igd", "image_size", side, 1, LARGEST_SIDE, "pixels")
    return size


def check_sizes(size: tuple[int, int], patch_size: int, patch_stride: int) -> None:
    """Refuse images that are too small, and patches that do not cover them.

    Args:
        size: Height and width of the images in pixels.
        patch_size: Side of the patches; 0 for none.
        patch_stride: Distance of neighbouring patches.

    Raises:
        InputError: If one of them cannot work.
    """
    if min(size) < _SMALLEST:
        raise InputError(f"Igd: images of {size[0]} x {size[1]} pixels are too small; resize to {_SMALLEST} at least.")
    if not patch_size:
        return
    if patch_size < _SMALLEST or patch_size > min(size):
        raise InputError(
            f"Igd: patch_size is {patch_size}; set it between {_SMALLEST} and the {min(size)} pixels of the images, or "
            "to 0 for no patches."
        )
    if not 0 < patch_stride <= patch_size or any((side - patch_size) % patch_stride for side in size):
        raise InputError(
            f"Igd: patches of {patch_size} pixels at a distance of {patch_stride} do not cover images of {size[0]} x "
            f"{size[1]}; let both sides be {patch_size} plus a multiple of patch_stride, or change patch_stride."
        )


def normalisation_of(pre_processor: Any) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the images that a pre-processor gives, one value a channel."""
    for step in transform_parts(getattr(pre_processor, "transform", None)):
        if isinstance(step, Normalize):
            mean, std = ([float(value) for value in values] for values in (step.mean, step.std))
            return (mean * 3)[:3], (std * 3)[:3]
    return [0.0] * 3, [1.0] * 3


def check_fit(trainer: Trainer) -> None:
    """Look at the trainer and at every image before any long work.

    Raises:
        InputError: If one of them cannot serve.
    """
    if trainer.world_size > 1:
        raise InputError(f"Igd runs on one device, but the trainer has {trainer.world_size}; set trainer.devices to 1.")
    check_precision(trainer, "Igd")
    if trainer.max_epochs in {None, -1} and trainer.max_steps == -1:
        raise InputError("Igd lowers its learning rate until the last step; set trainer.max_epochs or max_steps.")
    datamodule = getattr(trainer, "datamodule", None)
    if isinstance(datamodule, AnomalibDataModule):
        check_datamodule(datamodule, seen=seen_by_runs(trainer.default_root_dir))
        check_validation(datamodule, trainer)
        warn_of_shared_images(datamodule, "Igd", "the normal ones choose the epoch that is kept")


def check_finite(loss: Tensor, epoch: int) -> None:
    """Stop a training that has diverged.

    Raises:
        InputError: If a loss is not finite.
    """
    if not loss.isfinite().all():
        raise InputError(
            f"Igd: the loss is not finite any more in epoch {epoch}; set a smaller learning_rate, or trainer.precision "
            "to 32-true."
        )


def tell_collapse(part: str, spread: float) -> bool:
    """Warn where all descriptors are alike, so that their distance to the centre tells nothing.

    Args:
        part: Name of the part, for the message.
        spread: Mean squared distance of the descriptors of training images to their mean.

    Returns:
        Whether they are.
    """
    if spread >= _COLLAPSED:
        return False
    logger.warning(
        "Igd: the descriptors of the part %r have collapsed: their mean squared distance to their mean is %.1e, so "
        "that the Gaussian term tells nothing. Are all training images alike? Otherwise try a smaller learning_rate.",
        *(part, spread),
    )
    return True


def tell_dead_critic(part: str, deviation: float) -> bool:
    """Warn where the critic says the same of all interpolations, so that it teaches nothing.

    Args:
        part: Name of the part, for the message.
        deviation: Standard deviation of what it says of the interpolations of a batch, mean over batches.

    Returns:
        Whether it does.
    """
    if deviation >= _DEAD:
        return False
    logger.warning(
        "Igd: the critic of the part %r has collapsed: it says the same of all interpolations (standard deviation "
        "%.1e), so that the interpolation term teaches nothing. Try a smaller learning_rate, or another seed.",
        *(part, deviation),
    )
    return True
