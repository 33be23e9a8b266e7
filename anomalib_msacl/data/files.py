"""Folders and files of images: listed and read with plain messages about what is wrong with them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from anomalib_msacl.errors import InputError, name_some

Directories = str | Path | Sequence[str | Path] | None

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnreadableError(Exception):
    """Why a file cannot be read, in words that follow the file's name; turned into a list of all such files."""


def read_bytes(path: str | Path) -> bytes:
    """Read a regular file; pipes and devices may never end and are not read.

    Raises:
        UnreadableError: If it is no regular file.
        OSError: If it cannot be read.
    """
    _check_regular(path)
    return Path(path).read_bytes()


def size_of(path: str | Path) -> int:
    """Return the number of bytes of a regular file.

    Raises:
        UnreadableError: If it is no regular file.
        OSError: If it cannot be looked at.
    """
    _check_regular(path)
    return os.stat(path).st_size  # noqa: PTH116  # Path.stat is the same


def middle_of(path: str | Path, length: int = 4096) -> bytes:
    """Return some bytes from the middle of a regular file: its ends are headers and padding, alike in many files.

    Raises:
        UnreadableError: If it is no regular file.
        OSError: If it cannot be read.
    """
    start = max(0, size_of(path) - length) // 2
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read(length)


def _check_regular(path: str | Path) -> None:
    """Raise :class:`UnreadableError` where a path is no regular file."""
    odd = oddity(path)
    if odd:
        raise UnreadableError(f"is {odd}")


def oddity(path: str | Path) -> str:
    """Say what a path is that is no regular file, empty where it is one or cannot be looked at for another reason."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  # Path.stat is the same
    except OSError:
        return "a link to nothing, or to itself" if Path(path).is_symlink() else ""
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "")


def as_list(folders: Directories) -> list[str | Path]:
    """Return a folder argument as a list, empty for ``None``."""
    if folders is None:
        return []
    return [folders] if isinstance(folders, str | Path) else list(folders)


def check_root(root: Path, name: str) -> None:
    """Raise :class:`InputError` where the root folder of a data set is missing."""
    if not root.is_dir():
        raise InputError(f"the root folder '{root}' of the dataset '{name}' is missing: set root to its path")


def find_images(
    argument: str, root: Path, folder: str | Path, accepts: Callable[[Path], bool], endings: Sequence[str]
) -> list[Path]:
    """Return the images in a folder and below it.

    Args:
        argument: Name of the constructor argument that names the folder, for the messages.
        root: Folder that ``folder`` is relative to, unless it is absolute.
        folder: The folder.
        accepts: Says whether a regular file is an image.
        endings: Accepted ends of file names, for the messages; other files may be pipes or broken links.

    Returns:
        At least one path, sorted.

    Raises:
        InputError: If the folder is missing, cannot be listed, has no image, or has a path with the ending of an
            image that is no regular file.
    """
    path = root / folder
    if not path.is_dir():
        raise InputError(f"{argument} '{folder}' is missing below '{root}': {describe_neighbours(path)}")
    entries = list_folder(path)
    odd = {entry: oddity(entry) for entry in entries}
    broken = [f"{entry} ({odd[entry]})" for entry in entries if odd[entry] and _ends(entry, endings)]
    if broken:
        raise InputError(
            f"{argument} '{folder}' has {len(broken)} images that are no regular files, {name_some(broken)}: remove "
            "or replace them"
        )
    images = [entry for entry in entries if not odd[entry] and accepts(entry)]
    if not images:
        raise InputError(
            f"{argument} '{folder}' below '{root}' has no images: put files there that end in {', '.join(endings)}"
        )
    return images


def list_folder(folder: Path) -> list[Path]:
    """Return everything but folders in a folder and below it, sorted; links to folders are not followed.

    Raises:
        InputError: If a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise InputError(
            f"the folder '{error.filename}' cannot be listed ({error.strerror}): give this user the right to read it, "
            "or remove it"
        ) from error

    return sorted(Path(place, name) for place, _, names in os.walk(folder, onerror=fail) for name in names)


def describe_neighbours(missing: Path) -> str:
    """Say which folders exist where a missing one was looked for."""
    parent = next(above for above in missing.absolute().parents if above.is_dir())
    names = sorted(entry.name for entry in os.scandir(parent) if entry.is_dir())
    listed = f"choose from the folders of '{parent}', which are {', '.join(names)}"
    return listed if names else f"create it, as '{parent}' has no folders yet"


def _ends(path: Path, endings: Sequence[str]) -> bool:
    """Say whether a file name has one of some endings, in any case."""
    return path.name.lower().endswith(tuple(endings))
