"""The training of the terms in Lightning: batches to losses, optimiser and schedule, a look at the candidates."""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from anomalib_msacl import distributed
from anomalib_msacl.backbone import Encoder
from anomalib_msacl.pretraining.checkpoints import STATE, Checkpoints
from anomalib_msacl.pretraining.exchange import exchange_of
from anomalib_msacl.pretraining.images import NormalImages, check_range
from anomalib_msacl.pretraining.loading import set_random_state
from anomalib_msacl.pretraining.loggers import show_lesions
from anomalib_msacl.pretraining.questions import Score
from anomalib_msacl.pretraining.synthesis import Synthesis
from anomalib_msacl.pretraining.torch_model import MsaclTerms, class_separation
from anomalib_msacl.pretraining.trainings import bounds, number_of_trainings
from anomalib_msacl.recipe import OptimizerRecipe, Recipe

_WARMUP = 100  # steps, where nobody knows how many there will be


class Run(Protocol):
    """What is asked before and after every step, with the steps made and the steps to make."""

    def begin_training(self, step: int, total: float) -> bool:
        """Set weights back where the next of several trainings begins; return whether that is so."""

    def consider(self, step: int, total: float) -> Score | None:
        """Compare a candidate, if one is due."""


class Trainable(Protocol):
    """What a training step needs of a Lightning module."""

    encoder: Encoder
    terms: MsaclTerms
    synthesis: Synthesis
    recipe: Recipe
    trainer: Trainer
    run: Run


class Optimization:
    """The hooks of the optimiser, for Lightning modules with the attributes of :class:`Trainable`."""

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW or SGD with warm-up and cosine, per step."""
        return optimizer_of(cast("LightningModule", self))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the recipe's norm unless the trainer names one: ``l_ctr`` diverges without."""
        settings = cast("Trainable", self).recipe.optimizer
        clip_gradients(optimizer, settings, gradient_clip_val, gradient_clip_algorithm)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin the next of several trainings when the last one is over."""
        del batch, batch_idx
        trainable = cast("Trainable", self)
        trainer = trainable.trainer
        if trainable.run.begin_training(trainer.global_step, trainer.estimated_stepping_batches):
            for optimizer in trainer.optimizers:
                optimizer.state.clear()


class PretrainingModule(Optimization, LightningModule):
    """Trains an encoder and the heads of the terms; nothing else.

    Args:
        encoder: Backbone and layers.
        terms: Projection, heads and terms.
        synthesis: Makes the images of all classes.
        recipe: Optimiser, schedule and number of views.
        images: What the trainer's loader yields.
        run: Asked before and after every step.
        checkpoints: Keeps the run on disk; None does not.
    """

    def __init__(
        self,
        encoder: Encoder,
        terms: MsaclTerms,
        synthesis: Synthesis,
        recipe: Recipe,
        images: NormalImages,
        run: Run,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.terms, self.synthesis, self.recipe = encoder, terms, synthesis, recipe
        self.images, self.run, self.checkpoints = images, run, checkpoints
        self._seen = 0

    def on_train_start(self) -> None:
        """Take the random numbers up where a run that goes on had left them."""
        self._seen = self.global_step
        restore_random(self.trainer)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the weighted sum of the terms of a batch."""
        return training_loss(self, self.images.of_batch(batch), batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the candidate of a step, once."""
        del outputs, batch, batch_idx
        step = self.global_step
        if step == self._seen:  # gradients are accumulated: no new weights yet
            return
        self._seen, total = step, self.trainer.estimated_stepping_batches
        log_score(self, self.run.consider(step, total))
        if step >= total:
            self.trainer.should_stop = True  # else Lightning logs nothing of a last step between two intervals
        elif self.checkpoints is not None:
            self.checkpoints.after_step(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what Lightning does not know of."""
        if self.checkpoints is not None:
            checkpoint[STATE] = self.checkpoints.state()


def restore_random(trainer: Trainer) -> bool:
    """Restore the random numbers of a run that goes on; return whether it does."""
    after = getattr(trainer.train_dataloader, "after", None)
    if after is None:
        return False
    set_random_state(after)
    return True


def training_loss(module: LightningModule, images: Tensor, batch_idx: int) -> Tensor:
    """Synthesise the classes of a batch, log the terms and return their weighted sum.

    Args:
        module: Has the attributes of :class:`Trainable`.
        images: Normal images in [0, 1], shape ``(B, 3, H, W)``.
        batch_idx: Index of the batch; the values of the first one are checked.
    """
    trainable = cast("Trainable", module)
    if batch_idx == 0 and module.global_step == 0:
        check_range(images)
    counts = len(images) > 0 and not getattr(trainable.trainer.train_dataloader, "filler", False)
    if distributed.world_size() > 1 and not len(images):
        images = images.new_zeros(1, *images.shape[1:])  # nothing of its own, but the others wait for it
    batch = trainable.synthesis(images, trainable.recipe.view.number)
    if batch_idx == 0 and module.global_step == 0:
        show_lesions(trainable.trainer.loggers, batch, 0)
    batches = max(1, trainable.trainer.accumulate_grad_batches)
    first = batch_idx % batches == 0
    exchange = exchange_of(batch, counts)
    found = trainable.terms(trainable.encoder, batch, position=first, exchange=exchange)
    of_step = int(min(batches, trainable.trainer.num_training_batches - batch_idx))  # an epoch may end before
    loss: Tensor = trainable.terms.total(found.values, of_step) if found.values else images.new_zeros(())
    module.log_dict({f"train_{name}": value.detach() for name, value in found.values.items()})
    module.log("train_loss", loss.detach(), prog_bar=True)
    module.log("learning_rate", trainable.trainer.optimizers[0].param_groups[0]["lr"])
    if found.z is not None:
        gap, spread = class_separation(found.z.detach(), found.classes)
        module.log_dict({"class_gap": gap, "class_spread": spread, "class_separation": gap / spread.clamp_min(1e-6)})
    return loss


def optimizer_of(module: LightningModule) -> OptimizerLRSchedulerConfig:
    """Return the optimiser of the recipe over encoder and heads, with warm-up and cosine per step."""
    trainable = cast("Trainable", module)
    settings = trainable.recipe.optimizer
    parameters = [*trainable.encoder.parameters(), *trainable.terms.parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if settings.name == "sgd":
        optimizer = torch.optim.SGD(trained, settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay)
    else:
        optimizer = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=settings.weight_decay)
    total, wanted = trainable.trainer.estimated_stepping_batches, trainable.recipe.trainings
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, total, wanted, settings.warmup))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _factor(step: int, total: float, wanted: int, warmup: float) -> float:
    """Return the factor of the learning rate at a step of a run that may be divided into several trainings."""
    first, end = bounds(step, total, number_of_trainings(wanted, total))
    length = end - first
    return warm_cosine(step - first, max(1, round(warmup * length)) if math.isfinite(length) else _WARMUP, length)


