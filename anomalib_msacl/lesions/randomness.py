"""Random numbers for lesions, all from one generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Range = tuple[float, float]


class Draw:
    """Random numbers from one generator, moved to one device.

    Args:
        generator: Source, on its own device; torch's global one of ``target`` if None.
        target: Device that the numbers are needed on.
    """

    def __init__(self, generator: torch.Generator | None, target: torch.device) -> None:
        self.generator = generator
        self.source = target if generator is None else generator.device
        self.target = target

    def uniform(self, limits: Range, *shape: int) -> Tensor:
        """Return values drawn uniformly from ``(low, high)``."""
        low, high = limits
        values = torch.rand(shape, generator=self.generator, device=self.source)
        return (low + (high - low) * values).to(self.target)

    def log_uniform(self, limits: Range, *shape: int) -> Tensor:
        """Return values whose logarithm is uniform."""
        return self.uniform((math.log(limits[0]), math.log(limits[1])), *shape).exp()

    def angle(self, *shape: int) -> Tensor:
        """Return angles in radians."""
        return self.uniform((-math.pi, math.pi), *shape)

    def sign(self, *shape: int, positive: float = 0.5) -> Tensor:
        """Return 1 with probability ``positive``, else -1."""
        return torch.where(self.chance(positive, *shape), 1.0, -1.0)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """Return booleans, true with the given probability."""
        return self.uniform((0.0, 1.0), *shape) < probability

    def integers(self, high: int, *shape: int) -> Tensor:
        """Return whole numbers from 0 to ``high - 1``, int64."""
        return torch.randint(high, shape, generator=self.generator, device=self.source).to(self.target)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal values."""
        return torch.randn(shape, generator=self.generator, device=self.source).to(self.target)

    def multinomial(self, weights: Tensor, samples: int) -> Tensor:
        """Return columns drawn by the weights of each row, with replacement, shape ``(rows, samples)``."""
        weights = weights.to(self.source)
        return torch.multinomial(weights, samples, replacement=True, generator=self.generator).to(self.target)
