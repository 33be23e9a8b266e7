"""The networks of MSACL: encoder, projection, heads and the terms between them. Tensors only, no training loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from anomalib.data import InferenceBatch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.encoder import Encoder, evaluating
from anomalib_msacl.losses import (
    AugmentationPrediction,
    DenseLesion,
    MsaclContrastive,
    MultiCentring,
    RelativePosition,
    cells,
)
from anomalib_msacl.normality import Normality, patch_features
from anomalib_msacl.recipe import Recipe
from anomalib_msacl.views import patch_pairs


class LesionHead(nn.Module):
    """A small probe that reads lesions from feature maps; gradients do not reach the maps.

    Args:
        dims: Channels of each feature map.
        hidden: Channels in between.
    """

    def __init__(self, dims: list[int], hidden: int = 64) -> None:
        super().__init__()
        # Without scale and shift: it only brings layers of different magnitude to one unit.
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim, affine=False) for dim in dims)
        self.head = nn.Sequential(nn.Conv2d(sum(dims), hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return lesion logits of shape ``(B, 1, h, w)``, at the size of the first map."""
        size = maps[0].shape[-2:]
        parts = [
            F.interpolate(norm(F.avg_pool2d(layer.detach(), 3, 1, 1)), size=size, mode="bilinear", align_corners=False)
            for norm, layer in zip(self.norms, maps, strict=True)
        ]
        return cast("Tensor", self.head(torch.cat(parts, dim=1)))

    @staticmethod
    def loss(logits: Tensor, masks: Tensor) -> Tensor:
        """Return the binary cross-entropy with the share of lesion in each cell; lesions weigh as much as tissue."""
        target = cells(masks.to(logits.dtype), logits)
        balance = ((1 - target).sum() / target.sum().clamp_min(1)).clamp(1, 20)
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=balance)


