"""Datamodules, the reader behind them, data checks and the validation split of MedMix."""

from anomalib_msacl.data.checks import check_datamodule
from anomalib_msacl.data.folder import CheckedFolder
from anomalib_msacl.data.medical_folder import MedicalFolder
from anomalib_msacl.data.phantom import Phantom
from anomalib_msacl.data.picture import Slices
from anomalib_msacl.data.published import LAG, CovidX, HyperKvasir, LiuColonoscopy
from anomalib_msacl.data.reader import ImageReader
from anomalib_msacl.data.validation import MedMixDataset, MedMixValidation

__all__ = [
    "LAG",
    "CheckedFolder",
    "CovidX",
    "HyperKvasir",
    "ImageReader",
    "LiuColonoscopy",
    "MedMixDataset",
    "MedMixValidation",
    "MedicalFolder",
    "Phantom",
    "Slices",
    "check_datamodule",
]
