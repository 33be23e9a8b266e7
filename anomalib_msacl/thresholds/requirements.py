"""What ``NormalsThreshold`` needs of data, model and trainer, and the sentences that tell what is missing."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

from anomalib import LearningType
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import MEBinPostProcessor, PostProcessor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from anomalib_msacl.data.held_out import HeldOut
from anomalib_msacl.errors import InputError
from anomalib_msacl.thresholds.conformal import images_needed

logger = logging.getLogger(__name__)

FEWEST_FOLDS = 2  # one part to score, one to fit on
_MOST = 0.5  # part of the training images that may be advised to hold out


def check_number(held_out: HeldOut | None, total: int, specificity: float, confidence: float | None) -> None:
    """Raise :class:`InputError` where there are too few scores for a promise.

    Args:
        held_out: What is held out; None where all images are scored by folds.
        total: Number of normal training images, or patients.
        specificity: That of the promise.
        confidence: That of the promise.
    """
    needed, number = images_needed(1 - specificity, confidence), total if held_out is None else held_out.number
    if held_out is None:
        needed = max(needed, FEWEST_FOLDS)
    if number >= needed:
        return
    sure = "" if confidence is None else f" with a confidence of {confidence:g}"
    there, advice = f"there are {total} normal training images or patients", ""
    if held_out is not None:
        there = f"{number} of {total} normal {held_out.noun} are held out"
        ratio = math.ceil(100 * needed / max(1, total)) / 100
        if ratio <= _MOST:
            advice = f"raise ratio to {ratio:g} or more, "
        elif confidence is None and total >= needed:
            advice = "set folds to 10 to score all of them by several fits, "
    raise InputError(
        f"NormalsThreshold: {there}, but a specificity of {specificity:g}{sure} needs {needed}: {advice}add normal "
        f"images, or lower the specificity{'' if confidence is None else ' or the confidence'}"
    )


def check_folds(trainer: Trainer) -> None:
    """Raise :class:`InputError` where copies of a model cannot be fitted."""
    if trainer.world_size > 1 or is_never_fitted(trainer.lightning_module):
        raise InputError(
            "NormalsThreshold: folds needs a model that is fitted, and one device: set folds to null, or "
            "trainer.devices to 1"
        )


def is_never_fitted(pl_module: LightningModule) -> bool:
    """Whether anomalib only validates such a model."""
    kinds = {LearningType.ZERO_SHOT, LearningType.FEW_SHOT}
    return isinstance(pl_module, AnomalibModule) and pl_module.learning_type in kinds


def check_post_processor(pl_module: LightningModule) -> None:
    """Raise :class:`InputError` where the post-processor would not use the thresholds as they are."""
    post = getattr(pl_module, "post_processor", None)
    if not isinstance(post, PostProcessor) or isinstance(post, MEBinPostProcessor):
        raise InputError(
            f"NormalsThreshold sets the thresholds of anomalib's PostProcessor, but the model has "
            f"{type(post).__name__}, which has no such thresholds: leave post_processor at its default"
        )
    wanted = {"image_sensitivity": 0.5, "pixel_sensitivity": 0.5}
    wanted |= {"enable_normalization": True, "enable_thresholding": True}  # without the first, 0.5 is the threshold
    for name, value in wanted.items():
        if getattr(post, name) != value:
            raise InputError(
                f"NormalsThreshold: the post-processor's {name} is {getattr(post, name)}, which would move or ignore "
                f"the threshold: set it to {value}"
            )


def do_without_validation(trainer: Trainer, pl_module: LightningModule) -> None:
    """Let a trainer fit although there is no validation set, which anomalib asks for."""
    if is_never_fitted(pl_module):
        raise InputError(
            f"NormalsThreshold: {type(pl_module).__name__} is never fitted, only validated, but there are no "
            "validation images: give the datamodule some by its val_split_mode, for example from_train"
        )
    callbacks = cast("Any", trainer).callbacks
    if any(isinstance(callback, ModelCheckpoint) and callback.save_weights_only for callback in callbacks):
        raise InputError(
            "NormalsThreshold: a ModelCheckpoint with save_weights_only saves its file before there are thresholds, "
            "because there is no validation set: set save_weights_only to false, or give the datamodule one by its "
            "val_split_mode"
        )
    trainer.limit_val_batches = 0
    logger.info("NormalsThreshold: there are no validation images, so nothing is validated.")
