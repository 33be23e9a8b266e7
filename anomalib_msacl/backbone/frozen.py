"""The stages that training does not change, run once for images that are looked at again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from anomalib_msacl.backbone.encoder import Encoder, is_transformer
from anomalib_msacl.backbone.tensors import digest


class FrozenStages:
    """Splits an encoder behind its last frozen stage.

    Args:
        encoder: Its first stages are frozen, or not; then, and where its architecture cannot be split, nothing is.

    Attributes:
        index: Index of the last frozen stage; None where nothing is split.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.index = _last_frozen(encoder)
        if self.index is not None and not self._splits(encoder):
            self.index = None

    def features(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Return the output of the last frozen stage, or the normalised images where nothing is split.

        Args:
            encoder: The one that was split, or one with the same frozen stages.
            images: Values in [0, 1], shape ``(B, 3, H, W)``.
        """
        if self.index is None:
            return (images - encoder.mean) / encoder.std
        return encoder.intermediates(images, [self.index])[self.index]

    def maps(self, encoder: Encoder, features: Tensor, wanted: list[int]) -> dict[int, Tensor]:
        """Return feature maps of stages behind the frozen ones.

        Args:
            encoder: The one that was split, or one with the same frozen stages.
            features: What :meth:`features` returned.
            wanted: Indices of stages, rising.
        """
        if self.index is None:
            return encoder.run(features, wanted)
        behind = [index for index in wanted if index > self.index]
        with _passed_over(encoder, self.index):
            found = encoder.run(features, behind) if behind else {}
        return {index: found.get(index, features) for index in wanted}

    def fingerprint(self, encoder: Encoder) -> str:
        """Return a hash of the weights that :meth:`features` depends on."""
        if self.index is None:
            return ""
        modules = (getattr(parent, name) for parent, name in _places(encoder, self.index))
        return "".join(digest(module.state_dict()) for module in modules)

    def _splits(self, encoder: Encoder) -> bool:
        """Whether both halves together give what the whole gives, bit for bit."""
        image = torch.linspace(0, 1, 3 * 64 * 64, device=encoder.mean.device).reshape(1, 3, 64, 64)
        wanted = sorted({*encoder.index, len(encoder.stages) - 1})
        training = encoder.training
        encoder.eval()
        try:
            with torch.no_grad():
                whole = encoder.intermediates(image, wanted)
                halves = self.maps(encoder, self.features(encoder, image), wanted)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False
        finally:
            encoder.train(training)
        return all(torch.equal(whole[index], halves[index]) for index in wanted)


def _last_frozen(encoder: Encoder) -> int | None:
    """Return the index of the last stage of which no weight is trained; None where there is none."""
    if is_transformer(encoder.backbone):
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
