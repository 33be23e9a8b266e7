"""What is unusual about an image as a whole: the spread of its channels, and its nearest normal images.

A memory bank of patches sees what is new in one place. A change of the whole image, such as another texture or another
organ, may leave each patch near some normal one. Both readings here are of the deep features, pooled over the image.
"""

from __future__ import annotations

import torch
from anomalib.models.components import DynamicBufferMixin
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_SHRINKAGE = 0.1
_FLOOR = 1e-3
_NEIGHBOURS = 3


class WholeImages(DynamicBufferMixin, nn.Module):
    """Normal images as wholes.

    Everything is a buffer: a checkpoint and an exported model carry it.
    """

    spread_mean: Tensor
    spread_map: Tensor
    pooled: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("spread_mean", "spread_map", "pooled"):
            self.register_buffer(name, torch.empty(0))

    def fit(self, maps: Tensor, pooled: Tensor) -> None:
        """Take the spread of channels and the pooled features of normal images.

        Args:
            maps: Standard deviations of the channels of a layer over the image, as :func:`channel_spread` returns
                them, shape ``(N, C)``.
            pooled: Pooled features of the deepest stage, shape ``(N, D)``.
        """
        wide = maps.double()
        self.spread_mean = wide.mean(dim=0).to(maps)
        values, vectors = torch.linalg.eigh(torch.cov(wide.T, correction=0))
        # Of few images some directions have no variance at all: they must not count more than the others.
        least = _SHRINKAGE * values.mean() + (_FLOOR * wide.mean()).square()
        self.spread_map = (vectors * (values.clamp_min(0) + least).rsqrt()).to(maps).contiguous()
        self.pooled = F.normalize(pooled, dim=1)

    def forward(self, spread: Tensor, pooled: Tensor) -> Tensor:
        """Return how far images are from normal ones.

        Args:
            spread: Standard deviations of the channels, shape ``(B, C)``.
            pooled: Pooled features, shape ``(B, D)``.

        Returns:
            The Mahalanobis distance of the spread, and the mean distance to the three nearest normal images by pooled
            features of unit length, shape ``(B, 2)``.
        """
        mahalanobis = ((spread - self.spread_mean) @ self.spread_map).norm(dim=1)
        distance = PatchcoreModel.euclidean_dist(F.normalize(pooled, dim=1), self.pooled)
        nearest = distance.topk(min(_NEIGHBOURS, len(self.pooled)), dim=1, largest=False).values.mean(dim=1)
        return torch.stack([mahalanobis, nearest], dim=1)


def channel_spread(maps: Tensor) -> Tensor:
    """Return the standard deviations of the channels over the image.

    Args:
        maps: Shape ``(B, C, h, w)``.

    Returns:
        Shape ``(B, C)``.
    """
    return maps.flatten(2).std(dim=2, correction=0)
