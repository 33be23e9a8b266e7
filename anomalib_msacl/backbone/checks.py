"""Checks of descriptions of weights that others may have written, in a folder or in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from anomalib_msacl.errors import InputError

CHANNELS = 3
_LEAST_STD, _LARGEST_MEAN = 1e-6, 1e6  # what a division in 32 bits can take


def for_each_channel(values: Sequence[float]) -> tuple[float, ...]:
    """Return a mean or standard deviation for each channel; one alone stands for all, as in torchvision."""
    return tuple(values) * (CHANNELS if len(values) == 1 else 1)


def check_normalisation(mean: Any, std: Any) -> None:
    """Refuse a mean or standard deviation that images cannot be normalised by.

    Raises:
        InputError: If one of them is not three numbers, or a standard deviation is not above 0.
    """
    for name, values, lowest, highest in (("mean", mean, -_LARGEST_MEAN, _LARGEST_MEAN), ("std", std, _LEAST_STD, 1e6)):
        numbers = isinstance(values, Sequence) and len(values) in {1, CHANNELS} and all(map(is_number, values))
        if not numbers or not all(lowest <= value <= highest for value in values):
            kind = "three numbers above 0" if name == "std" else "three numbers"
            raise InputError(f"{name} is {values!r}, but must be {kind}, one for each channel; correct it.")


def description_of(
    saved: Mapping[str, Any], place: str
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
    """Return mean, standard deviation and input size of timm's ``pretrained_cfg``; ImageNet's where it is silent.

    Raises:
        InputError: If one of them is not three numbers, or a standard deviation is not above 0.
    """
    for name in ("mean", "std", "input_size"):
        value = saved.get(name)
        lengths = {CHANNELS} if name == "input_size" else {1, CHANNELS}
        numbers = isinstance(value, list | tuple) and len(value) in lengths and all(map(is_number, value))
        if value and not (numbers and (name == "mean" or min(value) > 0)):
            kind = "three numbers" if name == "mean" else "three numbers above 0"
            raise InputError(f"weights {place}: {name} is {value!r}, but must be {kind}; mend it, or remove it.")
    mean, std = saved.get("mean") or IMAGENET_DEFAULT_MEAN, saved.get("std") or IMAGENET_DEFAULT_STD
    return for_each_channel(mean), for_each_channel(std), tuple(saved.get("input_size") or ())


def made_for(own: Mapping[str, Any], place: str) -> tuple[tuple[str, ...], float | None]:
    """Return layers and standard deviation of the feature maps of the entry ``msacl``.

    Raises:
        InputError: If they are not names, and a number above 0 or nothing.
    """
    layers, std = own.get("layers"), own.get("feature_std", own.get("deviation"))  # as of 0.2.0.dev0
    names = isinstance(layers, list) and all(isinstance(name, str) for name in layers)
    if not names or not (std is None or (is_number(std) and std > 0)):
        raise InputError(
            f"weights {place}: its entry msacl has layers {layers!r} and feature_std {std!r}, but must have names and "
            "a number above 0, or null; mend it, or remove it."
        )
    return tuple(layers or ()), std


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
