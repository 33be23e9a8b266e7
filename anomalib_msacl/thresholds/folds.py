"""Scores of training images, each by a fit that has not seen it: for when there are too few images to hold some out."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from typing import Any, cast

from anomalib.data import AnomalibDataModule
from lightning.pytorch import LightningModule, Trainer

from anomalib_msacl.compat import inner_trainer, isolated_random
from anomalib_msacl.data.held_out import Fold
from anomalib_msacl.data.scratch import ScratchFolder
from anomalib_msacl.errors import InputError, first_line
from anomalib_msacl.thresholds.scoring import held_out_scores

logger = logging.getLogger(__name__)


def scores_of_folds(
    trainer: Trainer, pl_module: LightningModule, datamodule: AnomalibDataModule, folds: list[Fold]
) -> dict[str, list[float]]:
    """Fit copies of a model, each without one fold, and let each score its fold.

    The model itself, its optimisers and the random numbers of its training stay as they are.

    Args:
        trainer: Of the fit that is about to begin; the copies are trained with its settings, without its callbacks.
        pl_module: The model as it is before its first step.
        datamodule: Its data.
        folds: What each copy is fitted on, and what it scores.

    Returns:
        Raw scores of all units, ascending, by ``image`` and ``pixel``; a kind that the model lacks is missing.

    Raises:
        InputError: If the model cannot be copied, or gives scores that are no numbers.
    """
    blank, aside = _copy(trainer, pl_module), ScratchFolder("folds")
    if hasattr(blank, "weights_dir"):  # Msacl saves its backbone there: not where that of the model itself belongs
        cast("Any", blank).weights_dir = aside.path / "weights"
    found: dict[str, list[float]] = defaultdict(list)
    for number, fold in enumerate(folds, start=1):
        logger.info(
            "NormalsThreshold: fit %d of %d is on %d images and scores %d.",
            *(number, len(folds), len(fold.train), len(fold.held_out.images)),
        )
        model = copy.deepcopy(blank)
        # Each fit begins with the random numbers that the fit of the model itself begins with.
        with inner_trainer(), isolated_random():
            inner = _trainer_like(trainer, pl_module)
            inner.fit(model, datamodule=_without(datamodule, fold))
        for kind, scores in held_out_scores(inner, model.to(pl_module.device), datamodule, fold.held_out).items():
            found[kind] += scores
    return {kind: sorted(scores) for kind, scores in found.items()}


def _without(datamodule: AnomalibDataModule, fold: Fold) -> AnomalibDataModule:
    """Return a copy of a datamodule that trains on the images outside of a fold."""
    part = copy.copy(datamodule)
    part.train_data = fold.train
    vars(part).pop("train_dataloader", None)  # Msacl replaces it: by one of all images
    return part


def _copy(trainer: Trainer, pl_module: LightningModule) -> LightningModule:
    """Return a copy of a model that belongs to no trainer."""
    cast("Any", pl_module).trainer = None
    try:
        return copy.deepcopy(pl_module)
    except Exception as error:  # what a model holds is its own affair
        raise InputError(
            f"NormalsThreshold: {type(pl_module).__name__} cannot be copied for the fits of folds "
            f"({first_line(error)}): set folds to null, and hold images out by ratio"
        ) from error
    finally:
        pl_module.trainer = trainer


def _trainer_like(trainer: Trainer, pl_module: LightningModule) -> Trainer:
    """Return a trainer with the settings of another, without loggers, checkpoints and bars."""
    device = pl_module.device
    return Trainer(
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1 if device.index is None else [device.index],
        precision=cast("Any", trainer.precision),
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=cast("Any", trainer.gradient_clip_algorithm),
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=trainer.limit_val_batches,
        default_root_dir=trainer.default_root_dir,  # what was found in the images lies there
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
