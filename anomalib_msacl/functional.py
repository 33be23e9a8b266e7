"""Pure batched tensor operations behind MedMix: cut a patch, deform it, blend it with a soft edge.

Nothing here draws a random number: the same :class:`Lesions` give the same images. All work happens on a window
around each lesion, so the cost follows the area of the lesions and not that of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# Rows of the YIQ transform; its first row is luma, the other two span the plane in which hue turns.
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
# Windows come in few sizes, each so many times the one before.
_SMALLEST_WINDOW = 16
_WINDOW_RATIO = 1.5
# A plain background: largest difference to its colour, share of the border that must show it, smallest object.
_PLAIN = 0.06
_ALL_ROUND = 0.8
_OBJECT = 0.05


@dataclass(frozen=True)
class Lesions:
    """Everything that decides how N lesions look, one row per lesion.

    The rows of an image are applied by rising ``order``. Lengths are in pixels, angles in radians.

    Attributes:
        image: Index of the image that receives the lesion, shape ``(N,)``, int64.
        order: Rank of the lesion within its image, from 0, shape ``(N,)``, int64.
        donor: Index of the image that the patch is cut from, shape ``(N,)``, int64.
        centre: Centre ``(y, x)`` of the lesion, shape ``(N, 2)``.
        source: Centre ``(y, x)`` of the cut in the donor, shape ``(N, 2)``.
        radius: Geometric mean of the two half axes, shape ``(N,)``.
        aspect: Ratio of the two half axes, at least 1, shape ``(N,)``.
        angle: Direction of the long axis, shape ``(N,)``.
        outline: Complex coefficients of the harmonics 2, 3, ... of the outline as ``(real, imaginary)``,
            relative to the radius, shape ``(N, K, 2)``.
        edge: Width of the soft edge inside the outline, relative to the radius, in ``(0, 1]``, shape ``(N,)``.
        opacity: Weight of the patch where the edge is over, in ``(0, 1]``, shape ``(N,)``.
        turn: Rotation of the patch, shape ``(N,)``.
        fisheye: Radial distortion, 0 is none, shape ``(N,)``.
        wave: Amplitude, length and phase of the horizontal wave, shape ``(N, 3)``.
        brightness: Added to the intensity, shape ``(N,)``.
        contrast: Factor about the mean of the patch, shape ``(N,)``.
        saturation: Factor about the grey image, shape ``(N,)``.
        hue: Turn of the hue, RGB images only, shape ``(N,)``.
        gamma: Exponent of the non-linear change of intensity, shape ``(N,)``.
        noise: Noise that is added to all channels alike, at least as large as the largest lesion,
            shape ``(N, 1, h, w)``.
    """

    image: Tensor
    order: Tensor
    donor: Tensor
    centre: Tensor
    source: Tensor
    radius: Tensor
    aspect: Tensor
    angle: Tensor
    outline: Tensor
    edge: Tensor
    opacity: Tensor
    turn: Tensor
    fisheye: Tensor
    wave: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gamma: Tensor
    noise: Tensor

    def __len__(self) -> int:
        """Return the number of lesions."""
        return len(self.image)

    def select(self, rows: Tensor) -> Lesions:
        """Return the lesions of the given rows (an index or a boolean mask of shape ``(N,)``)."""
        return Lesions(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def of_image(self, index: int) -> Lesions:
        """Return the lesions of one image, renumbered as those of a batch of one; donors keep their index."""
        lesions = self.select(self.image == index)
        values = {field.name: getattr(lesions, field.name) for field in fields(lesions)}
        return Lesions(**{**values, "image": torch.zeros_like(lesions.image)})

    @property
    def extent(self) -> Tensor:
        """Upper bound of the distance from the centre to the outline, in pixels, shape ``(N,)``."""
        return outline_extent(self.radius, self.aspect, self.outline)


def outline_extent(radius: Tensor, aspect: Tensor, outline: Tensor) -> Tensor:
    """Return an upper bound of the distance from a lesion's centre to its outline.

    Args:
        radius: Pixels, shape ``(N,)``.
        aspect: Shape ``(N,)``.
        outline: Shape ``(N, K, 2)``.

    Returns:
        Pixels, shape ``(N,)``.
    """
    extent: Tensor = radius * aspect.sqrt() * (1 + outline.norm(dim=-1).sum(dim=-1))
    return extent


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
    bright = values.mean(dim=1, keepdim=True) > threshold
    if threshold >= 0:
        width = max(1, min(values.shape[-2:]) // 32)
        sides = (values[..., :width, :], values[..., -width:, :], values[..., :width], values[..., -width:])
        border = torch.cat([side.flatten(2) for side in sides], dim=2)
        colour = border.median(dim=2).values[:, :, None]
        plain = ((border - colour).abs().amax(dim=1) < _PLAIN / 2).float().mean(dim=1) > _ALL_ROUND
        other = (values - colour[..., None]).abs().amax(dim=1, keepdim=True) > _PLAIN
        kept = bright & other
        shown = plain & (kept.flatten(1).float().mean(dim=1) > _OBJECT)
        bright = torch.where(shown[:, None, None, None], kept, bright)
    return bright | ~bright.flatten(1).any(dim=1)[:, None, None, None]


def foreground_fraction(images: Tensor, threshold: float, cells: int) -> Tensor:
    """Return how much of each cell of a grid is foreground.

    Args:
        images: Values in [0, 1], shape ``(B, C, H, W)``.
        threshold: As in :func:`foreground`.
        cells: Cells along each side.

    Returns:
        Fractions in [0, 1], shape ``(B, cells, cells)``, float32.
    """
    return F.adaptive_avg_pool2d(foreground(images, threshold).float(), cells).squeeze(1)


def lesion_shape(lesions: Lesions, y: Tensor, x: Tensor) -> Tensor:
    """Return the opacity of each lesion on its window; above 0 is inside.

    The outline is an ellipse whose radius is modulated by harmonics of the polar angle; the opacity rises from 0 on
    the outline by a smoothstep over the width of the edge.

    Args:
        lesions: N lesions.
        y: Vertical distance of each window row to the centre, pixels, shape ``(N, h, 1)``.
        x: Horizontal distance of each window column to the centre, pixels, shape ``(N, 1, w)``.

    Returns:
        Opacity in [0, 1], 0 outside the outline, shape ``(N, 1, h, w)``.
    """
    cos, sin = (_per_pixel(f(lesions.angle)) for f in (torch.cos, torch.sin))
    long, short = (_per_pixel(lesions.radius * lesions.aspect.pow(power)) for power in (0.5, -0.5))
    u = (cos * x + sin * y) / long
    v = (cos * y - sin * x) / short
    rho = (u * u + v * v).clamp_min(1e-12).sqrt()
    c, s = u / rho, v / rho
    # cos(k t) and sin(k t) by recurrence: the polar angle itself is never needed.
    real, imaginary = c, s
    boundary = torch.ones_like(rho)
    for k in range(lesions.outline.shape[1]):
        real, imaginary = real * c - imaginary * s, real * s + imaginary * c
        boundary = (
            boundary + _per_pixel(lesions.outline[:, k, 0]) * real - _per_pixel(lesions.outline[:, k, 1]) * imaginary
        )
    depth = 1 - rho / boundary.clamp_min(0.1)
    ramp = (depth / _per_pixel(lesions.edge)).clamp(0, 1)
    opacity = _per_pixel(lesions.opacity) * ramp * ramp * (3 - 2 * ramp)
    return opacity.unsqueeze(1)


def cut_patches(donors: Tensor, lesions: Lesions, y: Tensor, x: Tensor) -> Tensor:
    """Cut one patch per lesion out of its donor: turned, fisheye-distorted and waved.

    Args:
        donors: Values in [0, 1], shape ``(B, C, H, W)``.
        lesions: N lesions.
        y: Vertical distance of each window row to the lesion's centre, pixels, shape ``(N, h, 1)``.
        x: Horizontal distance of each window column to the lesion's centre, pixels, shape ``(N, 1, w)``.

    Returns:
        Patches, float32, shape ``(N, C, h, w)``.
    """
    height, width = y.shape[1], x.shape[2]
    cos, sin = (_per_pixel(f(lesions.turn)) for f in (torch.cos, torch.sin))
    radius = _per_pixel(lesions.radius)
    # Beyond the outline the distortion stays at its value on it, or the patch would reach far across the donor.
    squared = ((y * y + x * x) / (radius * radius)).clamp(max=1)
    bulge = 1 + _per_pixel(lesions.fisheye) * (squared - 1)
    down, right = (cos * y - sin * x) * bulge, (cos * x + sin * y) * bulge
    amplitude, length, phase = (_per_pixel(lesions.wave[:, k]) for k in range(3))
    right = right + amplitude * torch.sin(2 * math.pi * down / length + phase)

    top, left = window_corner(lesions.source, (height, width), donors.shape[-2:])
    windows = gather_windows(donors, lesions.donor, top, left, (height, width)).float()
    grid_y = _per_pixel(lesions.source[:, 0] - top) + down
    grid_x = _per_pixel(lesions.source[:, 1] - left) + right
    grid = torch.stack([(2 * grid_x + 1) / width - 1, (2 * grid_y + 1) / height - 1], dim=-1)
    patches: Tensor = F.grid_sample(windows, grid, padding_mode="reflection", align_corners=False)
    return patches


def change_look(patches: Tensor, lesions: Lesions, opacity: Tensor) -> Tensor:
    """Change the look of patches: contrast, brightness, saturation, hue, gamma and noise.

    Args:
        patches: Values in [0, 1], float32, shape ``(N, C, h, w)``.
        lesions: N lesions.
        opacity: Weights for the mean colour of a patch, shape ``(N, 1, h, w)``.

    Returns:
        Values in [0, 1], shape ``(N, C, h, w)``. Grey images stay grey.
    """
    weight = opacity / opacity.sum(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    mean = (patches * weight).sum(dim=(-2, -1), keepdim=True)
    contrast, brightness, saturation, gamma = (
        _per_pixel(value).unsqueeze(1)
        for value in (lesions.contrast, lesions.brightness, lesions.saturation, lesions.gamma)
    )
    # Contrast, brightness and colour are one linear map, so one pass over the pixels is enough.
    matrix = _colour_matrix(saturation.flatten(), lesions.hue, patches.shape[1])
    patches = torch.einsum("ncd,ndhw->nchw", matrix, (patches - mean) * contrast + mean) + brightness
    # The middle of the noise: a window may be smaller than what was drawn for the largest lesion of the batch.
    first = [(drawn - used) // 2 for drawn, used in zip(lesions.noise.shape[-2:], patches.shape[-2:], strict=True)]
    noise = lesions.noise[..., first[0] : first[0] + patches.shape[-2], first[1] : first[1] + patches.shape[-1]]
    return (patches.clamp(1e-6, 1) ** gamma + noise).clamp(0, 1)


def paste_lesions(images: Tensor, lesions: Lesions, donors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Apply drawn lesions to a batch of images.

    Args:
        images: Values in [0, 1], shape ``(B, C, H, W)``, any floating type.
        lesions: What to paste; ``lesions.image`` points into ``images`` and ``lesions.donor`` into ``donors``.
        donors: Images to cut from, of the same size as ``images``, which is the default.

    Returns:
        Images of the same shape and type, equal to the input wherever the mask is 0, and the lesion masks of shape
        ``(B, 1, H, W)`` with values 0 and 1 in the same type.
    """
    donors = images if donors is None else donors
    masks = torch.zeros_like(images[:, :1])
    if len(lesions) == 0:
        return images.clone(), masks
    images = images.clone()
    groups = [_patches(donors, *group) for group in _by_window(lesions, images.shape[-2:])]
    for order in range(int(lesions.order.max()) + 1):
        for index, orders, opacity, patches in groups:
            rows = orders == order
            place = tuple(part if isinstance(part, slice) else part[rows] for part in index)
            background = images[place].movedim(-1, 1)
            weight = opacity[rows]
            blended = torch.lerp(background.float(), patches[rows], weight).to(images.dtype)
            images[place] = torch.where(weight > 0, blended, background).movedim(1, -1)
            masks[place] = torch.maximum(masks[place], (weight > 0).movedim(1, -1).to(masks.dtype))
    return images, masks


