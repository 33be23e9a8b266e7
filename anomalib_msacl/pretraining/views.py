"""The weak view ``A_0`` and the pairs of patches for the relative position."""

from __future__ import annotations

from typing import NamedTuple

import kornia.augmentation as K  # noqa: N812
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.recipe import ViewRecipe

# The eight neighbours of the middle cell, row by row from the upper left.
_NEIGHBOURS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2))


class WeakView(nn.Module):
    """``A_0``: a weak random view, drawn anew for every image of the batch.

    The default is milder than the paper's: whether crops that small suit medical images is open. It leaves the colours
    alone, for what is invariant to them does not see lesions that differ by nothing else. Lesions are added after the
    view: their number then stays exact.

    Args:
        settings: What is changed, and how much.
    """

    def __init__(self, settings: ViewRecipe | None = None) -> None:
        super().__init__()
        of = settings or ViewRecipe()
        self.settings = of
        changes = (
            (of.flip, K.RandomHorizontalFlip(p=of.flip)),
            (of.jitter, K.ColorJiggle(of.brightness, of.contrast, of.saturation, of.hue, p=of.jitter)),
            (of.grey, K.RandomGrayscale(p=of.grey)),
            (of.blur, K.RandomGaussianBlur((3, 3), (0.3, 1.0), p=of.blur)),
        )
        self.look = nn.Sequential(*(change for probability, change in changes if probability))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return views of images in [0, 1] of shape ``(B, 3, H, W)``, same shape and range."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        shape = size[1] / size[0]  # the crop is stretched back to the image: its ratio is relative to the image's
        low, high = (float(limit) * shape for limit in self.settings.ratio)
        smallest, largest = (float(limit) for limit in self.settings.scale)
        crop = K.RandomResizedCrop(size, (smallest, largest), (low, high), cropping_mode="resample")
        views: Tensor = self.look(crop(images))
        return views.clamp(0, 1)


class PairDraw(NamedTuple):
    """What is random about pairs of patches.

    Attributes:
        positions: Which neighbour it is, 0 to 7, row by row from the upper left, shape ``(B,)``.
        middle: Place of the middle patch within its cell, in [0, 1), shape ``(B, 2)``.
        neighbour: Place of its neighbour within its cell, in [0, 1), shape ``(B, 2)``.
    """

    positions: Tensor
    middle: Tensor
    neighbour: Tensor

    @classmethod
    def of(cls, number: int, device: torch.device) -> PairDraw:
        """Draw so many pairs."""
        positions = torch.randint(len(_NEIGHBOURS), (number,), device=device)
        return cls(positions, *(torch.rand(number, 2, device=device) for _ in range(2)))

    def select(self, rows: Tensor) -> PairDraw:
        """Return the pairs of some images."""
        return PairDraw(*(part[rows] for part in self))

    def to(self, device: torch.device) -> PairDraw:
        """Return the same on another device."""
        return PairDraw(*(part.to(device) for part in self))


def patch_pairs(images: Tensor, side: int, draw: PairDraw | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the middle patch of each image and one of its eight neighbours.

    The image is divided into 3 x 3 cells; a patch fills three quarters of its cell at a random place in it, so that
    lines which go on across the border give nothing away (Doersch et al. 2015).

    Args:
        images: Shape ``(B, C, H, W)``.
        side: Patches are resized to this many pixels a side.
        draw: What is random; drawn now if None.

    Returns:
        Patches and neighbours, each of shape ``(B, C, side, side)``, and the positions 0 to 7, shape ``(B,)``.
    """
    draw = PairDraw.of(len(images), images.device) if draw is None else draw
    cell = torch.tensor(_NEIGHBOURS, device=images.device)[draw.positions]
    middle = _cell_patch(images, torch.ones_like(cell), draw.middle, side)
    return middle, _cell_patch(images, cell, draw.neighbour, side), draw.positions


def _cell_patch(images: Tensor, cell: Tensor, place: Tensor, side: int) -> Tensor:
    """Return a patch of cell ``(row, column)`` of a 3 x 3 grid, at a place within the cell."""
    corner = (cell + 0.25 * place) / 3
    size = 0.75 / 3
    middle = (2 * (corner + size / 2) - 1).flip(-1)
    theta = torch.zeros(len(images), 2, 3, dtype=torch.float32, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = size
    theta[:, :, 2] = middle
    with torch.autocast(images.device.type, enabled=False):  # half a digit of a place is a pixel
        grid = F.affine_grid(theta, [len(images), images.shape[1], side, side], align_corners=False)
        return F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
