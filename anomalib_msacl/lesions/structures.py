"""Families that move or remove structure: missing, cutpaste, warp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anomalib_msacl.lesions.base import Lesion, OutlinedParameters, Parameters, Rendered, draw_outline, limited
from anomalib_msacl.lesions.canvas import Canvas, Windows
from anomalib_msacl.lesions.geometry import per_pixel, per_row, sampled, soft_outline
from anomalib_msacl.lesions.randomness import Draw, Range

_STEEPNESS = 1.5  # exponent by which a displacement fades towards the rim


@dataclass(frozen=True, kw_only=True)
class MissingParameters(OutlinedParameters):
    """Parameters of :class:`Missing`: the outline."""


@dataclass(frozen=True)
class Missing(Lesion[MissingParameters]):
    """Structure that is gone: what a strong blur leaves of it, as in atrophy.

    Args:
        radius: Mean radius, relative to the shorter side, in [.001, .5], log-uniform.
        aspect: Long axis over short axis, in [1, 8].
        irregularity: Largest deviation of the outline from the ellipse, relative to the radius, in [0, .9].
        edge: Width of the soft edge, relative to the radius, in (0, 1].
    """

    name: ClassVar[str] = "missing"

    radius: Range = limited((0.06, 0.2), 1e-3, 0.5)
    aspect: Range = limited((1.0, 2.0), 1, 8)
    irregularity: float = limited(0.6, 0, 0.9)
    edge: Range = limited((0.2, 0.6), 1e-3, 1)

    def draw(self, canvas: Canvas, image: Tensor, draw: Draw) -> MissingParameters:
        """Draw an outline."""
        outline = draw_outline(canvas, len(image), draw, self.radius, self.aspect, self.irregularity, self.edge)
        return MissingParameters(**self.somewhere(canvas, image, draw), **outline)

    def render(self, windows: Windows, parameters: MissingParameters) -> Rendered:
        """Blend with an image that was blurred three times."""
        return Rendered(windows.blurred(3), soft_outline(parameters, windows.y, windows.x))


@dataclass(frozen=True, kw_only=True)
class CutPasteParameters(Parameters):
    """Parameters of :class:`CutPaste`.

    Attributes:
        half: Half the height and width, shape ``(N, 2)``.
        source: Centre ``(y, x)`` of what is copied, shape ``(N, 2)``.
        gain: Factor of the intensity, shape ``(N,)``.
    """

    half: Tensor
    source: Tensor
    gain: Tensor


@dataclass(frozen=True)
class CutPaste(Lesion[CutPasteParameters]):
    """A rectangle from elsewhere in the image with hard edges (CutPaste, Li et al. 2021), a little brighter or not.

    Args:
        area: Area relative to the square of the shorter side, in (0, .5], log-uniform.
        ratio: Height over width, in [.1, 10], log-uniform.
        gain: Factor of the intensity, in [0, 10].
    """

    name: ClassVar[str] = "cutpaste"

    area: Range = limited((0.006, 0.08), 1e-4, 0.5)
    ratio: Range = limited((0.4, 2.5), 0.1, 10)
    gain: Range = limited((0.85, 1.15), 0, 10)

    def draw(self, canvas: Canvas, image: Tensor, draw: Draw) -> CutPasteParameters:
        """Draw a rectangle, its source and its gain."""
        number = len(image)
        area, ratio = draw.log_uniform(self.area, number), draw.log_uniform(self.ratio, number)
        half = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1) * (canvas.side / 2)
        sides = torch.tensor([canvas.height, canvas.width], device=image.device)
        half = torch.minimum(half, sides / 2)
        source = canvas.places(image, 1, self.inset, draw)[:, 0]
        return CutPasteParameters(
            **self.somewhere(canvas, image, draw),
            extent=half.norm(dim=1) + 1,
            half=half,
            # Inside the image, so that no edge is reflected into the patch.
            source=torch.minimum(torch.maximum(source, half - 0.5), sides - 0.5 - half),
            gain=draw.uniform(self.gain, number),
        )

    def render(self, windows: Windows, parameters: CutPasteParameters) -> Rendered:
        """Copy the rectangle by whole pixels."""
        tall, wide = parameters.half.unbind(dim=1)
        inside = (windows.y.abs() < per_row(tall)) & (windows.x.abs() < per_row(wide))
        moved = windows.elsewhere((parameters.source - parameters.centre).round())
        return Rendered(moved * per_pixel(parameters.gain), inside[:, None].float())


@dataclass(frozen=True, kw_only=True)
class WarpParameters(Parameters):
    """Parameters of :class:`Warp`: the radius, and the strength, above 0 where it magnifies."""

    radius: Tensor
    strength: Tensor


@dataclass(frozen=True)
class Warp(Lesion[WarpParameters]):
    """A bulge or a pinch: a mass that displaces what is around it.

    Args:
        radius: Radius, relative to the shorter side, in [.001, .5], log-uniform.
        strength: Displacement at the centre relative to the distance from it, in [0, .9].
        bulges: Probability of a bulge rather than a pinch.
    """

    name: ClassVar[str] = "warp"

    radius: Range = limited((0.1, 0.25), 1e-3, 0.5)
    strength: Range = limited((0.35, 0.7), 0, 0.9)
    bulges: float = limited(0.7, 0, 1)

    def draw(self, canvas: Canvas, image: Tensor, draw: Draw) -> WarpParameters:
        """Draw a disc and a strength."""
        number = len(image)
        radius = draw.log_uniform(self.radius, number) * canvas.side
        strength = draw.uniform(self.strength, number) * draw.sign(number, positive=self.bulges)
        return WarpParameters(**self.somewhere(canvas, image, draw), extent=radius, radius=radius, strength=strength)

    def render(self, windows: Windows, parameters: WarpParameters) -> Rendered:
        """Read the disc nearer to or farther from its centre."""
        distance = (windows.y.square() + windows.x.square()).sqrt() / per_row(parameters.radius)
        factor = 1 - per_row(parameters.strength) * (1 - distance.clamp(max=1)) ** _STEEPNESS
        middle = parameters.centre - torch.stack([windows.rows[:, 0], windows.columns[:, 0]], dim=1)
        down, right = (per_row(middle[:, axis]) + part * factor for axis, part in ((0, windows.y), (1, windows.x)))
        return Rendered(sampled(windows.pixels, down, right), (distance < 1)[:, None].float())
