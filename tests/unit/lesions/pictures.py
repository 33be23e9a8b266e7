"""Pictures that lesions are put on."""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(batch: int = 6, height: int = 64, width: int = 64, channels: int = 3) -> torch.Tensor:
    """Tissue-like pictures without black."""
    coarse = torch.rand(batch, channels, 8, 8, generator=seeded(1))
    return 0.2 + 0.6 * F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def grey(batch: int = 6) -> torch.Tensor:
    return smooth(batch, channels=1).expand(-1, 3, -1, -1).contiguous()


def binarised(batch: int = 8, side: int = 96) -> torch.Tensor:
    """Black and white patterns, as of circuit boards."""
    coarse = torch.randn(batch, 1, 6, 6, generator=seeded(2))
    return (F.interpolate(coarse, size=(side, side), mode="bicubic") > 0).float().expand(-1, 3, -1, -1).contiguous()


def dark(batch: int = 8, side: int = 96) -> torch.Tensor:
    """A dim disc on black, as of magnetic resonance."""
    axis = torch.linspace(-1, 1, side)
    disc = (axis[:, None].square() + axis[None].square() < 0.6).float()
    return disc * 0.35 * smooth(batch, side, side)


def constant(batch: int = 8, side: int = 96, value: float = 0.5) -> torch.Tensor:
    return torch.full((batch, 3, side, side), value)
