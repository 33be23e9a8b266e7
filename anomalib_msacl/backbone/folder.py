"""Folders of weights in timm's format: ``config.json``, ``model.safetensors`` and a model card ``README.md``.

A folder loads with ``timm.create_model("local-dir:DIR", pretrained=True)`` and as ``backbone: local-dir:DIR`` in
anomalib; a repository of the hub holds the same three files.
"""

from __future__ import annotations

import copy
import errno
import inspect
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import timm
from torch import nn

from anomalib_msacl.backbone.provenance import Provenance
from anomalib_msacl.backbone.tensors import digest, exists, read_file
from anomalib_msacl.errors import InputError, first_line, name_some

logger = logging.getLogger(__name__)

_HASH = "sha256_of_tensors"
_LARGEST = 1 << 24  # bytes of a configuration
FILES = ("README.md", "config.json", "model.safetensors")
CANDIDATES = "candidates.csv"
# What a folder of weights may hold and still be replaced; the last three come from file managers.
_OURS = {*FILES, CANDIDATES, ".DS_Store", "Thumbs.db", "desktop.ini"}

# Arguments of an architecture that are decided here: all backbones are without classifier, for RGB images of any size.
_OWN_ARGS = {"num_classes", "global_pool", "in_chans", "dynamic_img_size"}
# What timm says of the weights that training began with, and what is not true of the new ones.
_FORMER = {"url", "hf_hub_id", "hf_hub_filename", "file", "paper_ids", "paper_name", "origin_url", "source", "tag"}


def save_backbone(
    model: nn.Module,
    directory: str | Path,
    provenance: Provenance,
    card: str = "",
    more: Mapping[str, str] | None = None,
) -> Path:
    """Save a backbone in timm's folder format; the folder appears whole or not at all.

    Args:
        model: A backbone of :func:`anomalib_msacl.backbone.create_backbone`.
        directory: Folder to write; an earlier one of weights is replaced if nothing else is in it.
        provenance: What the weights are.
        card: Text of the model card.
        more: Further text files, by name.

    Returns:
        The folder.

    Raises:
        InputError: If the folder holds something else, or cannot be written.
    """
    directory = Path(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        check_target(directory, more or ())
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=_saving(directory)) as temporary:
            _write(model, Path(temporary), provenance, {**(more or {}), "README.md": card})
            _put(Path(temporary), directory)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"weights cannot be saved to {directory} ({first_line(error)}); free some space, or name a folder that can "
            "be written, and start again."
        ) from error
    return directory


def _write(model: nn.Module, temporary: Path, provenance: Provenance, texts: Mapping[str, str]) -> None:
    """Write the files of a folder."""
    new = temporary / "weights"
    # timm refuses keys of ours in its own part of the configuration.
    own = {"msacl": {**provenance.own_entry(), _HASH: digest(model.state_dict())}}
    arguments = dict(provenance.model_args)
    timm.models.save_for_hf(
        _described(model, provenance), str(new), model_config=own, model_args=arguments, safe_serialization=True
    )
    for name, text in texts.items():
        (new / name).write_text(text, encoding="utf-8")
    for path in (*new.iterdir(), new):
        sync(path)


def _put(temporary: Path, directory: Path) -> None:
    """Put a folder that is written into its place; where that fails, the old one stays."""
    old = temporary / "old"
    if directory.exists():
        directory.rename(old)
    try:
        (temporary / "weights").rename(directory)
    except OSError:
        if not (directory / "config.json").is_file():  # else another run was faster: its folder is as good
            if old.exists():
                old.rename(directory)
            raise
    sync(directory.parent)


def is_intact(directory: Path) -> bool:
    """Whether a folder of weights holds the very tensors that were saved; a warning tells what is wrong with it.

    Folders of before, which hold no hash, are taken as they are.
    """
    if not (directory / "config.json").is_file():
        return False
    try:
        expected = read_config(directory)["msacl"].get(_HASH)
        reason = "" if expected in {None, digest(read_file(directory / "model.safetensors"))} else "other tensors"
    except InputError as error:
        reason = str(error)
    if reason:
        logger.warning("MSACL: %s does not hold the weights that were saved there (%s).", directory, reason)
    return not reason


