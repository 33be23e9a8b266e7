"""Pictures that help a user to judge data and results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib_msacl.lazy import first_use

if TYPE_CHECKING:
    from anomalib_msacl.report.sheet import lesion_sheet

__all__ = ["lesion_sheet"]

__getattr__, __dir__ = first_use(__name__, {"lesion_sheet": "sheet"})
