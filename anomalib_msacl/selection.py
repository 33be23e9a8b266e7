"""Choice of the weights to keep: held-out normal images with lesions, the untouched backbone among the candidates."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple, Protocol, cast

import torch
from anomalib.data import ImageBatch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc

from anomalib_msacl.encoder import Encoder, evaluating
from anomalib_msacl.lesions import FAMILIES, MedMix
from anomalib_msacl.losses import cells
from anomalib_msacl.normality import patch_features
from anomalib_msacl.recipe import Recipe

logger = logging.getLogger(__name__)

UNTOUCHED = -1  # the "step" of the backbone before it was whitened

_CHUNK = 32
_BANK = 4096
_ROWS = 8192  # patches compared with the bank at once
_LESIONS = 2  # copies of each held-out image with lesions
_RESAMPLES = 200
_FEWEST = 5  # held-out images that a standard error can be told from
_CLEARLY = 2.0  # standard errors


class Score(NamedTuple):
    """How well normal patches tell lesions apart.

    Attributes:
        image_auroc: AUROC of images, in [0, 1]; what the choice goes by: the mean of that of their farthest patches,
            which sees focal lesions, and that of the mean distance of their patches, which sees diffuse ones.
        pixel_auroc: AUROC of patches, in [0, 1], for information: it prefers features that real lesions do not.
        distances: The two distances of each image, normal ones first, shape ``(2, M + L)``; None if not finite.
    """

    image_auroc: float
    pixel_auroc: float
    distances: Tensor | None = None

    @property
    def held_out(self) -> int | None:
        """Number of held-out normal images; None without distances."""
        return None if self.distances is None else self.distances.shape[1] // (1 + _LESIONS)


def standard_error(first: Score, second: Score) -> float:
    """Return the standard error of the difference of two image AUROC, by a bootstrap over the normal images.

    Args:
        first: Score of one candidate.
        second: Score of another, on the same questions.

    Returns:
        At least 0; 0 where a score has no distances, infinite where there are too few images to tell.
    """
    if first.distances is None or second.distances is None:
        return 0.0
    copies = 1 + _LESIONS  # the lesion images are copies of the normal ones, in the same order
    images = cast("int", first.held_out)
    if images < _FEWEST or first.distances.shape != second.distances.shape:
        return math.inf
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * images + [1] * images * _LESIONS)
    differences = []
    for _ in range(_RESAMPLES):
        drawn = torch.randint(images, (images,), generator=generator)
        rows = torch.cat([drawn + images * copy for copy in range(copies)])
        one, other = (_auroc(score.distances[:, rows], labels) for score in (first, second))  # type: ignore[index]
        differences.append(one - other)
    return float(torch.stack(differences).std())


def _auroc(distances: Tensor, labels: Tensor) -> Tensor:
    """Return the mean AUROC of several distances of the same images, shape ``(K, N)``."""
    return torch.stack([binary_auroc(distance, labels) for distance in distances]).mean()


class Probe:
    """A small PatchCore on held-out images: distance of patches to the nearest of a random bank of normal patches.

    Lesions are of the families that are not trained with: what the training has seen would flatter it. Images, lesions
    and the places of the bank are drawn once, so that all candidates face the same questions.

    Args:
        bank: Normal training images in [0, 1], shape ``(N, 3, H, W)``.
        held_out: Other normal images, shape ``(M, 3, H, W)``.
        recipe: Its families, MedMix settings and seed are used.
    """

    def __init__(self, bank: Tensor, held_out: Tensor, recipe: Recipe) -> None:
        generator = torch.Generator().manual_seed(recipe.seed)
        counts = torch.arange(_LESIONS * len(held_out)) % (recipe.classes - 1) + 1
        unseen = [name for name in FAMILIES if name not in recipe.families] or recipe.families
        copies = held_out.repeat(_LESIONS, 1, 1, 1)
        lesions = MedMix(**recipe.medmix).among(unseen).synthesize(copies, counts, generator)
        self.bank = bank
        self.images = torch.cat([held_out, lesions.image])
        self.masks = torch.cat([torch.zeros_like(held_out[:, :1]), lesions.mask])
        self.labels = (torch.arange(len(self.images)) >= len(held_out)).long()
        self.order = torch.rand(1 << 20, generator=generator)

    @torch.no_grad()
    def score(self, encoder: Encoder, device: torch.device) -> Score:
        """Return the score of an encoder; its training mode is left as it was."""
        with evaluating(encoder):
            maps = self._patches(encoder, self.bank, device)
            bank = maps.flatten(0, 2)
            bank = bank[self.order[: len(bank)].argsort()[:_BANK].to(device)]
            distances = [
                torch.cdist(rows, bank).amin(dim=-1)
                for chunk in _chunks(self.images)
                for rows in torch.split(self._patches(encoder, chunk, device).flatten(0, 2), _ROWS)
            ]
        distance = torch.cat(distances).reshape(len(self.images), -1).cpu()
        if not distance.isfinite().all():
            logger.warning("MSACL: the features are not finite any more; try a smaller learning_rate.")
            return Score(0.0, 0.0)  # never the best
        masks = cells(self.masks, maps.movedim(-1, 1)).flatten(1) > 0.5
        # torchmetrics takes scores outside [0, 1] for logits and saturates: bring them into it, order untouched.
        distance = distance / distance.max().clamp_min(1e-12)
        images = torch.stack([distance.amax(dim=1), distance.mean(dim=1)])
        pixel = binary_auroc(distance.flatten(), masks.flatten().long())
        return Score(float(_auroc(images, self.labels)), float(pixel), images)

    @staticmethod
    def _patches(encoder: Encoder, images: Tensor, device: torch.device) -> Tensor:
        """Return patch features, shape ``(N, h, w, C)``."""
        parts = [patch_features(encoder(chunk.to(device), pooled=False)[0]) for chunk in _chunks(images)]
        return torch.cat(parts).movedim(1, -1)


class Pretrainable(Protocol):
    """What :class:`KeepBest` needs of a Lightning module."""

    recipe: Recipe

    @property
    def encoder(self) -> Encoder:
        """The encoder whose backbone is chosen."""

    def prepare(self, images: Tensor) -> Tensor:
        """Bring images of the datamodule to the model's size, in [0, 1]."""

    def backbone_chosen(self, replaced: bool) -> None:
        """Told that the backbone is final, and whether it is another than that of the last step."""


