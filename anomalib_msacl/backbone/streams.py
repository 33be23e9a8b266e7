"""The weights around a feature map of a backbone: those that write it and those that read it.

Where nothing but sums stands between them, as in EfficientNet and MobileNet, any invertible linear map can be put into
the writers and its inverse into the readers: the output of the network stays what it was, only the feature map has
another basis. A ReLU after each sum, as in ResNet, lets positive factors of the channels pass and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from anomalib_msacl.backbone.encoder import Encoder
from anomalib_msacl.compat import BatchNorm


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


def streams(encoder: Encoder, layers: Sequence[str] | None = None) -> dict[int, Stream]:
    """Return the weights around the feature map of each stage that can be whitened, down to the deepest layer.

    Pooled features of deeper stages tell images apart better as they are (docs/experiments.md).
    """
    names = [stage["module"] for stage in encoder.stages]
    stages = encoder.stages[: 1 + max(names.index(layer) for layer in layers or encoder.layers)]
    streams = {index: stream_of(encoder.backbone, stage["module"]) for index, stage in enumerate(stages)}
    return {index: stream for index, stream in streams.items() if stream is not None}


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
