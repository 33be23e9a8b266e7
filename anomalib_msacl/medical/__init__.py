"""Medical images: DICOM, NIfTI and images of more than 8 bits, read alike, and datamodules of them.

Names are imported when they are first used: reading files needs neither torch nor anomalib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib_msacl.lazy import first_use

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

_HOMES = {
    "LAG": "published",
    "CovidX": "published",
    "File": "table",
    "HyperKvasir": "published",
    "ImageReader": "reader",
    "Intensity": "intensity",
    "LiuColonoscopy": "published",
    "MedicalDataModule": "datamodule",
    "MedicalDataset": "dataset",
    "MedicalFolder": "folder",
    "Slices": "slices",
}

__getattr__, __dir__ = first_use(__name__, _HOMES)
