"""Which files are screened: those named, and the images in folders that are named."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalib_msacl.data.files import oddity
from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.kinds import EXTENSIONS, is_image


@dataclass(frozen=True)
class Source:
    """A file that is screened.

    Attributes:
        path: The file, absolute.
        name: Its path below the folder that was named, or its own name.
    """

    path: Path
    name: str


def find_sources(images: Sequence[str | Path], leave_out: Collection[str | Path] = ()) -> tuple[list[Source], int]:
    """Return the files to screen, each once.

    Args:
        images: Files, which are taken whatever they are called, and folders, of which the images are taken: by the
            ends of their names, or because they begin as DICOM files do. Hidden files are not taken.
        leave_out: Files and folders below those folders that are neither taken nor counted, such as what a screening
            writes. A folder that is named in ``images`` is taken all the same.

    Returns:
        The files, folder by folder in the order of their names, and the number of other files in the folders.

    Raises:
        InputError: If there is no such file or folder, a folder cannot be listed, or nothing is found.
    """
    found: dict[Path, Source] = {}  # by their paths without links to folders
    others: set[Path] = set()
    left_out = {_real(path) for path in leave_out}
    for given in images:
        place = Path(os.path.abspath(given))  # noqa: PTH100  # resolve() would follow links set on purpose
        if not place.is_dir():
            if not os.path.lexists(place):
                raise InputError(f"{given} is missing: name files or folders that exist")
            found.setdefault(_real(place.parent) / place.name, Source(place, place.name))
            continue
        for path, real in _files_below(place, left_out):
            if _is_taken(path, place):
                found.setdefault(real, Source(path, str(path.relative_to(place))))
            else:
                others.add(real)
    if not found:
        raise InputError(f"{', '.join(map(str, images))} has no images: name files, or folders with images")
    return list(found.values()), len(others - found.keys())


def _files_below(folder: Path, left_out: Collection[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield all files in a folder and below it, in the order of their names, then those behind links to folders.

    Args:
        folder: The folder.
        left_out: Paths of what is not taken, without links.

    Yields:
        Path of a file, and the same without links to folders.
    """

    def fail(error: OSError) -> None:
        raise InputError(
            f"the folder '{error.filename}' cannot be listed ({error.strerror}): give this user the right to read it"
        ) from error

    waiting = deque([folder])
    visited: set[Path] = set()  # links may lead in circles
    while waiting:
        for place, folders, names in os.walk(waiting.popleft(), onerror=fail):
            real = _real(place)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            yield from ((Path(place, name), real / name) for name in sorted(names) if real / name not in left_out)
            below = [path for path in sorted(Path(place, name) for name in folders) if _real(path) not in left_out]
            waiting.extend(path for path in below if path.is_symlink())
            folders[:] = [path.name for path in below if not path.is_symlink()]


def _real(path: str | Path) -> Path:
    """Return a path without links; Path.resolve fails at links that lead to themselves."""
    return Path(os.path.realpath(path))


def _is_taken(path: Path, folder: Path) -> bool:
    """Say whether a file is an image, or has the name of one: what then cannot be read shall be told."""
    named = path.name.lower().endswith(EXTENSIONS) and not path.name.startswith(".")
    return (named and bool(oddity(path))) or is_image(path, folder)
