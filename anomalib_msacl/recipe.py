"""Everything that decides how a backbone is pre-trained, in one place.

The same recipe serves the Lightning module, the callback, the content key of saved weights and their model card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from anomalib_msacl.errors import InputError

TERMS = ("centring", "contrastive", "augmentation", "position", "dense")
_TINY = 1e-9
_RANGES = {
    (*TERMS, "weight_decay", "max_steps", "evaluations", "frozen_stride", "whitening"): (0, math.inf),
    ("batch_size", "classes"): (2, math.inf),
    ("accumulate", "centre_images", "projection", "views", "evaluation_images", "alpha"): (1, math.inf),
    ("temperature", "learning_rate", "gradient_clip"): (_TINY, math.inf),
    ("warmup",): (0, 1),
    ("held_out",): (_TINY, 0.5),
    ("average",): (_TINY, 1),
    ("deviation",): (_TINY, math.inf),
}


@dataclass(frozen=True)
class Recipe:
    """Settings of MSACL pre-training.

    A weight of 0 switches a term off and saves its cost.

    Attributes:
        classes: ``|A|``, the normal class and the numbers of lesions 1, 2, ...; 4 in the paper.
        centring: Weight of ``l_ctr``.
        contrastive: Weight of ``l_MSACL``.
        augmentation: Weight of ``l_aug``.
        position: Weight of ``l_pos``.
        dense: Weight of the dense term, an extension of the paper.
        temperature: ``tau`` of ``l_MSACL``.
        alpha: By how much pairs of one class are pushed apart less; not published.
        positives: ``class`` or ``image``: what counts as a positive in ``l_MSACL``.
        rescale_centring: Divide ``l_ctr`` by the mean squared norm of the centres; without it the paper's learning
            rate diverges.
        centre_images: Training images that the fixed centres are computed from, at most.
        projection: Dimension of ``f_theta``.
        max_steps: Optimiser steps, unless the trainer of :class:`Msacl` names its own. With the callback 0 hands the
            initial weights over as they are, but for the scale of whitened maps (``deviation``).
        batch_size: Images of a batch, each seen once per class and view. The callback's; :class:`Msacl` takes the
            datamodule's ``train_batch_size``.
        accumulate: Batches whose gradients make one step: less noise for the same memory. anomalib's engine takes it
            from here.
        views: Weak views of each image in a step.
        optimizer: ``adamw``, or ``sgd`` with momentum .9 as in the paper.
        learning_rate: Peak, after the warm-up; falls by a cosine to 0.
        warmup: Part of the steps with a rising learning rate.
        weight_decay: Weight decay.
        gradient_clip: Largest norm of the gradient, unless the trainer sets its own.
        frozen_stride: Stages of a convolutional backbone up to this output stride are not trained; 0 trains all.
        train_batch_norm: Update BatchNorm statistics, which would then describe images with lesions too.
        evaluations: How often a candidate is compared on held-out normal images; 0 keeps the last step.
        held_out: Part of the training images that the callback holds out for that, in (0, .5], but no more than
            ``evaluation_images``; :class:`Msacl` takes the normal images of the datamodule's validation set.
        evaluation_images: Held-out images used, at most; each is seen once as it is and twice with lesions.
        seed: Seed of the pre-training.
        whitening: Whiten the feature maps on normal images before the first step, to channels of this root mean square
            deviation, down to the deepest layer, where the architecture allows it (:mod:`anomalib_msacl.whitening`):
            EfficientNet and MobileNet; the channels of a ResNet are brought near that deviation one by one. 0
            leaves them.
        deviation: Root mean square deviation of a whitened channel in the weights that are saved. None: that of
            ``whitening``, which suits the ridge of .01 in anomalib's PaDiM, and 1 where the callback serves a model
            that learns a network on the features. Weights of an earlier pre-training tell their deviation and
            are brought to this one too.
        average: Share of the trained weights in the result, the rest being those before the first step, in (0, 1].
        realign: Give the stages behind the deepest layer their weights of before the first step, and let them read the
            layer through the affine map that comes closest, on normal images, to what they read then, where the
            architecture allows it (:func:`anomalib_msacl.whitening.realign`). For detectors that pool deep features.
            Without the dense term, which is what changes the layer, nothing is done. Set it to False for random
            initial weights.
        families: Families of lesions to train with, ``medmix`` and those of :mod:`anomalib_msacl.lesions`. The others
            are for choosing the weights.
        medmix: Arguments of :class:`anomalib_msacl.MedMix` that differ from its defaults.
        view: Arguments of :class:`anomalib_msacl.views.WeakView` that differ from its defaults.

    Raises:
        InputError: If a value is out of range.
    """

    classes: int = 4
    centring: float = 0.1
    contrastive: float = 0.1
    augmentation: float = 0.1
    position: float = 0.1
    dense: float = 1.0
    temperature: float = 0.2
    alpha: float = 2.0
    positives: Literal["class", "image"] = "class"
    rescale_centring: bool = True
    centre_images: int = 128
    projection: int = 128
    max_steps: int = 40
    batch_size: int = 8
    accumulate: int = 3
    views: int = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0
    frozen_stride: int = 4
    train_batch_norm: bool = False
    evaluations: int = 4
    held_out: float = 0.2
    evaluation_images: int = 64
    seed: int = 0
    whitening: float = 0.1
    deviation: float | None = None
    average: float = 0.5
    realign: bool = True
    families: list[str] = field(default_factory=lambda: ["medmix", "haze", "texture", "streak"])
    medmix: dict[str, Any] = field(default_factory=dict)
    view: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for names, (lowest, highest) in _RANGES.items():
            for name in names:
                value = getattr(self, name)
                if value is None and name == "deviation":
                    continue
                if value is None or not lowest <= value <= highest:
                    raise InputError(
                        f"recipe.{name} is {value}, but must be {lowest:g} at least and {highest:g} at most."
                    )

        for name, known in (("positives", ("class", "image")), ("optimizer", ("adamw", "sgd"))):
            if getattr(self, name) not in known:
                raise InputError(f"recipe.{name} is {getattr(self, name)!r}, but must be {' or '.join(known)}.")

    @classmethod
    def of(cls, values: Recipe | Mapping[str, Any] | None) -> Recipe:
        """Return a recipe from a recipe, from plain data (as a checkpoint holds it) or from nothing.

        Raises:
            InputError: If a name is unknown.
        """
        if isinstance(values, Recipe):
            return values
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values or {}) - known)
        if unknown:
            raise InputError(f"recipe: unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}.")
        return cls(**dict(values or {}))

    def plain(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        return asdict(self)

    @property
    def uses_image_terms(self) -> bool:
        """Whether any term needs the pooled features of whole images; relative positions take those of patches."""
        return max(self.centring, self.contrastive, self.augmentation) > 0
