"""What the patches of a feature map say of its channels: second moments, and ranges."""

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


class Ranges:
    """Range of each channel of a feature map, gathered batch by batch: from the mean of its patches to the highest one.

    Args:
        channels: Channels of the feature map.
    """

    def __init__(self, channels: int) -> None:
        self._number = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._square = torch.zeros(channels, dtype=torch.float64)
        self._highest = torch.full((channels,), -torch.inf, dtype=torch.float64)

    def add(self, maps: Tensor) -> None:
        """Take feature maps of shape ``(B, C, h, w)``."""
        patches = maps.detach().cpu().double().movedim(1, -1).flatten(0, 2)
        self._number += len(patches)
        self._sum = self._sum + patches.sum(dim=0)
        self._square = self._square + patches.square().sum(dim=0)
        self._highest = torch.maximum(self._highest, patches.amax(dim=0))

    def join(self) -> None:
        """Take the patches of all processes together, once."""
        self._number = int(distributed.total(torch.tensor(self._number)))
        self._sum, self._square = distributed.total(self._sum), distributed.total(self._square)
        self._highest = torch.stack(distributed.gather_objects(self._highest)).amax(dim=0)

    @property
    def range(self) -> Tensor:
        """Distance from the mean to the highest patch, shape ``(C,)``, float64."""
        return self._highest - self._sum / self._number

    @property
    def variance(self) -> Tensor:
        """Variance of the patches, shape ``(C,)``, float64."""
        return (self._square / self._number - (self._sum / self._number).square()).clamp_min(0)
