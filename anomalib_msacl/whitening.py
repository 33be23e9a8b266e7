"""Whitening of a backbone's feature maps on normal images, folded into its weights.

MSACL asks for a normal class that is tight in Euclidean distance. For a linear map of a feature map the answer is
known in closed form: the inverse square root of the covariance of normal patches. Detectors that measure Euclidean
distances, such as PatchCore, then measure Mahalanobis distances; Gaussian ones, such as PaDiM, regularise their
covariances in units of normal variation.

Where a stage of the backbone ends in a linear layer, as in EfficientNet and MobileNet, the map goes into the weights
that write this feature map and its inverse into those that read it: the output of the network stays what it was, only
the feature map has another basis. Stages that end in a ReLU, as in ResNet, let no more than a positive factor for each
channel pass; these channels get equal deviations, which is whitening without its rotation. Transformers keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from anomalib_msacl.encoder import Encoder, evaluating

_SHRINKAGE = 0.01
_RIDGE = 1e-3
_TINY = 1e-12

BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001


class Stream(NamedTuple):
    """The weights around one feature map.

    Attributes:
        writers: Pairs of a convolution and the BatchNorm after it, whose outputs are added up to the feature map.
        readers: Convolutions that take the feature map as input.
        linear: Whether nothing but sums stands between writers and readers, so that any linear map can pass. Otherwise
            it is a ReLU after each sum, and positive factors of the channels can.
    """

    writers: list[tuple[nn.Conv2d, BatchNorm]]
    readers: list[nn.Conv2d]
    linear: bool = True

    def whitening_map(self, covariance: Tensor, deviation: float) -> Tensor:
        """Return the map that whitens as far as it can pass; see :func:`whitening_map`."""
        return whitening_map(covariance if self.linear else covariance.diagonal().diag(), deviation)


def whiten(encoder: Encoder, batches: Iterable[Tensor], deviation: float) -> list[str]:
    """Whiten the feature maps of a backbone where its architecture allows it.

    Args:
        encoder: Its backbone is changed in place; the output of stages behind the deepest layer stays, and so does that
            of the head, unless it pools the deepest layer itself, as with layer4 of a ResNet.
        batches: Normal images in [0, 1], each of shape ``(B, 3, H, W)``.
        deviation: Root mean square deviation of a channel over normal patches afterwards.

    Returns:
        Names of the stages that were whitened.
    """
    found = _streams(encoder)
    moments = {index: Moments() for index in found}
    with torch.no_grad(), evaluating(encoder):
        for images in batches if found else ():
            for index, maps in encoder.intermediates(images, sorted(found)).items():
                moments[index].add(maps)
    for index, stream in found.items():
        fold(stream, stream.whitening_map(moments[index].covariance, deviation))
    return [encoder.stages[index]["module"] for index in found]


def rescale(encoder: Encoder, factor: float, layers: Sequence[str] | None = None) -> list[str]:
    """Multiply the feature maps that :func:`whiten` whitens by a factor.

    Args:
        encoder: Its backbone is changed in place, and stays what it is elsewhere as in :func:`whiten`.
        factor: Above 0.
        layers: The layers that the maps were whitened for; those of the encoder if None.

    Returns:
        Names of the stages that were rescaled.
    """
    found = _streams(encoder, layers)
    for stream in found.values():
        channels = stream.writers[0][1].num_features
        fold(stream, factor * torch.eye(channels, dtype=torch.float64))
    return [encoder.stages[index]["module"] for index in found]


@torch.no_grad()
def realign(encoder: Encoder, before: Encoder, batches: Iterable[Tensor]) -> float | None:
    """Give the stages behind the deepest layer their weights of before, and let them read it as they used to.

    The dense term changes the feature maps up to the deepest of its layers; what reads them further on was not made for
    the change. It is given the affine map of the new feature map that comes closest, over normal patches, to the one of
    before, folded into its first weights. The feature maps of the layers stay what they are.

    Args:
        encoder: Its backbone is changed in place.
        before: The same architecture with the weights of before.
        batches: Normal images in [0, 1], each of shape ``(B, 3, H, W)``.

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
    moments = Moments()
    with evaluating(encoder), evaluating(before):
        for images in batches:
            maps = [network.intermediates(images, [index])[index] for network in (encoder, before)]
            moments.add(torch.cat(maps, dim=1))
    number = encoder.stages[index]["num_chs"]
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
    return float(1 - left.trace() / old.trace().clamp_min(_TINY))


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


