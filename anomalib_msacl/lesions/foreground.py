"""Tell tissue or an object from the background, and draw places on it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# A plain background: largest difference to its colour, share of the border that must show it, smallest object.
_PLAIN = 0.06
_ALL_ROUND = 0.8
_OBJECT = 0.05
_MAJORITY = 0.3  # share of the pixels around that are foreground where a pixel counts as tissue


def foreground(images: Tensor, threshold: float) -> Tensor:
    """Tell tissue or object from a dark border and from a plain background of one colour.

    A background of one colour is what nearly all of the image's border shows; where leaving it out would leave next to
    nothing, the image is a smooth surface, and all of it is foreground.

    Args:
        images: Values in [0, 1], shape ``(B, C, H, W)``.
        threshold: A pixel is foreground where its mean over the channels is above this value, in [0, 1]; below 0 all
            pixels are.

    Returns:
        Shape ``(B, 1, H, W)``, bool. Images without any foreground count as all foreground, so that there is always a
        place for a lesion.
    """
    values = images.detach().float()
    if threshold < 0:
        return torch.ones_like(values[:, :1], dtype=torch.bool)
    bright = values.mean(dim=1, keepdim=True) > threshold
    width = max(1, min(values.shape[-2:]) // 32)
    sides = (values[..., :width, :], values[..., -width:, :], values[..., :width], values[..., -width:])
    border = torch.cat([side.flatten(2) for side in sides], dim=2)
    colour = border.median(dim=2).values[:, :, None]
    plain = ((border - colour).abs().amax(dim=1) < _PLAIN / 2).float().mean(dim=1) > _ALL_ROUND
    other = (values - colour[..., None]).abs().amax(dim=1, keepdim=True) > _PLAIN
    kept = bright & other
    shown = plain & (kept.flatten(1).float().mean(dim=1) > _OBJECT)
    found = torch.where(shown[:, None, None, None], kept, bright)
    return all_where_none(found)


def foreground_fraction(found: Tensor, cells: int) -> Tensor:
    """Return how much of each cell of a grid is foreground.

    Args:
        found: Foreground, shape ``(B, 1, H, W)``, bool.
        cells: Cells along each side.

    Returns:
        Fractions in [0, 1], shape ``(B, cells, cells)``, float32.
    """
    return F.adaptive_avg_pool2d(found.float(), cells).squeeze(1)


def tissue(found: Tensor) -> Tensor:
    """Return the foreground without what is smaller than a few pixels, holes of that size filled.

    Args:
        found: Foreground, shape ``(B, 1, H, W)``, bool.

    Returns:
        Shape ``(B, 1, H, W)``, bool, some of it true in every image.
    """
    return all_where_none(local_mean(found.float()) > _MAJORITY)


def local_mean(values: Tensor, reach: int = 2) -> Tensor:
    """Return the mean over a square of ``2 * reach + 1`` pixels, less at the borders, of the same shape."""
    for dim in (-2, -1):
        length = values.shape[dim]
        sums, number = values.clone(), torch.ones(length, device=values.device)
        for step in range(1, min(reach, length - 1) + 1):  # a few additions are much faster than a pooling
            first, last = (0, length - step), (step, length - step)
            sums.narrow(dim, *last).add_(values.narrow(dim, *first))
            sums.narrow(dim, *first).add_(values.narrow(dim, *last))
            number[step:] += 1
            number[: length - step] += 1
        values = sums / (number if dim == -1 else number[:, None])
    return values


def all_where_none(found: Tensor) -> Tensor:
    """Return a mask ``(B, 1, H, W)`` that is true all over where an image has nothing in it."""
    return found | ~found.flatten(1).any(dim=1)[:, None, None, None]


def place_weights(fraction: Tensor, inset: float) -> Tensor:
    """Return how likely the centre of a lesion lies in each cell.

    Args:
        fraction: Share of the foreground, shape ``(B, cells, cells)``.
        inset: How far from the border of the foreground the cells are, relative to the side.

    Returns:
        Shape ``(B, cells, cells)``, above 0 in some cell of every image.
    """
    reach = round(inset * fraction.shape[-1])
    around = local_mean(fraction[:, None], reach)[:, 0]
    inner = ((around > 0.9) & (fraction > 0.9)).float()
    # Thin structures have no cell that is far from their border: whatever foreground there is serves.
    none = inner.flatten(1).amax(dim=1) == 0
    return torch.where(none[:, None, None], fraction, inner)
