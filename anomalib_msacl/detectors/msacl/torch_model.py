"""The detector of ``Msacl``: encoder, memory bank of normal patches and lesion head. Tensors only."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.backbone import Encoder
from anomalib_msacl.backbone.encoder import evaluating
from anomalib_msacl.detectors.msacl.lesion_head import LesionHead
from anomalib_msacl.detectors.msacl.memory_bank import PatchMemoryBank
from anomalib_msacl.pretraining.patches import patch_features

_CHUNK = 8  # images at a time


class MsaclModel(nn.Module):
    """Scores images by their distance from normality.

    Args:
        encoder: Backbone with its layers.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.lesion_head = LesionHead(encoder.dims)
        self.memory_bank = PatchMemoryBank()

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images by their distance from normality; by the lesion head before the memory bank is fitted.

        The evidence on an image is the distance of its farthest patch and the mean distance of its patches; that on a
        cell its distance and the lesion head. How it is joined: :class:`PatchMemoryBank`.

        Args:
            images: Values in [0, 1], shape ``(B, 3, H, W)``.

        Returns:
            Scores in [0, 1] of shape ``(B,)`` and maps in [0, 1] of shape ``(B, 1, H, W)``.
        """
        maps = self.encoder(images, pooled=False)[0]
        logits = self.lesion_head(maps)
        if self.memory_bank.fitted:
            score, plane = self.memory_bank(*self._evidence(maps, logits))
        else:
            score = F.avg_pool2d(logits, 3, 1, 1).amax(dim=(-3, -2, -1)).sigmoid()
            plane = logits.sigmoid()
        anomaly_map = F.interpolate(plane, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)

    @torch.no_grad()
    def fit_memory_bank(self, images: Tensor, held_out: Tensor, seed: int) -> None:
        """Fill the bank of normal patches and set the units of the score.

        Args:
            images: Normal training images in [0, 1], shape ``(N, 3, H, W)``.
            held_out: Other normal images, shape ``(M, 3, H, W)``.
            seed: Seed of the choice of patches.
        """
        device = self.encoder.mean.device

        def maps_of(batches: Tensor) -> Iterator[list[Tensor]]:
            return (self.encoder(batch.to(device), pooled=False)[0] for batch in torch.split(batches, _CHUNK))

        with evaluating(self):
            self.memory_bank.fit((patch_features(maps) for maps in maps_of(images)), len(images), seed)
            found = [self._evidence(layers, self.lesion_head(layers)) for layers in maps_of(held_out)]
        self.memory_bank.calibrate(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _evidence(self, maps: list[Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the evidence on images ``(B, 2)`` and on their cells ``(B, 2, h, w)``."""
        distance = self.memory_bank.distance(patch_features(maps))
        farthest, mean = distance.amax(dim=(-3, -2, -1)), distance.mean(dim=(-3, -2, -1))
        return torch.stack([farthest, mean], dim=1), torch.cat([distance, logits], dim=1)
