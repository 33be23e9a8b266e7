"""Libraries of the extra ``medical``, imported when a file needs them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from anomalib_msacl.errors import InputError


def medical_library(name: str, path: Path) -> Any:
    """Import a library of the extra ``medical``.

    Args:
        name: Module, for example ``pydicom.pixels``.
        path: The file that needs it, for the message.

    Raises:
        InputError: If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f'{path} needs {name.split(".", maxsplit=1)[0]}: run pip install "anomalib-msacl[medical]"'
        ) from error
