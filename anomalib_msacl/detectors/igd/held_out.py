"""Questions to a stage of the training: held-out normal images with and without synthetic lesions."""

from __future__ import annotations

from typing import Any

import torch
from anomalib.models.components import AnomalibModule
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.transforms.v2 import Compose, Normalize

from anomalib_msacl.backbone.encoder import evaluating
from anomalib_msacl.detectors.igd.torch_model import IgdModel
from anomalib_msacl.pretraining.images import NormalImages
from anomalib_msacl.pretraining.preparation import transform_parts
from anomalib_msacl.pretraining.questions import LESIONS, Score
from anomalib_msacl.recipe import Recipe

_CHUNK = 8  # images at a time


class HeldOutImages:
    """Normal images that IGD was not trained with, each also with lesions; drawn once, so that all stages see the same.

    The lesions are of the families that MSACL does not train with: an encoder may have been pre-trained with the
    others.

    Args:
        images: Normal images in [0, 1], shape ``(M, 3, H, W)``.
        seed: Of the lesions.
    """

    def __init__(self, images: Tensor, seed: int) -> None:
        recipe = Recipe(seed=seed)
        counts = torch.arange(LESIONS * len(images)) % (recipe.classes - 1) + 1
        mixture = recipe.lesions.mixture(recipe.lesions.others())
        generator = torch.Generator().manual_seed(seed)
        lesions = mixture.synthesize(images.repeat(LESIONS, 1, 1, 1), counts, generator)
        self.images = torch.cat([images, lesions.image])
        self.masks = torch.cat([torch.zeros_like(images[:, :1]), lesions.mask])[:, 0] > 0.5

    @torch.no_grad()
    def score(self, model: IgdModel, device: torch.device) -> Score:
        """Return how well a model tells images with lesions from those without; its mode is left as it was."""
        with evaluating(model):
            parts = [model(model.normalisation(chunk.to(device))) for chunk in torch.split(self.images, _CHUNK)]
        scores = torch.cat([part.pred_score for part in parts]).cpu()
        maps = torch.cat([part.anomaly_map for part in parts]).cpu()[:, 0]
        if not (scores.isfinite().all() and maps.isfinite().all()):
            return Score(0.0, 0.0)  # never the best
        pixels = roc_auc_score(self.masks.flatten(), maps.flatten()) if self.masks.any() else 0.5
        image = roc_auc_score(self.masks.flatten(1).any(dim=1), scores)
        return Score(float(image), float(pixels), scores[None])


def unit_images(module: AnomalibModule, loader: Any) -> NormalImages:
    """Return the normal images of a loader as the pre-processor of a module resizes them, but in [0, 1].

    Args:
        module: Its ``pre_processor`` may end in a ``Normalize``, which is left out.
        loader: Of anomalib's batches; None for no images.
    """
    steps = transform_parts(getattr(module.pre_processor, "transform", None))
    others = [step for step in steps if not isinstance(step, Normalize)]
    return NormalImages(loader or (), Compose(others) if others else None)
