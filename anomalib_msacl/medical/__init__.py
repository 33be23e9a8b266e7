"""Medical images: DICOM, NIfTI and images of more than 8 bits, read alike, and datamodules of them.

Names are loaded when they are first used: the readers of files need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_msacl.medical.datamodule import MedicalDataModule
    from anomalib_msacl.medical.dataset import MedicalDataset
    from anomalib_msacl.medical.folder import MedicalFolder
    from anomalib_msacl.medical.intensity import Intensity
    from anomalib_msacl.medical.published import LAG, CovidX, HyperKvasir, LiuColonoscopy
    from anomalib_msacl.medical.reader import ImageReader
    from anomalib_msacl.medical.slices import Slices
    from anomalib_msacl.medical.table import File

__all__ = [
    "LAG",
    "CovidX",
    "File",
    "HyperKvasir",
    "ImageReader",
    "Intensity",
    "LiuColonoscopy",
    "MedicalDataModule",
    "MedicalDataset",
    "MedicalFolder",
    "Slices",
]

_HOME = {
    "File": "table",
    "ImageReader": "reader",
    "Intensity": "intensity",
    "MedicalDataModule": "datamodule",
    "MedicalDataset": "dataset",
    "MedicalFolder": "folder",
    "Slices": "slices",
    **dict.fromkeys(("LAG", "CovidX", "HyperKvasir", "LiuColonoscopy"), "published"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