class MsaclModel(nn.Module):
    """Encoder, projection and heads of MSACL.

    Args:
        encoder: Backbone with its layers.
        recipe: Which terms there are; see :class:`Recipe`.
    """

    def __init__(self, encoder: Encoder, recipe: Recipe) -> None:
        super().__init__()
        self.encoder, self.recipe = encoder, recipe
        dim = encoder.dim
        # f_theta in the paper: backbone and an MLP to 128 dimensions.
        self.projection = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, recipe.projection))
        self.centring = MultiCentring(recipe.classes, recipe.projection, recipe.rescale_centring)
        self.contrastive = MsaclContrastive(recipe.temperature, recipe.alpha, recipe.positives)
        self.augmentation = AugmentationPrediction(dim, recipe.classes)
        self.position = RelativePosition(dim)
        self.dense = DenseLesion()
        self.lesion_head = LesionHead(encoder.dims)
        self.normality = Normality()

    def embed(self, images: Tensor) -> Tensor:
        """Return ``f_theta`` of images in [0, 1] of shape ``(B, 3, H, W)``: ``z`` of shape ``(B, projection)``."""
        return cast("Tensor", self.projection(self.encoder(images)[1]))

    def terms(
        self, images: Tensor, masks: Tensor, classes: Tensor, owners: Tensor
    ) -> tuple[dict[str, Tensor], list[Tensor], Tensor | None]:
        """Return the terms whose weight is not 0.

        Args:
            images: Values in [0, 1], shape ``(B, 3, H, W)``.
            masks: Lesion masks, shape ``(B, 1, H, W)``.
            classes: Number of lesions, shape ``(B,)``.
            owners: Which original image each comes from, shape ``(B,)``.

        Returns:
            Unweighted terms by name, the feature maps of the layers, and ``z`` where a term needs it.
        """
        recipe = self.recipe
        maps, pooled = self.encoder(images, pooled=recipe.uses_image_terms)
        terms: dict[str, Tensor] = {}
        z = None
        if recipe.centring or recipe.contrastive:
            z = self.projection(pooled)
            if recipe.centring:
                terms["centring"] = self.centring(z, classes)
            if recipe.contrastive:
                terms["contrastive"] = self.contrastive(z, classes, self.centring.centres, owners)
        if recipe.augmentation:
            terms["augmentation"] = self.augmentation(pooled, classes)
        if recipe.position:
            terms["position"] = self._position(images[classes == 0])
        if recipe.dense:
            terms["dense"] = self._dense(maps, masks, owners)
        return terms, maps, z

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of terms."""
        return torch.stack([getattr(self.recipe, name) * value for name, value in terms.items()]).sum()

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images by their distance from normality; by the lesion head while training.

        The evidence on an image is the distance of its farthest patch and the mean distance of its patches; that on a
        cell its distance and the lesion head. How it is joined: :class:`anomalib_msacl.normality.Normality`.

        Args:
            images: Values in [0, 1], shape ``(B, 3, H, W)``.

        Returns:
            Scores in [0, 1] of shape ``(B,)`` and maps in [0, 1] of shape ``(B, 1, H, W)``.
        """
        maps = self.encoder(images, pooled=False)[0]
        logits = self.lesion_head(maps)
        if self.normality.ready:
            score, plane = self.normality(*self._evidence(maps, logits))
        else:
            score, plane = self._lesion(logits).sigmoid(), logits.sigmoid()
        anomaly_map = F.interpolate(plane, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)

    @torch.no_grad()
    def learn_normality(self, images: Tensor, held_out: Tensor) -> None:
        """Fill the bank of normal patches and set the units of the score.

        Args:
            images: Normal training images in [0, 1], shape ``(N, 3, H, W)``.
            held_out: Other normal images, shape ``(M, 3, H, W)``.
        """
        device, size = self.encoder.mean.device, self.recipe.batch_size

        def maps_of(batches: Tensor) -> Iterator[list[Tensor]]:
            return (self.encoder(batch.to(device), pooled=False)[0] for batch in torch.split(batches, size))

        with evaluating(self):
            patches = (patch_features(maps) for maps in maps_of(images))
            self.normality.remember(patches, len(images), self.recipe.seed)
            found = [self._evidence(layers, self.lesion_head(layers)) for layers in maps_of(held_out)]
        self.normality.calibrate(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _evidence(self, maps: list[Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the evidence on images ``(B, 2)`` and on their cells ``(B, 2, h, w)``."""
        distance = self.normality.distance(patch_features(maps))
        farthest, mean = distance.amax(dim=(-3, -2, -1)), distance.mean(dim=(-3, -2, -1))
        return torch.stack([farthest, mean], dim=1), torch.cat([distance, logits], dim=1)

    @staticmethod
    def _lesion(logits: Tensor) -> Tensor:
        """Return the lesion head's word on whole images, shape ``(B,)``."""
        return F.avg_pool2d(logits, 3, 1, 1).amax(dim=(-3, -2, -1))

    def _position(self, images: Tensor) -> Tensor:
        """Return ``l_pos`` of normal views."""
        unit = self.encoder.granularity
        side = self.encoder.fixed_side or max(unit, round(min(images.shape[-2:]) / 2 / unit) * unit)
        patches, neighbours, positions = patch_pairs(images, side)
        features = cast("Tensor", self.encoder(torch.cat([patches, neighbours]))[1])
        return cast("Tensor", self.position(*features.chunk(2), positions))

    def _dense(self, maps: list[Tensor], masks: Tensor, owners: Tensor) -> Tensor:
        """Return the mean of the dense term over the layers that are trained."""
        values = [self.dense(layer, masks, owners) for layer in maps if layer.requires_grad or not self.training]
        return torch.stack(values).mean() if values else masks.new_zeros(())


def class_separation(z: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far apart and how tight the classes of a batch are.

    Args:
        z: Features, shape ``(B, D)``.
        classes: Shape ``(B,)``.

    Returns:
        Mean distance between the class means, and mean distance of a sample to the mean of its class.
    """
    z, labels = z.float(), torch.unique(classes)  # some distances are not there in bfloat16
    means = torch.stack([z[classes == label].mean(dim=0) for label in labels])
    spread = torch.stack(
        [(z[classes == label] - mean).norm(dim=1).mean() for label, mean in zip(labels, means, strict=True)]
    )
    return F.pdist(means).mean(), spread.mean()
