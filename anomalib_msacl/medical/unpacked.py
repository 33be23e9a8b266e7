"""Uncompressed copies of volumes, for slices that are read in any order."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import zlib
from pathlib import Path

from anomalib_msacl.data.scratch import ScratchFolder

logger = logging.getLogger(__name__)

_ROOM = 2**30  # bytes that stay free on the disk


class UnpackedVolumes:
    """Uncompressed copies of ``.nii.gz`` files, made when they are first asked for.

    A slice of a compressed file can be read only after everything before it. Training asks for the slices of all
    volumes in a random order, and would unpack a whole volume for nearly every one. The copies lie in a temporary
    folder, which is removed with the last object that uses it.
    """

    def __init__(self) -> None:
        self.folder = ScratchFolder("volumes")
        self._given_up = False

    def path_of(self, path: str) -> str:
        """Return the copy of a compressed volume, or the path itself of any other file and where no copy can be made.

        Args:
            path: A file of any kind.
        """
        if self._given_up or not path.lower().endswith(".nii.gz"):
            return path
        copy = self.folder.path / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.nii"
        if copy.is_file():
            return str(copy)
        try:
            _check_room(self.folder.path, path)
            _unpack(path, copy)
        except (OSError, EOFError, zlib.error) as error:  # a broken file is told by who reads it
            self._given_up = True
            logger.warning(
                "%s cannot be unpacked into %s (%s), so slices are read from compressed files, which takes longer; set "
                "TMPDIR to a folder with room for all volumes.",
                path,
                self.folder.path,
                error,
            )
            return path
        return str(copy)


def _check_room(folder: Path, path: str) -> None:
    """Raise :class:`OSError` where a file, unpacked, would leave too little room."""
    with Path(path).open("rb") as file:
        file.seek(-4, os.SEEK_END)  # gzip keeps the length of the content there, up to multiples of 4 GiB
        length = int.from_bytes(file.read(), "little")
    if shutil.disk_usage(folder).free < length + _ROOM:
        raise OSError("there is not enough room")


def _unpack(path: str, copy: Path) -> None:
    """Unpack a file; other processes see the copy when it is complete."""
    partial = copy.with_suffix(f".{os.getpid()}")
    try:
        with gzip.open(path) as packed, partial.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 2**20)
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)
