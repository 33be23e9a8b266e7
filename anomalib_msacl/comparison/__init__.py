"""Did it help? The same detector on the untouched and on the pre-trained backbone, with intervals."""

from anomalib_msacl.comparison.layout import Layout, find_layout
from anomalib_msacl.comparison.statistics import interval, resampled_difference
from anomalib_msacl.comparison.summary import summary, write_scores
from anomalib_msacl.comparison.trials import Trial, run_trials

__all__ = [
    "Layout",
    "Trial",
    "find_layout",
    "interval",
    "resampled_difference",
    "run_trials",
    "summary",
    "write_scores",
]
