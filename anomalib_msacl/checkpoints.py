"""Models as their checkpoints have them, whatever settings a command line gives besides."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from anomalib.models.components import AnomalibModule
from anomalib.utils.serialization import anomalib_safe_globals

from anomalib_msacl.backbone.tensors import exists
from anomalib_msacl.errors import InputError, first_line

_WORDS = {"best", "last", "hpc", "registry"}  # that Lightning takes for a path


def restored(model: AnomalibModule, path: Path) -> AnomalibModule:
    """Return the model of a checkpoint, with the checkpoint's settings.

    anomalib leaves the pre-processor out of the settings, and builds networks that depend on the size of their input
    for the default of their class. Here they get the pre-processor of the checkpoint from the start.

    Args:
        model: Any model of that class; its evaluator and visualizer are taken over.
        path: The checkpoint.

    Raises:
        InputError: If it cannot be read, or is of another class.
    """
    kind = type(model)
    own = {name: getattr(model, name) for name in ("evaluator", "visualizer")}
    AnomalibModule.on_load_checkpoint(model, _read(path, kind))  # the parts below become those of the checkpoint
    parts: dict[str, Any] = {name: getattr(model, name) or False for name in ("pre_processor", "post_processor")}
    try:
        found = kind.load_from_checkpoint(path, map_location="cpu", **parts)
    except InputError:
        raise
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is no checkpoint of {kind.__name__} that this anomalib can load ({first_line(error)}): give "
            "--model the class that was trained, and use the anomalib that trained it"
        ) from error
    for name, part in own.items():  # the checkpoint may have switched them off
        setattr(found, name, part)
    return found


def check_checkpoint(model: AnomalibModule, path: str | Path) -> None:
    """Refuse a checkpoint to go on from that is none; nothing that it holds is run.

    Args:
        model: Will be restored from it.
        path: The file, or one of the words by which Lightning finds one itself.

    Raises:
        InputError: If it cannot be read.
    """
    if str(path) not in _WORDS and "://" not in str(path):
        _read(Path(path), type(model))


def _read(path: Path, kind: type[AnomalibModule]) -> dict[str, Any]:
    """Read a checkpoint without running what is in it, tensors not before they are used."""
    if exists(path) and not path.is_file():  # a pipe would wait for ever
        raise InputError(f"{path} is no file: name a checkpoint that anomalib has written")
    try:
        with anomalib_safe_globals(extra=kind.checkpoint_safe_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise InputError(f"the checkpoint {path} cannot be read ({error.strerror}): name another") from error
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is no checkpoint: name one that anomalib has written") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{path} is no checkpoint of Lightning: name one that anomalib has written")
    return content
