"""Folders for generated files that live as long as the objects that need them.

They hold copies of patients' images. A process that is killed cannot remove them: the next one does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_PREFIX = "anomalib-msacl-"
_LOCK = "in-use"  # held for as long as a process lives that uses the folder
_YOUNG = 60.0  # seconds in which the process that makes a folder takes its lock


class ScratchFolder:
    """A temporary folder, removed with the last object that refers to it or at the end of the process.

    Copies of a dataset share their folder, deep copies and those in data loading processes too: only the process that
    made the folder removes it. Folders of processes that were killed are removed when the next one is made.

    Args:
        purpose: Part of the folder's name.

    Attributes:
        path: The folder.
    """

    def __init__(self, purpose: str) -> None:
        remove_leftovers()
        outer = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-"))
        lock = FileLock(outer / _LOCK)
        lock.acquire()
        self.path = outer / "files"
        self.path.mkdir()
        weakref.finalize(self, _remove, outer, lock, os.getpid())

    def __deepcopy__(self, memo: dict[int, Any]) -> ScratchFolder:
        """Return the same object: it is what keeps the folder alive."""
        return self

    def __getstate__(self) -> dict[str, Path]:
        """Return the path alone; unpickled without ``__init__``, the object removes nothing."""
        return {"path": self.path}


def remove_leftovers() -> None:
    """Remove the folders of this user's processes that were killed.

    The operating system drops the lock of a process that has died, so that a folder whose lock is free has no user.
    """
    for outer in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        lock = FileLock(outer / _LOCK)
        try:
            state = outer.lstat()
            mine = not hasattr(os, "getuid") or state.st_uid == os.getuid()
            if not mine or not outer.is_dir() or outer.is_symlink() or time.time() - state.st_mtime < _YOUNG:
                continue
            lock.acquire(timeout=0)
        except (OSError, Timeout, NotImplementedError):  # in use, or gone meanwhile
            continue
        _remove(outer, lock, os.getpid())


def _remove(outer: Path, lock: FileLock, owner: int) -> None:
    """Remove a folder, unless this is a fork of the process that made it."""
    if os.getpid() == owner:
        shutil.rmtree(outer, ignore_errors=True)
        lock.release(force=True)
