"""Pictures that help a user to judge data and results."""

from anomalib_msacl.report.lesion_sheet import lesion_sheet

__all__ = ["lesion_sheet"]
