"""Families that change the intensity or the colour of what is there: haze, blob, texture, colour, streak."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anomalib_msacl.lesions.base import (
    Lesion,
    OutlinedParameters,
    Parameters,
    Rendered,
    draw_outline,
    limited,
)
from anomalib_msacl.lesions.canvas import Canvas, Windows
from anomalib_msacl.lesions.geometry import per_pixel, per_row, soft_outline, turned
from anomalib_msacl.lesions.randomness import Draw, Range

_DENSEST = 1.4  # times the mean density of a haze
_FAINTEST = 0.05  # of the middle of a streak: what is fainter does not belong to it


@dataclass(frozen=True, kw_only=True)
class HazeParameters(OutlinedParameters):
    """Parameters of :class:`Haze`: the shift, the flatness, and the grains of the clouds ``(N, 1, cells, cells)``."""

    shift: Tensor
    flatness: Tensor
    clouds: Tensor


@dataclass(frozen=True)
class Haze(Lesion[HazeParameters]):
    """Large and faint, without a border: brighter or darker, and flatter, as in pneumonia.

    Args:
        radius: Mean radius, relative to the shorter side, in [.001, .5], log-uniform.
        aspect: Long axis over short axis, in [1, 8].
        irregularity: Largest deviation of the outline from the ellipse, relative to the radius, in [0, .9].
        edge: Width of the soft edge, relative to the radius, in (0, 1].
        shift: Magnitude of the change of intensity, in [0, 1].
        brighter: Probability that it is brighter rather than darker.
        flatness: How much of the structure below is gone, in [0, 1].
        clouds: Standard deviation of the density of the haze, relative to its mean, in [0, 1].
        cells: Clouds along a side of the image.
    """

    name: ClassVar[str] = "haze"

    radius: Range = limited((0.15, 0.4), 1e-3, 0.5)
    aspect: Range = limited((1.0, 2.0), 1, 8)
    irregularity: float = limited(0.6, 0, 0.9)
    edge: Range = limited((0.8, 1.0), 1e-3, 1)
    shift: Range = limited((0.06, 0.22), 0, 1)
    brighter: float = limited(0.7, 0, 1)
    flatness: Range = limited((0.0, 0.6), 0, 1)
    clouds: float = limited(0.35, 0, 1)
    cells: int = 6

    def draw(self, canvas: Canvas, image: Tensor, draw: Draw) -> HazeParameters:
        """Draw an outline, the shift, the flatness and the clouds."""
        number = len(image)
        return HazeParameters(
            **self.somewhere(canvas, image, draw),
            **draw_outline(canvas, number, draw, self.radius, self.aspect, self.irregularity, self.edge),
            shift=draw.uniform(self.shift, number) * draw.sign(number, positive=self.brighter),
            flatness=draw.uniform(self.flatness, number),
            clouds=self.clouds * draw.normal(number, 1, self.cells, self.cells),
        )

    def render(self, windows: Windows, parameters: HazeParameters) -> Rendered:
        """Blend with a blurred image and shift."""
        density = (1 + windows.noise(parameters.clouds)).clamp(0, _DENSEST)
        weight = soft_outline(parameters, windows.y, windows.x) * density * windows.tissue
        flat = torch.lerp(windows.pixels, windows.blurred(1), per_pixel(parameters.flatness))
        return Rendered(flat + per_pixel(parameters.shift), weight)


@dataclass(frozen=True, kw_only=True)
class BlobParameters(OutlinedParameters):
    """Parameters of :class:`Blob`: the shift of the intensity."""

    shift: Tensor


@dataclass(frozen=True)
class Blob(Lesion[BlobParameters]):
    """A bright or dark spot that fades towards its border, as a nodule.

    Args:
        radius: Mean radius, relative to the shorter side, in [.001, .5], log-uniform.
        aspect: Long axis over short axis, in [1, 8].
        irregularity: Largest deviation of the outline from the ellipse, relative to the radius, in [0, .9].
        edge: Width of the soft edge, relative to the radius, in (0, 1].
        shift: Magnitude of the change of intensity, in [0, 1]; brighter as often as darker.
    """

    name: ClassVar[str] = "blob"

    radius: Range = limited((0.04, 0.15), 1e-3, 0.5)
    aspect: Range = limited((1.0, 2.0), 1, 8)
    irregularity: float = limited(0.6, 0, 0.9)
    edge: Range = limited((0.4, 1.0), 1e-3, 1)
    shift: Range = limited((0.08, 0.3), 0, 1)

    def draw(self, canvas: Canvas, image: Tensor, draw: Draw) -> BlobParameters:
        """Draw an outline and the shift."""
        number = len(image)
        return BlobParameters(
            **self.somewhere(canvas, image, draw),
            **draw_outline(canvas, number, draw, self.radius, self.aspect, self.irregularity, self.edge),
            shift=draw.uniform(self.shift, number) * draw.sign(number),
        )

    def render(self, windows: Windows, parameters: BlobParameters) -> Rendered:
        """Shift the intensity."""
        weight = soft_outline(parameters, windows.y, windows.x) * windows.tissue
        return Rendered(windows.pixels + per_pixel(parameters.shift), weight)


@dataclass(frozen=True)
class Spot(Blob):
    """A blob that shows on any image: darker on bright pixels, brighter on dark ones, and not only on tissue.

    No family of its own, but what a mixture falls back on; it goes by the name of a blob.
    """

    radius: Range = limited((0.08, 0.12), 1e-3, 0.5)
    edge: Range = limited((0.4, 0.7), 1e-3, 1)
    shift: Range = limited((0.15, 0.3), 0, 1)

    def render(self, windows: Windows, parameters: BlobParameters) -> Rendered:
        """Shift the intensity towards the farther end of the range."""
        away = torch.where(windows.pixels.mean(dim=1, keepdim=True) < 0.5, 1.0, -1.0)  # alike for all channels
        target = windows.pixels + away * per_pixel(parameters.shift.abs())
        return Rendered(target, soft_outline(parameters, windows.y, windows.x))


@dataclass(frozen=True, kw_only=True)
class TextureParameters(OutlinedParameters):
    """Parameters of :class:`Texture`: grains from coarse to fine, each of shape ``(N, 1, cells, cells)``."""

    coarse: Tensor
    middle: Tensor
    fine: Tensor


@dataclass(frozen=True)
class Texture(Lesion[TextureParameters]):
    """A texture of one to three scales over the tissue, as of fibrosis.

    Args:
        radius: Mean radius, relative to the shorter side, in [.001, .5], log-uniform.
        aspect: Long axis over short axis, in [1, 8].
        irregularity: Largest deviation of the outline from the ellipse, relative to the radius, in [0, .9].
        edge: Width of the soft edge, relative to the radius, in (0, 1].
        strength: Standard deviation of the texture, in [0, 1].
        scales: Grains along a side of the image, from coarse to fine.
        share: Probability that a scale takes part in full rather than by a tenth.
    """

    name: ClassVar[str] = "texture"

    radius: Range = limited((0.06, 0.2), 1e-3, 0.5)
    aspect: Range = limited((1.0, 2.0), 1, 8)
    irregularity: float = limited(0.6, 0, 0.9)
    edge: Range = limited((0.2, 0.6), 1e-3, 1)
    strength: Range = limited((0.04, 0.14), 0, 1)
    scales: tuple[int, int, int] = (16, 32, 64)
    share: float = limited(0.5, 0, 1)

    def draw(self, canvas: Canvas, image: Tensor, draw: Draw) -> TextureParameters:
        """Draw an outline and the grains of each scale."""
        number = len(image)
        place = self.somewhere(canvas, image, draw)
        outline = draw_outline(canvas, number, draw, self.radius, self.aspect, self.irregularity, self.edge)
        shares = 0.1 + draw.chance(self.share, number, len(self.scales)).float()
        shares = shares / shares.norm(dim=1, keepdim=True) * draw.uniform(self.strength, number)[:, None]
        coarse, middle, fine = (
            draw.normal(number, 1, cells, cells) * per_pixel(shares[:, index])
            for index, cells in enumerate(self.scales)
        )
        return TextureParameters(**place, **outline, coarse=coarse, middle=middle, fine=fine)

    def render(self, windows: Windows, parameters: TextureParameters) -> Rendered:
        """Add the texture to all channels alike."""
        noise = windows.noise(parameters.coarse) + windows.noise(parameters.middle) + windows.noise(parameters.fine)
        return Rendered(windows.pixels + noise, soft_outline(parameters, windows.y, windows.x) * windows.tissue)


@dataclass(frozen=True, kw_only=True)
class ColourParameters(OutlinedParameters):
    """Parameters of :class:`Colour`: the gain of each channel ``(N, C)``, and the gamma of grey images."""

    gain: Tensor
    gamma: Tensor


@dataclass(frozen=True)
class Colour(Lesion[ColourParameters]):
    """Another colour at the same structure, as of bleeding; grey images change their gamma and stay grey.

    Args:
        radius: Mean radius, relative to the shorter side, in [.001, .5], log-uniform.
        aspect: Long axis over short axis, in [1, 8].
        irregularity: Largest deviation of the outline from the ellipse, relative to the radius, in [0, .9].
        edge: Width of the soft edge, relative to the radius, in (0, 1].
        gain: Standard deviation of the logarithm of each channel's factor, in [0, 2].
        gamma: Magnitude of the logarithm of the exponent, grey images only, in [0, 3]; above 1 as often as below.
    """

    name: ClassVar[str] = "colour"

    radius: Range = limited((0.06, 0.25), 1e-3, 0.5)
    aspect: Range = limited((1.0, 2.0), 1, 8)
    irregularity: float = limited(0.6, 0, 0.9)
    edge: Range = limited((0.3, 0.8), 1e-3, 1)
    gain: float = limited(0.22, 0, 2)
    gamma: Range = limited((0.25, 0.6), 0, 3)

    def draw(self, canvas: Canvas, image: Tensor, draw: Draw) -> ColourParameters:
        """Draw an outline, the gains and the gamma."""
        number = len(image)
        gain = self.gain * draw.normal(number, canvas.channels)
        return ColourParameters(
            **self.somewhere(canvas, image, draw),
            **draw_outline(canvas, number, draw, self.radius, self.aspect, self.irregularity, self.edge),
            gain=(gain - gain.mean(dim=1, keepdim=True)).exp(),
            gamma=(draw.sign(number) * draw.uniform(self.gamma, number)).exp(),
        )

    def render(self, windows: Windows, parameters: ColourParameters) -> Rendered:
        """Multiply the channels, or raise grey values to a power."""
        pixels, gain = windows.pixels, parameters.gain[:, :, None, None]
        darker = pixels.clamp_min(1e-4) ** per_pixel(parameters.gamma)
        changed = torch.where(per_pixel(windows.grey), darker, (pixels * gain).clamp(0, 1))
        return Rendered(changed, soft_outline(parameters, windows.y, windows.x))


@dataclass(frozen=True, kw_only=True)
class StreakParameters(Parameters):
    """Parameters of :class:`Streak`, three curves a lesion.

    Attributes:
        shift: Change of intensity, shape ``(N,)``.
        offset: Middle ``(y, x)`` of each curve from the centre, shape ``(N, 3, 2)``.
        there: 1 for a curve that is drawn, else 0, shape ``(N, 3)``.
        angle: Direction, shape ``(N, 3)``.
        bend: Coefficient of the parabola, 1 / pixels, shape ``(N, 3)``.
        length: Half the length, shape ``(N, 3)``.
        width: Half the width, shape ``(N, 3)``.
        fade: Length of the faded end, shape ``(N, 3)``.
    """

    shift: Tensor
    offset: Tensor
    there: Tensor
    angle: Tensor
    bend: Tensor
    length: Tensor
    width: Tensor
    fade: Tensor


@dataclass(frozen=True)
class Streak(Lesion[StreakParameters]):
    """One to three thin bright or dark curves close to each other, as vessels or scratches.

    Args:
        shift: Magnitude of the change of intensity, in [0, 1]; brighter as often as darker.
        length: Half the length of a curve, relative to the shorter side, in (0, .5].
        width: Half the width, relative to the shorter side, in (0, .1]; at least .6 pixels.
        bend: Largest curvature: half the second derivative of the curve, times the shorter side, in [0, 10].
        scatter: Standard deviation of the middles of the second and third curve, relative to the shorter side.
        second: Probability of a second curve.
        third: Probability of a third one.
    """

    name: ClassVar[str] = "streak"

    shift: Range = limited((0.15, 0.45), 0, 1)
    length: Range = limited((0.08, 0.25), 1e-3, 0.5)
    width: Range = limited((0.005, 0.0125), 1e-4, 0.1)
    bend: float = limited(1.2, 0, 10)
    scatter: float = limited(0.06, 0, 0.5)
    second: float = limited(0.6, 0, 1)
    third: float = limited(0.4, 0, 1)

    def draw(self, canvas: Canvas, image: Tensor, draw: Draw) -> StreakParameters:
        """Draw three curves and the shift that they share."""
        number, side = len(image), canvas.side
        likely = torch.tensor([1.0, self.second, self.third], device=image.device)
        there = (draw.uniform((0.0, 1.0), number, 3) < likely).float()
        offset = draw.normal(number, 3, 2) * (self.scatter * side)
        offset[:, 0] = 0
        bend = draw.uniform((-self.bend, self.bend), number, 3) / side
        length = draw.uniform(self.length, number, 3) * side
        width = (draw.uniform(self.width, number, 3) * side).clamp_min(0.6)  # else it may cover no pixel
        reach = offset.norm(dim=-1) + (length.square() + (bend * length.square()).square()).sqrt() + 3 * width
        return StreakParameters(
            **self.somewhere(canvas, image, draw),
            extent=(reach * there).amax(dim=1),
            shift=draw.uniform(self.shift, number) * draw.sign(number),
            offset=offset,
            there=there,
            angle=draw.uniform((0.0, math.pi), number, 3),
            bend=bend,
            length=length,
            width=width,
            fade=torch.full_like(length, 0.03 * side),
        )

    def render(self, windows: Windows, parameters: StreakParameters) -> Rendered:
        """Shift the intensity along the curves."""
        weight = torch.zeros_like(windows.pixels[:, 0])
        for curve in range(parameters.there.shape[1]):
            there, angle, bend, length, width, fade = (
                getattr(parameters, name)[:, curve] for name in ("there", "angle", "bend", "length", "width", "fade")
            )
            down, right = parameters.offset[:, curve].unbind(dim=1)
            along, across = turned(windows.y - per_row(down), windows.x - per_row(right), angle)
            squared = ((across - per_row(bend) * along.square()) / per_row(width)).square()
            profile = (1 - squared / 4).clamp_min(0).square().square()  # nearly a Gaussian, and faster
            end = ((per_row(length) - along.abs()) / per_row(fade)).clamp(0, 1)
            weight = torch.maximum(weight, per_row(there) * profile * end)
        weight = torch.where(weight > _FAINTEST, weight, 0.0)[:, None] * windows.tissue
        return Rendered(windows.pixels + per_pixel(parameters.shift), weight)
