"""The fit of the detector of ``Msacl`` on the features that are kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import Trainer
from torch import Tensor

from anomalib_msacl import distributed
from anomalib_msacl.backbone.tensors import StateDict, copy_of
from anomalib_msacl.compat import undecided
from anomalib_msacl.detectors.msacl.torch_model import MsaclModel
from anomalib_msacl.pretraining.images import NormalImages
from anomalib_msacl.pretraining.loggers import tell_choice
from anomalib_msacl.pretraining.pretrained import Pretrained
from anomalib_msacl.pretraining.synthesis import Synthesis
from anomalib_msacl.recipe import Recipe

if TYPE_CHECKING:
    from anomalib_msacl.detectors.msacl.lightning_model import Msacl

logger = logging.getLogger(__name__)

_BANK_IMAGES = 400


def fit_detector(
    model: MsaclModel, normal: NormalImages, others: NormalImages | None, synthesis: Synthesis, recipe: Recipe
) -> None:
    """Train the lesion head and fill the memories; of several processes the first does it for all.

    Args:
        model: Its encoder stays as it is.
        normal: Training images.
        others: Held-out normal images.
        synthesis: Makes the lesions.
        recipe: Numbers of images, and the seed.
    """
    learns = (model.lesion_head, model.memory_bank, model.whole_images)

    def fit() -> list[StateDict]:
        images = cast("Tensor", normal.collect(_BANK_IMAGES))
        model.lesion_head.fit(model.encoder, images, synthesis, recipe.batch_size)
        held_out = others.collect(recipe.choice.images) if others else None
        model.fit_memory_bank(*with_held_out(images, held_out), recipe.seed)
        return [copy_of(part) for part in learns]

    learnt = distributed.on_main(fit)
    if not distributed.is_main():
        for part, state in zip(learns, learnt, strict=True):
            part.load_state_dict(state)


def save_chosen(trainer: Trainer, found: Pretrained, target: Path) -> None:
    """Tell the loggers of the choice, and save the backbone; of several processes the first does it.

    Args:
        trainer: Has made the steps.
        found: What came of them.
        target: The folder that the weights go to.
    """
    data = getattr(trainer, "datamodule", None)
    images = getattr(data, "train_data", None)
    number = None if images is None else len(images)
    tell_choice(trainer.loggers, found.candidates, found.kept, found.verdict, found.steps)
    distributed.on_main(lambda: str(found.save(target, getattr(data, "name", "unknown"), number)))


def with_held_out(images: Tensor, held_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return normal images for a memory bank, and others that set the units of its distances.

    Args:
        images: Normal training images, shape ``(N, 3, H, W)``.
        held_out: Other normal images; a fifth of the training images takes their place where there are fewer than two.
    """
    if held_out is not None and len(held_out) > 1:
        return images, held_out
    number = min(max(4, len(images) // 5), len(images) // 2)
    return (images[number:], images[:number]) if number else (images, images)


def warn_of_no_threshold(module: Msacl) -> None:
    """Tell where a training was stopped after its last validation, which would have set the thresholds.

    Args:
        module: At the end of its training.
    """
    batches = module.trainer.num_val_batches
    if module.detector and undecided(module) and sum(batches if isinstance(batches, list) else [batches]):
        logger.warning(
            "Msacl: the training was stopped after its last validation, so that the scores have no threshold; end it "
            "by max_steps or max_time, or set thresholds by NormalsThreshold."
        )
