"""Tensors from files, and into models. Only tensors and plain data are ever read; nothing in a file is executed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anomalib_msacl.errors import InputError, first_line

StateDict = dict[str, Tensor]
PICKLES = (".ckpt", ".pt", ".pth")  # as Lightning and torch save


def read_file(path: Path) -> dict[str, Any]:
    """Read a ``.safetensors`` file, or a file of Lightning or torch (``.ckpt``, ``.pt``, ``.pth``) with plain data.

    Raises:
        InputError: If there is no such file, it is of another kind, or it cannot be read.
    """
    if not exists(path):
        raise InputError(
            f"cannot read weights from {path}: there is no such file or folder; give a folder in timm's format, a "
            ".safetensors file, timm, torchvision, offline or random."
        )
    if path.suffix not in {".safetensors", *PICKLES} or not path.is_file():
        raise InputError(
            f"cannot read weights from {path}: only .safetensors files, folders with a model.safetensors, and "
            f"checkpoints ({', '.join(PICKLES)}) are read; save others with safetensors first."
        )
    try:
        return load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    except Exception as error:  # a file that is cut off or damaged makes torch raise a dozen unrelated types
        raise InputError(
            f"cannot read weights from {path} ({first_line(error)}); give a folder in timm's format, a .safetensors "
            "file or a checkpoint that holds nothing but tensors and plain data."
        ) from error


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; a name that no file can have has none."""
    try:
        return path.exists()
    except OSError:  # too long
        return False


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a file of torch without running what is in it."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content if isinstance(content, dict) else {}


def tensors_of(content: Mapping[str, Any]) -> StateDict:
    """Return the tensors of a state dict, or of the one that a checkpoint holds as Lightning's and many others do."""
    held = (content.get(key) for key in ("state_dict", "model"))
    state = next((state for state in held if isinstance(state, dict)), content)
    return {name: tensor for name, tensor in state.items() if isinstance(name, str) and isinstance(tensor, Tensor)}


def load_into(model: nn.Module, state: Mapping[str, Tensor], place: str) -> None:
    """Load a state dict that may carry a prefix, other layers and a classifier.

    Args:
        model: Every tensor of it must be found.
        state: The tensors.
        place: Where they come from, for the messages.

    Raises:
        InputError: If a tensor is missing, has another shape or kind, or is not finite.
    """
    own = model.state_dict()
    found = _without_prefix(state, own)
    missing = [name for name in own if name not in found]
    wrong = [name for name in own if name in found and found[name].shape != own[name].shape]
    if missing or wrong:
        reason = f"{missing[0]} is missing" if missing else f"{wrong[0]} has shape {tuple(found[wrong[0]].shape)}"
        if not missing and all("pos_embed" in name for name in wrong):
            reason += f" instead of {tuple(own[wrong[0]].shape)}: they were made for another input size"
        raise InputError(
            f"weights {place} do not fit the backbone {type(model).__name__}: {reason} ({len(missing)} tensors "
            f"missing, {len(wrong)} of another shape, of {len(own)}); give weights of the same architecture."
        )
    odd = [name for name in own if not _is_plain(found[name], own[name].is_floating_point())]
    if odd:
        kind = str(found[odd[0]].dtype).removeprefix("torch.")
        raise InputError(
            f"weights {place}: {len(odd)} tensors are no plain numbers of the kind that the backbone has, {odd[0]} "
            f"({kind}) first; save them anew from a model of timm."
        )
    broken = [name for name in own if found[name].is_floating_point() and not found[name].isfinite().all()]
    if broken:
        raise InputError(
            f"weights {place}: {len(broken)} tensors hold NaN or infinite values, {broken[0]} first; give other ones."
        )
    model.load_state_dict({name: found[name] for name in own})


def _is_plain(tensor: Tensor, floating: bool) -> bool:
    """Whether a tensor holds its numbers one by one, and with fractions where they are wanted."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
    return dense and tensor.is_floating_point() == floating and not tensor.is_complex()


def copy_of(model: nn.Module) -> StateDict:
    """Return a copy of all parameters and statistics, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names and values of tensors."""
    value = hashlib.sha256()
    for name in sorted(tensors):
        value.update(name.encode())
        raw = tensors[name].detach().cpu().reshape(-1).view(torch.uint8)  # numpy knows no bfloat16
        value.update(raw.numpy().tobytes())
    return value.hexdigest()


def _without_prefix(state: Mapping[str, Tensor], own: Iterable[str]) -> StateDict:
    """Return the tensors under the prefix, if any, that a checkpoint puts before a backbone's names."""
    first = next(iter(own))
    prefixes = sorted((name[: -len(first)] for name in state if name == first or name.endswith(f".{first}")), key=len)
    prefix = prefixes[0] if prefixes else ""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def same(one: StateDict, other: StateDict) -> bool:
    """Whether two sets of weights have the same names and values."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
