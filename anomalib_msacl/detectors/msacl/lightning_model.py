"""``Msacl``: MSACL pre-training as a model of anomalib, and a detector on its features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from anomalib.metrics import AUROC, AnomalibMetric, Evaluator
from anomalib.models.components.base import AnomalibModule
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import Tensor, nn
from torchmetrics import Metric
from torchvision.transforms.v2 import Compose, Resize

from anomalib_msacl import distributed
from anomalib_msacl.backbone import Encoder, create_backbone
from anomalib_msacl.backbone.folder import check_name
from anomalib_msacl.compat import before_saving, is_attached, is_stopping, saves_as_before, set_max_steps
from anomalib_msacl.detectors.callbacks import WithCallbacks
from anomalib_msacl.detectors.msacl.batches import fill, held_out_images, return_batches, share_batches, training_images
from anomalib_msacl.detectors.msacl.checks import check_detector, check_fit, refuse_normalize, warn_of_few_epochs
from anomalib_msacl.detectors.msacl.fitting import fit_detector, save_chosen, warn_of_no_threshold
from anomalib_msacl.detectors.msacl.torch_model import MsaclModel
from anomalib_msacl.detectors.settings import LARGEST_SIDE, check_switches, check_whole
from anomalib_msacl.paths import with_home
from anomalib_msacl.pretraining.images import normal_of
from anomalib_msacl.pretraining.lightning_model import Optimization, log_score, restore_random, training_loss
from anomalib_msacl.pretraining.pipeline import Pretraining
from anomalib_msacl.pretraining.preparation import check_trainable, encoder_for
from anomalib_msacl.recipe import Recipe

_STATE = "msacl_pretraining"  # entry of a checkpoint


class Msacl(WithCallbacks, Optimization, AnomalibModule):  # type: ignore[misc]  # the bases of AnomalibModule differ in to_onnx
    """MSACL (arXiv 2109.01303): pre-train a backbone on normal images with synthetic lesions, then detect with it.

    Training needs normal images only. It follows the steps of :func:`anomalib_msacl.pretraining.pretrain`, and saves
    the backbone in timm's folder format. After the last step a memory bank of normal patches is filled and a small
    lesion head is trained on the frozen features: they score images in ``test``, ``predict`` and after export.
    Validation looks at the normal images of the validation set and at copies of them with lesions.

    Args:
        backbone: A timm name, ``local-dir:DIR`` or ``hf-hub:OWNER/NAME``.
        weights: Initial weights: ``timm``, ``torchvision``, ``offline``, ``random``, ``hf-hub:OWNER/NAME`` or a
            path; see :func:`anomalib_msacl.backbone.create_backbone`.
        layers: Layers of the dense term and of the detector; chosen by stride if None.
        image_size: Side in pixels that images are resized to, unless ``pre_processor`` is given.
        recipe: How to pre-train.
        weights_dir: Where to save the backbone; ``weights/timm`` in the run's folder if None.
        mean: Normalisation; that of the initial weights if None.
        std: Normalisation; that of the initial weights if None.
        detector: Fit the detector; not needed where only the backbone is wanted.
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
        detector: bool = True,
        backbone_args: dict[str, Any] | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        check_switches("Msacl", detector=detector)
        check_name("weights_dir", weights_dir or "")
        if pre_processor is True:
            check_whole("Msacl", "image_size", image_size, 1, LARGEST_SIDE, "a number of pixels")
            pre_processor = self.configure_pre_processor((image_size, image_size))
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.recipe = Recipe.of(recipe)
        self.save_hyperparameters({"recipe": self.recipe.plain()})  # loggers and checkpoints want plain data
        self.weights_dir, self.detector = with_home(weights_dir), detector
        refuse_normalize(self.pre_processor)
        start = create_backbone(backbone, weights, backbone_args)
        encoder, provenance = encoder_for(start, self.recipe, layers, mean, std, self.input_size)
        self.run = Pretraining(encoder, provenance, self.recipe)
        self.terms, self.synthesis = self.run.terms, self.run.synthesis
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            self.model: MsaclModel = MsaclModel(encoder, detector)
        check_trainable(encoder, self.recipe, provenance.architecture, self.input_size)
        self._seen, self._chosen = -1, False

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
        default = cast("list[AnomalibMetric]", list(AnomalibModule.configure_evaluator().test_metrics))
        image = AUROC(fields=["pred_score", "gt_label"], prefix="val_image_", strict=False)
        pixel = AUROC(fields=["anomaly_map", "gt_mask"], prefix="val_pixel_", strict=False)
        return Evaluator(val_metrics=[image, pixel], test_metrics=default)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Batches to a step as in the recipe; no sanity check, for there is nothing to score with yet."""
        return {"num_sanity_val_steps": 0, "accumulate_grad_batches": self.recipe.accumulate}

    @property
    def learning_type(self) -> LearningType:
        """Normal images only."""
        return LearningType.ONE_CLASS

    def setup(self, stage: str) -> None:
        """Look at every image before any long work."""
        if stage != "fit":
            return
        check_fit(self.trainer, self.recipe, self._target(), self.encoder.backbone)
        share_batches(self.trainer)
        before_saving(self.trainer, self._finish_where_over)
        if self.trainer.max_steps == -1:  # the trainer names no steps of its own
            set_max_steps(self.trainer, self.recipe.max_steps)

    def on_fit_start(self) -> None:
        """Seed the pre-training: ``anomalib train --seed_everything`` of anomalib 2.7 has no effect."""
        torch.manual_seed(distributed.seed_of_process(self.recipe.seed))

    def on_train_start(self) -> None:
        """Whiten, then fix the centres before the first step, once; a checkpoint brings both along."""
        self._seen, self._chosen = self.global_step, False
        warn_of_few_epochs(self.trainer, self.recipe)
        self.run.to(self.device)
        images = training_images(self)
        goes_on = self.global_step > 0 or self.trainer.ckpt_path is not None
        self.run.ask(images, held_out_images(self), goes_on)
        if self.global_step:  # a resumed run does not repeat the draws of the first
            torch.manual_seed(distributed.seed_of_process(self.recipe.seed + self.global_step))
        else:
            self.run.whiten(images)
        self.run.run_frozen_stages_apart()
        self.run.fix_centres(images)
        restore_random(self.trainer)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Synthesise the classes of a batch and return the weighted sum of the terms."""
        return training_loss(self, normal_of(batch), batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Compare a candidate where one is due; after the last step choose, realign and fit the detector."""
        del outputs, batch, batch_idx
        if self.global_step != self._seen and not self._chosen:  # else no new weights: gradients are accumulated
            self._seen = self.global_step
            log_score(self, self.run.consider(self._seen, self.trainer.estimated_stepping_batches))
        self._finish_where_over()
        if self._chosen:
            self.trainer.should_stop = True  # lets the last validation run when the steps end within an epoch

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Log a value, but no metric of a validation without a detector: one of several processes would wait for it."""
        if not (isinstance(value, Metric) and self.trainer.validating and not self.model.memory_bank.fitted):
            super().log(name, value, *args, **kwargs)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> ImageBatch:  # type: ignore[override]  # as in anomalib
        """Score the normal images of a batch and copies of them with lesions, the same in every epoch."""
        images = normal_of(batch)  # real lesions are not for choosing
        if len(images) == 0 or not self.model.memory_bank.fitted:
            return batch  # without predictions, which anomalib's metrics pass over
        changed, lesions = self.synthesis.with_lesions(images, batch_idx)
        masks = torch.cat([torch.zeros_like(lesions), lesions])[:, 0].bool()
        fill(batch, torch.cat([images, changed]), masks)
        return cast("ImageBatch", batch.update(**self.model(cast("Tensor", batch.image))._asdict()))

    def on_train_end(self) -> None:
        """Choose and save all the same where training has ended unexpectedly."""
        if not self._chosen:
            self._finish()
        warn_of_no_threshold(self)

    def teardown(self, stage: str) -> None:
        """Leave the datamodule as it was."""
        if stage == "fit":
            return_batches(self.trainer)
            saves_as_before(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep hyper-parameters plain, and free of files that may be gone when the checkpoint is loaded."""
        super().on_save_checkpoint(checkpoint)
        provenance = self.run.provenance
        plain = {
            "backbone": provenance.architecture,
            "weights": "random",  # the checkpoint brings its own
            "mean": list(provenance.mean),
            "std": list(provenance.std),
            "layers": list(self.encoder.layers),
            "backbone_args": dict(provenance.model_args),
        }
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], **plain}
        checkpoint["msacl"] = {**provenance.pretrained_cfg(), **provenance.own_entry()}
        checkpoint[_STATE] = self.run.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what is known of the weights, and the choice of a run that goes on."""
        check_detector(checkpoint["state_dict"])
        super().on_load_checkpoint(checkpoint)
        if _STATE in checkpoint:
            self.run.load_state_dict(checkpoint[_STATE], goes_on=is_attached(self))

    def _finish_where_over(self) -> None:
        """Finish after the last step, or where training was told to stop; the checkpoint shall have the detector."""
        over = self.global_step >= self.trainer.estimated_stepping_batches or is_stopping(self.trainer)
        if over and not self._chosen:
            self._finish()

    def _finish(self) -> None:
        """Choose, realign, save the backbone, and fit the detector on the features that are kept."""
        self._chosen, self.run.steps = True, self.global_step
        self.run.choose()
        normal = training_images(self)
        self.run.realign(normal)
        save_chosen(self.trainer, self.run.result(), self._target())  # before the checkpoints, which need more room
        if self.detector:
            fit_detector(self.model, normal, held_out_images(self), self.synthesis, self.recipe)

    def _target(self) -> Path:
        """Return the folder that the weights go to."""
        return Path(self.weights_dir or Path(self.trainer.default_root_dir) / "weights" / "timm")
