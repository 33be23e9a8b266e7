"""How IGD is trained: two optimisers in turn, estimates of centre and deviation, and the choice of a stage."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any, cast

import torch
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import PolynomialLR

from anomalib_msacl.backbone.encoder import evaluating
from anomalib_msacl.compat import is_stopping
from anomalib_msacl.detectors.igd.autoencoder import Autoencoder
from anomalib_msacl.detectors.igd.checks import check_finite, tell_collapse, tell_dead_critic
from anomalib_msacl.detectors.igd.held_out import HeldOutImages, unit_images
from anomalib_msacl.detectors.igd.losses import LARGEST_SHARE
from anomalib_msacl.detectors.igd.thresholds import StageThresholds
from anomalib_msacl.detectors.igd.torch_model import IgdModel
from anomalib_msacl.pretraining.choice import Choice
from anomalib_msacl.recipe import Recipe

logger = logging.getLogger(__name__)

_BETAS = (0.0, 0.9)
_POWER = 0.9  # of the poly schedule
_STRIDE = 1_000_003  # keeps the seeds of epochs and steps of neighbouring runs apart
_SEEDS = 2**63


class IgdTraining:
    """The steps of a training.

    Args:
        model: What is trained.
        patches: Patches of an image in a step.
        flip: Flip images horizontally at random.
        update_every: Epochs between two estimates of centre and deviation.
        evaluations: Stages that are compared on held-out images.
        seed: Of everything that is drawn.

    Attributes:
        choice: Of a stage.
        thresholds: Those of each stage.
    """

    def __init__(
        self, model: IgdModel, patches: int, flip: bool, update_every: int, evaluations: int, seed: int
    ) -> None:
        self.model, self.patches, self.flip = model, patches, flip
        self.update_every, self.evaluations, self.seed = update_every, evaluations, seed
        self.choice, self.thresholds = Choice("Igd"), StageThresholds()
        self._first_epoch = 0
        self._epoch, self._compared = 0, -1  # the present one, from 1; number of the step that was compared last
        self._stage, self._decided = "", False  # name of the stage that was compared last
        self._spread: dict[str, list[Tensor]] = defaultdict(list)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out held-out images and the stages that were compared: an exported model shall not carry them."""
        return {**self.__dict__, "choice": Choice("Igd"), "_spread": defaultdict(list)}

    def optimizers(self, learning_rate: float, steps: int) -> tuple[list[Adam], list[PolynomialLR]]:
        """Return the optimisers of encoder and decoders, and of the critics, with their schedules.

        Args:
            learning_rate: At the first step.
            steps: After how many the rate is 0.
        """
        critics = {parameter for part in self.model.parts.values() for parameter in part.critic.parameters()}
        others = [parameter for parameter in self._trained() if parameter not in critics]
        own = [parameter for parameter in self._trained() if parameter in critics]
        optimizers = [Adam(group, learning_rate, betas=_BETAS) for group in (others, own)]
        return optimizers, [PolynomialLR(one, max(1, steps), _POWER) for one in optimizers]

    def prepare(self, module: AnomalibModule) -> None:
        """Collect the held-out images; without any, the last stage is kept."""
        self._decided, self._compared = False, -1
        if not module.current_epoch and module.trainer.ckpt_path is None:
            # What an earlier fit of the same model has left does not count.
            self.choice, self.thresholds = Choice("Igd"), StageThresholds()
        datamodule: Any = getattr(module.trainer, "datamodule", None)
        if not self.evaluations or not hasattr(datamodule, "val_data"):
            return
        number = Recipe().choice.images
        held_out = unit_images(module, datamodule.val_dataloader()).collect(number)
        if held_out is None:
            logger.warning("Igd: the validation set has no normal images to choose an epoch with; the last is kept.")
            return
        self.choice.questions = HeldOutImages(held_out, self.seed % _SEEDS)

    def seed_loader(self, module: AnomalibModule | None) -> None:
        """Let the order of the images depend on seed and epoch alone.

        The order is drawn when the loader is asked for its first batch: of the global numbers where there are workers,
        else of a generator of its own.

        Args:
            module: Has the trainer; None before the loader was made.
        """
        epoch = self._first_epoch if module is None else module.current_epoch
        seed = self._seed_of(epoch)
        torch.manual_seed(seed)
        loader: Any = None if module is None else module.trainer.train_dataloader
        if getattr(loader, "num_workers", 1) == 0 and hasattr(loader.sampler, "generator"):
            loader.sampler.generator = torch.Generator().manual_seed(seed)

    def start_epoch(self, module: AnomalibModule) -> None:
        """Estimate centre and deviation where it is time, and tell where something has collapsed."""
        self._epoch = module.current_epoch + 1
        self.seed_loader(module)
        if module.current_epoch % self.update_every:
            return
        self._estimate(module)
        for name, spreads in self._spread.items():
            tell_dead_critic(name, float(torch.stack(spreads).mean()))
        self._spread.clear()
        self.seed_loader(module)

    def step(self, module: AnomalibModule, images: Tensor, batch_idx: int) -> None:
        """Make one step of each optimiser.

        Args:
            module: Has the optimisers, and logs the terms.
            images: Normalised, shape ``(B, 3, H, W)``.
            batch_idx: Number of the batch in its epoch.
        """
        if not len(images):
            return
        generator = self._generator(module, batch_idx)
        others, critics = cast("Any", module.optimizers())
        found = self._parts(images, generator, flip=self.flip)
        steps = {}
        for name, (part, inputs, features) in found.items():
            share = LARGEST_SHARE * torch.rand(len(inputs), generator=generator).to(images.device)
            steps[name] = part.step(inputs, features, share)
        loss = torch.stack([step.total for step in steps.values()]).sum()
        check_finite(loss, module.current_epoch)
        others.zero_grad()
        module.manual_backward(loss)
        others.step()
        told = {name: found[name][0].critic_step(step) for name, step in steps.items()}
        critic_loss = torch.stack([value for value, _ in told.values()]).sum()
        check_finite(critic_loss, module.current_epoch)
        critics.zero_grad()  # the step before has left gradients here
        module.manual_backward(critic_loss)
        critics.step()
        for name, (_, spoken) in told.items():
            if spoken is not None:
                self._spread[name].append(spoken.std(correction=0))
        for schedule in cast("Any", module.lr_schedulers()):
            schedule.step()
        terms = {f"{name}_{term}": value for name, step in steps.items() for term, value in step.terms.items()}
        terms |= {"loss": loss, "critic_loss": critic_loss}
        module.log_dict({name: value.detach() for name, value in terms.items()}, on_epoch=True, batch_size=len(images))

    def end_batch(self, module: AnomalibModule, batch_idx: int) -> None:
        """After the last batch of an epoch, compare its stage where one is due; at the end of the training choose."""
        trainer, epoch = module.trainer, self._epoch
        over = is_over(trainer)
        if self._decided or (batch_idx + 1 < trainer.num_training_batches and not over):
            return
        last = over or epoch == trainer.max_epochs
        epochs = _epochs(trainer)
        if last or epoch * self.evaluations // epochs > (epoch - 1) * self.evaluations // epochs:
            name = self._compare(module)
            if name in self.choice.scores:
                module.log("held_out_image_AUROC", self.choice.scores[name].image_auroc)
        if last:
            self.choose(module)

    def end_validation(self, module: AnomalibModule) -> None:
        """Keep the thresholds of a stage that was compared."""
        present = self._stage if self._compared == module.global_step else None
        self.thresholds.keep(module, self.choice.kept if self._decided else present)

    def choose_where_over(self, module: AnomalibModule) -> None:
        """Choose after the last step, or where training was told to stop: before a checkpoint is saved."""
        if is_over(module.trainer):
            self.choose(module)

    def choose(self, module: AnomalibModule) -> None:
        """Keep the stage that was chosen; once. The present one takes part, wherever the training has ended."""
        if self._decided:
            return
        if self._compared != module.global_step:
            self._compare(module)
        if not self.choice.scores:
            return
        self._decided = True
        last = next(reversed(self.choice.scores))
        chosen = self.choice.decide(last, self._weights())
        if self.choice.kept != last:
            self.model.load_state_dict(chosen, strict=False)  # a frozen encoder is not among them
            self.thresholds.restore(module, str(self.choice.kept))
        logger.info(self.choice.verdict())

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors, so that a resumed run goes on choosing."""
        return {**self.choice.state_dict(), "thresholds": self.thresholds.state_dict()}

    def load_state_dict(self, state: dict[str, Any], epoch: int) -> None:
        """Restore what :meth:`state_dict` returned, before the run goes on with an epoch."""
        self.choice.load_state_dict(state)
        self.thresholds.load_state_dict(state.get("thresholds", {}))  # version 0.2.0 kept none
        self._first_epoch = epoch

    def _compare(self, module: AnomalibModule) -> str:
        """Compare the present stage, and return its name."""
        self._stage, self._compared = f"epoch {self._epoch}", module.global_step
        self.choice.consider(self._stage, self.model, self._weights(), module.device)
        return self._stage

    def _trained(self) -> list[Tensor]:
        frozen = set(self.model.feature_extractor.parameters()) if self.model.frozen else set()
        return [parameter for parameter in self.model.parameters() if parameter not in frozen]

    def _weights(self) -> dict[str, Tensor]:
        """Return a copy of everything that training changes."""
        skip = "feature_extractor." if self.model.frozen else "-"
        state = self.model.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items() if not name.startswith(skip)}

    @torch.no_grad()
    def _estimate(self, module: AnomalibModule) -> None:
        """Estimate centre and deviation of both parts from the training images as they are."""
        generator = self._generator(module, -1)
        found: dict[str, list[Tensor]] = defaultdict(list)
        with evaluating(self.model):  # training images shall not move the statistics of BatchNorm twice
            loader: Any = module.trainer.train_dataloader
            for images in unit_images(module, loader).batches(len(loader.dataset), module.device):
                if len(images):
                    normalised = self.model.normalisation(images)
                    for name, (part, _, features) in self._parts(normalised, generator, flip=False).items():
                        found[name].append(part.project(features))
        for name, batches in found.items():
            tell_collapse(name, self.model.parts[name].classifier.fit(batches))

    def _parts(
        self, images: Tensor, generator: torch.Generator, flip: bool
    ) -> dict[str, tuple[Autoencoder, Tensor, Tensor]]:
        """Return each part with its images, whole ones or patches drawn at random, and their features."""
        if flip:
            turned = torch.rand(len(images), generator=generator).to(images.device) < 0.5
            images = torch.where(turned[:, None, None, None], images.flip(-1), images)
        inputs = {"whole": images}
        if self.model.patch is not None:
            cut = self.model.grid.cut(images)
            order = torch.rand(cut.shape[:2], generator=generator).argsort(dim=1)[:, : self.patches].to(images.device)
            rows = torch.arange(len(cut), device=images.device)[:, None]
            # Neighbours in the batch shall be patches of different images: interpolation takes the batch reversed.
            inputs["patch"] = cut[rows, order].transpose(0, 1).flatten(0, 1)
        parts = self.model.parts
        return {name: (parts[name], shown, self.model.features(shown)) for name, shown in inputs.items()}

    def _generator(self, module: AnomalibModule, batch_idx: int) -> torch.Generator:
        """Return the numbers of one step, the same whether or not the run was interrupted before it."""
        step = module.current_epoch * (int(module.trainer.num_training_batches) + 1) + batch_idx + 1
        return torch.Generator().manual_seed(self._seed_of(step))

    def _seed_of(self, number: int) -> int:
        """Return a seed that torch takes for an epoch or a step, whatever whole number the run's own is."""
        return (self.seed * _STRIDE + number) % _SEEDS


def total_steps(trainer: Trainer) -> int:
    """Return how many batches a training will have; Lightning counts a step of each optimiser."""
    epochs = trainer.max_epochs or -1
    if epochs == -1:  # the loader need not have been made yet
        return trainer.max_steps // 2
    batches = epochs * int(trainer.num_training_batches)
    return batches if trainer.max_steps == -1 else min(batches, trainer.max_steps // 2)


def is_over(trainer: Trainer) -> bool:
    """Return whether a training has made its last step, or was told to stop."""
    steps, epochs = trainer.global_step, trainer.max_epochs or -1
    of_epochs = 2 * epochs * trainer.num_training_batches  # one of each optimiser
    return -1 < trainer.max_steps <= steps or -1 < of_epochs <= steps or is_stopping(trainer)


def _epochs(trainer: Trainer) -> int:
    """Return how many epochs a training will have."""
    if trainer.max_steps == -1:
        return int(trainer.max_epochs or 1)
    epochs = -(-trainer.max_steps // (2 * int(trainer.num_training_batches)))
    most = trainer.max_epochs or -1
    return epochs if most == -1 else min(epochs, most)
