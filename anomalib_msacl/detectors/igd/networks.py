"""Decoder and critic of IGD, built for one size of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

_COARSEST = 4  # pixels of the side that decoding begins with, at least
_WIDEST = 8  # times the base width


class Decoder(nn.Module):
    """Images from descriptors: a linear layer, an up-sampling convolution, residual up-blocks.

    Each doubles the side. At 256 pixels the grid begins with 4 x 4 and the blocks have 8, 8, 4, 2 and 1 times the base
    width. Sides that are no power of two begin with a larger grid, and what is too much is cut off.

    Args:
        dim: Dimension of the descriptors.
        size: Height and width of the images in pixels.
        width: Base width: channels of the last block.
        channels: Of the images.
    """

    def __init__(self, dim: int, size: Sequence[int], width: int, channels: int = 3) -> None:
        super().__init__()
        self.size = tuple(size)
        doublings, self.grid = _grid(size)
        widths = [width * min(_WIDEST, 2**left) for left in reversed(range(doublings - 1))]
        first = width * _WIDEST
        self.linear = nn.Linear(dim, first * math.prod(self.grid))
        self.enlarge = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(first, first, 3, padding=1))
        steps = zip([first, *widths], widths, strict=False)
        self.blocks = nn.Sequential(*(UpBlock(before, after) for before, after in steps))
        last = widths[-1] if widths else first
        self.image = nn.Sequential(nn.BatchNorm2d(last), nn.ReLU(), nn.Conv2d(last, channels, 3, padding=1))

    def forward(self, descriptors: Tensor) -> Tensor:
        """Return images of shape ``(B, C, H, W)`` from descriptors ``(B, D)``, in the units of the encoder's input."""
        maps = self.linear(descriptors).reshape(descriptors.shape[0], -1, *self.grid)
        images = self.image(self.blocks(self.enlarge(maps)))
        return cast("Tensor", images[..., : self.size[0], : self.size[1]])


class Critic(nn.Module):
    """One number for an image, which should tell how far it is an interpolation of two.

    Args:
        size: Height and width of the images in pixels.
        width: Base width: channels of the first convolution.
        channels: Of the images.
    """

    def __init__(self, size: Sequence[int], width: int, channels: int = 3) -> None:
        super().__init__()
        doublings, _ = _grid(size)
        widths = [width * min(_WIDEST, 2**step) for step in range(doublings + 1)]
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(DownBlock(before, after) for before, after in pairwise(widths)))
        self.last = nn.Sequential(nn.GroupNorm(1, widths[-1]), nn.ReLU(), nn.Flatten())
        cells = math.prod(math.ceil(side / 2**doublings) for side in size)
        self.linear = nn.Linear(widths[-1] * cells, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return a number for each image ``(B, C, H, W)``, shape ``(B,)``."""
        return cast("Tensor", self.linear(self.last(self.blocks(self.first(images)))).squeeze(1))


class UpBlock(nn.Module):
    """Residual block with BatchNorm that doubles the side.

    Args:
        before: Channels that come in.
        after: Channels that go out.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of shape ``(B, after, 2 h, 2 w)``."""
        return cast("Tensor", self.residual(maps) + F.interpolate(self.shortcut(maps), scale_factor=2.0))


class DownBlock(nn.Module):
    """Residual block with layer normalisation over channels and pixels that halves the side, rounding up.

    ``GroupNorm`` of one group is this normalisation with a scale and shift for each channel, not for each pixel, so
    that it is not tied to a size.

    Args:
        before: Channels that come in.
        after: Channels that go out.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.GroupNorm(1, before),
            nn.ReLU(),
            nn.Conv2d(before, before, 3, padding=1),
            nn.GroupNorm(1, before),
            nn.ReLU(),
            nn.Conv2d(before, after, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of shape ``(B, after, h / 2, w / 2)``."""
        return F.avg_pool2d(self.residual(maps) + self.shortcut(maps), 2, ceil_mode=True)


def _grid(size: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Return how often a grid is doubled to reach a size, and the grid."""
    doublings = max(1, int(math.log2(max(1, min(size) // _COARSEST))))
    return doublings, tuple(math.ceil(side / 2**doublings) for side in size)
