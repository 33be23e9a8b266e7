"""A small probe that reads synthetic lesions from feature maps: one half of the heat maps of ``Msacl``."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.backbone import Encoder
from anomalib_msacl.backbone.encoder import evaluating
from anomalib_msacl.pretraining.losses import cells
from anomalib_msacl.pretraining.synthesis import Synthesis

_LEARNING_RATE = 1e-3
_STEPS = 60


class LesionHead(nn.Module):
    """A small probe that reads lesions from feature maps; gradients do not reach the maps.

    Args:
        dims: Channels of each feature map.
        hidden: Channels in between.
    """

    def __init__(self, dims: list[int], hidden: int = 64) -> None:
        super().__init__()
        # Without scale and shift: it only brings layers of different magnitude to one unit.
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim, affine=False) for dim in dims)
        self.head = nn.Sequential(nn.Conv2d(sum(dims), hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return lesion logits of shape ``(B, 1, h, w)``, at the size of the first map."""
        size = maps[0].shape[-2:]
        parts = [
            F.interpolate(norm(F.avg_pool2d(layer.detach(), 3, 1, 1)), size=size, mode="bilinear", align_corners=False)
            for norm, layer in zip(self.norms, maps, strict=True)
        ]
        return cast("Tensor", self.head(torch.cat(parts, dim=1)))

    @staticmethod
    def loss(logits: Tensor, masks: Tensor) -> Tensor:
        """Return the binary cross-entropy with the share of lesion in each cell; lesions weigh as much as tissue."""
        target = cells(masks.to(logits.dtype), logits)
        balance = ((1 - target).sum() / target.sum().clamp_min(1)).clamp(1, 20)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=balance)

    def fit(self, encoder: Encoder, images: Tensor, synthesis: Synthesis, batch_size: int) -> None:
        """Train on normal images with lesions; the encoder stays as it is.

        Args:
            encoder: Gives the feature maps.
            images: Normal images in [0, 1], shape ``(N, 3, H, W)``.
            synthesis: Makes the lesions.
            batch_size: Images of a step, each seen once with every number of lesions.
        """
        device = next(self.parameters()).device
        optimizer = torch.optim.AdamW(self.parameters(), _LEARNING_RATE)
        self.train()
        with torch.enable_grad():
            for _ in range(_STEPS):
                chosen = images[torch.randperm(len(images))[:batch_size]].to(device)
                batch = synthesis(chosen)
                with torch.no_grad(), evaluating(encoder):
                    maps = encoder(batch.images, pooled=False)[0]
                optimizer.zero_grad()
                torch.autograd.backward(self.loss(self(maps), batch.masks))
                optimizer.step()
