"""Synthetic lesions on normal images.

Every family follows one contract: a :class:`Lesion` draws parameters, and renders them. :class:`LesionMixture` places
lesions of several families on a batch of images, sees to it that each of them is visible, and returns their masks.
"""

from anomalib_msacl.lesions.base import FAMILIES, Lesion, Parameters
from anomalib_msacl.lesions.canvas import MINIMUM_SIDE, check_images
from anomalib_msacl.lesions.medmix import MedMix
from anomalib_msacl.lesions.mixture import LesionMixture, LesionOutput, Lesions
from anomalib_msacl.lesions.patches import Patch
from anomalib_msacl.lesions.shades import Blob, Colour, Haze, Streak, Texture
from anomalib_msacl.lesions.structures import CutPaste, Missing, Warp

__all__ = [
    "FAMILIES",
    "MINIMUM_SIDE",
    "Blob",
    "Colour",
    "CutPaste",
    "Haze",
    "Lesion",
    "LesionMixture",
    "LesionOutput",
    "Lesions",
    "MedMix",
    "Missing",
    "Parameters",
    "Patch",
    "Streak",
    "Texture",
    "Warp",
    "check_images",
]