def _streams(encoder: Encoder, layers: Sequence[str] | None = None) -> dict[int, Stream]:
    """Return the weights around the feature map of each stage that can be whitened, down to the deepest layer.

    Pooled features of deeper stages tell images apart better as they are (docs/experiments.md).
    """
    names = [stage["module"] for stage in encoder.stages]
    stages = encoder.stages[: 1 + max(names.index(layer) for layer in layers or encoder.layers)]
    streams = {index: stream_of(encoder.backbone, stage["module"]) for index, stage in enumerate(stages)}
    return {index: stream for index, stream in streams.items() if stream is not None}


class Moments:
    """Second moments of the patches of a feature map, gathered batch by batch in double precision."""

    def __init__(self) -> None:
        self._number, self._sum, self._square = 0, torch.zeros(()), torch.zeros(())

    def add(self, maps: Tensor) -> None:
        """Take feature maps of shape ``(B, C, h, w)``."""
        patches = maps.detach().cpu().double().movedim(1, -1).flatten(0, 2)
        self._number += len(patches)
        self._sum = self._sum + patches.sum(dim=0)
        self._square = self._square + patches.T @ patches

    @property
    def mean(self) -> Tensor:
        """Mean of the patches, shape ``(C,)``, float64."""
        return self._sum / self._number

    @property
    def covariance(self) -> Tensor:
        """Covariance of the patches, shape ``(C, C)``, float64."""
        return self._square / self._number - torch.outer(self.mean, self.mean)


