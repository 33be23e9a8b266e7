"""Thresholds with a promise, from normal images alone: split conformal prediction, and ``NormalsThreshold``.

A detector that was fitted on other images gives scores to n held-out normal images. A new normal image is as likely to
come first, second, ... or last among these n + 1 (they are exchangeable), so that it exceeds the k-th smallest score
with a probability of at most 1 - k / (n + 1): Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World;
Angelopoulos and Bates, arXiv 2107.07511.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.post_processing import MEBinPostProcessor, PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from scipy.stats import binom, ks_2samp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomalib_msacl.compat import use_test_augmentations
from anomalib_msacl.data.held_out import HeldOut, hold_out
from anomalib_msacl.data.samples import patients_of
from anomalib_msacl.data.validation import MedMixValidation
from anomalib_msacl.errors import InputError, show_in_one_line
from anomalib_msacl.metrics import patients_by_batch

logger = logging.getLogger(__name__)

_ENTRY = "anomalib_msacl_normals"  # of a checkpoint: the scores that its thresholds come from
_ROOM = 5.0  # how much farther than held-out normal scores others may lie before their normalised score is 0 or 1
_FINEST = 1_000_000  # largest denominator of a rate
_MOST = 0.5  # part of the training images that may be advised to hold out
_KINDS = ("image", "pixel")


def conformal_rank(n: int, alpha: float, confidence: float | None = None) -> int:
    """Return which of n ascending scores of normal images is the threshold; images above it are called abnormal.

    Without ``confidence`` the rank is ``ceil((n + 1)(1 - alpha))``: over many draws of the n images the mean rate of
    false positives is at most ``alpha``, and that of a single draw may be above. With it the rank is the smallest k
    with ``P(Binomial(n, 1 - alpha) < k) >= confidence``: in that part of the draws the rate is at most ``alpha``.
    Both hold for exchangeable scores of any distribution; ties only make false positives fewer.

    Args:
        n: Number of scores, one for each image, or for each patient.
        alpha: Largest rate of false positives, between 0 and 1, both excluded.
        confidence: Part of the draws in which that rate holds, between 0 and 1, both excluded; None for the mean.

    Returns:
        A rank from 1 to n.

    Raises:
        InputError: If a rate is out of range, or n is too small for any threshold to keep the promise.

    Example:
        >>> conformal_rank(19, 0.05), conformal_rank(40, 0.05), conformal_rank(100, 0.05, confidence=0.95)
        (19, 39, 99)
    """
    needed = images_needed(alpha, confidence)
    if n < needed:
        sure = "" if confidence is None else f" with a confidence of {confidence:g}"
        raise InputError(
            f"{n} scores of normal images or patients cannot give a threshold of at most {alpha:.4g} false "
            f"positives{sure}: {needed} are needed, so hold out more of them, or ask for less"
        )
    if confidence is None:
        return math.ceil((n + 1) * (1 - _exact(alpha)))
    return int(binom.ppf(confidence, n, 1 - float(_exact(alpha)))) + 1


def images_needed(alpha: float, confidence: float | None = None) -> int:
    """Return the smallest number of normal images, or patients, that can give a threshold with a promise.

    Args:
        alpha: Largest rate of false positives, between 0 and 1, both excluded.
        confidence: As in :func:`conformal_rank`.

    Raises:
        InputError: If a rate is out of range.

    Example:
        >>> images_needed(0.05), images_needed(0.05, confidence=0.95)
        (19, 59)
    """
    for name, value in (("alpha", alpha), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise InputError(f"{name} is {value}: set it between 0 and 1, both excluded")
    rate = _exact(alpha)
    if not 0 < rate < 1:
        raise InputError(f"alpha is {alpha}: set it to {1 / _FINEST} or above, and no closer to 1")
    if confidence is None:
        return math.ceil((1 - rate) / rate)
    return max(1, math.ceil(math.log(1 - confidence) / math.log(1 - rate) - 1e-9))


def _exact(rate: float) -> Fraction:
    """Return the decimal number that is meant: 1 - 0.9 is a little below a tenth, and a rank must not see that."""
    return Fraction(rate).limit_denominator(_FINEST)


@dataclass(frozen=True)
class Shift:
    """How far incoming scores of normal images are from those that a threshold comes from.

    Attributes:
        statistic: Largest distance of the two distribution functions, in [0, 1] (Kolmogorov and Smirnov).
        p_value: Probability of such a distance or a larger one where nothing has changed.
        higher: Whether the incoming scores are mostly above, so that there are more false positives than promised.
        calibration: Number of scores that the threshold comes from.
        incoming: Number of incoming scores.
    """

    statistic: float
    p_value: float
    higher: bool
    calibration: int
    incoming: int


def shift(calibration: Sequence[float], incoming: Sequence[float]) -> Shift:
    """Compare incoming scores of normal images with those that a threshold comes from.

    The two-sample test of Kolmogorov and Smirnov, which sees any difference of the distributions.

    Args:
        calibration: Raw scores of held-out normal images, any scale.
        incoming: Raw scores of other normal images, on the same scale.

    Returns:
        The distance, how likely it is where nothing has changed, and its direction.

    Raises:
        InputError: If one of the two is empty, or holds a score that is no number.

    Example:
        >>> shift([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]).higher
        True
    """
    first, second = (np.asarray(scores, dtype=np.float64) for scores in (calibration, incoming))
    if not len(first) or not len(second) or np.isnan(first).any() or np.isnan(second).any():
        raise InputError(
            f"scores cannot be compared, {len(first)} with {len(second)}: give at least one number on either side, "
            "and no NaN"
        )
    found = ks_2samp(first, second)
    # The sign is 1 where the distribution function of the calibration lies above, that is, its scores below.
    return Shift(float(found.statistic), float(found.pvalue), bool(found.statistic_sign > 0), len(first), len(second))


class NormalsThreshold(Callback):
    """Set the thresholds of image and pixels from held-out normal images, with a promise about false positives.

    A part of the training images is held out before anything looks at them: neither a pre-training nor a choice of
    weights nor the fit sees one, and copies of them are not trained with. The fitted model scores them as ``test``
    would, and the scores set the thresholds of anomalib's post-processor, in place of those of the validation set.
    They travel with the checkpoint and its exports, which need nothing of this package. An image is called abnormal
    where its raw score is above the threshold, and a normalised score of 0.5 is the threshold.

    What is promised: at most ``1 - specificity`` of new normal images like the held-out ones are called abnormal, and
    at most as many have any pixel marked. The two are promised apart. Where the sample table names patients, a patient
    counts once, with the largest score of his images, and the promise is about patients: of new normal ones at most so
    many have any image called abnormal. Nothing is promised about images that differ, from another scanner, say, nor
    about how many lesions are found.

    Args:
        specificity: Smallest part of normal images, or patients, that is called normal, between 0 and 1.
        confidence: None promises the mean over many such draws of held-out images; a number between 0 and 1 promises
            the part of the draws in which the specificity holds, which takes more images: 59 for 0.95 and 0.95.
        ratio: Part of the training images, or of their patients where they are known, that is held out, between 0
            and 1.
        seed: Decides which are held out.
        shift_level: The callback warns where the scores of normal test images differ from those held out so much that
            it would happen with a probability below this by chance; 0 never warns.

    Raises:
        InputError: If a setting is out of range; when the fit begins, if too few images are held out for the promise,
            or if data, post-processor or trainer cannot keep it.
    """

    def __init__(
        self,
        specificity: float = 0.95,
        confidence: float | None = None,
        ratio: float = 0.2,
        seed: int = 0,
        shift_level: float = 0.01,
    ) -> None:
        for name, value in (("specificity", specificity), ("confidence", confidence), ("ratio", ratio)):
            if value is not None and not 0 < value < 1:
                raise InputError(f"NormalsThreshold: {name} is {value}: set it between 0 and 1, both excluded")
        if not 0 <= shift_level < 1:
            raise InputError(f"NormalsThreshold: shift_level is {shift_level}: set it to 0 or above, and below 1")
        self.specificity = specificity
        self.confidence = confidence
        self.ratio = ratio
        self.seed = seed
        self.shift_level = shift_level
        self.needed = images_needed(1 - specificity, confidence)
        self.calibration: dict[str, list[float]] = {}
        """Raw scores of the held-out units, ascending, by ``image`` and ``pixel``; empty before the fit."""
        self._held_out: HeldOut | None = None
        self._datamodule: AnomalibDataModule | None = None
        self._stale = True
        self._incoming: list[tuple[str, float, int | None]] = []
        self._patients: list[list[str]] | None = None

    @property
    def held_out_images(self) -> AnomalibDataset | None:
        """The images that nothing else has seen; None before the fit begins."""
        return None if self._held_out is None else self._held_out.images

    # ------------------------------------------------------------------------------------------ holding images out

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hold images out, before the model, a pre-training or a validation split looks at the data."""
        if stage == "fit" or (stage == "validate" and _is_never_fitted(pl_module)):
            _check_post_processor(pl_module)
            self._hold_out(trainer)
            callbacks = cast("Any", trainer).callbacks
            made_later = any(isinstance(callback, MedMixValidation) for callback in callbacks)
            if not made_later and not hasattr(cast("Any", trainer).datamodule, "val_data"):
                _do_without_validation(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let a command line end in one sentence instead of a traceback where the input is at fault."""
        del trainer, pl_module
        show_in_one_line(exception)

    def _hold_out(self, trainer: Trainer) -> None:
        """Take images out of the training set, once for a datamodule."""
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, AnomalibDataModule) or not isinstance(datamodule.train_data, AnomalibDataset):
            raise InputError(
                f"NormalsThreshold needs an image datamodule of anomalib, but got {type(datamodule).__name__}: pass "
                "datamodule=... to the engine"
            )
        if self._has_held_out_of(datamodule):
            return
        self._stale = True
        self._datamodule, self.calibration = datamodule, {}
        total = patients_of(datamodule.train_data.samples).nunique()
        train, held_out = hold_out(datamodule.train_data, self.ratio, self.seed)
        self._check_number(held_out, total)
        datamodule.train_data, self._held_out = train, held_out
        logger.info(
            "NormalsThreshold: %d normal images (%d %s) are held out, %d are left for training.",
            *(len(held_out.images), held_out.number, held_out.noun, len(train)),
        )

    def _has_held_out_of(self, datamodule: AnomalibDataModule) -> bool:
        """Whether this callback has been at the training set as it is now."""
        if self._held_out is None or self._datamodule is not datamodule:
            return False
        held_out = set(self._held_out.images.samples["image_path"])
        return held_out.isdisjoint(datamodule.train_data.samples["image_path"])

    def _check_number(self, held_out: HeldOut, total: int) -> None:
        """Raise :class:`InputError` where too few are held out for the promise."""
        if held_out.number >= self.needed:
            return
        sure = "" if self.confidence is None else f" with a confidence of {self.confidence:g}"
        ratio = math.ceil(100 * self.needed / max(1, total)) / 100
        enough = f"raise ratio to {ratio:g} or more, " if ratio <= _MOST else ""
        raise InputError(
            f"NormalsThreshold: {held_out.number} of {total} normal {held_out.noun} are held out, but a specificity of "
            f"{self.specificity:g}{sure} needs {self.needed}: {enough}add normal images, or lower the specificity"
            f"{'' if self.confidence is None else ' or the confidence'}"
        )

    # ------------------------------------------------------------------------------------------ scores to thresholds

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take note that the model will change."""
        del trainer, pl_module, batch, batch_idx
        self._stale = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note that anomalib will set its own thresholds; a memory bank is filled here, too."""
        del trainer, pl_module
        self._stale = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the thresholds after anomalib has, and before a checkpoint is saved."""
        if not trainer.sanity_checking:
            self._apply(trainer, pl_module)
        if self._held_out is not None and _is_never_fitted(pl_module):
            self._tell(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See that a checkpoint has the thresholds of its own weights, and keep the scores that they come from."""
        self._apply(trainer, pl_module)
        if self.calibration and not self._stale:
            state = checkpoint["state_dict"]
            buffers = cast("PostProcessor", pl_module.post_processor).state_dict(prefix="post_processor.")
            state.update({name: value for name, value in buffers.items() if name in state})
            checkpoint[_ENTRY] = {kind: list(scores) for kind, scores in self.calibration.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the scores that the thresholds of a checkpoint come from."""
        del trainer, pl_module
        self.calibration = {kind: list(scores) for kind, scores in checkpoint.get(_ENTRY, {}).items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the thresholds where neither a validation nor a checkpoint has."""
        self._apply(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is promised; a model that was stopped early may be ready only now."""
        self._apply(trainer, pl_module)
        self._tell(pl_module)

    def _tell(self, pl_module: LightningModule) -> None:
        """Log what is promised, or that nothing is."""
        if self.calibration and not self._stale:
            logger.info("NormalsThreshold: %s", self.promise())
        else:
            logger.warning(
                "NormalsThreshold: %s gave the held-out images no scores, so no threshold was set.",
                type(pl_module).__name__,
            )

    def promise(self) -> str:
        """Return one sentence: number of scores, rank, what is promised and what is not.

        Raises:
            InputError: If there are no scores yet.
        """
        held_out, number = self._held_out, len(next(iter(self.calibration.values()), []))
        rank = conformal_rank(number, 1 - self.specificity, self.confidence)
        named = held_out is not None and held_out.named
        noun = "patients" if named else "images"
        unit = ", each with the largest of his images" if named else ""
        how = "on average over such draws of images"
        if self.confidence is not None:
            how = f"with a probability of {100 * self.confidence:g} % over such draws of images"
        return (
            f"the thresholds are the scores of rank {rank} of {number} held-out normal {noun}{unit}; {how} at most "
            f"{100 * (1 - self.specificity):.4g} % of new normal {noun} are called abnormal, and at most as many have "
            "a pixel marked, while nothing is promised about images of another origin, nor about how many lesions "
            "are found."
        )

    def _apply(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the held-out images where the model may have changed, and set the thresholds."""
        if not self._stale:
            return
        if self._held_out is not None:
            if not _is_fitted(pl_module):
                return
            self.calibration = self._scores(trainer, pl_module, self._held_out)
        if not self.calibration:
            return
        for kind, scores in self.calibration.items():
            rank = conformal_rank(len(scores), 1 - self.specificity, self.confidence)
            self._set(trainer, pl_module, kind, scores, rank)
        self._stale = False

    @staticmethod
    def _set(trainer: Trainer, pl_module: LightningModule, kind: str, scores: Sequence[float], rank: int) -> None:
        """Write a threshold, and a range that all known scores fit into, to anomalib's post-processor."""
        buffers = dict(cast("PostProcessor", pl_module.post_processor).named_buffers(recurse=False))
        low, high = buffers[f"{kind}_min"], buffers[f"{kind}_max"]
        threshold = scores[rank - 1]
        # anomalib normalises to (score - threshold) / (high - low) + 0.5, cut off at 0 and 1.
        width = float(high - low)
        known = not math.isnan(width)
        farthest = max(threshold - scores[0], scores[-1] - threshold)
        if known:
            farthest = max(farthest, threshold - float(low), float(high) - threshold)
        data = getattr(getattr(trainer, "datamodule", None), "val_data", None)
        if not known or not getattr(data, "has_anomalous", False):
            farthest *= _ROOM  # none of the known scores is that of a lesion
        buffer = buffers[f"_{kind}_threshold"].fill_(threshold)
        if float(buffer) < threshold:  # rounded down to fewer bits
            buffer.add_(abs(threshold) * torch.finfo(buffer.dtype).eps)
        if not known or width < 2 * farthest:
            low.fill_(threshold - farthest)
            high.fill_(threshold + farthest)

    def _scores(self, trainer: Trainer, pl_module: LightningModule, held_out: HeldOut) -> dict[str, list[float]]:
        """Return the raw scores of the held-out units, ascending, by kind; a kind that the model lacks is missing."""
        datamodule = cast("AnomalibDataModule", self._datamodule)
        found: dict[str, list[Tensor]] = {kind: [] for kind in _KINDS}
        for batch in _scored(trainer, pl_module, datamodule, held_out.images):
            for kind, value in zip(_KINDS, raw_scores(batch), strict=True):
                if value is not None:
                    found[kind].append(value)
        largest = {}
        for kind, parts in found.items():
            values = torch.cat(parts).tolist() if parts else []
            if len(values) != len(held_out.units):
                continue
            if any(math.isnan(value) for value in values):
                raise InputError(
                    f"NormalsThreshold: {type(pl_module).__name__} gives held-out normal images scores that are no "
                    "numbers (NaN): look at its training, or set trainer.precision to 32-true"
                )
            units: dict[int, float] = {}
            for unit, value in zip(held_out.units, values, strict=True):
                units[unit] = max(value, units.get(unit, -math.inf))
            largest[kind] = sorted(units.values())
        return largest

    # ------------------------------------------------------------------------------------------ incoming images

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the images of an earlier test."""
        del pl_module
        self._incoming = []
        self._patients = patients_by_batch(trainer)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the raw scores: callbacks of the trainer come before the model's post-processor, which changes them."""
        del trainer, pl_module, batch, dataloader_idx
        score = raw_scores(outputs)[0]
        if not self.calibration.get("image") or score is None:
            return
        values = score.tolist()
        truth = outputs.gt_label
        labels = [None] * len(values) if truth is None else truth.flatten().long().tolist()
        # Without patients every image counts.
        names = self._patients[batch_idx] if self._patients else [f"{batch_idx}:{row}" for row in range(len(values))]
        self._incoming += zip(names, values, labels, strict=True)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn where the scores of normal test images are not those that the threshold comes from."""
        del trainer, pl_module
        ill = {name for name, _, label in self._incoming if label == LabelName.ABNORMAL}
        unknown = any(label is None for *_, label in self._incoming)
        units: dict[str, float] = {}
        for name, value, _ in self._incoming:
            if name not in ill:
                units[name] = max(value, units.get(name, -math.inf))
        if not units or any(math.isnan(value) for value in units.values()):
            return
        found = shift(self.calibration["image"], list(units.values()))
        if found.p_value < self.shift_level:
            logger.warning(
                "NormalsThreshold: the scores of %d %s are not like those of the %d held-out normal ones but mostly "
                "%s (Kolmogorov-Smirnov distance %.2f, p = %.1g), so %s than promised%s.",
                found.incoming,
                "test images, of which no label is known," if unknown else "normal test images or patients",
                found.calibration,
                "higher" if found.higher else "lower",
                found.statistic,
                found.p_value,
                "expect more false positives" if found.higher else "expect fewer false positives, and finds,",
                "; lesions among them may be the reason" if unknown else "",
            )


def raw_scores(batch: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return what is compared with the two thresholds, as the model gives it.

    Args:
        batch: B scored images that no post-processor has been at.

    Returns:
        The score of each image, and the largest value of its anomaly map, shape ``(B,)``, any scale, 64 bits, on the
        CPU; None where the model gives none.
    """
    score, plane = batch.pred_score, batch.anomaly_map
    largest = None if plane is None else _plain(plane).flatten(1).amax(dim=1)
    return (largest if score is None else _plain(score).flatten()), largest


def _plain(values: Tensor) -> Tensor:
    return values.detach().as_subclass(Tensor).double().cpu()


def _scored(
    trainer: Trainer, pl_module: LightningModule, datamodule: AnomalibDataModule, images: AnomalibDataset
) -> Iterator[Any]:
    """Yield images in batches with the scores that ``test`` would give them, before the post-processor."""
    model = cast("AnomalibModule", pl_module)
    use_test_augmentations(datamodule, images, getattr(model.pre_processor, "transform", None))
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=datamodule.eval_batch_size,
        num_workers=datamodule.num_workers,
        collate_fn=datamodule.external_collate_fn or images.collate_fn,
    )
    precision = trainer.precision_plugin
    # Loaders draw from the global generator: what is trained must not depend on whether anyone looks.
    with isolate_rng(), _evaluating(model), torch.no_grad():
        for index, loaded in enumerate(loader):
            batch = precision.convert_input(model.transfer_batch_to_device(loaded, model.device, 0))
            if isinstance(model.pre_processor, Callback):
                model.pre_processor.on_test_batch_start(trainer, model, batch, index)
            with precision.forward_context():
                yield model.test_step(batch, index)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and every part of it back: some may have been frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _is_never_fitted(pl_module: LightningModule) -> bool:
    """Whether anomalib only validates such a model."""
    kinds = {LearningType.ZERO_SHOT, LearningType.FEW_SHOT}
    return isinstance(pl_module, AnomalibModule) and pl_module.learning_type in kinds


def _is_fitted(pl_module: LightningModule) -> bool:
    """Whether a model that scores by a memory of normal images has one."""
    if isinstance(pl_module, MemoryBankMixin):
        return bool(pl_module.get_buffer("_is_fitted"))
    return bool(getattr(getattr(pl_module.model, "memory_bank", None), "fitted", True))


def _check_post_processor(pl_module: LightningModule) -> None:
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


def _do_without_validation(trainer: Trainer, pl_module: LightningModule) -> None:
    """Let a trainer fit although there is no validation set, which anomalib asks for."""
    if _is_never_fitted(pl_module):
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
