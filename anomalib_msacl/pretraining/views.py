"""The weak view ``A_0`` and the pairs of patches for the relative position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import kornia.augmentation as K  # noqa: N812
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.errors import InputError
from anomalib_msacl.recipe import ViewRecipe

# The eight neighbours of the middle cell, row by row from the upper left.
_NEIGHBOURS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2))


class WeakView(nn.Module):
    """``A_0``: a weak random view, drawn anew for every image of the batch.

    The paper's setting is ``scale=(.2, 1), brightness=contrast=saturation=.4, hue=.1, grey=.2``; whether crops that
    small suit medical images is open, so the default is milder. It leaves the colours alone, for what is invariant to
    them does not see lesions that differ by nothing else. Lesions are added after the view: their number then stays
    exact.

    Args:
        scale: Area of the random resized crop, relative to the image.
        ratio: Aspect ratio of the crop, relative to that of the image.
        brightness: Largest relative change.
        contrast: Largest relative change.
        saturation: Largest relative change.
        hue: Largest turn, as a fraction of a full turn, at most .5.
        jitter: Probability of the colour jitter; with 0 its four strengths above have no effect.
        grey: Probability of a grey image.
        blur: Probability of a Gaussian blur.
        flip: Probability of a horizontal flip.

    Raises:
        InputError: If a value is out of range.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.6, 1.0),
        ratio: tuple[float, float] = (0.8, 1.25),
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.02,
        jitter: float = 0.0,
        grey: float = 0.0,
        blur: float = 0.1,
        flip: float = 0.5,
    ) -> None:
        super().__init__()
        for name, limits, highest in (("scale", scale, 1.0), ("ratio", ratio, math.inf)):
            if not isinstance(limits, Sequence) or len(limits) != 2 or not 0 < limits[0] <= limits[1] <= highest:
                raise InputError(
                    f"WeakView: {name} is {limits}, but must be (low, high) with 0 < low <= high <= {highest}."
                )
        for name, value in (("jitter", jitter), ("grey", grey), ("blur", blur), ("flip", flip)):
            if not 0 <= value <= 1:
                raise InputError(f"WeakView: {name} is {value}, but is a probability, from 0 to 1.")
        self.crop = {"scale": (float(scale[0]), float(scale[1])), "ratio": (float(ratio[0]), float(ratio[1]))}
        try:
            changes = (
                (flip, K.RandomHorizontalFlip(p=flip)),
                (jitter, K.ColorJiggle(brightness, contrast, saturation, hue, p=jitter)),
                (grey, K.RandomGrayscale(p=grey)),
                (blur, K.RandomGaussianBlur((3, 3), (0.3, 1.0), p=blur)),
            )
            self.look = nn.Sequential(*(change for probability, change in changes if probability))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"WeakView: a setting of the view is out of range ({error}); see its documentation."
            ) from error

    @classmethod
    def of(cls, recipe: ViewRecipe) -> WeakView:
        """Return the view of a recipe."""
        return cls(**{item.name: getattr(recipe, item.name) for item in fields(recipe) if item.name != "number"})

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return views of images in [0, 1] of shape ``(B, 3, H, W)``, same shape and range."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        shape = size[1] / size[0]  # the crop is stretched back to the image: its ratio is relative to the image's
        low, high = (limit * shape for limit in self.crop["ratio"])
        crop = K.RandomResizedCrop(size, scale=self.crop["scale"], ratio=(low, high), cropping_mode="resample")
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
