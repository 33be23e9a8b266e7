"""What a pre-training begins with: an encoder for the layers, normalisation and size at hand, checked at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torchvision.transforms.v2 import Compose

from anomalib_msacl import distributed
from anomalib_msacl.backbone import Backbone, Encoder, Provenance
from anomalib_msacl.backbone.encoder import evaluating
from anomalib_msacl.compat import allow_unused_parameters
from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions import MINIMUM_SIDE
from anomalib_msacl.pretraining.synthesis import Synthesis, SyntheticBatch
from anomalib_msacl.pretraining.torch_model import MsaclTerms, TermValues
from anomalib_msacl.recipe import Recipe

logger = logging.getLogger(__name__)


def encoder_for(
    backbone: Backbone,
    recipe: Recipe,
    layers: Sequence[str | int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: Sequence[int] | None = None,
) -> tuple[Encoder, Provenance]:
    """Return an encoder and the record of its weights, for the use that is made of them.

    Args:
        backbone: With its initial weights.
        recipe: Says what is frozen.
        layers: Layers of the dense features; chosen by stride if None.
        mean: Normalisation, one value a channel; that of the weights if None.
        std: Normalisation, one value a channel; that of the weights if None.
        size: Height and width of the images in pixels; None if unknown.

    Returns:
        The encoder, and the record with this normalisation and size.

    Raises:
        InputError: If a layer does not exist, or nothing can be normalised so.
    """
    model, provenance = backbone
    mean, std = (saved if own is None else own for own, saved in ((mean, provenance.mean), (std, provenance.std)))
    encoder = Encoder(model, layers, mean, std)
    encoder.freeze(recipe.freeze.stride, recipe.freeze.batch_norm)
    mean, std = encoder.normalisation
    unknown = set(provenance.layers) - {stage["module"] for stage in encoder.stages}
    if unknown:
        raise InputError(
            f"the weights {provenance.description} say that they were made for the layer {min(unknown)!r}, which "
            f"{provenance.architecture} does not have; mend their entry msacl, or remove it."
        )
    mismatch = provenance.mismatch(encoder.layers, mean, std, size)
    if mismatch and not provenance.is_random:
        logger.warning("MSACL: %s", mismatch)
    return encoder, replace(provenance, mean=mean, std=std, input_size=tuple(size or ()))


def check_trainable(encoder: Encoder, recipe: Recipe, architecture: str, size: Sequence[int] | None) -> None:
    """Send one image through all that will be trained: what cannot work shall fail now.

    Args:
        encoder: Backbone and layers.
        recipe: Which terms and lesions there are.
        architecture: Name of the backbone, for the messages.
        size: Height and width of the images in pixels; nothing is checked if None.

    Raises:
        InputError: If the backbone takes no images of this size, or nothing would be trained.
    """
    Synthesis(recipe)  # refuses families and views that cannot be
    if not size:
        return
    if min(size) < MINIMUM_SIDE:
        raise InputError(
            f"MSACL: images of {size[0]} x {size[1]} pixels are smaller than a lesion; set an image_size of at least "
            f"{MINIMUM_SIDE}."
        )
    if not recipe.max_steps:
        return
    with torch.enable_grad(), evaluating(encoder), torch.random.fork_rng(devices=[]):
        try:  # whether a gradient would reach a weight is the question
            found, pooled = _one_step(encoder, recipe, size)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"the backbone {architecture!r} cannot take images of {size[0]} x {size[1]} pixels "
                f"({str(error).splitlines()[0]}); set the size that it was built for, or name another backbone."
            ) from error
    dense = recipe.loss.dense > 0 and any(layer.requires_grad for layer in found.maps)
    if not dense and not (pooled and found.values.keys() - {"dense"}):
        raise _nothing_trained(encoder, recipe)


def check_thawed(encoder: Encoder, recipe: Recipe) -> None:
    """Refuse steps that could change no weight of the backbone, whatever the images are.

    Raises:
        InputError: If the recipe freezes all of it and does not stop before the first step.
    """
    steps = recipe.max_steps and not recipe.whitening.alone
    if steps and not any(parameter.requires_grad for parameter in encoder.backbone.parameters()):
        raise _nothing_trained(encoder, recipe)


def _nothing_trained(encoder: Encoder, recipe: Recipe) -> InputError:
    """Return what says that no weight would change."""
    return InputError(
        f"nothing would be trained: with freeze.stride {recipe.freeze.stride} and layers "
        f"{', '.join(encoder.layers)} no term of the recipe reaches a weight; lower freeze.stride, name deeper "
        "layers or switch a term on."
    )


def _one_step(encoder: Encoder, recipe: Recipe, size: Sequence[int]) -> tuple[TermValues, bool]:
    """Return the terms of a black image, and whether pooled features depend on a weight that is trained."""
    image = torch.zeros(1, 3, *size)
    classes = torch.zeros(1, dtype=torch.long)
    batch = SyntheticBatch(image, image[:, :1], classes, classes)
    found = MsaclTerms(encoder, recipe)(encoder, batch)
    features = encoder(image)[1] if recipe.loss.uses_pooled_features or recipe.loss.position else None
    return found, features is not None and features.requires_grad


def check_devices(trainer: Trainer, recipe: Recipe) -> None:
    """Refuse trainers on several devices that cannot be right.

    Raises:
        InputError: If they do not run by DDP, are not there yet, or the recipe does not allow several.
    """
    if trainer.world_size == 1:
        return
    if not isinstance(trainer.strategy, DDPStrategy):
        raise InputError(
            f"MSACL pre-training on several devices runs by trainer.strategy ddp, not by "
            f"{type(trainer.strategy).__name__}; set it, or trainer.devices to 1."
        )
    if distributed.world_size() != trainer.world_size:
        raise InputError(
            f"the trainer has {trainer.world_size} devices, but {distributed.world_size()} processes of a group call "
            "pretrain; use anomalib train, or open the group first (docs/devices.md)."
        )
    if not recipe.freeze.batch_norm:
        raise InputError(
            "recipe.freeze.batch_norm is false, but on several devices the statistics of BatchNorm would be those of a "
            "part of the batch; set it to true, or trainer.devices to 1."
        )


def check_trainer(trainer: Trainer, recipe: Recipe) -> None:
    """Refuse trainers that the pre-training cannot run on, and prepare one of several devices.

    Raises:
        InputError: If :func:`check_devices` or :func:`check_precision` refuses it.
    """
    check_devices(trainer, recipe)
    if isinstance(trainer.strategy, DDPStrategy):
        allow_unused_parameters(trainer.strategy)  # those behind the layers, and terms that not every batch has
    check_precision(trainer, "MSACL pre-training")


def check_precision(trainer: Trainer, what: str) -> None:
    """Refuse trainers that give the weights another precision than the images, which have 32 bits.

    Args:
        trainer: The trainer.
        what: Cannot run so, for the message.

    Raises:
        InputError: If its weights have 16 or 64 bits.
    """
    precision = str(trainer.precision)
    if precision.endswith("-true") and precision != "32-true":
        raise InputError(f"{what} cannot run in {precision}; set trainer.precision to 32-true, bf16-mixed or 16-mixed.")


def transform_parts(transform: Any) -> list[Any]:
    """Return the steps of a transform, however deep they are nested in ``Compose``."""
    if isinstance(transform, Compose):
        return [part for step in transform.transforms for part in transform_parts(step)]
    return [] if transform is None else [transform]


def apply_transform(pre_processor: Any, images: Tensor) -> Tensor:
    """Return images as a pre-processor of anomalib brings them to the model, shape ``(B, 3, H, W)``."""
    transform = getattr(pre_processor, "transform", None)
    return images if transform is None else transform(images)
