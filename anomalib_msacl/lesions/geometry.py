"""Shapes and smooth fields around a place, as pure functions of tensors."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_DIRECTIONS = 64  # in which the extent of an outline is measured


class Outline(Protocol):
    """The shape of N lesions: an ellipse whose radius is modulated by harmonics of the polar angle.

    Attributes:
        radius: Geometric mean of the two half axes, pixels, shape ``(N,)``.
        aspect: Ratio of the two half axes, at least 1, shape ``(N,)``.
        angle: Direction of the long axis, radians, shape ``(N,)``.
        harmonics: Complex coefficients of the harmonics 2, 3, ... of the outline as ``(real, imaginary)``, relative
            to the radius, shape ``(N, K, 2)``.
        edge: Width of the soft edge inside the outline, relative to the radius, in ``(0, 1]``, shape ``(N,)``.
    """

    @property
    def radius(self) -> Tensor: ...  # noqa: D102
    @property
    def aspect(self) -> Tensor: ...  # noqa: D102
    @property
    def angle(self) -> Tensor: ...  # noqa: D102
    @property
    def harmonics(self) -> Tensor: ...  # noqa: D102
    @property
    def edge(self) -> Tensor: ...  # noqa: D102


def outline_extent(radius: Tensor, aspect: Tensor, harmonics: Tensor) -> Tensor:
    """Return an upper bound of the distance from a lesion's centre to its outline, a few percent above it at most.

    Args:
        radius: Pixels, shape ``(N,)``.
        aspect: Shape ``(N,)``.
        harmonics: Shape ``(N, K, 2)``.

    Returns:
        Pixels, shape ``(N,)``.
    """
    order = torch.arange(2, harmonics.shape[1] + 2, device=radius.device)
    step = 2 * math.pi / _DIRECTIONS
    angle = order * torch.arange(_DIRECTIONS, device=radius.device)[:, None] * step
    swing = (harmonics[:, None, :, 0] * angle.cos() - harmonics[:, None, :, 1] * angle.sin()).sum(dim=-1).amax(dim=1)
    # Between two directions a wave rises above both by no more than its curvature allows.
    swing = swing + (harmonics.norm(dim=-1) * (order * step / 2).square() / 2).sum(dim=-1)
    extent: Tensor = radius * aspect.sqrt() * (1 + swing)
    return extent


def soft_outline(outline: Outline, y: Tensor, x: Tensor) -> Tensor:
    """Return how much each pixel belongs to a lesion: 0 on the outline, rising by a smoothstep over the edge to 1.

    Args:
        outline: N shapes.
        y: Vertical distance of each row to the centre, pixels, shape ``(N, h, 1)``.
        x: Horizontal distance of each column to the centre, pixels, shape ``(N, 1, w)``.

    Returns:
        Values in [0, 1], 0 outside the outline, shape ``(N, 1, h, w)``.
    """
    u, v = turned(y, x, outline.angle)
    long, short = (per_row(outline.radius * outline.aspect.pow(power)) for power in (0.5, -0.5))
    u, v = u / long, v / short
    rho = (u * u + v * v).clamp_min(1e-12).sqrt()
    c, s = u / rho, v / rho
    # cos(k t) and sin(k t) by recurrence: the polar angle itself is never needed.
    real, imaginary = c, s
    boundary = torch.ones_like(rho)
    for coefficient in outline.harmonics.unbind(dim=1):
        real, imaginary = real * c - imaginary * s, real * s + imaginary * c
        boundary = boundary + per_row(coefficient[:, 0]) * real - per_row(coefficient[:, 1]) * imaginary
    depth = 1 - rho / boundary.clamp_min(0.1)
    return smoothstep(depth / per_row(outline.edge))[:, None]


def smoothstep(values: Tensor) -> Tensor:
    """Rise from 0 at 0 to 1 at 1, level at both ends."""
    values = values.clamp(0, 1)
    return values * values * (3 - 2 * values)


def smooth_noise(grains: Tensor, rows: Tensor, columns: Tensor, limits: tuple[int, int]) -> Tensor:
    """Return noise whose grains fill the image, where it is asked for.

    Args:
        grains: One random number for each cell of a grid over the image, shape ``(N, 1, cells, cells)``.
        rows: Rows of the image, pixels, shape ``(N, h)``.
        columns: Columns of the image, pixels, shape ``(N, w)``.
        limits: Height and width of the image.

    Returns:
        Shape ``(N, 1, h, w)``.
    """
    y, x = (weights_of_cells(at, limit, grains.shape[-1]) for at, limit in ((rows, limits[0]), (columns, limits[1])))
    return (y @ grains[:, 0] @ x.mT)[:, None]


def weights_of_cells(at: Tensor, limit: int, cells: int) -> Tensor:
    """Return the weight of each cell at each place of a cubic interpolation, scaled to keep the variance of the grains.

    Args:
        at: Pixels along one axis, shape ``(N, n)``.
        limit: Length of the axis.
        cells: Cells along the axis.

    Returns:
        Shape ``(N, n, cells)``.
    """
    place = (at + 0.5) * (cells / limit) - 0.5
    distance = (place[..., None] - torch.arange(cells, device=at.device, dtype=place.dtype)).abs()
    near = (1.25 * distance - 2.25) * distance.square() + 1
    far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.square().sum(dim=-1, keepdim=True).sqrt()


def turned(y: Tensor, x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates along and across a direction, each of shape ``(N, h, w)``."""
    cos, sin = per_row(angle.cos()), per_row(angle.sin())
    return cos * x + sin * y, cos * y - sin * x


def sampled(windows: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return windows ``(N, C, h, w)`` read between their pixels, at rows and columns of shape ``(N, h, w)`` each."""
    height, width = windows.shape[-2:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    values: Tensor = F.grid_sample(windows, grid, padding_mode="reflection", align_corners=False)
    return values


def blur_matrix(size: int, reach: int, times: int, device: torch.device) -> Tensor:
    """Return the matrix that averages over ``2 * reach + 1`` neighbours, so many times.

    Args:
        size: Number of averages.
        reach: Neighbours on either side.
        times: How often; each takes ``reach`` off either end.
        device: Where the matrix is needed.

    Returns:
        Shape ``(size, size + 2 * reach * times)``.
    """
    matrix = torch.eye(size, device=device)
    for _ in range(times):
        ahead = torch.arange(matrix.shape[1] + 2 * reach, device=device) - torch.arange(
            matrix.shape[1], device=device
        ).unsqueeze(1)
        matrix = matrix @ ((ahead >= 0) & (ahead <= 2 * reach)).float() / (2 * reach + 1)
    return matrix


def per_row(values: Tensor) -> Tensor:
    """Reshape ``(N,)`` to ``(N, 1, 1)``."""
    return values[:, None, None]


def per_pixel(values: Tensor) -> Tensor:
    """Reshape ``(N,)`` to ``(N, 1, 1, 1)``."""
    return values[:, None, None, None]
