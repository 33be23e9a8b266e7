"""Features of patches, as PatchCore builds them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def patch_features(maps: Sequence[Tensor]) -> Tensor:
    """Return the features of patches: averaged 3 x 3, all layers side by side.

    Args:
        maps: Feature maps of shape ``(B, C_l, h_l, w_l)``.

    Returns:
        Shape ``(B, sum of C_l, h, w)`` at the size of the first map.
    """
    size = maps[0].shape[-2:]
    parts = [F.interpolate(F.avg_pool2d(layer, 3, 1, 1), size=size, mode="bilinear") for layer in maps]
    return torch.cat(parts, dim=1)
