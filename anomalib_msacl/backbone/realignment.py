"""Realignment of the stages behind the deepest layer, after the layer was trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from anomalib_msacl.backbone.encoder import Encoder, evaluating
from anomalib_msacl.backbone.moments import Moments
from anomalib_msacl.backbone.streams import stream_of
from anomalib_msacl.compat import BatchNorm
from anomalib_msacl.distributed import copy_from_main

_RIDGE = 1e-3
_TINY = 1e-12


@torch.no_grad()
def realign(encoder: Encoder, before: Encoder, batches: Iterable[Tensor]) -> float | None:
    """Give the stages behind the deepest layer their weights of before, and let them read it as they used to.

    The dense term changes the feature maps up to the deepest of its layers; what reads them further on was not made for
    the change. It is given the affine map of the new feature map that comes closest, over normal patches, to the one of
    before, folded into its first weights. The feature maps of the layers stay what they are.

    Args:
        encoder: Its backbone is changed in place.
        before: The same architecture with the weights of before, and with the same frozen stages.
        batches: Normal images in [0, 1], each of shape ``(B, 3, H, W)``; those of this process, if there are several.

    Returns:
        Share of the variance of the feature map of before that the affine map explains, at most 1; None where nothing
        was done: the deepest layer is the last stage, the architecture does not allow it, or features are not finite.
    """
    index = max(encoder.index)
    if index + 1 == len(encoder.stages):
        return None
    stage = encoder.stages[index]["module"]
    entry = _entry(encoder.backbone, stage)
    if entry is None:
        return None
    convolution, norm = entry
    number = encoder.stages[index]["num_chs"]
    moments = Moments(2 * number)
    with evaluating(encoder), evaluating(before):
        for images in batches:
            maps = [found[index] for found in _both(encoder, before, images, index)]
            moments.add(torch.cat(maps, dim=1))
    moments.join()
    covariance = moments.covariance
    if not covariance.isfinite().all():  # training has diverged, which the choice of the weights tells
        return None
    new, old, both = covariance[:number, :number], covariance[number:, number:], covariance[number:, :number]
    ridge = _RIDGE * new.diagonal().mean().clamp_min(_TINY) * torch.eye(number, dtype=new.dtype)
    matrix = torch.linalg.solve(new + ridge, both.T).T
    offset = moments.mean[number:] - matrix @ moments.mean[:number]
    left = old - matrix @ both.T - both @ matrix.T + matrix @ new @ matrix.T
    _copy_behind(encoder.backbone, before.backbone, stage)
    weight = convolution.weight.cpu().double()[:, :, 0, 0]
    convolution.weight.copy_((weight @ matrix)[:, :, None, None])
    # Of the convolution only the mean over all pixels moves, which BatchNorm takes off again.
    cast("Tensor", norm.running_mean).sub_((weight @ offset).to(norm.weight))
    copy_from_main(encoder.backbone)
    return float(1 - left.trace() / old.trace().clamp_min(_TINY))


def _both(encoder: Encoder, before: Encoder, images: Tensor, index: int) -> Iterator[dict[int, Tensor]]:
    """Yield the feature map of a stage of both encoders; stages that are frozen run once."""
    frozen = encoder.frozen
    if frozen is None or frozen.index is None or index <= frozen.index:
        yield from (network.intermediates(images, [index]) for network in (encoder, before))
        return
    features = frozen.features(images)
    yield from (frozen.maps(network, features, [index]) for network in (encoder, before))


def _entry(backbone: nn.Module, stage: str) -> tuple[nn.Conv2d, BatchNorm] | None:
    """Return the first convolution behind a stage and its BatchNorm, if nothing else reads the stage."""
    stream = stream_of(backbone, stage)
    if stream is None or not stream.linear:
        return None
    parent, _, number = stage.rpartition(".")
    following = cast("nn.Sequential", getattr(backbone, parent)[int(number) + 1])
    norm = getattr(following[0], "bn1", None)
    convolution = stream.readers[-1]
    pointwise = convolution.kernel_size == (1, 1) and convolution.bias is None  # padding would not be shifted
    return (convolution, norm) if pointwise and isinstance(norm, BatchNorm) else None


def _copy_behind(backbone: nn.Module, before: nn.Module, stage: str) -> None:
    """Copy parameters and statistics of all modules that come after a stage."""
    names = [name for name, _ in backbone.named_modules()]  # in the order of the data
    last = max(place for place, name in enumerate(names) if f"{name}.".startswith(f"{stage}."))
    behind = set(names[last + 1 :])
    tensors = {key: tensor for key, tensor in before.state_dict().items() if key.rpartition(".")[0] in behind}
    backbone.load_state_dict(tensors, strict=False)
