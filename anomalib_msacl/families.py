"""Families of synthetic lesions beside MedMix, and their mixture.

A disease need not look like a patch of other tissue: pneumonia is a haze, bleeding a colour, atrophy a structure that
is missing. Each family here draws one lesion for every image of a batch. What a detector does with families that were
not used in training tells more about real lesions than those that were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_msacl.errors import InputError
from anomalib_msacl.functional import foreground, foreground_fraction
from anomalib_msacl.medmix import Draw, MedMix, MedMixOutput, Range, check_images

_GRID = 16  # cells along a side for places on tissue
_FAINTEST = 0.05  # opacity below which there is no lesion

Family = Callable[[Tensor, Draw, float], tuple[Tensor, Tensor]]


def haze(images: Tensor, draw: Draw, threshold: float) -> tuple[Tensor, Tensor]:
    """Large and faint, without a border: brighter or darker, and flatter."""
    batch = len(images)
    opacity = soft_outline(images, draw, threshold, (0.15, 0.4), (0.8, 1.0))
    opacity = opacity * (1 + 0.35 * smooth_noise(images, 6, draw)).clamp(0, 1.4) * _tissue(images, threshold)
    shift = draw.uniform((0.06, 0.22), batch) * torch.where(draw.uniform((0.0, 1.0), batch) < 0.7, 1.0, -1.0)
    flat = torch.lerp(images, _smoothed(images, 1), _pixel(draw.uniform((0.0, 0.6), batch)))
    return torch.lerp(images, flat, opacity.clamp(0, 1)) + opacity * _pixel(shift), opacity


def blob(images: Tensor, draw: Draw, threshold: float) -> tuple[Tensor, Tensor]:
    """A bright or dark spot that fades towards its border."""
    opacity = soft_outline(images, draw, threshold, (0.04, 0.15), (0.4, 1.0)) * _tissue(images, threshold)
    shift = draw.uniform((0.08, 0.3), len(images)) * draw.sign(len(images))
    return images + opacity * _pixel(shift), opacity


def texture(images: Tensor, draw: Draw, threshold: float) -> tuple[Tensor, Tensor]:
    """A texture of one to three scales over the tissue."""
    batch = len(images)
    opacity = soft_outline(images, draw, threshold, (0.06, 0.2), (0.2, 0.6)) * _tissue(images, threshold)
    noise = torch.zeros_like(opacity)
    for cells in (16, 32, 64):
        share = 0.1 + (draw.uniform((0.0, 1.0), batch) < 0.5).to(noise.dtype)
        noise = noise + smooth_noise(images, cells, draw) * _pixel(share)
    noise = noise / _pixel(noise.flatten(1).std(dim=1)) * _pixel(draw.uniform((0.04, 0.14), batch))
    return images + opacity * noise, opacity


def colour(images: Tensor, draw: Draw, threshold: float) -> tuple[Tensor, Tensor]:
    """Another colour at the same structure; grey images change their gamma and stay grey."""
    batch = len(images)
    opacity = soft_outline(images, draw, threshold, (0.06, 0.25), (0.3, 0.8))
    gain = 0.22 * draw.normal((batch, images.shape[1], 1, 1))
    gamma = (draw.sign(batch) * draw.uniform((0.25, 0.6), batch)).exp()
    grey = (images - images.mean(dim=1, keepdim=True)).abs().flatten(1).mean(dim=1) < 0.01
    changed = torch.where(
        _pixel(grey), images.clamp_min(1e-4) ** _pixel(gamma), images * (gain - gain.mean(dim=1, keepdim=True)).exp()
    )
    return torch.lerp(images, changed, opacity), opacity


def streak(images: Tensor, draw: Draw, threshold: float) -> tuple[Tensor, Tensor]:
    """One to three thin bright or dark curves close to each other."""
    batch, side = len(images), min(images.shape[-2:])
    y, x = _axes(images)
    middle = _places(images, draw, threshold)
    opacity = torch.zeros_like(images[:, 0])
    for share, off in ((1.0, 0.0), (0.6, 0.06), (0.4, 0.06)):
        centre = middle + draw.normal((batch, 2)) * (off * side)
        drawn = (draw.uniform((0.0, 1.0), batch) < share).to(opacity.dtype)
        along, across = _turned(y - _row(centre[:, 0]), x - _row(centre[:, 1]), draw.uniform((0.0, math.pi), batch))
        bend, length = draw.uniform((-1.2, 1.2), batch) / side, draw.uniform((0.08, 0.25), batch) * side
        width = (draw.uniform((0.005, 0.0125), batch) * side).clamp_min(0.6)  # else it may cover no pixel
        profile = torch.exp(-(((across - _row(bend) * along.square()) / _row(width)) ** 2))
        end = ((_row(length) - along.abs()) / (0.03 * side)).clamp(0, 1)
        opacity = torch.maximum(opacity, _row(drawn) * profile * end)
    shift = draw.uniform((0.15, 0.45), batch) * draw.sign(batch)
    opacity = opacity[:, None] * _tissue(images, threshold)
    return images + opacity * _pixel(shift), opacity


def missing(images: Tensor, draw: Draw, threshold: float) -> tuple[Tensor, Tensor]:
    """Structure that is gone: what a strong blur leaves of it."""
    opacity = soft_outline(images, draw, threshold, (0.06, 0.2), (0.2, 0.6))
    return torch.lerp(images, _smoothed(images, 3), opacity), opacity


def cutpaste(images: Tensor, draw: Draw, threshold: float) -> tuple[Tensor, Tensor]:
    """A rectangle from elsewhere in the image with hard edges (CutPaste, Li et al. 2021), a little brighter or not."""
    batch, side = len(images), min(images.shape[-2:])
    y, x = _axes(images)
    area, ratio = draw.log_uniform((0.006, 0.08), batch), draw.log_uniform((0.4, 2.5), batch)
    half = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1) * (side / 2)
    place, source = (_places(images, draw, threshold) for _ in range(2))
    # Inside the image, so that no edge is reflected into the patch.
    source = torch.minimum(torch.maximum(source, half), _sides(images) - half)
    inside = ((y - _row(place[:, 0])).abs() < _row(half[:, 0])) & ((x - _row(place[:, 1])).abs() < _row(half[:, 1]))
    offset = (source - place).round()
    moved = _sampled(images, y + _row(offset[:, 0]), x + _row(offset[:, 1]))
    return moved * _pixel(1 + draw.uniform((-0.15, 0.15), batch)), inside[:, None].to(images.dtype)


def warp(images: Tensor, draw: Draw, threshold: float) -> tuple[Tensor, Tensor]:
    """A bulge or a pinch: a mass that displaces what is around it."""
    batch, side = len(images), min(images.shape[-2:])
    y, x = _axes(images)
    centre, radius = _places(images, draw, threshold), draw.log_uniform((0.1, 0.25), batch) * side
    down, right = y - _row(centre[:, 0]), x - _row(centre[:, 1])
    distance = (down.square() + right.square()).sqrt() / _row(radius)
    strength = draw.uniform((0.35, 0.7), batch) * torch.where(draw.uniform((0.0, 1.0), batch) < 0.7, 1.0, -1.0)
    factor = 1 - _row(strength) * (1 - distance.clamp(max=1)) ** 1.5
    moved = _sampled(images, _row(centre[:, 0]) + down * factor, _row(centre[:, 1]) + right * factor)
    return moved, (distance < 1)[:, None].to(images.dtype)


FAMILIES: dict[str, Family] = {
    "haze": haze,
    "blob": blob,
    "texture": texture,
    "colour": colour,
    "streak": streak,
    "missing": missing,
    "cutpaste": cutpaste,
    "warp": warp,
}
NAMES = ("medmix", *FAMILIES)


class LesionMix:
    """Synthetic lesions of several families, each lesion of one drawn at random.

    Args:
        families: ``medmix`` and names of :data:`FAMILIES`, at least one.
        medmix: What draws the lesions of family ``medmix``; its ``keep_on_foreground`` and ``foreground_threshold``
            serve all.

    Raises:
        InputError: If a family does not exist, or none is named.
    """

    def __init__(self, families: Sequence[str] = ("medmix",), medmix: MedMix | None = None) -> None:
        unknown = [name for name in families if name not in NAMES]
        if unknown or not families:
            raise InputError(f"families is {list(families)}, but must name at least one of {', '.join(NAMES)}.")
        self.families = tuple(families)
        self.medmix = medmix or MedMix()

    @torch.no_grad()
    def synthesize(
        self, images: Tensor, counts: Tensor | int, generator: torch.Generator | None = None
    ) -> MedMixOutput:
        """Draw lesions and add them to images.

        Args:
            images: Values in [0, 1], shape ``(B, C, H, W)``, float32 or half.
            counts: Lesions for each image, shape ``(B,)``, or one number for all.
            generator: Source of the random numbers, on its own device; torch's global one if None.

        Returns:
            Images, masks and counts; images equal the input wherever the mask is 0. Lesions of different families may
            overlap.

        Raises:
            InputError: If the images are not a floating batch of at least 32 x 32 pixels.
        """
        check_images(images)
        draw = Draw(generator, images.device)
        counts = torch.as_tensor(counts, device=images.device).long().expand(len(images))
        owner = torch.repeat_interleave(torch.arange(len(images), device=images.device), counts)
        family = draw.integers(len(self.families), len(owner)) if len(self.families) > 1 else torch.zeros_like(owner)
        image, mask = images, torch.zeros_like(images[:, :1])
        for index, name in enumerate(self.families):
            number = torch.bincount(owner[family == index], minlength=len(images))
            if name == "medmix":
                image, added, _ = self.medmix.synthesize(image, number, generator)
                mask = torch.maximum(mask, added)
                continue
            for rank in range(int(number.max()) if len(number) else 0):
                image, mask = self._add(FAMILIES[name], image, mask, (number > rank).nonzero()[:, 0], draw)
        return MedMixOutput(image, mask, counts)

    def _add(self, family: Family, images: Tensor, masks: Tensor, rows: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Add one lesion to each of the images of the given rows."""
        with torch.autocast(images.device.type, enabled=False):
            before = images[rows].float()
            after, opacity = family(before, draw, self.medmix.tissue_above)
        inside = opacity > _FAINTEST
        after = torch.where(inside, after.clamp(0, 1), before).to(images.dtype)
        added = torch.maximum(masks[rows], inside.to(masks.dtype))
        return images.index_copy(0, rows, after), masks.index_copy(0, rows, added)


