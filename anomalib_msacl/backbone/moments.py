"""What the patches of a feature map say of its channels: second moments, and ranges."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from anomalib_msacl import distributed


class _Patches(ABC):
    """Number, sum and squares of the patches of a feature map, gathered batch by batch in double precision.

    Args:
        channels: Channels of the feature map.
    """

    def __init__(self, channels: int) -> None:
        self._number = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._square = self._squares(torch.zeros(0, channels, dtype=torch.float64))

    def add(self, maps: Tensor) -> None:
        """Take feature maps of shape ``(B, C, h, w)``."""
        self._take(maps.detach().cpu().double().movedim(1, -1).flatten(0, 2))

    def join(self) -> None:
        """Take the patches of all processes together, once."""
        self._number = int(distributed.total(torch.tensor(self._number)))
        self._sum, self._square = distributed.total(self._sum), distributed.total(self._square)

    @property
    def mean(self) -> Tensor:
        """Mean of the patches, shape ``(C,)``, float64."""
        return self._sum / self._number

    def _take(self, patches: Tensor) -> None:
        """Take patches of shape ``(N, C)``."""
        self._number += len(patches)
        self._sum = self._sum + patches.sum(dim=0)
        self._square = self._square + self._squares(patches)

    @abstractmethod
    def _squares(self, patches: Tensor) -> Tensor:
        """Return what is summed up of the squares of patches of shape ``(N, C)``."""


class Moments(_Patches):
    """Second moments of the patches of a feature map."""

    @property
    def covariance(self) -> Tensor:
        """Covariance of the patches, shape ``(C, C)``, float64."""
        return self._square / self._number - torch.outer(self.mean, self.mean)

    def _squares(self, patches: Tensor) -> Tensor:
        return patches.T @ patches


class Ranges(_Patches):
    """Range of each channel of a feature map: from the mean of its patches to the highest one."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self._highest = torch.full((channels,), -torch.inf, dtype=torch.float64)

    def join(self) -> None:
        """Take the patches of all processes together, once."""
        super().join()
        self._highest = torch.stack(distributed.gather_objects(self._highest)).amax(dim=0)

    @property
    def range(self) -> Tensor:
        """Distance from the mean to the highest patch, shape ``(C,)``, float64."""
        return self._highest - self.mean

    @property
    def variance(self) -> Tensor:
        """Variance of the patches, shape ``(C,)``, float64."""
        return (self._square / self._number - self.mean.square()).clamp_min(0)

    def _take(self, patches: Tensor) -> None:
        super()._take(patches)
        self._highest = torch.maximum(self._highest, patches.amax(dim=0))

    def _squares(self, patches: Tensor) -> Tensor:
        return patches.square().sum(dim=0)
