"""One process at a time for the same weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from anomalib_msacl import distributed
from anomalib_msacl.errors import InputError

logger = logging.getLogger(__name__)


@contextmanager
def alone_with(directory: Path) -> Iterator[None]:
    """Hold the lock of a folder that is to be written; wait while another run holds it.

    The operating system drops the lock of a process that has died: a lock file that is left over keeps nobody out.

    Args:
        directory: The folder; the lock file lies beside it.

    Raises:
        InputError: If nothing can be written there.
    """
    lock = FileLock(directory.with_name(f".{directory.name}.lock"))
    distributed.on_main(_acquire, lock, directory)
    try:
        yield
    finally:
        lock.release(force=True)


def _acquire(lock: FileLock, directory: Path) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning(
                "MSACL: another run makes %s at this moment (%s is locked); waiting for it, to reuse its weights.",
                *(directory, lock.lock_file),
            )
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise InputError(
            f"pre-trained weights cannot be saved below {directory.parent} ({error}); set root to a folder that can be "
            "written."
        ) from error
