"""The normal images that lesions are drawn on, and windows around the lesions.

All work happens on a window around each lesion, so the cost follows the area of the lesions and not that of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from anomalib_msacl.errors import InputError
from anomalib_msacl.lesions.base import Parameters
from anomalib_msacl.lesions.foreground import foreground, foreground_fraction, place_weights, tissue
from anomalib_msacl.lesions.geometry import blur_matrix, smooth_noise
from anomalib_msacl.lesions.randomness import Draw

MINIMUM_SIDE = 32
_GRID = 32  # cells along a side for places on the foreground
_GREY = 0.01  # largest mean difference between the channels of a grey image
# Windows come in few sizes, each so many times the one before.
_SMALLEST_WINDOW = 16
_WINDOW_RATIO = 1.5


class Canvas:
    """A batch of normal images, and what lesions need to know of them, found out once.

    Images are numbered as in the batch that is made of them, in which each stands ``copies`` times in a row.

    Args:
        images: Values in [0, 1], shape ``(B, C, H, W)``, any floating type.
        threshold: Intensity above which a pixel is foreground; below 0 all are.
        copies: How many images with lesions are made of each.
        donors: Images that patches are cut from, of the same number and size; ``images`` if None.
    """

    def __init__(self, images: Tensor, threshold: float, copies: int = 1, donors: Tensor | None = None) -> None:
        self.images = images
        self.donors = images if donors is None else donors
        self.threshold = threshold
        self.copies = copies
        self.height, self.width = int(images.shape[-2]), int(images.shape[-1])
        self._margins: dict[int, Tensor] = {}
        self._weights: dict[float, Tensor] = {}

    @property
    def side(self) -> int:
        """The shorter side in pixels."""
        return min(self.height, self.width)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return int(self.images.shape[1])

    @cached_property
    def foreground(self) -> Tensor:
        """Tissue or object, pixel by pixel, shape ``(B, 1, H, W)``, bool."""
        return foreground(self.images, self.threshold)

    @cached_property
    def tissue(self) -> Tensor:
        """The foreground without single pixels, shape ``(B, 1, H, W)``, bool."""
        return tissue(self.foreground)

    @cached_property
    def grey(self) -> Tensor:
        """Which images have no colour, shape ``(B,)``, bool."""
        images = self.images.detach().float()
        return (images - images.mean(dim=1, keepdim=True)).abs().flatten(1).mean(dim=1) < _GREY

    def with_margin(self, margin: int) -> Tensor:
        """Return the images with a margin, reflected at their borders."""
        if margin not in self._margins:
            rows, columns = (
                reflected(_around(-margin, limit + margin, self.images), limit) for limit in (self.height, self.width)
            )
            self._margins[margin] = self.images[:, :, rows][..., columns]
        return self._margins[margin]

    def places(self, image: Tensor, samples: int, inset: float, draw: Draw) -> Tensor:
        """Draw places on the foreground.

        Args:
            image: Image of each lesion, shape ``(N,)``.
            samples: Places for each.
            inset: Distance to the border of the foreground, relative to the side, where it is wide enough.
            draw: Random numbers.

        Returns:
            ``(y, x)`` in pixels, shape ``(N, samples, 2)``.
        """
        if len(image) == 0:
            return torch.zeros(0, samples, 2, device=image.device)
        if inset not in self._weights:
            self._weights[inset] = place_weights(foreground_fraction(self.foreground, _GRID), inset)
        cell = draw.multinomial(self._weights[inset][image // self.copies].flatten(1), samples)
        corner = torch.stack([cell // _GRID, cell % _GRID], dim=-1)
        offset = draw.uniform((0.0, 1.0), *corner.shape)
        sides = torch.tensor([self.height, self.width], device=image.device)
        return (corner + offset) / _GRID * sides - 0.5

    def windows(self, parameters: Parameters) -> Iterator[tuple[Tensor, Windows]]:
        """Yield lesions of about the same size, as rows, with their windows; a small one gets a small window."""
        sides = window_sides(parameters.extent)
        for side in torch.unique(sides).tolist():
            rows = (sides == side).nonzero()[:, 0]
            yield rows, Windows(self, parameters.image[rows], parameters.centre[rows], int(side))


class Windows:
    """A window of one size around each of N lesions, all of it inside the image.

    Args:
        canvas: The images.
        image: Image of each lesion, shape ``(N,)``.
        centre: Centre ``(y, x)`` of each lesion, pixels, shape ``(N, 2)``.
        side: Height and width of the windows in pixels, as far as the image goes.

    Attributes:
        size: Height and width of the windows.
        rows: Rows of the image, shape ``(N, h)``, int64.
        columns: Columns of the image, shape ``(N, w)``, int64.
        y: Vertical distance of the rows to the centre, shape ``(N, h, 1)``.
        x: Horizontal distance of the columns to the centre, shape ``(N, 1, w)``.
    """

    def __init__(self, canvas: Canvas, image: Tensor, centre: Tensor, side: int) -> None:
        self.canvas, self.image, self.centre = canvas, image, centre
        self.size = (min(side, canvas.height), min(side, canvas.width))
        self.rows, self.columns = self._span(centre)
        self.y = (self.rows - centre[:, :1])[:, :, None]
        self.x = (self.columns - centre[:, 1:])[:, None, :]

    @cached_property
    def pixels(self) -> Tensor:
        """The images in the windows, float32, shape ``(N, C, h, w)``."""
        return self._crop(self.canvas.images, self.image, self._corner).float()

    @property
    def tissue(self) -> Tensor:
        """Where there is tissue, shape ``(N, 1, h, w)``, bool."""
        return self._crop(self.canvas.tissue, self.image, self._corner)

    @property
    def grey(self) -> Tensor:
        """Whether the image of each lesion has no colour, shape ``(N,)``, bool."""
        return self.canvas.grey[self.image // self.canvas.copies]

    def blurred(self, times: int) -> Tensor:
        """Return the images averaged over about a ninth of their shorter side, so many times."""
        reach = max(1, self.canvas.side // 18)
        margin = reach * times
        wide = self._crop(self.canvas.with_margin(margin), self.image, self._corner, 2 * margin).float()
        down, right = (blur_matrix(size, reach, times, wide.device) for size in self.size)
        return down @ wide @ right.mT

    def noise(self, grains: Tensor) -> Tensor:
        """Return smooth noise out of grains that fill the image; see :func:`.geometry.smooth_noise`."""
        return smooth_noise(grains, self.rows, self.columns, (self.canvas.height, self.canvas.width))

    def elsewhere(self, offset: Tensor) -> Tensor:
        """Return the images at whole pixels ``(y, x)`` from the windows, shape ``(N, C, h, w)``."""
        down, right = offset.long().unbind(dim=1)
        rows = reflected(self.rows + down[:, None], self.canvas.height)
        columns = reflected(self.columns + right[:, None], self.canvas.width)
        own = (self.image // self.canvas.copies)[:, None, None]
        return self.canvas.images[own, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).float()

    def cut(self, donor: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut windows of the same size out of donors.

        Args:
            donor: Image to cut from, shape ``(N,)``.
            centre: Middle of the cut, pixels, shape ``(N, 2)``.

        Returns:
            The pixels, shape ``(N, C, h, w)``, and the row and the column of ``centre`` within them, shape ``(N,)``.
        """
        rows, columns = self._span(centre)
        corner = torch.stack([rows[:, 0], columns[:, 0]], dim=1)
        place = centre - corner
        return self._crop(self.canvas.donors, donor, corner).float(), place[:, 0], place[:, 1]

    @property
    def _corner(self) -> Tensor:
        """Upper left pixel of each window, shape ``(N, 2)``."""
        return torch.stack([self.rows[:, 0], self.columns[:, 0]], dim=1)

    def _span(self, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and columns of windows about other centres."""
        height, width = self.size
        return span(centre[:, 0], height, self.canvas.height), span(centre[:, 1], width, self.canvas.width)

    def _crop(self, images: Tensor, image: Tensor, corner: Tensor, more: int = 0) -> Tensor:
        """Return a window of each image, larger by ``more``, shape ``(N, C, h, w)``."""
        height, width = (size + more for size in self.size)
        numbers = torch.cat([(image // self.canvas.copies)[:, None], corner], dim=1).tolist()
        # Slices are copied row by row, which is several times as fast as an index of pixels.
        return torch.stack([images[i, :, y : y + height, x : x + width] for i, y, x in numbers])


def window_sides(extent: Tensor) -> Tensor:
    """Return the side of the window of lesions that reach so many pixels from their centre, int64."""
    need = 2 * extent.ceil() + 3
    steps = ((need / _SMALLEST_WINDOW).log() / math.log(_WINDOW_RATIO)).ceil().clamp_min(0)
    return (_SMALLEST_WINDOW * _WINDOW_RATIO**steps).ceil().long()


def span(centre: Tensor, size: int, limit: int) -> Tensor:
    """Return ``size`` consecutive pixels about each centre that lie within ``limit``, shape ``(N, size)``, int64."""
    first = (centre.round().long() - size // 2).clamp(0, limit - size)
    return first[:, None] + _around(0, size, first)


def reflected(at: Tensor, limit: int) -> Tensor:
    """Return whole coordinates mirrored at the border pixels into 0 to ``limit - 1``."""
    period = 2 * (limit - 1)
    return (limit - 1) - (at % period - (limit - 1)).abs()


def _around(first: int, end: int, like: Tensor) -> Tensor:
    """Return whole numbers from ``first`` to before ``end`` on a device."""
    return torch.arange(first, end, device=like.device)


def check_images(images: Tensor, name: str = "LesionMixture") -> None:
    """Refuse what is not a floating batch of images that a lesion fits into."""
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"{name}: images have shape {tuple(images.shape)} and type {images.dtype}, but must be (B, C, H, W) and "
            "floating with values in [0, 1]; convert them before, for example by torchvision's to_dtype(scale=True)."
        )
    if min(images.shape[-2:]) < MINIMUM_SIDE:
        raise InputError(
            f"{name}: images are {images.shape[-2]} x {images.shape[-1]} pixels, smaller than a lesion needs; "
            f"enlarge them to at least {MINIMUM_SIDE} x {MINIMUM_SIDE}."
        )
