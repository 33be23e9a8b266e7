"""``MsaclPretraining``: pre-train the backbone of any anomalib model before the model is fitted."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from anomalib.data import AnomalibDataModule
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize

from anomalib_msacl.data.checks import check_datamodule, check_validation
from anomalib_msacl.data.samples import content_of
from anomalib_msacl.errors import InputError, show_input_errors_as_one_line
from anomalib_msacl.hand_over import PretrainedBackbone, check_kind, find_backbone
from anomalib_msacl.pretraining import Msacl, transform_parts
from anomalib_msacl.recipe import Recipe
from anomalib_msacl.weights import create_backbone, digest

logger = logging.getLogger(__name__)

if Path(sys.argv[0]).stem == "anomalib":  # anomalib's models are built before any object of this package
    show_input_errors_as_one_line()

_FORMAT = 5  # raise when weights of an older format must not be reused
_UNIT = 1.0


class MsaclPretraining(Callback):
    """Pre-train the model's own backbone by MSACL on the datamodule's training images, then hand it over.

    Everything else of anomalib stays as it is. The checkpoint is a plain anomalib checkpoint: build the model with
    ``backbone: NAME, pre_trained: false``, and it needs neither this package nor any weights folder to be tested,
    to predict or to be exported.

    Args:
        weights: Initial weights: ``timm``, ``torchvision``, ``offline``, ``random``, ``hf-hub:OWNER/NAME`` or a
            path; see :func:`anomalib_msacl.weights.create_backbone`. None takes those that the model was built with.
        recipe: How to pre-train.
        root: Folder for pre-trained weights. A run with the same images, recipe and initial weights reuses them.

    Raises:
        InputError: If data, weights or model cannot work; before any training.
    """

    def __init__(
        self,
        weights: str | None = None,
        recipe: Recipe | None = None,
        root: str | Path = "results/msacl",
    ) -> None:
        show_input_errors_as_one_line()
        self.weights = weights
        self.recipe = Recipe.of(recipe)
        self.root = Path(root)
        self.directory: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse models that are never fitted, for which :meth:`on_fit_start` would never be called."""
        del trainer, stage
        if isinstance(pl_module, AnomalibModule):
            check_kind(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pre-train and hand over; not in ``setup``, where a checkpoint to resume from is not known yet."""
        self.directory = None
        if trainer.ckpt_path is not None:
            logger.info("MSACL: resuming from a checkpoint, which brings its backbone along; nothing is pre-trained.")
            return
        if trainer.world_size > 1:
            raise InputError(
                f"MsaclPretraining runs on one device, but the trainer has {trainer.world_size}; set trainer.devices "
                "to 1, or pre-train by msacl_pretrain.yaml first and name the folder as weights."
            )
        with isolate_rng():  # whether weights are trained or reused, the detector draws the same numbers
            self._hand_over(trainer, *_known(pl_module, trainer))

    def _hand_over(self, trainer: Trainer, model: AnomalibModule, datamodule: AnomalibDataModule) -> None:
        """Check everything, find or make the weights, and put them into the model."""
        target = find_backbone(model)
        digests = check_datamodule(datamodule)
        msacl = self._msacl(model, target)
        if msacl.input_size:
            target.check_size(msacl.input_size)
        self.directory = (
            self.root / f"{msacl.architecture}-{self._key(msacl, datamodule, digests, trainer.precision)[:12]}"
        )
        if (self.directory / "config.json").is_file():
            logger.info("MSACL: same images, recipe and initial weights as before: reusing %s.", self.directory)
            backbone = create_backbone(msacl.architecture, str(self.directory), target.model_args)[0]
        else:
            target.fill(msacl.encoder.backbone)  # fails now or never
            self._pretrain(msacl, trainer, datamodule, digests)
            # The saved weights may have another scale than those that were trained.
            backbone = create_backbone(msacl.architecture, str(self.directory), target.model_args)[0]
        target.fill(backbone)
        logger.info(
            "MSACL: %s of %s has the weights of %s.", ", ".join(target.networks), type(model).__name__, self.directory
        )

    def _msacl(self, model: AnomalibModule, target: PretrainedBackbone) -> Msacl:
        """Build the pre-training model for the backbone, layers, size and normalisation of a model."""
        weights = self.weights or _weights_of(model, target)
        transforms = transform_parts(getattr(model.pre_processor, "transform", None))
        normalise = next((part for part in transforms if isinstance(part, Normalize)), None)
        resize = [part for part in transforms if not isinstance(part, Normalize)]
        return Msacl(
            backbone=target.architecture,
            weights=weights,
            layers=target.layers,
            recipe=self._recipe_for(model),
            weights_dir=None,
            mean=normalise.mean if normalise else (0.0, 0.0, 0.0),
            std=normalise.std if normalise else (1.0, 1.0, 1.0),
            train_lesion_head=False,
            backbone_args=dict(target.model_args),
            pre_processor=PreProcessor(transform=Compose(resize)) if resize else False,
            post_processor=False,
            evaluator=False,
            visualizer=False,
        )

    def _recipe_for(self, model: AnomalibModule) -> Recipe:
        """Return the recipe with the scale of feature maps that suits a model, unless the user names one.

        Memory banks and Gaussians do not mind small features, or want them: PaDiM's ridge. What learns a network on
        them does.
        """
        learns = not isinstance(model, MemoryBankMixin)
        return replace(self.recipe, deviation=_UNIT) if learns and self.recipe.deviation is None else self.recipe

    def _key(self, msacl: Msacl, datamodule: AnomalibDataModule, digests: dict[str, str], precision: str) -> str:
        """Return a hash of everything that the pre-trained weights follow from."""
        content = {
            "format": _FORMAT,
            "recipe": msacl.recipe.plain(),
            "precision": _precision(precision),
            "images": sorted(digests.values()),
            "initial": digest(msacl.encoder.backbone.state_dict()),
            "layers": msacl.encoder.layers,
            "made_for": list(msacl.made_for),
            "model_args": dict(msacl.origin.model_args),
            "normalisation": [list(msacl.mean), list(msacl.std)],
            "transforms": [repr(getattr(msacl.pre_processor, "transform", None)), repr(datamodule.train_augmentations)],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _pretrain(self, msacl: Msacl, outer: Trainer, datamodule: AnomalibDataModule, digests: dict[str, str]) -> None:
        """Pre-train with a trainer of its own and save the weights."""
        msacl.weights_dir = self.directory
        if self.recipe.max_steps == 0:
            msacl.save_weights(cast("Path", self.directory), datamodule)
            return
        images = _TrainingImages(datamodule, self.recipe, digests)
        logger.info(
            "MSACL: pre-training %s for %d steps on %d normal images, %d held out.",
            *(msacl.architecture, self.recipe.max_steps, len(images.train_data), len(images.val_data)),
        )
        device = outer.strategy.root_device
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=[device.index] if device.index is not None else 1,
            precision=_precision(outer.precision),
            max_steps=self.recipe.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=self.recipe.accumulate,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            logger=CSVLogger(self.root, name="logs", version=cast("Path", self.directory).name),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=outer.progress_bar_callback is not None,
            default_root_dir=self.root,
        )
        trainer.fit(msacl, datamodule=images)


class _TrainingImages(LightningDataModule):
    """The training images of a datamodule, a part of them held out for the choice of the weights.

    No more are held out than the choice looks at. Copies of held-out images are left out of the training: a choice on
    images that it has seen sees nothing.
    """

    def __init__(self, datamodule: AnomalibDataModule, recipe: Recipe, digests: dict[str, str]) -> None:
        super().__init__()
        self.name = datamodule.name
        self.recipe = recipe
        data = datamodule.train_data
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
        share = min(max(1, round(recipe.held_out * len(data))), recipe.evaluation_images) if recipe.evaluations else 0
        held_out, rest = order[:share], order[share:]
        content = content_of(data.samples, digests)
        seen = {content[index] for index in held_out}
        others = [index for index in rest if content[index] not in seen]
        if not others:
            logger.warning("MSACL: all training images are copies of held-out ones, so that the choice sees nothing.")
        elif len(others) < len(rest):
            logger.info("MSACL: %d copies of held-out images are not trained with.", len(rest) - len(others))
        self.val_data = data.subsample(sorted(held_out))
        self.train_data = data.subsample(sorted(others or rest))
        self.collate = datamodule.external_collate_fn or data.collate_fn
        self.workers = datamodule.num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        size = min(self.recipe.batch_size, len(self.train_data))
        return self._loader(self.train_data, batch_size=size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self._loader(self.val_data, batch_size=self.recipe.batch_size) if len(self.val_data) else []

    def _loader(self, data: Any, **options: Any) -> DataLoader[Any]:
        persistent = self.workers > 0
        return DataLoader(
            data, collate_fn=self.collate, num_workers=self.workers, persistent_workers=persistent, **options
        )


def _precision(precision: str) -> Any:  # one of Lightning's literals
    """Return the precision of the pre-training: that of the trainer, but with weights of 32 bits."""
    return "32-true" if precision.endswith("-true") else precision


def _known(pl_module: LightningModule, trainer: Trainer) -> tuple[AnomalibModule, AnomalibDataModule]:
    """Return model and datamodule, or say that one of them is not anomalib's."""
    datamodule = getattr(trainer, "datamodule", None)
    if isinstance(pl_module, Msacl):
        raise InputError("MsaclPretraining: Msacl pre-trains itself; leave the callback out.")
    if not isinstance(pl_module, AnomalibModule) or not isinstance(datamodule, AnomalibDataModule):
        raise InputError(
            f"MsaclPretraining needs a model and a datamodule of anomalib, but got {type(pl_module).__name__} and "
            f"{type(datamodule).__name__}; pass datamodule=... to the engine."
        )
    check_validation(datamodule, trainer)
    return pl_module, datamodule


def _weights_of(model: AnomalibModule, target: PretrainedBackbone) -> str | None:
    """Return the initial weights that a model was built with."""
    if not model.hparams.get("pre_trained", True):
        raise InputError(
            f"MsaclPretraining: {type(model).__name__} was built with pre_trained: false and the callback has no "
            "weights; give it weights: timm, offline or a folder, or random if that is meant."
        )
    # A folder named as the backbone, or a name on the hub, brings its own.
    return "torchvision" if target.library == "torchvision" else None
