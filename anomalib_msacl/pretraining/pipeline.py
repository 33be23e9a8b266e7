"""The method, in five steps: whiten, train, average, choose, realign.

:func:`pretrain` is the method. :class:`Pretraining` holds what its steps share, and lets a run stop in the middle and
go on: ``Msacl`` calls the same steps from Lightning's hooks.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from anomalib_msacl import distributed
from anomalib_msacl.backbone import Encoder, Provenance, realign, whiten
from anomalib_msacl.backbone.encoder import evaluating, is_transformer
from anomalib_msacl.backbone.frozen import FrozenStages
from anomalib_msacl.backbone.tensors import StateDict, copy_of, same
from anomalib_msacl.backbone.whitening import deviation
from anomalib_msacl.compat import isolated_random
from anomalib_msacl.pretraining.checkpoints import STATE, Checkpoints, tell_stopped
from anomalib_msacl.pretraining.choice import UNTOUCHED, WHITENED, Choice, is_due, step_name
from anomalib_msacl.pretraining.images import NormalImages
from anomalib_msacl.pretraining.lightning_model import PretrainingModule, make_trainer
from anomalib_msacl.pretraining.preparation import check_thawed, check_trainer
from anomalib_msacl.pretraining.pretrained import Pretrained
from anomalib_msacl.pretraining.progress import show_stage, whole_bar
from anomalib_msacl.pretraining.questions import Score, draw_questions
from anomalib_msacl.pretraining.synthesis import Synthesis
from anomalib_msacl.pretraining.torch_model import MsaclTerms
from anomalib_msacl.pretraining.trainings import Trainings
from anomalib_msacl.recipe import Recipe

logger = logging.getLogger(__name__)

Images = NormalImages | Tensor | Iterable[Any]


def pretrain(
    encoder: Encoder,
    provenance: Provenance,
    images: Images,
    held_out: Images | None = None,
    recipe: Recipe | None = None,
    trainer: Trainer | None = None,
    checkpoints: Checkpoints | None = None,
) -> Pretrained:
    """Pre-train a backbone on normal images (MSACL, arXiv 2109.01303).

    Random numbers outside are left alone: the same seed gives the same weights.

    Args:
        encoder: Backbone and layers; changed in place. What of it is trained, the recipe says.
        provenance: Where its weights come from, as :func:`anomalib_msacl.backbone.create_backbone` tells. The weights
            are saved with the encoder's normalisation and the size of the images.
        images: Normal training images in [0, 1]: a tensor of shape ``(N, 3, H, W)``, or a loader or list of such
            batches.
        held_out: Other normal images, for the choice; without them the last step is kept.
        recipe: How to pre-train; the default if None.
        trainer: Makes the steps; one on this machine's best device if None. It is used once. For several devices every
            process calls this function, in one process group.
        checkpoints: Keeps the run on disk and lets it go on; nothing is kept if None.

    Returns:
        The backbone that is kept, and what it was compared with.

    Raises:
        InputError: If images or settings cannot work.

    Example:
        >>> from anomalib_msacl.backbone import create_backbone
        >>> model, provenance = create_backbone("test_resnet", "random")
        >>> images, held_out = torch.rand(8, 3, 64, 64), torch.rand(4, 3, 64, 64)
        >>> recipe = Recipe(max_steps=1, batch_size=4, accumulate=1)
        >>> found = pretrain(Encoder(model), provenance, images, held_out, recipe)
        >>> list(found.candidates)
        ['untouched', 'whitened', 'step 1']
    """
    recipe = Recipe.of(recipe)
    images = NormalImages.of(_of_the_kind(images, encoder), recipe.batch_size)
    held_out = _of_the_kind(held_out, encoder)
    run = Pretraining(encoder, provenance, recipe)
    check_thawed(encoder, recipe)
    trainer = trainer or make_trainer(recipe)
    check_trainer(trainer, recipe)
    with isolated_random(), whole_bar(trainer):
        torch.manual_seed(distributed.seed_of_process(recipe.seed))
        if recipe.max_steps or recipe.whitening.alone:
            run.to(trainer.strategy.root_device)
            begun = checkpoints.read() if checkpoints else None
            if begun:
                run.go_on(begun)
            show_stage(trainer, "first candidate")
            run.ask(images, held_out, goes_on=begun is not None)
            if not begun:
                show_stage(trainer, "whitening")
                run.whiten(images)
            if not recipe.whitening.alone:
                run.run_frozen_stages_apart()
                run.fix_centres(images)
                run.train(images, trainer, checkpoints)  # every so often the average with the start is a candidate
            show_stage(trainer, "choice")
            run.choose()
            run.realign(images)
    found = run.result()
    size = images.size or found.provenance.input_size  # none were looked at where there was nothing to do
    return replace(found, provenance=replace(found.provenance, input_size=size))


def _of_the_kind(images: Any, encoder: Encoder) -> Any:
    """Return a tensor of images as the weights are: of 32 bits for example, where NumPy has made 64 of them."""
    return images.to(encoder.mean.dtype) if isinstance(images, Tensor) and images.is_floating_point() else images


@contextmanager
def _own_seed() -> Iterator[None]:
    """Keep Lightning from seeding anew: on several devices it does where ``seed_everything`` has been called."""
    seed = os.environ.pop("PL_GLOBAL_SEED", None)
    try:
        yield
    finally:
        if seed is not None:
            os.environ["PL_GLOBAL_SEED"] = seed


class Pretraining:
    """A pre-training under way. Its methods, in this order, are the method.

    Args:
        encoder: Backbone and layers; changed in place.
        provenance: Where its weights come from.
        recipe: How to pre-train.

    Attributes:
        encoder: The backbone in its present state.
        terms: Projection, heads and terms.
        synthesis: Makes the images of all classes.
        choice: The candidates and their scores.
        trainings: What the trainings that are over have left.
        steps: Optimiser steps made so far.
    """

    def __init__(self, encoder: Encoder, provenance: Provenance, recipe: Recipe) -> None:
        self.encoder, self.recipe = encoder, recipe
        encoder.freeze(recipe.freeze.stride, recipe.freeze.batch_norm)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.terms = MsaclTerms(encoder, recipe)
        self.synthesis = Synthesis(recipe)
        self.choice = Choice()
        self.trainings = Trainings(recipe.trainings)
        self.steps = 0
        mean, std = encoder.normalisation
        self._initial = replace(provenance, layers=provenance.layers or tuple(encoder.layers), mean=mean, std=std)
        self._provenance = self._initial
        self._start: StateDict = {}

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.encoder.mean.device

    @property
    def provenance(self) -> Provenance:
        """What the present weights of the encoder were made for."""
        return self._provenance

    def to(self, device: torch.device) -> None:
        """Move the networks to a device."""
        self.encoder.to(device)
        self.encoder.use(torch.channels_last)  # convolutions are faster so
        self.terms.to(device)

    def ask(self, images: NormalImages, held_out: Images | None, goes_on: bool = False) -> None:
        """Draw the questions that all candidates are asked, the untouched backbone first.

        Args:
            images: Normal training images.
            held_out: Other normal images; None if there are none.
            goes_on: Whether a run is taken up; otherwise the present weights are the initial ones of a new run.
        """
        if not goes_on:  # what an earlier fit of the same model has left does not count
            self.choice, self.trainings, self.steps = Choice(), Trainings(self.recipe.trainings), 0
            self._initial, self._start = self._provenance, {}
            self.terms.centring.release()
        self._start = self._start or copy_of(self.encoder.backbone)
        if self.recipe.choice.evaluations == 0:
            return
        others = None if held_out is None else NormalImages.of(held_out, self.recipe.batch_size)
        self.choice.questions = draw_questions(images, others, self.recipe)
        if self.choice.questions is None:
            logger.warning("MSACL: no held-out normal images, so the last step is kept unseen; set a validation split.")
        elif not self.choice.scores:
            self._consider(UNTOUCHED, self._start)

    def whiten(self, images: NormalImages) -> None:
        """1. Whiten the feature maps on normal images; training starts from there."""
        settings = self.recipe.whitening
        self._provenance = replace(self._initial, layers=tuple(self.encoder.layers), feature_std=None)
        if not settings.std:
            return
        names = whiten(self.encoder, images.batches(settings.images, self.device), settings.std)
        if not names:
            with isolated_random():
                std = deviation(self.encoder, images.batches(settings.images, self.device))
            # The weights that are saved are brought from this deviation to the one asked for.
            self._provenance = replace(self._provenance, feature_std=std)
            logger.info(
                "MSACL: the stages of %s cannot be whitened, which needs a linear end or a ReLU%s.",
                self._initial.architecture,
                "" if std is None else "; only their scale is changed, in the weights that are saved",
            )
            return
        logger.info("MSACL: the feature maps of %s are whitened on normal images.", ", ".join(names))
        self._provenance = replace(self._provenance, feature_std=settings.std)
        self._start = copy_of(self.encoder.backbone)
        self._consider(WHITENED, self._start)

    def run_frozen_stages_apart(self) -> None:
        """Let the stages that are frozen run on their own, which is faster; they must not change from here on."""
        self.encoder.frozen = FrozenStages(self.encoder)

    @torch.no_grad()
    def fix_centres(self, images: NormalImages) -> None:
        """Fix the class centres ``c_n = E f_theta0(a(x))``, once in a run, if a term looks at them."""
        if not self.terms.needs_centres:
            return
        features, labels = [], []
        for batch in images.batches(self.recipe.loss.centre_images, self.device):
            synthetic = self.synthesis(batch)
            with evaluating(self.encoder):
                features.append(self.terms.embed(self.encoder, synthetic.images))
            labels.append(synthetic.classes)
        mine = torch.cat(features) if features else self.terms.centring.centres[:0]
        classes = torch.cat(labels) if labels else torch.zeros(0, dtype=torch.long, device=self.device)
        self.terms.centring.fix(distributed.gather(mine), distributed.gather(classes))
        distributed.copy_from_main(self.terms)

    def train(self, images: NormalImages, trainer: Trainer, checkpoints: Checkpoints | None = None) -> None:
        """2. Train on images of all classes; candidates are compared on the way."""
        parts = (self.encoder, self.terms, self.synthesis, self.recipe, images, self, checkpoints)
        path = None
        if checkpoints is not None:
            checkpoints.state = self.state_dict
            path = checkpoints.path if checkpoints.resumed else None
        module = PretrainingModule(*parts)
        try:
            with _own_seed():
                trainer.fit(module, train_dataloaders=images.shared(), ckpt_path=path, weights_only=True)
        except SystemExit as stopped:  # by a signal: Lightning has ended the training, after SIGTERM with status 0
            tell_stopped(stopped, trainer.global_step, checkpoints)
            raise
        self.to(trainer.strategy.root_device)  # Lightning moves a trained module back to the CPU

    def begin_training(self, step: int, total: float) -> bool:
        """Begin the next of several trainings, with the weights of before the first step, if the last one is over.

        Args:
            step: Optimiser steps made so far.
            total: Steps that will be made; infinite if unknown.

        Returns:
            Whether weights were set back.
        """
        return self.trainings.begin(step, total, self.encoder.backbone, self.terms, self._start)

    def consider(self, step: int, total: float) -> Score | None:
        """3. Average the weights of the trainings with those of before: a candidate, compared where it is due.

        Args:
            step: Optimiser steps made so far.
            total: Steps that will be made; infinite if unknown.

        Returns:
            Its score; None where none was due.
        """
        self.steps = step
        if self.choice.questions is None or not is_due(self.recipe.choice.evaluations, step, total):
            return None
        return self._consider(step_name(step), self._average())

    def choose(self) -> None:
        """4. Keep the last candidate unless another is clearly better."""
        if self.steps and same(copy_of(self.encoder.backbone), self._start):
            logger.warning(
                "MSACL: the %d steps have left the weights as they were; if trainer.precision is 16-mixed, which skips "
                "steps of infinite gradients, take bf16-mixed or 32-true.",
                self.steps,
            )
        last, average = self._last_name(), self._average()
        if self.choice.questions is not None and last not in self.choice.scores:  # stopped early
            self._consider(last, average)
        self.encoder.backbone.load_state_dict(self.choice.decide(last, average))
        self.choice.kept = distributed.on_main(lambda: self.choice.kept)
        distributed.copy_from_main(self.encoder.backbone)
        if self.encoder.frozen is not None and not self.encoder.frozen.fits(self.encoder):
            self.encoder.frozen = None  # it is the untouched backbone again
        if self.choice.kept == UNTOUCHED:
            self._provenance = self._initial
        logger.info("%s", self.choice.verdict())

    def realign(self, images: NormalImages) -> None:
        """5. Let the stages behind the layers be those of before, where the dense term has changed what they read."""
        moved = self.steps > 0 and self.choice.kept not in {UNTOUCHED, WHITENED}
        if not (self.recipe.realign and self.recipe.loss.dense and moved):
            return
        before = copy.deepcopy(self.encoder)
        before.backbone.load_state_dict(self._start)
        batches = images.batches(self.recipe.whitening.images, self.device)
        explained = realign(self.encoder, before, batches)
        if explained is not None:
            logger.info("MSACL: the stages behind the layers read %.0f %% of what they did before.", 100 * explained)

    def result(self) -> Pretrained:
        """Return what has come of it."""
        self.encoder.frozen = None
        self.encoder.use(torch.contiguous_format)
        return Pretrained(
            self.encoder,
            self._provenance,
            self.recipe,
            self.steps,
            dict(self.choice.scores),
            self.choice.kept,
            self.choice.verdict(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors of a run that is to go on later; networks are not among them."""
        provenance = {**self._provenance.own_entry(), **self._provenance.pretrained_cfg()}
        parts = {"choice": self.choice.state_dict(), "trainings": self.trainings.state_dict()}
        return {**parts, "start": self._start, "steps": self.steps, "made_for": provenance}

    def load_state_dict(self, state: dict[str, Any], goes_on: bool) -> None:
        """Restore what :meth:`state_dict` returned.

        Args:
            state: What it returned.
            goes_on: Whether the run goes on; otherwise the restored weights are the initial ones from now on.
        """
        self.choice.load_state_dict(state["choice"])
        if "trainings" in state:  # versions before 0.3.0 made one
            self.trainings.load_state_dict(state["trainings"])
        self._start, self.steps, made_for = state["start"], state["steps"], state["made_for"]
        layers, std = tuple(made_for["layers"]), made_for["feature_std"]
        self._provenance = replace(self._provenance, layers=layers, feature_std=std)
        if not goes_on:
            self._initial = self._provenance

    def go_on(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up a run at a checkpoint of :class:`PretrainingModule`; the optimiser is Lightning's to restore."""
        self.load_state_dict(checkpoint[STATE], goes_on=True)
        for prefix, module in (("encoder.", self.encoder), ("terms.", self.terms)):
            tensors = checkpoint["state_dict"].items()
            module.load_state_dict({n.removeprefix(prefix): value for n, value in tensors if n.startswith(prefix)})

    def _last_name(self) -> str:
        """Return the name of the candidate that the encoder is now."""
        if self.steps:
            return step_name(self.steps)
        return WHITENED if WHITENED in self.choice.scores else UNTOUCHED

    def _average(self) -> StateDict:
        """Return the average of the weights before the first step and the mean of those of the trainings."""
        present, share = self.trainings.mean(copy_of(self.encoder.backbone), self.steps), self.recipe.average
        if share is None:
            share = 0.25 if is_transformer(self.encoder.backbone) else 0.5
        if share == 1 or not self.steps:  # weights that are not finite must not come back through 0 * inf either
            return present
        return {
            name: torch.lerp(self._start[name], tensor, share) if tensor.is_floating_point() else tensor
            for name, tensor in present.items()
        }

    def _consider(self, name: str, weights: StateDict) -> Score | None:
        """Score a candidate; the encoder keeps its present weights."""
        if self.choice.questions is None:
            return None
        backbone, present = self.encoder.backbone, copy_of(self.encoder.backbone)
        backbone.load_state_dict(weights)
        self.choice.consider(name, self.encoder, weights, self.device)
        backbone.load_state_dict(present)
        return self.choice.scores[name]
