"""MSACL / PMSACL pre-training on normal images, as a plug-in of anomalib.

The names below are all that most users need. Each is imported when it is first used, so that the command line answers
at once; ``anomalib.models.get_model("msacl")`` knows the model once ``anomalib_msacl.Msacl`` was imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib_msacl.lazy import first_use

if TYPE_CHECKING:
    from anomalib_msacl.callback import MsaclPretraining
    from anomalib_msacl.detectors.igd import Igd
    from anomalib_msacl.detectors.msacl import Msacl
    from anomalib_msacl.errors import InputError
    from anomalib_msacl.lesions import LesionMixture, MedMix
    from anomalib_msacl.pretraining import Pretrained, pretrain
    from anomalib_msacl.recipe import Recipe
    from anomalib_msacl.scores import ScoresCsv
    from anomalib_msacl.thresholds import NormalsThreshold

__all__ = [
    "Igd",
    "InputError",
    "LesionMixture",
    "MedMix",
    "Msacl",
    "MsaclPretraining",
    "NormalsThreshold",
    "Pretrained",
    "Recipe",
    "ScoresCsv",
    "pretrain",
]
__version__ = "0.3.0.dev0"

_HOME = {
    "Igd": "detectors.igd",
    "InputError": "errors",
    "LesionMixture": "lesions",
    "MedMix": "lesions",
    "Msacl": "detectors.msacl",
    "MsaclPretraining": "callback",
    "NormalsThreshold": "thresholds",
    "Pretrained": "pretraining",
    "Recipe": "recipe",
    "ScoresCsv": "scores",
    "pretrain": "pretraining",
}

__getattr__, __dir__ = first_use(__name__, _HOME)
