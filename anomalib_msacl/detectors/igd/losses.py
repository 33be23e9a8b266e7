"""The terms of IGD (arXiv 2101.10043), one value an image: what they are made of lies in the other modules.

``x`` is an image, ``z = E(x)`` its descriptor, ``G`` the decoder, ``D`` the critic. What is minimised:

- E and G: ``L_rec + L_gac + .1 L_int``
- D: ``mean((D(G(z_a)) - a)^2) + mean(D(x^ + .2 (x - x^))^2)``
"""

from __future__ import annotations

from torch import Tensor

from anomalib_msacl.detectors.igd.similarity import Similarity

INTERPOLATION = 0.1  # weight of L_int
LARGEST_SHARE = 0.5  # of the first descriptor in an interpolation
_STRUCTURE = 0.85  # weight of MS-SSIM in L_rec; the rest is L1's
_BLEND = 0.2  # of the image in what the critic shall take for a reconstruction


def reconstruction_loss(images: Tensor, reconstructions: Tensor, similarity: Similarity) -> Tensor:
    """Return ``L_rec = .85 (1 - MS-SSIM(x, G(z))) + .15 mean |x - G(z)|``.

    Args:
        images: Values in [0, 1], so that the width of their range is 1; shape ``(B, C, H, W)``.
        reconstructions: The same shape.
        similarity: Window and scales.

    Returns:
        Shape ``(B,)``.
    """
    difference = (images - reconstructions).abs()
    return _mixed(similarity.of_images(reconstructions, images), difference.flatten(1).mean(dim=1))


def loss_and_map(images: Tensor, reconstructions: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """Return :func:`reconstruction_loss`, and what it says pixel by pixel.

    Args:
        images: Values in [0, 1], shape ``(B, C, H, W)``.
        reconstructions: The same shape.
        similarity: Window and scales.

    Returns:
        Shapes ``(B,)`` and ``(B, 1, H, W)``.
    """
    difference = (images - reconstructions).abs()
    of_images, of_pixels = similarity.of_both(reconstructions, images)
    return (
        _mixed(of_images, difference.flatten(1).mean(dim=1)),
        _mixed(of_pixels, difference.mean(dim=1, keepdim=True)),
    )


def _mixed(similarity: Tensor, difference: Tensor) -> Tensor:
    return _STRUCTURE * (1 - similarity) + (1 - _STRUCTURE) * difference


def gaussian_loss(descriptors: Tensor, centre: Tensor, sigma: Tensor) -> Tensor:
    """Return ``L_gac = 1 - exp(-||z - c||^2 / sigma)``.

    Args:
        descriptors: Shape ``(B, D)``.
        centre: Shape ``(D,)``.
        sigma: A number above 0.

    Returns:
        Shape ``(B,)``, in [0, 1].
    """
    return 1 - (-squared_distance(descriptors, centre) / sigma).exp()


def squared_distance(descriptors: Tensor, centre: Tensor) -> Tensor:
    """Return ``||z - c||^2`` of descriptors ``(B, D)``, shape ``(B,)``."""
    return (descriptors - centre).square().sum(dim=1)


def interpolate(descriptors: Tensor, share: Tensor) -> Tensor:
    """Return ``z_a = a z + (1 - a) z'``, where ``z'`` is the descriptor of another image: the batch reversed.

    Args:
        descriptors: Shape ``(B, D)``.
        share: ``a`` of each image in [0, .5], shape ``(B,)``.

    Returns:
        Shape ``(B, D)``.
    """
    return share[:, None] * descriptors + (1 - share[:, None]) * descriptors.flip(0)


def interpolation_loss(critic: Tensor) -> Tensor:
    """Return ``L_int = D(G(z_a))^2``: interpolations shall look as if they were none.

    Args:
        critic: What the critic says of them, shape ``(B,)``.

    Returns:
        Shape ``(B,)``.
    """
    return critic.square()


def blend(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return ``x^ + .2 (x - x^)``, which the critic learns to call no interpolation."""
    return reconstructions + _BLEND * (images - reconstructions)


def critic_loss(of_interpolations: Tensor, share: Tensor, of_blends: Tensor) -> Tensor:
    """Return ``(D(G(z_a)) - a)^2 + D(x^ + .2 (x - x^))^2``; the second term is the regulariser.

    Args:
        of_interpolations: What the critic says of interpolations, shape ``(B,)``.
        share: ``a`` of each, shape ``(B,)``.
        of_blends: What it says of blends of images and their reconstructions, shape ``(B,)``.

    Returns:
        Shape ``(B,)``.
    """
    return (of_interpolations - share).square() + of_blends.square()
