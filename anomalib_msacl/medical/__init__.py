"""Medical images: DICOM, NIfTI and images of more than 8 bits, read alike, and datamodules of them."""

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