def _by_window(lesions: Lesions, limits: tuple[int, ...]) -> Iterator[tuple[Lesions, tuple[int, int]]]:
    """Yield lesions of about the same size with their window: a small one need not work on the window of a large one.

    The window of a lesion follows from its own extent and from the noise that was drawn with it.
    """
    need = 2 * lesions.extent.ceil() + 3
    steps = ((need / _SMALLEST_WINDOW).log() / math.log(_WINDOW_RATIO)).ceil().clamp_min(0).long()
    for step in torch.unique(steps).tolist():
        side = round(_SMALLEST_WINDOW * _WINDOW_RATIO**step)
        height, width = (min(side, limit, drawn) for limit, drawn in zip(limits, lesions.noise.shape[-2:], strict=True))
        yield lesions.select(steps == step), (height, width)


def _patches(
    donors: Tensor, lesions: Lesions, size: tuple[int, int]
) -> tuple[tuple[Tensor | slice, ...], Tensor, Tensor, Tensor]:
    """Return where lesions of one window size go, their orders, opacities and patches."""
    top, left = window_corner(lesions.centre, size, donors.shape[-2:])
    y = (top[:, None] + _steps(size[0], top) - lesions.centre[:, :1])[:, :, None]
    x = (left[:, None] + _steps(size[1], left) - lesions.centre[:, 1:])[:, None, :]
    opacity = lesion_shape(lesions, y, x)
    with torch.autocast(donors.device.type, enabled=False):  # half a digit of colour would tint grey images
        patches = change_look(cut_patches(donors, lesions, y, x), lesions, opacity)
    return _window_index(lesions.image, top, left, size), lesions.order, opacity, patches


