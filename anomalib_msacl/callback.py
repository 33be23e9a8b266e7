"""``MsaclPretraining``: pre-train the backbone of any anomalib model before the model is fitted."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule
from anomalib.models.components import AnomalibModule, MemoryBankMixin
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.v2 import Compose, Normalize

from anomalib_msacl import distributed
from anomalib_msacl.backbone import Encoder, Provenance, create_backbone
from anomalib_msacl.backbone.folder import check_name, check_place, is_intact, remove_leftovers
from anomalib_msacl.backbone.sources import parse_source
from anomalib_msacl.backbone.tensors import digest
from anomalib_msacl.checkpoints import keep_tiling
from anomalib_msacl.compat import has_trained_to_its_end, inner_trainer, isolated_random
from anomalib_msacl.data.checks import check_datamodule, check_validation
from anomalib_msacl.data.looks import SEEN
from anomalib_msacl.data.samples import content_of
from anomalib_msacl.detectors.msacl import Msacl
from anomalib_msacl.errors import InputError, show_in_one_line
from anomalib_msacl.paths import at_home
from anomalib_msacl.pretraining.checkpoints import Checkpoints
from anomalib_msacl.pretraining.devices import devices_of
from anomalib_msacl.pretraining.fingerprint import fingerprint
from anomalib_msacl.pretraining.images import NormalImages
from anomalib_msacl.pretraining.lightning_model import make_trainer
from anomalib_msacl.pretraining.locking import alone_with
from anomalib_msacl.pretraining.loggers import Curves, UnderPrefix, tell_choice
from anomalib_msacl.pretraining.messages import each_message_once
from anomalib_msacl.pretraining.pipeline import pretrain
from anomalib_msacl.pretraining.preparation import check_devices, check_trainable, encoder_for, transform_parts
from anomalib_msacl.pretraining.progress import StepsBar
from anomalib_msacl.recipe import Recipe
from anomalib_msacl.transfer import PretrainedBackbone, check_kind, find_backbone

logger = logging.getLogger(__name__)

_FORMAT = 9  # raise when weights of an older format must not be reused
_UNIT = 1.0


class MsaclPretraining(Callback):
    """Pre-train the model's own backbone by MSACL on the datamodule's training images, then hand it over.

    Everything else of anomalib stays as it is. The checkpoint is a plain anomalib checkpoint: build the model with
    ``backbone: NAME, pre_trained: false``, and it needs neither this package nor any weights folder to be tested,
    to predict or to be exported.

    Args:
        weights: Initial weights: ``timm``, ``torchvision``, ``offline``, ``random``, ``hf-hub:OWNER/NAME`` or a
            path; see :func:`anomalib_msacl.backbone.create_backbone`. None takes those that the model was built with.
        recipe: How to pre-train.
        root: Folder for pre-trained weights. A run with the same images, recipe and initial weights reuses them.
        checkpoint_minutes: Minutes between two checkpoints of the pre-training, from which the same run goes on when it
            was killed; 0 writes one after every step.

    Raises:
        InputError: If data, weights or model cannot work; before any training.
    """

    def __init__(
        self,
        weights: str | None = None,
        recipe: Recipe | None = None,
        root: str | Path = "results/msacl",
        checkpoint_minutes: float = 5.0,
    ) -> None:
        check_name("root", root)
        if weights is not None:
            parse_source(weights)  # refuses what is no name
        self.weights = None if weights is None else str(weights)
        self.recipe = Recipe.of(recipe)
        self.root = at_home(root)
        if not isinstance(checkpoint_minutes, int | float) or not 0 <= checkpoint_minutes < math.inf:
            raise InputError(
                f"checkpoint_minutes is {checkpoint_minutes!r}, but must be a number of minutes, 0 or more."
            )
        self.checkpoint_minutes = checkpoint_minutes
        self.directory: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse models that are never fitted, for which :meth:`on_fit_start` would never be called."""
        del trainer, stage
        each_message_once()
        if isinstance(pl_module, AnomalibModule):
            check_kind(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let a command line end in one sentence instead of a traceback where the input is at fault."""
        del trainer, pl_module
        show_in_one_line(exception)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint know of the tiles of its model, which scores other things without them."""
        del trainer
        if isinstance(pl_module, AnomalibModule):
            keep_tiling(pl_module, checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pre-train and hand over; not in ``setup``, where a checkpoint to resume from is not known yet."""
        self.directory = None
        if trainer.ckpt_path is not None:
            logger.info("MSACL: resuming from a checkpoint, which brings its backbone along; nothing is pre-trained.")
            return
        if has_trained_to_its_end(trainer):  # other weights under what the detector has learned would spoil it
            logger.warning(
                "MSACL: this trainer has made all its epochs or steps before and fits nothing more, so the backbone of "
                "%s stays as it is; make a new engine and a new model to fit again.",
                type(pl_module).__name__,
            )
            return
        with isolated_random():  # whether weights are trained or reused, the detector draws the same numbers
            self._hand_over(trainer, *_known(pl_module, trainer))

    def _hand_over(self, trainer: Trainer, model: AnomalibModule, datamodule: AnomalibDataModule) -> None:
        """Check everything, find or make the weights, and put them into the model."""
        check_devices(trainer, self.recipe)
        target = find_backbone(model)
        digests = distributed.on_main(partial(check_datamodule, datamodule, seen=self.root / SEEN))
        task = self._task(model, target)
        distributed.copy_from_main(task.encoder.backbone)
        if model.input_size:
            target.check_size(model.input_size)
        key = distributed.on_main(self._key, task, datamodule, digests, trainer.precision)
        self.directory = directory = self.root / f"{task.provenance.architecture}-{key[:12]}"
        target.fill(task.encoder.backbone)  # fails now or never
        if not distributed.on_main(self._reuses, directory):
            with alone_with(directory), inner_trainer():
                distributed.on_main(remove_leftovers, directory)
                if not distributed.on_main(self._reuses, directory):  # another run may have made it meanwhile
                    self._pretrain(task, trainer, datamodule, digests)
        if distributed.is_main():  # the saved weights may have another scale than those that were trained
            target.fill(create_backbone(task.provenance.architecture, str(directory), target.model_args).model)
        for network in target.networks.values():
            distributed.copy_from_main(network)
        logger.info(
            "MSACL: %s of %s has the weights of %s.", ", ".join(target.networks), type(model).__name__, self.directory
        )

    @staticmethod
    def _reuses(directory: Path) -> bool:
        """Whether a folder holds the weights of an earlier run, whole."""
        intact = is_intact(directory)
        if intact:
            logger.info("MSACL: same images, recipe and initial weights as before: reusing %s.", directory)
        return intact

    def _task(self, model: AnomalibModule, target: PretrainedBackbone) -> _Task:
        """Return what is pre-trained: the backbone, layers, size and normalisation of a model."""
        weights = self.weights or _weights_of(model, target)
        parts = transform_parts(getattr(model.pre_processor, "transform", None))
        normalise = next((part for part in parts if isinstance(part, Normalize)), None)
        others = [part for part in parts if not isinstance(part, Normalize)]
        recipe = self._recipe_for(model)
        encoder, provenance = encoder_for(
            create_backbone(target.architecture, weights, target.model_args),
            recipe,
            target.layers,
            normalise.mean if normalise else (0.0, 0.0, 0.0),
            normalise.std if normalise else (1.0, 1.0, 1.0),
            model.input_size,
        )
        check_trainable(encoder, recipe, provenance.architecture, model.input_size)
        return _Task(encoder, provenance, recipe, Compose(others) if others else None)

    def _recipe_for(self, model: AnomalibModule) -> Recipe:
        """Return the recipe with the scale of feature maps that suits a model, unless the user names one.

        Memory banks and Gaussians do not mind small features, or want them: PaDiM's ridge. What learns a network on
        them does.
        """
        whitening = self.recipe.whitening
        if isinstance(model, MemoryBankMixin) or whitening.saved_std is not None:
            return self.recipe
        return replace(self.recipe, whitening=replace(whitening, saved_std=_UNIT))

    @staticmethod
    def _key(task: _Task, datamodule: AnomalibDataModule, digests: Mapping[str, str], precision: str) -> str:
        """Return a hash of everything that the pre-trained weights follow from."""
        content = {
            "format": _FORMAT,
            "recipe": task.recipe.plain(),
            "lesions of the choice": task.recipe.lesions.others(),
            "precision": _precision(precision),
            "images": sorted(digests.values()),
            "initial": digest(task.encoder.backbone.state_dict()),
            "layers": task.encoder.layers if task.recipe.reads_layers else None,
            "made_for": task.provenance.own_entry(),
            "model_args": dict(task.provenance.model_args),
            "normalisation": [list(task.provenance.mean), list(task.provenance.std)],
            "transforms": [fingerprint(task.transform), fingerprint(datamodule.train_augmentations)],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _pretrain(
        self, task: _Task, outer: Trainer, datamodule: AnomalibDataModule, digests: Mapping[str, str]
    ) -> None:
        """Pre-train with a trainer of its own and save the weights."""
        directory = self.directory or self.root
        distributed.on_main(check_place, directory, task.encoder.backbone)
        split = _Split(datamodule, task.recipe, digests)
        logger.info(
            "MSACL: pre-training %s for %d steps on %d normal images, %d held out.",
            *(task.provenance.architecture, task.recipe.max_steps, len(split.training), len(split.held_out)),
        )
        shows = outer.progress_bar_callback is not None
        own = Curves(self.root, directory.name)
        distributed.on_main(_forget_requeued, Path(own.log_dir))
        trainer = make_trainer(
            task.recipe,
            **devices_of(outer),
            precision=_precision(outer.precision),
            logger=[own, *(UnderPrefix(logger) for logger in outer.loggers)],
            callbacks=[StepsBar()] if shows else None,
            enable_progress_bar=shows,
            default_root_dir=own.log_dir,
        )
        training, held_out = (NormalImages(loader, task.transform) for loader in split.loaders())
        checkpoints = Checkpoints(directory.with_name(f"{directory.name}.ckpt"), self.checkpoint_minutes)
        found = pretrain(task.encoder, task.provenance, training, held_out, task.recipe, trainer, checkpoints)
        tell_choice(outer.loggers, found.candidates, found.kept, found.verdict, found.steps)
        distributed.on_main(lambda: str(found.save(directory, datamodule.name, len(datamodule.train_data))))
        distributed.on_main(checkpoints.remove)


@dataclass(frozen=True)
class _Task:
    """What is pre-trained.

    Attributes:
        encoder: Backbone and layers, with the initial weights.
        provenance: Where these come from.
        recipe: How to pre-train.
        transform: Brings images to the model's size; None leaves them.
    """

    encoder: Encoder
    provenance: Provenance
    recipe: Recipe
    transform: Compose | None


class _Split:
    """The training images of a datamodule, a part of them held out for the choice of the weights.

    No more are held out than the choice looks at. Copies of held-out images are left out of the training: a choice on
    images that it has seen sees nothing.
    """

    def __init__(self, datamodule: AnomalibDataModule, recipe: Recipe, digests: Mapping[str, str]) -> None:
        data, choice = datamodule.train_data, recipe.choice
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
        share = min(max(1, round(choice.held_out * len(data))), choice.images) if choice.evaluations else 0
        held_out, rest = order[:share], order[share:]
        content = content_of(data.samples, digests)
        seen = {content[index] for index in held_out}
        others = [index for index in rest if content[index] not in seen]
        if not others:
            logger.warning("MSACL: all training images are copies of held-out ones, so that the choice sees nothing.")
        elif len(others) < len(rest):
            logger.info("MSACL: %d copies of held-out images are not trained with.", len(rest) - len(others))
        # not anomalib's subsample, which looks for every file once more
        self.held_out: Any = Subset(data, sorted(held_out))
        self.training: Any = Subset(data, sorted(others or rest))
        self._batch_size = recipe.batch_size
        self._collate = datamodule.external_collate_fn or data.collate_fn
        self._workers = datamodule.num_workers

    def loaders(self) -> tuple[Any, Any]:
        """Return loaders of the training images, shuffled, and of those that are held out."""
        held_out: Any = []
        if len(self.held_out):
            held_out = self._loader(self.held_out, batch_size=self._batch_size)
        size = min(self._batch_size, len(self.training))
        training = self._loader(self.training, batch_size=size, shuffle=True, drop_last=True)
        return training, held_out

    def _loader(self, data: Any, **options: Any) -> DataLoader[Any]:
        persistent = self._workers > 0
        return DataLoader(
            data, collate_fn=self._collate, num_workers=self._workers, persistent_workers=persistent, **options
        )


def _forget_requeued(folder: Path) -> None:
    """Remove what Lightning has saved when SLURM was about to end a job: it would resume from it, past whitening."""
    for path in folder.glob("hpc_ckpt_*.ckpt"):
        path.unlink(missing_ok=True)


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
