"""Thresholds with a promise about false positives, from normal images alone."""

from anomalib_msacl.thresholds.callback import NormalsThreshold
from anomalib_msacl.thresholds.conformal import Shift, conformal_rank, images_needed, shift

__all__ = ["NormalsThreshold", "Shift", "conformal_rank", "images_needed", "shift"]
