"""The detector of ``Msacl``: encoder, memories of normal patches and images, and lesion head. Tensors only."""

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
from anomalib_msacl.detectors.msacl.whole_images import WholeImages, channel_spread
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
        self.whole_images = WholeImages()

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images by their distance from normality; by the lesion head before the memory bank is fitted.

        The evidence on an image is the distance of its farthest patch, the mean distance of its patches, and what
        :class:`WholeImages` finds; that on a cell its distance and the lesion head. How it is joined:
        :class:`PatchMemoryBank`.

        Args:
            images: Values in [0, 1], shape ``(B, 3, H, W)``.

        Returns:
            Scores in [0, 1] of shape ``(B,)`` and maps in [0, 1] of shape ``(B, 1, H, W)``.
        """
        if self.memory_bank.fitted:
            score, plane = self.memory_bank(*self._evidence(images))
        else:
            logits = self.lesion_head(self.encoder(images, pooled=False)[0])
            score = F.avg_pool2d(logits, 3, 1, 1).amax(dim=(-3, -2, -1)).sigmoid()
            plane = logits.sigmoid()
        anomaly_map = F.interpolate(plane, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)

    @torch.no_grad()
    def fit_memory_bank(self, images: Tensor, held_out: Tensor, seed: int) -> None:
        """Fill the memories of normal patches and images, and set the units of the score.

        Args:
            images: Normal training images in [0, 1], shape ``(N, 3, H, W)``.
            held_out: Other normal images, shape ``(M, 3, H, W)``.
            seed: Seed of the choice of patches.
        """
        with evaluating(self):
            whole: list[tuple[Tensor, Tensor]] = []
            self.memory_bank.fit(self._patches(images, whole), len(images), seed)
            self.whole_images.fit(*(torch.cat(parts) for parts in zip(*whole, strict=True)))
            found = [self._evidence(batch) for batch in self._batches(held_out)]
        self.memory_bank.calibrate(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _batches(self, images: Tensor) -> Iterator[Tensor]:
        """Yield a few images at a time, where the encoder is."""
        return (batch.to(self.encoder.mean.device) for batch in torch.split(images, _CHUNK))

    def _patches(self, images: Tensor, whole: list[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Yield the features of patches, and keep those of whole images."""
        for batch in self._batches(images):
            maps, pooled = self.encoder(batch)
            whole.append((channel_spread(self._deepest(maps)), pooled))
            yield patch_features(maps)

    def _deepest(self, maps: list[Tensor]) -> Tensor:
        """Return the map of the deepest layer."""
        return maps[self.encoder.index.index(max(self.encoder.index))]

    def _evidence(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the evidence on images ``(B, 4)`` and on their cells ``(B, 2, h, w)``."""
        maps, pooled = self.encoder(images)
        distance = self.memory_bank.distance(patch_features(maps))
        farthest, mean = distance.amax(dim=(-3, -2, -1)), distance.mean(dim=(-3, -2, -1))
        whole = self.whole_images(channel_spread(self._deepest(maps)), pooled)
        evidence = torch.cat([torch.stack([farthest, mean], dim=1), whole], dim=1)
        return evidence, torch.cat([distance, self.lesion_head(maps)], dim=1)
