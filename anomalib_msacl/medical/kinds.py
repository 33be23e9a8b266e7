"""Kinds of image files, by their names or first bytes, and where a set keeps its normal ones."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from anomalib_msacl.errors import InputError
from anomalib_msacl.medical.image import Kind

DICOM_EXTENSIONS = (".dcm", ".dicom", ".ima")
NIFTI_EXTENSIONS = (".nii", ".nii.gz")
# Those of torchvision, and so of anomalib, and JPEG 2000.
RASTER_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".jp2", ".j2k", ".jpx")
EXTENSIONS = (*RASTER_EXTENSIONS, *DICOM_EXTENSIONS, *NIFTI_EXTENSIONS)
TRAINING = ("train/good", "train/normal", "train")

_PREAMBLE = 128  # bytes before the prefix of a DICOM file


def kind_of(path: Path) -> Kind:
    """Return the kind of a file, by its name, or by its first bytes where the name does not say."""
    name = path.name.lower()
    if name.endswith(NIFTI_EXTENSIONS):
        return "nifti"
    if name.endswith(DICOM_EXTENSIONS) or (not name.endswith(RASTER_EXTENSIONS) and has_dicom_prefix(path)):
        return "dicom"
    return "raster"


def has_dicom_prefix(path: Path) -> bool:
    """Say whether a regular file has the prefix that DICOM files carry; many have no extension."""
    try:
        status = path.stat()
        # A pipe would wait for ever.
        return stat.S_ISREG(status.st_mode) and _begins_as_dicom(str(path), status.st_mtime_ns, status.st_size)
    except OSError:
        return False


@lru_cache(maxsize=2**16)  # each step that looks for files, or reads one, asks anew
def _begins_as_dicom(path: str, modified: int, size: int) -> bool:
    """Read the prefix; ``modified`` and ``size`` keep a changed file from being taken for the old one."""
    del modified, size
    with Path(path).open("rb") as file:
        return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"


def is_image(path: Path, folder: Path, extensions: Sequence[str] | None = None) -> bool:
    """Say whether a file of a folder is an image that can be read; hidden files are not.

    Args:
        path: A regular file.
        folder: The folder, which may itself be hidden.
        extensions: Accepted ends of names, with the dot. If None all that can be read, and files of other names that
            begin as DICOM files do.
    """
    if any(part.startswith(".") for part in path.relative_to(folder).parts):
        return False
    known = tuple(extension.lower() for extension in extensions or EXTENSIONS)
    if path.name.lower().endswith(known):
        return True
    return extensions is None and path.name != "DICOMDIR" and has_dicom_prefix(path)


def stem_of(path: Path) -> str:
    """Return a file's name without its extension; names of DICOM files may hold dots that begin no extension.

    >>> stem_of(Path("a/scan.nii.gz")), stem_of(Path("1.2.840")), stem_of(Path("x.PNG"))
    ('scan', '1.2.840', 'x')
    """
    lower = path.name.lower()
    end = next((end for end in sorted(EXTENSIONS, key=len, reverse=True) if lower.endswith(end)), "")
    return path.name[: len(path.name) - len(end)]


def training_folder(root: Path) -> Path:
    """Return where a set keeps its normal training images; the folder itself where it has no such place.

    Raises:
        InputError: If it is no folder.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder; name one of normal images.")
    return next((root / name for name in TRAINING if (root / name).is_dir()), root)
