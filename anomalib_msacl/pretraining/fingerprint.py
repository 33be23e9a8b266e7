"""What tells one transform from another, also where its repr does not show its settings."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomalib_msacl.backbone.tensors import digest

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
_SHOWN = bool | int | float | str | Enum | None  # by torchvision's repr, also in lists
_TELLING = _SHOWN | bytes | complex | range | slice | PurePath | np.generic | torch.dtype | torch.device
_CONTAINERS = (Mapping, list, tuple, set, frozenset, np.ndarray)
_DEEPEST = 3  # objects in objects that are looked into


def fingerprint(transform: Any) -> list[Any]:
    """Return what tells a transform from others as plain data, the same in every process.

    A plain ``nn.Module`` shows no settings unless its author has written an ``extra_repr``. Those of such modules are
    listed one by one, public ones only: private ones may change with every call. Other modules show numbers and names,
    but hide tensors, functions and mappings, as torchvision's do: these are listed, too.

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
    if not isinstance(transform, nn.Module | None):  # a function, or an object that can be called
        return [type(transform).__qualname__, _plain(transform)]
    found = [(type(part).__qualname__, _hides(part), _settings(part)) for part in _parts(transform)]
    return [_ADDRESS.sub("", repr(transform)), *([name, own] for name, hides, own in found if hides or own)]


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


def _settings(module: nn.Module, inside: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Return public attributes, parameters and buffers of a module, or those of them that its repr does not show.

    Its parts are looked at for themselves. Everything of kornia shows all of its settings.
    """
    own = {key: each for key, each in vars(module).items() if key != "training" and not key.startswith("_")}
    own |= {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    kind: Any = type(module)
    written = kind.extra_repr if kind.__repr__ is nn.Module.__repr__ else kind.__repr__
    libraries = {name.partition(".")[0] for name in (written.__module__, kind.__module__)}
    if "kornia" in libraries:
        own = {}
    elif "torchvision" in libraries or isinstance(module, nn.Sequential):
        own = {key: each for key, each in own.items() if not _is_shown(each)}
    return {key: _plain(each, (*inside, module)) for key, each in sorted(own.items())}


def _is_shown(value: Any) -> bool:
    """Whether a repr of torchvision shows all of a setting, or another entry does."""
    if isinstance(value, list | tuple):
        return all(_is_shown(each) for each in value)
    return isinstance(value, _SHOWN | nn.Module)


def _plain(value: Any, inside: tuple[Any, ...] = ()) -> Any:
    """Return a setting as text and lists.

    Args:
        value: Anything.
        inside: What holds it, from outside to inside: a thing that holds itself is not looked into again.
    """
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), digest({"": value})]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, _TELLING):
        return repr(value)
    if any(value is each for each in inside):
        return type(value).__qualname__
    if isinstance(value, nn.Module):
        return _of_module(value, inside)
    within = (*inside, value)
    return _of_container(value, within) if isinstance(value, _CONTAINERS) else _of_object(value, within)


def _of_container(value: Any, within: tuple[Any, ...]) -> Any:
    """Return what a mapping, a list, an array of objects or a set holds; the order of a set is another each time."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(_plain(key)): _plain(each, within) for key, each in value.items()}
    found = [_plain(each, within) for each in (value.ravel() if isinstance(value, np.ndarray) else value)]
    return sorted(found, key=json.dumps) if isinstance(value, set | frozenset) else found


def _of_module(module: nn.Module, inside: tuple[Any, ...]) -> Any:
    """Return what tells a module apart; of one that another holds in plain sight its class: it has its own entry."""
    name = type(module).__qualname__
    if inside and all(isinstance(each, nn.Module | list | tuple) for each in inside):
        return name
    return [name, *([type(part).__qualname__, _settings(part, inside)] for part in _parts(module))]


def _of_object(value: Any, within: tuple[Any, ...]) -> Any:
    """Return what tells functions and other objects apart; never their repr, which may hold an address."""
    if isinstance(value, functools.partial):
        return ["partial", *(_plain(each, within) for each in (value.func, value.args, value.keywords))]
    if isinstance(value, MethodType):
        return ["method", _plain(value.__func__, within), _plain(value.__self__, within)]
    if isinstance(value, FunctionType):
        return _of_function(value, within)
    if isinstance(value, type | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
    if sum(not isinstance(each, (nn.Module, *_CONTAINERS)) for each in within) > _DEEPEST:
        return name
    own = getattr(value, "__dict__", {})
    public = {key: each for key, each in own.items() if not key.startswith("_") or key == "__wrapped__"}
    return [name, _plain(public, within)] if public else name


def _of_function(function: FunctionType, within: tuple[Any, ...]) -> list[Any]:
    """Return what a function does, and the values that it holds or reads from its file."""
    codes = list(_codes(function.__code__))
    names = {name for code in codes for name in code.co_names} & function.__globals__.keys()
    read = {name: function.__globals__[name] for name in sorted(names)}
    read = {name: each for name, each in read.items() if isinstance(each, _TELLING | Tensor | np.ndarray | tuple)}
    does = hashlib.sha256(json.dumps([_of_code(code) for code in codes]).encode()).hexdigest()
    held = (function.__defaults__, function.__kwdefaults__, _cells(function), read)
    return [function.__qualname__, does, *(_plain(each, within) for each in held)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of those that are written in it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _of_code(code: CodeType) -> list[Any]:
    """Return what code does, without the place where it stands."""
    constants = [None if isinstance(each, CodeType) else _plain(each) for each in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


def _cells(function: FunctionType) -> list[Any]:
    """Return the values that a function has from around it; some may not be set yet."""
    found = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            found.append(cell.cell_contents)
    return found
