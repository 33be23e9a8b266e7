"""Folders for generated files that live as long as the objects that need them."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any


class ScratchFolder:
    """A temporary folder, removed with the last object that refers to it or at the end of the process.

    Copies of a dataset share their folder, deep copies and those in data loading processes too: only the process that
    made the folder removes it.

    Args:
        purpose: Part of the folder's name.

    Attributes:
        path: The folder.
    """

    def __init__(self, purpose: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"anomalib-msacl-{purpose}-"))
        weakref.finalize(self, _remove, self.path, os.getpid())

    def __deepcopy__(self, memo: dict[int, Any]) -> ScratchFolder:
        """Return the same object: it is what keeps the folder alive."""
        return self

    def __getstate__(self) -> dict[str, Path]:
        """Return the path alone; unpickled without ``__init__``, the object removes nothing."""
        return {"path": self.path}


def _remove(path: Path, owner: int) -> None:
    """Remove a folder, unless this is a fork of the process that made it."""
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
