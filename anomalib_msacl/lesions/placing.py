"""Places of lesions that keep clear of each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CANDIDATES = 12  # places tried for each lesion
_REACH = 0.25  # of the side: what reaches farther is diffuse, and other lesions may lie in it


class Occupied:
    """Where the lesions of each image lie so far.

    Args:
        batch: Number of images.
        ranks: Most lesions that an image has.
        side: The shorter side of the images in pixels.
        device: Where the lesions are.
    """

    def __init__(self, batch: int, ranks: int, side: int, device: torch.device) -> None:
        self.ranks = ranks
        self.limit = _REACH * side
        self.centre = torch.zeros(batch, ranks, 2, device=device)
        self.extent = torch.full((batch, ranks), -math.inf, device=device)  # minus infinity: nothing there

    def settle(self, candidates: Tensor, image: Tensor, order: Tensor, extent: Tensor) -> Tensor:
        """Choose a place for each lesion, by rising order, and remember it; lesions drawn again leave their old place.

        Args:
            candidates: Places ``(y, x)``, pixels, shape ``(N, S, 2)``.
            image: Image of each lesion, shape ``(N,)``.
            order: Rank within the image, shape ``(N,)``.
            extent: How far it reaches, pixels, shape ``(N,)``.

        Returns:
            The first candidate that is clear of all others, or else the one least in their way, shape ``(N, 2)``.
        """
        chosen = candidates[:, 0].clone()
        extent = extent.clamp(max=self.limit)
        self.extent[image, order] = -math.inf
        for rank in range(self.ranks):
            rows = (order == rank).nonzero()[:, 0]
            others = image[rows]
            distance = (candidates[rows][:, :, None] - self.centre[others][:, None]).norm(dim=-1)
            clearance = distance - extent[rows][:, None, None] - self.extent[others][:, None]
            best = clearance.amin(dim=-1).clamp(max=0).argmax(dim=1)
            chosen[rows] = candidates[rows, best]
            self.centre[others, rank], self.extent[others, rank] = chosen[rows], extent[rows]
        return chosen
