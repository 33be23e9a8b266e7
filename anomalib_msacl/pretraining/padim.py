"""The scale of whitened maps that suits anomalib's PaDiM, by its own score of held-out lesions.

anomalib's PaDiM adds a ridge of .01 to its covariances: the smaller the maps, the more it counts. Images that are not
aligned need it. Where they are, it hides what is particular to a position (docs/models.md).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace

import torch
from anomalib.models.image.padim.torch_model import PadimModel
from lightning.pytorch.utilities.seed import isolate_rng
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.transforms.v2.functional import normalize

from anomalib_msacl.pretraining.images import NormalImages
from anomalib_msacl.pretraining.pretrained import Pretrained, at_std
from anomalib_msacl.pretraining.questions import Questions, Score, standard_error
from anomalib_msacl.transfer import transfer

logger = logging.getLogger(__name__)

_IMAGES = 400  # that a trial is fitted to, at most
_CLEARLY = 3.0  # standard errors
_DRAWS = 2  # of PaDiM's features
_BATCH = 32


def suiting_padim(padim: PadimModel, found: Pretrained, images: NormalImages, held_out: NormalImages) -> Pretrained:
    """Return what was pre-trained with the deviation of whitened maps that suits PaDiM (:func:`suited_std`).

    Args:
        padim: anomalib's model before it is fitted; left alone.
        found: What comes of the pre-training.
        images: Normal training images.
        held_out: Others; without them nothing changes.
    """
    recipe = found.recipe
    if found.provenance.feature_std is None or not recipe.whitening.std:  # never whitened, or to stay as it is
        return found
    with isolate_rng():
        torch.manual_seed(recipe.seed)
        fitted, asked = images.collect(_IMAGES), held_out.collect(recipe.choice.images)
    if fitted is None or asked is None:
        return found
    std = suited_std(padim, fitted, asked, found)
    logger.info("MSACL: PaDiM gets feature maps of a standard deviation of %g.", std)
    return replace(found, recipe=replace(recipe, whitening=replace(recipe.whitening, saved_std=std)))


def suited_std(padim: PadimModel, images: Tensor, held_out: Tensor, found: Pretrained) -> float:
    """Return the usual deviation of whitened maps, or twice as much where PaDiM tells held-out lesions clearly better.

    Clearly means: the image AUROC rises by more than three standard errors of the difference.

    Args:
        padim: anomalib's model before it is fitted; left alone.
        images: Normal images in [0, 1] that it is fitted to on trial, shape ``(N, 3, H, W)``.
        held_out: Other normal images, shape ``(M, 3, H, W)``.
        found: The pre-trained backbone; its recipe tells the usual deviation.
    """
    questions = Questions(images, held_out, found.recipe)
    usual = found.recipe.whitening.std
    first, second = (padim_score(padim, images, questions, found, std) for std in (usual, 2 * usual))
    clear = second.image_auroc - first.image_auroc > _CLEARLY * standard_error(second, first)
    return 2 * usual if clear else usual


@torch.no_grad()
def padim_score(padim: PadimModel, images: Tensor, questions: Questions, found: Pretrained, std: float) -> Score:
    """Return how well PaDiM tells held-out lesions on maps of a deviation, with several draws of its features.

    Args:
        padim: anomalib's model before it is fitted; left alone.
        images: Normal images in [0, 1] that it is fitted to, shape ``(N, 3, H, W)``.
        questions: Held-out images with and without lesions.
        found: The pre-trained backbone.
        std: Standard deviation of its whitened maps.

    Returns:
        Mean image AUROC of the draws; the pixel AUROC is not measured and 0.
    """
    encoder, provenance = at_std(found.encoder, found.provenance, std)
    trial = copy.deepcopy(padim).float()  # the trainer may have made it smaller
    transfer(encoder.backbone, trial.feature_extractor.feature_extractor)
    device = trial.idx.device

    def batches(of: Tensor) -> Iterator[Tensor]:
        for batch in torch.split(of, _BATCH):
            yield normalize(batch.to(device), list(provenance.mean), list(provenance.std))

    generator = torch.Generator().manual_seed(found.recipe.seed)
    rows = []
    for _ in range(_DRAWS):
        drawn = torch.randperm(trial.n_features_original, generator=generator)
        trial.idx = drawn[: trial.n_features].to(device)
        trial.train()
        for batch in batches(images):
            trial(batch)
        trial.fit()
        trial.eval()
        rows.append(torch.cat([trial(batch).pred_score.flatten().cpu() for batch in batches(questions.images)]))
    scores = torch.stack(rows)
    if not scores.isfinite().all():
        return Score(0.0, 0.0)  # never the better one
    auroc = sum(float(roc_auc_score(questions.labels, row)) for row in scores) / _DRAWS
    return Score(auroc, 0.0, scores)
