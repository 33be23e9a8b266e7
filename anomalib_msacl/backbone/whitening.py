"""Whitening of a backbone's feature maps on normal images, folded into its weights.

MSACL asks for a normal class that is tight in Euclidean distance. For a linear map of a feature map the answer is
known in closed form: the inverse square root of the covariance of normal patches. Detectors that measure Euclidean
distances, such as PatchCore, then measure Mahalanobis distances; Gaussian ones, such as PaDiM, regularise their
covariances in units of normal variation.

Where a stage of the backbone ends in a linear layer, as in EfficientNet and MobileNet, the map goes into the weights
that write this feature map and its inverse into those that read it: the output of the network stays what it was, only
the feature map has another basis. Stages that end in a ReLU, as in ResNet, let no more than a positive factor for each
channel pass; these channels get equal ranges. Equal standard deviations would enlarge a channel that is 0 in nearly all
patches so much that the few normal patches with it lie farthest of all. The maps of a vision transformer are only
brought to a scale: anomalib reads all its blocks through the last norm, which takes one factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from anomalib_msacl.backbone.encoder import Encoder, evaluating, is_transformer
from anomalib_msacl.backbone.moments import Moments, Ranges
from anomalib_msacl.backbone.streams import fold, streams
from anomalib_msacl.distributed import copy_from_main

_SHRINKAGE = 0.01
_TINY = 1e-12


def whiten(encoder: Encoder, batches: Iterable[Tensor], std: float) -> list[str]:
    """Whiten the feature maps of a backbone where its architecture allows it.

    Args:
        encoder: Its backbone is changed in place; the output of stages behind the deepest layer stays, and so does that
            of the head, unless it pools the deepest layer itself, as with layer4 of a ResNet.
        batches: Normal images in [0, 1], each of shape ``(B, 3, H, W)``; those of this process, if there are several.
        std: Root mean square standard deviation of a channel over normal patches afterwards.

    Returns:
        Names of the stages that were whitened.
    """
    found = streams(encoder)
    gathered: dict[int, Moments | Ranges] = {
        index: (Moments if stream.linear else Ranges)(stream.writers[0][1].num_features)
        for index, stream in found.items()
    }
    with torch.no_grad(), evaluating(encoder):
        for images in batches if found else ():
            for index, maps in encoder.intermediates(images, sorted(found)).items():
                gathered[index].add(maps)
    for index, stream in found.items():
        patches = gathered[index]
        patches.join()
        if isinstance(patches, Moments):
            fold(stream, whitening_map(patches.covariance, std))
        else:
            fold(stream, range_factors(patches, std).diag())
    copy_from_main(encoder.backbone)  # processors may differ in the last digit
    return [encoder.stages[index]["module"] for index in found]


def deviation(encoder: Encoder, batches: Iterable[Tensor]) -> float | None:
    """Return the root mean square standard deviation of a channel of a vision transformer, over its layers together.

    Args:
        encoder: Left alone.
        batches: Normal images in [0, 1], each of shape ``(B, 3, H, W)``; those of this process, if there are several.

    Returns:
        None for other architectures, for a transformer whose maps do not all pass one norm with a weight, and where
        they do not vary or are not finite.
    """
    if _last_norm(encoder.backbone) is None:
        return None
    index = sorted(set(encoder.index))
    moments = Moments(encoder.stages[index[0]]["num_chs"])
    with torch.no_grad(), evaluating(encoder):
        for images in batches:
            for maps in encoder.intermediates(images, index).values():
                moments.add(maps)
    moments.join()
    std = float(moments.covariance.diagonal().mean().sqrt())
    return std if _TINY < std < math.inf else None


def _last_norm(backbone: nn.Module) -> nn.Module | None:
    """Return the norm that every block of a vision transformer is read through, if it has a weight."""
    norm = getattr(backbone, "norm", None) if is_transformer(backbone) else None
    return norm if isinstance(getattr(norm, "weight", None), nn.Parameter) else None


@torch.no_grad()
def rescale(encoder: Encoder, factor: float, layers: Sequence[str] | None = None) -> list[str]:
    """Multiply the feature maps that :func:`whiten` whitens, or all of a vision transformer, by a factor.

    Args:
        encoder: Its backbone is changed in place, and stays what it is elsewhere as in :func:`whiten`.
        factor: Above 0.
        layers: The layers that the maps were whitened for; those of the encoder if None.

    Returns:
        Names of the stages that were rescaled.
    """
    norm = _last_norm(encoder.backbone)
    if norm is not None:
        for parameter in norm.parameters(recurse=False):
            parameter.mul_(factor)
        return [stage["module"] for stage in encoder.stages]
    found = streams(encoder, layers)
    for stream in found.values():
        channels = stream.writers[0][1].num_features
        fold(stream, factor * torch.eye(channels, dtype=torch.float64))
    return [encoder.stages[index]["module"] for index in found]


def whitening_map(covariance: Tensor, std: float) -> Tensor:
    """Return the symmetric map (ZCA) that makes the covariance a multiple of the unit matrix.

    A hundredth of the mean variance is mixed in, or directions of almost no variance would be blown up.

    Args:
        covariance: Shape ``(C, C)``, float64.
        std: Root mean square standard deviation of a channel afterwards.

    Returns:
        Shape ``(C, C)``.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)
    shrunk = ((1 - _SHRINKAGE) * values + _SHRINKAGE * values.mean()).clamp_min(_TINY)
    matrix = (vectors * shrunk.rsqrt()) @ vectors.T
    scaled: Tensor = matrix * (std / (values / shrunk).mean().sqrt().clamp_min(_TINY))
    return scaled


def range_factors(patches: Ranges, std: float) -> Tensor:
    """Return a positive factor for each channel that brings the channels to equal ranges.

    A tenth of the mean range is mixed in, or channels that hardly vary would be blown up.

    Args:
        patches: Normal ones.
        std: Root mean square standard deviation of a channel afterwards.

    Returns:
        Shape ``(C,)``, float64.
    """
    mixed = 0.9 * patches.range + 0.1 * patches.range.mean()
    factors = 1 / mixed.clamp_min(_TINY)
    scaled: Tensor = factors * (std / (patches.variance * factors.square()).mean().sqrt().clamp_min(_TINY))
    return scaled
