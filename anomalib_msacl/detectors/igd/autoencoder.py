"""One part of IGD, global or local: descriptor, decoder, critic and Gaussian classifier for images of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn

from anomalib_msacl.detectors.igd.gaussian import GaussianClassifier
from anomalib_msacl.detectors.igd.losses import (
    INTERPOLATION,
    blend,
    critic_loss,
    interpolate,
    interpolation_loss,
    loss_and_map,
    reconstruction_loss,
)
from anomalib_msacl.detectors.igd.networks import Critic, Decoder
from anomalib_msacl.detectors.igd.similarity import Similarity


class Normalisation(nn.Module):
    """The way from the units of the encoder's input back to [0, 1].

    Args:
        mean: One value a channel.
        std: One value a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("std", std.reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images from images in [0, 1], shape ``(..., C, H, W)``."""
        return (images - self.mean) / self.std

    def undo(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] from normalised ones, shape ``(..., C, H, W)``."""
        return images * self.std + self.mean


class Step(NamedTuple):
    """What a training step has found out; the images are for the critic, without gradients.

    Attributes:
        terms: ``reconstruction``, ``gaussian`` and ``interpolation``, means over the batch.
        interpolations: ``G(z_a)``, shape ``(B, C, H, W)``; None of a single image, which has no partner.
        share: ``a``, shape ``(B,)``.
        blends: ``x^ + .2 (x - x^)``, shape ``(B, C, H, W)``.
    """

    terms: dict[str, Tensor]
    interpolations: Tensor | None
    share: Tensor
    blends: Tensor

    @property
    def total(self) -> Tensor:
        """Return ``L_rec + L_gac + .1 L_int``."""
        weights = {"interpolation": INTERPOLATION}
        return cast("Tensor", sum(weights.get(name, 1.0) * value for name, value in self.terms.items()))


class Autoencoder(nn.Module):
    """A Gaussian descriptor with decoder and critic.

    Args:
        features: Channels of the encoder's pooled features.
        dim: Dimension of the descriptors.
        size: Height and width of the images in pixels.
        width: Base width of decoder and critic.
        window: Window of MS-SSIM in pixels.
        normalisation: Units of the images.
    """

    def __init__(
        self,
        features: int,
        dim: int,
        size: Sequence[int],
        width: int,
        window: int,
        normalisation: Normalisation,
    ) -> None:
        super().__init__()
        self.normalisation = normalisation
        self.project = nn.Linear(features, dim)
        self.decode = Decoder(dim, size, width)
        self.critic = Critic(size, width)
        self.classifier = GaussianClassifier(dim)
        self.similarity = Similarity.for_size(min(size), window)

    def step(self, images: Tensor, features: Tensor, share: Tensor) -> Step:
        """Return the terms that encoder and decoder minimise.

        Args:
            images: Normalised, shape ``(B, 3, H, W)``.
            features: The encoder's, pooled, shape ``(B, features)``.
            share: ``a`` of each image, shape ``(B,)``.
        """
        descriptors = self.project(features)
        found = self.decode(descriptors)
        undo = self.normalisation.undo
        terms = {
            "reconstruction": reconstruction_loss(undo(images), undo(found), self.similarity).mean(),
            "gaussian": self.classifier(descriptors).mean(),
        }
        mixed = None
        if len(images) > 1:
            mixed = self.decode(interpolate(descriptors, share))
            terms["interpolation"] = interpolation_loss(self.critic(mixed)).mean()
            mixed = mixed.detach()
        return Step(terms, mixed, share, blend(images, found).detach())

    def critic_step(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """Return what the critic minimises, and what it says of the interpolations, shape ``(B,)``."""
        of_blends = self.critic(step.blends)
        if step.interpolations is None:
            return interpolation_loss(of_blends).mean(), None
        of_mixed = self.critic(step.interpolations)
        return critic_loss(of_mixed, step.share, of_blends).mean(), of_mixed.detach()

    def examine(self, images: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``L_rec`` ``(B,)``, ``L_gac`` ``(B,)`` and the residual map ``(B, 1, H, W)``; see :meth:`step`."""
        descriptors = self.project(features)
        shown, found = self.normalisation.undo(images), self.normalisation.undo(self.decode(descriptors))
        reconstruction, residual = loss_and_map(shown, found, self.similarity)
        return reconstruction, self.classifier(descriptors), residual