def window_corner(centre: Tensor, size: tuple[int, int], limits: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the top left corner of windows around centres that lie inside the image.

    Args:
        centre: ``(y, x)`` in pixels, shape ``(N, 2)``.
        size: Height and width of the window, not larger than the image.
        limits: Height and width of the image.

    Returns:
        Top and left, int64, each of shape ``(N,)``.
    """
    top, left = (
        (centre[:, axis].round().long() - size[axis] // 2).clamp(0, limits[axis] - size[axis]) for axis in (0, 1)
    )
    return top, left


def gather_windows(images: Tensor, index: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut one window per row out of a batch of images.

    Args:
        images: Shape ``(B, C, H, W)``.
        index: Image of each window, shape ``(N,)``.
        top: First row of each window, shape ``(N,)``.
        left: First column of each window, shape ``(N,)``.
        size: Height and width of the windows.

    Returns:
        Windows of shape ``(N, C, h, w)``.
    """
    return images[_window_index(index, top, left, size)].movedim(-1, 1)


def _window_index(
    index: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]
) -> tuple[Tensor, slice, Tensor, Tensor]:
    """Return an index that reads or writes windows of shape ``(N, h, w, C)``: channels last."""
    rows = (top[:, None] + _steps(size[0], top))[:, :, None]
    columns = (left[:, None] + _steps(size[1], left))[:, None, :]
    return index[:, None, None], slice(None), rows, columns


