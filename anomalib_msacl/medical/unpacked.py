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
_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile)  # what a file raises that is cut off, damaged or of another kind
_PACKS = 1100  # gzip packs about 1030 bytes into one at best
_MOUNTS = Path("/proc/self/mounts")  # of Linux
_MEMORY = {"tmpfs", "ramfs"}


class UnpackedVolumes:
    """Uncompressed copies of ``.nii.gz`` files, made when they are first asked for.

    A slice of a compressed file can be read only after everything before it. Training asks for the slices of all
    volumes in a random order, and would unpack a whole volume for nearly every one. The copies lie in a temporary
    folder, which is removed with the last object that uses it.
    """

    def __init__(self) -> None:
        self.folder = ScratchFolder("volumes")
        self._left: set[str] = set()  # files of which no copy can be made
        self._told = False

    def path_of(self, path: str) -> str:
        """Return the copy of a compressed volume, or the path itself of any other file and where no copy can be made.

        Args:
            path: A file of any kind.
        """
        if path in self._left or not path.lower().endswith(".nii.gz"):
            return path
        copy = self.folder.path / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.nii"
        if copy.is_file():
            return str(copy)
        try:
            _check_room(self.folder.path, _length(path))
            _unpack(path, copy)
        except _BROKEN as error:  # who reads it tells what is wrong, or finds that its slices are whole
            logger.warning(
                "%s cannot be unpacked (%s), so its slices are read from the compressed file, which takes longer; "
                "compress it anew.",
                *(path, error),
            )
        except OSError as error:
            self._tell(path, error)
        else:
            return str(copy)
        self._left.add(path)
        return path

    def _tell(self, path: str, error: OSError) -> None:
        """Warn once that files stay compressed: a later one may be small enough."""
        if not self._told:
            logger.warning(
                "%s cannot be unpacked into %s (%s), so slices are read from compressed files, which takes longer; set "
                "TMPDIR to a folder on a disk with room for all volumes.",
                *(path, self.folder.path, error),
            )
        self._told = True


def in_memory(folder: Path) -> bool:
    """Return whether a folder lies on a disk that is memory, which volumes would fill; false where nothing says so."""
    try:
        lines = [line.split() for line in _MOUNTS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    # Of two file systems at one place the later one is seen.
    kinds = {Path(point.replace(r"\040", " ")): kind for _, point, kind, *_ in lines}
    inside = [point for point in kinds if folder.resolve().is_relative_to(point)]
    return bool(inside) and kinds[max(inside, key=lambda point: len(point.parts))] in _MEMORY


def _length(path: str) -> int:
    """Return how long a file is when it is unpacked, as it says itself.

    Raises:
        BadGzipFile: If it cannot be so long.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4))  # gzip keeps the length of the content there, up to multiples of 4 GiB
        length = int.from_bytes(file.read(), "little")
    if length > _PACKS * size:
        raise gzip.BadGzipFile("it is cut off, or something stands behind its end")
    return length


def _check_room(folder: Path, length: int) -> None:
    """Raise :class:`OSError` where a file of a length would leave too little room, or would fill the memory."""
    if in_memory(folder):
        raise OSError("which lies in memory")
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
