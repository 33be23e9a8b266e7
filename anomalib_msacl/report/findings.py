"""Everything that a report shows, gathered from a run and from what it was made of."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from anomalib.callbacks import TilerConfigurationCallback
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, StochasticWeightAveraging
from torch import Tensor
from torchvision.transforms.v2 import Normalize

from anomalib_msacl.backbone.card import CardFacts
from anomalib_msacl.callback import MsaclPretraining
from anomalib_msacl.comparison.outcome import Outcome, predict
from anomalib_msacl.comparison.trials import quiet_engine, untouched_recipe
from anomalib_msacl.data import MedMixValidation
from anomalib_msacl.data.splits import draws_anew
from anomalib_msacl.errors import first_line
from anomalib_msacl.pretraining.preparation import transform_parts
from anomalib_msacl.recipe import Recipe
from anomalib_msacl.report.features import Plane, feature_planes
from anomalib_msacl.report.run import Curve, Run, curves_of, facts_of
from anomalib_msacl.thresholds import NormalsThreshold

logger = logging.getLogger(__name__)

_SHEET = 8  # training images that lesions are shown on
_TRAINING, _TEST = 100, 200  # images of the feature space, at most
# What goes wrong where images or weights of a run are not there any more, whoever notices it.
_ABSENT = (OSError, RuntimeError, ValueError, KeyError, AttributeError)
# Callbacks of a run that decide how its detector is fitted.
_FITTING: tuple[type[Callback], ...] = (MedMixValidation, NormalsThreshold, TilerConfigurationCallback)
_FITTING += (EarlyStopping, StochasticWeightAveraging, GradientAccumulationScheduler)
_ANEW = (
    "The split of this run has no seed, so it was drawn anew for this report: the test images need not be those of the "
    "run, and some of them may have been trained on or have set the threshold. Set data.init_args.seed."
)
Found = TypeVar("Found")


@dataclass
class Findings:
    """What a report shows; None stands for what is not there, and :attr:`missing` says why.

    Attributes:
        run: The run.
        recipe: How the backbone was pre-trained.
        weights: Folder of the pre-trained weights.
        facts: Their model card.
        curves: Curves of the pre-training.
        after: The detector on the test images.
        before: The same detector on the untouched backbone.
        training: Normal training images as the network takes them, in [0, 1], shape ``(N, 3, H, W)``.
        planes: The two main directions of the features, before and after.
        images: Test images as the network takes them, by their index in the outcomes.
        missing: By section, a sentence on what is not there.
        loaded: Whether the checkpoint could be read into the model.
    """

    run: Run
    recipe: Recipe | None = None
    weights: Path | None = None
    facts: CardFacts | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    after: Outcome | None = None
    before: Outcome | None = None
    training: Tensor | None = None
    planes: Sequence[Plane] = ()
    images: Callable[[int], Tensor] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    loaded: bool = False

    def attempt(self, section: str, what: str, work: Callable[[], Found]) -> Found | None:
        """Return what some work finds, or note why it cannot be had.

        Args:
            section: Of the report, that the sentence belongs to.
            what: Begins the sentence.
            work: Finds it.
        """
        try:
            return work()
        except _ABSENT as error:
            logger.debug("%s", what, exc_info=error)
            self.missing[section] = f"{what} ({first_line(error)})."
            return None


def gather(folder: str | Path, before: bool = True) -> Findings:
    """Gather what a report shows.

    Args:
        folder: Of a run.
        before: Fit the detector on the untouched backbone too.

    Raises:
        InputError: If it is not the folder of a run.
    """
    run = Run.open(folder)
    found = Findings(run)
    seed = run.config.content.get("seed_everything")
    lightning.seed_everything(seed if isinstance(seed, int) and not isinstance(seed, bool) else 0, verbose=False)
    model = found.attempt("run", "The model cannot be built", run.config.model)
    if model is None:
        return found
    callback = found.attempt("run", "The callbacks cannot be built", run.config.pretraining)
    found.recipe = callback.recipe if callback else getattr(model, "recipe", None)
    data = found.attempt("scores", "The images of this run are not at hand", run.config.datamodule)
    if data is not None:
        found.missing |= {"split": _ANEW} if draws_anew(data) else {}
        _fix_split(data)
        if hasattr(data, "shared_findings"):
            data.shared_findings = []  # the files are looked into once, for both backbones
    _after(found, model, data)
    _weights(found, model)
    if data is not None and found.after is not None:
        _images(found, model, data)
        if before and callback is not None:
            outcome = found.attempt(
                "before", "The untouched backbone could not be tested", lambda: _before(run, callback, data)
            )
            found.before = _of_the_same_images(found, outcome)
    if callback is None:
        found.missing["before"] = "The configuration has no callback MsaclPretraining, so there is no before."
    elif not before:
        found.missing["before"] = "The report was made without the untouched backbone (--before false)."
    return found


def _after(found: Findings, model: AnomalibModule, data: AnomalibDataModule | None) -> None:
    """Score the test images."""
    checkpoint = found.run.checkpoint
    if checkpoint is None:
        found.missing["scores"] = "The run has no checkpoint in weights/lightning, so nothing can be scored."
    elif data is not None:
        callbacks = found.attempt("run", "The callbacks cannot be built", found.run.config.callbacks) or []
        tiles = [each for each in callbacks if isinstance(each, TilerConfigurationCallback)]
        with _engine(found.run, callbacks=tiles) as engine:
            found.after = found.attempt(
                "scores", "The test images could not be scored", lambda: predict(engine, model, data, str(checkpoint))
            )
        found.loaded = "scores" not in found.missing
        if found.loaded and found.after is None:
            found.missing["scores"] = "The run has no test images, so nothing can be scored."
        elif found.after is not None and found.after.label is None:
            found.missing["scores"] = "The test images have no labels."


def _weights(found: Findings, model: AnomalibModule) -> None:
    """Find the weights, their card and their curves."""
    absent = "The folder of the pre-trained weights is not where the run left it, or holds others by now"
    if found.loaded:
        found.weights = found.attempt("weights", absent, lambda: found.run.weights(model))
    if found.weights is None:
        found.missing.setdefault("weights", f"{absent}.")
        return
    found.facts = facts_of(found.weights)
    found.curves = curves_of(found.weights)


def _images(found: Findings, model: AnomalibModule, data: AnomalibDataModule) -> None:
    """Prepare images to show, and the feature space."""
    parts = [
        part
        for part in transform_parts(getattr(model.pre_processor, "transform", None))
        if not isinstance(part, Normalize)
    ]

    def image(dataset: Any, index: int) -> Tensor:
        shown: Tensor = dataset[index].image.as_subclass(Tensor)
        for part in parts:
            shown = part(shown)
        return shown.clamp(0, 1)

    def some(dataset: Any, number: int) -> tuple[Tensor, list[int]]:
        count = min(number, len(dataset))
        rows = [len(dataset) * place // count for place in range(count)]
        return torch.stack([image(dataset, row) for row in rows]), rows

    found.images = lambda index: image(data.test_data, index)
    drawn = found.attempt("lesions", "The training images could not be read", lambda: some(data.train_data, _TRAINING))
    if drawn is None:
        return
    found.training = drawn[0]
    callback = found.run.config.pretraining()
    if found.weights is None or callback is None or callback.weights is None or found.after is None:
        found.missing["features"] = "The weights before or after are not at hand, so features cannot be compared."
        return
    test, rows = some(data.test_data, _TEST)
    label = found.after.label
    labels = None if label is None else label[rows]
    before, after, training = callback.weights, found.weights, drawn[0]
    planes = found.attempt(
        "features", "Features could not be computed", lambda: feature_planes(before, after, training, test, labels)
    )
    found.planes = planes or ()


def _before(run: Run, callback: MsaclPretraining, same: AnomalibDataModule) -> Outcome | None:
    """Fit the detector of a run on the untouched backbone and let it score the same images.

    Args:
        run: The run.
        callback: Its pre-training.
        same: Its datamodule, set up; what it has found in the files is not looked for again.
    """
    model, data = run.config.model(), run.config.datamodule()
    _fix_split(data)
    if hasattr(same, "shared_findings"):
        data.shared_findings = same.shared_findings  # type: ignore[attr-defined]  # of the same class
    # Others may write where the run wrote, such as `ScoresCsv`.
    others = [each for each in run.config.callbacks() if isinstance(each, _FITTING)]
    with tempfile.TemporaryDirectory() as work:
        plain = MsaclPretraining(callback.weights, untouched_recipe(callback.recipe), work)
        with _engine(run, callbacks=[*others, plain]) as engine:
            engine.fit(model, datamodule=data)
            return predict(engine, model, data)


def _fix_split(data: AnomalibDataModule) -> None:
    """Let a datamodule whose split has no seed draw the same one each time that it is built."""
    data.seed = 0 if data.seed is None else data.seed


def _engine(run: Run, **options: Any) -> AbstractContextManager[Engine]:
    """Give an engine that fits and validates as that of a run."""
    limit = run.config.section("trainer").get("limit_val_batches")
    return quiet_engine(limit_val_batches=1.0 if limit is None else limit, **run.config.training(), **options)


def _of_the_same_images(found: Findings, before: Outcome | None) -> Outcome | None:
    """Return an outcome if it is of the images of the one after; they are set side by side, row by row."""
    after = found.after
    if before is None or after is None:
        return before
    if (list(before.paths), list(before.frames)) == (list(after.paths), list(after.frames)):
        return before
    found.missing["before"] = (
        "The datamodule gave other test images for the untouched backbone, so that the two cannot be set side by side."
    )
    return None
