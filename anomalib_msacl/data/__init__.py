"""Datamodules, data checks and the validation split of MedMix.

Names of :mod:`anomalib_msacl.medical` and :mod:`anomalib_msacl.phantom` can be imported from here too. All are loaded
when they are first used, so that libraries for medical files are not needed before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib_msacl.lazy import first_use

if TYPE_CHECKING:
    from anomalib_msacl.data.checks import check_datamodule
    from anomalib_msacl.data.folder import CheckedFolder
    from anomalib_msacl.data.medmix_dataset import MedMixDataset
    from anomalib_msacl.data.medmix_split import MedMixSplit
    from anomalib_msacl.data.validation import MedMixValidation
    from anomalib_msacl.medical import LAG, CovidX, HyperKvasir, ImageReader, LiuColonoscopy, MedicalFolder, Slices
    from anomalib_msacl.phantom import Phantom

_HOMES = {
    "checks": ("check_datamodule",),
    "folder": ("CheckedFolder",),
    "medmix_dataset": ("MedMixDataset",),
    "medmix_split": ("MedMixSplit",),
    "validation": ("MedMixValidation",),
    ".medical": (*("LAG", "CovidX", "HyperKvasir", "ImageReader", "LiuColonoscopy", "MedicalFolder", "Slices"),),
    ".phantom": ("Phantom",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LAG",
    "CheckedFolder",
    "CovidX",
    "HyperKvasir",
    "ImageReader",
    "LiuColonoscopy",
    "MedMixDataset",
    "MedMixSplit",
    "MedMixValidation",
    "MedicalFolder",
    "Phantom",
    "Slices",
    "check_datamodule",
]

__getattr__, __dir__ = first_use(__name__, _MODULES)
