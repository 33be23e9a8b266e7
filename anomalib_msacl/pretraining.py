"""``Msacl``: MSACL pre-training as a model of anomalib."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.metrics import AUROC, AnomalibMetric, Evaluator
from anomalib.models.components.base import AnomalibModule
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_msacl.data.checks import check_datamodule, check_validation, image_paths
from anomalib_msacl.encoder import Encoder, evaluating
from anomalib_msacl.errors import InputError, show_input_errors_as_one_line
from anomalib_msacl.lesions import MINIMUM_SIDE, MedMix
from anomalib_msacl.model import LesionHead, MsaclModel, class_separation
from anomalib_msacl.recipe import Recipe
from anomalib_msacl.selection import UNTOUCHED, KeepBest, held_out_images, normal_images, undisturbed
from anomalib_msacl.views import WeakView
from anomalib_msacl.weights import architecture_of, check_target, create_backbone, for_each_channel, save_backbone
from anomalib_msacl.whitening import realign, rescale, whiten

logger = logging.getLogger(__name__)

_BEYOND = 0.2  # what resizing may add to [0, 1]
_WHITENING_IMAGES = 400
_BANK_IMAGES = 400
_HEAD_LEARNING_RATE = 1e-3
_HEAD_STEPS = 60


class Msacl(AnomalibModule):
    """MSACL (arXiv 2109.01303): pre-train a backbone on normal images with synthetic lesions.

    Training needs normal images only. The result is the backbone, saved in timm's folder format. Beside it, without
    influence on it, a bank of normal patches is kept, which scores images in ``test``, ``predict`` and after export,
    and a small lesion head is trained, which is one half of their maps.
    Validation looks at the normal images of the validation set and adds MedMix lesions to copies of them.

    Args:
        backbone: A timm name, ``local-dir:DIR`` or ``hf-hub:OWNER/NAME``.
        weights: Initial weights: ``timm``, ``torchvision``, ``offline``, ``random``, ``hf-hub:OWNER/NAME`` or a
            path; see :func:`anomalib_msacl.weights.create_backbone`.
        layers: Layers of the dense term and of the lesion head; chosen by stride if None.
        image_size: Side in pixels that images are resized to, unless ``pre_processor`` is given.
        recipe: How to pre-train.
        weights_dir: Where to save the backbone; ``weights/timm`` in the run's folder if None.
        mean: Normalisation; that of the initial weights if None.
        std: Normalisation; that of the initial weights if None.
        train_lesion_head: Train the lesion head and learn what normal patches look like, for scores of images; not
            needed where only the backbone is wanted.
        backbone_args: Further arguments of the architecture in timm, e.g. ``{"img_size": 392}``.
        pre_processor: Must not normalise: lesions are made on [0, 1], the model normalises itself.
        post_processor: As in anomalib.
        evaluator: As in anomalib.
        visualizer: As in anomalib.

    Raises:
        InputError: If backbone, weights, layers or recipe cannot work.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: str | None = None,
        layers: Sequence[str | int] | None = None,
        image_size: int = 256,
        recipe: Recipe | None = None,
        weights_dir: str | Path | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        train_lesion_head: bool = True,
        backbone_args: dict[str, Any] | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        show_input_errors_as_one_line()
        if pre_processor is True:
            pre_processor = self.configure_pre_processor((image_size, image_size))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.recipe = Recipe.of(recipe)
        self.save_hyperparameters({"recipe": self.recipe.plain()})  # loggers and checkpoints want plain data
        self.architecture = architecture_of(backbone)
        self.weights_dir = weights_dir
        self.train_lesion_head = train_lesion_head
        network, self.origin = create_backbone(backbone, weights, backbone_args)
        self.mean, self.std = for_each_channel(mean or self.origin.mean), for_each_channel(std or self.origin.std)
        encoder = Encoder(network, layers, self.mean, self.std, self.recipe.frozen_stride, self.recipe.train_batch_norm)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            self.model: MsaclModel = MsaclModel(encoder, self.recipe)
        self.lesions = _build(MedMix, "recipe.medmix", self.recipe.medmix).among(self.recipe.families)
        self.view = _build(WeakView, "recipe.view", self.recipe.view)
        self.selection = KeepBest(self.recipe)
        self._check_sizes()
        unknown = set(self.origin.layers) - {stage["module"] for stage in encoder.stages}
        if unknown:
            raise InputError(
                f"the weights {self.origin.description} say that they were made for the layer {min(unknown)!r}, which "
                f"{self.architecture} does not have; mend their entry msacl, or remove it."
            )
        # Layers that the present weights were made for, and the deviation of whitened maps down to the deepest of them.
        self.made_for = (list(self.origin.layers) or encoder.layers, self.origin.deviation)
        self._made_for_at_first = self.made_for
        mismatch = self.origin.mismatch(encoder.layers, self.mean, self.std, self.input_size)
        if mismatch:
            logger.warning("MSACL: %s", mismatch)

    @property
    def encoder(self) -> Encoder:
        """The backbone and its layers."""
        return self.model.encoder

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return a pre-processor that resizes and does not normalise."""
        return PreProcessor(transform=Compose([Resize(image_size or (256, 256), antialias=True)]))

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Return anomalib's default test metrics, and image and pixel AUROC for validation."""
        evaluator = AnomalibModule.configure_evaluator()
        image = AUROC(fields=["pred_score", "gt_label"], prefix="val_image_", strict=False)
        pixel = AUROC(fields=["anomaly_map", "gt_mask"], prefix="val_pixel_", strict=False)
        return Evaluator(
            val_metrics=[image, pixel], test_metrics=cast("list[AnomalibMetric]", list(evaluator.test_metrics))
        )

    def configure_callbacks(self) -> Sequence[Callback]:
        """Add the choice of the weights to anomalib's callbacks."""
        return [*cast("Sequence[Callback]", super().configure_callbacks()), self.selection]

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Batches to a step as in the recipe; no sanity check, for the centres are not known yet."""
        return {"num_sanity_val_steps": 0, "accumulate_grad_batches": self.recipe.accumulate}

    @property
    def learning_type(self) -> LearningType:
        """Normal images only."""
        return LearningType.ONE_CLASS

    def prepare(self, images: Tensor) -> Tensor:
        """Bring images of the datamodule to the model's size.

        Args:
            images: Values in [0, 1], shape ``(B, 3, H, W)``.

        Returns:
            The same, resized by the pre-processor.
        """
        transform = getattr(self.pre_processor, "transform", None)
        return cast("Tensor", transform(images)) if transform else images

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW or SGD with warm-up and cosine, per step; the lesion head has an optimiser rate of its own."""
        recipe = self.recipe
        head = {id(parameter) for parameter in self.model.lesion_head.parameters()}
        trained = [p for p in self.model.parameters() if p.requires_grad and id(p) not in head]
        groups: list[dict[str, Any]] = [
            {"params": trained},
            {"params": self.model.lesion_head.parameters(), "lr": _HEAD_LEARNING_RATE},
        ]
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay)
        else:
            optimizer = torch.optim.AdamW(groups, recipe.learning_rate, weight_decay=recipe.weight_decay)
        total = self.trainer.estimated_stepping_batches
        warmup = max(1, round(recipe.warmup * total)) if math.isfinite(total) else 100
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the recipe's norm unless the trainer names one: ``l_ctr`` diverges without."""
        value = self.recipe.gradient_clip if gradient_clip_val is None else gradient_clip_val
        clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
        for group in optimizer.param_groups:  # apart, so that the lesion head does not slow the backbone down
            clip(group["params"], value)

    def setup(self, stage: str) -> None:
        """Look at every image before any long work."""
        if stage != "fit":
            return
        self._check_trainer()
        check_target(self._target())
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, AnomalibDataModule):
            check_datamodule(datamodule)
            check_validation(datamodule, self.trainer)
            self._warn_of(datamodule)
        if self.trainer.max_steps == -1:  # the trainer names no steps of its own
            self.trainer.fit_loop.epoch_loop.max_steps = self.recipe.max_steps

    def on_fit_start(self) -> None:
        """Seed the pre-training: ``anomalib train --seed_everything`` of anomalib 2.7 has no effect."""
        torch.manual_seed(self.recipe.seed)

    def on_train_start(self) -> None:
        """Whiten, then compute the centres before the first step, once; a checkpoint brings both along."""
        if self.trainer.global_step:  # a resumed run does not repeat the draws of the first
            torch.manual_seed(self.recipe.seed + self.trainer.global_step)
        else:
            self.made_for = (self.encoder.layers, None)
            if self.recipe.whitening:
                self._whiten()
        needed = self.recipe.centring > 0 or self.recipe.contrastive > 0
        if needed and not self.model.centring.ready:
            self._fix_centres()

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Synthesise the classes of a batch and return the weighted sum of the terms."""
        normal = normal_images(batch)
        if batch_idx == 0 and self.trainer.global_step == 0:
            _check_range(normal)
        images, masks, classes, owners = self._synthesise(normal, self.recipe.views)
        terms, maps, z = self.model.terms(images, masks, classes, owners)
        loss = self.model.total(terms) if terms else images.new_zeros(())
        self.log_dict({f"train_{name}": value.detach() for name, value in terms.items()})
        self.log("train_loss", loss.detach(), prog_bar=True)
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        if z is not None:
            gap, spread = class_separation(z.detach(), classes)
            self.log_dict({"class_gap": gap, "class_spread": spread, "class_separation": gap / spread.clamp_min(1e-6)})
        if self.train_lesion_head:
            head = LesionHead.loss(self.model.lesion_head(maps), masks)
            self.log("train_lesion_head", head.detach())
            loss = loss + head
        return loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> ImageBatch:  # type: ignore[override]  # as in anomalib
        """Score the normal images of a batch and copies of them with MedMix lesions, the same in every epoch."""
        images = normal_images(batch)  # real lesions are not for choosing
        if len(images) == 0:
            return batch  # without predictions, which anomalib's metrics pass over
        counts = torch.arange(len(images)) % (self.recipe.classes - 1) + 1
        lesions = self.lesions.synthesize(images, counts, torch.Generator().manual_seed(batch_idx))
        images = torch.cat([images, lesions.image])
        masks = torch.cat([torch.zeros_like(lesions.mask), lesions.mask])[:, 0].bool()
        _replace(batch, image=images, gt_label=masks.flatten(1).any(dim=1), gt_mask=masks)
        return cast("ImageBatch", batch.update(**self.model(images)._asdict()))

    def on_train_end(self) -> None:
        """Save the backbone that was chosen."""
        self.save_weights(self._target(), getattr(self.trainer, "datamodule", None))

    def save_weights(self, directory: str | Path, datamodule: Any = None) -> Path:
        """Save the backbone in timm's folder format with a model card.

        Args:
            directory: Folder to write; an earlier one of weights is replaced.
            datamodule: What it was trained on, for the model card.

        Returns:
            The folder.
        """
        encoder, layers, deviation = self._finished()
        return save_backbone(
            encoder.backbone,
            self.architecture,
            directory,
            self._card(datamodule, layers, deviation),
            {**self._describe(), "tag": "msacl"},
            layers,
            self.origin.model_args,
            deviation,
        )

    def _describe(self) -> dict[str, Any]:
        """Return what timm's configuration says of weights: normalisation, input size and licence."""
        size = {"input_size": [3, *self.input_size]} if self.input_size else {}
        return {"mean": list(self.mean), "std": list(self.std), "license": self.origin.license, **size}

    def _finished(self) -> tuple[Encoder, list[str], float | None]:
        """Return the encoder with whitened maps of the deviation that is asked for, the layers it is made for, and it.

        The encoder is a copy if its maps have another deviation. Maps that were never whitened keep theirs, None.
        """
        layers, present = self.made_for
        wanted = self.recipe.deviation or self.recipe.whitening or present
        if present is None or wanted is None or wanted == present:
            return self.encoder, layers, present
        encoder = copy.deepcopy(self.encoder)
        rescale(encoder, wanted / present, layers)
        return encoder, layers, wanted

    def backbone_chosen(self, replaced: bool) -> None:
        """Realign the deep stages, train the lesion head anew if the layers are others, then learn what is normal.

        Args:
            replaced: Whether the backbone is not that of the last step.
        """
        untouched = UNTOUCHED if self.made_for[1] else 0
        if self.selection.best_step == untouched:
            self.made_for = self._made_for_at_first
        self._realign()
        if not self.train_lesion_head:
            return
        images = torch.cat([batch.cpu() for batch in self._training_images(_BANK_IMAGES)])
        if replaced:
            self._train_head(images)
        held_out = held_out_images(self.trainer, self, self.recipe.evaluation_images)
        if held_out is None or len(held_out) < 2:  # units need a spread, and the bank must not hold what sets them
            number = min(max(4, len(images) // 5), len(images) // 2)
            held_out, images = (images[:number], images[number:]) if number else (images, images)
        self.model.learn_normality(images, held_out)

    def _train_head(self, images: Tensor) -> None:
        """Train the lesion head on normal images in [0, 1] with lesions, shape ``(N, 3, H, W)``."""
        head = self.model.lesion_head
        optimizer = torch.optim.AdamW(head.parameters(), _HEAD_LEARNING_RATE)
        with torch.enable_grad():
            for _ in range(_HEAD_STEPS):
                chosen = images[torch.randperm(len(images))[: self.recipe.batch_size]].to(self.device)
                batch, masks, _, _ = self._synthesise(chosen, 1)
                with torch.no_grad(), evaluating(self.encoder):
                    maps = self.encoder(batch, pooled=False)[0]
                optimizer.zero_grad()
                torch.autograd.backward(LesionHead.loss(head(maps), masks))
                optimizer.step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep hyper-parameters plain, and free of files that may be gone when the checkpoint is loaded."""
        super().on_save_checkpoint(checkpoint)
        plain = {
            "backbone": self.architecture,
            "weights": "random",  # the checkpoint brings its own
            "mean": list(self.mean),
            "std": list(self.std),
            "layers": list(self.encoder.layers),
            "backbone_args": dict(self.origin.model_args),
        }
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], **plain}
        layers, deviation = self.made_for
        checkpoint["msacl"] = {**self._describe(), "layers": list(layers), "deviation": deviation}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what is known of the weights."""
        super().on_load_checkpoint(checkpoint)
        known = checkpoint.get("msacl", {"layers": self.encoder.layers, "deviation": None})
        self.made_for = (list(known["layers"]), known["deviation"])
        if self._trainer is None:  # not resumed: the weights of the checkpoint are the initial ones from now on
            self._made_for_at_first = self.made_for

    def _synthesise(self, images: Tensor, views: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return images, masks, classes and owners: every view of every image once with 0, 1, 2 ... lesions."""
        number = self.recipe.classes
        owners = torch.arange(len(images), device=images.device).repeat(views)
        weak = self.view(images.repeat(views, 1, 1, 1))
        classes = torch.arange(number, device=images.device).repeat(len(weak))
        output = self.lesions.synthesize(weak, classes.reshape(len(weak), number))
        return output.image, output.mask, classes, owners.repeat_interleave(number)

    def _whiten(self) -> None:
        """Whiten the feature maps and tell the choice of the weights that training starts from there."""
        names = whiten(self.encoder, self._training_images(_WHITENING_IMAGES), self.recipe.whitening)
        if names:
            logger.info("MSACL: the feature maps of %s are whitened on normal images.", ", ".join(names))
            self.made_for = (self.encoder.layers, self.recipe.whitening)
            self.selection.whitened(self.trainer, self)
        else:
            logger.info(
                "MSACL: the stages of %s cannot be whitened, which needs a linear end or a ReLU.", self.architecture
            )

    def _realign(self) -> None:
        """Let the stages behind the layers be those of before, where the dense term has changed what they read."""
        moved = self.selection.best_step not in {UNTOUCHED, 0}  # None: the last step, unseen
        if not (self.recipe.realign and self.recipe.dense and moved):
            return
        before = copy.deepcopy(self.encoder)
        before.backbone.load_state_dict(self.selection.start)
        explained = realign(self.encoder, before, self._training_images(_WHITENING_IMAGES))
        if explained is not None:
            logger.info("MSACL: the stages behind the layers read %.0f %% of what they did before.", 100 * explained)

    @torch.no_grad()
    def _fix_centres(self) -> None:
        """Fix ``c_n = E f_theta0(a(x))`` over training images."""
        features, labels = [], []
        for images in self._training_images(self.recipe.centre_images):
            synthetic, _, classes, _ = self._synthesise(images, 1)
            with evaluating(self.encoder):
                features.append(self.model.embed(synthetic))
            labels.append(classes)
        self.model.centring.fix(torch.cat(features), torch.cat(labels))

    def _training_images(self, number: int) -> Iterator[Tensor]:
        """Yield batches of normal training images in [0, 1], so many images at most."""
        for batch in undisturbed(self.trainer.train_dataloader):
            images = self.prepare(normal_images(batch).to(self.device))[:number]
            _check_range(images)
            yield images
            number -= len(images)
            if number <= 0:
                break

    def _check_sizes(self) -> None:
        """Refuse settings that cannot work before any data is read."""
        transform = getattr(self.pre_processor, "transform", None)
        if any(isinstance(part, Normalize) for part in transform_parts(transform)):
            raise InputError(
                "Msacl: the pre_processor normalises, but lesions are made on [0, 1] and the model normalises itself; "
                "leave Normalize out."
            )
        size = self.input_size
        if size and min(size) < MINIMUM_SIDE:
            raise InputError(
                f"Msacl: images of {size[0]} x {size[1]} pixels are smaller than a lesion; set an image_size of at "
                f"least {MINIMUM_SIDE}."
            )
        if size and self.recipe.max_steps:
            self._try_out(tuple(size))

    def _try_out(self, size: tuple[int, ...]) -> None:
        """Send one image through all that will be trained: what cannot work shall fail now."""
        recipe, image = self.recipe, torch.zeros(1, 3, *size)
        masks, classes = image[:, :1], torch.zeros(1, dtype=torch.long)
        with torch.enable_grad(), evaluating(self.encoder):  # whether a gradient would reach a weight is the question
            try:
                terms, maps, _ = self.model.terms(image, masks, classes, classes)
            except (AssertionError, RuntimeError, ValueError) as error:
                raise InputError(
                    f"the backbone {self.architecture!r} cannot take images of {size[0]} x {size[1]} pixels "
                    f"({str(error).splitlines()[0]}); set the size that it was built for, or name another backbone."
                ) from error
        dense = recipe.dense > 0 and any(layer.requires_grad for layer in maps)
        if not dense and not any(value.requires_grad for name, value in terms.items() if name != "dense"):
            raise InputError(
                f"nothing would be trained: with frozen_stride {recipe.frozen_stride} and layers "
                f"{', '.join(self.encoder.layers)} no term of the recipe reaches a weight; lower frozen_stride, name "
                "deeper layers or switch a term on."
            )

    def _warn_of(self, datamodule: AnomalibDataModule) -> None:
        """Say where a datamodule lets test images choose the weights, or makes steps of another size."""
        if not set(image_paths(datamodule, "val_data")).isdisjoint(image_paths(datamodule, "test_data")):
            logger.warning(
                "Msacl: validation and test share images, and the normal ones choose the weights and the units of the "
                "scores; set val_split_mode to from_train."
            )
        size = getattr(datamodule, "train_batch_size", self.recipe.batch_size)
        if size != self.recipe.batch_size:
            logger.info(
                "Msacl: batches have the train_batch_size of the datamodule, %d, which makes %d with lesions; the "
                "recipe was made for %d.",
                *(size, size * self.recipe.classes * self.recipe.views, self.recipe.batch_size),
            )

    def _check_trainer(self) -> None:
        """Refuse trainers that the pre-training cannot run on."""
        if self.trainer.world_size > 1:
            raise InputError(
                f"MSACL pre-training runs on one device, but the trainer has {self.trainer.world_size}; set "
                "trainer.devices to 1."
            )
        if str(self.trainer.precision).endswith("16-true"):
            raise InputError(
                f"MSACL pre-training cannot run in {self.trainer.precision}; set trainer.precision to 32-true, "
                "bf16-mixed or 16-mixed."
            )
        if self.recipe.max_steps == 0 and self.trainer.max_steps < 1:
            raise InputError("recipe.max_steps is 0, so Msacl has nothing to train; set it above 0.")

    def _target(self) -> Path:
        """Return the folder that the weights go to."""
        return Path(self.weights_dir or Path(self.trainer.default_root_dir) / "weights" / "timm")

    def _card(self, datamodule: Any, layers: list[str], deviation: float | None) -> str:
        """Return the model card of weights that were made for some layers, with whitened maps of this deviation."""
        steps = self.trainer.global_step if self._trainer else 0
        data = getattr(datamodule, "train_data", None)
        scores = "\n".join(
            f"| {step} | {score.image_auroc:.4f} | {score.pixel_auroc:.4f} |"
            for step, score in self.selection.history.items()
        )
        packages = ("anomalib-msacl", "anomalib", "torch", "timm", "lightning")
        versions = ", ".join(f"{name} {_version(name)}" for name in packages)
        table = f"| step | image AUROC | pixel AUROC |\n|---|---|---|\n{scores}\n" if scores else ""
        return _CARD.format(
            license=self.origin.license or "unknown",
            architecture=self.architecture,
            origin=self.origin.description,
            data=getattr(datamodule, "name", "unknown"),
            images="unknown" if data is None else len(data),
            layers=", ".join(layers),
            deviation="not whitened" if deviation is None else f"whitened, channels of deviation {deviation:g}",
            size=" x ".join(map(str, self.input_size or ())) or "unknown",
            mean=list(self.mean),
            std=list(self.std),
            steps=steps,
            verdict=self.selection.verdict()
            if steps
            else "No step was made: these are the initial weights, but for the scale of whitened maps.",
            table=table,
            recipe=json.dumps(self.recipe.plain(), indent=2),
            versions=versions,
        )


_CARD = """---
library_name: timm
license: {license}
tags: [anomaly-detection, self-supervised, msacl]
---
# {architecture}, pre-trained by MSACL

- initial weights: {origin}
- data: {data}, {images} normal training images
- input: {size} pixels, mean {mean}, std {std}
- layers: {layers}; feature maps down to the deepest: {deviation}
- steps made: {steps}; seed and settings: in the recipe below
- versions: {versions}

{verdict}

{table}
Load with `timm.create_model("local-dir:DIR", pretrained=True)`, or name `DIR` as `weights`.

```json
{recipe}
```
"""


def transform_parts(transform: Any) -> list[Any]:
    """Return the steps of a transform, however deep they are nested in ``Compose``."""
    if isinstance(transform, Compose):
        return [part for step in transform.transforms for part in transform_parts(step)]
    return [] if transform is None else [transform]


def _check_range(images: Tensor) -> None:
    """Refuse images that were normalised before they came here, or hold values that are not finite."""
    low, high = (float(limit) for limit in images.float().aminmax()) if images.numel() else (0.0, 1.0)
    if not -_BEYOND <= low <= high <= 1 + _BEYOND:
        raise InputError(
            f"MSACL: the training images have values from {low:.3g} to {high:.3g}, but lesions are made on [0, 1]; "
            "take Normalize, and what else leaves [0, 1], out of the augmentations and transforms. The pre_processor "
            "of a detector may have a Normalize of torchvision.transforms.v2."
        )


def _build(kind: Any, place: str, arguments: dict[str, Any]) -> Any:
    """Build an object from plain arguments, naming one that does not exist."""
    try:
        return kind(**arguments)
    except TypeError as error:
        raise InputError(f"{place}: {error}; see the arguments of {kind.__name__}.") from error


def _replace(batch: ImageBatch, **values: Tensor) -> None:
    """Put other images into a batch in place: anomalib's callbacks look at this very object."""
    for name in ("image_path", "mask_path", "pred_score", "anomaly_map", "pred_label", "pred_mask", "explanation"):
        if hasattr(batch, name):
            setattr(batch, name, None)
    for name, value in values.items():
        setattr(batch, name, value)


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


def _version(package: str) -> str:
    """Return the installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
