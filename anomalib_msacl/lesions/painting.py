"""From parameters to pixels, and the one rule for all families: what cannot be seen is no lesion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anomalib_msacl.lesions.base import Lesion, Parameters
from anomalib_msacl.lesions.canvas import Canvas
from anomalib_msacl.lesions.foreground import local_mean

# The least that must be visible of a lesion: a part of the image, a number of pixels, a part of its own outline; and
# how many times the visible change they must change by on average, lest it be made of crumbs that just pass.
_LEAST_OF_IMAGE = 2e-3
_LEAST_PIXELS = 6
_LEAST_OF_OUTLINE = 0.1
_LEAST_CHANGE = 1.5


class Pixels(NamedTuple):
    """The pixels of N lesions, M in all.

    Attributes:
        image: Image, shape ``(M,)``, int64.
        order: Rank of the lesion within the image, shape ``(M,)``, int64.
        place: Index of the pixel, row by row, shape ``(M,)``, int64.
        target: What it becomes at full weight, shape ``(M, C)``.
        weight: Share of the target, shape ``(M, 1)``.
    """

    image: Tensor
    order: Tensor
    place: Tensor
    target: Tensor
    weight: Tensor

    def select(self, chosen: Tensor) -> Pixels:
        """Return the pixels for which a mask of shape ``(M,)`` is true."""
        rows = chosen.nonzero()[:, 0]
        return self if len(rows) == len(chosen) else Pixels(*(part[rows] for part in self))


def paint(
    canvas: Canvas, family: Lesion[Any], parameters: Parameters, visible: float
) -> tuple[Tensor, list[tuple[Tensor, Pixels]]]:
    """Render lesions of one family on the images as they are, and keep the pixels at which they are visible.

    A pixel is kept where the mean over the channels of the absolute change, averaged over 5 x 5 pixels, is at least
    ``visible``. A lesion is visible if enough pixels are kept, a tenth of its outline, 2 in 1000 of the image and six,
    and if they change by one and a half times ``visible`` on average.

    Args:
        canvas: The images.
        family: What renders.
        parameters: N lesions.
        visible: Change of intensity, images being in [0, 1]; with 0 all is kept, and all lesions are visible.

    Returns:
        Which lesions are visible, shape ``(N,)``, and for each size of window the lesion of each pixel, shape
        ``(M,)``, and the pixels.
    """
    seen = torch.zeros_like(parameters.image, dtype=torch.bool)
    painted = []
    least = max(_LEAST_PIXELS, _LEAST_OF_IMAGE * canvas.height * canvas.width) if visible > 0 else 0
    with torch.autocast(canvas.images.device.type, enabled=False):  # half a digit of colour would tint grey images
        for rows, windows in canvas.windows(parameters):
            own = parameters.select(rows)
            target, weight = family.render(windows, own)
            with torch.no_grad():
                before = windows.pixels
                difference = torch.lerp(before, target, weight).clamp_(0, 1).sub_(before)
                # A sum over the channels one by one is much faster than a reduction of a short dimension.
                change = sum(difference.abs_().unbind(dim=1), torch.zeros_like(weight[:, 0]))[:, None] / canvas.channels
                outline = weight > 0
                mask = outline & (local_mean(change) >= visible)
                inside, number, total = (part.sum(dim=(1, 2, 3)) for part in (outline, mask, change * mask))
                enough = (number >= least) & (number >= _LEAST_OF_OUTLINE * inside)
                seen[rows] = enough & (total >= _LEAST_CHANGE * visible * number)
            lesion, _, y, x = mask.nonzero(as_tuple=True)
            place = windows.rows[lesion, y] * canvas.width + windows.columns[lesion, x]
            pixels = Pixels(
                own.image[lesion], own.order[lesion], place, target[lesion, :, y, x], weight[lesion, :, y, x]
            )
            painted.append((rows[lesion], pixels))
    return seen, painted


def compose(images: Tensor, painted: Sequence[Pixels], copies: int = 1) -> tuple[Tensor, Tensor]:
    """Put painted pixels on images, the later lesions of an image on top of the earlier ones.

    Args:
        images: Values in [0, 1], shape ``(B, C, H, W)``; not written to.
        painted: Pixels of lesions.
        copies: How many images with lesions are made of each.

    Returns:
        Images of the same type, equal to the input wherever the mask is 0, and masks of shape ``(B * copies, 1, H, W)``
        with values 0 and 1.
    """
    shape = (len(images), copies, *images.shape[1:])
    result = images[:, None].expand(shape).clone(memory_format=torch.contiguous_format).flatten(0, 1)
    masks = torch.zeros_like(result[:, :1], requires_grad=False)
    if not painted:
        return result, masks
    pixels = Pixels(*(torch.cat(parts) for parts in zip(*painted, strict=True)))
    flat = result.flatten(2)
    for order in torch.unique(pixels.order).tolist():
        image, _, place, target, weight = pixels.select(pixels.order == order)
        blended = torch.lerp(flat[image, :, place].float(), target, weight).clamp(0, 1)
        flat[image, :, place] = blended.to(result.dtype)
    masks.flatten(1)[pixels.image, pixels.place] = 1
    return result, masks
