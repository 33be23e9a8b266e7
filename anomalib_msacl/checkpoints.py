"""Models as their checkpoints have them, whatever settings are given besides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from anomalib.data.utils.tiler import ImageUpscaleMode, Tiler
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from anomalib.utils.serialization import anomalib_safe_globals

from anomalib_msacl.backbone.tensors import exists
from anomalib_msacl.errors import InputError, first_line

TILING = "msacl_tiling"
"""Entry of a checkpoint with the settings of the tiles that its model was fitted on."""
_WORDS = {"best", "last", "hpc", "registry"}  # that Lightning takes for a path


def read_checkpoint(path: Path, kinds: Iterable[type[AnomalibModule]]) -> dict[str, Any]:
    """Read a checkpoint without running what is in it, tensors not before they are used.

    Args:
        path: The file.
        kinds: Classes of models that it may be of.

    Raises:
        InputError: If it cannot be read, or was not written by Lightning.
    """
    if exists(path) and not path.is_file():  # a pipe would wait for ever
        raise InputError(f"{path} is no file: name a checkpoint that anomalib has written")
    allowed = [part for kind in kinds for part in kind.checkpoint_safe_globals()]
    try:
        with anomalib_safe_globals(extra=allowed):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise InputError(f"the checkpoint {path} cannot be read ({error.strerror or error}): name another") from error
    except Exception as error:  # a file that is cut off or damaged makes torch raise a dozen unrelated types
        raise InputError(f"{path} is no checkpoint: name one that anomalib has written") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{path} is no checkpoint of Lightning: name one that anomalib has written")
    return content


def restored(
    kind: type[AnomalibModule], path: Path, checkpoint: dict[str, Any], option: str, **parts: Any
) -> AnomalibModule:
    """Return the model of a checkpoint, with the checkpoint's settings.

    anomalib leaves the pre-processor out of the settings, and builds networks that depend on the size of their input
    for the default of their class. Here they get the pre-processor of the checkpoint from the start.

    Args:
        kind: Class of the model.
        path: The checkpoint.
        checkpoint: What :func:`read_checkpoint` has read from it.
        option: The option of a command by which users name the class, for messages.
        **parts: Parts of the model that its settings leave out, for example ``post_processor``.

    Raises:
        InputError: If the checkpoint is of another class.
    """
    try:
        if checkpoint.get("anomalib_pre_processor_config") is not None:
            parts["pre_processor"] = parts.get("pre_processor") or PreProcessor()
            parts["pre_processor"].load_checkpoint_config(checkpoint["anomalib_pre_processor_config"])
        model = kind.load_from_checkpoint(path, map_location="cpu", **parts)
    except InputError:
        raise
    except Exception as error:  # constructors and state dicts fail in many ways
        raise InputError(
            f"{path} is no checkpoint of {kind.__name__} that this anomalib can load ({first_line(error)}): name the "
            f"class that was trained by {option}, and use the anomalib that trained it"
        ) from error
    restore_tiling(model, checkpoint)
    return model


def check_checkpoint(model: AnomalibModule, path: str | Path) -> None:
    """Refuse a checkpoint to go on from that is none; nothing that it holds is run.

    Args:
        model: Will be restored from it.
        path: The file, or one of the words by which Lightning finds one itself.

    Raises:
        InputError: If it cannot be read.
    """
    if str(path) not in _WORDS and "://" not in str(path):
        read_checkpoint(Path(path), [type(model)])


def keep_tiling(model: AnomalibModule, checkpoint: dict[str, Any]) -> None:
    """Put into a checkpoint how its model divides images into tiles; anomalib leaves that to a callback.

    Args:
        model: Of anomalib.
        checkpoint: Changed in place where the model has tiles.
    """
    tiler = getattr(model.model, "tiler", None)
    if isinstance(tiler, Tiler):
        checkpoint[TILING] = {
            "tile_size": [tiler.tile_size_h, tiler.tile_size_w],
            "stride": [tiler.stride_h, tiler.stride_w],
            "remove_border_count": tiler.remove_border_count,
            "mode": ImageUpscaleMode(tiler.mode).value,
        }


def restore_tiling(model: AnomalibModule, checkpoint: dict[str, Any]) -> None:
    """Let a model divide images into tiles as it did when its checkpoint was written.

    Args:
        model: Changed in place where the checkpoint knows of tiles.
        checkpoint: That it was loaded from.
    """
    if settings := checkpoint.get(TILING):
        cast("Any", model.model).tiler = Tiler(**{**settings, "mode": ImageUpscaleMode(settings["mode"])})
