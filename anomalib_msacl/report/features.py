"""The feature space before and after, in the plane of its two main directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from anomalib_msacl.backbone import Encoder, create_backbone
from anomalib_msacl.backbone.folder import read_config

_BATCH = 32


@dataclass(frozen=True)
class Plane:
    """Pooled features of one backbone in the plane of the two main directions of the training images.

    Attributes:
        title: Which backbone.
        training: Normal training images, shape ``(N, 2)``.
        test: Test images, shape ``(M, 2)``.
        labels: 1 for abnormal test images, else 0, shape ``(M,)``; None without labels.
        explained: Part of the variance of the training images that lies in the plane, in [0, 1].
    """

    title: str
    training: NDArray[np.float64]
    test: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    explained: float


def feature_planes(
    before: str, after: Path, training: Tensor, test: Tensor, labels: Tensor | None = None
) -> list[Plane]:
    """Return the planes of the untouched and of the pre-trained backbone.

    The features are those of the layers that were trained for, each averaged over the image. The plane of each backbone
    is that of its own training images.

    Args:
        before: Name of the initial weights.
        after: Folder of the pre-trained weights.
        training: Normal training images in [0, 1], shape ``(N, 3, H, W)``, at least three.
        test: Test images, shape ``(M, 3, H, W)``.
        labels: 1 for abnormal test images, else 0, shape ``(M,)``.

    Raises:
        InputError: If weights cannot be had.
        ValueError: If there are fewer than three training images.
    """
    if len(training) < 3:
        raise ValueError("fewer than three training images")
    architecture = str(read_config(after)["architecture"])
    made_for = create_backbone(architecture, str(after)).provenance
    planes = []
    for title, weights in (("untouched backbone", before), ("pre-trained backbone", str(after))):
        model = create_backbone(architecture, weights).model
        encoder = Encoder(model, list(made_for.layers) or None, made_for.mean, made_for.std).eval()
        known, seen = pooled(encoder, training), pooled(encoder, test)
        plane = PCA(2).fit(known)
        truth = None if labels is None else labels.numpy()
        planes.append(
            Plane(title, plane.transform(known), plane.transform(seen), truth, plane.explained_variance_ratio_.sum())
        )
    return planes


@torch.no_grad()
def pooled(encoder: Encoder, images: Tensor) -> NDArray[np.float64]:
    """Return the layers of an encoder, averaged over each image and joined, shape ``(N, C)``."""
    parts: Sequence[Tensor] = [
        torch.cat([maps.mean(dim=(-2, -1)) for maps in encoder(batch, pooled=False)[0]], dim=1)
        for batch in torch.split(images, _BATCH)
    ]
    found: NDArray[np.float64] = torch.cat(list(parts)).double().numpy()
    return found