def soft_outline(images: Tensor, draw: Draw, threshold: float, radius: Range, edge: Range) -> Tensor:
    """Return the opacity of an irregular ellipse on the tissue of each image.

    Args:
        images: Values in [0, 1], shape ``(B, C, H, W)``.
        draw: Random numbers.
        threshold: Intensity above which a pixel is tissue.
        radius: Mean radius, relative to the width, log-uniform.
        edge: Width of the soft edge, relative to the radius.

    Returns:
        Opacity in [0, 1], shape ``(B, 1, H, W)``.
    """
    batch = len(images)
    y, x = _axes(images)
    centre = _places(images, draw, threshold)
    size, aspect = draw.log_uniform(radius, batch) * min(images.shape[-2:]), draw.uniform((1.0, 2.0), batch).sqrt()
    u, v = _turned(y - _row(centre[:, 0]), x - _row(centre[:, 1]), draw.uniform((0.0, math.pi), batch))
    u, v = u / _row(size * aspect), v / _row(size / aspect)
    angle, border = torch.atan2(v, u), torch.ones_like(u)
    for harmonic in (2, 3, 4, 5):
        amplitude = draw.uniform((0.0, 0.5 / harmonic), batch)
        border = border + _row(amplitude) * torch.cos(harmonic * angle + _row(draw.angle(batch)))
    depth = 1 - (u.square() + v.square()).sqrt() / border.clamp_min(0.2)
    ramp = (depth / _row(draw.uniform(edge, batch))).clamp(0, 1)
    return (ramp * ramp * (3 - 2 * ramp))[:, None]


