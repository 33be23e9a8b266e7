"""Thresholds with a promise about false positives, from normal images alone.

Names are imported when they are first used: comparing scores needs neither torch nor anomalib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib_msacl.lazy import first_use

if TYPE_CHECKING:
    from anomalib_msacl.thresholds.callback import NormalsThreshold
    from anomalib_msacl.thresholds.conformal import Shift, conformal_rank, images_needed, shift

__all__ = [
    "NormalsThreshold",
    "Shift",
    "conformal_rank",
    "images_needed",
    "shift",
]

_HOMES = {
    "NormalsThreshold": "callback",
    "Shift": "conformal",
    "conformal_rank": "conformal",
    "images_needed": "conformal",
    "shift": "conformal",
}

__getattr__, __dir__ = first_use(__name__, _HOMES)