def whitening_map(covariance: Tensor, deviation: float) -> Tensor:
    """Return the symmetric map (ZCA) that makes the covariance a multiple of the unit matrix.

    A hundredth of the mean variance is mixed in, or directions of almost no variance would be blown up.

    Args:
        covariance: Shape ``(C, C)``, float64.
        deviation: Root mean square deviation of a channel afterwards.

    Returns:
        Shape ``(C, C)``.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)
    shrunk = ((1 - _SHRINKAGE) * values + _SHRINKAGE * values.mean()).clamp_min(_TINY)
    matrix = (vectors * shrunk.rsqrt()) @ vectors.T
    scaled: Tensor = matrix * (deviation / (values / shrunk).mean().sqrt().clamp_min(_TINY))
    return scaled


def stream_of(backbone: nn.Module, stage: str) -> Stream | None:
    """Return the weights around the feature map of a stage.

    Args:
        backbone: A timm model.
        stage: Name of the module whose output is the feature map, such as ``"blocks.2"``.

    Returns:
        None where the feature map is more than a sum of convolutions, rectified or not, or something else than
        convolutions reads it.
    """
    if isinstance(backbone, ResNet):
        return _resnet_stream(backbone, stage)
    parent, _, number = stage.rpartition(".")
    stages = getattr(backbone, parent, None) if parent else None
    if not isinstance(stages, nn.Sequential) or not isinstance(stages[int(number)], nn.Sequential):
        return None
    first, *others = cast("nn.Sequential", stages[int(number)])
    last = int(number) + 1 == len(stages)
    # A block with a shortcut reads the feature map as well as it adds to it; the first one of a stage begins it.
    if getattr(first, "has_skip", True) or not all(getattr(block, "has_skip", False) for block in others):
        return None
    writers = [_writer(block) for block in (first, *others)]
    following = (
        getattr(backbone, "conv_head", None) if last else _reader(cast("nn.Sequential", stages[int(number) + 1])[0])
    )
    readers = [*(_reader(block) for block in others), following]
    if None in writers or not all(isinstance(reader, nn.Conv2d) and reader.groups == 1 for reader in readers):
        return None
    return Stream(cast("list[tuple[nn.Conv2d, BatchNorm]]", writers), cast("list[nn.Conv2d]", readers))


def _resnet_stream(backbone: ResNet, stage: str) -> Stream | None:
    """Return the weights around the feature map of ``layer1`` ... ``layer4``, where every sum passes a ReLU."""
    names = ["layer1", "layer2", "layer3", "layer4"]
    if stage not in names:
        return None
    first, *others = blocks = [*getattr(backbone, stage)]
    following = [getattr(backbone, name)[0] for name in names[names.index(stage) + 1 :][:1]]
    if any(type(block) not in {BasicBlock, Bottleneck} or block.se is not None for block in (*blocks, *following)):
        return None
    if any(block.downsample is None for block in following):  # then the sum would go on into the next stage
        return None
    ends = ["3" if isinstance(block, Bottleneck) else "2" for block in blocks]
    writers = [
        (getattr(block, f"conv{end}"), getattr(block, f"bn{end}")) for block, end in zip(blocks, ends, strict=True)
    ]
    between = [getattr(block, f"act{end}") for block, end in zip(blocks, ends, strict=True)]
    # The last stage has no reader behind it: the networks that are pre-trained have no classifier.
    readers = [block.conv1 for block in (*others, *following)] + [block.downsample[-2] for block in following]
    if first.downsample is not None:
        writers.append((first.downsample[-2], first.downsample[-1]))
    elif stage != names[0]:  # the sum began in the stage before
        return None
    else:  # as in layer1 of resnet18, whose blocks add to what the stem has written
        writers.append((backbone.conv1, backbone.bn1))
        between += [backbone.act1, backbone.maxpool]
        readers.append(first.conv1)
    positive = all(isinstance(module, nn.ReLU | nn.MaxPool2d) for module in between)
    norms = all(isinstance(norm, BatchNorm) for _, norm in writers)
    convolutions = all(isinstance(reader, nn.Conv2d) and reader.groups == 1 for reader in readers)
    return Stream(writers, readers, linear=False) if positive and norms and convolutions else None


@torch.no_grad()
def fold(stream: Stream, matrix: Tensor) -> None:
    """Put a linear map into the weights that write a feature map, and its inverse into those that read it.

    Args:
        stream: Changed in place.
        matrix: Invertible, shape ``(C, C)``, float64; diagonal and positive where the stream is not linear.
    """
    for convolution, norm in stream.writers:
        if not stream.linear:
            factors = matrix.diagonal().to(norm.weight)
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            continue
        mean, variance = cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)
        # The map mixes channels, BatchNorm does not: its scale moves into the convolution.
        scale = norm.weight.cpu().double() / (variance.cpu().double() + norm.eps).sqrt()
        offset = norm.bias.cpu().double() - mean.cpu().double() * scale
        weight = convolution.weight.cpu().double() * scale[:, None, None, None]
        convolution.weight.copy_(torch.einsum("ij,jchw->ichw", matrix, weight))
        norm.bias.copy_(matrix @ offset)
        norm.weight.fill_(1)
        mean.zero_()
        variance.fill_(1 - norm.eps)
    inverse = torch.linalg.inv(matrix)
    for convolution in stream.readers:
        weight = convolution.weight.cpu().double()
        convolution.weight.copy_(torch.einsum("ojhw,ji->oihw", weight, inverse))


def _writer(block: nn.Module) -> tuple[nn.Conv2d, BatchNorm] | None:
    """Return the last convolution of a block of EfficientNet and its BatchNorm, if nothing non-linear follows."""
    names = (
        ("conv_pwl", "bn3" if hasattr(block, "bn3") else "bn2") if hasattr(block, "conv_pwl") else ("conv_pw", "bn2")
    )
    convolution, norm = (getattr(block, name, None) for name in names)
    if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, BatchNorm):
        return None
    linear = isinstance(getattr(norm, "act", nn.Identity()), nn.Identity)
    return (convolution, norm) if linear and convolution.bias is None else None


def _reader(block: nn.Module) -> nn.Module | None:
    """Return the convolution that a block of EfficientNet begins with."""
    name = "conv_exp" if hasattr(block, "conv_exp") else "conv_pw" if hasattr(block, "conv_pwl") else "conv_dw"
    return getattr(block, name, None)
