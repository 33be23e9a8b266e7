"""Where the weights of a backbone come from, and what they were made for: one record for all who ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anomalib_msacl.backbone.checks import description_of, for_each_channel, made_for

RANDOM = "random: "
_CLOSE = 1e-3  # two normalisations that differ by less agree: each may have been rounded


@dataclass(frozen=True)
class Provenance:
    """Where weights come from, and what they were made for.

    Attributes:
        architecture: Name in timm, without a tag of weights.
        description: For people, e.g. "timm: resnet18 (a1_in1k)".
        license: SPDX name as far as it is known.
        mean: Normalisation that the weights expect, one value a channel.
        std: Normalisation that the weights expect, one value a channel.
        layers: Layers that MSACL trained the weights for, empty for weights of others.
        feature_std: Root mean square standard deviation of a channel that MSACL whitened the feature maps down to the
            deepest layer to, or brought those of a vision transformer to; None where it did not.
        input_size: Height and width in pixels that MSACL trained the weights at, empty for weights of others.
        model_args: Arguments that the architecture was created with.
    """

    architecture: str
    description: str
    license: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: tuple[str, ...] = ()
    feature_std: float | None = None
    input_size: tuple[int, ...] = ()
    model_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_saved(
        cls, architecture: str, description: str, saved: Mapping[str, Any], own: Mapping[str, Any], place: str
    ) -> Provenance:
        """Return the record of saved weights, which others may have written.

        Args:
            architecture: Name in timm.
            description: For people.
            saved: timm's ``pretrained_cfg``: mean, std, input_size, license.
            own: The entry ``msacl`` beside it: layers and feature_std; empty for weights of others.
            place: Where they stand, for the messages.

        Raises:
            InputError: If an entry is not of its kind.
        """
        mean, std, size = description_of(saved, place)
        layers, feature_std = made_for(own, place) if own else ((), None)
        license_ = saved.get("license")
        return cls(
            architecture=architecture,
            description=description,
            license=license_ if isinstance(license_, str) else None,
            mean=mean,
            std=std,
            layers=layers,
            feature_std=feature_std,
            input_size=size[1:] if own else (),
        )

    @property
    def is_random(self) -> bool:
        """Whether the weights were never trained, so that no normalisation suits them better than another."""
        return self.description.startswith(RANDOM)

    def pretrained_cfg(self) -> dict[str, Any]:
        """Return what timm's ``pretrained_cfg`` says of the weights."""
        size = {"input_size": [3, *self.input_size]} if self.input_size else {}
        return {"mean": list(self.mean), "std": list(self.std), "license": self.license, **size}

    def own_entry(self) -> dict[str, Any]:
        """Return the entry ``msacl`` that stands beside it."""
        return {"layers": list(self.layers), "feature_std": self.feature_std}

    def mismatch(
        self, layers: Sequence[str], mean: Sequence[float], std: Sequence[float], input_size: Sequence[int] | None
    ) -> str:
        """Say in one sentence where the use of the weights differs from what they were made for.

        Args:
            layers: Layers that are used.
            mean: Normalisation that is used.
            std: Normalisation that is used.
            input_size: Height and width of the images in pixels, None if unknown.

        Returns:
            The sentence; empty where nothing differs.
        """
        differences = []
        if not _close(self.mean, mean) or not _close(self.std, std):
            made, used = (f"mean {list(m)} and std {list(s)}" for m, s in ((self.mean, self.std), (mean, std)))
            differences.append(f"{made}, not {used} (set the Normalize of the pre_processor)")
        if self.input_size and input_size and tuple(input_size) != self.input_size:
            made, used = (" x ".join(map(str, size)) for size in (self.input_size, input_size))
            differences.append(f"images of {made} pixels, not {used}")
        if self.layers and not set(layers) <= set(self.layers):
            differences.append(f"the layers {', '.join(self.layers)}, not {', '.join(layers)}")
        return f"the weights {self.description} were made for {'; for '.join(differences)}." if differences else ""


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two normalisations agree."""
    first, second = for_each_channel(first), for_each_channel(second)
    return all(abs(a - b) < _CLOSE for a, b in zip(first, second, strict=True))
