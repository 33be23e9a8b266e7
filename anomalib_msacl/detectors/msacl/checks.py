"""What ``Msacl`` refuses, or tells, before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from lightning.pytorch import Trainer
from torch import nn
from torchvision.transforms.v2 import Normalize

from anomalib_msacl import distributed
from anomalib_msacl.backbone.folder import check_place
from anomalib_msacl.data.checks import check_datamodule, check_validation, warn_of_shared_images
from anomalib_msacl.data.looks import seen_by_runs
from anomalib_msacl.errors import InputError
from anomalib_msacl.pretraining.messages import each_message_once
from anomalib_msacl.pretraining.preparation import check_trainer, transform_parts
from anomalib_msacl.recipe import Recipe

logger = logging.getLogger(__name__)


def refuse_normalize(pre_processor: Any) -> None:
    """Refuse a pre-processor that normalises.

    Raises:
        InputError: If it has a Normalize.
    """
    if any(isinstance(part, Normalize) for part in transform_parts(getattr(pre_processor, "transform", None))):
        raise InputError(
            "Msacl: the pre_processor normalises, but lesions are made on [0, 1] and the model normalises itself; "
            "leave Normalize out."
        )


def check_detector(state: Mapping[str, Any]) -> None:
    """Refuse the detector of a version before 0.3.0, whose image score had two parts in place of four.

    Raises:
        InputError: If it is one.
    """
    if "model.memory_bank.bank" in state and "model.whole_images.pooled" not in state:
        raise InputError(
            "this checkpoint of Msacl was made by version 0.2.0 or older, whose image score had fewer parts; train "
            "Msacl again."
        )


def check_fit(trainer: Trainer, recipe: Recipe, target: Path, backbone: nn.Module) -> None:
    """Look at the trainer, at the folder for the weights and at every image before any long work.

    Args:
        trainer: Will fit the model.
        recipe: How to pre-train.
        target: Where the weights will be saved.
        backbone: Whose weights they are.

    Raises:
        InputError: If one of them cannot serve.
    """
    each_message_once()
    check_trainer(trainer, recipe)
    if recipe.max_steps == 0 and trainer.max_steps < 1:
        raise InputError("recipe.max_steps is 0, so Msacl has nothing to train; set it above 0.")
    if recipe.whitening.alone:
        raise InputError("recipe.whitening.alone leaves Msacl nothing to train; use the callback MsaclPretraining.")
    distributed.on_main(check_place, target, backbone)
    datamodule = getattr(trainer, "datamodule", None)
    if isinstance(datamodule, AnomalibDataModule):
        seen = seen_by_runs(trainer.default_root_dir)
        distributed.on_main(partial(check_datamodule, datamodule, seen=seen))
        check_validation(datamodule, trainer)
        warn_of_shared_images(datamodule, "Msacl", "the normal ones choose the weights and the units of the scores")


def warn_of_few_epochs(trainer: Trainer, recipe: Recipe) -> None:
    """Tell where the epochs end before the steps of the recipe: 1,000 is Lightning's default.

    Args:
        trainer: Knows how many batches an epoch has.
        recipe: How to pre-train.
    """
    steps = trainer.estimated_stepping_batches
    if steps < trainer.max_steps == recipe.max_steps:
        logger.warning(
            "Msacl: the training ends after %d of the recipe's %d steps, because trainer.max_epochs is %s; set it to "
            "-1 to make all of them.",
            *(steps, recipe.max_steps, trainer.max_epochs),
        )
