"""The paper's family: patches of normal images, deformed in look and pasted elsewhere (MSACL, arXiv 2109.01303).

The paper names colour jitter, Gaussian noise, fisheye and horizontal wave; sizes, shapes and blending are not
published, so every one of them is an argument here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anomalib_msacl.lesions.base import Lesion, OutlinedParameters, Rendered, draw_outline, limited
from anomalib_msacl.lesions.canvas import Canvas, Windows, window_sides
from anomalib_msacl.lesions.geometry import per_pixel, per_row, sampled, soft_outline, turned
from anomalib_msacl.lesions.randomness import Draw, Range

# Rows of the YIQ transform; its first row is luma, the other two span the plane in which hue turns.
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass(frozen=True, kw_only=True)
class PatchParameters(OutlinedParameters):
    """Parameters of :class:`Patch`, beside its place and outline.

    Attributes:
        donor: Index of the image that the patch is cut from, shape ``(N,)``, int64.
        source: Centre ``(y, x)`` of the cut in the donor, shape ``(N, 2)``.
        opacity: Weight of the patch where the edge is over, in ``(0, 1]``, shape ``(N,)``.
        turn: Rotation of the patch, shape ``(N,)``.
        fisheye: Radial distortion, 0 is none, shape ``(N,)``.
        wave: Amplitude, length and phase of the horizontal wave, shape ``(N, 3)``.
        brightness: Added to the intensity, shape ``(N,)``.
        contrast: Factor about the mean of the patch, shape ``(N,)``.
        saturation: Factor about the grey image, shape ``(N,)``.
        hue: Turn of the hue, RGB images only, shape ``(N,)``.
        gamma: Exponent of the non-linear change of intensity, shape ``(N,)``.
        noise: Noise that is added to all channels alike, at least as large as the largest lesion of the family,
            shape ``(N, 1, h, w)``.
    """

    donor: Tensor
    source: Tensor
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


@dataclass(frozen=True)
class Patch(Lesion[PatchParameters]):
    """A patch of normal tissue that is turned, distorted, changed in look and pasted with a soft edge: MedMix.

    Args:
        radius: Mean radius, relative to the shorter side, in [.001, .5], log-uniform.
        aspect: Long axis over short axis of the ellipse, in [1, 8].
        irregularity: Largest deviation of the outline from the ellipse, relative to the radius, in [0, .5].
        edge: Width of the soft edge inside the outline, relative to the radius, in [.001, 1].
        opacity: Weight of the pasted patch, in [.001, 1].
        brightness: Magnitude of the change of intensity, in [0, 1]; brighter as often as darker.
        contrast: Factor of the contrast, in [0, 10].
        saturation: Factor of the saturation, in [0, 10]. Grey images stay grey.
        hue: Turn of the hue in degrees, in [-180, 180], RGB images only.
        gamma: Exponent of the non-linear change of intensity, in [.05, 20], log-uniform.
        noise: Standard deviation of Gaussian noise, in [0, 1].
        fisheye: Magnitude of the radial distortion, 0 is none, in [0, .9]; of either sign.
        wave: Amplitude of the horizontal wave, relative to the radius, in [0, 1].
        other_image: Probability that a patch comes from another image of the batch rather than from the same.
    """

    name: ClassVar[str] = "medmix"
    inset: ClassVar[float] = 0.1

    radius: Range = limited((0.05, 0.16), 1e-3, 0.5)
    aspect: Range = limited((1.0, 1.8), 1, 8)
    irregularity: float = limited(0.25, 0, 0.5)
    edge: Range = limited((0.2, 0.6), 1e-3, 1)
    opacity: Range = limited((0.6, 1.0), 1e-3, 1)
    brightness: Range = limited((0.05, 0.3), 0, 1)
    contrast: Range = limited((0.5, 1.5), 0, 10)
    saturation: Range = limited((0.5, 1.5), 0, 10)
    hue: Range = limited((-20.0, 20.0), -180, 180)
    gamma: Range = limited((0.7, 1.4), 0.05, 20)
    noise: Range = limited((0.0, 0.06), 0, 1)
    fisheye: Range = limited((0.0, 0.6), 0, 0.9)
    wave: Range = limited((0.0, 0.2), 0, 1)
    other_image: float = limited(0.5, 0, 1)

    def draw(self, canvas: Canvas, image: Tensor, draw: Draw) -> PatchParameters:
        """Draw an outline, where the patch is cut, and how it is changed."""
        number = len(image)
        donor = self._donor(canvas, image, draw)
        outline = draw_outline(canvas, number, draw, self.radius, self.aspect, self.irregularity, self.edge)
        height, width = self._largest(canvas)
        wave = (draw.uniform(self.wave, number), draw.uniform((0.5, 2.0), number))
        return PatchParameters(
            **self.somewhere(canvas, image, draw),
            **outline,
            donor=donor,
            source=canvas.places(donor, 1, self.inset, draw)[:, 0],
            opacity=draw.uniform(self.opacity, number),
            turn=draw.angle(number),
            fisheye=draw.uniform(self.fisheye, number) * draw.sign(number),
            wave=torch.stack([*(part * outline["radius"] for part in wave), draw.angle(number)], dim=1),
            brightness=draw.uniform(self.brightness, number) * draw.sign(number),
            contrast=draw.uniform(self.contrast, number),
            saturation=draw.uniform(self.saturation, number),
            hue=draw.uniform(self.hue, number) * (math.pi / 180),
            gamma=draw.log_uniform(self.gamma, number),
            noise=draw.normal(number, 1, height, width) * per_pixel(draw.uniform(self.noise, number)),
        )

    def render(self, windows: Windows, parameters: PatchParameters) -> Rendered:
        """Cut the patches, change their look, and blend them in."""
        shape = soft_outline(parameters, windows.y, windows.x)
        patches = change_look(cut_patches(windows, parameters), parameters, shape)
        return Rendered(patches, shape * per_pixel(parameters.opacity))

    def _donor(self, canvas: Canvas, image: Tensor, draw: Draw) -> Tensor:
        """Return the own image, or with probability ``other_image`` another one; copies of an image are the same."""
        different = len(canvas.images)
        if different == 1:
            return image
        other = (image // canvas.copies + 1 + draw.integers(different - 1, len(image))) % different * canvas.copies
        return torch.where(draw.chance(self.other_image, len(image)), other, image)

    def _largest(self, canvas: Canvas) -> tuple[int, int]:
        """Return height and width of the window of the largest lesion there may be."""
        extent = self.radius[1] * canvas.side * math.sqrt(self.aspect[1]) * (1 + self.irregularity)
        side = int(window_sides(torch.tensor(max(extent, 2 * math.sqrt(self.aspect[1]) * (1 + self.irregularity)))))
        return min(side, canvas.height), min(side, canvas.width)


def cut_patches(windows: Windows, parameters: PatchParameters) -> Tensor:
    """Cut one patch per lesion out of its donor: turned, fisheye-distorted and waved, shape ``(N, C, h, w)``."""
    y, x, radius = windows.y, windows.x, per_row(parameters.radius)
    # Beyond the outline the distortion stays at its value on it, or the patch would reach far across the donor.
    squared = ((y * y + x * x) / (radius * radius)).clamp(max=1)
    bulge = 1 + per_row(parameters.fisheye) * (squared - 1)
    right, down = (part * bulge for part in turned(y, x, parameters.turn))
    amplitude, length, phase = (per_row(part) for part in parameters.wave.unbind(dim=1))
    right = right + amplitude * torch.sin(2 * math.pi * down / length + phase)
    pixels, row, column = windows.cut(parameters.donor, parameters.source)
    return sampled(pixels, per_row(row) + down, per_row(column) + right)


def change_look(patches: Tensor, parameters: PatchParameters, shape: Tensor) -> Tensor:
    """Change the look of patches: contrast, brightness, saturation, hue, gamma and noise.

    Args:
        patches: Values in [0, 1], float32, shape ``(N, C, h, w)``.
        parameters: N lesions.
        shape: Weights for the mean colour of a patch, shape ``(N, 1, h, w)``.

    Returns:
        Values in [0, 1], shape ``(N, C, h, w)``. Grey images stay grey.
    """
    weight = shape / shape.sum(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    mean = (patches * weight).sum(dim=(-2, -1), keepdim=True)
    contrast, brightness, gamma = (
        per_pixel(value) for value in (parameters.contrast, parameters.brightness, parameters.gamma)
    )
    # Contrast, brightness and colour are one linear map, so one pass over the pixels is enough.
    matrix = _colour_matrix(parameters.saturation, parameters.hue, patches.shape[1])
    patches = torch.einsum("ncd,ndhw->nchw", matrix, (patches - mean) * contrast + mean) + brightness
    # The middle of the noise: the window of a small lesion is smaller than what was drawn.
    first = [(drawn - used) // 2 for drawn, used in zip(parameters.noise.shape[-2:], patches.shape[-2:], strict=True)]
    noise = parameters.noise[..., first[0] : first[0] + patches.shape[-2], first[1] : first[1] + patches.shape[-1]]
    return (patches.clamp(1e-6, 1) ** gamma + noise).clamp(0, 1)


def _colour_matrix(saturation: Tensor, hue: Tensor, channels: int) -> Tensor:
    """Return per-lesion ``(C, C)`` matrices that keep grey as it is, shape ``(N, C, C)``."""
    eye = torch.eye(channels, device=hue.device)
    if channels != len(_RGB_TO_YIQ):
        grey = torch.full_like(eye, 1 / channels)
        return torch.lerp(grey, eye, per_row(saturation))
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
