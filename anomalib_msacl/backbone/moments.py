"""Second moments of the patches of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor

from anomalib_msacl import distributed


class Moments:
    """Second moments of the patches of a feature map, gathered batch by batch in double precision.

    Args:
        channels: Channels of the feature map.
    """

    def __init__(self, channels: int) -> None:
        self._number = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._square = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, maps: Tensor) -> None:
        """Take feature maps of shape ``(B, C, h, w)``."""
        patches = maps.detach().cpu().double().movedim(1, -1).flatten(0, 2)
        self._number += len(patches)
        self._sum = self._sum + patches.sum(dim=0)
        self._square = self._square + patches.T @ patches

    def join(self) -> None:
        """Take the patches of all processes together, once."""
        self._number = int(distributed.total(torch.tensor(self._number)))
        self._sum, self._square = distributed.total(self._sum), distributed.total(self._square)

    @property
    def mean(self) -> Tensor:
        """Mean of the patches, shape ``(C,)``, float64."""
        return self._sum / self._number

    @property
    def covariance(self) -> Tensor:
        """Covariance of the patches, shape ``(C, C)``, float64."""
        return self._square / self._number - torch.outer(self.mean, self.mean)
