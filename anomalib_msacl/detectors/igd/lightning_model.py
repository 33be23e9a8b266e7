"""``Igd`` as a model of anomalib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components.base import AnomalibModule
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_msacl.backbone.sources import at_its_place, timm_name
from anomalib_msacl.compat import before_saving, is_attached, saves_as_before
from anomalib_msacl.detectors.callbacks import WithCallbacks
from anomalib_msacl.detectors.igd.checks import check_fit, check_numbers, check_sizes, normalisation_of, size_of
from anomalib_msacl.detectors.igd.torch_model import IgdModel
from anomalib_msacl.detectors.igd.training import IgdTraining, total_steps
from anomalib_msacl.detectors.settings import check_switches
from anomalib_msacl.pretraining.images import normal_of
from anomalib_msacl.transfer import check_layers

_STATE = "igd_training"  # entry of a checkpoint


class Igd(WithCallbacks, AnomalibModule):  # type: ignore[misc]  # the bases of AnomalibModule differ in to_onnx
    """IGD (Chen, Tian, Pang, Carneiro, AAAI 2022, arXiv 2101.10043): Interpolated Gaussian Descriptor.

    An image is scored by how far its descriptor lies from those of normal images and by how badly it is reconstructed
    from it, as a whole and patch by patch. Training needs normal images only. Several stages of the training are
    compared on held-out normal images and copies of them with lesions: the last is kept unless another is clearly
    better.

    Args:
        backbone: A timm name, or ``local-dir:DIR``.
        layers: Layers whose maps are pooled; the paper takes the last of a ResNet.
        pre_trained: Build the backbone with timm's weights; false where ``MsaclPretraining`` brings them.
        frozen: Leave the backbone as it is, as in the paper.
        image_size: Height and width, or one side, in pixels, unless ``pre_processor`` is given.
        dim: Dimension of the descriptors.
        width: Base width of decoders and critics; the widest layers have eight times as many channels.
        patch_size: Side of the patches of the local part in pixels; 0 leaves it out.
        patch_stride: Distance of neighbouring patches in pixels.
        patches: Patches of an image that a training step draws.
        learning_rate: Of both optimisers at the first step; it falls to 0 with power .9.
        update_every: Epochs between two estimates of centre and deviation.
        evaluations: Stages of the training that are compared on held-out images; 0 keeps the last.
        flip: Flip training images horizontally at random.
        seed: Of initial weights and of everything that is drawn while training.
        pre_processor: As in anomalib.
        post_processor: As in anomalib.
        evaluator: As in anomalib.
        visualizer: As in anomalib.

    Raises:
        InputError: If a setting cannot work, or the backbone does not fit.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: Sequence[str | int] = ("layer4",),
        pre_trained: bool = True,
        frozen: bool = True,
        image_size: int | tuple[int, int] = 256,
        dim: int = 128,
        width: int = 32,
        patch_size: int = 32,
        patch_stride: int = 16,
        patches: int = 8,
        learning_rate: float = 1e-4,
        update_every: int = 10,
        evaluations: int = 8,
        flip: bool = True,
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        check_switches("Igd", pre_trained=pre_trained, frozen=frozen, flip=flip)
        numbers = {"dim": dim, "width": width, "patches": patches, "patch_size": patch_size, "seed": seed}
        numbers |= {"patch_stride": patch_stride, "update_every": update_every, "evaluations": evaluations}
        check_numbers(learning_rate, **numbers)
        backbone = at_its_place(backbone)
        check_layers(backbone, layers)
        self.architecture = timm_name(backbone)
        size = size_of(image_size)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(size)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        size = self.input_size or size
        check_sizes(size, patch_size, patch_stride)
        # Plain data, with which a checkpoint can be loaded anywhere.
        self.save_hyperparameters({"layers": list(layers), "image_size": list(size)})
        mean, std = normalisation_of(self.pre_processor)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model: IgdModel = IgdModel(
                backbone, layers, size, pre_trained, frozen, dim, width, patch_size, patch_stride, mean, std
            )
        self.automatic_optimization = False  # two optimisers take turns
        self.training_run = IgdTraining(self.model, patches, flip, update_every, evaluations, seed)
        self.learning_rate = learning_rate

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No sanity check, for there is nothing to score with yet; the rest is what two optimisers ask for."""
        return {"num_sanity_val_steps": 0, "gradient_clip_val": 0, "accumulate_grad_batches": 1}

    @property
    def learning_type(self) -> LearningType:
        """Normal images only."""
        return LearningType.ONE_CLASS

    def setup(self, stage: str) -> None:
        """Look at every image before any long work."""
        if stage == "fit":
            check_fit(self.trainer)
            before_saving(self.trainer, lambda: self.training_run.choose_where_over(self))

    def teardown(self, stage: str) -> None:
        """Leave the trainer as it was."""
        if stage == "fit":
            saves_as_before(self.trainer)

    def configure_optimizers(self) -> Any:
        """Adam for encoder and decoders, Adam for the critics, each with a poly schedule."""
        self.training_run.seed_loader(None)
        _ = self.trainer.estimated_stepping_batches  # makes the loader and its first iterator
        return self.training_run.optimizers(self.learning_rate, total_steps(self.trainer))

    def on_train_start(self) -> None:
        """Prepare the held-out images that choose an epoch."""
        self.training_run.prepare(self)

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, so that a resumed run sees the same; estimate centre and deviation where it is time."""
        self.training_run.start_epoch(self)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Make one step of encoder and decoders, one of the critics."""
        self.training_run.step(self, normal_of(batch), batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Compare a stage where one is due; after the last step choose."""
        del outputs, batch
        self.training_run.end_batch(self, batch_idx)

    def on_train_end(self) -> None:
        """Choose all the same where training has ended unexpectedly."""
        self.training_run.choose(self)

    def on_validation_epoch_end(self) -> None:
        """Keep the thresholds of a stage, after the post-processor has set them and before a checkpoint is saved."""
        self.training_run.end_validation(self)

    def on_fit_end(self) -> None:
        """Tell where there is no threshold."""
        self.training_run.thresholds.tell_missing(self, self.training_run.choice.kept)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> ImageBatch:  # type: ignore[override]  # as in anomalib
        """Score a batch."""
        del batch_idx
        return cast("ImageBatch", batch.update(**self.model(cast("torch.Tensor", batch.image))._asdict()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint be loaded without the weights that the backbone was built with: it brings its own."""
        super().on_save_checkpoint(checkpoint)
        plain = {"backbone": self.architecture, "pre_trained": False}
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], **plain}
        checkpoint[_STATE] = self.training_run.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the choice of a run that goes on."""
        super().on_load_checkpoint(checkpoint)
        if _STATE in checkpoint and is_attached(self):
            self.training_run.load_state_dict(checkpoint[_STATE], checkpoint["epoch"] + 1)
