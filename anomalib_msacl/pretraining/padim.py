"""The scale of whitened maps that suits anomalib's PaDiM, by its own score of held-out lesions.

anomalib's PaDiM adds a ridge of .01 to its covariances: the smaller the maps, the more it counts. Images that are not
aligned need it. Where they are, it hides what is particular to a position (docs/models.md).
"""

from __future__ import annotations

import copy
import logging
import math
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
from anomalib_msacl.pretraining.questions import FEWEST, Questions, Score, standard_error
from anomalib_msacl.transfer import transfer

logger = logging.getLogger(__name__)

_IMAGES = 400  # that take part, at most
_FOLDS = 3
_CLEARLY = 3.0  # standard errors
_BATCH = 32


def suiting_padim(padim: PadimModel, found: Pretrained, images: NormalImages, held_out: NormalImages) -> Pretrained:
    """Return what was pre-trained with the deviation of whitened maps that suits PaDiM (:func:`suited_std`).

    Args:
        padim: anomalib's model before it is fitted; left alone.
        found: What comes of the pre-training.
        images: Normal images that it was trained with.
        held_out: Others.
    """
    recipe = found.recipe
    if found.provenance.feature_std is None or not recipe.whitening.std:  # never whitened, or to stay as it is
        return found
    with isolate_rng():
        torch.manual_seed(recipe.seed)
        others = held_out.collect(recipe.choice.images)
        some = images.collect(_IMAGES - (0 if others is None else len(others)))
    std = suited_std(padim, torch.cat([part for part in (some, others) if part is not None]), found)
    logger.info("MSACL: PaDiM gets feature maps of a standard deviation of %g.", std)
    return replace(found, recipe=replace(recipe, whitening=replace(recipe.whitening, saved_std=std)))


def suited_std(padim: PadimModel, images: Tensor, found: Pretrained) -> float:
    """Return the usual deviation of whitened maps, or twice as much where PaDiM tells held-out lesions clearly better.

    Three times another part of the images is held out, and PaDiM fitted to the rest. Clearly means: the mean image
    AUROC rises by more than three standard errors of the difference.

    Args:
        padim: anomalib's model before it is fitted; left alone.
        images: Normal images in [0, 1], shape ``(N, 3, H, W)``.
        found: The pre-trained backbone; its recipe tells the usual deviation.
    """
    recipe = found.recipe
    usual = recipe.whitening.std
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(recipe.seed))
    size = min(recipe.choice.images, len(images) // _FOLDS)
    gains, errors = [], []
    for fold in range(_FOLDS) if size >= FEWEST else ():
        asked = order[fold * size : (fold + 1) * size]
        fitted = order[~torch.isin(order, asked)]
        questions = Questions(images[fitted], images[asked], replace(recipe, seed=recipe.seed + fold))
        scores = [
            padim_score(padim, images[fitted], questions, found, std, recipe.seed + fold) for std in (usual, 2 * usual)
        ]
        gains.append(scores[1].image_auroc - scores[0].image_auroc)
        errors.append(standard_error(*scores))
    clear = sum(gains) > _CLEARLY * math.hypot(*errors)
    return 2 * usual if clear else usual


@torch.no_grad()
def padim_score(
    padim: PadimModel, images: Tensor, questions: Questions, found: Pretrained, std: float, seed: int = 0
) -> Score:
    """Return how well PaDiM tells held-out lesions on maps of a deviation.

    Args:
        padim: anomalib's model before it is fitted; left alone.
        images: Normal images in [0, 1] that it is fitted to, shape ``(N, 3, H, W)``.
        questions: Held-out images with and without lesions.
        found: The pre-trained backbone.
        std: Standard deviation of its whitened maps.
        seed: Of PaDiM's draw of features.

    Returns:
        Image AUROC of PaDiM's scores; the pixel AUROC is not measured and 0.
    """
    encoder, provenance = at_std(found.encoder, found.provenance, std)
    trial = copy.deepcopy(padim).float()  # the trainer may have made it smaller
    transfer(encoder.backbone, trial.feature_extractor.feature_extractor)
    device = trial.idx.device
    drawn = torch.randperm(trial.n_features_original, generator=torch.Generator().manual_seed(seed))
    trial.idx = drawn[: trial.n_features].to(device)

    def batches(of: Tensor) -> Iterator[Tensor]:
        for batch in torch.split(of, _BATCH):
            yield normalize(batch.to(device), list(provenance.mean), list(provenance.std))

    trial.train()
    for batch in batches(images):
        trial(batch)
    trial.fit()
    trial.eval()
    scores = torch.cat([trial(batch).pred_score.flatten().cpu() for batch in batches(questions.images)])
    if not scores.isfinite().all():
        return Score(0.0, 0.0)  # never the better one
    return Score(float(roc_auc_score(questions.labels, scores)), 0.0, scores[None])
