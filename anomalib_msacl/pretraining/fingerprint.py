"""What tells one transform from another, also where its repr does not show its settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomalib_msacl.backbone.tensors import digest


def fingerprint(transform: Any) -> list[Any]:
    """Return what tells a transform from others as plain data, the same in every process.

    A plain ``nn.Module`` shows no settings unless its author has written an ``extra_repr``. Those of such modules are
    listed one by one, public ones only: private ones may change with every call.

    Args:
        transform: A module, perhaps with others in it; None for none.

    Returns:
        Its repr, then class and settings of each module in it that does not show its own.

    >>> class Darker(nn.Module):
    ...     def __init__(self, factor):
    ...         super().__init__()
    ...         self.factor = factor
    >>> Darker(0.5)
    Darker()
    >>> fingerprint(Darker(0.5))[1:]
    [['Darker', {'factor': '0.5'}]]
    """
    return [
        repr(transform),
        *([type(part).__qualname__, _settings(part)] for part in _parts(transform) if _hides(part)),
    ]


def _parts(value: Any) -> list[nn.Module]:
    """Return a module and all modules in it, also those in lists, as torchvision keeps them."""
    if isinstance(value, nn.Module):
        inner = [*value.children(), *vars(value).values()]
        return [value, *(part for each in inner if not isinstance(each, dict) for part in _parts(each))]
    return [part for each in value for part in _parts(each)] if isinstance(value, list | tuple) else []


def _hides(module: nn.Module) -> bool:
    """Whether the repr of a module shows no settings; a sequence, also one of kornia, shows its parts."""
    own = type(module)
    if isinstance(module, nn.Sequential):
        return False
    return own.extra_repr is nn.Module.extra_repr and own.__repr__ is nn.Module.__repr__


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return public attributes, parameters and buffers of a module; its parts are looked at for themselves."""
    own = {key: each for key, each in vars(module).items() if key != "training" and not key.startswith("_")}
    own |= {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return {key: _plain(each) for key, each in sorted(own.items())}


def _plain(value: Any) -> Any:
    """Return a setting as text and lists; of objects whose repr may hold an address the class alone."""
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), digest({"": value})]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str | Enum | torch.dtype | torch.device):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__qualname__)