def _colour_matrix(saturation: Tensor, hue: Tensor, channels: int) -> Tensor:
    """Return per-lesion ``(C, C)`` matrices that keep grey as it is, shape ``(N, C, C)``."""
    eye = torch.eye(channels, device=hue.device)
    if channels != len(_RGB_TO_YIQ):
        grey = torch.full_like(eye, 1 / channels)
        return torch.lerp(grey, eye, saturation[:, None, None])
    to_yiq = torch.tensor(_RGB_TO_YIQ, device=hue.device)
    # The published coefficients are rounded: each chroma row must sum to 0 exactly, or grey takes on a tint.
    to_yiq = torch.cat([to_yiq[:1], to_yiq[1:] - to_yiq[1:].mean(dim=1, keepdim=True)])
    turn = torch.zeros(len(hue), channels, channels, device=hue.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * hue.cos()
    turn[:, 2, 1] = saturation * hue.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrix: Tensor = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return matrix


def _per_pixel(values: Tensor) -> Tensor:
    """Reshape ``(N,)`` to ``(N, 1, 1)``, ready to broadcast over a window."""
    return values[:, None, None]


def _steps(size: int, like: Tensor) -> Tensor:
    """Return 0, 1, ..., size - 1 on the device and in the type of ``like``."""
    return torch.arange(size, device=like.device, dtype=like.dtype)
