"""Thresholds with a promise about false positives, from normal images alone.

Names are imported when they are first used: comparing scores needs neither torch nor anomalib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
