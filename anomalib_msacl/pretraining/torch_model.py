"""The terms of MSACL with their projection and heads. Tensors only, no training loop."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.backbone import Encoder
from anomalib_msacl.pretraining.exchange import Exchange, exchange_of
from anomalib_msacl.pretraining.losses import (
    AugmentationPrediction,
    DenseLesion,
    MsaclContrastive,
    MultiCentring,
    RelativePosition,
)
from anomalib_msacl.pretraining.synthesis import SyntheticBatch
from anomalib_msacl.pretraining.views import patch_pairs
from anomalib_msacl.recipe import Recipe


class TermValues(NamedTuple):
    """What the terms say of a batch.

    Attributes:
        values: Unweighted terms by name, those whose weight is not 0.
        maps: Feature maps of the encoder's layers, each of shape ``(B, C_l, h_l, w_l)``.
        z: ``f_theta`` of the images of all processes, shape ``(N, projection)``; None where no term needs it.
        classes: Their classes, shape ``(N,)``.
    """

    values: dict[str, Tensor]
    maps: list[Tensor]
    z: Tensor | None
    classes: Tensor


class MsaclTerms(nn.Module):
    """Projection, heads and terms of MSACL, on the features of an encoder.

    Args:
        encoder: Only the numbers of its channels are taken from it.
        recipe: Which terms there are, and their weights.
    """

    def __init__(self, encoder: Encoder, recipe: Recipe) -> None:
        super().__init__()
        loss, dim = recipe.loss, encoder.dim
        self.loss = loss
        # f_theta in the paper: backbone and an MLP to 128 dimensions.
        self.projection = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, loss.projection))
        self.centring = MultiCentring(recipe.classes, loss.projection, loss.rescale_centring)
        self.contrastive = MsaclContrastive(loss.temperature, loss.alpha, loss.positives)
        self.augmentation = AugmentationPrediction(dim, recipe.classes)
        self.position = RelativePosition(dim)
        self.dense = DenseLesion(loss.dense_margin, loss.dense_temperature, loss.dense_queries, loss.dense_bank)

    @property
    def needs_centres(self) -> bool:
        """Whether a term looks at the class centres and they are not fixed yet."""
        return (self.loss.centring > 0 or self.loss.contrastive > 0) and not bool(self.centring.ready)

    def embed(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Return ``f_theta`` of images in [0, 1] of shape ``(B, 3, H, W)``: ``z`` of shape ``(B, projection)``."""
        return cast("Tensor", self.projection(encoder(images)[1]))

    def forward(
        self, encoder: Encoder, batch: SyntheticBatch, position: bool = True, exchange: Exchange | None = None
    ) -> TermValues:
        """Return the terms whose weight is not 0.

        Args:
            encoder: The backbone that is trained.
            batch: Images of all classes.
            position: Whether ``l_pos``, which sends further images through the encoder, is among them.
            exchange: Joins the batch with those of other processes; that of their number if None.
        """
        loss, exchange = self.loss, exchange or exchange_of(batch)
        classes, owners = exchange.classes, exchange.owners
        maps, pooled = encoder(batch.images, pooled=loss.uses_pooled_features)
        if pooled is not None:
            pooled = exchange.rows(pooled)
        values: dict[str, Tensor] = {}
        z = None
        if loss.centring or loss.contrastive:
            z = self.projection(pooled)
            if loss.centring:
                values["centring"] = self.centring(z, classes)
            if loss.contrastive:
                values["contrastive"] = self.contrastive(z, classes, self.centring.centres, owners)
        if loss.augmentation:
            values["augmentation"] = self.augmentation(pooled, classes)
        if loss.position and position:
            values["position"] = self._position(encoder, batch.images, exchange)
        if loss.dense:
            values["dense"] = self._dense(maps, batch, exchange)
        return TermValues(values, maps, z, classes)

    def total(self, values: dict[str, Tensor], batches: int = 1) -> Tensor:
        """Return the weighted sum of terms.

        Args:
            values: Terms by name.
            batches: Batches of a step, of which only one has ``l_pos``: there it counts for all of them.
        """
        times = {"position": batches}
        weighted = [getattr(self.loss, name) * times.get(name, 1) * value for name, value in values.items()]
        return torch.stack(weighted).sum()

    def _position(self, encoder: Encoder, images: Tensor, exchange: Exchange) -> Tensor:
        """Return ``l_pos`` of the first normal views."""
        unit = encoder.granularity
        side = encoder.fixed_side or max(unit, round(min(images.shape[-2:]) / 2 / unit) * unit)
        normal, places, draw = exchange.pairs(images, self.loss.position_images)
        own = draw.select(places) if len(places) == len(normal) else draw.select(places.new_zeros(1))
        patches, neighbours, _ = patch_pairs(normal, side, own)
        features = cast("Tensor", encoder(torch.cat([patches, neighbours]))[1])
        pairs = exchange.joined(torch.stack(features.chunk(2), dim=1), places)
        return cast("Tensor", self.position(*pairs.unbind(dim=1), draw.positions))

    def _dense(self, maps: list[Tensor], batch: SyntheticBatch, exchange: Exchange) -> Tensor:
        """Return the mean of the dense term over the layers that are trained."""
        layers = [layer for layer in maps if layer.requires_grad or not self.training]
        values = [self.dense(layer, batch.masks, batch.owners, exchange) for layer in layers]
        return torch.stack(values).mean() if values else batch.masks.new_zeros(())


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
