"""``NormalsThreshold``: sets the thresholds of a detector of anomalib from held-out normal images."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

from anomalib.data import AnomalibDataModule
from anomalib.data.datasets.base.image import AnomalibDataset
from anomalib.data.utils import LabelName
from anomalib.models.components import MemoryBankMixin
from anomalib.post_processing import PostProcessor
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_msacl.data.held_out import Fold, HeldOut, hold_out, split_into_folds
from anomalib_msacl.data.lending import give_back, remember
from anomalib_msacl.data.samples import patients_of
from anomalib_msacl.data.units import Unit, recorded_unit
from anomalib_msacl.data.validation import MedMixValidation
from anomalib_msacl.errors import InputError, show_in_one_line
from anomalib_msacl.medical.reading import reading_in
from anomalib_msacl.metrics import patients_by_batch
from anomalib_msacl.thresholds.conformal import conformal_rank, images_needed, shift
from anomalib_msacl.thresholds.folds import scores_of_folds
from anomalib_msacl.thresholds.requirements import (
    FEWEST_FOLDS,
    check_folds,
    check_number,
    check_post_processor,
    do_without_validation,
    is_never_fitted,
)
from anomalib_msacl.thresholds.scoring import held_out_scores, raw_scores, set_threshold

logger = logging.getLogger(__name__)

SCORES = "anomalib_msacl_normals"
"""Entry of a checkpoint: the scores that its thresholds come from, by ``image`` and ``pixel``."""
PROMISE = "anomalib_msacl_promise"
"""Entry of a checkpoint: what :func:`promise_record` returns."""


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
    many have any image called abnormal. Where it does not, the same holds of files with several images. Nothing is
    promised about images that differ, from another scanner, say, nor about how many lesions are found.

    Args:
        specificity: Smallest part of normal images, or patients, that is called normal, between 0 and 1.
        confidence: None promises the mean over many such draws of held-out images; a number between 0 and 1 promises
            the part of the draws in which the specificity holds, which takes more images: 59 for 0.95 and 0.95.
        ratio: Part of the training images, or of their patients where they are known, that is held out, between 0
            and 1.
        seed: Decides which are held out.
        folds: Where there are too few images to hold some out: fit as many copies of the detector, each without one
            part of the images, and take the scores of the parts; nothing is held out then, and ``ratio`` does not
            count. As many folds as images leave one out at a time. The promise is no guarantee then: the detector
            differs from the copies, and a pre-training or a choice of weights has seen all images.
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
        folds: int | None = None,
    ) -> None:
        for name, value in (("specificity", specificity), ("confidence", confidence), ("ratio", ratio)):
            if value is not None and not 0 < value < 1:
                raise InputError(f"NormalsThreshold: {name} is {value}: set it between 0 and 1, both excluded")
        if not 0 <= shift_level < 1:
            raise InputError(f"NormalsThreshold: shift_level is {shift_level}: set it to 0 or above, and below 1")
        if folds is not None and (folds < FEWEST_FOLDS or confidence is not None):
            raise InputError(
                f"NormalsThreshold: folds is {folds} and confidence {confidence}: set folds to {FEWEST_FOLDS} "
                "or more, and confidence to null, for scores of several fits can promise a mean only"
            )
        self.folds = folds
        self.specificity = specificity
        self.confidence = confidence
        self.ratio = ratio
        self.seed = seed
        self.shift_level = shift_level
        self.needed = images_needed(1 - specificity, confidence)
        self.calibration: dict[str, list[float]] = {}
        """Raw scores of the held-out units, ascending, by ``image`` and ``pixel``; empty before the fit."""
        self.unit: Unit = "image"
        """What each of these scores is the largest one of."""
        self._held_out: HeldOut | None = None
        self._folds: list[Fold] = []
        self._datamodule: AnomalibDataModule | None = None
        self.stale = True
        """Whether the model may have changed since the thresholds were set; whoever changes it says so here."""
        self._incoming: list[tuple[str, float, int | None]] = []
        self._patients: list[list[str]] | None = None

    @property
    def held_out_images(self) -> AnomalibDataset | None:
        """The images that nothing else has seen; None before the fit begins."""
        return None if self._held_out is None else self._held_out.images

    # ------------------------------------------------------------------------------------------ holding images out

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hold images out, before the model, a pre-training or a validation split looks at the data."""
        if stage == "fit" or (stage == "validate" and is_never_fitted(pl_module)):
            check_post_processor(pl_module)
            self._hold_out(trainer)
            callbacks = cast("Any", trainer).callbacks
            made_later = any(isinstance(callback, MedMixValidation) for callback in callbacks)
            if not made_later and not hasattr(cast("Any", trainer).datamodule, "val_data"):
                do_without_validation(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the copies of folds, once the model has its weights; scores of a checkpoint that goes on are kept."""
        if self._folds and not self.calibration:
            datamodule = cast("AnomalibDataModule", self._datamodule)
            self.calibration = scores_of_folds(trainer, pl_module, datamodule, self._folds)
            self.unit = self._folds[0].held_out.unit

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let a command line end in one sentence instead of a traceback where the input is at fault."""
        del pl_module
        give_back(trainer)
        show_in_one_line(exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the images back to the datamodule."""
        del pl_module, stage
        give_back(trainer)

    def _hold_out(self, trainer: Trainer) -> None:
        """Take images out of the training set for this fit."""
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, AnomalibDataModule) or not isinstance(datamodule.train_data, AnomalibDataset):
            raise InputError(
                f"NormalsThreshold needs an image datamodule of anomalib, but got {type(datamodule).__name__}: pass "
                "datamodule=... to the engine"
            )
        self.stale = True
        self._datamodule, self.calibration = datamodule, {}
        if self.folds is not None:
            check_folds(trainer)
            self._folds = split_into_folds(datamodule.train_data, self.folds, self.seed)
            check_number(None, sum(fold.held_out.number for fold in self._folds), self.specificity, None)
            return
        total = patients_of(datamodule.train_data.samples).nunique()
        train, held_out = hold_out(datamodule.train_data, self.ratio, self.seed)
        check_number(held_out, total, self.specificity, self.confidence)
        remember(datamodule)
        datamodule.train_data, self._held_out = train, held_out
        logger.info(
            "NormalsThreshold: %d normal images (%d %s) are held out, %d are left for training.",
            *(len(held_out.images), held_out.number, held_out.noun, len(train)),
        )

    # ------------------------------------------------------------------------------------------ scores to thresholds

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take note that the model will change."""
        del trainer, pl_module, batch, batch_idx
        self.stale = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note that anomalib will set its own thresholds; a memory bank is filled here, too."""
        del trainer, pl_module
        self.stale = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the thresholds after anomalib has, and before a checkpoint is saved."""
        if not trainer.sanity_checking:
            self._apply(trainer, pl_module)
        if self._held_out is not None and is_never_fitted(pl_module):
            self._tell(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See that a checkpoint has the thresholds of its own weights, and keep the scores that they come from."""
        self._apply(trainer, pl_module)
        if self.calibration and not self.stale:
            state = checkpoint["state_dict"]
            buffers = cast("PostProcessor", pl_module.post_processor).state_dict(prefix="post_processor.")
            state.update({name: value for name, value in buffers.items() if name in state})
            checkpoint[SCORES] = {kind: list(scores) for kind, scores in self.calibration.items()}
            checkpoint[PROMISE] = promise_record(self)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the scores that the thresholds of a checkpoint come from."""
        del trainer, pl_module
        self.calibration = {kind: list(scores) for kind, scores in checkpoint.get(SCORES, {}).items()}
        self.unit = recorded_unit(checkpoint.get(PROMISE, {}), reading_in(checkpoint))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the thresholds where neither a validation nor a checkpoint has."""
        self._apply(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is promised; a model that was stopped early may be ready only now."""
        self._apply(trainer, pl_module)
        self._tell(pl_module)

    def _tell(self, pl_module: LightningModule) -> None:
        """Log what is promised, or that nothing is."""
        if self.calibration and not self.stale:
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
        number = len(next(iter(self.calibration.values()), []))
        rank = conformal_rank(number, 1 - self.specificity, self.confidence)
        noun = f"{self.unit}s"
        whose = {"patient": "his", "file": "its"}.get(self.unit)
        unit = f", each with the largest of {whose} images" if whose else ""
        if self._folds:
            return (
                f"the thresholds are the scores of rank {rank} of {number} normal training {noun}{unit}, scored by "
                f"{len(self._folds)} fits that had not seen them; about {100 * (1 - self.specificity):.4g} % of new "
                f"normal {noun} should be called abnormal, and at most as many have a pixel marked, which is no "
                "guarantee, for this detector was fitted on all of them, and nothing is said about images of another "
                "origin, nor about how many lesions are found."
            )
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
        if not self.stale:
            return
        if (self._held_out is not None or self._folds) and not _is_fitted(pl_module):
            return
        if self._held_out is not None:
            datamodule = cast("AnomalibDataModule", self._datamodule)
            self.calibration = held_out_scores(trainer, pl_module, datamodule, self._held_out)
            self.unit = self._held_out.unit
        if not self.calibration:
            return
        for kind, scores in self.calibration.items():
            rank = conformal_rank(len(scores), 1 - self.specificity, self.confidence)
            set_threshold(trainer, pl_module, kind, scores, rank)
        self.stale = False

    # ------------------------------------------------------------------------------------------ incoming images

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the images of an earlier test, and find out whose the next ones are."""
        del pl_module
        self._incoming = []
        self._patients = patients_by_batch(trainer)
        compares = self.shift_level > 0 and bool(self.calibration.get("image"))
        if compares and self.unit == "patient" and self._patients is None:
            logger.warning(
                "NormalsThreshold: the scores of test images are not compared with those of the %d held-out normal "
                "patients, because the datamodule does not tell whose images they are: give it the rule for patients "
                "of the training.",
                len(self.calibration["image"]),
            )

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
        names = _units(self.unit, outputs, batch_idx, self._patients)
        if names is None:
            return
        values = score.tolist()
        truth = outputs.gt_label
        labels = [None] * len(values) if truth is None else truth.flatten().long().tolist()
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
                f"test {self.unit}s, of which no label is known," if unknown else f"normal test {self.unit}s",
                found.calibration,
                "higher" if found.higher else "lower",
                found.statistic,
                found.p_value,
                "expect more false positives" if found.higher else "expect fewer false positives, and finds,",
                "; lesions among them may be the reason" if unknown else "",
            )


def promise_record(callback: NormalsThreshold) -> dict[str, Any]:
    """Return the promise, what it is about, and the level of a shift, as plain data for exports."""
    return {"promise": callback.promise(), "unit": callback.unit, "level": callback.shift_level}


def _units(unit: Unit, outputs: Any, number: int, patients: list[list[str]] | None) -> list[str] | None:
    """Return what each image of a test batch belongs to, as the held-out ones count; None where that is not known.

    Args:
        unit: What counts once.
        outputs: The batch, which names its files.
        number: Of the batch.
        patients: Those of all batches.
    """
    if unit == "patient":
        return patients[number] if patients else None
    if unit == "file":
        return None if outputs.image_path is None else [str(path) for path in outputs.image_path]
    return [f"{number}:{row}" for row in range(len(outputs.image))]


def _is_fitted(pl_module: LightningModule) -> bool:
    """Whether a model that scores by a memory of normal images has one."""
    if isinstance(pl_module, MemoryBankMixin):
        return bool(pl_module.get_buffer("_is_fitted"))
    return bool(getattr(getattr(pl_module.model, "memory_bank", None), "fitted", True))