def remove_leftovers(directory: Path) -> None:
    """Remove what runs that were killed while they saved a folder have left beside it."""
    for path in directory.parent.glob(f"{_saving(directory)}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _saving(directory: Path) -> str:
    """Return how the names of temporary folders and files begin."""
    return f".saving-{directory.name}-"


def sync(path: Path) -> None:
    """Let the content of a file or folder reach the disk."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_place(directory: str | Path, model: nn.Module) -> None:
    """Refuse a place for weights before any long work: see :func:`check_target`; it must be writable and have room.

    Args:
        directory: Where weights are to be saved; the folders above it are made.
        model: Whose weights they are.

    Raises:
        InputError: If they could not be saved.
    """
    parent = Path(directory).parent
    try:
        check_target(directory)
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise InputError(
            f"weights cannot be saved to {directory} ({first_line(error)}); name a folder that can be written."
        ) from error
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    if free < needed:
        raise InputError(
            f"weights cannot be saved to {directory}, for they take {needed / 1e6:.1f} MB and the disk has "
            f"{free / 1e6:.1f} MB left; free some space, or name a folder on another disk."
        )


def check_name(what: str, path: Any) -> None:
    """Refuse what no file or folder can be called.

    Args:
        what: For the message.
        path: Where something is to be saved.

    Raises:
        InputError: If it is no path, or is too long.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"{what} is {path!r}, but must be the path of a folder.")
    try:
        os.stat(path)  # noqa: PTH116  # Path says of a zero that there is no such file
    except ValueError as error:
        raise InputError(f"{what} is {str(path)!r}, which is no path ({error}); name another folder.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"{what} has a name of {len(str(path))} letters, which is too long; name another."
            ) from error


def check_target(directory: str | Path, more: Iterable[str] = ()) -> None:
    """Refuse to replace what is not a folder of weights and of nothing else.

    Args:
        directory: Where weights are to be saved.
        more: Names of further files that are to be saved there.

    Raises:
        InputError: If it is a file, or a folder with something else in it.
    """
    path = Path(directory)
    check_name("the folder for weights", path)
    if path.exists() and not path.is_dir():
        raise InputError(f"weights cannot be saved to {path}, which is no folder; name a new or empty one.")
    entries = sorted(path.iterdir()) if path.is_dir() else []
    others = [entry.name for entry in entries if entry.name not in {*_OURS, *more} or not entry.is_file()]
    if entries and not others and not _is_described(path):  # a config.json can be of anything
        others = [entry.name for entry in entries]
    if others:
        raise InputError(
            f"weights cannot be saved to {path}, which holds something else ({name_some(others)}); name a new or empty "
            "folder, or move that away."
        )


def _is_described(folder: Path) -> bool:
    """Whether a folder has the configuration of weights."""
    try:
        read_config(folder)
    except InputError:
        return False
    return True


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a folder in timm's format.

    Returns:
        Its ``config.json``, with ``architecture``, and with ``pretrained_cfg``, ``model_args`` and ``msacl``, which may
        be empty.

    Raises:
        InputError: If there is none, or one of these is of another kind.
    """
    path = folder / "config.json"
    if exists(path) and (not path.is_file() or path.stat().st_size > _LARGEST):  # a pipe would wait for ever
        raise InputError(f"{path} is no file of text, or a very long one; name a weights folder in timm's format.")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        named = isinstance(config["architecture"], str)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{folder} is not a weights folder in timm's format ({first_line(error)}); it needs config.json with an "
            "architecture, and model.safetensors."
        ) from error
    if not named:
        raise InputError(
            f"{folder} is not a weights folder in timm's format: the architecture in config.json is no name."
        )
    for name in ("pretrained_cfg", "model_args", "msacl"):
        config[name] = config.get(name) or {}
        if not isinstance(config[name], dict):
            raise InputError(
                f"{folder / 'config.json'}: {name} is {str(config[name])[:50]!r}, but must be a mapping; mend it, or "
                "remove it."
            )
    return config


def model_args_of(folder: Path) -> dict[str, Any]:
    """Return the arguments of the architecture that a folder names; they may not make timm read other files.

    Raises:
        InputError: If they are arguments of timm itself.
    """
    arguments = read_config(folder)["model_args"]
    own = inspect.signature(timm.create_model).parameters
    wrong = [name for name in arguments if name in own or name.startswith("pretrained")]
    if wrong:
        raise InputError(
            f"{folder / 'config.json'} sets {', '.join(wrong)} in model_args, which are no arguments of an "
            "architecture; remove them."
        )
    return {name: value for name, value in arguments.items() if name not in _OWN_ARGS}


def _described(model: nn.Module, provenance: Provenance) -> Any:
    """Return a model that shares the tensors and is described as the new weights are."""
    described: Any = copy.copy(model)  # timm reads the description off the model
    former = dict(getattr(model, "pretrained_cfg", {}))
    kept = {name: value for name, value in former.items() if name not in _FORMER}
    # An architecture that was registered as a variant of another one still carries the name of that one.
    own = {"architecture": provenance.architecture, "tag": "msacl"}
    described.pretrained_cfg = {**kept, **provenance.pretrained_cfg(), **own}
    return described
