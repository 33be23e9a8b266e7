"""What a user would do instead with the same images and minutes: small pre-trainings of a timm backbone.

SimCLR is lightly's (`pip install ".[benchmark]"`); compare.py runs them all. Each takes a backbone in evaluation mode
of BatchNorm, normal images in [0, 1] of shape (N, 3, H, W), a number of steps and a seed, and trains the backbone in
place with the optimiser of the default recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.backbone import Encoder
from anomalib_msacl.lesions import LesionMixture
from anomalib_msacl.pretraining.lightning_model import warm_cosine
from anomalib_msacl.pretraining.views import WeakView
from anomalib_msacl.recipe import ViewRecipe

BATCH = 32  # images that pass the network in a step; a third of the default recipe, so three times the steps are fair
VIEW = ViewRecipe(jitter=0.8)


def simclr(encoder: Encoder, images: Tensor, steps: int, seed: int) -> None:
    """Two views of an image attract each other, other images are pushed away (Chen et al. 2020), by lightly."""
    from lightly.loss import NTXentLoss  # the other baselines do without
    from lightly.models.modules import SimCLRProjectionHead

    head, contrast = SimCLRProjectionHead(encoder.dim, encoder.dim, 128), NTXentLoss(temperature=0.2)
    view = WeakView(replace(VIEW, scale=(0.3, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2))

    def loss(batch: Tensor) -> Tensor:
        first, second = (head(encoder(view(batch[: BATCH // 2]))[1]) for _ in range(2))
        return contrast(first, second)

    train(encoder, head.to(images.device), images, loss, steps, seed)


def cutpaste(encoder: Encoder, images: Tensor, steps: int, seed: int) -> None:
    """Tell images with a pasted rectangle from those without (Li et al. 2021)."""
    head, view, lesions = nn.Linear(encoder.dim, 2).to(images.device), WeakView(VIEW), LesionMixture(["cutpaste"])

    def loss(batch: Tensor) -> Tensor:
        pasted = torch.arange(len(batch), device=batch.device) % 2
        return F.cross_entropy(head(encoder(lesions.synthesize(view(batch), pasted).image)[1]), pasted)

    train(encoder, head, images, loss, steps, seed)


def normals_only(encoder: Encoder, images: Tensor, steps: int, seed: int) -> None:
    """Draw the features of normal images to their mean (Deep SVDD on a pre-trained network; Reiss et al. 2021)."""
    view = WeakView(VIEW)
    with torch.no_grad():
        centre = torch.cat([encoder(part)[1] for part in images[:128].split(BATCH)]).mean(dim=0)

    def loss(batch: Tensor) -> Tensor:
        return (encoder(view(batch))[1] - centre).square().sum(dim=1).mean() / centre.square().sum()

    train(encoder, nn.Identity(), images, loss, steps, seed)


@torch.no_grad()
def batch_norm(encoder: Encoder, images: Tensor, steps: int, seed: int) -> None:
    """Let the statistics of BatchNorm be those of the normal images; no weight is trained."""
    del seed
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for batch in images[torch.randperm(len(images))].split(BATCH)[:steps]:
        encoder.backbone((batch - encoder.mean) / encoder.std)
    encoder.eval()


def train(
    encoder: Encoder, head: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor], steps: int, seed: int
) -> None:
    """Make the steps: AdamW, warm-up, cosine and clipping of the default recipe."""
    torch.manual_seed(seed)
    parameters = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4, weight_decay=1e-4)
    warmup = max(1, steps // 10)
    encoder.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-4 * warm_cosine(step, warmup, steps)
        optimizer.zero_grad()
        torch.autograd.backward(loss(images[torch.randperm(len(images))[:BATCH]]))
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    encoder.eval()


BASELINES = {"simclr": simclr, "cutpaste": cutpaste, "normals_only": normals_only, "batch_norm": batch_norm}
