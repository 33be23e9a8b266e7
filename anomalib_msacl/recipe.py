"""Everything that decides how a backbone is pre-trained, in one place: nested, typed settings.

The same recipe serves the pipeline, the callback, the key of saved weights and their model card.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions import FAMILIES, Lesion, LesionMixture

TERMS = ("centring", "contrastive", "augmentation", "position", "dense")
Positives = Literal["class", "image"]
OptimizerName = Literal["adamw", "sgd"]

_TINY = 1e-9
_LARGEST = 1e9
_LARGEST_SEED = 2**63 - 1
Settings = TypeVar("Settings")


def _within(lowest: float, highest: float, default: Any) -> Any:
    """Declare a field with its range."""
    return field(default=default, metadata={"range": (lowest, highest)})


def _not_negative(default: Any) -> Any:
    """Declare a field of at least 0."""
    return _within(0, _LARGEST, default)


def _positive(default: Any) -> Any:
    """Declare a field above 0."""
    return _within(_TINY, _LARGEST, default)


def _at_least_one(default: Any) -> Any:
    """Declare a field of at least 1."""
    return _within(1, _LARGEST, default)


@dataclass(frozen=True)
class LossRecipe:
    """The terms: weights of ``l = l_ctr + l_MSACL + l_aug + l_pos`` and of the dense term, and their constants.

    A weight of 0 switches a term off and saves its cost.

    Attributes:
        centring: Weight of ``l_ctr``.
        contrastive: Weight of ``l_MSACL``.
        augmentation: Weight of ``l_aug``.
        position: Weight of ``l_pos``.
        dense: Weight of the dense term, an extension of the paper.
        temperature: ``tau`` of ``l_MSACL``.
        alpha: By how much pairs of one class are pushed apart less, at least 1; not known to us.
        positives: What counts as a positive in ``l_MSACL``: any sample of the ``class``, or another draw from the same
            ``image``, of which there must be several: ``view.number`` is 2 at least then.
        position_images: Normal images whose patches ``l_pos`` tells apart in a step, at most; they are those of the
            first of its batches.
        projection: Dimension of ``f_theta``, at most 65536.
        rescale_centring: Divide ``l_ctr`` by the mean squared norm of the centres; without it the paper's learning
            rate diverges.
        centre_images: Training images that the fixed centres are computed from, at most.
        dense_margin: Margin of the dense term, in units of the mean distance of normal patches.
        dense_temperature: Softness of that margin, in the same unit.
        dense_queries: Patches with lesions, and as many without, that the dense term compares in a batch, at most.
        dense_bank: Normal patches of a batch that they are compared with, at most.
    """

    centring: float = _not_negative(0.1)
    contrastive: float = _not_negative(0.1)
    augmentation: float = _not_negative(0.1)
    position: float = _not_negative(0.1)
    dense: float = _not_negative(1.0)
    temperature: float = _positive(0.2)
    alpha: float = _at_least_one(2.0)
    positives: Positives = "class"
    position_images: int = _at_least_one(4)
    projection: int = _within(1, 65536, 128)
    rescale_centring: bool = True
    centre_images: int = _at_least_one(64)
    dense_margin: float = _not_negative(0.5)
    dense_temperature: float = _positive(0.25)
    dense_queries: int = _at_least_one(256)
    dense_bank: int = _at_least_one(1024)

    @property
    def uses_pooled_features(self) -> bool:
        """Whether a term needs the pooled features of whole images; relative positions take those of patches."""
        return max(self.centring, self.contrastive, self.augmentation) > 0


@dataclass(frozen=True)
class OptimizerRecipe:
    """The optimiser and its schedule.

    Attributes:
        name: ``adamw``, or ``sgd`` with momentum .9 as in the paper.
        learning_rate: Peak, after the warm-up; falls by a cosine to 0.
        warmup: Part of the steps with a rising learning rate, from 0 to 1.
        weight_decay: Weight decay.
        gradient_clip: Largest norm of the gradient, unless the trainer sets its own.
    """

    name: OptimizerName = "adamw"
    learning_rate: float = _positive(1e-4)
    warmup: float = _within(0, 1, 0.1)
    weight_decay: float = _not_negative(1e-4)
    gradient_clip: float = _positive(1.0)


@dataclass(frozen=True)
class FreezeRecipe:
    """What is not trained.

    Attributes:
        stride: Stages of a convolutional backbone up to this output stride; 0 trains all.
        batch_norm: Keep the statistics of BatchNorm; otherwise they come to describe images with lesions too.
    """

    stride: int = _not_negative(4)
    batch_norm: bool = True


@dataclass(frozen=True)
class WhiteningRecipe:
    """Whitening of the feature maps on normal images, before the first step.

    It reaches down to the deepest layer, where the architecture allows it (:mod:`anomalib_msacl.backbone.whitening`):
    EfficientNet and MobileNet; the channels of a ResNet are brought to equal ranges one by one, and the maps of a
    vision transformer get one factor, after the training.

    Attributes:
        std: Root mean square standard deviation of a channel afterwards; 0 leaves the feature maps as they are.
        saved_std: The same in the weights that are saved. Leave it at None: that of ``std`` for memory banks and PaDiM,
            whose ridge of .01 it suits, and 1 where the callback serves a model that trains a network on the features.
            Weights of an earlier pre-training tell theirs and are brought to this one too.
        images: Normal images that the moments are taken from, at most.
        alone: Stop after whitening: no step is made.
    """

    std: float = _not_negative(0.1)
    saved_std: float | None = _positive(None)
    images: int = _at_least_one(200)
    alone: bool = False


@dataclass(frozen=True)
class LesionRecipe:
    """The synthetic lesions.

    Attributes:
        families: Families of lesions to train with: names of :data:`anomalib_msacl.lesions.FAMILIES`, or configured
            ones, e.g. ``class_path: anomalib_msacl.lesions.Haze`` with ``init_args``. The other families are for
            choosing the weights.
        keep_on_foreground: Place lesions on tissue or object.
        foreground_threshold: Intensity above which a pixel is tissue, in [0, 1].
        visible: Change of intensity that is visible, in [0, 1]; a lesion that changes less is drawn again.
    """

    families: list[str | Lesion] = field(  # type: ignore[type-arg]  # jsonargparse reads it
        default_factory=lambda: ["medmix", "haze", "texture", "streak"]
    )
    keep_on_foreground: bool = True
    foreground_threshold: float = _within(0, 1, 0.08)
    visible: float = _within(0, 1, 0.02)

    def mixture(self, families: Sequence[str | Lesion[Any]] | None = None) -> LesionMixture:
        """Return what draws the lesions.

        Args:
            families: In place of those of the recipe.

        Raises:
            InputError: If a family does not exist.
        """
        return LesionMixture(
            families or self.families,
            keep_on_foreground=self.keep_on_foreground,
            foreground_threshold=self.foreground_threshold,
            visible=self.visible,
        )

    def others(self) -> list[str]:
        """Return the names of the families that are not trained with; all of them where none is left."""
        own = {each if isinstance(each, str) else each.name for each in self.families}
        return [name for name in FAMILIES if name not in own] or list(FAMILIES)


@dataclass(frozen=True)
class ViewRecipe:
    """The weak view ``A_0``; see :class:`anomalib_msacl.pretraining.views.WeakView`.

    The paper's setting is ``scale=(.2, 1), brightness=contrast=saturation=.4, hue=.1, jitter=.8, grey=.2``.

    Attributes:
        number: Weak views of each image in a step.
        scale: Area of the random resized crop, relative to the image.
        ratio: Aspect ratio of the crop, relative to that of the image.
        brightness: Largest relative change.
        contrast: Largest relative change.
        saturation: Largest relative change.
        hue: Largest turn, as a fraction of a full turn, at most .5.
        jitter: Probability of the colour jitter; with 0 its four strengths above have no effect.
        grey: Probability of a grey image.
        blur: Probability of a Gaussian blur.
        flip: Probability of a horizontal flip.
    """

    number: int = _at_least_one(1)
    scale: tuple[float, float] = (0.6, 1.0)
    ratio: tuple[float, float] = (0.8, 1.25)
    brightness: float = _not_negative(0.2)
    contrast: float = _not_negative(0.2)
    saturation: float = _not_negative(0.2)
    hue: float = _within(0, 0.5, 0.02)
    jitter: float = _within(0, 1, 0.0)
    grey: float = _within(0, 1, 0.0)
    blur: float = _within(0, 1, 0.1)
    flip: float = _within(0, 1, 0.5)

    def __post_init__(self) -> None:
        """Check the two ranges."""
        for name, limits, highest in (("scale", self.scale, 1.0), ("ratio", self.ratio, _LARGEST)):
            numbers = isinstance(limits, list | tuple) and all(isinstance(limit, int | float) for limit in limits)
            if not numbers or len(limits) != 2 or not 0 < limits[0] <= limits[1] <= highest:
                raise InputError(
                    f"recipe.view.{name} is {limits!r}, but must be (low, high) with 0 < low <= high <= {highest:g}."
                )


@dataclass(frozen=True)
class ChoiceRecipe:
    """The choice of the weights on held-out normal images with lesions.

    Attributes:
        evaluations: How often a candidate is compared; 0 keeps the last step unseen.
        held_out: Part of the training images that the callback holds out, in (0, .5], but no more than ``images``;
            :class:`anomalib_msacl.Msacl` takes the normal images of the datamodule's validation set.
        images: Held-out images used, at most; each is seen once as it is and twice with lesions.
    """

    evaluations: int = _not_negative(2)
    held_out: float = _within(_TINY, 0.5, 0.2)
    images: int = _at_least_one(64)


@dataclass(frozen=True)
class Recipe:
    """Settings of MSACL pre-training.

    Attributes:
        classes: Classes of the contrast: the normal one, and those with 1, 2, ... lesions; 4 in the paper, as ``A_0``
            to ``A_3``.
        max_steps: Optimiser steps of all trainings, unless the trainer of :class:`anomalib_msacl.Msacl` names its own.
            With the callback 0 hands the initial weights over as they are, but for the scale of whitened maps.
        trainings: Trainings that the steps are divided into. Each begins with the weights of before the first step,
            and the mean of what they end with is taken. Pooled features can gain by it (docs/experiments.md). Fewer
            are made where each would have fewer than 30 steps.
        batch_size: Images of a batch, each seen once per class and view. The callback's;
            :class:`anomalib_msacl.Msacl` takes the datamodule's ``train_batch_size``.
        accumulate: Batches whose gradients make one step, fewer at the end of an epoch: less noise for the same memory.
        average: Share of the trained weights in the result, the rest being those before the first step, in (0, 1]. None
            is a half, and a quarter for a vision transformer, where PatchCore loses by a half (docs/experiments.md).
        realign: Give the stages behind the deepest layer their weights of before the first step, and let them read the
            layer through the affine map that comes closest to what they read then, where the architecture allows it
            (:func:`anomalib_msacl.backbone.realignment.realign`). For detectors that pool deep features. Set it to
            False for random initial weights.
        seed: Seed of the pre-training.
        loss: The terms.
        optimizer: The optimiser and its schedule.
        freeze: What is not trained.
        whitening: Whitening of the feature maps.
        lesions: The synthetic lesions.
        view: The weak view.
        choice: The choice of the weights.

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> Recipe(max_steps=20, loss=LossRecipe(dense=0.5)).loss.dense
        0.5
    """

    classes: int = _within(2, 64, 4)
    max_steps: int = _not_negative(40)
    trainings: int = _at_least_one(1)
    batch_size: int = _within(2, _LARGEST, 8)
    accumulate: int = _at_least_one(3)
    average: float | None = _within(_TINY, 1, None)
    realign: bool = True
    seed: int = _within(0, _LARGEST_SEED, 0)
    loss: LossRecipe = LossRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    freeze: FreezeRecipe = FreezeRecipe()
    whitening: WhiteningRecipe = WhiteningRecipe()
    lesions: LesionRecipe = field(default_factory=LesionRecipe)
    view: ViewRecipe = ViewRecipe()
    choice: ChoiceRecipe = ChoiceRecipe()

    def __post_init__(self) -> None:
        """Check the ranges, and what does not go together."""
        _check(self, "recipe")
        if self.loss.positives == "image" and self.loss.contrastive > 0 and self.view.number == 1:
            raise InputError(
                "recipe.loss.positives is image, but recipe.view.number is 1, so that no image has another draw and "
                "l_MSACL would be 0; set view.number to 2, or positives to class."
            )

    @classmethod
    def of(cls, values: Recipe | Mapping[str, Any] | None) -> Recipe:
        """Return a recipe from a recipe, from plain data (as a checkpoint holds it) or from nothing.

        Raises:
            InputError: If it is nothing of these, or a name is unknown, or one of version 0.2.0.dev0, whose names were
                flat.
        """
        if not isinstance(values, Recipe | Mapping | None):
            raise InputError(f"recipe is {values!r}, but must be a Recipe, or a mapping such as {{'max_steps': 40}}.")
        return values if isinstance(values, Recipe) else _from_plain(cls, values or {}, "recipe")

    @property
    def reads_layers(self) -> bool:
        """Whether the weights depend on the layers that a detector reads: the image-level terms do not see them."""
        return self.loss.dense > 0 or self.choice.evaluations > 0 or self.whitening.std > 0 or self.realign

    def plain(self) -> dict[str, Any]:
        """Return the recipe as plain data; a configured family of lesions is a mapping with its ``name``."""
        families = [
            each if isinstance(each, str) else {"name": each.name, **asdict(each)} for each in self.lesions.families
        ]
        plain = asdict(self)
        plain["lesions"]["families"] = families
        return plain


def whitening_only(std: float = 0.1) -> Recipe:
    """Return the recipe that whitens the feature maps and trains nothing.

    Args:
        std: Standard deviation of a channel afterwards.
    """
    return Recipe(whitening=WhiteningRecipe(std=std, alone=True))


# Where a setting of version 0.2.0.dev0, whose recipe was flat, stands now.
RENAMED = {
    **{name: f"loss.{name}" for name in TERMS},
    **{name: f"loss.{name}" for name in ("temperature", "alpha", "positives", "rescale_centring", "centre_images")},
    "projection": "loss.projection",
    "views": "view.number",
    "learning_rate": "optimizer.learning_rate",
    "warmup": "optimizer.warmup",
    "weight_decay": "optimizer.weight_decay",
    "gradient_clip": "optimizer.gradient_clip",
    "frozen_stride": "freeze.stride",
    "train_batch_norm": "freeze.batch_norm (with the opposite value)",
    "evaluations": "choice.evaluations",
    "held_out": "choice.held_out",
    "evaluation_images": "choice.images",
    "deviation": "whitening.saved_std",
    "families": "lesions.families",
    "medmix": "lesions.families (with a configured Patch)",
    "optimizer": "optimizer.name",
    "whitening": "whitening.std",
}


def _check(settings: Any, place: str) -> None:
    """Raise :class:`InputError` where a value, however deep, is of a wrong type or out of range."""
    hints = get_type_hints(type(settings))
    for item in fields(settings):
        value, name = getattr(settings, item.name), f"{place}.{item.name}"
        kind: Any = hints[item.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, kind):
                raise InputError(f"{name} is {value!r}, but must be a {getattr(kind, '__name__', kind)}.")
            _check(value, name)
        elif "range" in item.metadata and not (value is None and item.default is None):
            lowest, highest = item.metadata["range"]
            whole = kind is int
            number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not number or not lowest <= value <= highest:
                words = "a whole number of" if whole else "a number of"
                raise InputError(
                    f"{name} is {value!r}, but must be {words} {lowest:g} at least and {highest:g} at most."
                )
        elif get_args(kind) and all(isinstance(choice, str) for choice in get_args(kind)):
            if value not in get_args(kind):
                raise InputError(f"{name} is {value!r}, but must be {' or '.join(get_args(kind))}.")
        elif kind is bool and not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}, but must be true or false.")


def _from_plain(cls: type[Settings], values: Mapping[str, Any], place: str) -> Settings:
    """Return settings from plain data, nested ones too."""
    hints = get_type_hints(cls)
    nested: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    for name, value in values.items():
        flat = name in nested and not isinstance(value, (Mapping, nested[name]))
        if place == "recipe" and name in RENAMED and (name not in hints or flat):
            raise InputError(f"{place}.{name} is now {place}.{RENAMED[name]}; set that.")
        if name not in hints:
            raise InputError(f"{place}: unknown setting {name!r}; known are {', '.join(sorted(hints))}.")
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in nested and isinstance(value, Mapping):
            found[name] = _from_plain(nested[name], value, f"{place}.{name}")
        elif name == "families":
            if not isinstance(value, list | tuple):
                raise InputError(
                    f"{place}.families is {value!r}, but must be a list of names of {', '.join(FAMILIES)}."
                )
            found[name] = [_family(each, place) for each in value]
        else:
            found[name] = tuple(value) if isinstance(value, list) else value
    return cls(**found)


def _family(value: Any, place: str) -> str | Lesion[Any]:
    """Return a family of lesions from plain data."""
    if isinstance(value, str | Lesion):
        return value  # the mixture says what is wrong with a name
    if not isinstance(value, Mapping):
        raise InputError(f"{place}.families has {value!r}, but must have names of {', '.join(FAMILIES)}.")
    settings = dict(value)
    name = settings.pop("name", None)
    if name not in FAMILIES:
        raise InputError(f"{place}.families has {name!r}, but must have names of {', '.join(FAMILIES)}.")
    try:
        return FAMILIES[name](
            **{key: tuple(item) if isinstance(item, list) else item for key, item in settings.items()}
        )
    except TypeError as error:
        raise InputError(f"{place}.families: {name}: {error}; see the arguments of that family.") from error
