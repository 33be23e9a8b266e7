"""Datamodules, data checks and the validation split of MedMix.

Names of :mod:`anomalib_msacl.medical` and :mod:`anomalib_msacl.phantom` can be imported from here too. All are loaded
when they are first used, so that libraries for medical files are not needed before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_msacl.data.checks import check_datamodule
    from anomalib_msacl.data.folder import CheckedFolder
    from anomalib_msacl.data.medmix_dataset import MedMixDataset
    from anomalib_msacl.data.medmix_split import MedMixSplit
    from anomalib_msacl.data.validation import MedMixValidation
    from anomalib_msacl.medical import LAG, CovidX, HyperKvasir, ImageReader, LiuColonoscopy, MedicalFolder, Slices
    from anomalib_msacl.phantom import Phantom

_HOMES = {
    "anomalib_msacl.data.checks": ("check_datamodule",),
    "anomalib_msacl.data.folder": ("CheckedFolder",),
    "anomalib_msacl.data.medmix_dataset": ("MedMixDataset",),
    "anomalib_msacl.data.medmix_split": ("MedMixSplit",),
    "anomalib_msacl.data.validation": ("MedMixValidation",),
    "anomalib_msacl.medical": (
        *("LAG", "CovidX", "HyperKvasir", "ImageReader", "LiuColonoscopy", "MedicalFolder", "Slices"),
    ),
    "anomalib_msacl.phantom": ("Phantom",),
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


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
