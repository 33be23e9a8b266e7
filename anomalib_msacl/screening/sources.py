"""Which files are screened: those named, and the images in folders that are named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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


def find_sources(images: Sequence[str | Path], leave_out: str | Path | None = None) -> tuple[list[Source], int]:
    """Return the files to screen, each once.

    Args:
        images: Files, which are taken whatever they are called, and folders, of which the images are taken: by the
            ends of their names, or because they begin as DICOM files do. Hidden files are not taken.
        leave_out: A folder that nothing is taken from: the one that maps are written to.

    Returns:
        The files, folder by folder in the order of their names, and the number of other files in the folders.

    Raises:
        InputError: If there is no such file or folder, a folder cannot be listed, or nothing is found.
    """
    found: dict[Path, Source] = {}
    others = 0
    out = None if leave_out is None else Path(os.path.abspath(leave_out))  # noqa: PTH100
    for given in images:
        place = Path(os.path.abspath(given))  # noqa: PTH100  # resolve() would follow links set on purpose
        if not place.is_dir():
            if not os.path.lexists(place):
                raise InputError(f"{given} is missing: name files or folders that exist")
            found.setdefault(place, Source(place, place.name))
            continue
        for path in _files_below(place, out):
            if _is_taken(path, place):
                found.setdefault(path, Source(path, str(path.relative_to(place))))
            else:
                others += 1
    if not found:
        raise InputError(f"{', '.join(map(str, images))} has no images: name files, or folders with images")
    return list(found.values()), others


def _files_below(folder: Path, out: Path | None) -> Iterator[Path]:
    """Yield all files in a folder and below it, in the order of their names; links to folders are not followed."""

    def fail(error: OSError) -> None:
        raise InputError(
            f"the folder '{error.filename}' cannot be listed ({error.strerror}): give this user the right to read it"
        ) from error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if Path(place, name) != out)
        yield from (Path(place, name) for name in sorted(names))


def _is_taken(path: Path, folder: Path) -> bool:
    """Say whether a file is an image, or has the name of one: what then cannot be read shall be told."""
    named = path.name.lower().endswith(EXTENSIONS) and not path.name.startswith(".")
    return (named and bool(oddity(path))) or is_image(path, folder)
