"""A memory bank of normal patches: how far an image is from normal ones, patch by patch.

Two kinds of disease need two readings of the same distances: a focal lesion is one patch far from normality, a diffuse
one all patches a little. Each reading is evidence in units of its own spread over normal images, so that none has to be
weighted by hand; so are distance and lesion head in a map.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from anomalib.models.components import DynamicBufferMixin
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_FLOOR = 0.01
_CHUNK = 512  # patches of the bank that are compared at a time


class PatchMemoryBank(DynamicBufferMixin, nn.Module):
    """A bank of normal patches, and the spread of evidence and of maps over normal images.

    Everything is a buffer: a checkpoint and an exported model carry it.

    Args:
        size: Patches in the bank, at most.
    """

    bank: Tensor
    centre: Tensor
    image_mean: Tensor
    image_std: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, size: int = 4096) -> None:
        super().__init__()
        self.size = size
        for name in ("bank", "centre", "image_mean", "image_std", "pixel_mean", "pixel_std"):
            self.register_buffer(name, torch.empty(0))

    @property
    def fitted(self) -> bool:
        """Whether :meth:`fit` and :meth:`calibrate` have been called."""
        return len(self.image_mean) > 0

    def fit(self, batches: Iterable[Tensor], images: int, seed: int) -> None:
        """Fill the bank with a random choice of normal patches, of every batch in proportion.

        Args:
            batches: Features of patches of normal training images, each of shape ``(B, C, h, w)``.
            images: How many images there are in all batches.
            seed: Seed of the choice.
        """
        generator, chosen = torch.Generator().manual_seed(seed), []
        for patches in batches:
            rows = patches.movedim(1, -1).flatten(0, 2)
            number = math.ceil(self.size * len(patches) / images)
            chosen.append(rows[torch.randperm(len(rows), generator=generator)[:number].to(rows.device)])
        bank = torch.cat(chosen)[: self.size]
        # Distances are differences of products: near the origin they keep more digits, above all in bf16.
        self.centre = bank.mean(dim=0)
        self.bank = bank - self.centre

    def calibrate(self, evidence: Tensor, planes: Tensor) -> None:
        """Set the units: mean and standard deviation over normal images that the bank does not hold.

        Args:
            evidence: Shape ``(N, E)``.
            planes: Shape ``(N, P, h, w)``.
        """
        pixels = planes.movedim(1, -1).flatten(0, 2)
        for name, values in (("image", evidence), ("pixel", pixels)):
            mean, spread = values.mean(dim=0), values.std(dim=0, correction=0)
            # Of one image there is no spread: a part of the size of the evidence keeps the parts comparable.
            setattr(self, f"{name}_mean", mean)
            setattr(self, f"{name}_std", torch.maximum(spread, _FLOOR * mean.abs().clamp_min(_FLOOR)))

    def distance(self, patches: Tensor) -> Tensor:
        """Return the Euclidean distance of patches ``(B, C, h, w)`` to the nearest of the bank, ``(B, 1, h, w)``."""
        rows = patches.movedim(1, -1)
        flat = rows.flatten(0, 2) - self.centre
        parts = [PatchcoreModel.euclidean_dist(flat, part).amin(dim=1) for part in torch.split(self.bank, _CHUNK)]
        return torch.stack(parts).amin(dim=0).reshape(rows.shape[:-1])[:, None]

    def forward(self, evidence: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and maps in (0, 1), both .5 for the average normal image.

        Args:
            evidence: Shape ``(B, E)``.
            planes: Shape ``(B, P, h, w)``.

        Returns:
            Scores of shape ``(B,)`` and maps of shape ``(B, 1, h, w)``.
        """
        score = ((evidence - self.image_mean) / self.image_std).mean(dim=1)
        pixel = (planes - self.pixel_mean[:, None, None]) / self.pixel_std[:, None, None]
        # Unlike a sigmoid, it never runs out of digits: evidence of 50 deviations still has an order.
        return 0.5 + 0.5 * F.softsign(score), 0.5 + 0.5 * F.softsign(pixel.mean(dim=1, keepdim=True))