def smooth_noise(images: Tensor, cells: int, draw: Draw) -> Tensor:
    """Return noise of about unit variance with so many grains along each side, shape ``(B, 1, H, W)``."""
    noise = draw.normal((len(images), 1, cells, cells))
    return F.interpolate(noise, size=images.shape[-2:], mode="bicubic", align_corners=False)


def _places(images: Tensor, draw: Draw, threshold: float) -> Tensor:
    """Return one place ``(y, x)`` in pixels on the tissue of each image, shape ``(B, 2)``."""
    fraction = foreground_fraction(images, threshold, _GRID)
    cell = draw.multinomial(((fraction > 0.9) + 1e-6 * fraction).flatten(1), 1)[:, 0]
    cells = torch.stack([cell // _GRID, cell % _GRID], dim=1)
    return (cells + draw.uniform((0.0, 1.0), 2 * len(images)).reshape(-1, 2)) / _GRID * _sides(images)


def _tissue(images: Tensor, threshold: float) -> Tensor:
    """Return 1 where there is tissue, shape ``(B, 1, H, W)``; single pixels do not count."""
    return foreground(F.avg_pool2d(images, 5, 1, 2, count_include_pad=False), threshold).to(images.dtype)


def _smoothed(images: Tensor, times: int) -> Tensor:
    """Return images averaged over about a ninth of their side, so many times."""
    reach = max(1, min(images.shape[-2:]) // 18)
    for _ in range(times):
        images = F.avg_pool2d(F.pad(images, [reach] * 4, mode="reflect"), 2 * reach + 1, 1)
    return images


def _sampled(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return images read at places in pixels, each of shape ``(B, H, W)``."""
    shape = (len(images), *images.shape[-2:])
    height, width = images.shape[-2:]
    grid = torch.stack([2 * x.expand(shape) / width - 1, 2 * y.expand(shape) / height - 1], dim=-1)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _axes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the middles of rows ``(1, H, 1)`` and columns ``(1, 1, W)`` in pixels."""
    rows, columns = (torch.arange(size, device=images.device) + 0.5 for size in images.shape[-2:])
    return rows[None, :, None], columns[None, None, :]


def _sides(images: Tensor) -> Tensor:
    """Return height and width as a tensor."""
    return torch.tensor(images.shape[-2:], device=images.device)


def _turned(y: Tensor, x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates along and across a direction, each of shape ``(B, H, W)``."""
    cos, sin = _row(angle.cos()), _row(angle.sin())
    return cos * x + sin * y, cos * y - sin * x


def _row(values: Tensor) -> Tensor:
    """Reshape ``(B,)`` to ``(B, 1, 1)``."""
    return values[:, None, None]


def _pixel(values: Tensor) -> Tensor:
    """Reshape ``(B,)`` to ``(B, 1, 1, 1)``."""
    return values[:, None, None, None]
