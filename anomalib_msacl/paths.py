"""Paths as people write them in a configuration, where no shell replaces ``~``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def at_home(path: str | Path) -> Path:
    """Return a path whose ``~`` or ``~name`` at the beginning is a home folder; other paths stay as they are.

    Args:
        path: Of a file or a folder, there or not.

    >>> at_home("data/~x").as_posix()
    'data/~x'
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111  # that of Path fails where there is no such user


def with_home(given: Any) -> Any:
    """Return an argument that names files or folders, or none, with each ``~`` at a beginning replaced.

    Args:
        given: A path, a list of paths or None. What does not begin with ``~`` stays the object that it is.
    """
    if isinstance(given, list | tuple):
        return type(given)(with_home(each) for each in given)
    return at_home(given) if isinstance(given, str | Path) and str(given).startswith("~") else given
