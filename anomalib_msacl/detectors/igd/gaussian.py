"""The Gaussian anomaly classifier: where descriptors of normal images lie, and how widely."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anomalib_msacl.detectors.igd.losses import gaussian_loss, squared_distance

FLOOR = 1.0  # of sigma
_AWAY = 0.1  # least distance of each coordinate of the centre from 0


class GaussianClassifier(nn.Module):
    """Centre and deviation, fixed while the descriptors are trained and estimated anew every few epochs.

    Args:
        dim: Dimension of the descriptors.

    Attributes:
        centre: ``c``, shape ``(D,)``.
        sigma: A number; that of the paper, in units of a squared distance.
        fitted: Whether both have been estimated.
    """

    centre: Tensor
    sigma: Tensor
    fitted: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("sigma", torch.tensor(FLOOR))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, descriptors: Tensor) -> Tensor:
        """Return how anomalous descriptors ``(B, D)`` are, in [0, 1], shape ``(B,)``."""
        return gaussian_loss(descriptors, self.centre, self.sigma)

    @torch.no_grad()
    def fit(self, batches: Sequence[Tensor]) -> float:
        """Estimate deviation and centre of normal descriptors: a step of expectation-maximisation.

        The deviation comes first, around the old centre; where there is none yet, the centre does.

        Args:
            batches: Descriptors of the training images, each of shape ``(B, D)``.

        Returns:
            The mean squared distance of the descriptors to their own mean: 0 where they are all alike.
        """
        descriptors = torch.cat(list(batches))
        centre = centre_of(descriptors)
        around = self.centre if self.fitted else centre
        self.sigma.copy_(sigma_of(batches, around))
        self.centre.copy_(centre)
        self.fitted.fill_(True)
        return float(squared_distance(descriptors, descriptors.mean(dim=0)).mean())


def centre_of(descriptors: Tensor) -> Tensor:
    """Return the mean of descriptors ``(N, D)``, every coordinate pushed to at least .1 away from 0."""
    mean = descriptors.mean(dim=0)
    sign = torch.where(mean < 0, -1.0, 1.0)
    return sign * mean.abs().clamp_min(_AWAY)


def sigma_of(batches: Sequence[Tensor], centre: Tensor) -> Tensor:
    """Return the mean over batches of ``max(1, mean ||z - c||^2)``."""
    return torch.stack([squared_distance(batch, centre).mean().clamp_min(FLOOR) for batch in batches]).mean()