class KeepBest(Callback):
    """Compare the backbone at several steps, and keep the last one unless another is clearly better.

    A candidate is the average of the weights before the first step and of those at a step, as ``recipe.average`` says.
    The untouched backbone takes part. Clearly means: the image AUROC of the best candidate is above that of the last
    step by more than two standard errors of their difference. So pre-training that harms is not kept, nor training
    given up for noise. The choice is made after the last step, before the checkpoint is written and before the last
    validation.

    Attributes:
        history: Scores by step; -1 is the untouched backbone if it was whitened for step 0.
        best_step: Step of the best score so far, and in the end that of the weights that are kept; None before the
            first comparison.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.history: dict[int, Score] = {}
        self.best_step: int | None = None
        self._start: dict[str, Tensor] = {}
        self._best: dict[str, Tensor] = {}
        self._probe: Probe | None = None
        self._seen = -1
        self._settled = False

    @property
    def start(self) -> dict[str, Tensor]:
        """Weights before the first step, whitened if the recipe says so; empty before training."""
        return self._start

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors, so that a resumed run goes on choosing."""
        history = {step: tuple(score) for step, score in self.history.items()}
        return {"history": history, "best_step": self.best_step, "best": self._best, "start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.history = {int(step): Score(*score) for step, score in state_dict["history"].items()}
        self.best_step, self._best, self._start = (state_dict[name] for name in ("best_step", "best", "start"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the questions and put the untouched backbone to them."""
        module = cast("Pretrainable", pl_module)
        self._seen, self._settled = trainer.global_step, False
        self._start = self._start or _state(module)
        if self.recipe.evaluations == 0:
            return
        bank = _collect(trainer.train_dataloader, module, self.recipe.evaluation_images)
        held_out = held_out_images(trainer, module, self.recipe.evaluation_images)
        if bank is None or held_out is None:
            logger.warning("MSACL: no held-out normal images, so the last step is kept unseen; set a validation split.")
            return
        self._probe = Probe(bank, held_out, self.recipe)
        if not self.history:
            self._compare(trainer, pl_module)

    def whitened(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Told that the backbone was whitened before the first step, which starts from there."""
        self._start = _state(cast("Pretrainable", pl_module))
        if self._probe is not None:
            self.history = {UNTOUCHED: self.history.pop(trainer.global_step)}
            self.best_step = UNTOUCHED
            self._compare(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Compare when it is due; after the last step bring back the best."""
        del args
        step, total = trainer.global_step, trainer.estimated_stepping_batches
        if step == self._seen:  # gradients are accumulated: no new weights yet
            return
        self._seen = step
        last = step >= total
        if self._probe is not None:
            every = math.ceil(total / self.recipe.evaluations) if math.isfinite(total) else 25
            if last or step % every == 0:
                self._compare(trainer, pl_module)
                score = self.history[step]
                pl_module.log_dict(
                    {"held_out_image_auroc": score.image_auroc, "held_out_pixel_auroc": score.pixel_auroc}
                )
        if last:
            self._restore(trainer, pl_module)
            trainer.should_stop = True  # lets the last validation run when the steps end within an epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose all the same when training was stopped early; checkpoints of then do not have it."""
        if not self._settled:
            if self._probe is not None and trainer.global_step not in self.history:
                self._compare(trainer, pl_module)
            self._restore(trainer, pl_module)

    def _compare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the present candidate and remember it if it is the best."""
        step, module = trainer.global_step, cast("Pretrainable", pl_module)
        backbone, present = module.encoder.backbone, _state(module)
        candidate = self._average(present)
        backbone.load_state_dict(candidate)
        score = cast("Probe", self._probe).score(module.encoder, pl_module.device)
        backbone.load_state_dict(present)
        self.history[step] = score
        if self.best_step is None or score.image_auroc > self.history[self.best_step].image_auroc:
            self.best_step, self._best = step, candidate

    def _average(self, present: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the average of the weights before the first step and the present ones."""
        share = self.recipe.average
        if share == 1:  # weights that are not finite must not come back through 0 * inf either
            return present
        return {
            name: torch.lerp(self._start[name], tensor, share) if tensor.is_floating_point() else tensor
            for name, tensor in present.items()
        }

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose, bring the choice back and say what it is; without a comparison it is the last step."""
        module = cast("Pretrainable", pl_module)
        self._settled = True
        step = trainer.global_step
        if self._probe is None or self.best_step is None or not self._clearly_better(self.best_step, step):
            chosen = self._best = self._average(_state(module))
            self.best_step = step if step in self.history else None
            replaced = self.recipe.average != 1
        else:
            chosen, replaced = self._best, True
        logger.info("%s", self.verdict())
        if replaced:
            module.encoder.backbone.load_state_dict(chosen)
        module.backbone_chosen(replaced)

    def _clearly_better(self, step: int, last: int) -> bool:
        """Whether the score of a step is above that of the last one by more than two standard errors."""
        best, final = self.history[step], self.history[last]
        return best.image_auroc - final.image_auroc > _CLEARLY * standard_error(best, final)

    def verdict(self) -> str:
        """Return one sentence: which weights are kept, and what was compared."""
        if self.best_step is None:
            return "MSACL: nothing was compared; the weights of the last step are kept."
        first, last = min(self.history), max(self.history)
        untouched, kept = self.history[first], self.history[self.best_step]
        figures = (
            f"image AUROC {untouched.image_auroc:.3f} -> {kept.image_auroc:.3f}, pixel AUROC "
            f"{untouched.pixel_auroc:.3f} -> {kept.pixel_auroc:.3f} (untouched -> kept)"
        )
        if self.best_step == last:
            few = kept.held_out is not None and kept.held_out < _FEWEST
            reason = f"fewer than {_FEWEST} cannot tell which is better" if few else "none was clearly better"
            return (
                f"MSACL: the last step, {last}, is kept: {reason} on held-out normal images with synthetic lesions; "
                f"{figures}."
            )
        names = {0: "whitening without any step", first: "the untouched backbone"}
        return (
            f"MSACL: {names.get(self.best_step, f'step {self.best_step}')} is kept: on held-out normal images with "
            f"synthetic lesions it was clearly better than the last step, {last}, with an image AUROC of "
            f"{self.history[last].image_auroc:.3f}; {figures}."
        )


def _state(module: Pretrainable) -> dict[str, Tensor]:
    """Return a copy of the weights of the backbone, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.encoder.backbone.state_dict().items()}


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    """Split a batch into parts that fit into memory."""
    return torch.split(images, _CHUNK)


def normal_images(batch: ImageBatch) -> Tensor:
    """Return the images of a batch that are not labelled abnormal, as a plain tensor ``(N, 3, H, W)``."""
    images = cast("Tensor", batch.image).as_subclass(Tensor)
    return images if batch.gt_label is None else images[batch.gt_label == 0]


def held_out_images(trainer: Trainer, module: Pretrainable, number: int) -> Tensor | None:
    """Return normal images of the datamodule's validation set, prepared, on the CPU; None if there are none."""
    data: Any = getattr(trainer, "datamodule", None)
    return _collect(data.val_dataloader() if hasattr(data, "val_data") else None, module, number)


def undisturbed(loader: Any) -> Any:
    """Return a loader whose iteration does not disturb one under way: persistent workers serve one at a time."""
    if not getattr(loader, "persistent_workers", False) or loader.batch_sampler is None:
        return loader or ()
    return DataLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def _collect(loader: Any, module: Pretrainable, number: int) -> Tensor | None:
    """Return up to ``number`` normal images of a loader, prepared, on the CPU; None if there are none."""
    found: list[Tensor] = []
    for batch in undisturbed(loader):
        found += list(module.prepare(normal_images(batch)).cpu())
        if len(found) >= number:
            break
    return torch.stack(found[:number]) if found else None
