"""The stages that training does not change: run on their own, with their BatchNorm folded into the convolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from anomalib_msacl.backbone.encoder import Encoder, evaluating, is_transformer
from anomalib_msacl.backbone.tensors import digest

_SIDE = 64  # of the image that both ways are compared on
_CLOSE = 1e-4  # relative: what folding may change


class FrozenStages:
    """A copy of the first stages of an encoder as they are now, for images that pass them often.

    Args:
        encoder: Stays as it is.

    Attributes:
        index: Index of the last stage that is not trained; None where there is none, or where the architecture cannot
            be split there: then everything runs as a whole.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.index = _last_frozen(encoder)
        if self.index is None:
            return
        self._fingerprint = _fingerprint(encoder, self.index)
        self._encoder = _only(encoder, self.index)
        try:
            whole, halves, folded = self._compared(encoder)
            if folded is not None:
                self._encoder = folded
        except (AttributeError, RuntimeError, TypeError, ValueError):
            self.index = None
            return
        if not all(torch.equal(whole[index], halves[index]) for index in whole):
            self.index = None

    def fits(self, encoder: Encoder) -> bool:
        """Whether the first stages of an encoder are still those of the copy."""
        return self.index is not None and _fingerprint(encoder, self.index) == self._fingerprint

    def features(self, images: Tensor) -> Tensor:
        """Return the output of the last frozen stage for images in [0, 1] of shape ``(B, 3, H, W)``."""
        with torch.no_grad():
            return self._encoder.intermediates(images, [self.index or 0])[self.index or 0]

    def maps(self, encoder: Encoder, features: Tensor, wanted: list[int]) -> dict[int, Tensor]:
        """Return feature maps of stages from the last frozen one on.

        Args:
            encoder: One that the copy :meth:`fits`.
            features: What :meth:`features` returned.
            wanted: Indices of stages, rising, none in front of the last frozen one.
        """
        index = self.index or 0
        behind = [number for number in wanted if number > index]
        with _passed_over(encoder, index):
            found = encoder.run(features, behind) if behind else {}
        return {number: found.get(number, features) for number in wanted}

    def _compared(self, encoder: Encoder) -> tuple[dict[int, Tensor], dict[int, Tensor], Encoder | None]:
        """Return the maps of the whole and of both halves, and a folded copy where folding changes next to nothing."""
        image = torch.linspace(0, 1, 3 * _SIDE * _SIDE, device=encoder.mean.device).reshape(1, 3, _SIDE, _SIDE)
        wanted = sorted({*encoder.index, len(encoder.stages) - 1})
        if min(wanted) < (self.index or 0):
            raise ValueError("a layer lies in front of the last frozen stage")
        with torch.no_grad(), evaluating(encoder), _as_a_whole(encoder):
            whole = encoder.intermediates(image, wanted)
            features = self.features(image)
            halves = self.maps(encoder, features, wanted)
            plain, self._encoder = self._encoder, _folded(self._encoder, image, self.index or 0)
            change = (self.features(image) - features).abs().max()
            folded, self._encoder = self._encoder, plain
        return whole, halves, folded if change <= _CLOSE * features.abs().max() else None


def _last_frozen(encoder: Encoder) -> int | None:
    """Return the index of the last stage of which no weight is trained; None where there is none."""
    if is_transformer(encoder.backbone) or encoder.train_batch_norm:
        return None
    found, modules = None, dict(encoder.backbone.named_modules())
    for index, stage in enumerate(encoder.stages):
        module = modules.get(stage["module"])
        if module is None or any(parameter.requires_grad for parameter in module.parameters()):
            break
        found = index if any(True for _ in module.parameters()) else found
    return found


def _places(encoder: Encoder, index: int) -> list[tuple[nn.Module, str]]:
    """Return parent and name of the modules up to the end of a stage, whole ones where possible."""
    stage = encoder.stages[index]["module"]
    top, _, inner = stage.partition(".")
    places: list[tuple[nn.Module, str]] = []
    for name, child in encoder.backbone.named_children():  # in the order of the data
        if name == top and inner:
            for number, _ in child.named_children():
                places.append((child, number))
                if number == inner:
                    return places
        places.append((encoder.backbone, name))
        if name == top:
            break
    return places


def _fingerprint(encoder: Encoder, index: int) -> str:
    """Return a hash of the weights up to the end of a stage."""
    return "".join(digest(getattr(parent, name).state_dict()) for parent, name in _places(encoder, index))


@contextmanager
def _passed_over(encoder: Encoder, index: int) -> Iterator[None]:
    """Let the modules up to the end of a stage pass their input on."""
    places = [(parent, name, getattr(parent, name)) for parent, name in _places(encoder, index)]
    for parent, name, _ in places:
        setattr(parent, name, nn.Identity())
    try:
        yield
    finally:
        for parent, name, module in places:
            setattr(parent, name, module)


@contextmanager
def _as_a_whole(encoder: Encoder) -> Iterator[None]:
    """Let an encoder run without a copy of its first stages."""
    former, encoder.frozen = encoder.frozen, None
    try:
        yield
    finally:
        encoder.frozen = former


def _only(encoder: Encoder, index: int) -> Encoder:
    """Return a copy of an encoder without the weights behind a stage."""
    kept = {id(getattr(parent, name)) for parent, name in _places(encoder, index)}
    inside = {id(module) for parent, name in _places(encoder, index) for module in getattr(parent, name).modules()}
    memo: dict[int, Any] = {}
    for parent in encoder.backbone.modules():
        for child in parent.children():
            holds = any(id(module) in kept for module in child.modules())
            if id(child) not in inside and not holds:
                memo[id(child)] = nn.Identity()  # deepcopy takes it for a copy of the child
    with _as_a_whole(encoder):
        copied = copy.deepcopy(encoder, memo)
    copied.eval()
    return copied


def _folded(encoder: Encoder, image: Tensor, index: int) -> Encoder:
    """Return a copy of an encoder whose BatchNorm is folded into the convolutions that it follows at once."""
    encoder = copy.deepcopy(encoder)
    modules = dict(encoder.backbone.named_modules())
    for convolution, norm in _pairs(encoder, modules, image, index):
        former: Any = modules[norm]
        fused = fuse_conv_bn_eval(modules[convolution], former)
        rest = [part for part in (getattr(former, "drop", None), getattr(former, "act", None)) if part is not None]
        for name, module in ((convolution, fused), (norm, nn.Sequential(*rest))):
            parent, _, last = name.rpartition(".")
            setattr(encoder.backbone.get_submodule(parent), last, module)
    encoder.use(encoder.memory_format)
    return encoder


def _pairs(encoder: Encoder, modules: dict[str, nn.Module], image: Tensor, index: int) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the BatchNorm that takes the very output of each."""
    names = {module: name for name, module in modules.items()}
    outputs: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no identity is given twice
    pairs: list[tuple[str, str]] = []

    def remember(module: nn.Module, _: Any, output: Tensor) -> None:
        outputs[id(output)] = (names[module], output)

    def match(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], names[module]))

    hooks = [module.register_forward_hook(remember) for module in names if isinstance(module, nn.Conv2d)]
    hooks += [module.register_forward_pre_hook(match) for module in names if isinstance(module, nn.BatchNorm2d)]
    try:
        encoder.intermediates(image, [index])
    finally:
        for hook in hooks:
            hook.remove()
    return pairs
