"""MS-SSIM of images and, for maps, of their pixels (Wang, Simoncelli, Bovik, 2003).

The figures are those of torchmetrics' ``multiscale_structural_similarity_index_measure`` with ``normalize="relu"``. It
cannot be used itself: its functions fail to export with a batch of any size, and they give no map of contrast.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.errors import InputError

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SIGMA = 1.5  # pixels
_K1, _K2 = 0.01, 0.03


@dataclass(frozen=True)
class Similarity:
    """Multi-scale structural similarity with a Gaussian window of standard deviation 1.5.

    Attributes:
        window: Side of the window in pixels, odd.
        weights: Exponent of each scale, the finest first; they add up to 1.
    """

    window: int = 11
    weights: tuple[float, ...] = WEIGHTS

    @classmethod
    def for_size(cls, side: int, window: int) -> Similarity:
        """Return the similarity for images of a size: as many scales, five at most, as torchmetrics allows.

        The weights are the first of the five, divided by their sum. So images of 256 pixels with a window of 11 have
        all five scales, patches of 32 pixels with a window of 3 have four.

        Args:
            side: Shorter side of the images in pixels.
            window: Side of the window in pixels.

        Raises:
            InputError: If the images are smaller than the window.

        Example:
            >>> [len(Similarity.for_size(side, 11).weights) for side in (32, 64, 128, 256)]
            [2, 3, 4, 5]
            >>> [round(weight, 3) for weight in Similarity.for_size(32, 3).weights]
            [0.052, 0.329, 0.346, 0.273]
        """
        if side < window:
            raise InputError(
                f"Igd: images of {side} pixels are smaller than the window of {window} pixels that compares them; "
                "use larger images."
            )
        fitting = [
            scales
            for scales in range(1, len(WEIGHTS) + 1)
            if side // max(1, scales - 1) ** 2 >= window and side >= 2**scales
        ]
        chosen = WEIGHTS[: max(fitting)]
        return cls(window, tuple(weight / math.fsum(chosen) for weight in chosen))

    def of_images(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the similarity of pairs of images, in [0, 1].

        At every scale but the coarsest, contrast and structure count, at the coarsest luminance too. What is
        negative counts as 0.

        Args:
            first: Values in [0, 1], shape ``(B, C, H, W)``.
            second: The same shape.

        Returns:
            Shape ``(B,)``.
        """
        return self._of_images(self._by_scale(first, second))

    def of_pixels(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the similarity around each pixel, in [0, 1]: the same product, of the windows' values as they are.

        Args:
            first: Values in [0, 1], shape ``(B, C, H, W)``.
            second: The same shape.

        Returns:
            The mean of the channels at each scale, enlarged and multiplied, shape ``(B, 1, H, W)``.
        """
        return self._of_pixels(self._by_scale(first, second))

    def of_both(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`of_images` and :meth:`of_pixels` in little more than half of the time of both."""
        found = self._by_scale(first, second)
        return self._of_images(found), self._of_pixels(found)

    def _of_images(self, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the similarity of images from that at each scale."""
        border = self.window // 2
        inner = slice(border, -border or None)
        # torchmetrics leaves the border out of all scales but the coarsest.
        means = [contrast[..., inner, inner].flatten(1).mean(dim=1) for _, contrast in found[:-1]]
        means.append(found[-1][0].flatten(1).mean(dim=1))
        return torch.stack([F.relu(mean) ** weight for mean, weight in zip(means, self.weights, strict=True)]).prod(0)

    def _of_pixels(self, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the similarity around each pixel from that at each scale."""
        planes = [contrast for _, contrast in found[:-1]] + [found[-1][0]]
        size = planes[0].shape[-2:]
        product = torch.ones_like(planes[0][:, :1])
        for plane, weight in zip(planes, self.weights, strict=True):
            mean = F.relu(plane.mean(dim=1, keepdim=True))
            product = product * F.interpolate(mean, size=size, mode="bilinear", align_corners=False) ** weight
        return product

    def _by_scale(self, first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return SSIM, and contrast with structure alone, at each scale; shapes ``(B, C, h, w)``."""
        found = []
        for scale in range(len(self.weights)):
            if scale:
                first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
            found.append(ssim(first, second, self.window))
        return found


def ssim(first: Tensor, second: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return the structural similarity around each pixel, and its factor of contrast and structure.

    Args:
        first: Values in [0, 1], shape ``(B, C, H, W)``.
        second: The same shape.
        window: Side of the Gaussian window in pixels, odd; images are mirrored at their borders.

    Returns:
        Both of shape ``(B, C, H, W)``.
    """
    products = torch.stack([first, second, first * first, second * second, first * second])
    mean1, mean2, square1, square2, product = _blur(products, window).unbind(0)
    variance1, variance2 = (square1 - mean1**2).clamp_min(0), (square2 - mean2**2).clamp_min(0)
    covariance = product - mean1 * mean2
    contrast = (2 * covariance + _K2**2) / (variance1 + variance2 + _K2**2)
    luminance = (2 * mean1 * mean2 + _K1**2) / (mean1**2 + mean2**2 + _K1**2)
    return luminance * contrast, contrast


def _blur(images: Tensor, window: int) -> Tensor:
    """Return Gaussian means of images ``(..., H, W)``: two matrix products, faster than convolutions of a channel."""
    down, across = (torch.tensor(_weights(side, window)).to(images) for side in images.shape[-2:])
    return down @ images @ across.T


@functools.lru_cache(maxsize=64)
def _weights(side: int, window: int) -> NDArray[np.float64]:
    """Return the weights of Gaussian means along a side that is mirrored at its ends, shape ``(side, side)``."""
    offsets = np.arange(window) - window // 2
    kernel = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    places = np.abs(np.arange(side)[:, None] + offsets)
    places = np.minimum(places, 2 * (side - 1) - places)
    weights = np.zeros((side, side))
    np.add.at(weights, (np.arange(side)[:, None], places), kernel / kernel.sum())
    return weights
