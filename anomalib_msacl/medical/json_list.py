"""Lists of images as MedIAnomaly publishes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from anomalib.data.utils import LabelName, Split

from anomalib_msacl.data.files import UnreadableError, read_bytes
from anomalib_msacl.errors import InputError, name_some
from anomalib_msacl.medical.table import File

_SHOWN = 60  # characters of a wrong entry
_LABELS = {"0": LabelName.NORMAL, "1": LabelName.ABNORMAL}


def listed_files(path: Path, folder: Path) -> list[File]:
    """Return the files of a list ``{"train": {"0": [names]}, "test": {"0": [names], "1": [names]}}``.

    Args:
        path: The list.
        folder: Folder that the names are relative to.

    Returns:
        The files, those of the training first.

    Raises:
        InputError: If the list cannot be read, is not of that form, lists abnormal training images or missing files.
    """
    lists = _lists(path)
    abnormal_training = lists.get((Split.TRAIN, "1"))
    if abnormal_training:
        raise InputError(f"{path} lists abnormal training images, {name_some(abnormal_training)}: remove train.1")
    files = [
        File(Path(os.path.normpath(folder / name)), _LABELS[key], split)
        for (split, key), names in lists.items()
        for name in names
    ]
    missing = [str(file.path) for file in files if not _is_file(file.path)]
    if missing:
        raise InputError(f"{path} lists {len(missing)} files that are missing, {name_some(missing)}: add them")
    return files


def _lists(path: Path) -> dict[tuple[Split, str], list[str]]:
    """Read the lists by split and class; only that of normal training images has to be there."""
    try:
        content = json.loads(read_bytes(path))
        lists = {(Split.TRAIN, "0"): _names(content["train"]["0"])}
        for split, key in ((Split.TEST, "0"), (Split.TEST, "1"), (Split.TRAIN, "1")):
            if key in content.get(split.value, {}):
                lists[split, key] = _names(content[split.value][key])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UnreadableError) as error:
        raise InputError(
            f"cannot read {path} ({error}): it must be a file with lists of names in train.0, test.0 and test.1"
        ) from error
    return lists


def _names(content: Any) -> list[str]:
    """Return a list of names, or raise ``TypeError``."""
    if not isinstance(content, list):
        raise TypeError(f"{str(content)[:_SHOWN]!r} is no list")
    odd = [str(name)[:_SHOWN] for name in content if not isinstance(name, str)]
    if odd:
        raise TypeError(f"{name_some(odd)} in a list is no text in quotes")
    return content


def _is_file(path: Path) -> bool:
    """Say whether there is such a file; there is none of a name that is too long for a file."""
    try:
        return path.is_file()
    except OSError:
        return False
