"""Published sets of medical images: what they are, where they come from, and how they are split in the literature."""

from anomalib_msacl.medical.published.covidx import CovidX
from anomalib_msacl.medical.published.hyper_kvasir import HyperKvasir
from anomalib_msacl.medical.published.lag import LAG
from anomalib_msacl.medical.published.liu import LiuColonoscopy

__all__ = ["LAG", "CovidX", "HyperKvasir", "LiuColonoscopy"]
