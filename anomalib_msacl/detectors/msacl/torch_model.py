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
from anomalib_msacl.errors import InputError
from anomalib_msacl.pretraining.patches import patch_features

_CHUNK = 8  # images at a time


class MsaclModel(nn.Module):
    """Scores images by their distance from normality.

    Args:
        encoder: Backbone with its layers.
        detector: Whether memory bank and lesion head will be fitted; nothing is scored before.
    """

    def __init__(self, encoder: Encoder, detector: bool = False) -> None:
        super().__init__()
        self.encoder, self.detector = encoder, detector
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

        Raises:
            InputError: As :meth:`check_fitted`.
        """
        self.check_fitted()
        if self.memory_bank.fitted:
            score, plane = self.memory_bank(*self._evidence(images))
        else:
            logits = self.lesion_head(self.encoder(images, pooled=False)[0])
            score = F.avg_pool2d(logits, 3, 1, 1).amax(dim=(-3, -2, -1)).sigmoid()
            plane = logits.sigmoid()
        anomaly_map = F.interpolate(plane, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)

    def check_fitted(self) -> None:
        """Refuse to score without the detector that was asked for.

        Raises:
            InputError: If it is not fitted.
        """
        if not self.memory_bank.fitted and self.detector:
            raise InputError(
                "this Msacl was stopped before its detector was fitted, or never trained: go on with its training by "
                "--ckpt_path, or take the checkpoint of a training that has ended."
            )

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

            def patches() -> Iterator[Tensor]:
                for batch in self._batches(images):
                    maps, spread, pooled = self._features(batch)
                    whole.append((spread, pooled))
                    yield patch_features(maps)

            self.memory_bank.fit(patches(), len(images), seed)
            self.whole_images.fit(*(torch.cat(parts) for parts in zip(*whole, strict=True)))
            found = [self._evidence(batch) for batch in self._batches(held_out)]
        self.memory_bank.calibrate(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _batches(self, images: Tensor) -> Iterator[Tensor]:
        """Yield a few images at a time, where the encoder is."""
        return (batch.to(self.encoder.mean.device) for batch in torch.split(images, _CHUNK))

    def _features(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the maps of the layers, the spread of the deepest of them, and the pooled features."""
        maps, pooled = self.encoder(images)
        deepest = self.encoder.index.index(max(self.encoder.index))
        return maps, channel_spread(maps[deepest]), pooled

    def _evidence(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the evidence on images ``(B, 4)`` and on their cells ``(B, 2, h, w)``."""
        maps, spread, pooled = self._features(images)
        distance = self.memory_bank.distance(patch_features(maps))
        farthest, mean = distance.amax(dim=(-3, -2, -1)), distance.mean(dim=(-3, -2, -1))
        evidence = torch.cat([torch.stack([farthest, mean], dim=1), self.whole_images(spread, pooled)], dim=1)
        return evidence, torch.cat([distance, self.lesion_head(maps)], dim=1)
