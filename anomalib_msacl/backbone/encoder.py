"""A timm backbone seen as feature maps by layer name, convolutional or vision transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from anomalib_msacl.backbone.checks import check_normalisation, for_each_channel
from anomalib_msacl.compat import BatchNorm, position_embeddings_without_antialiasing
from anomalib_msacl.errors import InputError, name_some

if TYPE_CHECKING:
    from anomalib_msacl.backbone.frozen import FrozenStages


class Encoder(nn.Module):
    """Feature maps and pooled features of a backbone, from images in [0, 1].

    Normalisation happens inside: lesions are made before it, and an exported model needs no other step.

    Args:
        backbone: A model of ``timm.create_model(..., num_classes=0)``.
        layers: Layers for the dense features, named as in ``feature_info`` (``"layer2"``, ``"blocks.4"``) or by
            index. None takes strides 8 and 16 of a convolutional backbone, the middle and three quarters of a
            transformer.
        mean: Normalisation, one value a channel; None takes that of the weights, as ``create_backbone`` notes it in
            ``pretrained_cfg``.
        std: Normalisation, likewise.
        frozen_stride: See :meth:`freeze`. A pre-training takes that of its recipe.
        train_batch_norm: Update BatchNorm statistics while training. A pre-training does as its recipe says.

    Attributes:
        layers: Names of the layers.
        normalisation: Mean and standard deviation, one value a channel, as they were given.
        frozen: The first stages, run on their own while they stay as they are; None runs everything as a whole.

    Raises:
        InputError: If the architecture gives no feature maps, a layer does not exist, or nothing can be normalised so.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        layers: Sequence[str | int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        frozen_stride: int = 0,
        train_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stages = stages_of(backbone)
        names = [stage["module"] for stage in self.stages]
        if not isinstance(layers, list | tuple | None):
            raise InputError(f"layers is {layers!r}, but must be a list of layers, which are {', '.join(names)}.")
        self.index = [_layer_index(layer, names) for layer in layers] if layers else _default_layers(self.stages)
        self.layers = [names[index] for index in self.index]
        if len(set(self.index)) < len(self.index):
            raise InputError(f"layers names a layer twice, {name_some(self.layers)}; name each of them once.")
        self._channels_last = False  # the format itself cannot be pickled
        self.frozen: FrozenStages | None = None
        self.normalisation = _normalisation(backbone, mean, std)
        for name, values in zip(("mean", "std"), self.normalisation, strict=True):
            numbers = torch.tensor(values, dtype=torch.get_default_dtype())
            self.register_buffer(name, numbers[:, None, None], persistent=False)
        # What somebody else holds fast, as timm does with some positions, is never trained.
        self._trainable = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        self.train_batch_norm = False
        self.freeze(frozen_stride, not train_batch_norm)

    @property
    def dim(self) -> int:
        """Dimension of the pooled features: channels of the deepest stage."""
        return cast("int", self.stages[-1]["num_chs"])

    @property
    def dims(self) -> list[int]:
        """Channels of each layer."""
        return [self.stages[index]["num_chs"] for index in self.index]

    @property
    def granularity(self) -> int:
        """Image sides must be multiples of this many pixels for a transformer; 32 for a convolutional backbone."""
        patch = getattr(getattr(self.backbone, "patch_embed", None), "patch_size", None) or 32
        return int(patch if isinstance(patch, int) else patch[0])

    @property
    def fixed_side(self) -> int | None:
        """Side in pixels that images must have, for architectures that take no other; None for all others."""
        strict = (module for module in self.backbone.modules() if getattr(module, "strict_img_size", False))
        sides = (int(cast("Any", module).img_size[0]) for module in strict if _reads_images(module))
        return next(sides, None)

    def freeze(self, stride: int, batch_norm: bool = True) -> None:
        """Say what is not trained, in place of what was said before, and go into training mode.

        Args:
            stride: Stages of a convolutional backbone up to this output stride are not trained; 0 trains all.
            batch_norm: Keep the statistics of BatchNorm.
        """
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        for parameter in _frozen_parameters(self.backbone, self.stages, stride):
            parameter.requires_grad_(False)
        self.train_batch_norm = not batch_norm
        self.train()  # Lightning keeps the modes it finds: BatchNorm must be in evaluation mode from the start

    def train(self, mode: bool = True) -> Encoder:
        """Set the training mode; BatchNorm stays in evaluation mode unless it is to be trained and is not frozen."""
        super().train(mode)
        norms = [m for m in self.modules() if isinstance(m, BatchNorm)]
        for norm in norms if mode else ():
            norm.train(self.train_batch_norm and all(p.requires_grad for p in norm.parameters()))
        return self

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of the backbone and of its inputs."""
        return torch.channels_last if self._channels_last else torch.contiguous_format

    def use(self, memory_format: torch.memory_format) -> None:
        """Bring the weights, and from now on all images, to a memory format; the values stay what they are.

        Args:
            memory_format: ``torch.channels_last`` makes convolutions faster on most processors; transformers do not
                mind. ``torch.contiguous_format`` is what files and exports expect.
        """
        self._channels_last = memory_format is torch.channels_last
        self.backbone.to(memory_format=memory_format)

    def forward(self, images: Tensor, pooled: bool = True) -> tuple[list[Tensor], Tensor | None]:
        """Return the feature maps of the layers and the pooled features.

        Args:
            images: Values in [0, 1], shape ``(B, 3, H, W)``.
            pooled: Whether the pooled features of the deepest stage are wanted; without them the backbone stops
                after the deepest layer.

        Returns:
            Maps of shape ``(B, C_l, h_l, w_l)`` in the order of ``layers``, and features of shape ``(B, dim)``.
        """
        wanted = {*self.index, len(self.stages) - 1} if pooled else set(self.index)
        maps = self.intermediates(images, sorted(wanted))
        features = maps[len(self.stages) - 1].mean(dim=(-2, -1)) if pooled else None
        return [maps[index] for index in self.index], features

    def intermediates(self, images: Tensor, wanted: list[int]) -> dict[int, Tensor]:
        """Return feature maps by index of the stage, run as anomalib's TimmFeatureExtractor does.

        Args:
            images: Values in [0, 1], shape ``(B, 3, H, W)``.
            wanted: Indices of stages, rising.

        Returns:
            Maps of shape ``(B, C, h, w)``.
        """
        if self.frozen is not None and self.frozen.index is not None and min(wanted) >= self.frozen.index:
            return self.frozen.maps(self, self.frozen.features(images), wanted)
        return self.run((images - self.mean) / self.std, wanted)

    def run(self, inputs: Tensor, wanted: list[int]) -> dict[int, Tensor]:
        """Return feature maps of inputs that are normalised already; see :meth:`intermediates`."""
        transformer = is_transformer(self.backbone)
        options: dict[str, Any] = {"intermediates_only": True, "output_fmt": "NCHW", "stop_early": True}
        if transformer:
            options["norm"] = True
        with position_embeddings_without_antialiasing() if transformer else nullcontext():
            inputs = inputs.contiguous(memory_format=self.memory_format)
            maps = cast("Any", self.backbone).forward_intermediates(inputs, indices=wanted, **options)
        return dict(zip(wanted, maps, strict=True))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, so that no statistics move, and back."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def is_transformer(backbone: nn.Module) -> bool:
    """Whether a timm backbone is a vision transformer with prefix tokens."""
    return hasattr(backbone, "num_prefix_tokens") and hasattr(backbone, "blocks")


def stages_of(backbone: nn.Module) -> list[dict[str, Any]]:
    """Return timm's description of the stages of a backbone: module, num_chs, reduction.

    Raises:
        InputError: If the architecture gives no feature maps.
    """
    info = getattr(backbone, "feature_info", None)
    info = getattr(info, "info", info)
    if not info or not hasattr(backbone, "forward_intermediates"):
        name = type(backbone).__name__
        raise InputError(
            f"backbone {name} gives no intermediate feature maps in timm; choose one that does, such as resnet18."
        )
    return [dict(stage) for stage in info]


def _normalisation(
    backbone: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation, checked, those of the weights where they are None."""
    config: Any = getattr(backbone, "pretrained_cfg", None) or {}
    mean = (config.get("mean") or IMAGENET_DEFAULT_MEAN) if mean is None else mean
    std = (config.get("std") or IMAGENET_DEFAULT_STD) if std is None else std
    check_normalisation(mean, std)
    return for_each_channel(mean), for_each_channel(std)


def _reads_images(embedding: nn.Module) -> bool:
    """Whether a patch embedding is the first: some transformers have one before every stage."""
    return getattr(getattr(embedding, "proj", None), "in_channels", 0) == 3


def _layer_index(layer: str | int, names: list[str]) -> int:
    """Return the index of a layer, or name the layers there are."""
    if isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < len(names):
        return layer
    if layer in names:
        return names.index(layer)
    raise InputError(f"layer {layer!r} does not exist in this backbone; its layers are {', '.join(names)}.")


def _default_layers(stages: list[dict[str, Any]]) -> list[int]:
    """Return strides 8 and 16, or the middle and three quarters where all strides are one."""
    chosen = [index for index, stage in enumerate(stages) if stage["reduction"] in {8, 16}]
    if len(chosen) == 2:
        return chosen
    return sorted({len(stages) // 2 - 1, 3 * len(stages) // 4 - 1})


def _frozen_parameters(backbone: nn.Module, stages: list[dict[str, Any]], stride: int) -> Iterator[nn.Parameter]:
    """Yield the parameters up to the end of the last stage of at most the given stride."""
    frozen = [stage["module"] for stage in stages if stage["reduction"] <= stride]
    if not frozen or is_transformer(backbone):
        return
    modules = dict(backbone.named_modules())  # in the order in which they are registered, which is that of the data
    names = list(modules)
    # A stage may end in an activation, which has no parameters: go by modules, not by parameters.
    end = max(index for index, name in enumerate(names) if f"{name}.".startswith(f"{frozen[-1]}."))
    for name in names[: end + 1]:
        yield from modules[name].parameters(recurse=False)