def clip_gradients(
    optimizer: torch.optim.Optimizer, settings: OptimizerRecipe, value: float | None, algorithm: str | None
) -> None:
    """Clip the gradients of each group of parameters.

    Args:
        optimizer: Its parameters are clipped.
        settings: Names the largest norm where ``value`` does not.
        value: Largest norm, or largest value; None takes that of the recipe.
        algorithm: ``"value"`` or ``"norm"``.
    """
    clip = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
    for group in optimizer.param_groups:
        clip(group["params"], settings.gradient_clip if value is None else value)


def log_score(module: LightningModule, score: Score | None) -> None:
    """Log the score of a candidate, if there is one."""
    if score is not None:
        module.log_dict({"held_out_image_auroc": score.image_auroc, "held_out_pixel_auroc": score.pixel_auroc})


def warm_cosine(step: int, warmup: int, total: float) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine to 0.

    Args:
        step: From 0.
        warmup: Steps of the warm-up.
        total: All steps; infinite if unknown, and then there is no cosine.

    Returns:
        Above 0 in the warm-up, in [0, 1] afterwards.
    """
    if step < warmup:
        return (step + 1) / warmup
    if not math.isfinite(total):
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def make_trainer(recipe: Recipe, **options: Any) -> Trainer:
    """Return a trainer for one pre-training.

    Args:
        recipe: Steps, and batches that make a step.
        **options: Arguments of Lightning's ``Trainer`` that differ.
    """
    defaults: dict[str, Any] = {
        "max_steps": recipe.max_steps,
        "max_epochs": -1,
        "accumulate_grad_batches": recipe.accumulate,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "devices": 1,
    }
    return Trainer(**{**defaults, **options})
